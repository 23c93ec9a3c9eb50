//! The making of a sandbox: store, object store, engine, executor, in an order that leaves nothing behind wherever
//! it stops.
//!
//! The record goes into the store before anything of the sandbox exists on the engine, or together with the claim
//! of a container from the pool, which is nobody's until then. So whatever a crash leaves is a record of a create
//! that never ended, with or without a container, or a container without a record; the next start removes both.

use std::sync::Arc;

use sandyard_types::{InstanceId, Template};
use tracing::{info, warn};

use super::{Made, TransitionOutcome, claim_of};
use crate::pool::Warm;
use crate::scheduler::SchedulerShared;
use crate::store::{SandboxRecord, Stage};
use crate::{ContainerSpec, ExecutorError, Instance, Profile, SandboxError, now};

/// Makes the sandbox in a container of the pool, if it was given one, or in a new one.
pub(crate) async fn run(
    shared: Arc<SchedulerShared>,
    record: SandboxRecord,
    warm: Option<Warm>,
) -> TransitionOutcome {
    let mut making = Making { shared, record };
    match making.make(warm).await {
        Ok((instance, from_pool)) => {
            TransitionOutcome::Created(Made { record: making.record, instance, from_pool })
        }
        Err(failure) => match making.undo().await {
            Ok(()) => TransitionOutcome::CreateFailed { failure, left: false },
            Err(cleanup) => {
                let (failure, cleanup) = (Box::new(failure), Box::new(cleanup));
                let failure = SandboxError::Cleanup { failure, cleanup };
                TransitionOutcome::CreateFailed { failure, left: true }
            }
        },
    }
}

/// What a container for a sandbox is made from.
pub(crate) fn spec_of(shared: &SchedulerShared, record: &SandboxRecord) -> ContainerSpec {
    let has_workspace = record.workspace.is_some();
    ContainerSpec {
        instance: record.instance.clone(),
        template: Template::clone(&record.template),
        profile: if has_workspace { Profile::Workspace } else { Profile::Plain },
        cache: shared.parts.cache,
    }
}

struct Making {
    shared: Arc<SchedulerShared>,
    record: SandboxRecord,
}

impl Making {
    async fn make(&mut self, warm: Option<Warm>) -> Result<(Instance, bool), SandboxError> {
        let spec = spec_of(&self.shared, &self.record);
        self.shared.parts.runtime.validate(&spec).map_err(|source| self.engine(source))?;
        if let Some(warm) = warm
            && let Some(instance) = self.claim_warm(warm).await?
        {
            return Ok((instance, true));
        }
        let instance = self.cold().await?;
        Ok((instance, false))
    }

    fn engine(&self, source: crate::RuntimeError) -> SandboxError {
        SandboxError::Runtime { op: "create", id: self.record.id.clone(), source }
    }

    /// Takes a container that runs already. `None` if it does not answer: then another one has to be made.
    async fn claim_warm(&mut self, warm: Warm) -> Result<Option<Instance>, SandboxError> {
        let shared = self.shared.clone();
        let Warm { instance, facts, .. } = warm;
        (self.record.image_env, self.record.image_workdir) = (facts.env, facts.workdir);
        self.stamp();
        // The key is good from the container's address only.
        shared.set_address(&self.record.id, instance.address);
        let (noted, prepared) =
            tokio::join!(shared.parts.store.insert_sandbox(&self.record), self.prepare());
        noted?;
        let claimed = shared.parts.executor.claim(&instance, &claim_of(&self.record)).await;
        match (prepared, claimed) {
            (Ok(()), Ok(())) => {
                self.finish().await?;
                Ok(Some(instance))
            }
            (Ok(()), Err(ExecutorError::Unreachable(reason))) => {
                warn!(reason, instance = %instance.id, "a container of the pool does not answer");
                let deleted = shared.parts.runtime.delete(&instance.id).await;
                deleted.map_err(|source| self.engine(source))?;
                shared.parts.store.remove_sandbox(&self.record.id).await?;
                self.record.instance = InstanceId::random();
                shared.set_address(&self.record.id, None);
                Ok(None)
            }
            (prepared, claimed) => Err(self.refused(prepared, claimed).await),
        }
    }

    /// Makes a container.
    async fn cold(&mut self) -> Result<Instance, SandboxError> {
        let shared = self.shared.clone();
        let parts = &shared.parts;
        let spec = spec_of(&shared, &self.record);
        let _waiting = shared.pool.hold_refills();
        parts.store.insert_sandbox(&self.record).await?;
        let started = async {
            let facts = parts.runtime.ensure_image(&self.record.template).await?;
            let instance = parts.runtime.create(&spec).await?;
            shared.set_address(&self.record.id, instance.address);
            Ok((facts, instance))
        };
        // Not `try_join`: a container that is being made while the other side fails must be finished
        // before it can be removed.
        let (prepared, started) = futures::join!(self.prepare(), started);
        let (facts, instance) = started.map_err(|source| self.engine(source))?;
        (self.record.image_env, self.record.image_workdir) = (facts.env, facts.workdir);
        // The driver is let try even if the store could not be prepared: what it says of a store that the
        // server itself cannot use names the cause from the sandbox's side.
        let claimed = parts.executor.claim(&instance, &claim_of(&self.record)).await;
        if prepared.is_err() || claimed.is_err() {
            return Err(self.refused(prepared, claimed).await);
        }
        self.stamp();
        self.finish().await?;
        Ok(instance)
    }

    /// Begins the sandbox's time.
    fn stamp(&mut self) {
        self.record.started_at = now();
        self.record.end_at = self.record.started_at + self.record.timeout;
    }

    async fn finish(&mut self) -> Result<(), SandboxError> {
        self.record.stage = Stage::Running;
        Ok(self.shared.parts.store.update_sandbox(&self.record).await?)
    }

    async fn prepare(&self) -> Result<(), crate::WorkspaceError> {
        match self.record.workspace.as_deref() {
            Some(workspace) => self.shared.parts.workspaces.prepare(workspace).await,
            None => Ok(()),
        }
    }

    async fn refused(
        &self,
        prepared: Result<(), crate::WorkspaceError>,
        claimed: Result<(), ExecutorError>,
    ) -> SandboxError {
        let id = self.record.id.clone();
        match (prepared, claimed, &self.record.workspace) {
            (Err(store), claimed, Some(workspace)) => {
                let (session, driver) = (workspace.session.clone(), claimed.err());
                SandboxError::ObjectStore { session, store, driver }
            }
            (_, Err(source), _) => {
                self.log_last_lines().await;
                SandboxError::Executor { id, source }
            }
            (_, Ok(()), _) => SandboxError::NotFound(id),
        }
    }

    /// What the container printed says why it did not become ready; it goes with the container.
    async fn log_last_lines(&self) {
        match self.shared.parts.runtime.last_lines(&self.record.instance).await {
            Ok(lines) => warn!(?lines, "the sandbox did not become ready; its last lines"),
            Err(error) => {
                warn!(%error, "the sandbox did not become ready, nor can its log be read")
            }
        }
    }

    /// Removes what was made. The sandbox's key lives until the driver forgets it, after this.
    async fn undo(&self) -> Result<(), SandboxError> {
        let parts = &self.shared.parts;
        let (op, id) = ("delete", self.record.id.clone());
        let deleted = parts.runtime.delete(&self.record.instance).await;
        deleted.map_err(|source| SandboxError::Runtime { op, id, source })?;
        parts.store.remove_sandbox(&self.record.id).await?;
        info!("what a failed create had made is removed");
        Ok(())
    }
}
