//! What a container is doing, and making it do something else.

use bollard::errors::Error;
use bollard::query_parameters::{
    InspectContainerOptions, KillContainerOptionsBuilder, RemoveContainerOptionsBuilder,
    StatsOptionsBuilder, WaitContainerOptions,
};
use futures::StreamExt as _;
use sandyard_core::{ContainerState, Instance, RuntimeError};
use sandyard_types::InstanceId;
use tracing::{info, warn};

use crate::container::{self, container_name};
use crate::engine::DockerRuntime;
use crate::error::{failed, is_conflict, is_not_found};

/// How often a removal is tried that the engine refuses because something else happens to the container.
const REMOVALS: u32 = 5;

/// How the engine says that somebody else removes the container.
const IN_PROGRESS: &str = "already in progress";

impl DockerRuntime {
    pub(crate) async fn find(&self, id: &InstanceId) -> Result<Option<Instance>, RuntimeError> {
        let options = None::<InspectContainerOptions>;
        let found = match self.docker.inspect_container(&container_name(id), options).await {
            Err(error) if is_not_found(&error) => return Ok(None),
            found => found.map_err(|error| failed(&self.endpoint, "inspect a container", error))?,
        };
        let state = found.state.unwrap_or_default();
        let state = match (state.running.unwrap_or(false), state.paused.unwrap_or(false)) {
            (_, true) => ContainerState::Frozen,
            (true, false) => ContainerState::Running,
            (false, false) => ContainerState::Stopped,
        };
        let address = container::address(found.network_settings, &self.network.name);
        let address = address.filter(|_| state != ContainerState::Stopped);
        Ok(Some(Instance { id: id.clone(), state, address }))
    }

    pub(crate) async fn freeze_container(&self, id: &InstanceId) -> Result<(), RuntimeError> {
        match self.docker.pause_container(&container_name(id)).await {
            // "already paused" is a conflict too; what else it may be shows now.
            Err(error) if is_conflict(&error) => match self.find(id).await? {
                Some(Instance { state: ContainerState::Frozen, .. }) => Ok(()),
                _ => Err(failed(&self.endpoint, "freeze a container", error)),
            },
            frozen => frozen.map_err(|error| failed(&self.endpoint, "freeze a container", error)),
        }
    }

    pub(crate) async fn thaw_container(&self, id: &InstanceId) -> Result<(), RuntimeError> {
        let Some(found) = self.find(id).await? else { return Ok(()) };
        if found.state != ContainerState::Frozen {
            return Ok(());
        }
        let thawed = self.docker.unpause_container(&container_name(id)).await;
        thawed.map_err(|error| failed(&self.endpoint, "thaw a container", error))
    }

    pub(crate) async fn halt_container(&self, id: &InstanceId) -> Result<(), RuntimeError> {
        let name = container_name(id);
        let fail = |error| failed(&self.endpoint, "end a container's processes", error);
        let options = KillContainerOptionsBuilder::default().signal("KILL").build();
        match self.docker.kill_container(&name, Some(options)).await {
            Ok(()) => {}
            Err(error) if is_not_found(&error) => return Ok(()),
            // It does not run: a conflict.
            Err(error) if is_conflict(&error) => match self.find(id).await? {
                None | Some(Instance { state: ContainerState::Stopped, .. }) => return Ok(()),
                Some(_) => return Err(fail(error)),
            },
            Err(error) => return Err(fail(error)),
        }
        let mut ended = self.docker.wait_container(&name, None::<WaitContainerOptions>);
        match ended.next().await {
            // The client takes an exit status that is not zero for an error.
            None | Some(Ok(_) | Err(Error::DockerContainerWaitError { .. })) => Ok(()),
            Some(Err(error)) if is_not_found(&error) => Ok(()),
            Some(Err(error)) => Err(fail(error)),
        }
    }

    pub(crate) async fn start_again(&self, id: &InstanceId) -> Result<Instance, RuntimeError> {
        let started = self.docker.start_container(&container_name(id), None).await;
        started.map_err(|error| failed(&self.endpoint, "start a container", error))?;
        self.running(id).await
    }

    /// A container that was just started.
    pub(crate) async fn running(&self, id: &InstanceId) -> Result<Instance, RuntimeError> {
        match self.find(id).await? {
            Some(instance) if instance.address.is_some() => Ok(instance),
            _ => {
                let lines = self.log_lines(id).await.unwrap_or_default();
                let reason = format!("it ended at once; its last lines: {}", lines.join(" | "));
                Err(RuntimeError::Failed { call: "keep a container running", reason })
            }
        }
    }

    /// What a container holds without what the system keeps of files and gives back when asked.
    pub(crate) async fn memory_of(&self, id: &InstanceId) -> Result<u64, RuntimeError> {
        let options = StatsOptionsBuilder::default().stream(false).one_shot(true).build();
        let mut stats = self.docker.stats(&container_name(id), Some(options));
        let fail = |error| failed(&self.endpoint, "tell a container's memory", error);
        let stats = stats.next().await.transpose().map_err(fail)?;
        let memory = stats.and_then(|stats| stats.memory_stats).unwrap_or_default();
        let files = memory.stats.as_ref().and_then(|stats| {
            ["total_inactive_file", "inactive_file"].iter().find_map(|name| stats.get(*name))
        });
        Ok(memory.usage.unwrap_or(0).saturating_sub(files.copied().unwrap_or(0)))
    }

    pub(crate) async fn remove(&self, id: &InstanceId) -> Result<(), RuntimeError> {
        let name = container_name(id);
        let mut tries = 0;
        loop {
            let options = RemoveContainerOptionsBuilder::default().force(true).v(true).build();
            let error = match self.docker.remove_container(&name, Some(options)).await {
                Ok(()) => return Ok(()),
                Err(error) if is_not_found(&error) => return Ok(()),
                Err(error) if is_conflict(&error) && error.to_string().contains(IN_PROGRESS) => {
                    warn!(%error, "another removal of the container is under way");
                    return self.removed(id).await;
                }
                Err(error) => error,
            };
            // A container that ends by itself at the same moment: its processes cannot be killed any more, and the
            // engine says that instead of removing it.
            tries += 1;
            match self.find(id).await? {
                None => return Ok(()),
                Some(_) if tries < REMOVALS => {
                    info!(%error, instance = %id, "the container was not removed: trying again");
                }
                Some(_) => return Err(failed(&self.endpoint, "remove a container", error)),
            }
        }
    }
}
