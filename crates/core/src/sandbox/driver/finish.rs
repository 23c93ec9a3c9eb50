//! What the end of a transition changes, and what those who waited for it are answered.

use std::sync::Arc;
use std::time::Duration;

use sandyard_types::{OnTimeout, PauseKind};
use tokio::time::Instant;
use tracing::{error, warn};

use super::{SandboxDriver, Slot, Waiter};
use crate::events::{EndReason, SandboxEvent};
use crate::sandbox::request::reply;
use crate::sandbox::transition::{self, EndResult, Made, TransitionOutcome};
use crate::sandbox::{Bound, Connected};
use crate::scheduler::NewSandbox;
use crate::store::{SandboxRecord, Stage};
use crate::{ContainerState, Instance, SandboxError};

/// After a pause at the end time that failed, until the next try.
const PAUSE_AGAIN: Duration = Duration::from_secs(10);

impl SandboxDriver {
    /// Takes in how the running transition went, and answers who waited for it; true when the sandbox is gone.
    pub(super) async fn finish(&mut self, outcome: TransitionOutcome) -> bool {
        let waiters = self.slot.take().map(|slot| slot.waiters).unwrap_or_default();
        match outcome {
            TransitionOutcome::Created(made) => self.created(made, waiters),
            TransitionOutcome::CreateFailed { failure, left } => {
                return self.create_failed(failure, left, waiters).await;
            }
            TransitionOutcome::Paused { record, result } => self.paused(record, result, waiters),
            TransitionOutcome::Resumed { record, instance, result } => {
                self.resumed(record, instance, result, waiters).await;
            }
            TransitionOutcome::Saved { record, result } => {
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
            TransitionOutcome::Recovered { record, instance, lost } => {
                self.record = record;
                self.move_to(instance);
                self.update_view();
                if lost {
                    self.tell(SandboxEvent::MemoryLost);
                }
                self.shared.set_active(&self.record.id, self.state().is_active());
            }
            TransitionOutcome::Ended(ended) => return self.ended(ended, waiters).await,
        }
        false
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
        record: SandboxRecord,
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
        record: SandboxRecord,
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

    async fn ended(&mut self, ended: EndResult, waiters: Vec<Waiter>) -> bool {
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
}
