//! The user's side: the daemon and all it starts, in a PID and mount namespace of its own (design 6.1
//! (2) to (5)).

use std::convert::Infallible;
use std::fs;
use std::io::{self, Read as _, Write as _};

use anyhow::Context as _;
use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_change, unmount};
use rustix::process::Pid;

use super::args::InitArgs;
use super::cgroup::CgroupLimits;
use super::{boot, boot_id, caps, log, proc_mask, seccomp, spawn};

/// The running user's side.
pub(super) struct UserSide {
    /// First process of the nested namespace; when it ends the kernel ends all others there.
    pub process: Pid,
    /// Its cgroup limits.
    pub cgroup_limits: CgroupLimits,
}

/// Starts the user's side and puts it into its cgroups before it executes anything.
pub(super) fn start(args: &InitArgs) -> anyhow::Result<UserSide> {
    let (gate, mut opener) = io::pipe().context("failed to make a pipe")?;
    let process = spawn::clone_nested(|| {
        let Err(error) = become_user_side(args, gate);
        log!("the user's side cannot start: {error:#}");
        1
    })
    .context("failed to clone into new namespaces")?;
    let cgroup_limits = CgroupLimits::around(process);
    opener.write_all(&[1]).context("the user's side ended before it was complete")?;
    Ok(UserSide { process, cgroup_limits })
}

fn become_user_side(args: &InitArgs, mut gate: io::PipeReader) -> anyhow::Result<Infallible> {
    // It receives init's mounts and gives nothing back.
    let downstream = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    mount_change("/", downstream).context("failed to make / a slave")?;
    unmount(boot::RUN, UnmountFlags::DETACH).context("failed to detach init's directory")?;
    match unmount(boot::CACHE_VOLUME, UnmountFlags::DETACH) {
        // Not every container has a cache volume.
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
        Err(error) => return Err(error).context("failed to detach the cache volume"),
    }
    proc_mask::replace()?;
    boot_id::renew()?;
    settle_oom_score().context("failed to set oom_score_adj")?;
    gate.read_exact(&mut [0]).context("init ended while it set up the cgroups")?;
    spawn::close_all_but(&[]).context("failed to close descriptors")?;
    seccomp::install().context("failed to install the system call filter")?;
    caps::cut_to_allow_list().context("failed to give up capabilities")?;
    Err(spawn::exec_daemon(args)).context("failed to execute the daemon")
}

/// Whatever protection the engine gave is for `init` and the FUSE programs. Raising the score is always
/// allowed, lowering it is not.
fn settle_oom_score() -> anyhow::Result<()> {
    let file = "/proc/self/oom_score_adj";
    let score: i32 = fs::read_to_string(file)?.trim().parse()?;
    if score < 0 {
        fs::write(file, "0")?;
    }
    Ok(())
}
