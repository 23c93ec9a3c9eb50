//! The gateway's and the scheduler's views of each other.

use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use sandyard_core::{Scheduler, WorkspaceError, Workspaces};
use sandyard_gateway::{
    Gateway, Grant, GrantOwner, GrantScope, GrantSource, KeyName, ObjectStoreError,
};
use sandyard_types::{Access, BucketName, SandboxId, WORKSPACE_OWNER, WorkspaceSpec};
use tracing::info;

use crate::secrets::Secrets;

/// Answers the gateway from the scheduler's state: a key lives as long as its sandbox.
pub struct SchedulerGrants {
    secrets: Arc<Secrets>,
    bucket: BucketName,
    /// Whether a sandbox's key is good from its container's address only. Not where something between them
    /// changes addresses.
    by_address: bool,
    /// Set once the scheduler has started; until then only the owner has a grant, and a driver of an
    /// adopted sandbox tries again.
    scheduler: OnceLock<Scheduler>,
}

impl SchedulerGrants {
    /// Grants of an installation, the owner's for all of `bucket`.
    pub fn new(secrets: Arc<Secrets>, bucket: BucketName, by_address: bool) -> Self {
        Self { secrets, bucket, by_address, scheduler: OnceLock::new() }
    }

    /// From now on sandboxes have grants too. Without effect when called again.
    pub fn serve(&self, scheduler: Scheduler) {
        let _ = self.scheduler.set(scheduler);
    }
}

impl GrantSource for SchedulerGrants {
    fn grant(&self, access_key_id: &str) -> Option<Grant> {
        let name: KeyName = access_key_id.parse().ok()?;
        let (owner, source, scopes) = match &name {
            KeyName::Owner { .. } => {
                let all = GrantScope {
                    bucket: self.bucket.clone(),
                    prefix: None,
                    access: Access::ReadWrite,
                };
                (GrantOwner::Installation, None, vec![all])
            }
            KeyName::Sandbox { sandbox, .. } => {
                let workspace = self.scheduler.get()?.workspace(sandbox)?;
                // Before its container has an address nothing can use the key.
                let from = workspace.from?;
                let scopes = workspace.spec.mounts.iter().map(|mount| GrantScope {
                    bucket: mount.bucket.clone(),
                    prefix: Some(mount.prefix.clone()),
                    access: mount.access,
                });
                let source = self.by_address.then_some(from);
                (GrantOwner::Sandbox(sandbox.clone()), source, scopes.collect())
            }
        };
        let secret = self.secrets.key_in_use(&name)?.secret;
        Some(Grant { secret, owner, source, scopes })
    }

    fn is_ready(&self) -> bool {
        self.scheduler.get().is_some()
    }
}

/// The scheduler's view of the object store.
pub struct GatewayWorkspaces(pub Arc<Gateway>);

#[async_trait]
impl Workspaces for GatewayWorkspaces {
    async fn prepare(&self, workspace: &WorkspaceSpec) -> Result<(), WorkspaceError> {
        for mount in &workspace.mounts {
            let owner = WORKSPACE_OWNER;
            let made = self.0.ensure_directories(
                &mount.bucket,
                &mount.prefix,
                &mount.directories,
                owner,
                owner,
            );
            made.await.map_err(workspace_error)?;
        }
        Ok(())
    }

    fn release(&self, id: &SandboxId) {
        let traffic = self.0.traffic(id);
        if traffic.requests > 0 {
            info!(
                sandbox.id = %id,
                requests = traffic.requests,
                errors = traffic.errors,
                bytes_in = traffic.bytes_in,
                bytes_out = traffic.bytes_out,
                "the sandbox's use of the object store"
            );
        }
        self.0.forget(id);
    }
}

fn workspace_error(error: ObjectStoreError) -> WorkspaceError {
    let text = error.to_string();
    match error {
        ObjectStoreError::Unreachable { .. } => WorkspaceError::Unreachable(text),
        ObjectStoreError::WrongKeys { .. } | ObjectStoreError::NotAllowed { .. } => {
            WorkspaceError::Denied(text)
        }
        ObjectStoreError::NoBucket { .. }
        | ObjectStoreError::Refused { .. }
        | ObjectStoreError::Directory(_)
        | ObjectStoreError::Embedded(_)
        | ObjectStoreError::Panicked(_) => WorkspaceError::Failed(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A driver of a sandbox that lives passes a 403 on to its programs, and tries again after a 503.
    #[test]
    fn a_key_is_not_unknown_before_the_scheduler_is_there() -> anyhow::Result<()> {
        let secrets = Arc::new(Secrets::new([7; 32]));
        let grants = SchedulerGrants::new(secrets.clone(), "sandyard".parse()?, true);
        assert!(grants.grant(&secrets.sandbox_key(&"iabc".parse()?).id).is_none());
        assert!(!grants.is_ready());
        assert!(grants.grant(&secrets.owner_key().id).is_some());
        Ok(())
    }
}
