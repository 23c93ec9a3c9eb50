//! The FUSE programs' own root, made before anything of the user runs (design 6.1 (1)).
//!
//! Program, loader and libraries come from the read-only volume: root inside could replace the image's
//! and would have them run with SYS_ADMIN. It all hangs on a directory of that volume, directly under
//! `/`, so that nobody inside can rename the mount point away.

use std::fs::{self, File, Permissions};
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, symlink};
use std::path::Path;

use anyhow::Context as _;
use rustix::fs::{CWD, FileType, Mode, OFlags, makedev, mknodat, open};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_change,
    mount_remount, unmount,
};

use super::log;

/// Where the runtime mounts the executor's volume.
pub(super) const VOLUME: &str = "/.sandyard";

/// `init`'s private directory: an empty one in the volume, with a tmpfs on it that only this mount
/// namespace has.
pub(super) const RUN: &str = "/.sandyard/run";

/// The engine's anonymous volume for caches, if the container has one.
pub(super) const CACHE_VOLUME: &str = "/.sandyard/cache";

/// The FUSE programs' root, seen from here.
pub(super) const ROOT: &str = "/.sandyard/run/root";

/// Largest file copied into the programs' /etc.
const ETC_FILE_LIMIT: u64 = 1 << 20;

/// What mounts need of the container's boot.
pub(super) struct OwnRoot {
    /// The image's root directory: targets are resolved below it.
    pub image: OwnedFd,
    /// The FUSE programs' root directory.
    pub programs: OwnedFd,
    /// Whether caches can be kept on the engine's disk.
    pub disk_cache: bool,
}

/// Makes the programs' root and takes /dev/fuse away from the image.
pub(super) fn prepare() -> anyhow::Result<OwnRoot> {
    let all = MountPropagationFlags::SHARED | MountPropagationFlags::REC;
    mount_change("/", all).context("failed to make / shared")?;
    private_tmpfs(RUN, MountFlags::NODEV, c"mode=700,size=1m")?;
    fs::create_dir(ROOT).with_context(|| format!("failed to create {ROOT}"))?;
    private_bind(&format!("{VOLUME}/fuse"), ROOT)?;
    mount_remount(ROOT, MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID, "")
        .with_context(|| format!("failed to make {ROOT} read-only"))?;
    devices()?;
    let disk_cache = is_mount_point(CACHE_VOLUME)?;
    let tmp = format!("{ROOT}/tmp");
    if disk_cache {
        private_bind(CACHE_VOLUME, &tmp)?;
        fs::set_permissions(&tmp, Permissions::from_mode(0o700))
            .context("failed to close the cache volume to others")?;
        empty(Path::new(&tmp)).context("failed to empty the cache volume")?;
    } else {
        private_tmpfs(&tmp, MountFlags::NODEV, c"mode=700,size=64k")?;
    }
    private_tmpfs(&format!("{ROOT}/mnt"), MountFlags::NODEV, c"mode=755,size=64k")?;
    private_bind("/proc", &format!("{ROOT}/proc"))?;
    etc()?;
    remove_device("/dev/fuse").context("failed to remove /dev/fuse from the image")?;
    let directory = |path: &str| {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        open(path, flags, Mode::empty()).with_context(|| format!("failed to open {path}"))
    };
    Ok(OwnRoot { image: directory("/")?, programs: directory(ROOT)?, disk_cache })
}

/// Removes what is in a directory. A container that is started again still has its last run's caches: no program
/// may see another one's.
fn empty(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Takes a device node away. An engine that remaps users cannot make nodes, and mounts the host's.
fn remove_device(path: &str) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
            unmount(path, UnmountFlags::DETACH)?;
            fs::remove_file(path)
        }
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn private_tmpfs(path: &str, flags: MountFlags, data: &std::ffi::CStr) -> anyhow::Result<()> {
    mount("tmpfs", path, "tmpfs", flags | MountFlags::NOSUID | MountFlags::NOEXEC, data)
        .and_then(|()| mount_change(path, MountPropagationFlags::PRIVATE))
        .with_context(|| format!("failed to mount a tmpfs on {path}"))
}

fn private_bind(from: &str, to: &str) -> anyhow::Result<()> {
    mount_bind(from, to)
        .and_then(|()| mount_change(to, MountPropagationFlags::PRIVATE))
        .with_context(|| format!("failed to bind {from} to {to}"))
}

/// The three devices that a FUSE program uses.
fn devices() -> anyhow::Result<()> {
    let dev = format!("{ROOT}/dev");
    private_tmpfs(&dev, MountFlags::empty(), c"mode=755,size=64k")?;
    for (name, mode, major, minor) in
        [("fuse", 0o600, 10, 229), ("null", 0o666, 1, 3), ("urandom", 0o444, 1, 9)]
    {
        let path = format!("{dev}/{name}");
        let kind = FileType::CharacterDevice;
        let made = mknodat(CWD, &path, kind, Mode::from_raw_mode(mode), makedev(major, minor));
        match made {
            Ok(()) => {}
            // A container without MKNOD still has the engine's nodes; fuse only if it was asked for,
            // and its absence is reported by the mount that needs it.
            Err(Errno::PERM) if Path::new("/dev").join(name).exists() => {
                File::create(&path).with_context(|| format!("failed to create {path}"))?;
                private_bind(&format!("/dev/{name}"), &path)?;
            }
            Err(Errno::PERM) => log!("the container has neither MKNOD nor /dev/{name}"),
            Err(error) => return Err(error).with_context(|| format!("failed to make {path}")),
        }
    }
    Ok(())
}

/// The programs' /etc: what the volume brings, and the engine's resolver files as they are now,
/// before user code can write to them.
fn etc() -> anyhow::Result<()> {
    let (from, to) = (format!("{VOLUME}/fuse/etc"), format!("{ROOT}/etc"));
    private_tmpfs(&to, MountFlags::NODEV, c"mode=755,size=8m")?;
    for entry in fs::read_dir(&from).with_context(|| format!("failed to list {from}"))? {
        let entry = entry.with_context(|| format!("failed to list {from}"))?;
        let (source, target) = (entry.path(), Path::new(&to).join(entry.file_name()));
        let kind = entry.file_type().with_context(|| format!("failed to look at {source:?}"))?;
        let copied = if kind.is_symlink() {
            fs::read_link(&source).and_then(|to| symlink(to, &target))
        } else if kind.is_dir() {
            fs::create_dir(&target).and_then(|()| Ok(mount_bind(&source, &target)?))
        } else {
            copy(&source, &target)
        };
        copied.with_context(|| format!("failed to put {source:?} into the programs' /etc"))?;
    }
    for name in ["resolv.conf", "hosts"] {
        let source = Path::new("/etc").join(name);
        // An image may lack them; then only addresses work as endpoints.
        if let Err(error) = copy(&source, &Path::new(&to).join(name)) {
            log!("the FUSE programs have no {source:?}: {error}");
        }
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let no_follow = i32::try_from(OFlags::NOFOLLOW.bits()).map_err(io::Error::other)?;
    let source = File::options().read(true).custom_flags(no_follow).open(from)?;
    let mut text = Vec::new();
    source.take(ETC_FILE_LIMIT).read_to_end(&mut text)?;
    fs::write(to, text)
}

/// Whether something is mounted on `path`, which has no character that the mount table escapes.
pub(super) fn is_mount_point(path: &str) -> anyhow::Result<bool> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("failed to list mounts")?;
    Ok(mounts.lines().any(|line| line.split(' ').nth(4) == Some(path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn emptying_a_directory_leaves_it_and_follows_no_link() {
        let directory = tempfile::tempdir().expect("a directory");
        let (cache, outside) = (directory.path().join("cache"), directory.path().join("outside"));
        fs::create_dir_all(cache.join("0.0/bucket")).expect("made");
        fs::create_dir(&outside).expect("made");
        fs::write(outside.join("file"), "").expect("written");
        fs::write(cache.join("file"), "").expect("written");
        symlink(&outside, cache.join("link")).expect("linked");
        empty(&cache).expect("emptied");
        assert_eq!(fs::read_dir(&cache).expect("it is there").count(), 0);
        assert!(outside.join("file").exists());
    }
}
