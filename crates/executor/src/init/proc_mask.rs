//! A fresh /proc for the user's side, with the masks that the engine put on the old one, and those of /sys.

use std::path::Path;

use anyhow::Context as _;
use rustix::fs::{FileType, lstat};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, UnmountFlags, mount, mount_bind_recursive, mount_move, mount_remount, unmount,
};
use sandyard_contract::boundary::{HIDDEN_PATHS, READ_ONLY_PATHS};

use super::boot;

const RESTRICTED: MountFlags =
    MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);

/// Replaces /proc in this mount namespace by one of this PID namespace. `init`'s own directory must be
/// detached already.
pub(super) fn replace() -> anyhow::Result<()> {
    // Beside the old one, which has to be there for it where users are remapped: the kernel lets such a
    // container mount only what it sees already.
    mount("proc", boot::RUN, "proc", RESTRICTED, None).context("failed to mount a fresh /proc")?;
    unmount("/proc", UnmountFlags::DETACH).context("failed to detach the old /proc")?;
    mount_move(boot::RUN, "/proc").context("failed to put the fresh /proc in place")?;
    for path in READ_ONLY_PATHS {
        if exists(path)?.is_some() {
            mount_bind_recursive(path, path)
                .and_then(|()| {
                    let flags = MountFlags::BIND | MountFlags::RDONLY | RESTRICTED;
                    mount_remount(path, flags, "")
                })
                .with_context(|| format!("failed to make {path} read-only"))?;
        }
    }
    for path in HIDDEN_PATHS {
        hide(path).with_context(|| format!("failed to hide {path}"))?;
    }
    Ok(())
}

fn hide(path: &str) -> anyhow::Result<()> {
    match exists(path)? {
        None => Ok(()),
        Some(FileType::Directory) => {
            let flags = MountFlags::RDONLY | RESTRICTED;
            Ok(mount("tmpfs", path, "tmpfs", flags, c"size=4k,mode=555")?)
        }
        Some(_) => Ok(mount_bind_recursive(Path::new("/dev/null"), path)?),
    }
}

fn exists(path: &str) -> anyhow::Result<Option<FileType>> {
    match lstat(path) {
        Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode))),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error).with_context(|| format!("failed to look at {path}")),
    }
}
