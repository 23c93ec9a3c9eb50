//! Workers: what each is for, and what its report or its end leads to.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use sandyard_contract::control::{ControlReply, FailureKind, FlushReport, Mounted};

use super::super::control::ConnectionId;
use super::super::log;
use super::super::worker::{Started, Worker, WorkerMessage, WorkerReport};
use super::{HOUSEKEEPING_LIMIT, Supervisor, failed};

/// What a worker is for.
pub(super) enum Purpose {
    /// A call, and the slots it fills.
    Mount { connection: ConnectionId, slots: Vec<usize> },
    /// The program of this slot died.
    Restart { slot: usize },
    /// A call.
    Sync { connection: ConnectionId },
    /// The end of a stop.
    Flush,
    /// The user's side is to be frozen.
    Drain,
    /// It was thawed.
    Resume,
    /// The cache of this slot is too large, perhaps.
    Trim { slot: usize },
    /// Nobody waits for it.
    Clean,
}

/// A worker that runs.
pub(super) struct WorkerJob {
    pub(super) worker: Worker,
    pub(super) purpose: Purpose,
    pub(super) deadline: Instant,
}

impl Supervisor {
    pub(super) fn employ(
        &mut self,
        started: std::io::Result<Worker>,
        purpose: Purpose,
        limit: Duration,
    ) {
        match started {
            Ok(worker) => {
                self.jobs.push(WorkerJob { worker, purpose, deadline: Instant::now() + limit });
            }
            Err(error) => self.give_up(purpose, &format!("cannot start a worker: {error}")),
        }
    }

    pub(super) fn take_reports(&mut self) {
        let mut index = 0;
        while index < self.jobs.len() {
            match self.jobs[index].worker.receive() {
                Ok(WorkerMessage::None) => index += 1,
                Ok(WorkerMessage::Report(WorkerReport::Attached(slot), fds)) => {
                    self.mounts.set_attached(slot, fds);
                }
                Ok(WorkerMessage::Report(WorkerReport::HaltedByUser(processes), _)) => {
                    self.note_halted_by_user(processes);
                }
                Ok(WorkerMessage::Report(report, fds)) => {
                    let job = self.jobs.swap_remove(index);
                    self.finish(job.purpose, report, fds);
                }
                Ok(WorkerMessage::Ended) => {
                    let job = self.jobs.swap_remove(index);
                    self.give_up(job.purpose, "its worker ended without a result");
                }
                Err(error) => {
                    let job = self.jobs.swap_remove(index);
                    job.worker.kill();
                    self.give_up(job.purpose, &format!("its worker cannot be heard: {error}"));
                }
            }
        }
    }

    fn finish(&mut self, purpose: Purpose, report: WorkerReport, fds: Vec<OwnedFd>) {
        match (purpose, report) {
            (Purpose::Mount { connection, slots }, WorkerReport::Mounted(started)) => {
                let mounted = |(slot, started): (&usize, &Started)| {
                    let target = self.mounts.target(*slot)?.clone();
                    Some(Mounted { target, micros: started.micros })
                };
                let mounts = slots.iter().zip(&started).filter_map(mounted).collect();
                let reply = ControlReply::Mounted { mounts };
                self.mounts.set_up(&slots, started, fds);
                self.control.reply(connection, &reply);
            }
            (Purpose::Mount { connection, slots }, WorkerReport::Failed(failure)) => {
                self.mounts.remove(&slots);
                self.control.reply(connection, &ControlReply::Failed(failure));
            }
            (Purpose::Restart { slot }, WorkerReport::Mounted(started)) => {
                log!("mounted {} again", self.mounts.name(slot));
                self.mounts.set_up(&[slot], started, fds);
            }
            (Purpose::Restart { slot }, WorkerReport::Failed(failure)) => {
                log!("cannot mount {} again: {}", self.mounts.name(slot), failure.message);
                self.mounts.retry_later(slot, &failure);
            }
            (Purpose::Sync { connection }, WorkerReport::Flushed(flush)) => {
                self.control.reply(connection, &ControlReply::Synced { flush });
            }
            (Purpose::Flush, WorkerReport::Flushed(flush)) => self.end(flush),
            (Purpose::Drain, WorkerReport::Flushed(flush)) => self.end_drain(flush),
            (Purpose::Resume, WorkerReport::Done) => self.end_resume(),
            (Purpose::Trim { slot }, _) => self.mounts.resume(slot),
            (Purpose::Clean, _) => {}
            (purpose, report) => {
                log!("a worker reports what it was not asked for: {report:?}");
                self.give_up(purpose, "its worker's report makes no sense");
            }
        }
    }

    /// Ends what a worker was for when the worker cannot.
    pub(super) fn give_up(&mut self, purpose: Purpose, why: &str) {
        match purpose {
            Purpose::Mount { connection, slots } => {
                self.clean(&slots);
                self.mounts.remove(&slots);
                let why = format!("the mounts were given up: {why}");
                self.control.reply(connection, &failed(FailureKind::Program, &why));
            }
            Purpose::Restart { slot } => {
                log!("cannot mount {} again: {why}", self.mounts.name(slot));
                self.clean(&[slot]);
                let ControlReply::Failed(failure) = failed(FailureKind::Program, why) else {
                    return;
                };
                self.mounts.retry_later(slot, &failure);
            }
            Purpose::Sync { connection } => {
                log!("a sync was given up: {why}");
                self.control
                    .reply(connection, &ControlReply::Synced { flush: FlushReport::default() });
            }
            Purpose::Flush => {
                log!("the flush was given up: {why}");
                self.end(FlushReport::default());
            }
            Purpose::Drain => {
                log!("the drain was given up: {why}");
                self.end_drain(FlushReport::default());
            }
            Purpose::Resume => {
                log!("what is cached of the store may be old: {why}");
                self.end_resume();
            }
            Purpose::Trim { slot } => {
                log!("trimming the cache of {} was given up: {why}", self.mounts.name(slot));
                self.mounts.resume(slot);
            }
            Purpose::Clean => log!("cleaning up was given up: {why}"),
        }
    }

    /// Has a worker take away what a killed one left.
    fn clean(&mut self, slots: &[usize]) {
        let leftovers = self.mounts.leftovers(slots);
        let started = Worker::start(&leftovers.descriptors(), |channel| leftovers.run(channel));
        drop(leftovers);
        self.employ(started, Purpose::Clean, HOUSEKEEPING_LIMIT);
    }
}
