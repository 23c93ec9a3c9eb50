//! Sync and the durability barrier, in a worker (design 6.3).

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::syncfs;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use sandyard_contract::control::FlushReport;

use super::place::Place;
use super::worker::{Channel, Report};
use super::{attach, log, spawn};

/// A mount to bring to rest.
pub(super) struct Target<'a> {
    /// The run of its program.
    pub place: Place,
    /// Its program.
    pub program: Pid,
    /// Where users see it.
    pub attached: &'a OwnedFd,
}

/// What to do with the mounts.
pub(super) struct Flush<'a> {
    /// The mounts whose programs run.
    pub targets: Vec<Target<'a>>,
    /// Whether to unmount them and wait for their programs' exit as well.
    pub unmount: bool,
    /// Limit for all of it.
    pub limit: Duration,
    /// Whether something was lost already: a mount without a program cannot be brought to rest.
    pub lost: bool,
}

impl Flush<'_> {
    /// Descriptors that the worker needs.
    pub(super) fn descriptors(&self) -> Vec<RawFd> {
        self.targets.iter().map(|target| target.attached.as_raw_fd()).collect()
    }

    /// Does it and reports. Programs that are late are killed if they were to be unmounted: it frees
    /// whoever waits for them, and the container has to end.
    pub(super) fn run(&self, channel: &Channel) {
        let started = Instant::now();
        let complete = self.bring_to_rest(started + self.limit, channel).unwrap_or_else(|error| {
            log!("cannot sync: {error}");
            false
        });
        if !complete && self.unmount {
            for target in &self.targets {
                match kill_process(target.program, Signal::KILL) {
                    Ok(()) | Err(Errno::SRCH) => {}
                    Err(error) => log!("cannot end program {}: {error}", target.program),
                }
            }
        }
        let complete = complete && !self.lost;
        channel.send(
            &Report::Flushed(FlushReport {
                complete,
                // s3fs does not tell what it holds; after a complete sync that is nothing.
                bytes_left: complete.then_some(0),
                millis: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
            }),
            &[],
        );
    }

    fn bring_to_rest(&self, deadline: Instant, channel: &Channel) -> io::Result<bool> {
        let mut outcomes = Vec::new();
        let mut ends = Vec::new();
        for target in &self.targets {
            if self.unmount {
                match pidfd_open(target.program, PidfdFlags::empty()) {
                    Ok(fd) => ends.push(fd),
                    Err(Errno::SRCH) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            let (outcome, theirs) = io::pipe()?;
            let keep = [target.attached.as_raw_fd(), theirs.as_raw_fd()];
            spawn::fork(|| {
                let rested = spawn::close_all_but(&keep).and_then(|()| self.rest(target));
                let told = rested.and_then(|()| io::Write::write_all(&mut &theirs, &[1]));
                if let Err(error) = told {
                    log!("cannot bring mount {} to rest: {error}", target.place);
                }
                0
            })?;
            outcomes.push(outcome);
        }
        // The kernel ends a FUSE connection with the last reference to its mount. This process must not
        // be the one that waits for a program then.
        let mut kept: Vec<RawFd> = outcomes.iter().map(AsRawFd::as_raw_fd).collect();
        kept.extend(ends.iter().map(AsRawFd::as_raw_fd));
        kept.push(channel.as_raw_fd());
        spawn::close_all_but(&kept)?;
        let mut complete = true;
        for outcome in &mut outcomes {
            complete &= readable(&*outcome, deadline)?
                && io::Read::read(outcome, &mut [0]).is_ok_and(|length| length == 1);
        }
        for end in &ends {
            complete &= readable(end, deadline)?;
        }
        Ok(complete)
    }

    fn rest(&self, target: &Target<'_>) -> io::Result<()> {
        let mount_point = target.place.mount_point();
        syncfs(File::open(&mount_point)?)?;
        if self.unmount {
            attach::detach(target.attached)?;
            attach::clear(&mount_point)?;
        }
        Ok(())
    }
}

fn readable(fd: impl AsFd, deadline: Instant) -> io::Result<bool> {
    let left = deadline.saturating_duration_since(Instant::now());
    let limit = Timespec::try_from(left).map_err(io::Error::other)?;
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    Ok(poll(&mut fds, Some(&limit))? > 0)
}
