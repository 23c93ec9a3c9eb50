//! The driver: one background task for each sandbox, from the moment its create is accepted until it is gone. It
//! owns the record and applies the life-cycle table. One transition runs at a time; a request for the same one
//! joins it, and what the table lets wait is served when it has ended.

mod finish;
mod start;

use std::collections::VecDeque;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use time::OffsetDateTime;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::request::reply;
use super::transition::{self, TransitionOutcome};
use super::{
    Answer, Bound, Connected, Request, RunRequest, Sandbox, SandboxState, SavedImage,
    TransitionPlan,
};
use crate::events::{EndReason, SandboxEvent};
use crate::pool::Warm;
use crate::scheduler::{NewSandbox, SandboxEntry, SchedulerShared};
use crate::store::{SandboxRecord, Stage};
use crate::{ContainerState, Instance, SandboxError, now};

/// Requests that may wait for a driver; a full queue makes callers wait.
const QUEUE: usize = 64;

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
    work: BoxFuture<'static, TransitionOutcome>,
    waiters: Vec<Waiter>,
    /// Whether it sets right what was found. What the sandbox is then is not known yet, so every request waits.
    recovers: bool,
}

impl Slot {
    fn new(
        work: impl Future<Output = TransitionOutcome> + Send + 'static,
        waiters: Vec<Waiter>,
    ) -> Self {
        Self { work: Box::pin(work), waiters, recovers: false }
    }

    fn recovery(work: impl Future<Output = TransitionOutcome> + Send + 'static) -> Self {
        Self { recovers: true, ..Self::new(work, Vec::new()) }
    }
}

pub(crate) struct SandboxDriver {
    shared: Arc<SchedulerShared>,
    record: SandboxRecord,
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

impl SandboxDriver {
    pub(crate) fn new(
        shared: Arc<SchedulerShared>,
        record: SandboxRecord,
        instance: Instance,
    ) -> Self {
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
    pub(crate) fn entry(&self) -> SandboxEntry {
        SandboxEntry {
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

    fn state(&self) -> SandboxState {
        self.record.stage.state()
    }

    async fn serve(mut self) {
        loop {
            let (due, not_before) = (self.record.end_at, self.not_before);
            let expires = self.slot.is_none() && self.state() == SandboxState::Running;
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
        match if recovers { TransitionPlan::Wait } else { self.state().plan(op) } {
            TransitionPlan::Begin => self.begin(request).await,
            TransitionPlan::Join => self.join(request),
            TransitionPlan::Wait => self.waiting.push_back(request),
            TransitionPlan::NotFound => {
                let id = self.record.id.clone();
                request.refuse(match self.state() {
                    SandboxState::Paused => SandboxError::Paused { op, id },
                    _ => SandboxError::NotFound(id),
                });
            }
            TransitionPlan::Conflict => {
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
                let flush = self.state() == SandboxState::Running;
                self.end(reason, flush, vec![Waiter::Done(answer)]);
            }
            Request::SetEnd { timeout, bound, answer } => {
                reply(answer, self.set_end(timeout, bound).await.map(drop));
            }
            Request::Save { answer, .. } => self.save(answer),
            Request::Run(run) if self.state() == SandboxState::Running => {
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
            let changed = SandboxRecord { end_at, ..self.record.clone() };
            self.shared.parts.store.update_sandbox(&changed).await?;
            self.record = changed;
            self.not_before = None;
        }
        Ok(self.update_view())
    }

    /// The container has other ports now.
    fn move_to(&mut self, instance: Instance) {
        self.shared.set_address(&self.record.id, instance.address);
        self.instance = instance;
    }
}

async fn ended(slot: &mut Option<Slot>) -> TransitionOutcome {
    match slot {
        Some(slot) => (&mut slot.work).await,
        None => pending().await,
    }
}

/// Sleeps until a wall-clock time, and at least until `not_before`. Wakes once a minute to look at the clock again,
/// because it can be set while we sleep.
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
