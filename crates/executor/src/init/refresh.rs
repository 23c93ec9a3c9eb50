//! After a pause: makes visible at once what has changed in the store meanwhile.
//!
//! Attributes are cached in two places. s3fs keeps them for some seconds by its own clock, which goes forward here.
//! The kernel keeps names and attributes for a second. A change of the mount's options, even of none, drops all
//! that no process uses; of open files and working directories the second has to pass.

use std::io;
use std::time::{Duration, Instant};

use rustix::fs::CWD;
use rustix::mount::{FsPickFlags, fsconfig_reconfigure, fspick};
use rustix::process::Pid;
use sandyard_contract::budget::REFRESH;
use sandyard_mount::ATTRIBUTES_LIMIT;

use super::flush::{kill, readable};
use super::mount_run::MountRun;
use super::program::ProgramPage;
use super::worker::{Channel, WorkerReport};
use super::{log, spawn};

/// The mounts whose programs run.
pub(super) struct Refresh(pub Vec<(MountRun, Pid)>);

impl Refresh {
    /// Does it and reports.
    pub(super) fn run(&self, channel: &Channel) {
        let deadline = Instant::now() + REFRESH;
        let started: Vec<_> = self.0.iter().map(|(run, program)| start(*run, *program)).collect();
        for ((run, _), started) in self.0.iter().zip(started) {
            let ended = started.and_then(|(child, end)| {
                let in_time = readable(&end, deadline)?;
                if !in_time {
                    kill(child);
                }
                Ok(in_time)
            });
            match ended {
                Ok(true) => {}
                Ok(false) => log!("mount {run} does not drop its cache within {REFRESH:?}"),
                Err(error) => log!("cannot drop the cache of mount {run}: {error}"),
            }
        }
        channel.send(&WorkerReport::Done, &[]);
    }
}

/// Starts a process for one mount; the pipe's end is its end.
fn start(run: MountRun, program: Pid) -> io::Result<(Pid, io::PipeReader)> {
    let (end, theirs) = io::pipe()?;
    let child = spawn::fork(|| {
        let refreshed = refresh(run, program);
        drop(theirs);
        if let Err(error) = refreshed {
            log!("cannot drop the cache of mount {run}: {error}");
            return 1;
        }
        0
    })?;
    Ok((child, end))
}

fn refresh(run: MountRun, program: Pid) -> io::Result<()> {
    ProgramPage::of(program)?.age_attributes(ATTRIBUTES_LIMIT + Duration::from_secs(1))?;
    let mount = fspick(CWD, run.mount_point(), FsPickFlags::FSPICK_CLOEXEC)?;
    Ok(fsconfig_reconfigure(&mount)?)
}
