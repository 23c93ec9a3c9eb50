//! Child cgroups for the user's side (design 6.1 (2)): an out-of-memory kill or a fork bomb there must
//! leave the FUSE programs and their restart alone.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, mount_remount};
use rustix::process::Pid;

use super::log;

/// Kept back for `init` and the FUSE programs.
const MEMORY_MARGIN: u64 = 48 << 20;
const PIDS_MARGIN: u64 = 64;

/// Limits above this are no limits: cgroup v1 spells "none" as a number near 2^63.
const NO_LIMIT: u64 = 1 << 60;

const CGROUPS: &str = "/sys/fs/cgroup";

/// The user's side's memory limit, which shrinks when a cache takes memory.
pub(super) struct Fence {
    memory: Option<(PathBuf, u64)>,
}

impl Fence {
    /// Moves `process` into child cgroups with a little less than the container has. What the engine
    /// does not allow is logged, and the sandbox runs without it. Call it after the user's side has its
    /// own mount namespace: the cgroup file systems become writable in this one only.
    pub(super) fn around(process: Pid) -> Self {
        let unified = Path::new(CGROUPS).join("cgroup.controllers").exists();
        let (memory, pids) = if unified {
            if let Err(error) = leave_v2_root() {
                log!("no limits of its own for user code: cannot divide the cgroup: {error}");
                return Self { memory: None };
            }
            (("", "memory.max"), ("", "pids.max"))
        } else {
            (("memory", "memory.limit_in_bytes"), ("pids", "pids.max"))
        };
        let enclose = |(controller, file): (&str, &str), margin| {
            let directory = Path::new(CGROUPS).join(controller);
            enclose(&directory, file, margin, unified, process).unwrap_or_else(|error| {
                log!("user code has no {file} of its own: {error}");
                None
            })
        };
        let memory = enclose(memory, MEMORY_MARGIN);
        enclose(pids, PIDS_MARGIN);
        Self { memory }
    }

    /// Takes `bytes` for caches out of what user code may use. Lowering a limit can wait for reclaim,
    /// so this is for workers.
    pub(super) fn reserve(&self, bytes: u64) -> io::Result<()> {
        match &self.memory {
            Some((file, limit)) => write(file, limit.saturating_sub(bytes)),
            None => Ok(()),
        }
    }
}

/// Makes the child group in `directory` and returns its limit file and limit, if there is a limit.
fn enclose(
    directory: &Path,
    file: &str,
    margin: u64,
    unified: bool,
    process: Pid,
) -> io::Result<Option<(PathBuf, u64)>> {
    let limit = fs::read_to_string(directory.join(file))?;
    // cgroup v2 says "max" for none.
    let Some(limit) = limit.trim().parse::<u64>().ok().filter(|limit| *limit < NO_LIMIT) else {
        return Ok(None);
    };
    let Some(rest) = limit.checked_sub(margin).filter(|rest| *rest > 0) else {
        let message = format!("the container's limit of {limit} leaves no margin of {margin}");
        return Err(io::Error::other(message));
    };
    let child = directory.join("user");
    if !unified {
        make_writable(directory)?;
    }
    match fs::create_dir(&child) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    write(&child.join(file), rest)?;
    write(&child.join("cgroup.procs"), process.as_raw_nonzero())?;
    Ok(Some((child.join(file), rest)))
}

/// cgroup v2 has processes only in leaves: all of them move into one, then the controllers can be
/// passed on.
fn leave_v2_root() -> io::Result<()> {
    let root = Path::new(CGROUPS);
    make_writable(root)?;
    let own = root.join("init");
    match fs::create_dir(&own) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    for process in fs::read_to_string(root.join("cgroup.procs"))?.lines() {
        write(&own.join("cgroup.procs"), process)?;
    }
    write(&root.join("cgroup.subtree_control"), "+memory +pids")
}

fn make_writable(directory: &Path) -> io::Result<()> {
    let flags = MountFlags::BIND | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    Ok(mount_remount(directory, flags, "")?)
}

/// Writes in one call, as control files demand, and never creates a file.
fn write(file: &Path, value: impl std::fmt::Display) -> io::Result<()> {
    let write =
        || fs::File::options().write(true).open(file)?.write_all(value.to_string().as_bytes());
    write().map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", file.display())))
}
