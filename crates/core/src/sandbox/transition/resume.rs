//! The return of a paused sandbox (design 5.1): thaw its container, or start it again and claim it with the stored
//! values.
//!
//! A start after a crash lets a thawed sandbox run, and ends the processes of one that was being started.

use std::sync::Arc;
use std::time::Duration;

use sandyard_types::PauseKind;
use tracing::warn;

use super::{TransitionOutcome, claim_of, not_noted};
use crate::scheduler::SchedulerShared;
use crate::store::{SandboxRecord, Stage};
use crate::{ContainerState, Instance, SandboxError, now};

pub(crate) async fn run(
    shared: Arc<SchedulerShared>,
    mut record: SandboxRecord,
    mut instance: Instance,
    kind: PauseKind,
    memory: bool,
    timeout: Duration,
) -> TransitionOutcome {
    let before = record.clone();
    let mut from = if memory { kind } else { PauseKind::Filesystem };
    let mut reached = Reached::Nothing;
    let result =
        resume(&shared, &mut record, &mut instance, kind, &mut from, &mut reached, timeout).await;
    if result.is_err() {
        let kept = undo(&shared, &record, &mut instance, kind, reached).await;
        record = SandboxRecord { stage: Stage::Paused(kept), ..before };
        if let Err(error) = shared.parts.store.update_sandbox(&record).await {
            warn!(%error, "cannot note that the sandbox is still paused");
        }
    }
    TransitionOutcome::Resumed { record, instance, result: result.map(|()| from) }
}

/// How far a resume has come: what there is to undo.
#[derive(Clone, Copy)]
enum Reached {
    /// The container is as it was.
    Nothing,
    /// It may be frozen, or go on with what is halted in it.
    Thawing,
    /// All of it may go on.
    Thawed,
    /// The saved memory is given up.
    Starting,
}

async fn resume(
    shared: &Arc<SchedulerShared>,
    record: &mut SandboxRecord,
    instance: &mut Instance,
    kind: PauseKind,
    from: &mut PauseKind,
    reached: &mut Reached,
    timeout: Duration,
) -> Result<(), SandboxError> {
    let parts = &shared.parts;
    let id = record.id.clone();
    let failed = |source| SandboxError::Runtime { op: "resume", id: id.clone(), source };
    let executor = |source| SandboxError::NotResumed { id: id.clone(), source };
    let found = parts.runtime.inspect(&record.instance).await.map_err(failed)?;
    let Some(found) = found else {
        return Err(SandboxError::ContainerGone(id));
    };
    // The memory is gone if the engine or somebody has stopped the container meanwhile.
    *from = if found.state == ContainerState::Stopped { PauseKind::Filesystem } else { *from };
    record.stage = Stage::Resuming(*from);
    let mut noted = record.clone();
    if *from == PauseKind::Full {
        // A start after a crash lets it run: then it must not be over at once.
        noted.started_at = now();
        noted.end_at = noted.started_at + timeout;
    }
    parts.store.update_sandbox(&noted).await.map_err(|source| not_noted(record, source))?;
    match *from {
        PauseKind::Full => {
            *reached = Reached::Thawing;
            parts.runtime.thaw(&record.instance).await.map_err(failed)?;
            *reached = Reached::Thawed;
            if record.workspace.is_some() {
                parts.executor.resume(instance).await.map_err(executor)?;
            }
            instance.state = ContainerState::Running;
        }
        PauseKind::Filesystem => {
            *reached = Reached::Starting;
            if kind == PauseKind::Full {
                // Asked for without the memory that there is.
                parts.runtime.halt(&record.instance).await.map_err(failed)?;
            }
            *instance = parts.runtime.start(&record.instance).await.map_err(failed)?;
            // The key is good from the container's address only.
            shared.set_address(&record.id, instance.address);
            parts.executor.claim(instance, &claim_of(record)).await.map_err(executor)?;
        }
    }
    record.stage = Stage::Running;
    record.started_at = now();
    record.end_at = record.started_at + timeout;
    parts.store.update_sandbox(record).await.map_err(|source| not_noted(record, source))
}

/// Makes it paused again. Returns what is kept now.
async fn undo(
    shared: &Arc<SchedulerShared>,
    record: &SandboxRecord,
    instance: &mut Instance,
    kind: PauseKind,
    reached: Reached,
) -> PauseKind {
    let runtime = &shared.parts.runtime;
    match reached {
        Reached::Nothing => return kind,
        Reached::Thawing => {
            instance.state = ContainerState::Frozen;
            if let Err(error) = runtime.freeze(&record.instance).await {
                // The look that follows finds out whether it goes on.
                warn!(%error, "cannot freeze a container that could not be thawed");
            }
            return PauseKind::Full;
        }
        // `init` may have let it go on, and the workspace may have been written to.
        Reached::Thawed => {
            if super::pause::drain(shared, record, instance).await.is_ok()
                && runtime.freeze(&record.instance).await.is_ok()
            {
                instance.state = ContainerState::Frozen;
                return PauseKind::Full;
            }
        }
        Reached::Starting => {}
    }
    if let Err(error) = runtime.halt(&record.instance).await {
        warn!(%error, "cannot stop the container of a sandbox that could not be resumed");
    }
    (instance.state, instance.address) = (ContainerState::Stopped, None);
    PauseKind::Filesystem
}
