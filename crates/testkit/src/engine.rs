//! A container engine with its object store and executors, in memory.

mod executor;
mod runtime;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::future::pending;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sandyard_core::{Claim, ContainerSpec, ContainerState, DiskSpace, Instance, RuntimeEvent};
#[cfg(doc)]
use sandyard_core::{ExecutorClient, Runtime, Workspaces};
use sandyard_types::{InstanceId, SandboxId, WorkspaceSpec};
use tokio::sync::{broadcast, watch};

use crate::FakeDaemon;

/// A call that the scheduler makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EngineCall {
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
    /// [`Runtime::memory_usage`].
    MemoryUsage,
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
    inner: Arc<EngineParts>,
}

struct EngineParts {
    state: Mutex<EngineState>,
    events: broadcast::Sender<RuntimeEvent>,
    /// Sends the number of calls made so far.
    made: watch::Sender<usize>,
    /// Told at every [`FakeEngine::heal`].
    healed: watch::Sender<()>,
    /// Told when a call begins or ends to hang.
    hung: watch::Sender<()>,
    /// Whether [`FakeEngine::stop_at`] has come true.
    stopped: watch::Sender<bool>,
    /// Whether every container has a [`FakeDaemon`].
    daemons: bool,
}

#[derive(Default)]
struct EngineState {
    instances: BTreeMap<InstanceId, Instance>,
    daemons: HashMap<InstanceId, Arc<FakeDaemon>>,
    behaviours: HashMap<EngineCall, Behaviour>,
    calls: Vec<(EngineCall, Option<InstanceId>)>,
    claims: Vec<Claim>,
    specs: Vec<ContainerSpec>,
    prepared: Vec<WorkspaceSpec>,
    released: Vec<SandboxId>,
    /// Containers whose processes are halted.
    halted: BTreeSet<InstanceId>,
    /// Images that were made of containers.
    images: BTreeSet<String>,
    /// Images of templates that are not there.
    missing_images: BTreeSet<String>,
    /// What each container was made from.
    used_images: HashMap<InstanceId, String>,
    /// Calls that hang now.
    hanging: Vec<(EngineCall, Option<InstanceId>)>,
    /// Await points that are still let pass; `None` for all.
    passes: Option<usize>,
    /// Whether a drain can bring everything into the store.
    undrained: bool,
    disk_usage: Vec<(InstanceId, u64)>,
    disk_space: Option<DiskSpace>,
}

impl EngineState {
    /// A container is gone, with what was in it.
    fn remove(&mut self, id: &InstanceId) {
        self.instances.remove(id);
        self.used_images.remove(id);
        self.halted.remove(id);
        self.daemons.remove(id);
    }

    /// The processes of a container have ended.
    fn end_processes(&mut self, id: &InstanceId) {
        if let Some(instance) = self.instances.get_mut(id) {
            instance.state = ContainerState::Stopped;
            instance.address = None;
        }
        self.halted.remove(id);
        self.daemons.remove(id);
    }
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
        let inner = EngineParts {
            state: Mutex::default(),
            events: broadcast::Sender::new(EVENTS),
            made: watch::Sender::new(0),
            healed: watch::Sender::default(),
            hung: watch::Sender::default(),
            stopped: watch::Sender::default(),
            daemons,
        };
        Self { inner: Arc::new(inner) }
    }

    fn state(&self) -> MutexGuard<'_, EngineState> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes every such call behave so from now on.
    pub fn script(&self, call: EngineCall, behaviour: Behaviour) {
        self.state().behaviours.insert(call, behaviour);
    }

    /// Makes every such call work again, those that hang too.
    pub fn heal(&self, call: EngineCall) {
        self.state().behaviours.remove(&call);
        self.inner.healed.send_replace(());
    }

    /// Takes an image of a template away, or brings it back.
    pub fn set_image(&self, image: &str, there: bool) {
        let mut state = self.state();
        if there {
            state.missing_images.remove(image);
        } else {
            state.missing_images.insert(image.to_owned());
        }
    }

    /// All calls so far, in order.
    pub fn calls(&self) -> Vec<(EngineCall, Option<InstanceId>)> {
        self.state().calls.clone()
    }

    /// Waits until such a call has been made `times` times altogether.
    pub async fn called(&self, call: EngineCall, times: usize) {
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
        if to == ContainerState::Stopped {
            return state.end_processes(id);
        }
        if let Some(instance) = state.instances.get_mut(id) {
            instance.state = to;
            instance.address = Some(IpAddr::V4(Ipv4Addr::LOCALHOST));
        }
    }

    /// What a container is doing; `None` if it does not exist.
    pub fn state_of(&self, id: &InstanceId) -> Option<ContainerState> {
        self.state().instances.get(id).map(|instance| instance.state)
    }

    /// Removes a container as somebody else can. Nobody is told.
    pub fn take_away(&self, id: &InstanceId) {
        self.state().remove(id);
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
        self.state().end_processes(id);
    }

    /// Emits an event to all that watch now.
    pub fn announce(&self, event: RuntimeEvent) {
        // Without a watcher nobody needs it.
        let _ = self.inner.events.send(event);
    }

    /// Lets so many await points pass from now on. There is one before each call does its work and one after. The
    /// next one, and all that come to theirs later, stop for good: then the test drops the caller, as a crash
    /// would.
    pub fn stop_at(&self, passes: usize) {
        self.state().passes = Some(passes);
    }

    /// Lets all await points pass again. What has stopped stays so.
    pub fn never_stop(&self) {
        self.state().passes = None;
        self.inner.stopped.send_replace(false);
    }

    /// Waits until something has stopped.
    pub async fn stopped(&self) {
        // The sender lives as long as the engine.
        let _ = self.inner.stopped.subscribe().wait_for(|stopped| *stopped).await;
    }

    /// The calls that hang now, each with its container.
    pub fn hanging(&self) -> Vec<(EngineCall, Option<InstanceId>)> {
        self.state().hanging.clone()
    }

    /// Waits until such a call hangs.
    pub async fn hangs(&self, call: EngineCall) {
        self.hung_as(|hanging| hanging.iter().any(|(c, _)| *c == call)).await;
    }

    /// Waits until the calls that hang are as asked for.
    pub async fn hung_as(&self, wanted: impl Fn(&[(EngineCall, Option<InstanceId>)]) -> bool) {
        let mut hung = self.inner.hung.subscribe();
        // The sender lives as long as the engine.
        let _ = hung.wait_for(|()| wanted(&self.state().hanging)).await;
    }

    /// An await point.
    async fn pass(&self) {
        tokio::task::yield_now().await;
        let passes = {
            let mut state = self.state();
            let passes = state.passes != Some(0);
            state.passes = state.passes.map(|left| left.saturating_sub(1));
            passes
        };
        if !passes {
            self.inner.stopped.send_replace(true);
            pending::<()>().await;
        }
    }

    /// Notes a call, and hangs or fails if told to. Every call can be abandoned here, before it has done
    /// anything, and in [`Self::end`].
    async fn begin(&self, call: EngineCall, id: Option<&InstanceId>) -> Result<(), ()> {
        self.pass().await;
        let (behaviour, made) = {
            let mut state = self.state();
            state.calls.push((call, id.cloned()));
            (state.behaviours.get(&call).copied(), state.calls.len())
        };
        self.inner.made.send_replace(made);
        match behaviour {
            Some(Behaviour::Hang) => {
                self.healed(call, id).await;
                Ok(())
            }
            Some(Behaviour::Fail) => Err(()),
            Some(Behaviour::FailAfter | Behaviour::HangAfter) | None => Ok(()),
        }
    }

    /// Waits until a call is no longer told to behave in any way.
    async fn healed(&self, call: EngineCall, id: Option<&InstanceId>) {
        let _hanging = Hanging::new(self, call, id);
        let mut healed = self.inner.healed.subscribe();
        // The sender lives as long as the engine.
        let _ = healed.wait_for(|()| !self.state().behaviours.contains_key(&call)).await;
    }

    /// Ends a call that has done its work.
    async fn end(&self, call: EngineCall, id: Option<&InstanceId>) -> Result<(), ()> {
        self.pass().await;
        let behaviour = self.state().behaviours.get(&call).copied();
        match behaviour {
            Some(Behaviour::FailAfter) => Err(()),
            Some(Behaviour::HangAfter) => {
                self.healed(call, id).await;
                Ok(())
            }
            Some(Behaviour::Fail | Behaviour::Hang) | None => Ok(()),
        }
    }
}

/// A call hangs as long as this lives.
struct Hanging<'a> {
    engine: &'a FakeEngine,
    what: (EngineCall, Option<InstanceId>),
}

impl<'a> Hanging<'a> {
    fn new(engine: &'a FakeEngine, call: EngineCall, id: Option<&InstanceId>) -> Self {
        let what = (call, id.cloned());
        engine.state().hanging.push(what.clone());
        engine.inner.hung.send_replace(());
        Self { engine, what }
    }
}

impl Drop for Hanging<'_> {
    fn drop(&mut self) {
        {
            let mut state = self.engine.state();
            if let Some(place) = state.hanging.iter().position(|what| *what == self.what) {
                state.hanging.swap_remove(place);
            }
        }
        self.engine.inner.hung.send_replace(());
    }
}
