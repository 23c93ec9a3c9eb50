//! The end: signals, the deaths of processes, and a stop.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::signal::Signal;
use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions, WaitStatus, wait};
use sandyard_contract::budget::{FLUSH_DEFAULT, FLUSH_WORKER_MARGIN, LAST_REPLY};
use sandyard_contract::control::{ControlReply, FlushReport};

use super::super::flush::Flush;
use super::super::log;
use super::super::stop::Stopping;
use super::super::worker::Worker;
use super::Supervisor;
use super::jobs::{Purpose, WorkerJob};

impl Supervisor {
    pub(super) fn take_signals(&mut self) -> anyhow::Result<()> {
        while let Some(signal) = self.signals.read_signal().context("failed to read a signal")? {
            if signal.ssi_signo != Signal::SIGCHLD as u32 && self.stopping.is_none() {
                log!("stopping on signal {}", signal.ssi_signo);
                self.stop(FLUSH_DEFAULT);
            }
        }
        let mut dead = Vec::new();
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some(end)) => dead.push(end),
                Ok(None) | Err(Errno::CHILD) => break,
                Err(error) => return Err(error).context("failed to reap"),
            }
        }
        // A worker reports its programs before it ends, and only then are they reaped here.
        self.take_reports();
        for (process, status) in dead {
            self.bury(process, status);
        }
        Ok(())
    }

    fn bury(&mut self, process: Pid, status: WaitStatus) {
        if process == self.user_side.process {
            self.user_side_ended = true;
            if self.stopping.is_none() {
                log!("the user's side ended by itself; ending the container");
                self.abort_drain("the user's side has ended");
                self.mounts.note_lost();
                self.stopping = Some(Stopping::after_end(process, FLUSH_DEFAULT));
                self.abort_mounts();
            }
        } else {
            self.mounts.program_ended(process, status, self.stopping.is_some());
        }
    }

    pub(super) fn stop(&mut self, flush_limit: Duration) {
        if self.stopping.is_none() {
            self.abort_drain("the sandbox is being stopped");
            self.mounts.note_lost();
            self.stopping = Some(Stopping::begin(self.user_side.process, flush_limit));
            self.abort_mounts();
        }
    }

    /// Nothing is mounted any more once a stop has begun.
    fn abort_mounts(&mut self) {
        let (mounting, others) = std::mem::take(&mut self.jobs).into_iter().partition(|job| {
            matches!(job.purpose, Purpose::Mount { .. } | Purpose::Restart { .. })
        });
        self.jobs = others;
        let mounting: Vec<WorkerJob> = mounting;
        for job in mounting {
            job.worker.kill();
            self.give_up(job.purpose, "the sandbox is being stopped");
        }
    }

    /// The mounts' part of a stop.
    pub(super) fn flush(&mut self, limit: Duration) {
        // A trim that was cut off has left its program halted.
        let (trims, others) = std::mem::take(&mut self.jobs)
            .into_iter()
            .partition(|job| matches!(job.purpose, Purpose::Trim { .. }));
        self.jobs = others;
        let trims: Vec<WorkerJob> = trims;
        for job in trims {
            job.worker.kill();
            self.give_up(job.purpose, "the sandbox is being stopped");
        }
        let flush: Flush<'_> = self.mounts.flush(true, limit);
        let started = Worker::start(&flush.descriptors(), |channel| flush.run(channel));
        drop(flush);
        // The last reference to a mount must not be this process's (see `flush`).
        self.mounts.close_descriptors();
        self.employ(started, Purpose::Flush, limit + FLUSH_WORKER_MARGIN);
    }

    pub(super) fn end(&mut self, mut flush: FlushReport) {
        let Some(stopping) = self.stopping.take() else {
            return;
        };
        if let Some(started) = stopping.flush_started {
            flush.millis = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        }
        if !flush.complete {
            log!("the limit of {:?} was over before all was in the store", stopping.flush_limit);
        }
        let reply = ControlReply::Stopped { flush };
        for connection in stopping.waiting {
            self.control.reply_and_close(connection, &reply, LAST_REPLY);
        }
        self.exit = Some(if stopping.unasked { ExitCode::FAILURE } else { ExitCode::SUCCESS });
    }
}
