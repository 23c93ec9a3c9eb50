//! What the scheduler needs from a container engine. No type of an engine crosses this line.

use std::collections::BTreeMap;
use std::net::IpAddr;

use async_trait::async_trait;
use futures::stream::BoxStream;
use sandyard_types::{Cache, InstanceId, Template};

/// What a container gets at its creation and cannot get later: devices and capabilities.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Profile {
    /// No workspace: neither /dev/fuse nor SYS_ADMIN.
    Plain,
    /// A workspace mounted by `init` inside (design 6.1, mode `sandbox`).
    Workspace,
}

/// Everything that is fixed when a container is made. Identity, environment, token and mounts come
/// later, with [`crate::Claim`].
#[derive(Clone, Debug)]
pub struct ContainerSpec {
    /// Names the container, to the engine, to itself and to us. It means nothing to anybody else: neighbours can
    /// ask the engine's name server for the names of containers, and sandbox ids are what guards public ports.
    pub instance: InstanceId,
    /// Image, limits and privileges.
    pub template: Template,
    /// Devices and capabilities.
    pub profile: Profile,
    /// Where a workspace's driver keeps file contents; unused by [`Profile::Plain`].
    pub cache: Cache,
}

/// What a container is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContainerState {
    /// Its processes run.
    Running,
    /// Its processes are frozen in memory.
    Frozen,
    /// It has no processes. Its files are there.
    Stopped,
}

/// A container that exists on the engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// Its name. The store knows which sandbox it is.
    pub id: InstanceId,
    /// What it is doing.
    pub state: ContainerState,
    /// Where its ports are reached; `None` when it is stopped.
    pub address: Option<IpAddr>,
}

/// Space on the disk that containers write to, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskSpace {
    /// All of it.
    pub total: u64,
    /// What is free for users without special rights.
    pub free: u64,
}

/// What an image says about itself (design 3).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageFacts {
    /// Its `ENV`.
    pub env: BTreeMap<String, String>,
    /// Its `WORKDIR`, if it sets one.
    pub workdir: Option<String>,
}

/// What happened on the engine without our doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RuntimeEvent {
    /// A container of ours ended or was removed. By the time that this is read it may run again.
    Died(InstanceId),
    /// Events may have been missed: compare with [`Runtime::list`].
    Resync,
}

/// Why the engine did not do what was asked. Each text says what was tried and what to do.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The engine does not answer at all.
    #[error("the container engine does not answer at {endpoint}; is it running? ({reason})")]
    Unreachable {
        /// Where it was looked for.
        endpoint: String,
        /// What the system said.
        reason: String,
    },
    /// The image is neither on the engine nor in a registry it can reach.
    #[error(
        "image '{image}' of template '{template}' is not on the engine and could not be pulled: {reason}"
    )]
    ImageMissing {
        /// The image's reference.
        image: String,
        /// The template that names it.
        template: String,
        /// What the engine said.
        reason: String,
    },
    /// The host has no /dev/fuse.
    #[error(
        "the engine's host has no /dev/fuse, which a workspace needs: load the kernel module 'fuse' there ({0})"
    )]
    NoFuse(String),
    /// The spec asks for something this runtime cannot do.
    #[error("this runtime cannot do what the template asks: {0}")]
    Unsupported(String),
    /// Any other refusal or failure.
    #[error("the engine failed to {call}: {reason}")]
    Failed {
        /// What was tried.
        call: &'static str,
        /// What the engine said.
        reason: String,
    },
}

/// What the scheduler needs from a container engine. Shaped so that another engine fits later.
#[async_trait]
pub trait Runtime: Send + Sync + 'static {
    /// Refuses a spec that this runtime cannot honour in full.
    ///
    /// # Errors
    /// [`RuntimeError::Unsupported`], naming what.
    fn validate(&self, spec: &ContainerSpec) -> Result<(), RuntimeError>;

    /// Whether the template's image is on the engine. Fetches nothing.
    ///
    /// # Errors
    /// [`RuntimeError`] if the engine does not tell.
    async fn image_present(&self, template: &Template) -> Result<bool, RuntimeError>;

    /// Makes sure the template's image is there, and reads what it says about itself.
    ///
    /// # Errors
    /// [`RuntimeError::ImageMissing`] if it is nowhere to be had.
    async fn ensure_image(&self, template: &Template) -> Result<ImageFacts, RuntimeError>;

    /// Makes and starts a container. Returns once it runs; the executor in it may not answer yet.
    ///
    /// # Errors
    /// Whatever the engine refused; a container that was made but did not start is left for
    /// [`Runtime::delete`].
    async fn create(&self, spec: &ContainerSpec) -> Result<Instance, RuntimeError>;

    /// All containers of this installation, running or not.
    ///
    /// # Errors
    /// The engine's failure to answer.
    async fn list(&self) -> Result<Vec<Instance>, RuntimeError>;

    /// What happens to containers of this installation, from now on. Never ends; a connection that was made,
    /// for the first time or again, is announced as [`RuntimeEvent::Resync`].
    fn watch(&self) -> BoxStream<'static, RuntimeEvent>;

    /// One container as it is now; `None` if it does not exist.
    ///
    /// # Errors
    /// The engine's failure to answer.
    async fn inspect(&self, id: &InstanceId) -> Result<Option<Instance>, RuntimeError>;

    /// Freezes all processes of a running container; without effect on a frozen one.
    ///
    /// # Errors
    /// The engine's failure. The container then runs, or its state is unknown.
    async fn freeze(&self, id: &InstanceId) -> Result<(), RuntimeError>;

    /// Lets a frozen container go on; without effect on any other, also on one that does not exist.
    ///
    /// # Errors
    /// The engine's failure.
    async fn thaw(&self, id: &InstanceId) -> Result<(), RuntimeError>;

    /// Ends all processes of a container at once, frozen or not, and keeps its files. Returns when they
    /// are gone; without effect on a stopped container.
    ///
    /// # Errors
    /// The engine's failure.
    async fn halt(&self, id: &InstanceId) -> Result<(), RuntimeError>;

    /// Starts a stopped container again. Returns once it runs; the executor in it may not answer yet.
    ///
    /// # Errors
    /// The engine's failure, also if the container does not exist.
    async fn start(&self, id: &InstanceId) -> Result<Instance, RuntimeError>;

    /// Makes an image of a container's files, without its volumes. Does not freeze it: the caller does.
    /// Returns the image's reference. Nothing is left of an image that could not be finished.
    ///
    /// # Errors
    /// The engine's failure, most often a full disk.
    async fn commit(&self, id: &InstanceId, name: &str) -> Result<String, RuntimeError>;

    /// Removes an image made by [`Runtime::commit`]. Idempotent.
    ///
    /// # Errors
    /// The engine's failure, also while a container uses the image.
    async fn remove_image(&self, image: &str) -> Result<(), RuntimeError>;

    /// The references of all images that [`Runtime::commit`] has made for this installation.
    ///
    /// # Errors
    /// The engine's failure to answer.
    async fn images(&self) -> Result<Vec<String>, RuntimeError>;

    /// Asks PID 1 of the container to end and waits for it, `limit_secs` at most. For a container whose
    /// `init` does not answer calls; without effect on one that does not run.
    ///
    /// # Errors
    /// The engine's failure.
    async fn stop(&self, id: &InstanceId, limit_secs: u32) -> Result<(), RuntimeError>;

    /// Removes the container and its anonymous volumes. Idempotent: one that is already gone counts as
    /// deleted.
    ///
    /// # Errors
    /// The engine's failure.
    async fn delete(&self, id: &InstanceId) -> Result<(), RuntimeError>;

    /// Whether the engine itself bounds what a container writes, so that nobody needs to watch it.
    fn bounds_disk(&self) -> bool;

    /// What each container of this installation has written on the engine's disk, in bytes. Looks through all
    /// that was written: for a watch, not for a request.
    ///
    /// # Errors
    /// The engine's failure.
    async fn disk_usage(&self) -> Result<Vec<(InstanceId, u64)>, RuntimeError>;

    /// The memory that a container's processes hold now, in bytes, frozen or not.
    ///
    /// # Errors
    /// The engine's failure.
    async fn memory_usage(&self, id: &InstanceId) -> Result<u64, RuntimeError>;

    /// The disk that containers write to; `None` where it cannot be seen from here.
    fn disk_space(&self) -> Option<DiskSpace>;

    /// The last lines that `init` and the daemon printed, for an error's text.
    ///
    /// # Errors
    /// The engine's failure.
    async fn last_lines(&self, id: &InstanceId) -> Result<Vec<String>, RuntimeError>;
}
