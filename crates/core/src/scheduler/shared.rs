//! What all drivers share.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sandyard_types::{InstanceId, SandboxId, TeamId, Template, TemplateKind, WorkspaceSpec};
use tokio::sync::{Notify, mpsc, watch};
use tracing::{info, warn};

use super::SchedulerParts;
use crate::events::Events;
use crate::pool::Pool;
use crate::sandbox::{Request, Sandbox};
use crate::{Catalogue, RuntimeError, SandboxError};

/// What the scheduler keeps in memory of one sandbox.
pub(crate) struct SandboxEntry {
    pub(crate) team: TeamId,
    /// Where its container is, from before anything in it needs the object store.
    pub(crate) address: Option<IpAddr>,
    /// Known before the container exists, so that a mount's key works from its first request.
    pub(crate) workspace: Option<Arc<WorkspaceSpec>>,
    /// What it was started from: its image is in use.
    pub(crate) template: Arc<Template>,
    /// Whether it counts towards its team's running sandboxes.
    pub(crate) active: bool,
    /// The way to its driver.
    pub(crate) requests: mpsc::Sender<Request>,
    pub(crate) view: watch::Receiver<Arc<Sandbox>>,
}

/// What all drivers share.
pub(crate) struct SchedulerShared {
    pub(crate) parts: SchedulerParts,
    pub(crate) catalogue: Catalogue,
    pub(crate) pool: Arc<Pool>,
    pub(crate) events: Events,
    entries: Mutex<HashMap<SandboxId, SandboxEntry>>,
    /// Images that are between their making and their first use, each as often as it is held.
    held_images: Mutex<Vec<String>>,
    /// Told whenever an entry goes.
    pub(super) gone: Notify,
    /// Whether the engine's disk has less left than is kept free.
    pub(super) disk_is_full: AtomicBool,
}

impl SchedulerShared {
    pub(super) fn new(parts: SchedulerParts, catalogue: Catalogue) -> Self {
        let pool = Pool::new(
            parts.limits.pool,
            parts.cache,
            parts.runtime.clone(),
            parts.executor.clone(),
            catalogue.configured().cloned(),
        );
        Self {
            parts,
            catalogue,
            pool: Arc::new(pool),
            events: Events::default(),
            entries: Mutex::default(),
            held_images: Mutex::default(),
            gone: Notify::new(),
            disk_is_full: AtomicBool::new(false),
        }
    }

    /// The entries. No code that holds the guard can panic half-way through a change, so a poisoned
    /// lock still guards whole entries.
    pub(super) fn entries(&self) -> MutexGuard<'_, HashMap<SandboxId, SandboxEntry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a place among the team's running sandboxes for a new one.
    pub(super) fn reserve(&self, id: &SandboxId, entry: SandboxEntry) -> Result<(), SandboxError> {
        let mut entries = self.entries();
        self.check_limit(&entries, entry.team)?;
        entries.insert(id.clone(), entry);
        Ok(())
    }

    fn check_limit(
        &self,
        entries: &HashMap<SandboxId, SandboxEntry>,
        team: TeamId,
    ) -> Result<(), SandboxError> {
        let max = self.parts.limits.max_sandboxes;
        let active = entries.values().filter(|entry| entry.team == team && entry.active).count();
        if active >= max { Err(SandboxError::TooMany { max }) } else { Ok(()) }
    }

    /// Takes a place among the team's running sandboxes for a paused one.
    pub(crate) fn activate(&self, id: &SandboxId, team: TeamId) -> Result<(), SandboxError> {
        let mut entries = self.entries();
        self.check_limit(&entries, team)?;
        if let Some(entry) = entries.get_mut(id) {
            entry.active = true;
        }
        Ok(())
    }

    /// Says whether a sandbox counts as running.
    pub(crate) fn set_active(&self, id: &SandboxId, active: bool) {
        if let Some(entry) = self.entries().get_mut(id) {
            entry.active = active;
        }
    }

    /// Says where a sandbox's container is.
    pub(crate) fn set_address(&self, id: &SandboxId, address: Option<IpAddr>) {
        if let Some(entry) = self.entries().get_mut(id) {
            entry.address = address;
        }
    }

    /// Nothing of a sandbox is left: its key dies.
    pub(crate) fn forget(&self, id: &SandboxId) {
        self.entries().remove(id);
        self.parts.workspaces.release(id);
        self.gone.notify_waiters();
    }

    fn held_images(&self) -> MutexGuard<'_, Vec<String>> {
        self.held_images.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes an image of a container, which is held until [`Self::let_go_of_image`].
    pub(crate) async fn commit(
        &self,
        instance: &InstanceId,
        name: &str,
    ) -> Result<String, RuntimeError> {
        let image = self.parts.runtime.commit(instance, name).await?;
        self.held_images().push(image.clone());
        Ok(image)
    }

    /// Whoever had the image made has put it to use, or needs it no more.
    pub(crate) async fn let_go_of_image(&self, template: &Template) {
        {
            let mut held = self.held_images();
            if let Some(place) = held.iter().position(|image| *image == template.image) {
                held.swap_remove(place);
            }
        }
        self.release_image(template).await;
    }

    /// Whether anybody needs an image: a sandbox, a template of the catalogue, or whoever had it made.
    pub(super) fn image_is_used(&self, image: &str) -> bool {
        self.entries().values().any(|entry| entry.template.image == image)
            || self.held_images().iter().any(|held| held == image)
            || self.catalogue.has_image(image)
    }

    /// Removes the image of a sandbox that is gone, if it was made here and nobody else needs it.
    pub(crate) async fn release_image(&self, template: &Template) {
        let image = &template.image;
        if template.kind != TemplateKind::Snapshot || self.image_is_used(image) {
            return;
        }
        self.remove_image(image).await;
    }

    /// Removes an image that nobody needs. One that cannot be removed now is removed by the next start.
    pub(super) async fn remove_image(&self, image: &str) {
        self.pool.drop_image(image).await;
        match self.parts.runtime.remove_image(image).await {
            Ok(()) => info!(image, "removed an image that nobody needs any more"),
            Err(error) => warn!(%error, image, "cannot remove an image that nobody needs any more"),
        }
    }
}
