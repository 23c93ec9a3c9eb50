//! Child cgroups for the user's side (design 6.1 (2)): an out-of-memory kill or a fork bomb there must
//! leave the FUSE programs and their restart alone.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount_remount};
use rustix::process::Pid;

use super::log;

/// Kept back for `init` and the FUSE programs.
const MEMORY_MARGIN: u64 = 48 << 20;
const PIDS_MARGIN: u64 = 64;

/// Limits above this are no limits: cgroup v1 spells "none" as a number near 2^63.
const NO_LIMIT: u64 = 1 << 60;

const CGROUPS: &str = "/sys/fs/cgroup";

/// The user's side's cgroup in that of the container.
const CHILD: &str = "user";

/// The cgroup limits of the user's side: the memory limit, which shrinks when a cache takes memory, and the
/// freezer.
pub(super) struct CgroupLimits {
    memory: Option<(PathBuf, u64)>,
    /// Where the kernel has one whose processes can be killed.
    pub freezer: Option<Freezer>,
}

/// The freezer of a cgroup v2 directory.
pub(super) struct Freezer(PathBuf);

impl CgroupLimits {
    /// Moves `process` into child cgroups with a little less than the container has. What the engine
    /// does not allow is logged, and the sandbox runs without it. Call it after the user's side has its
    /// own mount namespace: the cgroup file systems become writable in this one only.
    pub(super) fn around(process: Pid) -> Self {
        let unified = Path::new(CGROUPS).join("cgroup.controllers").exists();
        let (memory, pids) = if unified {
            if let Err(error) = leave_v2_root() {
                log!("no limits of its own for user code: cannot divide the cgroup: {error}");
                return Self { memory: None, freezer: None };
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
        let freezer = if unified {
            Freezer::around(&Path::new(CGROUPS).join(CHILD), process).map_or_else(
                |error| {
                    log!("user code has no freezer of its own: {error}");
                    None
                },
                Some,
            )
        } else {
            None
        };
        Self { memory, freezer }
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

impl Freezer {
    /// Moves `process` into `directory`, which may exist, and returns its freezer.
    fn around(directory: &Path, process: Pid) -> io::Result<Self> {
        create(directory)?;
        write(&directory.join("cgroup.procs"), process.as_raw_nonzero())?;
        Ok(Self(directory.to_owned()))
    }

    /// Freezes it and waits until everything in it is frozen. Returns whether it was before the deadline. Blocks.
    pub(super) fn freeze(&self, deadline: Instant) -> io::Result<bool> {
        write(&self.0.join("cgroup.freeze"), 1)?;
        let mut events = File::open(self.0.join("cgroup.events"))?;
        loop {
            let mut text = String::new();
            events.rewind()?;
            events.read_to_string(&mut text)?;
            if text.lines().any(|line| line == "frozen 1") {
                return Ok(true);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let limit = Timespec::try_from(left).map_err(io::Error::other)?;
            // The kernel says so when the text changes.
            let mut changed = [PollFd::new(&events, PollFlags::PRI)];
            match poll(&mut changed, Some(&limit)) {
                Ok(0) => return Ok(false),
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Lets everything in it go on.
    pub(super) fn thaw(&self) -> io::Result<()> {
        write(&self.0.join("cgroup.freeze"), 0)
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
    let Some(less) = limit.checked_sub(margin).filter(|less| *less > 0) else {
        let message = format!("the container's limit of {limit} leaves no margin of {margin}");
        return Err(io::Error::other(message));
    };
    let child = directory.join(CHILD);
    if !unified {
        make_writable(directory)?;
    }
    create(&child)?;
    write(&child.join(file), less)?;
    write(&child.join("cgroup.procs"), process.as_raw_nonzero())?;
    Ok(Some((child.join(file), less)))
}

/// cgroup v2 has processes only in leaves: all of them move into one, then the controllers can be
/// passed on.
fn leave_v2_root() -> io::Result<()> {
    let root = Path::new(CGROUPS);
    make_writable(root)?;
    let own = root.join("init");
    create(&own)?;
    for process in fs::read_to_string(root.join("cgroup.procs"))?.lines() {
        write(&own.join("cgroup.procs"), process)?;
    }
    write(&root.join("cgroup.subtree_control"), "+memory +pids")
}

/// Makes a cgroup that may exist.
fn create(directory: &Path) -> io::Result<()> {
    match fs::create_dir(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
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

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};
    use std::time::Duration;

    use rustix::mount::{UnmountFlags, mount, unmount};
    use rustix::process::{Signal, kill_process};

    use super::*;

    /// A cgroup v2 tree and one group in it; both go away on drop.
    struct CgroupTree(tempfile::TempDir, PathBuf);

    impl CgroupTree {
        fn mount() -> Self {
            let directory = tempfile::tempdir().expect("a directory");
            mount("cgroup2", directory.path(), "cgroup2", MountFlags::empty(), None)
                .expect("mounted");
            let group = directory.path().join(format!("sandyard-test-{}", std::process::id()));
            Self(directory, group)
        }
    }

    impl Drop for CgroupTree {
        fn drop(&mut self) {
            let removed = fs::remove_dir(&self.1);
            unmount(self.0.path(), UnmountFlags::DETACH).expect("unmounted");
            removed.expect("the group is empty");
        }
    }

    #[test]
    #[ignore = "needs root, to mount cgroup v2"]
    fn what_is_frozen_in_cgroup_v2_can_be_killed() {
        let tree = CgroupTree::mount();
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().expect("started");
        let process = Pid::from_child(&child);
        let freezer = Freezer::around(&tree.1, process).expect("moved");
        let second = || Instant::now() + Duration::from_secs(1);
        for _ in 0..3 {
            assert!(freezer.freeze(second()).expect("frozen"));
            assert!(freezer.freeze(second()).expect("frozen already"));
            freezer.thaw().expect("thawed");
        }
        assert!(freezer.freeze(second()).expect("frozen"));
        kill_process(process, Signal::KILL).expect("killed");
        child.wait().expect("ended");
        // It counts as frozen when it is empty, too.
        freezer.thaw().expect("thawed");
    }
}
