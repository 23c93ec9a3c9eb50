//! The two ends of a freeze by the engine:
//! [`ControlCall::Drain`](sandyard_contract::control::ControlCall::Drain) before it and
//! [`ControlCall::Resume`](sandyard_contract::control::ControlCall::Resume) after it.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use sandyard_contract::budget::{
    FLUSH_WORKER_MARGIN, LONGEST_HALT, REFRESH, REFRESH_WORKER_MARGIN,
};
use sandyard_contract::control::{ControlReply, FailureKind, FlushReport};

use super::super::control::ConnectionId;
use super::super::flush::Flush;
use super::super::worker::{Channel, Worker, WorkerReport};
use super::super::{cgroup, halt, log};
use super::{Purpose, Supervisor, WorkerJob, failed};

/// How often that is looked at. Time that passes without a look is time in which the container was frozen.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The user's side, halted or about to be.
pub(super) struct Drained {
    phase: DrainPhase,
    /// Since when it is drained.
    started: Instant,
    /// Processes that user code had halted itself.
    halted_by_user: HashSet<i32>,
    /// Who waits for the end of the phase.
    waiting: Vec<ConnectionId>,
    last_look: Instant,
    /// How long it was halted while the container ran, about.
    awake: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DrainPhase {
    /// A worker halts it and syncs the mounts.
    Draining,
    /// Nothing moves, and everything is in the store.
    Halted,
    /// A worker drops what is cached of the store.
    Refreshing,
}

impl Drained {
    /// When to look at it again, if nothing happens before.
    pub(super) fn next_look(&self) -> Option<Instant> {
        (self.phase == DrainPhase::Halted).then_some(self.last_look + LOOK_EVERY)
    }

    /// Counts the time since the last look. Returns whether it has been halted for too long.
    fn look(&mut self, now: Instant) -> bool {
        if self.phase != DrainPhase::Halted {
            return false;
        }
        self.awake += now.saturating_duration_since(self.last_look).min(LOOK_EVERY);
        self.last_look = now;
        self.awake >= LONGEST_HALT
    }
}

/// Halting the user's side and syncing the mounts, for a worker.
struct Drain<'a> {
    freezer: Option<&'a cgroup::Freezer>,
    /// Whether it is halted already.
    is_halted: bool,
    flush: Flush<'a>,
}

impl Drain<'_> {
    /// Does it and reports.
    fn run(&self, channel: &Channel) {
        let deadline = Instant::now() + self.flush.limit;
        let note_halted = |halted: &HashSet<i32>| {
            channel.send(&WorkerReport::HaltedByUser(halted.iter().copied().collect()), &[]);
        };
        let halted =
            if self.is_halted { Ok(true) } else { halt::halt(self.freezer, deadline, note_halted) };
        match halted {
            Ok(true) => {}
            Ok(false) => log!("not everything on the user's side halts in time"),
            Err(error) => log!("cannot halt the user's side: {error}"),
        }
        // What is open is brought to the store all the same: less is left, and the report says how much.
        self.flush.run_until(deadline, channel);
    }
}

impl Supervisor {
    pub(super) fn drain(&mut self, connection: ConnectionId, limit: Duration) {
        let is_mounting = |job: &WorkerJob| matches!(job.purpose, Purpose::Mount { .. });
        if self.jobs.iter().any(is_mounting) {
            return self.refuse(connection, "a mount call is being worked on");
        }
        match &mut self.drained {
            Some(Drained { phase: DrainPhase::Draining, waiting, .. }) => waiting.push(connection),
            Some(Drained { phase: DrainPhase::Refreshing, .. }) => {
                self.refuse(connection, "the sandbox is being resumed");
            }
            // A program may have died since, so the mounts are synced again.
            Some(Drained { phase: DrainPhase::Halted, .. }) => self.start_drain(connection, limit),
            None => self.start_drain(connection, limit),
        }
    }

    fn start_drain(&mut self, connection: ConnectionId, limit: Duration) {
        let now = Instant::now();
        let is_halted = self.drained.is_some();
        let halted_by_user = self.drained.take().map(|drained| drained.halted_by_user);
        self.drained = Some(Drained {
            phase: DrainPhase::Draining,
            started: now,
            halted_by_user: halted_by_user.unwrap_or_default(),
            waiting: vec![connection],
            last_look: now,
            awake: Duration::ZERO,
        });
        let flush = self.mounts.flush(false, limit);
        let drain =
            Drain { freezer: self.user_side.cgroup_limits.freezer.as_ref(), is_halted, flush };
        let started = Worker::start(&drain.flush.descriptors(), |channel| drain.run(channel));
        drop(drain);
        self.employ(started, Purpose::Drain, limit + FLUSH_WORKER_MARGIN);
    }

    pub(super) fn note_halted_by_user(&mut self, processes: Vec<i32>) {
        if let Some(drained) = &mut self.drained {
            drained.halted_by_user = processes.into_iter().collect();
        }
    }

    /// The worker of a drain has ended.
    pub(super) fn end_drain(&mut self, mut flush: FlushReport) {
        let Some(drained) = &mut self.drained else { return };
        flush.millis = u64::try_from(drained.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let waiting = std::mem::take(&mut drained.waiting);
        drained.phase = DrainPhase::Halted;
        drained.last_look = Instant::now();
        if !flush.complete {
            log!(
                "not everything was in the store within the drain's limit; the user's side goes on"
            );
            self.let_user_side_go();
        }
        for connection in waiting {
            self.control.reply(connection, &ControlReply::Drained { flush: flush.clone() });
        }
    }

    pub(super) fn resume(&mut self, connection: ConnectionId) {
        match &mut self.drained {
            None => self.control.reply(connection, &ControlReply::Resumed),
            Some(Drained { phase: DrainPhase::Refreshing, waiting, .. }) => {
                waiting.push(connection)
            }
            Some(Drained { phase: DrainPhase::Draining, .. }) => {
                self.abort_drain("the sandbox is being resumed");
                self.control.reply(connection, &ControlReply::Resumed);
            }
            Some(Drained { phase: DrainPhase::Halted, .. }) => self.start_resume(Some(connection)),
        }
    }

    fn start_resume(&mut self, connection: Option<ConnectionId>) {
        let Some(drained) = &mut self.drained else { return };
        drained.phase = DrainPhase::Refreshing;
        drained.waiting.extend(connection);
        let refresh = self.mounts.refresh();
        let started = Worker::start(&[], |channel| refresh.run(channel));
        self.employ(started, Purpose::Resume, REFRESH + REFRESH_WORKER_MARGIN);
    }

    /// The worker of a resume has ended.
    pub(super) fn end_resume(&mut self) {
        let Some(drained) = &mut self.drained else { return };
        let waiting = std::mem::take(&mut drained.waiting);
        self.let_user_side_go();
        for connection in waiting {
            self.control.reply(connection, &ControlReply::Resumed);
        }
    }

    /// Breaks off whatever a drain or resume is at, answers its callers, and lets the user's side go on.
    pub(super) fn abort_drain(&mut self, why: &str) {
        let (ours, others) = std::mem::take(&mut self.jobs)
            .into_iter()
            .partition(|job| matches!(job.purpose, Purpose::Drain | Purpose::Resume));
        self.jobs = others;
        let ours: Vec<WorkerJob> = ours;
        for job in ours {
            job.worker.kill();
        }
        let Some(drained) = &mut self.drained else { return };
        let reply = match drained.phase {
            DrainPhase::Draining | DrainPhase::Halted => {
                ControlReply::Drained { flush: FlushReport::default() }
            }
            DrainPhase::Refreshing => failed(FailureKind::BadCall, why),
        };
        let waiting = std::mem::take(&mut drained.waiting);
        self.let_user_side_go();
        for connection in waiting {
            self.control.reply(connection, &reply);
        }
    }

    fn let_user_side_go(&mut self) {
        let Some(drained) = self.drained.take() else { return };
        let freezer = self.user_side.cgroup_limits.freezer.as_ref();
        if let Err(error) = halt::release(freezer, &drained.halted_by_user) {
            log!("cannot let the user's side go on: {error}; trying again");
            halt::release_all();
        }
    }

    /// Lets the user's side go on if nobody has for too long.
    pub(super) fn keep_drain_time(&mut self, now: Instant) {
        if self.drained.as_mut().is_some_and(|drained| drained.look(now)) {
            log!("nobody resumes the user's side within {LONGEST_HALT:?}; it goes on");
            self.start_resume(None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_in_which_the_container_is_frozen_does_not_count() {
        let start = Instant::now();
        let mut drained = Drained {
            phase: DrainPhase::Halted,
            started: start,
            halted_by_user: HashSet::new(),
            waiting: Vec::new(),
            last_look: start,
            awake: Duration::ZERO,
        };
        assert!(!drained.look(start + Duration::from_secs(86_400)), "frozen for a day");
        for _ in 2..LONGEST_HALT.as_secs() {
            let next = drained.next_look().expect("halted");
            assert!(!drained.look(next));
        }
        let last = drained.next_look().expect("halted");
        assert!(drained.look(last), "halted for a minute");
    }
}
