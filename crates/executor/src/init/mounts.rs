//! The mounts of this sandbox and what became of them.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitStatus, kill_process};
use sandyard_contract::control::{ControlFailure, MountCall, MountStatus};
use sandyard_types::{Cache, TargetPath};

use super::flush::{Flush, FlushTarget};
use super::mount_run::MountRun;
use super::mounting::{Below, MountOrder, clean_up, describe};
use super::program::{ProgramPage, read_output};
use super::refresh::Refresh;
use super::tail::Tail;
use super::worker::{Channel, Started, WorkerReport};
use super::{attach, cache, log};

/// Pause before a program that could not be started again is tried once more.
const RETRY: Duration = Duration::from_millis(500);

/// How often a disk cache is looked at.
const TRIM_EVERY: Duration = Duration::from_secs(5);

/// What a slot's program does.
enum MountState {
    /// A worker starts it.
    Starting,
    /// It holds the mount.
    Up { program: Pid, output: Option<OwnedFd> },
    /// It died, and is started again at this moment.
    Down { retry_at: Instant },
}

struct MountSlot {
    run: MountRun,
    call: MountCall,
    state: MountState,
    /// The mount that users see. It stays when its program has died, so that nobody writes into the
    /// directory below it.
    attached: Option<OwnedFd>,
    restarts: u32,
    tail: Tail,
    /// Bytes that the program's library had given up when a stop began.
    lost_before: u64,
    trim_at: Instant,
    /// What the program had read and written when its cache was last looked at.
    trimmed_at_bytes: u64,
}

/// All mounts. A slot number is never used twice.
#[derive(Default)]
pub(super) struct Mounts {
    mounts: Vec<MountSlot>,
    issued: usize,
}

impl Mounts {
    pub(super) fn len(&self) -> usize {
        self.mounts.len()
    }

    fn find(&self, slot: usize) -> Option<&MountSlot> {
        self.mounts.iter().find(|mount| mount.run.slot == slot)
    }

    fn find_mut(&mut self, slot: usize) -> Option<&mut MountSlot> {
        self.mounts.iter_mut().find(|mount| mount.run.slot == slot)
    }

    /// Takes calls in and returns their slots, in order.
    ///
    /// # Errors
    /// The reason why they cannot all be there.
    pub(super) fn add(&mut self, calls: Vec<MountCall>) -> Result<Vec<usize>, String> {
        let mut targets: Vec<&TargetPath> = self.mounts.iter().map(|m| &m.call.target).collect();
        for call in &calls {
            if targets.contains(&&call.target) {
                return Err(format!("{} is the target of two mounts", call.target));
            }
            targets.push(&call.target);
        }
        Ok(calls
            .into_iter()
            .map(|call| {
                let slot = self.issued;
                self.issued += 1;
                self.mounts.push(MountSlot {
                    run: MountRun { slot, generation: 0 },
                    state: MountState::Starting,
                    attached: None,
                    restarts: 0,
                    tail: Tail::new(call.secret_access_key.reveal()),
                    lost_before: 0,
                    trim_at: Instant::now() + TRIM_EVERY,
                    trimmed_at_bytes: 0,
                    call,
                });
                slot
            })
            .collect())
    }

    /// Forgets slots.
    pub(super) fn remove(&mut self, slots: &[usize]) {
        self.mounts.retain(|mount| !slots.contains(&mount.run.slot));
    }

    /// What a worker needs to start the programs of `slots`.
    pub(super) fn orders(&self, slots: &[usize]) -> Vec<MountOrder<'_>> {
        slots
            .iter()
            .filter_map(|slot| self.find(*slot))
            .map(|mount| {
                let previous = mount.attached.as_ref().map(AsFd::as_fd);
                MountOrder { run: mount.run, call: &mount.call, previous }
            })
            .collect()
    }

    /// Mounts that run below the targets of `slots`.
    pub(super) fn below(&self, slots: &[usize]) -> Vec<Below<'_>> {
        let outer: Vec<String> = slots
            .iter()
            .filter_map(|slot| self.find(*slot))
            .map(|mount| format!("{}/", mount.call.target))
            .collect();
        let is_below = |mount: &&MountSlot| {
            outer.iter().any(|target| mount.call.target.as_str().starts_with(target))
        };
        let mut below: Vec<Below<'_>> = self
            .mounts
            .iter()
            .filter(is_below)
            .filter(|mount| matches!(mount.state, MountState::Up { .. }))
            .filter_map(|mount| {
                let attached = mount.attached.as_ref()?.as_fd();
                Some(Below { run: mount.run, call: &mount.call, attached })
            })
            .collect();
        below.sort_by_key(|mount| mount.call.target.as_str().len());
        below
    }

    /// Bytes of memory that all caches may take.
    pub(super) fn cache_memory(&self) -> u64 {
        self.mounts.iter().map(|mount| cache::memory(mount.call.cache)).sum()
    }

    /// Where a slot's mount appears.
    pub(super) fn target(&self, slot: usize) -> Option<&TargetPath> {
        self.find(slot).map(|mount| &mount.call.target)
    }

    /// What a slot's mount is called in the log.
    pub(super) fn name(&self, slot: usize) -> String {
        self.target(slot).map_or_else(|| format!("mount {slot}"), TargetPath::to_string)
    }

    /// A worker has put a slot's mount at its target.
    pub(super) fn set_attached(&mut self, slot: usize, descriptors: Vec<OwnedFd>) {
        if let Some(mount) = self.find_mut(slot) {
            mount.attached = descriptors.into_iter().next();
        }
    }

    /// Programs of slots run.
    pub(super) fn set_up(&mut self, slots: &[usize], started: Vec<Started>, outputs: Vec<OwnedFd>) {
        let mut outputs = outputs.into_iter();
        for (slot, started) in slots.iter().zip(started) {
            let output = outputs.next();
            let (Some(mount), Some(program)) =
                (self.find_mut(*slot), Pid::from_raw(started.process))
            else {
                continue;
            };
            for line in &started.lines {
                mount.tail.push(line);
            }
            mount.state = MountState::Up { program, output };
        }
    }

    /// A restart failed.
    pub(super) fn retry_later(&mut self, slot: usize, failure: &ControlFailure) {
        if let Some(mount) = self.find_mut(slot) {
            mount.tail.push(&failure.message);
            for line in &failure.program_output {
                mount.tail.push(line);
            }
            mount.state = MountState::Down { retry_at: Instant::now() + RETRY };
        }
    }

    /// A child of this process has ended, perhaps a program.
    pub(super) fn program_ended(&mut self, process: Pid, status: WaitStatus, expected: bool) {
        let is_it = |mount: &&mut MountSlot| matches!(mount.state, MountState::Up { program, .. } if program == process);
        let Some(mount) = self.mounts.iter_mut().find(is_it) else {
            return;
        };
        mount.drain();
        mount.state = MountState::Down { retry_at: Instant::now() };
        if !expected {
            let how = describe(status);
            log!("the {} of {} died: {how}", mount.call.driver, mount.call.target);
            mount.tail.push(&how);
        }
    }

    /// Slots whose programs are to be started now; they count as starting from here on.
    pub(super) fn due_restarts(&mut self, now: Instant) -> Vec<usize> {
        let due = |mount: &&mut MountSlot| matches!(mount.state, MountState::Down { retry_at } if retry_at <= now);
        let start = |mount: &mut MountSlot| {
            mount.state = MountState::Starting;
            mount.run.generation += 1;
            mount.restarts += 1;
            mount.run.slot
        };
        self.mounts.iter_mut().filter(due).map(start).collect()
    }

    /// When something is to be done next.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let due = |mount: &MountSlot| match mount.state {
            MountState::Down { retry_at } => Some(retry_at),
            MountState::Up { .. } if matches!(mount.call.cache, Cache::Disk { .. }) => {
                Some(mount.trim_at)
            }
            MountState::Up { .. } | MountState::Starting => None,
        };
        self.mounts.iter().filter_map(due).min()
    }

    /// Slots whose disk caches are to be looked at now: those whose programs have done something.
    pub(super) fn due_trims(&mut self, now: Instant) -> Vec<usize> {
        let mut due = Vec::new();
        for mount in &mut self.mounts {
            let (MountState::Up { program, .. }, Cache::Disk { .. }) =
                (&mount.state, mount.call.cache)
            else {
                continue;
            };
            if mount.trim_at <= now {
                mount.trim_at = now + TRIM_EVERY;
                let bytes = bytes_moved(*program);
                if bytes != mount.trimmed_at_bytes {
                    mount.trimmed_at_bytes = bytes;
                    due.push(mount.run.slot);
                }
            }
        }
        due
    }

    /// The trim of a slot's cache, for a worker.
    pub(super) fn trim(&self, slot: usize) -> Trim {
        let mount = self.find(slot);
        let of = |mount: &MountSlot| match (&mount.state, mount.call.cache) {
            (MountState::Up { program, .. }, Cache::Disk { limit_mib }) => {
                Some((mount.run, u64::from(limit_mib) << 20, *program))
            }
            _ => None,
        };
        Trim(mount.and_then(of))
    }

    /// Lets the program of a slot go on, whatever halted it.
    pub(super) fn resume(&self, slot: usize) {
        if let Some(MountState::Up { program, .. }) = self.find(slot).map(|mount| &mount.state) {
            match kill_process(*program, Signal::CONT) {
                Ok(()) | Err(Errno::SRCH) => {}
                Err(error) => log!("cannot let program {program} go on: {error}"),
            }
        }
    }

    /// The flush of all mounts, for a worker.
    pub(super) fn flush(&self, unmount: bool, limit: Duration) -> Flush<'_> {
        let targets: Vec<FlushTarget<'_>> = self
            .mounts
            .iter()
            .filter_map(|mount| {
                let MountState::Up { program, .. } = mount.state else {
                    return None;
                };
                Some(FlushTarget {
                    run: mount.run,
                    program,
                    lost_before: mount.lost_before,
                    attached: mount.attached.as_ref()?,
                })
            })
            .collect();
        let lost = targets.len() < self.mounts.len();
        Flush { targets, unmount, limit, lost }
    }

    /// Remembers what was lost so far: what is lost from now on nobody else is told.
    pub(super) fn note_lost(&mut self) {
        for mount in &mut self.mounts {
            let MountState::Up { program, .. } = mount.state else { continue };
            match ProgramPage::of(program).and_then(|page| page.lost()) {
                Ok(lost) => mount.lost_before = lost,
                Err(error) => log!("cannot look at mount {}: {error}", mount.run),
            }
        }
    }

    /// Dropping what is cached of the store, for a worker.
    pub(super) fn refresh(&self) -> Refresh {
        let running = self.mounts.iter().filter_map(|mount| match mount.state {
            MountState::Up { program, .. } => Some((mount.run, program)),
            MountState::Starting | MountState::Down { .. } => None,
        });
        Refresh(running.collect())
    }

    /// Closes the descriptors of all mounts.
    pub(super) fn close_descriptors(&mut self) {
        for mount in &mut self.mounts {
            mount.attached = None;
        }
    }

    /// What a worker that was killed may have left of slots.
    pub(super) fn leftovers(&self, slots: &[usize]) -> Leftovers<'_> {
        let mounts = slots.iter().filter_map(|slot| self.find(*slot));
        Leftovers(mounts.map(|m| (m.run, m.attached.as_ref().map(AsFd::as_fd))).collect())
    }

    /// What programs print, with their slots.
    pub(super) fn outputs(&self) -> Vec<(usize, BorrowedFd<'_>)> {
        self.mounts
            .iter()
            .filter_map(|mount| match &mount.state {
                MountState::Up { output: Some(output), .. } => {
                    Some((mount.run.slot, output.as_fd()))
                }
                _ => None,
            })
            .collect()
    }

    /// Takes what a slot's program has printed.
    pub(super) fn read_output(&mut self, slot: usize) {
        if let Some(mount) = self.find_mut(slot) {
            mount.drain();
        }
    }

    /// The state of all mounts, for the server.
    pub(super) fn status(&self) -> Vec<MountStatus> {
        let status = |mount: &MountSlot| MountStatus {
            target: mount.call.target.clone(),
            running: matches!(mount.state, MountState::Up { .. }),
            restarts: mount.restarts,
            last_lines: mount.tail.lines(),
        };
        self.mounts.iter().map(status).collect()
    }
}

impl MountSlot {
    fn drain(&mut self) {
        let MountState::Up { output, .. } = &mut self.state else {
            return;
        };
        let Some(descriptor) = output else { return };
        match read_output(descriptor, &mut self.tail) {
            Ok(true) => {}
            Ok(false) => *output = None,
            Err(error) => {
                log!("cannot read what the {} prints: {error}", self.call.driver);
                *output = None;
            }
        }
    }
}

/// Trimming a cache.
pub(super) struct Trim(Option<(MountRun, u64, Pid)>);

impl Trim {
    /// Does it and reports.
    pub(super) fn run(&self, channel: &Channel) {
        if let Some((run, limit, program)) = self.0
            && let Err(error) = cache::trim(run, limit, program)
        {
            log!("cannot trim the cache of mount {run}: {error}");
        }
        channel.send(&WorkerReport::Done, &[]);
    }
}

/// What may be left of mounts.
pub(super) struct Leftovers<'a>(Vec<(MountRun, Option<BorrowedFd<'a>>)>);

impl Leftovers<'_> {
    /// Descriptors that the worker needs.
    pub(super) fn descriptors(&self) -> Vec<RawFd> {
        self.0.iter().filter_map(|(_, attached)| Some(attached.as_ref()?.as_raw_fd())).collect()
    }

    /// Takes it away and reports.
    pub(super) fn run(&self, channel: &Channel) {
        for (run, attached) in &self.0 {
            if let Err(error) = attached.map_or(Ok(()), attach::unmount) {
                log!("cannot unmount mount {run}: {error}");
            }
            clean_up(*run);
        }
        channel.send(&WorkerReport::Done, &[]);
    }
}

/// Bytes a program has read and written so far; zero if it is gone.
fn bytes_moved(program: Pid) -> u64 {
    let io = fs::read_to_string(format!("/proc/{program}/io")).unwrap_or_default();
    let field = |line: &str| line.split_once(": ")?.1.parse::<u64>().ok();
    io.lines().take(2).filter_map(field).sum()
}
