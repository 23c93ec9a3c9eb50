//! The one loop of `init`: it takes calls, reaps, starts workers and acts on what they report. Nothing
//! in it waits for anything but the next event.

mod drain;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use nix::sys::signal::Signal;
use nix::sys::signalfd::SignalFd;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions, WaitStatus, wait};
use sandyard_contract::budget::{
    FLUSH_DEFAULT, FLUSH_WORKER_MARGIN, LAST_REPLY, MOUNT_WORKER_MARGIN, PROGRAM_READY,
};
use sandyard_contract::control::{
    Call, Failure, FailureKind, FlushReport, MountCall, Mounted, Reply,
};

use super::boot::OwnRoot;
use super::control::{ConnectionId, Control};
use super::flush::Flush;
use super::mounting::Work;
use super::mounts::Mounts;
use super::stop::Stopping;
use super::user_side::UserSide;
use super::worker::{MOST_MOUNTS, Message, Report, Started, Worker};
use super::{log, rest, spawn};
use drain::Drained;

/// Limit for trimming a cache and for cleaning up.
const HOUSEKEEPING_LIMIT: Duration = Duration::from_secs(30);

/// What a worker is for.
enum Purpose {
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

struct Job {
    worker: Worker,
    purpose: Purpose,
    deadline: Instant,
}

/// All that `init` knows.
pub(super) struct Supervisor {
    control: Control,
    signals: SignalFd,
    own_root: OwnRoot,
    user_side: UserSide,
    user_side_ended: bool,
    mounts: Mounts,
    jobs: Vec<Job>,
    /// Set while a drain has, or is about to have, the user's side halted.
    drained: Option<Drained>,
    stopping: Option<Stopping>,
    exit: Option<ExitCode>,
}

/// What is ready after a wait.
#[derive(Default)]
struct Ready {
    signals: bool,
    listener: bool,
    connections: Vec<(ConnectionId, PollFlags)>,
    outputs: Vec<usize>,
}

impl Supervisor {
    pub(super) fn new(
        control: Control,
        own_root: OwnRoot,
        user_side: UserSide,
    ) -> anyhow::Result<Self> {
        Ok(Self {
            control,
            signals: spawn::signal_queue().context("failed to open the signal queue")?,
            own_root,
            user_side,
            user_side_ended: false,
            mounts: Mounts::default(),
            jobs: Vec::new(),
            drained: None,
            stopping: None,
            exit: None,
        })
    }

    /// Runs until the container should end.
    pub(super) fn run(mut self) -> anyhow::Result<ExitCode> {
        loop {
            let ready = self.wait().context("failed to wait for events")?;
            // Reports before deaths: a report tells whose death it is.
            self.take_reports();
            if ready.signals {
                self.take_signals()?;
            }
            for slot in ready.outputs {
                self.mounts.read_output(slot);
            }
            if ready.listener {
                self.control.accept();
            }
            for (connection, events) in ready.connections {
                if let Some(call) = self.control.handle(connection, events) {
                    self.act(connection, call);
                }
            }
            self.keep_time();
            if let Some(code) = self.exit {
                return Ok(code);
            }
        }
    }

    fn wait(&self) -> anyhow::Result<Ready> {
        let connections = self.control.waits();
        let outputs = self.mounts.outputs();
        let mut fds = vec![
            PollFd::new(&self.signals, PollFlags::IN),
            PollFd::from_borrowed_fd(self.control.listener(), PollFlags::IN),
        ];
        fds.extend(connections.iter().map(|(_, fd, flags)| PollFd::from_borrowed_fd(*fd, *flags)));
        let first_output = fds.len();
        fds.extend(outputs.iter().map(|(_, fd)| PollFd::from_borrowed_fd(*fd, PollFlags::IN)));
        fds.extend(self.jobs.iter().map(|job| PollFd::new(&job.worker, PollFlags::IN)));
        let limit = self.next_deadline().map(|at| {
            // One millisecond more: the wait must not end just before the moment it is for.
            at.saturating_duration_since(Instant::now()) + Duration::from_millis(1)
        });
        let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
        if self.jobs.is_empty() && connections.is_empty() {
            rest::release();
        }
        match poll(&mut fds, limit.as_ref()) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(Ready::default()),
            Err(error) => return Err(error.into()),
        }
        let events: Vec<PollFlags> = fds.iter().map(PollFd::revents).collect();
        let happened = |at: usize| !events[at].is_empty();
        Ok(Ready {
            signals: happened(0),
            listener: happened(1),
            connections: connections
                .iter()
                .zip(&events[2..])
                .filter(|(_, events)| !events.is_empty())
                .map(|((id, ..), events)| (*id, *events))
                .collect(),
            outputs: outputs
                .iter()
                .enumerate()
                .filter(|(index, _)| happened(first_output + index))
                .map(|(_, (slot, _))| *slot)
                .collect(),
        })
    }

    fn next_deadline(&self) -> Option<Instant> {
        let jobs = self.jobs.iter().map(|job| job.deadline);
        let stop = self.stopping.as_ref().and_then(Stopping::next_look);
        let drained = self.drained.as_ref().and_then(Drained::next_look);
        let mounts = if self.keeps_mounts() { self.mounts.next_deadline() } else { None };
        jobs.chain(stop).chain(drained).chain(mounts).chain(self.control.next_deadline()).min()
    }

    /// Whether programs are started again and caches trimmed. Not while the container may be frozen at any
    /// moment, which fails while something waits for a program.
    fn keeps_mounts(&self) -> bool {
        self.stopping.is_none() && self.drained.is_none()
    }

    fn act(&mut self, connection: ConnectionId, call: Call) {
        match call {
            Call::Status => {
                let reply = Reply::Status { mounts: self.mounts.status() };
                self.control.reply(connection, &reply);
            }
            Call::Stop { flush_limit_ms } => {
                self.stop(Duration::from_millis(flush_limit_ms));
                if let Some(stopping) = &mut self.stopping {
                    stopping.waiting.push(connection);
                }
            }
            _ if self.stopping.is_some() => {
                self.refuse(connection, "the sandbox is being stopped");
            }
            Call::Mount { .. } if self.drained.is_some() => {
                self.refuse(connection, "the sandbox is drained");
            }
            Call::Drain { limit_ms } => self.drain(connection, Duration::from_millis(limit_ms)),
            Call::Resume => self.resume(connection),
            Call::Mount { mounts } => self.mount(connection, mounts),
            Call::Sync { limit_ms } => {
                let limit = Duration::from_millis(limit_ms);
                let flush = self.mounts.flush(false, limit);
                let started = Worker::start(&flush.descriptors(), |channel| flush.run(channel));
                drop(flush);
                self.employ(started, Purpose::Sync { connection }, limit + FLUSH_WORKER_MARGIN);
            }
        }
    }

    fn refuse(&mut self, connection: ConnectionId, why: &str) {
        self.control.reply(connection, &failed(FailureKind::BadCall, why));
    }

    fn mount(&mut self, connection: ConnectionId, calls: Vec<MountCall>) {
        if self.jobs.iter().any(|job| matches!(job.purpose, Purpose::Mount { .. })) {
            return self.refuse(connection, "another mount call is being worked on");
        }
        if calls.len() + self.mounts.len() > MOST_MOUNTS {
            return self.refuse(connection, &format!("a sandbox has {MOST_MOUNTS} mounts at most"));
        }
        if calls.is_empty() {
            return self.control.reply(connection, &Reply::Mounted { mounts: Vec::new() });
        }
        let slots = match self.mounts.add(calls) {
            Ok(slots) => slots,
            Err(why) => return self.refuse(connection, &why),
        };
        self.start_programs(&slots, Purpose::Mount { connection, slots: slots.clone() });
    }

    fn start_programs(&mut self, slots: &[usize], purpose: Purpose) {
        let work = Work {
            own_root: &self.own_root,
            fence: &self.user_side.fence,
            cache_memory: self.mounts.cache_memory(),
            orders: self.mounts.orders(slots),
            below: self.mounts.below(slots),
        };
        let started = Worker::start(&work.descriptors(), |channel| work.run(channel));
        drop(work);
        self.employ(started, purpose, PROGRAM_READY + MOUNT_WORKER_MARGIN);
    }

    fn employ(&mut self, started: std::io::Result<Worker>, purpose: Purpose, limit: Duration) {
        match started {
            Ok(worker) => {
                self.jobs.push(Job { worker, purpose, deadline: Instant::now() + limit });
            }
            Err(error) => self.give_up(purpose, &format!("cannot start a worker: {error}")),
        }
    }

    fn take_reports(&mut self) {
        let mut index = 0;
        while index < self.jobs.len() {
            match self.jobs[index].worker.receive() {
                Ok(Message::None) => index += 1,
                Ok(Message::Report(Report::Attached(slot), fds)) => {
                    self.mounts.set_attached(slot, fds);
                }
                Ok(Message::Report(Report::HaltedByUser(processes), _)) => {
                    self.note_halted_by_user(processes);
                }
                Ok(Message::Report(report, fds)) => {
                    let job = self.jobs.swap_remove(index);
                    self.finish(job.purpose, report, fds);
                }
                Ok(Message::Ended) => {
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

    fn finish(&mut self, purpose: Purpose, report: Report, fds: Vec<std::os::fd::OwnedFd>) {
        match (purpose, report) {
            (Purpose::Mount { connection, slots }, Report::Mounted(started)) => {
                let mounted = |(slot, started): (&usize, &Started)| {
                    let target = self.mounts.target(*slot)?.clone();
                    Some(Mounted { target, micros: started.micros })
                };
                let mounts = slots.iter().zip(&started).filter_map(mounted).collect();
                let reply = Reply::Mounted { mounts };
                self.mounts.set_up(&slots, started, fds);
                self.control.reply(connection, &reply);
            }
            (Purpose::Mount { connection, slots }, Report::Failed(failure)) => {
                self.mounts.remove(&slots);
                self.control.reply(connection, &Reply::Failed(failure));
            }
            (Purpose::Restart { slot }, Report::Mounted(started)) => {
                log!("mounted {} again", self.mounts.name(slot));
                self.mounts.set_up(&[slot], started, fds);
            }
            (Purpose::Restart { slot }, Report::Failed(failure)) => {
                log!("cannot mount {} again: {}", self.mounts.name(slot), failure.message);
                self.mounts.retry_later(slot, &failure);
            }
            (Purpose::Sync { connection }, Report::Flushed(flush)) => {
                self.control.reply(connection, &Reply::Synced { flush });
            }
            (Purpose::Flush, Report::Flushed(flush)) => self.end(flush),
            (Purpose::Drain, Report::Flushed(flush)) => self.end_drain(flush),
            (Purpose::Resume, Report::Done) => self.end_resume(),
            (Purpose::Trim { slot }, _) => self.mounts.resume(slot),
            (Purpose::Clean, _) => {}
            (purpose, report) => {
                log!("a worker reports what it was not asked for: {report:?}");
                self.give_up(purpose, "its worker's report makes no sense");
            }
        }
    }

    /// Ends what a worker was for when the worker cannot.
    fn give_up(&mut self, purpose: Purpose, why: &str) {
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
                let Reply::Failed(failure) = failed(FailureKind::Program, why) else {
                    return;
                };
                self.mounts.retry_later(slot, &failure);
            }
            Purpose::Sync { connection } => {
                log!("a sync was given up: {why}");
                self.control.reply(connection, &Reply::Synced { flush: FlushReport::default() });
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
        let leavings = self.mounts.leavings(slots);
        let started = Worker::start(&leavings.descriptors(), |channel| leavings.run(channel));
        drop(leavings);
        self.employ(started, Purpose::Clean, HOUSEKEEPING_LIMIT);
    }

    fn take_signals(&mut self) -> anyhow::Result<()> {
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

    fn stop(&mut self, flush_limit: Duration) {
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
        let mounting: Vec<Job> = mounting;
        for job in mounting {
            job.worker.kill();
            self.give_up(job.purpose, "the sandbox is being stopped");
        }
    }

    fn keep_time(&mut self) {
        let now = Instant::now();
        self.control.close_overdue(now);
        while let Some(index) = self.jobs.iter().position(|job| job.deadline <= now) {
            let job = self.jobs.swap_remove(index);
            job.worker.kill();
            self.give_up(job.purpose, "its limit is over");
        }
        self.keep_drain_time(now);
        let keeps_mounts = self.keeps_mounts();
        let Some(stopping) = &mut self.stopping else {
            if !keeps_mounts {
                return;
            }
            for slot in self.mounts.due_restarts(now) {
                self.start_programs(&[slot], Purpose::Restart { slot });
            }
            for slot in self.mounts.due_trims(now) {
                let trim = self.mounts.trim(slot);
                let started = Worker::start(&[], |channel| trim.run(channel));
                self.employ(started, Purpose::Trim { slot }, HOUSEKEEPING_LIMIT);
            }
            return;
        };
        if stopping.advance(self.user_side_ended) {
            let used = stopping.flush_started.map_or(Duration::ZERO, |started| started.elapsed());
            let limit = stopping.flush_limit.saturating_sub(used);
            self.flush(limit);
        }
    }

    /// The mounts' part of a stop.
    fn flush(&mut self, limit: Duration) {
        // A trim that was cut off has left its program halted.
        let (trims, others) = std::mem::take(&mut self.jobs)
            .into_iter()
            .partition(|job| matches!(job.purpose, Purpose::Trim { .. }));
        self.jobs = others;
        let trims: Vec<Job> = trims;
        for job in trims {
            job.worker.kill();
            self.give_up(job.purpose, "the sandbox is being stopped");
        }
        let flush: Flush<'_> = self.mounts.flush(true, limit);
        let started = Worker::start(&flush.descriptors(), |channel| flush.run(channel));
        drop(flush);
        // The last reference to a mount must not be this process's (see `flush`).
        self.mounts.let_go();
        self.employ(started, Purpose::Flush, limit + FLUSH_WORKER_MARGIN);
    }

    fn end(&mut self, mut flush: FlushReport) {
        let Some(stopping) = self.stopping.take() else {
            return;
        };
        if let Some(started) = stopping.flush_started {
            flush.millis = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        }
        if !flush.complete {
            log!("the limit of {:?} was over before all was in the store", stopping.flush_limit);
        }
        let reply = Reply::Stopped { flush };
        for connection in stopping.waiting {
            self.control.reply_and_close(connection, &reply, LAST_REPLY);
        }
        self.exit = Some(if stopping.unasked { ExitCode::FAILURE } else { ExitCode::SUCCESS });
    }
}

fn failed(kind: FailureKind, message: &str) -> Reply {
    let message = message.to_owned();
    Reply::Failed(Failure { kind, message, program_output: Vec::new() })
}
