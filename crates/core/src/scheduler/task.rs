//! One task per sandbox: owns its record, applies the life-cycle table, ends it when it is due.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use sandyard_types::Template;
use time::OffsetDateTime;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{error, info, warn};

use super::{Live, Sandbox, SandboxError, Shared};
use crate::store::{Record, Stage};
use crate::time_text::now;
use crate::{ExecutorError, Flushed, Instance, Op, Plan, State};

type Answer<T> = oneshot::Sender<Result<T, SandboxError>>;

/// What a sandbox's task is asked.
pub(super) enum Request {
    Kill {
        answer: Answer<()>,
    },
    SetTimeout {
        timeout: Duration,
        answer: Answer<()>,
    },
    Extend {
        op: Op,
        timeout: Duration,
        answer: Answer<Arc<Sandbox>>,
    },
    /// The sandbox uses more than it may, or than there is; the text says of what.
    Exceeded(String),
    /// The engine says that the container has ended.
    Died,
}

/// Requests that may wait for a task; a full queue makes callers wait.
const QUEUE: usize = 64;

/// Between two tries to end a sandbox that the engine did not let go.
pub(super) const RETRY: Duration = Duration::from_secs(2);

/// What a finished end says to those who asked for it.
type Ended = Result<(), KillFailure>;

/// A failure that can be told to several callers.
#[derive(Clone, Debug)]
enum KillFailure {
    /// Everything is gone but for bytes that did not reach the store.
    DataLeft(Option<u64>),
    /// The engine did not remove the container; it will be tried again.
    Engine(String),
}

pub(super) struct SandboxTask {
    shared: Arc<Shared>,
    record: Record,
    template: Arc<Template>,
    instance: Instance,
    state: State,
    requests: mpsc::Receiver<Request>,
    sender: mpsc::Sender<Request>,
    view: watch::Sender<Arc<Sandbox>>,
    /// Whether the container has ended by itself, so that there is nobody to ask for a flush.
    died: bool,
    /// Who waits for the end.
    killers: Vec<Answer<()>>,
}

impl SandboxTask {
    pub(super) fn new(shared: Arc<Shared>, record: Record, instance: Instance) -> Self {
        let (sender, requests) = mpsc::channel(QUEUE);
        let template = Arc::new(record.template.clone());
        let state = if record.stage == Stage::Killing { State::Killing } else { State::Running };
        let view = watch::Sender::new(Arc::new(record.view(&template, &instance, state)));
        Self {
            shared,
            record,
            template,
            instance,
            state,
            requests,
            sender,
            view,
            died: false,
            killers: Vec::new(),
        }
    }

    /// Makes the sandbox visible to everybody.
    pub(super) fn publish(&self) -> Arc<Sandbox> {
        let live = Live { requests: self.sender.clone(), view: self.view.subscribe() };
        if let Some(entry) = self.shared.entries().get_mut(&self.record.id) {
            entry.live = Some(live);
        }
        self.view.borrow().clone()
    }

    fn update_view(&self) -> Arc<Sandbox> {
        let view = Arc::new(self.record.view(&self.template, &self.instance, self.state));
        self.view.send_replace(view.clone());
        view
    }

    /// Serves the sandbox until it is gone.
    pub(super) async fn run(self) {
        self.serve(false).await;
    }

    /// Ends the sandbox at once: nobody knows of it, or its end had begun before.
    pub(super) async fn run_abandoned(self) {
        self.serve(true).await;
    }

    async fn serve(mut self, end_now: bool) {
        let mut end: Option<BoxFuture<'static, Ended>> = None;
        if end_now {
            end = Some(self.begin_end().await);
        }
        loop {
            let due = self.record.end_at;
            tokio::select! {
                // The end first: what it answers must not be overtaken by a new request.
                biased;
                ended = poll_end(&mut end) => {
                    if self.finish_end(ended).await {
                        return;
                    }
                    end = Some(self.retry_end());
                }
                request = self.requests.recv() => match request {
                    Some(request) => {
                        if self.handle(request).await && end.is_none() {
                            end = Some(self.begin_end().await);
                        }
                    }
                    // Never: the task holds a sender itself.
                    None => return,
                },
                () = until(due), if end.is_none() => {
                    info!("expired");
                    end = Some(self.begin_end().await);
                }
            }
        }
    }

    /// Handles one request; true if the sandbox must end now.
    async fn handle(&mut self, request: Request) -> bool {
        match request {
            Request::Kill { answer } => match self.state.plan(Op::Kill) {
                Plan::Begin | Plan::Join => {
                    self.killers.push(answer);
                    true
                }
                plan => {
                    refuse(answer, self.refusal(Op::Kill, plan));
                    false
                }
            },
            Request::SetTimeout { timeout, answer } => {
                let result = match self.state.plan(Op::Change) {
                    Plan::Begin => self.change_end(timeout, Bound::Exactly).await.map(|_| ()),
                    plan => Err(self.refusal(Op::Change, plan)),
                };
                reply(answer, result);
                false
            }
            Request::Extend { op, timeout, answer } => {
                let result = match self.state.plan(op) {
                    Plan::Begin => self.change_end(timeout, Bound::AtLeast).await,
                    plan => Err(self.refusal(op, plan)),
                };
                reply(answer, result);
                false
            }
            Request::Exceeded(what) => match self.state.plan(Op::Kill) {
                Plan::Begin => {
                    warn!(reason = what, "ending the sandbox");
                    true
                }
                // It ends already, or cannot end now: whoever watches comes again.
                Plan::Join | Plan::Wait | Plan::Conflict | Plan::NotFound => false,
            },
            Request::Died => {
                if !self.died && self.state != State::Killing {
                    warn!("the container ended by itself");
                }
                self.died = true;
                true
            }
        }
    }

    fn refusal(&self, op: Op, plan: Plan) -> SandboxError {
        let id = self.record.id.clone();
        match plan {
            Plan::NotFound => SandboxError::NotFound(id),
            Plan::Begin | Plan::Join | Plan::Wait | Plan::Conflict => {
                SandboxError::Conflict { op, id, state: self.state }
            }
        }
    }

    async fn change_end(
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
            self.shared.parts.store.set_end(&self.record.id, end_at).await?;
            self.record.end_at = end_at;
        }
        Ok(self.update_view())
    }

    /// Makes the sandbox invisible and starts its end.
    async fn begin_end(&mut self) -> BoxFuture<'static, Ended> {
        self.state = State::Killing;
        self.update_view();
        if let Err(error) = self.shared.parts.store.set_killing(&self.record.id).await {
            // The end goes on: if the server dies now, the next start finds the sandbox running, or
            // without a container, and both are handled.
            error!(%error, "cannot note that the sandbox ends");
        }
        let flush = self.record.workspace.is_some() && !self.died;
        Box::pin(end(self.shared.clone(), self.instance.clone(), flush, Duration::ZERO))
    }

    /// Tells everybody how the end went; true when the sandbox is gone.
    async fn finish_end(&mut self, ended: Ended) -> bool {
        if let Err(KillFailure::Engine(reason)) = &ended {
            error!(%reason, "the sandbox could not be removed; trying again");
            for answer in std::mem::take(&mut self.killers) {
                refuse(answer, self.kill_error(KillFailure::Engine(reason.clone())));
            }
            return false;
        }
        // The record last: while it is there, a crash leads to another removal, which does no harm.
        if let Err(error) = self.shared.parts.store.remove(&self.record.id).await {
            error!(%error, "the sandbox is gone, but not its record");
        }
        self.shared.forget(&self.record.id);
        info!("sandbox ended");
        for answer in std::mem::take(&mut self.killers) {
            reply(answer, ended.clone().map_err(|failure| self.kill_error(failure)));
        }
        true
    }

    /// Tries again to remove the container, later.
    fn retry_end(&self) -> BoxFuture<'static, Ended> {
        Box::pin(end(self.shared.clone(), self.instance.clone(), false, RETRY))
    }

    fn kill_error(&self, failure: KillFailure) -> SandboxError {
        let id = self.record.id.clone();
        match failure {
            KillFailure::DataLeft(bytes_left) => {
                SandboxError::DataLeft { id, limit: self.shared.parts.limits.flush, bytes_left }
            }
            KillFailure::Engine(reason) => SandboxError::Runtime {
                op: "remove",
                id,
                source: crate::RuntimeError::Failed { call: "remove the container", reason },
            },
        }
    }
}

/// How a new end time relates to the wanted one.
#[derive(Clone, Copy)]
enum Bound {
    Exactly,
    AtLeast,
}

/// The end of a sandbox: flush, then removal, tried until the engine has done it once.
async fn end(shared: Arc<Shared>, instance: Instance, flush: bool, delay: Duration) -> Ended {
    let parts = &shared.parts;
    tokio::time::sleep(delay).await;
    let mut left = None;
    if flush {
        // Nothing in a frozen container answers. Both at once, for nearly none is.
        let (stopped, thawed) = tokio::join!(
            parts.executor.stop(&instance, parts.limits.flush),
            parts.runtime.thaw(&instance.id),
        );
        if let Err(error) = thawed {
            warn!(%error, "cannot see to it that the container is not frozen");
        }
        left = match stopped {
            Ok(Flushed::Complete) => None,
            Ok(Flushed::Incomplete { bytes_left }) => Some(bytes_left),
            Err(error) => stop_by_engine(&shared, &instance, &error).await,
        };
        if let Some(bytes) = left {
            error!(?bytes, limit = ?parts.limits.flush, "the workspace was not wholly in the store");
        }
    }
    match parts.runtime.delete(&instance.id).await {
        Ok(()) => left.map_or(Ok(()), |bytes| Err(KillFailure::DataLeft(bytes))),
        Err(error) => Err(KillFailure::Engine(error.to_string())),
    }
}

/// `init` does not answer calls: its TERM handler does the same barrier. What it left cannot be known.
async fn stop_by_engine(
    shared: &Shared,
    instance: &Instance,
    error: &ExecutorError,
) -> Option<Option<u64>> {
    warn!(%error, "the executor does not take the stop call; asking through the engine");
    let flush = shared.parts.limits.flush.as_secs();
    // 5 s for the user's processes and a margin come on top of the flush (design 6.1 (9)).
    let limit = u32::try_from(flush).unwrap_or(u32::MAX).saturating_add(10);
    match shared.parts.runtime.stop(&instance.id, limit).await {
        Ok(()) => None,
        Err(error) => {
            error!(%error, "the engine could not stop the container either");
            Some(None)
        }
    }
}

async fn poll_end(end: &mut Option<BoxFuture<'static, Ended>>) -> Ended {
    match end {
        Some(running) => {
            let ended = running.await;
            *end = None;
            ended
        }
        None => pending().await,
    }
}

/// Sleeps until a wall-clock time. Wakes once a minute to look at the clock again, because it can be
/// set while we sleep.
async fn until(due: OffsetDateTime) {
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

fn reply<T>(answer: Answer<T>, result: Result<T, SandboxError>) {
    // A caller that has gone away needs no answer.
    drop(answer.send(result));
}

fn refuse<T>(answer: Answer<T>, error: SandboxError) {
    reply(answer, Err(error));
}
