//! A boot id of the sandbox's own (control-plane 3.4, 8.13): the kernel's is the host's, and programs take a changed
//! one for a fresh start. Each start of the container gets a new one; a pause that keeps memory changes nothing.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;

use anyhow::Context as _;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, mount_remount, unmount};

use super::boot;

/// Where programs look.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The kernel answers each read with another one.
const FRESH: &str = "/proc/sys/kernel/random/uuid";

const RESTRICTED: MountFlags =
    MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);

/// Puts a new boot id in the place of the host's, in this mount namespace. Needs SYS_ADMIN; nothing may be mounted on
/// `init`'s own directory.
pub(super) fn renew() -> anyhow::Result<()> {
    let id = fs::read_to_string(FRESH).with_context(|| format!("failed to read {FRESH}"))?;
    mount("tmpfs", boot::RUN, "tmpfs", RESTRICTED, c"mode=700,size=64k")
        .context("failed to mount a directory for the boot id")?;
    let put = put(&id);
    // What is bound keeps the file.
    unmount(boot::RUN, UnmountFlags::DETACH).context("failed to detach the boot id's directory")?;
    put
}

fn put(id: &str) -> anyhow::Result<()> {
    let file = format!("{}/boot_id", boot::RUN);
    fs::write(&file, id).context("failed to write the boot id")?;
    fs::set_permissions(&file, Permissions::from_mode(0o444))
        .context("failed to protect the boot id")?;
    mount_bind(&file, BOOT_ID).context("failed to put the boot id in place")?;
    // Root inside could write to it otherwise.
    mount_remount(BOOT_ID, MountFlags::BIND | MountFlags::RDONLY | RESTRICTED, "")
        .context("failed to make the boot id read-only")
}
