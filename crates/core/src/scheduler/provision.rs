//! The making of a sandbox: store, object store, engine, executor, in an order that leaves nothing
//! behind wherever it stops.
//!
//! The record goes into the store before anything exists on the engine. So whatever a crash leaves is
//! either a record without a container or both, and the next start removes it; a container without a
//! record is removed too, for it can only be the rest of a finished removal.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use sandyard_types::{InstanceId, SandboxId, TeamId, Template, WorkspaceSpec};
use tracing::{info, warn};

use super::task::RETRY;
use super::{CreateSandbox, Entry, SandboxError, Shared};
use crate::store::{Record, Stage};
use crate::time_text::now;
use crate::{Claim, ContainerSpec, Instance, Profile};

/// One create under way.
pub(super) struct Provision {
    pub(super) shared: Arc<Shared>,
    pub(super) id: SandboxId,
    pub(super) instance: InstanceId,
    pub(super) team: TeamId,
    pub(super) template: Arc<Template>,
    pub(super) request: CreateSandbox,
}

impl Provision {
    /// What is to be mounted. A session is the team's own: the same name means another one to another team.
    async fn workspace(&self) -> Result<Option<WorkspaceSpec>, SandboxError> {
        let Some(session) = &self.request.session else {
            return Ok(None);
        };
        let target = self.template.workspace_target.for_session(session)?;
        let prefix = self.shared.parts.store.session_prefix(self.team, session).await?;
        let bucket = self.shared.parts.bucket.clone();
        Ok(Some(WorkspaceSpec::for_session(session.clone(), bucket, prefix, target)))
    }

    /// Takes a place among the team's sandboxes and the session for the team.
    pub(super) async fn reserve(&self) -> Result<(), SandboxError> {
        if self.shared.disk_is_full.load(Ordering::Relaxed) {
            return Err(SandboxError::DiskFull);
        }
        let workspace = self.workspace().await?;
        let mut entries = self.shared.entries();
        let max = self.shared.parts.limits.max_sandboxes;
        if entries.values().filter(|entry| entry.team == self.team).count() >= max {
            return Err(SandboxError::TooMany { max });
        }
        let workspace = workspace.map(Arc::new);
        let instance = self.instance.clone();
        let entry = Entry { team: self.team, instance, address: None, workspace, live: None };
        entries.insert(self.id.clone(), entry);
        Ok(())
    }

    /// Makes the sandbox, or undoes what was made.
    pub(super) async fn run(&self) -> Result<(Record, Instance), SandboxError> {
        let result = self.make().await;
        let Err(failure) = result else {
            return result;
        };
        match self.undo().await {
            Ok(()) => Err(failure),
            Err(cleanup) => {
                let (failure, cleanup) = (Box::new(failure), Box::new(cleanup));
                Err(SandboxError::Cleanup { failure, cleanup })
            }
        }
    }

    /// Undoes what was made as soon as the engine and the store let it. Ends only then.
    pub(super) async fn undo_in_the_end(&self) {
        loop {
            tokio::time::sleep(RETRY).await;
            match self.undo().await {
                Ok(()) => return info!("what a failed create had left is removed"),
                Err(error) => warn!(error = error.chain(), "cannot remove what a create left"),
            }
        }
    }

    async fn undo(&self) -> Result<(), SandboxError> {
        let parts = &self.shared.parts;
        let deleted = parts.runtime.delete(&self.instance).await;
        // The key dies now, whatever else fails.
        self.shared.forget(&self.id);
        let failed = |source| SandboxError::Runtime { op: "delete", id: self.id.clone(), source };
        deleted.map_err(failed)?;
        Ok(parts.store.remove(&self.id).await?)
    }

    async fn make(&self) -> Result<(Record, Instance), SandboxError> {
        let parts = &self.shared.parts;
        let workspace = self.workspace().await?;
        let spec = ContainerSpec {
            instance: self.instance.clone(),
            template: Template::clone(&self.template),
            profile: if workspace.is_some() { Profile::Workspace } else { Profile::Plain },
            cache: parts.cache,
        };
        let engine = |source| SandboxError::Runtime { op: "create", id: self.id.clone(), source };
        parts.runtime.validate(&spec).map_err(engine)?;

        let created_at = now();
        let mut record = Record {
            id: self.id.clone(),
            team: self.team,
            template: Template::clone(&self.template),
            instance: self.instance.clone(),
            stage: Stage::Creating,
            started_at: created_at,
            end_at: created_at + self.request.timeout,
            metadata: self.request.metadata.clone(),
            secure: self.request.secure,
            internet: self.request.internet,
            network: self.request.network.clone(),
            workspace: workspace.clone(),
        };
        parts.store.insert(&record).await?;

        // The store's directories and the container do not need each other: both at once.
        let prepared = async {
            match &workspace {
                Some(workspace) => parts.workspaces.prepare(workspace).await,
                None => Ok(()),
            }
        };
        let started = async {
            let facts = parts.runtime.ensure_image(&self.template).await.map_err(engine)?;
            let instance = parts.runtime.create(&spec).await.map_err(engine)?;
            if let Some(entry) = self.shared.entries().get_mut(&self.id) {
                entry.address = instance.address;
            }
            Ok::<_, SandboxError>((facts, instance))
        };
        // Not `try_join`: a container that is being made while the other side fails must be finished
        // before it can be removed.
        let (prepared, started) = futures::join!(prepared, started);
        let (facts, instance) = started?;

        let mut env: BTreeMap<String, String> = facts.env;
        env.extend(self.template.env.clone());
        env.extend(self.request.env.clone());
        let claim = Claim {
            id: self.id.clone(),
            template_id: self.template.id.clone(),
            env,
            default_user: self.template.user.clone(),
            default_workdir: self.template.workdir.clone().or(facts.workdir),
            workspace,
        };
        let claimed = parts.executor.claim(&instance, &claim).await;
        // The driver was let try all the same: what it says of a store that the server itself cannot use
        // names the cause from the sandbox's side.
        if let (Err(store), Some(workspace)) = (prepared, &claim.workspace) {
            let (session, driver) = (workspace.session.clone(), claimed.err());
            return Err(SandboxError::ObjectStore { session, store, driver });
        }
        if let Err(source) = claimed {
            self.log_last_lines().await;
            return Err(SandboxError::Executor { id: self.id.clone(), source });
        }

        record.stage = Stage::Running;
        record.started_at = now();
        record.end_at = record.started_at + self.request.timeout;
        parts.store.set_running(&record.id, record.started_at, record.end_at).await?;
        info!(template = %self.template.name, "sandbox created");
        Ok((record, instance))
    }

    /// What the container printed says why it did not become ready; it goes with the container.
    async fn log_last_lines(&self) {
        match self.shared.parts.runtime.last_lines(&self.instance).await {
            Ok(lines) => warn!(?lines, "the sandbox did not become ready; its last lines"),
            Err(error) => {
                warn!(%error, "the sandbox did not become ready, nor can its log be read")
            }
        }
    }
}
