//! Why the scheduler refuses or fails.

use std::sync::Arc;
use std::time::Duration;

use sandyard_types::{InvalidWorkspace, SandboxId, SessionId, error_chain};

use crate::{
    DeleteRefusal, ExecutorError, InvalidSnapshotName, Op, RuntimeError, SandboxState, StoreError,
    UnknownTemplate, WorkspaceError,
};

/// Why the scheduler refuses or fails: what was tried, on what; the source says why.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// Unknown, ended, or of another team.
    #[error("sandbox '{0}' doesn't exist or you don't have access to it")]
    NotFound(SandboxId),
    /// It is paused, and for this operation a paused sandbox does not exist (control-plane 3.2).
    #[error("cannot {op} sandbox '{id}': it is paused; resume it first")]
    Paused {
        /// What was asked.
        op: Op,
        /// Of which sandbox.
        id: SandboxId,
    },
    /// The state does not allow the operation.
    #[error("cannot {op} sandbox '{id}': it is {state}")]
    Conflict {
        /// What was asked.
        op: Op,
        /// Of which sandbox.
        id: SandboxId,
        /// What it is doing.
        state: SandboxState,
    },
    /// No such template or tag.
    #[error(transparent)]
    Template(#[from] UnknownTemplate),
    /// A create with timeout zero.
    #[error("timeout must be greater than 0")]
    ZeroTimeout,
    /// A timeout above the maximum.
    #[error("timeout can't be greater than {} seconds ({} hours)", max.as_secs(), max.as_secs() / 3600)]
    TimeoutTooLong {
        /// The maximum.
        max: Duration,
    },
    /// The sandbox has lived as long as any may.
    #[error("sandbox '{id}' has reached the maximum length of {} seconds and cannot be extended", max.as_secs())]
    LengthUsedUp {
        /// Which.
        id: SandboxId,
        /// The maximum.
        max: Duration,
    },
    /// The team has as many sandboxes as it may.
    #[error(
        "the limit of {max} concurrent sandboxes is reached: kill one, or raise limits.max_sandboxes"
    )]
    TooMany {
        /// The maximum.
        max: usize,
    },
    /// The engine's disk has less left than is kept free.
    #[error(
        "the disk that sandboxes write to is nearly full: free some of it (docker system prune, sandyard kill)"
    )]
    DiskFull,
    /// The workspace would appear where it cannot.
    #[error(transparent)]
    Workspace(#[from] InvalidWorkspace),
    /// The object store could not offer the workspace.
    #[error("cannot prepare the workspace of session '{session}': {store}{}", said(driver.as_ref()))]
    ObjectStore {
        /// Whose workspace.
        session: SessionId,
        /// Why, from the server's side.
        store: WorkspaceError,
        /// Why, from the driver's side.
        driver: Option<ExecutorError>,
    },
    /// The engine refused or failed.
    #[error("failed to {op} sandbox '{id}'")]
    Runtime {
        /// What was tried ("create", "pause", "remove").
        op: &'static str,
        /// On which sandbox.
        id: SandboxId,
        /// Why.
        source: RuntimeError,
    },
    /// The engine could not say what it runs.
    #[error("cannot compare sandboxes with the engine")]
    Engine(#[source] RuntimeError),
    /// The executor refused or failed.
    #[error("sandbox '{id}' did not become ready")]
    Executor {
        /// Which.
        id: SandboxId,
        /// Why.
        source: ExecutorError,
    },
    /// It failed, and so did undoing what had been done; that is tried again until it works.
    #[error("{}; undoing it failed too: {}", failure.chain(), cleanup.chain())]
    Cleanup {
        /// What failed first.
        failure: Box<SandboxError>,
        /// What failed then.
        cleanup: Box<SandboxError>,
    },
    /// The sandbox is gone, but not everything that was closed in it is known to be in the store.
    #[error("sandbox '{id}' was ended, but its workspace was not wholly in the store after {} s{}", limit.as_secs(), left(*.bytes_left))]
    DataLeft {
        /// Which.
        id: SandboxId,
        /// The barrier's limit.
        limit: Duration,
        /// Bytes that were left, where the driver can tell.
        bytes_left: Option<u64>,
    },
    /// The workspace could not be brought into the store before a pause or snapshot. The sandbox runs on.
    #[error("the workspace of sandbox '{id}' was not wholly in the store after {} s{}; it runs on: is the object store in reach?", limit.as_secs(), left(*.bytes_left))]
    NotFlushed {
        /// Which.
        id: SandboxId,
        /// The barrier's limit.
        limit: Duration,
        /// Bytes that were left, where the driver can tell.
        bytes_left: Option<u64>,
    },
    /// A pause or a resume could not be noted, and was undone.
    #[error("sandbox '{id}' is as it was before: what was asked could not be noted")]
    NotNoted {
        /// Which.
        id: SandboxId,
        /// Why.
        source: StoreError,
    },
    /// The processes could not be halted for a pause or snapshot. The sandbox runs on.
    #[error("the processes of sandbox '{id}' could not be halted; it runs on")]
    NotHalted {
        /// Which.
        id: SandboxId,
        /// Why.
        source: ExecutorError,
    },
    /// A paused sandbox did not become ready. It is paused as before.
    #[error("sandbox '{id}' did not become ready after its pause; it is still paused")]
    NotResumed {
        /// Which.
        id: SandboxId,
        /// Why.
        source: ExecutorError,
    },
    /// Somebody removed the container of a paused sandbox.
    #[error(
        "sandbox '{0}' is lost: its container was removed from the engine; create a new sandbox"
    )]
    ContainerGone(SandboxId),
    /// A snapshot cannot have this name.
    #[error(transparent)]
    SnapshotName(#[from] InvalidSnapshotName),
    /// A template cannot be deleted.
    #[error(transparent)]
    Delete(#[from] DeleteRefusal),
    /// More forks than the team may have sandboxes.
    #[error(
        "{count} forks are too many: the team may have {max} sandboxes at once, the source among them"
    )]
    TooManyForks {
        /// How many were asked for.
        count: usize,
        /// The team's maximum.
        max: usize,
    },
    /// The server ends.
    #[error("the server is shutting down")]
    ShuttingDown,
    /// A failure that several callers are told.
    #[error(transparent)]
    Shared(Arc<SandboxError>),
    /// The data base failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn said(driver: Option<&ExecutorError>) -> String {
    driver.map_or_else(String::new, |error| format!("; and in the sandbox: {error}"))
}

fn left(bytes: Option<u64>) -> String {
    bytes.map_or_else(String::new, |bytes| format!(": {bytes} bytes were left"))
}

impl SandboxError {
    /// The error and all its sources in one line, for logs and for clients that should see why.
    pub fn chain(&self) -> String {
        error_chain(self)
    }
}
