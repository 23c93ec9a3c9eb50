//! Sync and the durability barrier, in a worker (design 6.3).

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{fsync, syncfs};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use sandyard_contract::control::FlushReport;

use super::mount_run::MountRun;
use super::program::ProgramPage;
use super::worker::{Channel, WorkerReport};
use super::{attach, log, spawn};

/// A mount to flush.
pub(super) struct FlushTarget<'a> {
    /// The run of its program.
    pub run: MountRun,
    /// Its program.
    pub program: Pid,
    /// Bytes that its library had given up before a stop began. What it gives up then nobody is told but the
    /// server: the processes that wrote it have ended.
    pub lost_before: u64,
    /// Where users see it.
    pub attached: &'a OwnedFd,
}

/// What to do with the mounts.
pub(super) struct Flush<'a> {
    /// The mounts whose programs run.
    pub targets: Vec<FlushTarget<'a>>,
    /// Whether to unmount them and wait for their programs' exit as well.
    pub unmount: bool,
    /// Limit for all of it.
    pub limit: Duration,
    /// Whether something was lost already: a mount without a program cannot be flushed.
    pub lost: bool,
}

impl Flush<'_> {
    /// Descriptors that the worker needs.
    pub(super) fn descriptors(&self) -> Vec<RawFd> {
        self.targets.iter().map(|target| target.attached.as_raw_fd()).collect()
    }

    /// [`Flush::run_until`] the limit from now on.
    pub(super) fn run(&self, channel: &Channel) {
        self.run_until(Instant::now() + self.limit, channel);
    }

    /// Does it and reports. Programs that are late are killed if they were to be unmounted: it frees
    /// whoever waits for them, and the container has to end.
    pub(super) fn run_until(&self, deadline: Instant, channel: &Channel) {
        let started = Instant::now();
        let pages: Vec<Option<ProgramPage>> = self.targets.iter().map(FlushTarget::page).collect();
        let complete = self.flush_all(deadline, channel, &pages).unwrap_or_else(|error| {
            log!("cannot sync: {error}");
            false
        });
        let left = self.bytes_left(&pages);
        if !complete && self.unmount {
            for target in &self.targets {
                kill(target.program);
            }
        }
        // Processes that go on may have written more since.
        let nothing_lost = !self.unmount || left == Some(0);
        let complete = complete && !self.lost && nothing_lost;
        channel.send(
            &WorkerReport::Flushed(FlushReport {
                complete,
                bytes_left: if complete { Some(0) } else { left },
                millis: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
            }),
            &[],
        );
    }

    /// Bytes that are not in the store; nothing if one of the programs cannot tell any more.
    fn bytes_left(&self, pages: &[Option<ProgramPage>]) -> Option<u64> {
        if self.lost {
            return None;
        }
        let mut sum = 0;
        for (target, page) in self.targets.iter().zip(pages) {
            let page = page.as_ref()?;
            let lost = if self.unmount { page.lost().ok()? } else { target.lost_before };
            sum += page.unsent().ok()? + lost.saturating_sub(target.lost_before);
        }
        Some(sum)
    }

    fn flush_all(
        &self,
        deadline: Instant,
        channel: &Channel,
        pages: &[Option<ProgramPage>],
    ) -> io::Result<bool> {
        let mut outcomes = Vec::new();
        let mut ends = Vec::new();
        let mut children = Vec::new();
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
            let child = spawn::fork(|| {
                let flushed = spawn::close_all_but(&keep).and_then(|()| self.flush_one(target));
                let told = flushed.and_then(|()| io::Write::write_all(&mut &theirs, &[1]));
                if let Err(error) = told {
                    log!("cannot flush mount {}: {error}", target.run);
                }
                0
            })?;
            outcomes.push(outcome);
            children.push(child);
        }
        // The kernel ends a FUSE connection with the last reference to its mount. This process must not
        // be the one that waits for a program then.
        let mut kept: Vec<RawFd> = outcomes.iter().map(AsRawFd::as_raw_fd).collect();
        kept.extend(ends.iter().map(AsRawFd::as_raw_fd));
        kept.push(channel.as_raw_fd());
        kept.extend(pages.iter().flatten().map(AsRawFd::as_raw_fd));
        spawn::close_all_but(&kept)?;
        let mut complete = true;
        for outcome in &mut outcomes {
            complete &= readable(&*outcome, deadline)?
                && io::Read::read(outcome, &mut [0]).is_ok_and(|length| length == 1);
        }
        for end in &ends {
            complete &= readable(end, deadline)?;
        }
        if !complete {
            // One that waits for a program would keep the directory locked.
            children.into_iter().for_each(kill);
        }
        Ok(complete)
    }

    /// Brings what is written to the store, and unmounts if that is asked.
    fn flush_one(&self, target: &FlushTarget<'_>) -> io::Result<()> {
        let mount_point = target.run.mount_point();
        let root = File::open(&mount_point)?;
        syncfs(&root)?;
        // That brought to the program what was written to mapped memory. This has the program bring to the
        // store what it has of open files.
        fsync(&root)?;
        drop(root);
        if self.unmount {
            attach::unmount(target.attached)?;
            attach::unmount_all(&mount_point)?;
        }
        Ok(())
    }
}

impl FlushTarget<'_> {
    /// What its program shares; nothing if it has ended.
    fn page(&self) -> Option<ProgramPage> {
        let page = ProgramPage::of(self.program);
        page.inspect_err(|error| log!("cannot look at mount {}: {error}", self.run)).ok()
    }
}

/// Kills a process that may have ended.
pub(super) fn kill(process: Pid) {
    match kill_process(process, Signal::KILL) {
        Ok(()) | Err(Errno::SRCH) => {}
        Err(error) => log!("cannot end process {process}: {error}"),
    }
}

/// Waits until something can be read; false if that is not before the deadline.
pub(super) fn readable(fd: impl AsFd, deadline: Instant) -> io::Result<bool> {
    let left = deadline.saturating_duration_since(Instant::now());
    let limit = Timespec::try_from(left).map_err(io::Error::other)?;
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    Ok(poll(&mut fds, Some(&limit))? > 0)
}
