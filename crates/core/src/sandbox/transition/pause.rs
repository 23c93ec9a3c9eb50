//! The pause of a sandbox (design 5.1).
//!
//! Its processes are halted and its workspace is brought into the store first; only when that is complete is
//! the container frozen, or its processes ended. So nothing can be lost later, and a pause that fails leaves the
//! sandbox running as before.
//!
//! A start after a crash lets a sandbox go on whose pause was half-done, unless its processes are gone already.

use std::sync::Arc;
use std::time::Duration;

use sandyard_types::PauseKind;
use tracing::warn;

use super::{RETRY, TransitionOutcome, let_go_on, not_noted};
use crate::scheduler::SchedulerShared;
use crate::store::{SandboxRecord, Stage};
use crate::{ContainerState, ExecutorError, Flushed, Instance, RuntimeError, SandboxError, now};

/// How long a daemon that must be healthy may take to say so.
const HEALTH_LIMIT: Duration = Duration::from_secs(2);

pub(crate) async fn run(
    shared: Arc<SchedulerShared>,
    mut record: SandboxRecord,
    instance: Instance,
    kind: PauseKind,
    require_healthy: bool,
) -> TransitionOutcome {
    if require_healthy && let Err(unhealthy) = check_health(&shared, &record, &instance).await {
        record.stage = Stage::Running;
        return TransitionOutcome::Paused { record, result: Err(unhealthy) };
    }
    record.stage = Stage::Pausing(kind);
    let end_at = record.end_at;
    let result = pause(&shared, &mut record, &instance, kind).await;
    if result.is_err() && record.stage != Stage::Paused(kind) {
        let_go_on(&shared, &record, &instance).await;
        (record.stage, record.end_at) = (Stage::Running, end_at);
        if let Err(error) = shared.parts.store.update_sandbox(&record).await {
            // A start after a crash would find the pause half-done, and let the sandbox go on again.
            warn!(%error, "cannot note that the sandbox runs on");
        }
    }
    TransitionOutcome::Paused { record, result }
}

/// A pause that asks for a daemon that answers.
async fn check_health(
    shared: &Arc<SchedulerShared>,
    record: &SandboxRecord,
    instance: &Instance,
) -> Result<(), SandboxError> {
    let answered = tokio::time::timeout(HEALTH_LIMIT, shared.parts.executor.ready(instance)).await;
    let late = || ExecutorError::Unreachable(format!("no answer in {HEALTH_LIMIT:?}"));
    let answered = answered.unwrap_or_else(|_| Err(late()));
    answered.map_err(|source| SandboxError::NotHalted { id: record.id.clone(), source })
}

async fn pause(
    shared: &Arc<SchedulerShared>,
    record: &mut SandboxRecord,
    instance: &Instance,
    kind: PauseKind,
) -> Result<PauseKind, SandboxError> {
    let parts = &shared.parts;
    parts.store.update_sandbox(record).await.map_err(|source| not_noted(record, source))?;
    drain(shared, record, instance).await?;
    let failed = |source| SandboxError::Runtime { op: "pause", id: record.id.clone(), source };
    match kind {
        PauseKind::Full => parts.runtime.freeze(&record.instance).await.map_err(failed)?,
        PauseKind::Filesystem => halt(shared, record).await.map_err(failed)?,
    }
    record.stage = Stage::Paused(kind);
    record.end_at = now();
    let noted = parts.store.update_sandbox(record).await;
    if let (Err(error), PauseKind::Full) = (&noted, kind) {
        // It can go on as if nothing had been.
        warn!(%error, "cannot note that the sandbox is paused");
        record.stage = Stage::Pausing(kind);
    }
    match (noted, kind) {
        // Its processes are gone: it is paused, and a start after a crash finds that out.
        (Err(error), PauseKind::Filesystem) => {
            warn!(%error, "cannot note that the sandbox is paused");
            Ok(kind)
        }
        (noted, _) => noted.map(|()| kind).map_err(|source| not_noted(record, source)),
    }
}

/// Ends all processes. A halt that fails may have done so all the same: then there is nothing to go back to, and it
/// counts.
async fn halt(shared: &Arc<SchedulerShared>, record: &SandboxRecord) -> Result<(), RuntimeError> {
    let runtime = &shared.parts.runtime;
    let Err(failure) = runtime.halt(&record.instance).await else { return Ok(()) };
    loop {
        match runtime.inspect(&record.instance).await {
            Ok(Some(found)) if found.state == ContainerState::Stopped => {
                warn!(%failure, "the container is stopped, though stopping it failed");
                return Ok(());
            }
            Ok(_) => return Err(failure),
            Err(error) => {
                warn!(%error, "cannot see whether the container is stopped; trying again");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

/// Halts the user's processes of a sandbox with a workspace, and brings everything into the store.
pub(super) async fn drain(
    shared: &Arc<SchedulerShared>,
    record: &SandboxRecord,
    instance: &Instance,
) -> Result<(), SandboxError> {
    if record.workspace.is_none() {
        return Ok(());
    }
    let limit = shared.parts.limits.flush;
    let id = record.id.clone();
    match shared.parts.executor.drain(instance, limit).await {
        Ok(Flushed::Complete) => Ok(()),
        Ok(Flushed::Incomplete { bytes_left }) => {
            Err(SandboxError::NotFlushed { id, limit, bytes_left })
        }
        Err(source) => Err(SandboxError::NotHalted { id, source }),
    }
}
