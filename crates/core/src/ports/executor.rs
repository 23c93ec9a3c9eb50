//! What the scheduler needs from the executor inside a container.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use sandyard_types::{SandboxId, TemplateId, WorkspaceSpec};

use super::Instance;

/// What turns an anonymous container into one user's sandbox.
#[derive(Clone, Debug)]
pub struct Claim {
    /// The sandbox's id, for the variables that name it.
    pub id: SandboxId,
    /// The template's id, likewise.
    pub template_id: TemplateId,
    /// Environment of every process: image, template and request, merged.
    pub env: BTreeMap<String, String>,
    /// User of requests that name none.
    pub default_user: String,
    /// Directory of processes that name none; the user's home if absent.
    pub default_workdir: Option<String>,
    /// Whether clients are told the sandbox's access token.
    pub secured: bool,
    /// What to mount.
    pub workspace: Option<WorkspaceSpec>,
}

/// How a flush ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flushed {
    /// Everything that was closed or synced is in the store.
    Complete,
    /// The limit was over first.
    Incomplete {
        /// Bytes the drivers still held, where they can tell.
        bytes_left: Option<u64>,
    },
}

/// Why the executor did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum ExecutorError {
    /// It cannot be reached or does not answer in time.
    #[error("the executor does not answer: {0}")]
    Unreachable(String),
    /// It refused or failed; the text is its own, with the last lines of a FUSE program where one was
    /// involved.
    #[error("{0}")]
    Refused(String),
}

/// What the scheduler needs from the executor inside a container.
#[async_trait]
pub trait ExecutorClient: Send + Sync + 'static {
    /// Gives a started container its identity and mounts. Returns when the daemon takes requests and
    /// every mount is visible inside.
    ///
    /// # Errors
    /// [`ExecutorError`]; the container is then good for nothing but deletion.
    async fn claim(&self, instance: &Instance, claim: &Claim) -> Result<(), ExecutorError>;

    /// Waits until the executor of a container that has just started takes a claim.
    ///
    /// # Errors
    /// [`ExecutorError::Unreachable`] if it does not within its limit.
    async fn ready(&self, instance: &Instance) -> Result<(), ExecutorError>;

    /// Halts the user's processes of a container with a workspace, lets its drivers finish, and brings
    /// everything into the store. What was halted goes on by [`ExecutorClient::resume`]; if the limit was
    /// over first, it goes on by itself.
    ///
    /// # Errors
    /// [`ExecutorError`] if `init` cannot be asked; the processes may be halted then.
    async fn drain(&self, instance: &Instance, limit: Duration) -> Result<Flushed, ExecutorError>;

    /// Lets go on what [`ExecutorClient::drain`] halted, and forgets what is cached of the store. Without
    /// effect if nothing is halted.
    ///
    /// # Errors
    /// [`ExecutorError`] if `init` cannot be asked.
    async fn resume(&self, instance: &Instance) -> Result<(), ExecutorError>;

    /// Brings what was closed or synced into the store while everything goes on.
    ///
    /// # Errors
    /// [`ExecutorError`] if `init` cannot be asked.
    async fn sync(&self, instance: &Instance, limit: Duration) -> Result<Flushed, ExecutorError>;

    /// The durability barrier: ends the user's processes, syncs, unmounts (design 6.3).
    ///
    /// # Errors
    /// [`ExecutorError`] if `init` cannot be asked.
    async fn stop(&self, instance: &Instance, limit: Duration) -> Result<Flushed, ExecutorError>;
}
