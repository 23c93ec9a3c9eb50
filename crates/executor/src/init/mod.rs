//! `init`: the first process of a sandbox's container (design 6.1).
//!
//! Without a workspace it gives up what user code must not have and becomes the daemon. With one it
//! stays: it holds the FUSE mounts and the keys, and the daemon with everything of the user runs in a
//! nested PID and mount namespace, without SYS_ADMIN and behind a system call filter. `init` has one
//! thread and never touches a FUSE path itself, since a program that does not answer would put it to
//! sleep where not even a kill of the container reaches it; workers do that.

mod args;
mod attach;
mod boot;
mod boot_id;
mod cache;
mod caps;
mod cgroup;
mod control;
mod flush;
mod halt;
mod mount_run;
mod mounting;
mod mounts;
mod proc_mask;
mod program;
mod refresh;
mod seccomp;
mod spawn;
mod stop;
mod supervisor;
mod tail;
mod trim;
mod user_side;
mod worker;

use std::process::ExitCode;

use anyhow::{Context as _, bail};

use args::InitArgs;

/// Writes one line about something that went on to the container's log.
macro_rules! log {
    ($($part:tt)*) => { eprintln!("sandyard-init: {}", format_args!($($part)*)) };
}
use log;

/// Runs the role `init` with the arguments after its name. Returns when the container should end;
/// without a workspace only for an error, since the daemon takes this process's place.
pub(crate) fn run(arguments: impl Iterator<Item = String>) -> ExitCode {
    match InitArgs::parse(arguments).and_then(|args| start(&args)) {
        Ok(code) => code,
        Err(error) => {
            log!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(args: &InitArgs) -> anyhow::Result<ExitCode> {
    if !rustix::process::geteuid().is_root() {
        bail!("init must be started as root, whatever user the image names");
    }
    if !args.workspace {
        caps::cut_to_allow_list().context("failed to give up capabilities")?;
        return Err(spawn::exec_daemon(args)).context("failed to execute the daemon");
    }
    caps::require_for_mounts()?;
    spawn::take_signals().context("failed to block signals")?;
    let control = control::Control::bind(args)?;
    let own_root = boot::prepare()?;
    let user_side = user_side::start(args)?;
    supervisor::Supervisor::new(control, own_root, user_side)?.run()
}
