//! Starting a FUSE program in its own root, with the key in a file that has no name.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{MemfdFlags, Mode, fchmod, fcntl_setfl, ftruncate, memfd_create};
use rustix::io::{Errno, fcntl_dupfd_cloexec};
use rustix::process::{Pid, Resource, Rlimit, chdir, chroot, fchdir, setrlimit};
use sandyard_mount::{KeyFile, Plan};

use super::tail::Tail;
use super::{log, spawn};

/// Numbers below this are where a program expects its descriptors.
const FIRST_FREE: i32 = 10;

/// A started program.
pub(super) struct Program {
    /// Its process.
    pub process: Pid,
    /// What it prints, to be read without waiting.
    pub output: OwnedFd,
    key: OwnedFd,
}

impl Program {
    /// Starts the program of `plan` with `root` as its root directory, in this process's namespaces.
    pub(super) fn start(plan: &Plan, root: BorrowedFd<'_>) -> io::Result<Self> {
        let key = key_file(&plan.key)?;
        let (output, theirs) = io::pipe()?;
        let process = spawn::fork(|| {
            let error = become_program(plan, root, &key, &OwnedFd::from(theirs));
            log!("cannot execute {}: {error}", plan.program);
            127
        })?;
        let output = OwnedFd::from(output);
        fcntl_setfl(&output, rustix::fs::OFlags::NONBLOCK)?;
        Ok(Self { process, output, key })
    }

    /// Makes sure that a library is in the program: the loader only prints that it left one out.
    pub(super) fn require_loaded(&self, library: &str) -> io::Result<()> {
        // Paths there are as seen from here.
        let maps = fs::read_to_string(format!("/proc/{}/maps", self.process))?;
        if maps.lines().any(|line| line.ends_with(library)) {
            return Ok(());
        }
        Err(io::Error::other(format!("the program did not load {library} and would damage files")))
    }

    /// Takes the key away, once the program has read it.
    pub(super) fn empty_key(&self) -> io::Result<()> {
        Ok(ftruncate(&self.key, 0)?)
    }
}

/// Reads what a program has printed. Returns whether more can come.
pub(super) fn read_output(output: &OwnedFd, tail: &mut Tail) -> io::Result<bool> {
    let mut buffer = [0; 4096];
    loop {
        match rustix::io::read(output, &mut buffer) {
            Ok(0) => return Ok(false),
            Ok(length) => tail.feed(&buffer[..length]),
            Err(Errno::AGAIN) => return Ok(true),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn key_file(key: &KeyFile) -> io::Result<OwnedFd> {
    let mut file = File::from(memfd_create("key", MemfdFlags::CLOEXEC)?);
    fchmod(&file, Mode::RUSR | Mode::WUSR)?;
    file.write_all(key.content.reveal().as_bytes())?;
    Ok(file.into())
}

fn become_program(plan: &Plan, root: BorrowedFd<'_>, key: &OwnedFd, output: &OwnedFd) -> io::Error {
    let prepare = || -> io::Result<()> {
        let (input, _) = io::pipe()?;
        let input = fcntl_dupfd_cloexec(&input, FIRST_FREE)?;
        let output = fcntl_dupfd_cloexec(output, FIRST_FREE)?;
        let key = fcntl_dupfd_cloexec(key, FIRST_FREE)?;
        fchdir(root)?;
        chroot(".")?;
        chdir("/")?;
        spawn::place_at(&input, 0)?;
        spawn::place_at(&output, 1)?;
        spawn::place_at(&output, 2)?;
        spawn::place_at(&key, plan.key.descriptor)?;
        spawn::close_all_but(&[plan.key.descriptor])?;
        // A core file would carry the key to wherever the host keeps core files.
        Ok(setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?)
    };
    if let Err(error) = prepare() {
        return error;
    }
    let mut command = vec![plan.program.to_owned()];
    command.extend_from_slice(&plan.arguments);
    spawn::exec(&command, &plan.environment)
}
