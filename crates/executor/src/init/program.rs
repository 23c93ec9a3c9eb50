//! Starting a FUSE program in its own root, with the key in a file that has no name, and the memory that its
//! preloaded library shares with `init`.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt as _;
use std::time::Duration;

use rustix::fs::{MemfdFlags, Mode, fchmod, fcntl_setfl, ftruncate, memfd_create};
use rustix::io::{Errno, fcntl_dupfd_cloexec};
use rustix::process::{Pid, Resource, Rlimit, chdir, chroot, fchdir, setrlimit};
use sandyard_mount::{KeyFile, MountPlan, page};

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
    pub(super) fn start(plan: &MountPlan, root: BorrowedFd<'_>) -> io::Result<Self> {
        let key = key_file(&plan.key)?;
        let shared = page_file()?;
        let (output, theirs) = io::pipe()?;
        let process = spawn::fork(|| {
            let error = become_program(plan, root, &key, &shared, &OwnedFd::from(theirs));
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

fn page_file() -> io::Result<OwnedFd> {
    let file = memfd_create("page", MemfdFlags::CLOEXEC)?;
    fchmod(&file, Mode::RUSR | Mode::WUSR)?;
    ftruncate(&file, page::BYTES)?;
    Ok(file)
}

/// The numbers that a running program's library shares.
pub(super) struct ProgramPage(File);

impl ProgramPage {
    /// Opens the memory of the program with that process id.
    pub(super) fn of(process: Pid) -> io::Result<Self> {
        let path = format!("/proc/{process}/fd/{}", page::DESCRIPTOR);
        Ok(Self(File::options().read(true).write(true).open(path)?))
    }

    /// Bytes that are written and not in the store.
    pub(super) fn unsent(&self) -> io::Result<u64> {
        self.read(page::UNSENT_AT)
    }

    /// Bytes that were given up so far.
    pub(super) fn lost(&self) -> io::Result<u64> {
        self.read(page::LOST_AT)
    }

    /// Makes everything that the program has cached of attributes older by `time`.
    pub(super) fn age_attributes(&self, time: Duration) -> io::Result<()> {
        let nanos = u64::try_from(time.as_nanos()).map_err(io::Error::other)?;
        let ahead = self.read(page::CLOCK_AHEAD_AT)?.saturating_add(nanos);
        self.0.write_all_at(&ahead.to_ne_bytes(), page::CLOCK_AHEAD_AT)
    }

    fn read(&self, at: u64) -> io::Result<u64> {
        let mut bytes = [0; 8];
        self.0.read_exact_at(&mut bytes, at)?;
        Ok(u64::from_ne_bytes(bytes))
    }
}

impl AsRawFd for ProgramPage {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

fn become_program(
    plan: &MountPlan,
    root: BorrowedFd<'_>,
    key: &OwnedFd,
    shared: &OwnedFd,
    output: &OwnedFd,
) -> io::Error {
    let prepare = || -> io::Result<()> {
        let (input, _) = io::pipe()?;
        let input = fcntl_dupfd_cloexec(&input, FIRST_FREE)?;
        let output = fcntl_dupfd_cloexec(output, FIRST_FREE)?;
        let key = fcntl_dupfd_cloexec(key, FIRST_FREE)?;
        let shared = fcntl_dupfd_cloexec(shared, FIRST_FREE)?;
        fchdir(root)?;
        chroot(".")?;
        chdir("/")?;
        spawn::place_at(&input, 0)?;
        spawn::place_at(&output, 1)?;
        spawn::place_at(&output, 2)?;
        spawn::place_at(&key, plan.key.descriptor)?;
        spawn::place_at(&shared, page::DESCRIPTOR)?;
        spawn::close_all_but(&[plan.key.descriptor, page::DESCRIPTOR])?;
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
