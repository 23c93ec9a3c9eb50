//! A container engine with its object store and executors, in memory.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use sandyard_core::{
    Claim, ContainerSpec, ContainerState, DiskSpace, ExecutorClient, ExecutorError, Flushed, ImageFacts, Instance,
    Runtime, RuntimeError, RuntimeEvent, WorkspaceError, Workspaces,
};
use sandyard_types::{InstanceId, SandboxId, Template, WorkspaceSpec};
use tokio::sync::{broadcast, watch};

use crate::FakeDaemon;

/// A call that the scheduler makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Call {
    /// [`Runtime::ensure_image`].
    EnsureImage,
    /// [`Runtime::create`].
    Create,
    /// [`Runtime::list`].
    List,
    /// [`Runtime::inspect`].
    Inspect,
    /// [`Runtime::freeze`].
    Freeze,
    /// [`Runtime::thaw`].
    Thaw,
    /// [`Runtime::halt`].
    Halt,
    /// [`Runtime::start`].
    Start,
    /// [`Runtime::commit`].
    Commit,
    /// [`Runtime::remove_image`].
    RemoveImage,
    /// [`Runtime::images`].
    Images,
    /// [`Runtime::stop`].
    Stop,
    /// [`Runtime::delete`].
    Delete,
    /// [`Runtime::disk_usage`].
    DiskUsage,
    /// [`Runtime::last_lines`].
    LastLines,
    /// [`Workspaces::prepare`].
    Prepare,
    /// [`ExecutorClient::claim`].
    Claim,
    /// [`ExecutorClient::ready`].
    Ready,
    /// [`ExecutorClient::drain`].
    Drain,
    /// [`ExecutorClient::resume`].
    Resume,
    /// [`ExecutorClient::sync`].
    Sync,
    /// [`ExecutorClient::stop`].
    StopExecutor,
}

/// What a call does from now on instead of working.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behaviour {
    /// Fails before it has done anything.
    Fail,
    /// Does its work, and fails then.
    FailAfter,
    /// Does nothing until [`FakeEngine::heal`], and then its work.
    Hang,
    /// Does its work, and returns only after [`FakeEngine::heal`].
    HangAfter,
}

/// A container engine, an object store and the executors of all containers. Cheap to clone: all clones
/// are one engine.
#[derive(Clone)]
pub struct FakeEngine {
    inner: Arc<Inner>,
}

struct Inner {
    state: Mutex<State>,
    events: broadcast::Sender<RuntimeEvent>,
    /// Sends the number of calls made so far.
    made: watch::Sender<usize>,
    /// Told at every [`FakeEngine::heal`].
    healed: watch::Sender<()>,
    /// Whether every container has a [`FakeDaemon`].
    daemons: bool,
}

#[derive(Default)]
struct State {
    instances: BTreeMap<InstanceId, Instance>,
    daemons: HashMap<InstanceId, Arc<FakeDaemon>>,
    behaviours: HashMap<Call, Behaviour>,
    calls: Vec<(Call, Option<InstanceId>)>,
    claims: Vec<Claim>,
    specs: Vec<ContainerSpec>,
    prepared: Vec<WorkspaceSpec>,
    released: Vec<SandboxId>,
    /// Containers whose processes are halted.
    halted: BTreeSet<InstanceId>,
    /// Images that were made of containers.
    images: BTreeSet<String>,
    /// Whether a drain can bring everything into the store.
    undrained: bool,
    disk_usage: Vec<(InstanceId, u64)>,
    disk_space: Option<DiskSpace>,
}

/// Events that a slow watcher may be behind.
const EVENTS: usize = 256;

impl Default for FakeEngine {
    fn default() -> Self {
        Self::new()
    }
}

impl FakeEngine {
    /// An engine that runs nothing. Its containers have an address at which nobody listens.
    pub fn new() -> Self {
        Self::with(false)
    }

    /// An engine whose containers each have a [`FakeDaemon`] on a loopback address of their own.
    pub fn with_daemons() -> Self {
        Self::with(true)
    }

    fn with(daemons: bool) -> Self {
        let inner = Inner {
            state: Mutex::default(),
            events: broadcast::Sender::new(EVENTS),
            made: watch::Sender::new(0),
            healed: watch::Sender::default(),
            daemons,
        };
        Self { inner: Arc::new(inner) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes every such call behave so from now on.
    pub fn script(&self, call: Call, behaviour: Behaviour) {
        self.state().behaviours.insert(call, behaviour);
    }

    /// Makes every such call work again, those that hang too.
    pub fn heal(&self, call: Call) {
        self.state().behaviours.remove(&call);
        self.inner.healed.send_replace(());
    }

    /// All calls so far, in order.
    pub fn calls(&self) -> Vec<(Call, Option<InstanceId>)> {
        self.state().calls.clone()
    }

    /// Waits until such a call has been made `times` times altogether.
    pub async fn called(&self, call: Call, times: usize) {
        let mut made = self.inner.made.subscribe();
        let reached = |engine: &Self| {
            let state = engine.state();
            state.calls.iter().filter(|(c, _)| *c == call).count() >= times
        };
        // The sender lives as long as the engine.
        let _ = made.wait_for(|_| reached(self)).await;
    }

    /// All containers, running or not.
    pub fn instances(&self) -> Vec<Instance> {
        self.state().instances.values().cloned().collect()
    }

    /// Puts a container there, as if it had been left from before.
    pub fn add(&self, instance: Instance) {
        self.state().instances.insert(instance.id.clone(), instance);
    }

    /// What containers were made from.
    pub fn specs(&self) -> Vec<ContainerSpec> {
        self.state().specs.clone()
    }

    /// What executors were given.
    pub fn claims(&self) -> Vec<Claim> {
        self.state().claims.clone()
    }

    /// Workspaces that were prepared in the object store.
    pub fn prepared(&self) -> Vec<WorkspaceSpec> {
        self.state().prepared.clone()
    }

    /// Sandboxes whose use of the object store has ended.
    pub fn released(&self) -> Vec<SandboxId> {
        self.state().released.clone()
    }

    /// Images that were made of containers and not removed.
    pub fn images(&self) -> Vec<String> {
        self.state().images.iter().cloned().collect()
    }

    /// Whether the processes of a container are halted by a drain.
    pub fn is_halted(&self, id: &InstanceId) -> bool {
        self.state().halted.contains(id)
    }

    /// From now on a drain brings everything into the store, or not.
    pub fn let_drain(&self, complete: bool) {
        self.state().undrained = !complete;
    }

    /// Does to a container what somebody else can do with the engine's own tools. Nobody is told.
    pub fn set_state(&self, id: &InstanceId, to: ContainerState) {
        let mut state = self.state();
        if let Some(instance) = state.instances.get_mut(id) {
            instance.state = to;
            let nobody = IpAddr::V4(Ipv4Addr::LOCALHOST);
            instance.address = (to != ContainerState::Stopped).then_some(nobody);
        }
    }

    /// Removes a container as somebody else can. Nobody is told.
    pub fn take_away(&self, id: &InstanceId) {
        self.state().instances.remove(id);
    }

    /// The daemon of a container.
    pub fn daemon(&self, id: &InstanceId) -> Option<Arc<FakeDaemon>> {
        self.state().daemons.get(id).cloned()
    }

    /// Has containers have written so many bytes, and the disk be so full.
    pub fn fill_disk(&self, usage: Vec<(InstanceId, u64)>, space: Option<DiskSpace>) {
        let mut state = self.state();
        state.disk_usage = usage;
        state.disk_space = space;
    }

    /// Ends a container by itself, and says so.
    pub fn die(&self, id: &InstanceId) {
        self.die_unseen(id);
        self.announce(RuntimeEvent::Died(id.clone()));
    }

    /// Ends a container by itself. Nobody is told.
    pub fn die_unseen(&self, id: &InstanceId) {
        let mut state = self.state();
        if let Some(instance) = state.instances.get_mut(id) {
            instance.state = ContainerState::Stopped;
            instance.address = None;
        }
        state.halted.remove(id);
        state.daemons.remove(id);
    }

    /// Emits an event to all that watch now.
    pub fn announce(&self, event: RuntimeEvent) {
        // Without a watcher nobody needs it.
        let _ = self.inner.events.send(event);
    }

    /// Notes a call, and hangs or fails if told to. Every call can be abandoned here, before it has done
    /// anything, and in [`Self::end`].
    async fn begin(&self, call: Call, id: Option<&InstanceId>) -> Result<(), ()> {
        tokio::task::yield_now().await;
        let (behaviour, made) = {
            let mut state = self.state();
            state.calls.push((call, id.cloned()));
            (state.behaviours.get(&call).copied(), state.calls.len())
        };
        self.inner.made.send_replace(made);
        match behaviour {
            Some(Behaviour::Hang) => {
                self.healed(call).await;
                Ok(())
            }
            Some(Behaviour::Fail) => Err(()),
            Some(Behaviour::FailAfter | Behaviour::HangAfter) | None => Ok(()),
        }
    }

    /// Waits until a call is no longer told to behave in any way.
    async fn healed(&self, call: Call) {
        let mut healed = self.inner.healed.subscribe();
        // The sender lives as long as the engine.
        let _ = healed.wait_for(|()| !self.state().behaviours.contains_key(&call)).await;
    }

    /// Ends a call that has done its work.
    async fn end(&self, call: Call) -> Result<(), ()> {
        tokio::task::yield_now().await;
        let behaviour = self.state().behaviours.get(&call).copied();
        match behaviour {
            Some(Behaviour::FailAfter) => Err(()),
            Some(Behaviour::HangAfter) => {
                self.healed(call).await;
                Ok(())
            }
            Some(Behaviour::Fail | Behaviour::Hang) | None => Ok(()),
        }
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
}

fn refused(call: &'static str) -> impl Fn(()) -> RuntimeError {
    move |()| RuntimeError::Failed { call, reason: "told to fail".to_owned() }
}

fn refusal(call: &str) -> ExecutorError {
    ExecutorError::Refused(format!("told to fail to {call}"))
}

#[async_trait]
impl Runtime for FakeEngine {
    fn validate(&self, _: &ContainerSpec) -> Result<(), RuntimeError> {
        Ok(())
    }

    async fn ensure_image(&self, template: &Template) -> Result<ImageFacts, RuntimeError> {
        let missing = |()| RuntimeError::ImageMissing {
            image: template.image.clone(),
            template: template.name.to_string(),
            reason: "told to fail".to_owned(),
        };
        self.begin(Call::EnsureImage, None).await.map_err(missing)?;
        self.end(Call::EnsureImage).await.map_err(missing)?;
        Ok(ImageFacts::default())
    }

    async fn create(&self, spec: &ContainerSpec) -> Result<Instance, RuntimeError> {
        const WHAT: &str = "create the container";
        self.begin(Call::Create, Some(&spec.instance)).await.map_err(refused(WHAT))?;
        let failed =
            |error: std::io::Error| RuntimeError::Failed { call: WHAT, reason: error.to_string() };
        let daemon = if self.inner.daemons {
            Some(Arc::new(FakeDaemon::start().await.map_err(failed)?))
        } else {
            None
        };
        let nobody = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let instance = Instance {
            id: spec.instance.clone(),
            state: ContainerState::Running,
            address: Some(daemon.as_ref().map_or(nobody, |d| d.address().ip())),
        };
        {
            let mut state = self.state();
            state.instances.insert(spec.instance.clone(), instance.clone());
            state.specs.push(spec.clone());
            if let Some(daemon) = daemon {
                state.daemons.insert(spec.instance.clone(), daemon);
            }
        }
        self.end(Call::Create).await.map_err(refused(WHAT))?;
        Ok(instance)
    }

    async fn list(&self) -> Result<Vec<Instance>, RuntimeError> {
        const WHAT: &str = "list containers";
        self.begin(Call::List, None).await.map_err(refused(WHAT))?;
        let all = self.instances();
        self.end(Call::List).await.map_err(refused(WHAT))?;
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
        self.begin(Call::Inspect, Some(id)).await.map_err(refused(WHAT))?;
        let found = self.state().instances.get(id).cloned();
        self.end(Call::Inspect).await.map_err(refused(WHAT))?;
        Ok(found)
    }

    async fn freeze(&self, id: &InstanceId) -> Result<(), RuntimeError> {
        const WHAT: &str = "freeze the container";
        self.begin(Call::Freeze, Some(id)).await.map_err(refused(WHAT))?;
        self.change(id, WHAT, |instance| match instance.state {
            ContainerState::Stopped => false,
            ContainerState::Running | ContainerState::Frozen => {
                instance.state = ContainerState::Frozen;
                true
            }
        })?;
        self.end(Call::Freeze).await.map_err(refused(WHAT))
    }

    async fn thaw(&self, id: &InstanceId) -> Result<(), RuntimeError> {
        const WHAT: &str = "thaw the container";
        self.begin(Call::Thaw, Some(id)).await.map_err(refused(WHAT))?;
        if let Some(instance) = self.state().instances.get_mut(id)
            && instance.state == ContainerState::Frozen
        {
            instance.state = ContainerState::Running;
        }
        self.end(Call::Thaw).await.map_err(refused(WHAT))
    }

    async fn halt(&self, id: &InstanceId) -> Result<(), RuntimeError> {
        const WHAT: &str = "end the container's processes";
        self.begin(Call::Halt, Some(id)).await.map_err(refused(WHAT))?;
        self.die_unseen(id);
        self.end(Call::Halt).await.map_err(refused(WHAT))
    }

    async fn start(&self, id: &InstanceId) -> Result<Instance, RuntimeError> {
        const WHAT: &str = "start the container";
        self.begin(Call::Start, Some(id)).await.map_err(refused(WHAT))?;
        let nobody = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let instance = self.change(id, WHAT, |instance| {
            instance.state = ContainerState::Running;
            instance.address = Some(nobody);
            true
        })?;
        self.end(Call::Start).await.map_err(refused(WHAT))?;
        Ok(instance)
    }

    async fn commit(&self, id: &InstanceId, name: &str) -> Result<String, RuntimeError> {
        const WHAT: &str = "make an image";
        self.begin(Call::Commit, Some(id)).await.map_err(refused(WHAT))?;
        self.change(id, WHAT, |_| true)?;
        let image = format!("fake:{name}");
        self.state().images.insert(image.clone());
        let ended = self.end(Call::Commit).await.map_err(refused(WHAT));
        if ended.is_err() {
            self.state().images.remove(&image);
        }
        ended.map(|()| image)
    }

    async fn remove_image(&self, image: &str) -> Result<(), RuntimeError> {
        const WHAT: &str = "remove an image";
        self.begin(Call::RemoveImage, None).await.map_err(refused(WHAT))?;
        self.state().images.remove(image);
        self.end(Call::RemoveImage).await.map_err(refused(WHAT))
    }

    async fn images(&self) -> Result<Vec<String>, RuntimeError> {
        const WHAT: &str = "list images";
        self.begin(Call::Images, None).await.map_err(refused(WHAT))?;
        let images = Self::images(self);
        self.end(Call::Images).await.map_err(refused(WHAT))?;
        Ok(images)
    }

    async fn stop(&self, id: &InstanceId, _: u32) -> Result<(), RuntimeError> {
        const WHAT: &str = "stop the container";
        self.begin(Call::Stop, Some(id)).await.map_err(refused(WHAT))?;
        self.die_unseen(id);
        self.end(Call::Stop).await.map_err(refused(WHAT))
    }

    async fn delete(&self, id: &InstanceId) -> Result<(), RuntimeError> {
        const WHAT: &str = "remove the container";
        self.begin(Call::Delete, Some(id)).await.map_err(refused(WHAT))?;
        {
            let mut state = self.state();
            state.instances.remove(id);
            state.halted.remove(id);
            state.daemons.remove(id);
        }
        self.end(Call::Delete).await.map_err(refused(WHAT))
    }

    fn bounds_disk(&self) -> bool {
        false
    }

    async fn disk_usage(&self) -> Result<Vec<(InstanceId, u64)>, RuntimeError> {
        const WHAT: &str = "tell what containers have written";
        self.begin(Call::DiskUsage, None).await.map_err(refused(WHAT))?;
        let usage = self.state().disk_usage.clone();
        self.end(Call::DiskUsage).await.map_err(refused(WHAT))?;
        Ok(usage)
    }

    fn disk_space(&self) -> Option<DiskSpace> {
        self.state().disk_space
    }

    async fn last_lines(&self, id: &InstanceId) -> Result<Vec<String>, RuntimeError> {
        const WHAT: &str = "read the container's log";
        self.begin(Call::LastLines, Some(id)).await.map_err(refused(WHAT))?;
        self.end(Call::LastLines).await.map_err(refused(WHAT))?;
        Ok(vec!["the last line".to_owned()])
    }
}

#[async_trait]
impl ExecutorClient for FakeEngine {
    async fn claim(&self, instance: &Instance, claim: &Claim) -> Result<(), ExecutorError> {
        self.begin(Call::Claim, Some(&instance.id)).await.map_err(|()| refusal("claim"))?;
        self.state().claims.push(claim.clone());
        self.end(Call::Claim).await.map_err(|()| refusal("claim"))
    }

    async fn ready(&self, instance: &Instance) -> Result<(), ExecutorError> {
        self.begin(Call::Ready, Some(&instance.id)).await.map_err(|()| refusal("be ready"))?;
        self.end(Call::Ready).await.map_err(|()| refusal("be ready"))
    }

    async fn drain(&self, instance: &Instance, _: Duration) -> Result<Flushed, ExecutorError> {
        self.begin(Call::Drain, Some(&instance.id)).await.map_err(|()| refusal("drain"))?;
        let complete = {
            let mut state = self.state();
            if !state.undrained {
                state.halted.insert(instance.id.clone());
            }
            !state.undrained
        };
        self.end(Call::Drain).await.map_err(|()| refusal("drain"))?;
        Ok(if complete { Flushed::Complete } else { Flushed::Incomplete { bytes_left: Some(7) } })
    }

    async fn resume(&self, instance: &Instance) -> Result<(), ExecutorError> {
        self.begin(Call::Resume, Some(&instance.id)).await.map_err(|()| refusal("resume"))?;
        self.state().halted.remove(&instance.id);
        self.end(Call::Resume).await.map_err(|()| refusal("resume"))
    }

    async fn sync(&self, instance: &Instance, _: Duration) -> Result<Flushed, ExecutorError> {
        self.begin(Call::Sync, Some(&instance.id)).await.map_err(|()| refusal("sync"))?;
        self.end(Call::Sync).await.map_err(|()| refusal("sync"))?;
        Ok(Flushed::Complete)
    }

    async fn stop(&self, instance: &Instance, _: Duration) -> Result<Flushed, ExecutorError> {
        self.begin(Call::StopExecutor, Some(&instance.id)).await.map_err(|()| refusal("stop"))?;
        self.end(Call::StopExecutor).await.map_err(|()| refusal("stop"))?;
        Ok(Flushed::Complete)
    }
}

#[async_trait]
impl Workspaces for FakeEngine {
    async fn prepare(&self, workspace: &WorkspaceSpec) -> Result<(), WorkspaceError> {
        let failed = |()| WorkspaceError::Unreachable("told to fail".to_owned());
        self.begin(Call::Prepare, None).await.map_err(failed)?;
        self.state().prepared.push(workspace.clone());
        self.end(Call::Prepare).await.map_err(failed)
    }

    fn release(&self, id: &SandboxId) {
        self.state().released.push(id.clone());
    }
}
