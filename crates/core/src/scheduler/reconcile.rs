//! Store and engine against each other: at the start, whenever the engine's events may have been missed, and once a
//! minute all the same.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use futures::StreamExt as _;
use sandyard_types::InstanceId;
use tokio::time::{Instant, interval_at};
use tracing::{Instrument as _, error, info, info_span, warn};

use super::Scheduler;
use crate::events::EndReason;
use crate::sandbox::{Request, SandboxDriver, transition};
use crate::store::{SandboxRecord, Stage};
use crate::{ContainerState, Instance, RuntimeEvent, SandboxError};

/// Between two comparisons that nothing asked for: an engine can lose an event.
const COMPARE_EVERY: Duration = Duration::from_secs(60);

impl Scheduler {
    pub(super) async fn reconcile(&self) -> Result<(), SandboxError> {
        let parts = &self.shared.parts;
        let (records, unreadable) = parts.store.sandboxes().await?;
        let instances = parts.runtime.list().await.map_err(SandboxError::Engine)?;
        let mut instances: HashMap<InstanceId, Instance> =
            instances.into_iter().map(|instance| (instance.id.clone(), instance)).collect();
        let all_known = unreadable.is_empty() && self.catalogue().is_whole();
        for row in unreadable {
            error!(sandbox.id = row.id, reason = %row.reason, "a sandbox's record is left as it is, and so is its container");
            instances.retain(|id, _| id.as_str() != row.instance);
        }
        // What lives comes first.
        let mut left = Vec::new();
        for record in records {
            match instances.remove(&record.instance) {
                Some(instance) if stays(&record, &instance) => self.adopt(record, instance),
                _ => left.push(record),
            }
        }
        for record in left {
            self.remove(record);
        }
        for instance in instances.into_keys() {
            info!(%instance, "removing a container that no record owns");
            self.remove_nobodys(instance);
        }
        if all_known {
            self.remove_images().await;
        } else {
            warn!("images are left alone, because not everything that may need them could be read");
        }
        Ok(())
    }

    fn adopt(&self, record: SandboxRecord, instance: Instance) {
        let span = info_span!("sandbox", sandbox.id = %record.id);
        span.in_scope(|| info!(stage = ?record.stage, container = ?instance.state, "adopted"));
        let (id, found) = (record.id.clone(), instance.state);
        let driver = SandboxDriver::new(self.shared.clone(), record, instance);
        self.shared.entries().insert(id, driver.entry());
        self.spawn(driver.adopt(found).instrument(span));
    }

    /// Removes a sandbox that cannot live on.
    fn remove(&self, record: SandboxRecord) {
        let span = info_span!("sandbox", sandbox.id = %record.id);
        let reason = match record.stage {
            Stage::Creating => EndReason::CreateFailed,
            _ => EndReason::Died,
        };
        span.in_scope(|| warn!(stage = ?record.stage, "removing a sandbox whose container is gone or whose create never ended"));
        let id = record.id.clone();
        let state = ContainerState::Stopped;
        let instance = Instance { id: record.instance.clone(), state, address: None };
        let driver = SandboxDriver::new(self.shared.clone(), record, instance);
        self.shared.entries().insert(id, driver.entry());
        self.spawn(driver.remove(reason).instrument(span));
    }

    /// Removes a container that is no sandbox's, trying again until the engine does it.
    fn remove_nobodys(&self, instance: InstanceId) {
        let runtime = self.shared.parts.runtime.clone();
        self.spawn(async move {
            while let Err(error) = runtime.delete(&instance).await {
                warn!(%error, %instance, "cannot remove a container that no record owns; trying again");
                tokio::time::sleep(transition::RETRY).await;
            }
        });
    }

    /// Removes images of an earlier run that nobody needs.
    async fn remove_images(&self) {
        match self.shared.parts.runtime.images().await {
            Ok(images) => {
                for image in images.iter().filter(|image| !self.shared.image_is_used(image)) {
                    self.shared.remove_image(image).await;
                }
            }
            Err(error) => warn!(%error, "cannot see which images are left"),
        }
    }

    /// Follows the engine's events until dropped: a container that ends by itself ends its sandbox.
    pub async fn watch(&self) {
        let mut events = self.shared.parts.runtime.watch();
        let mut compare = interval_at(Instant::now() + COMPARE_EVERY, COMPARE_EVERY);
        loop {
            tokio::select! {
                event = events.next() => match event {
                    Some(RuntimeEvent::Died(instance)) => self.look_at(&instance).await,
                    Some(RuntimeEvent::Resync) => self.compare().await,
                    None => return,
                },
                _ = compare.tick() => self.compare().await,
            }
        }
    }

    /// Has the driver of a container look at it.
    async fn look_at(&self, instance: &InstanceId) {
        if self.shared.pool.remove(instance) {
            return self.remove_nobodys(instance.clone());
        }
        let driver = {
            let entries = self.shared.entries();
            let is_it = |entry: &&super::SandboxEntry| entry.view.borrow().instance.id == *instance;
            entries.values().find(is_it).map(|entry| entry.requests.clone())
        };
        if let Some(driver) = driver {
            // A driver that has ended knows already.
            let _ = driver.send(Request::Look).await;
        }
    }

    async fn compare(&self) {
        // Who runs is asked before the engine is: a sandbox that becomes ready while the engine answers would be
        // missing in the answer.
        let known: Vec<_> = {
            let entries = self.shared.entries();
            entries.values().map(|entry| entry.view.borrow().clone()).collect()
        };
        let warm = self.shared.pool.instances();
        let instances = match self.shared.parts.runtime.list().await {
            Ok(instances) => instances,
            Err(error) => return warn!(%error, "cannot compare sandboxes with the engine"),
        };
        self.shared.pool.compare(&warm, &instances).await;
        let found: HashMap<&InstanceId, ContainerState> =
            instances.iter().map(|instance| (&instance.id, instance.state)).collect();
        for sandbox in known.iter().filter(|sandbox| sandbox.state.is_visible()) {
            if found.get(&sandbox.instance.id) != Some(&sandbox.instance.state) {
                self.look_at(&sandbox.instance.id).await;
            }
        }
        self.remove_strays(instances).await;
    }

    /// Removes containers that no sandbox and no record has.
    async fn remove_strays(&self, instances: Vec<Instance>) {
        let owned: HashSet<InstanceId> = {
            let entries = self.shared.entries();
            entries.values().map(|entry| entry.view.borrow().instance.id.clone()).collect()
        };
        let strays = instances.into_iter().map(|instance| instance.id);
        let strays: Vec<_> =
            strays.filter(|id| !owned.contains(id) && !self.shared.pool.has(id)).collect();
        if strays.is_empty() {
            return;
        }
        // A sandbox that is being made has its container in its record only.
        let (records, unreadable) = match self.shared.parts.store.sandboxes().await {
            Ok(found) => found,
            Err(error) => return warn!(%error, "cannot see whose containers are left"),
        };
        for instance in strays {
            let recorded = records.iter().any(|record| record.instance == instance)
                || unreadable.iter().any(|row| row.instance == instance.as_str());
            if !recorded && !self.shared.pool.has(&instance) && !self.is_claimed(&instance) {
                info!(%instance, "removing a container that no record owns");
                self.remove_nobodys(instance);
            }
        }
    }

    fn is_claimed(&self, instance: &InstanceId) -> bool {
        let entries = self.shared.entries();
        entries.values().any(|entry| entry.view.borrow().instance.id == *instance)
    }
}

/// Whether a sandbox of an earlier run lives on with what the engine has of it.
fn stays(record: &SandboxRecord, instance: &Instance) -> bool {
    match record.stage {
        Stage::Creating => false,
        // What had run and does not any more has ended.
        Stage::Running | Stage::Snapshotting => instance.state != ContainerState::Stopped,
        Stage::Pausing(_) | Stage::Paused(_) | Stage::Resuming(_) | Stage::Ending => true,
    }
}
