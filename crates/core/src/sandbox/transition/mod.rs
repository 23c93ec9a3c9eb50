//! The transitions of a sandbox. Each file says what is done, how it is undone when a step fails, and what is noted
//! in the store first, so that a start after a crash can set right what was half-done ([`recover`]).

pub(crate) mod create;
pub(crate) mod end;
pub(crate) mod pause;
pub(crate) mod recover;
pub(crate) mod resume;
pub(crate) mod snapshot;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use sandyard_types::{PauseKind, SandboxId};
use tracing::{error, warn};

use super::SavedImage;
use crate::scheduler::SchedulerShared;
use crate::store::SandboxRecord;
use crate::{Claim, ExecutorError, Instance, RuntimeError, SandboxError, StoreError};

/// Between two tries of something that must happen in the end.
pub(crate) const RETRY: Duration = Duration::from_secs(2);

/// A sandbox that was made.
pub(crate) struct Made {
    pub(crate) record: SandboxRecord,
    pub(crate) instance: Instance,
    /// Whether its container came from the pool.
    pub(crate) from_pool: bool,
}

/// Why an end is not as it should be; can be told to several callers.
#[derive(Clone, Debug)]
pub(crate) enum EndFailure {
    /// Everything is gone but for bytes that did not reach the store.
    DataLeft(Option<u64>),
    /// The engine did not remove the container; it will be tried again.
    Engine(String),
}

/// How an end went.
pub(crate) type EndResult = Result<(), EndFailure>;

impl EndFailure {
    /// The failure as its callers see it.
    pub(super) fn told(self, id: &SandboxId, limit: Duration) -> SandboxError {
        let id = id.clone();
        match self {
            Self::DataLeft(bytes_left) => SandboxError::DataLeft { id, limit, bytes_left },
            Self::Engine(reason) => SandboxError::Runtime {
                op: "remove",
                id,
                source: RuntimeError::Failed { call: "remove the container", reason },
            },
        }
    }
}

/// How a transition went. The records say what the sandbox is now.
pub(crate) enum TransitionOutcome {
    Created(Made),
    /// Nothing is left of the sandbox, or `left`: then it is to be ended.
    CreateFailed {
        failure: SandboxError,
        left: bool,
    },
    Paused {
        record: SandboxRecord,
        result: Result<PauseKind, SandboxError>,
    },
    Resumed {
        record: SandboxRecord,
        instance: Instance,
        result: Result<PauseKind, SandboxError>,
    },
    Saved {
        record: SandboxRecord,
        result: Result<SavedImage, SandboxError>,
    },
    Recovered {
        record: SandboxRecord,
        instance: Instance,
        /// Whether memory that a pause had kept is gone.
        lost: bool,
    },
    Ended(EndResult),
}

/// A transition that the store did not take; it is undone.
fn not_noted(record: &SandboxRecord, source: StoreError) -> SandboxError {
    SandboxError::NotNoted { id: record.id.clone(), source }
}

/// What makes the record's container its sandbox.
fn claim_of(record: &SandboxRecord) -> Claim {
    let mut env: BTreeMap<String, String> = record.image_env.clone();
    env.extend(record.template.env.clone());
    env.extend(record.env.clone());
    Claim {
        id: record.id.clone(),
        template_id: record.template.id.clone(),
        env,
        default_user: record.template.user.clone(),
        default_workdir: record.template.workdir.clone().or_else(|| record.image_workdir.clone()),
        secured: record.secure,
        workspace: record.workspace.as_deref().cloned(),
    }
}

/// How often `init` is asked to let go on what it halted. One that does not answer serves nobody, and its sandbox must
/// still expire and be killed.
const RESUME_TRIES: u32 = 15;

/// Lets a container and what is halted in it go on, trying again until the engine and `init` do it or the container
/// no longer runs. Without effect on one that runs undisturbed.
async fn let_go_on(shared: &Arc<SchedulerShared>, record: &SandboxRecord, instance: &Instance) {
    let parts = &shared.parts;
    let mut tries = 0;
    loop {
        let thawed = parts.runtime.thaw(&record.instance).await;
        let undone = match thawed {
            Ok(()) if record.workspace.is_some() => {
                match parts.executor.resume(instance).await {
                    Ok(()) => Ok(()),
                    // An `init` of an earlier version halts nothing.
                    Err(ExecutorError::Refused(reason)) => {
                        warn!(reason, "`init` does not resume");
                        Ok(())
                    }
                    Err(error) => {
                        tries += 1;
                        Err(error.to_string())
                    }
                }
            }
            Ok(()) => Ok(()),
            Err(error) => Err(error.to_string()),
        };
        let Err(reason) = undone else { return };
        if tries == RESUME_TRIES {
            error!(reason, "`init` does not let the sandbox's processes go on");
            return;
        }
        warn!(reason, "cannot let the sandbox go on; trying again");
        if let Ok(found) = parts.runtime.inspect(&record.instance).await
            && found.is_none_or(|found| found.address.is_none())
        {
            // It has ended. Whoever looks at it next sees to that.
            return;
        }
        tokio::time::sleep(RETRY).await;
    }
}
