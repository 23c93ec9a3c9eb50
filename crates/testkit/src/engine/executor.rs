//! The fake engine as the executors of its containers, and as the object store.

use std::time::Duration;

use async_trait::async_trait;
use sandyard_core::{
    Claim, ContainerState, ExecutorClient, ExecutorError, Flushed, Instance, WorkspaceError,
    Workspaces,
};
use sandyard_types::{InstanceId, SandboxId, WorkspaceSpec};

use super::{EngineCall, FakeEngine};

/// How often an executor in a frozen container is tried before it counts as one that does not answer.
const TRIES: usize = 16;

/// What an `init` refuses to resume was never halted by it, so a resume that fails is one that gets no answer.
fn lost() -> ExecutorError {
    ExecutorError::Unreachable("told to fail to resume".to_owned())
}

fn refusal(call: &str) -> ExecutorError {
    ExecutorError::Refused(format!("told to fail to {call}"))
}

impl FakeEngine {
    /// Nothing answers in a container that does not run.
    async fn reach(&self, id: &InstanceId) -> Result<(), ExecutorError> {
        for _ in 0..TRIES {
            let found = self.state().instances.get(id).map(|instance| instance.state);
            match found {
                Some(ContainerState::Running) => return Ok(()),
                // Somebody may be thawing it.
                Some(ContainerState::Frozen) => tokio::task::yield_now().await,
                Some(ContainerState::Stopped) | None => break,
            }
        }
        Err(ExecutorError::Unreachable("the container does not run".to_owned()))
    }
}

#[async_trait]
impl ExecutorClient for FakeEngine {
    async fn claim(&self, instance: &Instance, claim: &Claim) -> Result<(), ExecutorError> {
        self.begin(EngineCall::Claim, Some(&instance.id)).await.map_err(|()| refusal("claim"))?;
        self.reach(&instance.id).await?;
        self.state().claims.push(claim.clone());
        self.end(EngineCall::Claim, Some(&instance.id)).await.map_err(|()| refusal("claim"))
    }

    async fn ready(&self, instance: &Instance) -> Result<(), ExecutorError> {
        self.begin(EngineCall::Ready, Some(&instance.id))
            .await
            .map_err(|()| refusal("be ready"))?;
        self.reach(&instance.id).await?;
        self.end(EngineCall::Ready, Some(&instance.id)).await.map_err(|()| refusal("be ready"))
    }

    async fn drain(&self, instance: &Instance, _: Duration) -> Result<Flushed, ExecutorError> {
        self.begin(EngineCall::Drain, Some(&instance.id)).await.map_err(|()| refusal("drain"))?;
        self.reach(&instance.id).await?;
        let complete = {
            let mut state = self.state();
            if !state.undrained {
                state.halted.insert(instance.id.clone());
            }
            !state.undrained
        };
        self.end(EngineCall::Drain, Some(&instance.id)).await.map_err(|()| refusal("drain"))?;
        Ok(if complete { Flushed::Complete } else { Flushed::Incomplete { bytes_left: Some(7) } })
    }

    async fn resume(&self, instance: &Instance) -> Result<(), ExecutorError> {
        self.begin(EngineCall::Resume, Some(&instance.id)).await.map_err(|()| lost())?;
        self.reach(&instance.id).await?;
        self.state().halted.remove(&instance.id);
        self.end(EngineCall::Resume, Some(&instance.id)).await.map_err(|()| lost())
    }

    async fn sync(&self, instance: &Instance, _: Duration) -> Result<Flushed, ExecutorError> {
        self.begin(EngineCall::Sync, Some(&instance.id)).await.map_err(|()| refusal("sync"))?;
        self.reach(&instance.id).await?;
        self.end(EngineCall::Sync, Some(&instance.id)).await.map_err(|()| refusal("sync"))?;
        Ok(Flushed::Complete)
    }

    async fn stop(&self, instance: &Instance, _: Duration) -> Result<Flushed, ExecutorError> {
        self.begin(EngineCall::StopExecutor, Some(&instance.id))
            .await
            .map_err(|()| refusal("stop"))?;
        self.reach(&instance.id).await?;
        self.end(EngineCall::StopExecutor, Some(&instance.id))
            .await
            .map_err(|()| refusal("stop"))?;
        Ok(Flushed::Complete)
    }
}

#[async_trait]
impl Workspaces for FakeEngine {
    async fn prepare(&self, workspace: &WorkspaceSpec) -> Result<(), WorkspaceError> {
        let failed = |()| WorkspaceError::Unreachable("told to fail".to_owned());
        self.begin(EngineCall::Prepare, None).await.map_err(failed)?;
        self.state().prepared.push(workspace.clone());
        self.end(EngineCall::Prepare, None).await.map_err(failed)
    }

    fn release(&self, id: &SandboxId) {
        self.state().released.push(id.clone());
    }
}
