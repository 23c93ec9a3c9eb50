//! The one loop of `init`: it takes calls, reaps, starts workers and acts on what they report. Nothing
//! in it waits for anything but the next event.

mod drain;
mod end;
mod jobs;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use nix::sys::signalfd::SignalFd;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use sandyard_contract::budget::{FLUSH_WORKER_MARGIN, MOUNT_WORKER_MARGIN, PROGRAM_READY};
use sandyard_contract::control::{
    ControlCall, ControlFailure, ControlReply, FailureKind, MountCall,
};

use super::boot::OwnRoot;
use super::control::{ConnectionId, Control};
use super::mounting::MountWork;
use super::mounts::Mounts;
use super::stop::Stopping;
use super::user_side::UserSide;
use super::worker::{MOST_MOUNTS, Worker};
use super::{spawn, trim};
use drain::Drained;
use jobs::{Purpose, WorkerJob};

/// Limit for trimming a cache and for cleaning up.
const HOUSEKEEPING_LIMIT: Duration = Duration::from_secs(30);

/// All that `init` knows.
pub(super) struct Supervisor {
    control: Control,
    signals: SignalFd,
    own_root: OwnRoot,
    user_side: UserSide,
    user_side_ended: bool,
    mounts: Mounts,
    jobs: Vec<WorkerJob>,
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
            trim::trim_memory();
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

    fn act(&mut self, connection: ConnectionId, call: ControlCall) {
        match call {
            ControlCall::Status => {
                let reply = ControlReply::Status { mounts: self.mounts.status() };
                self.control.reply(connection, &reply);
            }
            ControlCall::Stop { flush_limit_ms } => {
                self.stop(Duration::from_millis(flush_limit_ms));
                if let Some(stopping) = &mut self.stopping {
                    stopping.waiting.push(connection);
                }
            }
            _ if self.stopping.is_some() => {
                self.refuse(connection, "the sandbox is being stopped");
            }
            ControlCall::Mount { .. } if self.drained.is_some() => {
                self.refuse(connection, "the sandbox is drained");
            }
            ControlCall::Drain { limit_ms } => {
                self.drain(connection, Duration::from_millis(limit_ms))
            }
            ControlCall::Resume => self.resume(connection),
            ControlCall::Mount { mounts } => self.mount(connection, mounts),
            ControlCall::Sync { limit_ms } => {
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
            return self.control.reply(connection, &ControlReply::Mounted { mounts: Vec::new() });
        }
        let slots = match self.mounts.add(calls) {
            Ok(slots) => slots,
            Err(why) => return self.refuse(connection, &why),
        };
        self.start_programs(&slots, Purpose::Mount { connection, slots: slots.clone() });
    }

    fn start_programs(&mut self, slots: &[usize], purpose: Purpose) {
        let work = MountWork {
            own_root: &self.own_root,
            cgroup_limits: &self.user_side.cgroup_limits,
            cache_memory: self.mounts.cache_memory(),
            orders: self.mounts.orders(slots),
            below: self.mounts.below(slots),
        };
        let started = Worker::start(&work.descriptors(), |channel| work.run(channel));
        drop(work);
        self.employ(started, purpose, PROGRAM_READY + MOUNT_WORKER_MARGIN);
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
}

fn failed(kind: FailureKind, message: &str) -> ControlReply {
    let message = message.to_owned();
    ControlReply::Failed(ControlFailure { kind, message, program_output: Vec::new() })
}
