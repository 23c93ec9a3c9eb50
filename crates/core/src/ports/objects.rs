//! What the scheduler needs from the object store.

use async_trait::async_trait;
use sandyard_types::{SandboxId, WorkspaceSpec};

/// Why a workspace cannot be offered. The text says what was tried and what to do.
#[derive(Debug, thiserror::Error)]
pub enum WorkspaceError {
    /// The store does not answer.
    #[error("the object store does not answer: {0}")]
    Unreachable(String),
    /// The store refuses the server's own keys.
    #[error("the object store refuses the server's keys: {0}")]
    Denied(String),
    /// Anything else.
    #[error("the object store failed: {0}")]
    Failed(String),
}

/// What the scheduler needs from the object store.
#[async_trait]
pub trait Workspaces: Send + Sync + 'static {
    /// Makes sure that every prefix of the workspace and its directories exist, so that a driver can
    /// mount them.
    ///
    /// # Errors
    /// [`WorkspaceError`]
    async fn prepare(&self, workspace: &WorkspaceSpec) -> Result<(), WorkspaceError>;

    /// The sandbox is gone, and nothing of it uses the store any more: what was counted for it is told
    /// and forgotten. Called for every sandbox, with a workspace or without.
    fn release(&self, id: &SandboxId);
}
