//! How transitions are started.

use std::time::Duration;

use sandyard_types::{OnTimeout, PauseKind};
use tracing::warn;

use super::{SandboxDriver, Slot, WAKE_TIMEOUT, Waiter};
use crate::events::EndReason;
use crate::sandbox::request::reply;
use crate::sandbox::{Answer, RunRequest, SavedImage, transition};
use crate::store::Stage;
use crate::{ContainerState, SandboxError};

/// The longest wait for the engine when a container is looked at. The next look comes by itself.
const LOOK_LIMIT: Duration = Duration::from_secs(10);

impl SandboxDriver {
    pub(super) fn expire(&mut self) {
        match self.record.lifecycle.on_timeout {
            OnTimeout::Kill => {
                self.end(EndReason::Expired, true, Vec::new());
            }
            OnTimeout::Pause(kind) => {
                self.pause(kind, false, Vec::new());
            }
        }
    }

    pub(super) fn pause(&mut self, kind: PauseKind, require_healthy: bool, waiters: Vec<Waiter>) {
        self.set_stage(Stage::Pausing(kind));
        let (shared, record) = (self.shared.clone(), self.record.clone());
        let instance = self.instance.clone();
        let work = transition::pause::run(shared, record, instance, kind, require_healthy);
        self.slot = Some(Slot::new(work, waiters));
    }

    pub(super) fn resume(&mut self, run: RunRequest) {
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

    pub(super) fn save(&mut self, answer: Answer<SavedImage>) {
        self.set_stage(Stage::Snapshotting);
        let (shared, record) = (self.shared.clone(), self.record.clone());
        let work = transition::snapshot::run(shared, record, self.instance.clone());
        self.slot = Some(Slot::new(work, vec![Waiter::Save(answer)]));
    }

    /// Makes the sandbox invisible and starts its end.
    pub(super) fn end(&mut self, reason: EndReason, flush: bool, waiters: Vec<Waiter>) {
        self.reason = reason;
        self.set_stage(Stage::Ending);
        let flush = flush && self.record.workspace.is_some();
        let (shared, record) = (self.shared.clone(), self.record.clone());
        let work = transition::end::run(shared, record, self.instance.clone(), flush);
        self.slot = Some(Slot::new(work, waiters));
    }

    /// Others need the memory of a sandbox that is frozen. Everything of it is in the store since its pause.
    pub(super) fn drop_memory(&mut self) {
        if self.slot.is_some() || self.record.stage != Stage::Paused(PauseKind::Full) {
            return;
        }
        let (shared, record) = (self.shared.clone(), self.record.clone());
        let work = transition::recover::drop_memory(shared, record, self.instance.clone());
        self.slot = Some(Slot::recovery(work));
    }

    /// Compares the sandbox with its container: it may have ended by itself, or somebody may have done
    /// something to it with the engine's own tools.
    pub(super) async fn look_at_container(&mut self) {
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
