//! Making processes: plain forks, the clone into namespaces, and what has to be put right before exec.

use std::convert::Infallible;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};

use nix::sys::signal::{SigHandler, SigSet, Signal, signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{ForkResult, execve};
use rustix::process::Pid;

use super::args::InitArgs;

/// The whole environment of the daemon: what the image or the engine set stays with `init`.
const DAEMON_ENVIRONMENT: [(&str, &str); 2] =
    [("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"), ("LANG", "C.UTF-8")];

/// Runs `child` in a new process, which ends with the code it returns.
pub(super) fn fork(child: impl FnOnce() -> i32) -> io::Result<Pid> {
    // SAFETY: init and its workers have one thread each, so that the child finds no lock held by a
    // thread it does not have.
    #[allow(unsafe_code)]
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Child => std::process::exit(child()),
        ForkResult::Parent { child } => pid(child.as_raw()),
    }
}

/// Like [`fork`], with the child as the first process of new PID and mount namespaces.
pub(super) fn clone_nested(child: impl FnOnce() -> i32) -> io::Result<Pid> {
    let flags = libc::CLONE_NEWPID | libc::CLONE_NEWNS | libc::SIGCHLD;
    // SAFETY: without CLONE_VM and with no stack given this is a fork: the child runs on its own copy
    // of everything; one thread, as above. All pointer arguments are null, which the flags allow.
    #[allow(unsafe_code)]
    let result = unsafe { libc::syscall(libc::SYS_clone, libc::c_long::from(flags), 0, 0, 0, 0) };
    match result {
        0 => std::process::exit(child()),
        child if child > 0 => pid(i32::try_from(child).map_err(io::Error::other)?),
        _ => Err(io::Error::last_os_error()),
    }
}

fn pid(raw: i32) -> io::Result<Pid> {
    Pid::from_raw(raw).ok_or_else(|| io::Error::other("a child without a process id"))
}

/// Blocks the signals that `init` takes from its [`signal_queue`]. Workers and the user's side
/// inherit the mask; [`exec`] clears it, [`exec_daemon`] all but TERM.
pub(super) fn take_signals() -> nix::Result<()> {
    signals().thread_block()
}

/// The blocked signals as a descriptor to poll.
pub(super) fn signal_queue() -> nix::Result<SignalFd> {
    SignalFd::with_flags(&signals(), SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
}

fn signals() -> SigSet {
    let mut set = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGCHLD] {
        set.add(signal);
    }
    set
}

/// Closes every descriptor but the standard ones and `keep`.
pub(super) fn close_all_but(keep: &[RawFd]) -> io::Result<()> {
    let mut keep: Vec<RawFd> = keep.iter().copied().filter(|fd| *fd > 2).collect();
    keep.sort_unstable();
    let mut first = 3;
    for fd in keep {
        if fd > first {
            close_range(first, fd - 1)?;
        }
        first = fd + 1;
    }
    close_range(first, RawFd::MAX)
}

fn close_range(first: RawFd, last: RawFd) -> io::Result<()> {
    let bound = |fd: RawFd| u32::try_from(fd).map_err(io::Error::other);
    let (first, last) = (bound(first)?, bound(last)?);
    // SAFETY: callers are freshly forked children that use none of the closed descriptors again; they
    // end by exec or exit, so that no destructor closes one twice.
    #[allow(unsafe_code)]
    let result = unsafe { libc::close_range(first, last, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Puts `fd`, which has another number, at number `at` without the close-on-exec flag. The caller needs
/// nothing any more that was at `at`.
pub(super) fn place_at(fd: impl AsFd, at: RawFd) -> io::Result<()> {
    // SAFETY: `ManuallyDrop` never closes what it makes: the descriptor at `at` is meant for the program that
    // this process is about to execute, and belongs to nobody here.
    #[allow(unsafe_code)]
    let mut target = std::mem::ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(at) });
    Ok(rustix::io::dup2(fd, &mut target)?)
}

/// Replaces this process, with the signal state that a program expects. Returns only an error.
pub(super) fn exec(command: &[String], environment: &[(&str, &str)]) -> io::Error {
    exec_blocking(&SigSet::empty(), command, environment)
}

fn exec_blocking(blocked: &SigSet, command: &[String], environment: &[(&str, &str)]) -> io::Error {
    match try_exec(blocked, command, environment) {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

fn try_exec(
    blocked: &SigSet,
    command: &[String],
    environment: &[(&str, &str)],
) -> io::Result<Infallible> {
    let text = |text: String| CString::new(text).map_err(io::Error::other);
    let arguments = command.iter().cloned().map(text).collect::<io::Result<Vec<_>>>()?;
    let variables = environment.iter().map(|(name, value)| text(format!("{name}={value}")));
    let variables = variables.collect::<io::Result<Vec<_>>>()?;
    let program = arguments.first().ok_or_else(|| io::Error::other("an empty command"))?;
    blocked.thread_set_mask()?;
    // SAFETY: the default action replaces no handler that anything here relies on. The standard
    // library ignores SIGPIPE, and that would survive the exec.
    #[allow(unsafe_code)]
    unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) }?;
    Ok(execve(program, &arguments, &variables)?)
}

/// Replaces this process by the daemon. Returns only an error.
pub(super) fn exec_daemon(args: &InitArgs) -> io::Error {
    // The first process of a namespace never sees a TERM that comes before it listens for it, unless the
    // signal is blocked: then it waits.
    let mut blocked = SigSet::empty();
    blocked.add(Signal::SIGTERM);
    exec_blocking(&blocked, &args.daemon_command(), &DAEMON_ENVIRONMENT)
}
