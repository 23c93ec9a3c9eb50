//! The fake engine as a [`Runtime`].

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use async_trait::async_trait;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use sandyard_core::{
    ContainerSpec, ContainerState, DiskSpace, ImageFacts, Instance, Runtime, RuntimeError,
    RuntimeEvent,
};
use sandyard_types::{InstanceId, Template};
use tokio::sync::broadcast;

use super::{EngineCall, FakeEngine};
use crate::FakeDaemon;

fn refused(call: &'static str) -> impl Fn(()) -> RuntimeError {
    move |()| RuntimeError::Failed { call, reason: "told to fail".to_owned() }
}

#[async_trait]
impl Runtime for FakeEngine {
    fn validate(&self, _: &ContainerSpec) -> Result<(), RuntimeError> {
        Ok(())
    }

    async fn image_present(&self, template: &Template) -> Result<bool, RuntimeError> {
        Ok(self.has_image(&template.image))
    }

    async fn ensure_image(&self, template: &Template) -> Result<ImageFacts, RuntimeError> {
        let missing = |()| RuntimeError::ImageMissing {
            image: template.image.clone(),
            template: template.name.to_string(),
            reason: "told to fail".to_owned(),
        };
        self.begin(EngineCall::EnsureImage, None).await.map_err(missing)?;
        if !self.has_image(&template.image) {
            return Err(missing(()));
        }
        self.end(EngineCall::EnsureImage, None).await.map_err(missing)?;
        Ok(ImageFacts::default())
    }

    async fn create(&self, spec: &ContainerSpec) -> Result<Instance, RuntimeError> {
        const WHAT: &str = "create the container";
        self.begin(EngineCall::Create, Some(&spec.instance)).await.map_err(refused(WHAT))?;
        if !self.has_image(&spec.template.image) {
            let reason = "there is no such image".to_owned();
            return Err(RuntimeError::Failed { call: WHAT, reason });
        }
        let daemon = self.start_daemon(WHAT).await?;
        let instance = Instance {
            id: spec.instance.clone(),
            state: ContainerState::Running,
            address: Some(address_of(daemon.as_deref())),
        };
        {
            let mut state = self.state();
            state.instances.insert(spec.instance.clone(), instance.clone());
            state.specs.push(spec.clone());
            state.used_images.insert(spec.instance.clone(), spec.template.image.clone());
            state.daemons.extend(daemon.map(|daemon| (spec.instance.clone(), daemon)));
        }
        self.end(EngineCall::Create, Some(&spec.instance)).await.map_err(refused(WHAT))?;
        Ok(instance)
    }

    async fn list(&self) -> Result<Vec<Instance>, RuntimeError> {
        const WHAT: &str = "list containers";
        self.begin(EngineCall::List, None).await.map_err(refused(WHAT))?;
        let all = self.instances();
        self.end(EngineCall::List, None).await.map_err(refused(WHAT))?;
        Ok(all)
    }

    fn watch(&self) -> BoxStream<'static, RuntimeEvent> {
        let events = self.inner.events.subscribe();
        futures::stream::unfold(events, |mut events| async move {
            let event = match events.recv().await {
                Ok(event) => event,
                Err(broadcast::error::RecvError::Lagged(_)) => RuntimeEvent::Resync,
                // The engine itself is gone: an engine never ends its events.
                Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
            };
            Some((event, events))
        })
        .boxed()
    }

    async fn inspect(&self, id: &InstanceId) -> Result<Option<Instance>, RuntimeError> {
        const WHAT: &str = "inspect the container";
        self.begin(EngineCall::Inspect, Some(id)).await.map_err(refused(WHAT))?;
        let found = self.state().instances.get(id).cloned();
        self.end(EngineCall::Inspect, Some(id)).await.map_err(refused(WHAT))?;
        Ok(found)
    }

    async fn freeze(&self, id: &InstanceId) -> Result<(), RuntimeError> {
        const WHAT: &str = "freeze the container";
        self.begin(EngineCall::Freeze, Some(id)).await.map_err(refused(WHAT))?;
        self.change(id, WHAT, |instance| match instance.state {
            ContainerState::Stopped => false,
            ContainerState::Running | ContainerState::Frozen => {
                instance.state = ContainerState::Frozen;
                true
            }
        })?;
        self.end(EngineCall::Freeze, Some(id)).await.map_err(refused(WHAT))
    }

    async fn thaw(&self, id: &InstanceId) -> Result<(), RuntimeError> {
        const WHAT: &str = "thaw the container";
        self.begin(EngineCall::Thaw, Some(id)).await.map_err(refused(WHAT))?;
        if let Some(instance) = self.state().instances.get_mut(id)
            && instance.state == ContainerState::Frozen
        {
            instance.state = ContainerState::Running;
        }
        self.end(EngineCall::Thaw, Some(id)).await.map_err(refused(WHAT))
    }

    async fn halt(&self, id: &InstanceId) -> Result<(), RuntimeError> {
        const WHAT: &str = "end the container's processes";
        self.begin(EngineCall::Halt, Some(id)).await.map_err(refused(WHAT))?;
        self.die_unseen(id);
        self.end(EngineCall::Halt, Some(id)).await.map_err(refused(WHAT))
    }

    async fn start(&self, id: &InstanceId) -> Result<Instance, RuntimeError> {
        const WHAT: &str = "start the container";
        self.begin(EngineCall::Start, Some(id)).await.map_err(refused(WHAT))?;
        let daemon = self.start_daemon(WHAT).await?;
        let address = address_of(daemon.as_deref());
        let instance = self.change(id, WHAT, |instance| {
            instance.state = ContainerState::Running;
            instance.address = Some(address);
            true
        })?;
        self.state().daemons.extend(daemon.map(|daemon| (id.clone(), daemon)));
        self.end(EngineCall::Start, Some(id)).await.map_err(refused(WHAT))?;
        Ok(instance)
    }

    async fn commit(&self, id: &InstanceId, name: &str) -> Result<String, RuntimeError> {
        const WHAT: &str = "make an image";
        self.begin(EngineCall::Commit, Some(id)).await.map_err(refused(WHAT))?;
        self.change(id, WHAT, |_| true)?;
        let image = format!("{COMMITTED}{name}");
        self.state().images.insert(image.clone());
        let ended = self.end(EngineCall::Commit, Some(id)).await.map_err(refused(WHAT));
        if ended.is_err() {
            self.state().images.remove(&image);
        }
        ended.map(|()| image)
    }

    async fn remove_image(&self, image: &str) -> Result<(), RuntimeError> {
        const WHAT: &str = "remove an image";
        self.begin(EngineCall::RemoveImage, None).await.map_err(refused(WHAT))?;
        {
            let mut state = self.state();
            if state.used_images.values().any(|used| used == image) {
                let reason = "a container uses it".to_owned();
                return Err(RuntimeError::Failed { call: WHAT, reason });
            }
            state.images.remove(image);
        }
        self.end(EngineCall::RemoveImage, None).await.map_err(refused(WHAT))
    }

    async fn images(&self) -> Result<Vec<String>, RuntimeError> {
        const WHAT: &str = "list images";
        self.begin(EngineCall::Images, None).await.map_err(refused(WHAT))?;
        let images = Self::images(self);
        self.end(EngineCall::Images, None).await.map_err(refused(WHAT))?;
        Ok(images)
    }

    async fn stop(&self, id: &InstanceId, _: u32) -> Result<(), RuntimeError> {
        const WHAT: &str = "stop the container";
        self.begin(EngineCall::Stop, Some(id)).await.map_err(refused(WHAT))?;
        self.die_unseen(id);
        self.end(EngineCall::Stop, Some(id)).await.map_err(refused(WHAT))
    }

    async fn delete(&self, id: &InstanceId) -> Result<(), RuntimeError> {
        const WHAT: &str = "remove the container";
        self.begin(EngineCall::Delete, Some(id)).await.map_err(refused(WHAT))?;
        {
            let mut state = self.state();
            state.remove(id);
        }
        self.end(EngineCall::Delete, Some(id)).await.map_err(refused(WHAT))
    }

    fn bounds_disk(&self) -> bool {
        false
    }

    async fn disk_usage(&self) -> Result<Vec<(InstanceId, u64)>, RuntimeError> {
        const WHAT: &str = "tell what containers have written";
        self.begin(EngineCall::DiskUsage, None).await.map_err(refused(WHAT))?;
        let usage = self.state().disk_usage.clone();
        self.end(EngineCall::DiskUsage, None).await.map_err(refused(WHAT))?;
        Ok(usage)
    }

    async fn memory_usage(&self, id: &InstanceId) -> Result<u64, RuntimeError> {
        const WHAT: &str = "tell the container's memory";
        self.begin(EngineCall::MemoryUsage, Some(id)).await.map_err(refused(WHAT))?;
        self.end(EngineCall::MemoryUsage, Some(id)).await.map_err(refused(WHAT))?;
        // Each as much as the other.
        Ok(100 << 20)
    }

    fn disk_space(&self) -> Option<DiskSpace> {
        self.state().disk_space
    }

    async fn last_lines(&self, id: &InstanceId) -> Result<Vec<String>, RuntimeError> {
        const WHAT: &str = "read the container's log";
        self.begin(EngineCall::LastLines, Some(id)).await.map_err(refused(WHAT))?;
        self.end(EngineCall::LastLines, Some(id)).await.map_err(refused(WHAT))?;
        Ok(vec!["the last line".to_owned()])
    }
}

impl FakeEngine {
    /// Changes a container that is there and can be changed so.
    fn change(
        &self,
        id: &InstanceId,
        call: &'static str,
        change: impl FnOnce(&mut Instance) -> bool,
    ) -> Result<Instance, RuntimeError> {
        let mut state = self.state();
        let failed = |reason: &str| RuntimeError::Failed { call, reason: reason.to_owned() };
        let instance = state.instances.get_mut(id).ok_or_else(|| failed("it does not exist"))?;
        if change(instance) { Ok(instance.clone()) } else { Err(failed("it is stopped")) }
    }

    /// Whether a container can be made from an image: one that a commit made must not be removed yet.
    fn has_image(&self, image: &str) -> bool {
        let state = self.state();
        let missing = state.missing_images.contains(image);
        !missing && (!image.starts_with(COMMITTED) || state.images.contains(image))
    }

    async fn start_daemon(
        &self,
        call: &'static str,
    ) -> Result<Option<Arc<FakeDaemon>>, RuntimeError> {
        if !self.inner.daemons {
            return Ok(None);
        }
        let started = FakeDaemon::start().await;
        let failed =
            |error: std::io::Error| RuntimeError::Failed { call, reason: error.to_string() };
        Ok(Some(Arc::new(started.map_err(failed)?)))
    }
}

/// What the references of committed images begin with.
const COMMITTED: &str = "fake:";

fn address_of(daemon: Option<&FakeDaemon>) -> IpAddr {
    daemon.map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |daemon| daemon.address().ip())
}
