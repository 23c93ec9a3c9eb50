//! The end of a sandbox: everything that was closed in it goes into the store, then its container goes.
//!
//! A start after a crash removes a sandbox whose end had begun, and may find its container gone already.

use std::sync::Arc;

use tracing::{error, warn};

use super::{EndFailure, EndResult, RETRY, TransitionOutcome};
use crate::scheduler::SchedulerShared;
use crate::store::{SandboxRecord, Stage};
use crate::{ExecutorError, Flushed, Instance};

/// Ends the sandbox. `flush` is for one that runs and has a workspace; after a pause everything is in the store.
pub(crate) async fn run(
    shared: Arc<SchedulerShared>,
    record: SandboxRecord,
    instance: Instance,
    flush: bool,
) -> TransitionOutcome {
    let noted = SandboxRecord { stage: Stage::Ending, ..record };
    if let Err(error) = shared.parts.store.update_sandbox(&noted).await {
        // The end goes on: if the server dies now, the next start finds the sandbox running, or
        // without a container, and both are handled.
        error!(%error, "cannot note that the sandbox ends");
    }
    let left = if flush { self::flush(&shared, &instance).await } else { None };
    TransitionOutcome::Ended(delete(&shared, &noted, left).await)
}

/// Tries again to remove the container, later.
pub(crate) async fn retry(
    shared: Arc<SchedulerShared>,
    record: SandboxRecord,
) -> TransitionOutcome {
    tokio::time::sleep(RETRY).await;
    TransitionOutcome::Ended(delete(&shared, &record, None).await)
}

async fn delete(
    shared: &SchedulerShared,
    record: &SandboxRecord,
    left: Option<Option<u64>>,
) -> EndResult {
    match shared.parts.runtime.delete(&record.instance).await {
        Ok(()) => left.map_or(Ok(()), |bytes| Err(EndFailure::DataLeft(bytes))),
        Err(error) => Err(EndFailure::Engine(error.to_string())),
    }
}

/// The durability barrier. Returns what was left, if not everything reached the store: bytes where they are known.
async fn flush(shared: &SchedulerShared, instance: &Instance) -> Option<Option<u64>> {
    let parts = &shared.parts;
    // Nothing in a frozen container answers. Both at once, for nearly none is.
    let (stopped, thawed) = tokio::join!(
        parts.executor.stop(instance, parts.limits.flush),
        parts.runtime.thaw(&instance.id),
    );
    if let Err(error) = thawed {
        warn!(%error, "cannot see to it that the container is not frozen");
    }
    let left = match stopped {
        Ok(Flushed::Complete) => None,
        Ok(Flushed::Incomplete { bytes_left }) => Some(bytes_left),
        Err(error) => stop_by_engine(shared, instance, &error).await,
    };
    if let Some(bytes) = left {
        error!(?bytes, limit = ?parts.limits.flush, "the workspace was not wholly in the store");
    }
    left
}

/// `init` does not answer calls: its TERM handler does the same barrier. What it left cannot be known.
async fn stop_by_engine(
    shared: &SchedulerShared,
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
