//! Starting a program: everything is prepared before the fork, since the child of a program with
//! threads may only make plain system calls until it executes something else.

use std::collections::BTreeMap;
use std::ffi::{CString, NulError};
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr;

use libc::{c_char, c_int, c_long};
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::sync::oneshot;

use super::reaper::Reaper;
use super::status::ExitStatus;

/// Exit code when a program is there and cannot be executed, and when there is none (executor 4.1).
const CANNOT_EXECUTE: c_int = 126;
const NOT_FOUND: c_int = 127;

/// What user processes are killed before the daemon is (executor 4.9).
const OOM_SCORE: &[u8] = b"100";

/// Where programs are looked for if neither the daemon nor the request says.
pub(in super::super) const DEFAULT_PATH: &str =
    "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A program ready to run.
pub(in super::super) struct Command {
    arguments: Vec<CString>,
    environment: Vec<CString>,
    /// The program's possible paths, in the order to try.
    candidates: Vec<CString>,
    directory: CString,
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
    not_found: Vec<u8>,
    not_permitted: Vec<u8>,
    too_long: Vec<u8>,
    cannot_execute: Vec<u8>,
}

/// What becomes 0, 1 and 2.
pub(in super::super) enum Streams {
    Pipes([OwnedFd; 3]),
    /// All three, and the terminal that controls a session of the program's own.
    Terminal(OwnedFd),
}

/// Who the program runs as.
pub(in super::super) struct ProcessIdentity {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
}

/// Why no program runs.
#[derive(Debug, thiserror::Error)]
pub(in super::super) enum SpawnError {
    #[error("failed to prepare a process: {0}")]
    Prepare(#[source] io::Error),
    #[error("failed to become the user: {0}")]
    Identity(#[source] io::Error),
    #[error("{0}")]
    Directory(#[source] io::Error),
}

/// Steps of the child that can fail before it executes; the numbers go through the pipe.
#[derive(Clone, Copy)]
#[repr(u8)]
enum Step {
    Streams = 1,
    Identity = 2,
    Directory = 3,
}

impl Command {
    /// Prepares a program. `program` without a slash is looked up in the `PATH` of its new environment.
    ///
    /// # Errors
    /// If a text holds a NUL character, which no program can be given.
    pub(in super::super) fn new(
        program: &str,
        arguments: &[String],
        environment: &BTreeMap<String, String>,
        directory: &str,
        identity: ProcessIdentity,
    ) -> Result<Self, NulError> {
        let all = std::iter::once(program).chain(arguments.iter().map(String::as_str));
        let path = environment.get("PATH").map_or("", String::as_str);
        Ok(Self {
            arguments: all.map(CString::new).collect::<Result<_, _>>()?,
            environment: environment
                .iter()
                .map(|(name, value)| CString::new(format!("{name}={value}")))
                .collect::<Result<_, _>>()?,
            candidates: candidates(program, path)?,
            directory: CString::new(directory)?,
            uid: identity.uid,
            gid: identity.gid,
            groups: identity.groups,
            not_found: format!("exec: {program}: not found\n").into_bytes(),
            not_permitted: format!("exec: {program}: permission denied\n").into_bytes(),
            too_long: format!("exec: {program}: argument list too long\n").into_bytes(),
            cannot_execute: format!("exec: {program}: cannot execute\n").into_bytes(),
        })
    }

    /// Forks and waits until the child has its identity and directory; it may still find no program
    /// and then says so on its standard error and exits with 127 or 126. Blocks.
    pub(in super::super) fn spawn(
        &self,
        streams: Streams,
        reaper: &Reaper,
    ) -> Result<(u32, oneshot::Receiver<ExitStatus>), SpawnError> {
        let (report, reporter) =
            pipe_with(PipeFlags::CLOEXEC).map_err(|error| SpawnError::Prepare(error.into()))?;
        let image = Image::of(self);
        let child = reaper
            .register(|| fork(|| self.run(&image, &streams, &reporter)))
            .map_err(SpawnError::Prepare)?;
        drop((reporter, streams));
        let mut failure = [0; 5];
        match File::from(report).read_exact(&mut failure) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(child),
            Err(error) => Err(SpawnError::Prepare(error)),
            Ok(()) => {
                let [step, errno @ ..] = failure;
                let error = io::Error::from_raw_os_error(i32::from_ne_bytes(errno));
                Err(match step {
                    s if s == Step::Directory as u8 => SpawnError::Directory(error),
                    s if s == Step::Identity as u8 => SpawnError::Identity(error),
                    _ => SpawnError::Prepare(error),
                })
            }
        }
    }

    /// The child, from the fork to the end. Only plain system calls, no allocation, no locks.
    fn run(&self, image: &Image, streams: &Streams, reporter: &OwnedFd) -> ! {
        // 3 is free once the streams are in place, or it is one of them.
        const REPORTER: c_int = 3;
        let (streams, own_session) = match streams {
            Streams::Pipes(pipes) => (pipes.each_ref().map(AsRawFd::as_raw_fd), false),
            Streams::Terminal(terminal) => ([terminal.as_raw_fd(); 3], true),
        };
        let reporter = reporter.as_raw_fd();
        // SAFETY: only async-signal-safe calls on memory that was prepared before the fork and that
        // this process alone has now; the arrays of pointers end in null. The calls that change the
        // identity are made directly, since the library's would signal threads that are not here.
        #[allow(unsafe_code)]
        unsafe {
            reset_signals();
            if own_session
                && (libc::setsid() < 0 || libc::ioctl(streams[0], libc::TIOCSCTTY, 0) < 0)
            {
                fail(reporter, Step::Streams);
            }
            for (target, source) in (0..).zip(streams) {
                // Never equal: 0, 1 and 2 were open when the daemon started.
                if libc::dup2(source, target) < 0 {
                    fail(reporter, Step::Streams);
                }
            }
            if reporter != REPORTER && libc::dup3(reporter, REPORTER, libc::O_CLOEXEC) < 0 {
                fail(reporter, Step::Streams);
            }
            // Descriptors of the daemon are close-on-exec; closed here already, they do not keep
            // another process's pipes open while this one looks for a slow directory.
            libc::syscall(libc::SYS_close_range, 4 as c_long, c_long::from(u32::MAX), 0 as c_long);
            let score =
                libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
            if score >= 0 {
                // Best effort: without it the process merely is no likelier victim than the daemon.
                libc::write(score, OOM_SCORE.as_ptr().cast(), OOM_SCORE.len());
                libc::close(score);
            }
            let (uid, gid) = (self.uid as c_long, self.gid as c_long);
            if libc::syscall(libc::SYS_setgroups, self.groups.len(), self.groups.as_ptr()) < 0
                || libc::syscall(libc::SYS_setresgid, gid, gid, gid) < 0
                || libc::syscall(libc::SYS_setresuid, uid, uid, uid) < 0
            {
                fail(REPORTER, Step::Identity);
            }
            if libc::chdir(self.directory.as_ptr()) < 0 {
                fail(REPORTER, Step::Directory);
            }
            libc::close(REPORTER);
            // The last reason that is not "there is none".
            let mut reason = libc::ENOENT;
            for (candidate, script) in self.candidates.iter().zip(&image.scripts) {
                libc::execve(
                    candidate.as_ptr(),
                    image.arguments.as_ptr(),
                    image.environment.as_ptr(),
                );
                match *libc::__errno_location() {
                    libc::ENOENT | libc::ENOTDIR => {}
                    // A script without a first line that names its program: the shell's, by custom.
                    libc::ENOEXEC => {
                        let shell = c"/bin/sh".as_ptr();
                        libc::execve(shell, script.as_ptr(), image.environment.as_ptr());
                        reason = libc::ENOEXEC;
                    }
                    error => reason = error,
                }
            }
            let (text, code) = match reason {
                libc::ENOENT => (&self.not_found, NOT_FOUND),
                libc::EACCES => (&self.not_permitted, CANNOT_EXECUTE),
                libc::E2BIG => (&self.too_long, CANNOT_EXECUTE),
                _ => (&self.cannot_execute, CANNOT_EXECUTE),
            };
            libc::write(2, text.as_ptr().cast(), text.len());
            libc::_exit(code)
        }
    }
}

/// The arrays of pointers that `execve` takes, into the texts of a [`Command`].
struct Image {
    arguments: Vec<*const c_char>,
    environment: Vec<*const c_char>,
    /// One for each candidate: the shell's arguments if it is a script.
    scripts: Vec<Vec<*const c_char>>,
}

impl Image {
    fn of(command: &Command) -> Self {
        let pointers = |texts: &[CString]| -> Vec<*const c_char> {
            texts.iter().map(|text| text.as_ptr()).chain([ptr::null()]).collect()
        };
        let arguments = pointers(&command.arguments);
        let script = |candidate: &CString| {
            let mut all = vec![c"/bin/sh".as_ptr(), candidate.as_ptr()];
            all.extend_from_slice(&arguments[1..]);
            all
        };
        Self {
            scripts: command.candidates.iter().map(script).collect(),
            environment: pointers(&command.environment),
            arguments,
        }
    }
}

fn candidates(program: &str, path: &str) -> Result<Vec<CString>, NulError> {
    if program.is_empty() || program.contains('/') {
        return Ok(vec![CString::new(program)?]);
    }
    path.split(':')
        .map(|directory| match directory {
            // By custom an empty entry is the current directory.
            "" => CString::new(format!("./{program}")),
            directory => CString::new(format!("{directory}/{program}")),
        })
        .collect()
}

/// Forks with all signals blocked, so that no handler of the daemon runs in the child.
fn fork(child: impl FnOnce() -> std::convert::Infallible) -> io::Result<u32> {
    let mut all = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    let mut before = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: both sets are written before they are read; the child makes only async-signal-safe
    // calls, as `Command::run` says.
    #[allow(unsafe_code)]
    let pid = unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr());
        let pid = libc::fork();
        if pid == 0 {
            child();
        }
        // Kept across the next call, which may set it.
        let result = if pid < 0 { Err(io::Error::last_os_error()) } else { Ok(pid) };
        libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), ptr::null_mut());
        result?
    };
    Ok(pid.cast_unsigned())
}

/// Gives every signal its default again and lets all through. By direct calls: the library keeps two
/// signals for itself, which whoever started the daemon may have left ignored.
///
/// # Safety
/// For the child of a fork only: it changes the whole process.
#[allow(unsafe_code)]
unsafe fn reset_signals() {
    // The kernel's own forms: an action is a handler, flags, a restorer and a mask, all nothing here.
    const DEFAULT_ACTION: [u64; 4] = [0; 4];
    const EMPTY_SET: u64 = 0;
    const SET_BYTES: usize = 8;
    // SAFETY: pointers to constants of the size that the kernel reads; KILL and STOP are refused.
    unsafe {
        let no_old = ptr::null_mut::<u64>();
        for signal in 1..=64 as c_long {
            let action = DEFAULT_ACTION.as_ptr();
            libc::syscall(libc::SYS_rt_sigaction, signal, action, no_old, SET_BYTES);
        }
        let set = ptr::from_ref(&EMPTY_SET);
        libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, set, no_old, SET_BYTES);
    }
}

/// Tells the parent which step failed, with the error number, and ends.
///
/// # Safety
/// For the child of a fork only.
#[allow(unsafe_code)]
unsafe fn fail(reporter: c_int, step: Step) -> ! {
    // SAFETY: plain system calls on memory of this frame.
    unsafe {
        let [a, b, c, d] = (*libc::__errno_location()).to_ne_bytes();
        let message = [step as u8, a, b, c, d];
        libc::write(reporter, message.as_ptr().cast(), message.len());
        libc::_exit(NOT_FOUND)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_looked_up_and_a_path_is_not() {
        let list = |program, path| -> Vec<String> {
            let all = candidates(program, path).unwrap();
            all.iter().map(|c| c.to_str().unwrap().to_owned()).collect()
        };
        assert_eq!(list("ls", "/bin::/x"), ["/bin/ls", "./ls", "/x/ls"]);
        assert_eq!(list("./ls", "/bin"), ["./ls"]);
        assert_eq!(list("", "/bin"), [""]);
    }
}
