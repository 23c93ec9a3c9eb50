//! A sandbox of an earlier run of the server, or one whose container somebody touched: what is half-done is finished
//! or undone, so that it is in one of the states that the life-cycle table allows to stay in.

use std::sync::Arc;

use sandyard_types::PauseKind;
use tracing::{info, warn};

use super::{RETRY, TransitionOutcome, let_go_on};
use crate::sandbox::driver::WAKE_TIMEOUT;
use crate::scheduler::SchedulerShared;
use crate::store::{SandboxRecord, Stage};
use crate::{ContainerState, Instance, now};

pub(crate) async fn run(
    shared: Arc<SchedulerShared>,
    mut record: SandboxRecord,
    mut instance: Instance,
    found: ContainerState,
) -> TransitionOutcome {
    use ContainerState::{Frozen, Running, Stopped};
    use PauseKind::{Filesystem, Full};
    let stage = match (record.stage, found) {
        (Stage::Creating | Stage::Ending, _) | (Stage::Running, Running | Stopped) => record.stage,
        // Somebody froze it while the server was away: nobody else will let it go on.
        (Stage::Running, Frozen) => {
            let_go_on(&shared, &record, &instance).await;
            Stage::Running
        }
        (Stage::Snapshotting | Stage::Pausing(_) | Stage::Resuming(Full), Running | Frozen) => {
            info!("something that was interrupted is undone: the sandbox goes on");
            let_go_on(&shared, &record, &instance).await;
            Stage::Running
        }
        (Stage::Paused(Full), Frozen) => Stage::Paused(Full),
        (Stage::Paused(Full), Running) => freeze_again(&shared, &record, &instance).await,
        // What is written in the workspace of one that was being started is not promised to anybody.
        (Stage::Resuming(Filesystem) | Stage::Paused(Filesystem), Running | Frozen) => {
            halt(&shared, &record).await;
            Stage::Paused(Filesystem)
        }
        (
            Stage::Snapshotting | Stage::Pausing(_) | Stage::Paused(_) | Stage::Resuming(_),
            Stopped,
        ) => Stage::Paused(Filesystem),
    };
    let lost = record.stage == Stage::Paused(Full) && stage == Stage::Paused(Filesystem);
    if lost {
        warn!("the memory of the paused sandbox is gone; its files are there");
    }
    instance.state = match stage {
        Stage::Paused(Full) => Frozen,
        Stage::Paused(Filesystem) => Stopped,
        _ => Running,
    };
    if instance.state == Stopped {
        instance.address = None;
    }
    if stage != record.stage {
        let ran = matches!(record.stage, Stage::Pausing(_) | Stage::Resuming(Full));
        if ran && matches!(stage, Stage::Paused(_)) {
            record.end_at = now();
        }
        if matches!(record.stage, Stage::Paused(_)) && stage == Stage::Running {
            // Its run had ended, and it must not be over at once.
            record.started_at = now();
            record.end_at = record.started_at + record.timeout.max(WAKE_TIMEOUT);
        }
        record.stage = stage;
        if let Err(error) = shared.parts.store.update_sandbox(&record).await {
            warn!(%error, "cannot note what became of the sandbox");
        }
    }
    TransitionOutcome::Recovered { record, instance, lost }
}

/// Ends the processes of a frozen sandbox: from then on it is paused with its files only.
pub(crate) async fn drop_memory(
    shared: Arc<SchedulerShared>,
    record: SandboxRecord,
    instance: Instance,
) -> TransitionOutcome {
    halt(&shared, &record).await;
    run(shared, record, instance, ContainerState::Stopped).await
}

/// Somebody let a paused sandbox go on with the engine's own tools.
async fn freeze_again(
    shared: &Arc<SchedulerShared>,
    record: &SandboxRecord,
    instance: &Instance,
) -> Stage {
    warn!("the container of the paused sandbox ran: pausing it again");
    let frozen = match super::pause::drain(shared, record, instance).await {
        Ok(()) => shared.parts.runtime.freeze(&record.instance).await.map_err(|e| e.to_string()),
        Err(error) => Err(error.chain()),
    };
    match frozen {
        Ok(()) => Stage::Paused(PauseKind::Full),
        Err(reason) => {
            warn!(reason, "it could not be paused: it runs on");
            let_go_on(shared, record, instance).await;
            Stage::Running
        }
    }
}

/// Ends all processes of the container, trying again until the engine does it.
async fn halt(shared: &Arc<SchedulerShared>, record: &SandboxRecord) {
    while let Err(error) = shared.parts.runtime.halt(&record.instance).await {
        warn!(%error, "cannot stop the container of a paused sandbox; trying again");
        tokio::time::sleep(RETRY).await;
    }
}
