//! The driver: one background task for each sandbox, from the moment its create is accepted until it is gone. It
//! owns the record and applies the life-cycle table. One transition runs at a time; a request for the same one
//! joins it, and what the table lets wait is served when it has ended.

use std::collections::VecDeque;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use sandyard_types::{OnTimeout, PauseKind};
use time::OffsetDateTime;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tracing::{error, warn};

use super::request::reply;
use super::transition::{self, Ended, Made, Outcome};
use super::{Answer, Bound, Connected, Plan, Request, RunRequest, Sandbox, SavedImage, State};
use crate::events::{EndReason, SandboxEvent};
use crate::pool::Warm;
use crate::scheduler::{Entry, NewSandbox, Shared};
use crate::store::{Record, Stage};
use crate::{ContainerState, Instance, SandboxError, now};

/// Requests that may wait for a driver; a full queue makes callers wait.
const QUEUE: usize = 64;

/// After a pause at the end time that failed, until the next try.
const PAUSE_AGAIN: Duration = Duration::from_secs(10);

/// The longest wait for the engine when a container is looked at. The next look comes by itself.
const LOOK_LIMIT: Duration = Duration::from_secs(10);

/// The shortest run of a sandbox that traffic woke.
pub(super) const WAKE_TIMEOUT: Duration = Duration::from_secs(300);

/// Who waits for the running transition.
enum Waiter {
    Create(Answer<NewSandbox>),
    /// A pause or a kill.
    Done(Answer<()>),
    Run(RunRequest),
    Save(Answer<SavedImage>),
}

/// The running transition.
struct Slot {
    work: BoxFuture<'static, Outcome>,
    waiters: Vec<Waiter>,
    /// Whether it sets right what was found. What the sandbox is then is not known yet, so every request waits.
    recovers: bool,
}

impl Slot {
    fn new(work: impl Future<Output = Outcome> + Send + 'static, waiters: Vec<Waiter>) -> Self {
        Self { work: Box::pin(work), waiters, recovers: false }
    }

    fn recovery(work: impl Future<Output = Outcome> + Send + 'static) -> Self {
        Self { recovers: true, ..Self::new(work, Vec::new()) }
    }
}

pub(crate) struct Driver {
    shared: Arc<Shared>,
    record: Record,
    instance: Instance,
    requests: mpsc::Receiver<Request>,
    /// Keeps the queue open: there is a driver as long as there is a sandbox.
    sender: mpsc::Sender<Request>,
    view: watch::Sender<Arc<Sandbox>>,
    slot: Option<Slot>,
    /// Requests that are served when the running transition has ended.
    waiting: VecDeque<Request>,
    /// Whether the container is to be looked at when the running transition has ended.
    look: bool,
    /// Expiry is not tried before this moment.
    not_before: Option<Instant>,
    reason: EndReason,
}

impl Driver {
    pub(crate) fn new(shared: Arc<Shared>, record: Record, instance: Instance) -> Self {
        let (sender, requests) = mpsc::channel(QUEUE);
        let view = watch::Sender::new(Arc::new(record.view(&instance)));
        Self {
            shared,
            record,
            instance,
            requests,
            sender,
            view,
            slot: None,
            waiting: VecDeque::new(),
            look: false,
            not_before: None,
            reason: EndReason::Killed,
        }
    }

    /// What the scheduler keeps of the sandbox.
    pub(crate) fn entry(&self) -> Entry {
        Entry {
            team: self.record.team,
            address: self.instance.address,
            workspace: self.record.workspace.clone(),
            template: self.record.template.clone(),
            active: self.record.stage.state().is_active(),
            requests: self.sender.clone(),
            view: self.view.subscribe(),
        }
    }

    /// Makes the sandbox, and serves it.
    pub(crate) async fn create(mut self, warm: Option<Warm>, answer: Answer<NewSandbox>) {
        let work = transition::create::run(self.shared.clone(), self.record.clone(), warm);
        self.slot = Some(Slot::new(work, vec![Waiter::Create(answer)]));
        self.serve().await;
    }

    /// Serves a sandbox of an earlier run of the server, after what a crash interrupted is set right.
    pub(crate) async fn adopt(mut self, found: ContainerState) {
        if self.record.stage == Stage::Ending {
            self.end(EndReason::Killed, found != ContainerState::Stopped, Vec::new());
        } else {
            let work = transition::recover::run(
                self.shared.clone(),
                self.record.clone(),
                self.instance.clone(),
                found,
            );
            self.slot = Some(Slot::recovery(work));
        }
        self.serve().await;
    }

    /// Removes what an earlier run of the server has left of a sandbox.
    pub(crate) async fn remove(mut self, reason: EndReason) {
        self.end(reason, false, Vec::new());
        self.serve().await;
    }

    fn state(&self) -> State {
        self.record.stage.state()
    }

    async fn serve(mut self) {
        loop {
            let (due, not_before) = (self.record.end_at, self.not_before);
            let expires = self.slot.is_none() && self.state() == State::Running;
            tokio::select! {
                // The end of a transition first: what it answers must not be overtaken by a new request.
                biased;
                outcome = ended(&mut self.slot) => {
                    if self.finish(outcome).await {
                        return;
                    }
                    self.serve_waiting().await;
                }
                request = self.requests.recv() => match request {
                    Some(request) => self.handle(request).await,
                    // Never: the driver holds a sender itself.
                    None => return,
                },
                () = until(due, not_before), if expires => self.expire(),
            }
        }
    }

    async fn serve_waiting(&mut self) {
        for request in std::mem::take(&mut self.waiting) {
            self.handle(request).await;
        }
        if self.look && self.slot.is_none() {
            self.look = false;
            self.look_at_container().await;
        }
    }

    async fn handle(&mut self, request: Request) {
        let Some(op) = request.op() else {
            match request {
                Request::DropMemory => self.drop_memory(),
                _ if self.slot.is_some() => self.look = true,
                _ => self.look_at_container().await,
            }
            return;
        };
        let recovers = self.slot.as_ref().is_some_and(|slot| slot.recovers);
        match if recovers { Plan::Wait } else { self.state().plan(op) } {
            Plan::Begin => self.begin(request).await,
            Plan::Join => self.join(request),
            Plan::Wait => self.waiting.push_back(request),
            Plan::NotFound => {
                let id = self.record.id.clone();
                request.refuse(match self.state() {
                    State::Paused => SandboxError::Paused { op, id },
                    _ => SandboxError::NotFound(id),
                });
            }
            Plan::Conflict => {
                let (id, state) = (self.record.id.clone(), self.state());
                request.refuse(SandboxError::Conflict { op, id, state });
            }
        }
    }

    fn join(&mut self, request: Request) {
        let waiter = match request {
            Request::Pause { answer, .. } | Request::Kill { answer, .. } => Waiter::Done(answer),
            Request::Run(run) => Waiter::Run(run),
            other @ (Request::Save { .. }
            | Request::SetEnd { .. }
            | Request::Look
            | Request::DropMemory) => {
                // The table lets none of them join.
                return other.refuse(SandboxError::NotFound(self.record.id.clone()));
            }
        };
        if let Some(slot) = &mut self.slot {
            slot.waiters.push(waiter);
        }
    }

    async fn begin(&mut self, request: Request) {
        match request {
            Request::Pause { kind, require_healthy, answer } => {
                self.pause(kind, require_healthy, vec![Waiter::Done(answer)]);
            }
            Request::Kill { reason, answer } => {
                let flush = self.state() == State::Running;
                self.end(reason, flush, vec![Waiter::Done(answer)]);
            }
            Request::SetEnd { timeout, bound, answer } => {
                reply(answer, self.set_end(timeout, bound).await.map(drop));
            }
            Request::Save { answer, .. } => self.save(answer),
            Request::Run(run) if self.state() == State::Running => {
                let result = if run.by_traffic {
                    Ok(self.view.borrow().clone())
                } else {
                    self.set_end(run.timeout, Bound::AtLeast).await
                };
                reply(run.answer, result.map(|sandbox| Connected { sandbox, resumed: false }));
            }
            Request::Run(run) => self.resume(run),
            Request::Look | Request::DropMemory => {}
        }
    }

    fn set_stage(&mut self, stage: Stage) -> Arc<Sandbox> {
        self.record.stage = stage;
        self.update_view()
    }

    fn update_view(&self) -> Arc<Sandbox> {
        let view = Arc::new(self.record.view(&self.instance));
        self.view.send_replace(view.clone());
        view
    }

    fn tell(&self, what: SandboxEvent) {
        self.shared.events.tell(&self.record.id, self.record.team, what);
    }

    fn expire(&mut self) {
        match self.record.lifecycle.on_timeout {
            OnTimeout::Kill => {
                self.end(EndReason::Expired, true, Vec::new());
            }
            OnTimeout::Pause(kind) => {
                self.pause(kind, false, Vec::new());
            }
        }
    }

    fn pause(&mut self, kind: PauseKind, require_healthy: bool, waiters: Vec<Waiter>) {
        self.set_stage(Stage::Pausing(kind));
        let (shared, record) = (self.shared.clone(), self.record.clone());
        let instance = self.instance.clone();
        let work = transition::pause::run(shared, record, instance, kind, require_healthy);
        self.slot = Some(Slot::new(work, waiters));
    }

    fn resume(&mut self, run: RunRequest) {
        let Stage::Paused(kind) = self.record.stage else {
            return reply(run.answer, Err(SandboxError::NotFound(self.record.id.clone())));
        };
        let wakes = self.record.lifecycle.auto_resume && kind == PauseKind::Full;
        if run.by_traffic && !wakes {
            return reply(run.answer, Err(SandboxError::NotFound(self.record.id.clone())));
        }
        if let Err(refused) = self.shared.activate(&self.record.id, self.record.team) {
            return reply(run.answer, Err(refused));
        }
        self.set_stage(Stage::Resuming(kind));
        let mut record = self.record.clone();
        if let Some(pauses) = run.auto_pause {
            record.lifecycle.on_timeout = match (pauses, record.lifecycle.on_timeout) {
                (false, _) => OnTimeout::Kill,
                (true, kept @ OnTimeout::Pause(_)) => kept,
                (true, OnTimeout::Kill) => OnTimeout::Pause(PauseKind::Full),
            };
        }
        let timeout = if run.by_traffic { self.wake_timeout() } else { run.timeout };
        let (shared, instance) = (self.shared.clone(), self.instance.clone());
        let work = transition::resume::run(shared, record, instance, kind, run.memory, timeout);
        self.slot = Some(Slot::new(work, vec![Waiter::Run(run)]));
    }

    /// How long a sandbox runs that traffic woke (control-plane 3.4): as long as its create asked for, within
    /// bounds.
    fn wake_timeout(&self) -> Duration {
        let max = self.shared.parts.limits.max_length;
        self.record.timeout.max(WAKE_TIMEOUT).min(max)
    }

    fn save(&mut self, answer: Answer<SavedImage>) {
        self.set_stage(Stage::Snapshotting);
        let (shared, record) = (self.shared.clone(), self.record.clone());
        let work = transition::snapshot::run(shared, record, self.instance.clone());
        self.slot = Some(Slot::new(work, vec![Waiter::Save(answer)]));
    }

    /// Makes the sandbox invisible and starts its end.
    fn end(&mut self, reason: EndReason, flush: bool, waiters: Vec<Waiter>) {
        self.reason = reason;
        self.set_stage(Stage::Ending);
        let flush = flush && self.record.workspace.is_some();
        let (shared, record) = (self.shared.clone(), self.record.clone());
        let work = transition::end::run(shared, record, self.instance.clone(), flush);
        self.slot = Some(Slot::new(work, waiters));
    }

    async fn set_end(
        &mut self,
        timeout: Duration,
        bound: Bound,
    ) -> Result<Arc<Sandbox>, SandboxError> {
        let max = self.shared.parts.limits.max_length;
        let latest = self.record.started_at + max;
        let now = now();
        if now >= latest {
            return Err(SandboxError::LengthUsedUp { id: self.record.id.clone(), max });
        }
        let wanted = now + timeout;
        let end_at = match bound {
            Bound::Exactly => wanted.min(latest),
            Bound::AtLeast => wanted.min(latest).max(self.record.end_at),
        };
        if end_at != self.record.end_at {
            let changed = Record { end_at, ..self.record.clone() };
            self.shared.parts.store.update_sandbox(&changed).await?;
            self.record = changed;
            self.not_before = None;
        }
        Ok(self.update_view())
    }

    /// Takes in how the running transition went, and answers who waited for it; true when the sandbox is gone.
    async fn finish(&mut self, outcome: Outcome) -> bool {
        let waiters = self.slot.take().map(|slot| slot.waiters).unwrap_or_default();
        match outcome {
            Outcome::Created(made) => self.created(made, waiters),
            Outcome::CreateFailed { failure, left } => {
                return self.create_failed(failure, left, waiters).await;
            }
            Outcome::Paused { record, result } => self.paused(record, result, waiters),
            Outcome::Resumed { record, instance, result } => {
                self.resumed(record, instance, result, waiters).await;
            }
            Outcome::Saved { record, result } => {
                self.record = record;
                self.update_view();
                if result.is_ok() {
                    self.tell(SandboxEvent::SnapshotTaken);
                }
                // Nothing joins this transition: one waits for it at most.
                let answer = waiters.into_iter().find_map(|waiter| match waiter {
                    Waiter::Save(answer) => Some(answer),
                    Waiter::Create(_) | Waiter::Done(_) | Waiter::Run(_) => None,
                });
                let unheard = match answer {
                    Some(answer) => answer.send(result).err().and_then(Result::ok),
                    None => result.ok(),
                };
                if let Some(image) = unheard {
                    self.shared.let_go_of_image(&image.template).await;
                }
            }
            Outcome::Recovered { record, instance, lost } => {
                self.record = record;
                self.move_to(instance);
                self.update_view();
                if lost {
                    self.tell(SandboxEvent::MemoryLost);
                }
                self.shared.set_active(&self.record.id, self.state().is_active());
            }
            Outcome::Ended(ended) => return self.ended(ended, waiters).await,
        }
        false
    }

    /// The container has other ports now.
    fn move_to(&mut self, instance: Instance) {
        self.shared.set_address(&self.record.id, instance.address);
        self.instance = instance;
    }

    fn created(&mut self, made: Made, waiters: Vec<Waiter>) {
        // Nobody could tell us if another container than the one that we knew of has ended meanwhile.
        self.look |= made.record.instance != self.record.instance;
        self.record = made.record;
        self.move_to(made.instance);
        let sandbox = self.update_view();
        let template = self.record.template.name.to_string();
        self.tell(SandboxEvent::Created { template, from_pool: made.from_pool });
        for waiter in waiters {
            if let Waiter::Create(answer) = waiter {
                // Also when its client leaves before it takes this: what is dropped ends the sandbox.
                reply(answer, Ok(NewSandbox::new(sandbox.clone(), self.sender.clone())));
            }
        }
    }

    /// True if nothing is left of the sandbox.
    async fn create_failed(
        &mut self,
        failure: SandboxError,
        left: bool,
        waiters: Vec<Waiter>,
    ) -> bool {
        let mut failure = Some(failure);
        for waiter in waiters {
            if let Waiter::Create(answer) = waiter
                && let Some(failure) = failure.take()
                // Nobody may be listening any more; the log has it in any case.
                && let Err(Err(failure)) = answer.send(Err(failure))
            {
                warn!(failure = failure.chain(), "a create that nobody waits for failed");
            }
        }
        if left {
            self.end(EndReason::CreateFailed, false, Vec::new());
        } else {
            self.shared.forget(&self.record.id);
            // A fork's image may have no other user.
            self.shared.release_image(&self.record.template).await;
        }
        !left
    }

    fn paused(
        &mut self,
        record: Record,
        result: Result<PauseKind, SandboxError>,
        waiters: Vec<Waiter>,
    ) {
        self.record = record;
        let result = result.map_err(Arc::new);
        match &result {
            Ok(kind) => {
                self.shared.set_active(&self.record.id, false);
                self.tell(SandboxEvent::Paused { kind: *kind });
            }
            Err(failure) => {
                let reason = failure.chain();
                // An end that does not pause is not put off.
                if matches!(self.record.lifecycle.on_timeout, OnTimeout::Pause(_)) {
                    self.not_before = Some(Instant::now() + PAUSE_AGAIN);
                }
                self.look = true;
                self.tell(SandboxEvent::PauseFailed { reason });
            }
        }
        match self.record.stage {
            // A stopped container has no ports; a frozen one keeps its own.
            Stage::Paused(PauseKind::Filesystem) => {
                let state = ContainerState::Stopped;
                let instance = Instance { state, address: None, ..self.instance.clone() };
                self.move_to(instance);
            }
            Stage::Paused(PauseKind::Full) => self.instance.state = ContainerState::Frozen,
            _ => {}
        }
        self.update_view();
        for waiter in waiters {
            if let Waiter::Done(answer) = waiter {
                reply(answer, result.clone().map(drop).map_err(SandboxError::Shared));
            }
        }
    }

    async fn resumed(
        &mut self,
        record: Record,
        instance: Instance,
        result: Result<PauseKind, SandboxError>,
        waiters: Vec<Waiter>,
    ) {
        let had_memory = self.record.stage == Stage::Resuming(PauseKind::Full);
        self.record = record;
        self.move_to(instance);
        self.not_before = None;
        self.update_view();
        let result = result.map_err(Arc::new);
        match &result {
            Ok(kind) => {
                self.tell(SandboxEvent::Resumed { kind: *kind });
            }
            Err(failure) => {
                warn!(reason = failure.chain(), "the sandbox could not be resumed");
                if had_memory && self.record.stage == Stage::Paused(PauseKind::Filesystem) {
                    self.tell(SandboxEvent::MemoryLost);
                }
                self.shared.set_active(&self.record.id, false);
                self.look = true;
            }
        }
        for waiter in waiters {
            let Waiter::Run(run) = waiter else { continue };
            let connected = match &result {
                // Who joined may have asked for more time.
                Ok(_)
                    if run.by_traffic
                        || self.record.started_at + run.timeout <= self.record.end_at =>
                {
                    Ok(self.view.borrow().clone())
                }
                Ok(_) => self.set_end(run.timeout, Bound::AtLeast).await,
                Err(failure) => Err(SandboxError::Shared(failure.clone())),
            };
            reply(run.answer, connected.map(|sandbox| Connected { sandbox, resumed: true }));
        }
    }

    async fn ended(&mut self, ended: Ended, waiters: Vec<Waiter>) -> bool {
        if let Err(transition::EndFailure::Engine(reason)) = &ended {
            error!(%reason, "the sandbox could not be removed; trying again");
        }
        let gone = !matches!(ended, Err(transition::EndFailure::Engine(_)));
        if gone {
            // The record last: while it is there, a crash leads to another removal, which does no harm.
            if let Err(error) = self.shared.parts.store.remove_sandbox(&self.record.id).await {
                error!(%error, "the sandbox is gone, but not its record");
            }
            self.shared.forget(&self.record.id);
            self.shared.release_image(&self.record.template).await;
            self.tell(SandboxEvent::Ended { reason: self.reason });
        }
        for waiter in waiters {
            if let Waiter::Done(answer) = waiter {
                let failed = |failure: transition::EndFailure| {
                    failure.told(&self.record.id, self.shared.parts.limits.flush)
                };
                reply(answer, ended.clone().map_err(failed));
            }
        }
        if !gone {
            let (shared, record) = (self.shared.clone(), self.record.clone());
            let work = transition::end::retry(shared, record);
            self.slot = Some(Slot::new(work, Vec::new()));
        }
        gone
    }

    /// Others need the memory of a sandbox that is frozen. Everything of it is in the store since its pause.
    fn drop_memory(&mut self) {
        if self.slot.is_some() || self.record.stage != Stage::Paused(PauseKind::Full) {
            return;
        }
        let (shared, record) = (self.shared.clone(), self.record.clone());
        let work = transition::recover::drop_memory(shared, record, self.instance.clone());
        self.slot = Some(Slot::recovery(work));
    }

    /// Compares the sandbox with its container: it may have ended by itself, or somebody may have done
    /// something to it with the engine's own tools.
    async fn look_at_container(&mut self) {
        let runtime = self.shared.parts.runtime.clone();
        let looked = tokio::time::timeout(LOOK_LIMIT, runtime.inspect(&self.record.instance)).await;
        let found = match looked {
            Ok(Ok(found)) => found.map(|instance| instance.state),
            Ok(Err(error)) => return warn!(%error, "cannot see whether the container runs"),
            Err(_) => {
                return warn!(limit = ?LOOK_LIMIT, "the engine does not say whether the container runs");
            }
        };
        match (self.record.stage, found) {
            (Stage::Running, None | Some(ContainerState::Stopped)) => {
                warn!("the container ended by itself");
                self.end(EndReason::Died, false, Vec::new());
            }
            (Stage::Paused(_), None) => {
                warn!("the container of the paused sandbox was removed");
                self.end(EndReason::Died, false, Vec::new());
            }
            (Stage::Running, Some(ContainerState::Frozen))
            | (
                Stage::Paused(PauseKind::Full),
                Some(ContainerState::Stopped | ContainerState::Running),
            )
            | (
                Stage::Paused(PauseKind::Filesystem),
                Some(ContainerState::Running | ContainerState::Frozen),
            ) => {
                let (shared, record) = (self.shared.clone(), self.record.clone());
                let found = found.unwrap_or(ContainerState::Stopped);
                let work = transition::recover::run(shared, record, self.instance.clone(), found);
                self.slot = Some(Slot::recovery(work));
            }
            // All is as it should be, or a transition has begun.
            _ => {}
        }
    }
}

async fn ended(slot: &mut Option<Slot>) -> Outcome {
    match slot {
        Some(slot) => (&mut slot.work).await,
        None => pending().await,
    }
}

/// Sleeps until a wall-clock time, and at least until `not_before`. Wakes once a minute to look at the clock again, because it can be
/// set while we sleep.
async fn until(due: OffsetDateTime, not_before: Option<Instant>) {
    if let Some(at) = not_before {
        tokio::time::sleep_until(at).await;
    }
    loop {
        let left = due - now();
        let Ok(left) = Duration::try_from(left) else {
            return;
        };
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left.min(Duration::from_secs(60))).await;
    }
}
