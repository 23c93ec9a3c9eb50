//! The scheduler: makes sandboxes, keeps a task for each, and brings store and engine together.

mod disk;
mod error;
mod provision;
mod reconcile;
mod task;

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt as _;
use sandyard_types::{
    BucketName, Cache, InstanceId, Network, SandboxId, SessionId, TeamId, Template, WorkspaceSpec,
};
use time::OffsetDateTime;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tracing::{Instrument as _, error, info, info_span, warn};

pub use error::SandboxError;
use task::Request;

use crate::store::{Record, Stage};
use crate::{
    ExecutorClient, Flushed, Instance, Op, Runtime, RuntimeEvent, State, Store, TemplateReference,
    Templates, Workspaces,
};

/// What bounds the server puts on sandboxes.
#[derive(Clone, Debug)]
pub struct Limits {
    /// The longest life of a sandbox, from its start (control-plane 1.1: "maximum sandbox length").
    pub max_length: Duration,
    /// Sandboxes a team may have at once.
    pub max_sandboxes: usize,
    /// How long the durability barrier may take (design 6.3).
    pub flush: Duration,
    /// Between two looks at what sandboxes have written.
    pub disk_watch: Duration,
}

/// Everything the scheduler works with.
pub struct SchedulerParts {
    /// The container engine.
    pub runtime: Arc<dyn Runtime>,
    /// Speaks to executors.
    pub executor: Arc<dyn ExecutorClient>,
    /// The object store.
    pub workspaces: Arc<dyn Workspaces>,
    /// The data base.
    pub store: Store,
    /// The templates.
    pub templates: Templates,
    /// The bounds.
    pub limits: Limits,
    /// Where workspaces' prefixes live.
    pub bucket: BucketName,
    /// Where a workspace's driver keeps file contents.
    pub cache: Cache,
}

/// What a create request asks for.
#[derive(Clone, Debug)]
pub struct CreateSandbox {
    /// Which template.
    pub template: TemplateReference,
    /// How long it lives from its start; at most [`Limits::max_length`], not zero.
    pub timeout: Duration,
    /// What the client notes about it.
    pub metadata: BTreeMap<String, String>,
    /// Environment of every process, over the template's and the image's.
    pub env: BTreeMap<String, String>,
    /// Whether the client shows the sandbox's access token for RPC and files. Where not, the proxy shows it.
    pub secure: bool,
    /// What the client said about internet access, if anything.
    pub internet: Option<bool>,
    /// What the client said about other traffic, if anything.
    pub network: Option<Network>,
    /// The session whose workspace is mounted.
    pub session: Option<SessionId>,
}

/// What others see of a sandbox.
#[derive(Clone, Debug)]
pub struct Sandbox {
    /// Its id.
    pub id: SandboxId,
    /// The team that owns it.
    pub team: TeamId,
    /// What it was started from.
    pub template: Arc<Template>,
    /// When its present run began, to the microsecond.
    pub started_at: OffsetDateTime,
    /// When that run ends if nobody changes it, to the microsecond.
    pub end_at: OffsetDateTime,
    /// What it is doing.
    pub state: State,
    /// What the client noted about it.
    pub metadata: Arc<BTreeMap<String, String>>,
    /// Whether its client shows its access token for RPC and files. Where not, the proxy shows it.
    pub secure: bool,
    /// What the client said about internet access, if anything.
    pub internet: Option<bool>,
    /// What the client said about other traffic, if anything.
    pub network: Option<Arc<Network>>,
    /// Its container.
    pub instance: Instance,
    /// What is mounted in it.
    pub workspace: Option<Arc<WorkspaceSpec>>,
}

impl Sandbox {
    /// Whether its own ports are open to whoever knows their names.
    pub fn is_public(&self) -> bool {
        self.network.as_deref().is_none_or(Network::is_public)
    }
}

/// What of the object store a sandbox may reach, and from where.
#[derive(Clone, Debug)]
pub struct ReachableWorkspace {
    /// What is mounted in it.
    pub spec: Arc<WorkspaceSpec>,
    /// Its container's address; `None` while that does not exist.
    pub from: Option<IpAddr>,
}

/// How an orderly end went.
#[derive(Debug, Default)]
pub struct ShutdownReport {
    /// Sandboxes whose workspaces are wholly in the store.
    pub synced: usize,
    /// Sandboxes of which that is not certain.
    pub unsynced: Vec<SandboxId>,
}

/// What the scheduler keeps in memory of one sandbox.
struct Entry {
    team: TeamId,
    /// Names its container, from before that exists.
    instance: InstanceId,
    /// Where its container is, from before anything in it needs the object store.
    address: Option<IpAddr>,
    /// Known before the container exists, so that a mount's key works from its first request.
    workspace: Option<Arc<WorkspaceSpec>>,
    /// `None` while it is being created: nobody but the gateway may see it.
    live: Option<Live>,
}

/// The way to a sandbox's task.
#[derive(Clone)]
struct Live {
    requests: mpsc::Sender<Request>,
    view: watch::Receiver<Arc<Sandbox>>,
}

/// What all tasks share.
struct Shared {
    parts: SchedulerParts,
    entries: Mutex<HashMap<SandboxId, Entry>>,
    /// Told whenever an entry goes.
    gone: Notify,
    /// Whether the engine's disk has less left than is kept free.
    disk_is_full: AtomicBool,
}

impl Shared {
    /// The entries. No code that holds the guard can panic half-way through a change, so a poisoned
    /// lock still guards whole entries.
    fn entries(&self) -> MutexGuard<'_, HashMap<SandboxId, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn forget(&self, id: &SandboxId) {
        self.entries().remove(id);
        self.parts.workspaces.release(id);
        self.gone.notify_waiters();
    }
}

/// Decides what runs. Cheap to clone: all clones are one scheduler.
#[derive(Clone)]
pub struct Scheduler {
    shared: Arc<Shared>,
    /// Owner of every sandbox's task and of every create that is under way. Not an asynchronous lock: a
    /// create that is given up must not be able to stop between its reservation and its task.
    tasks: Arc<Mutex<JoinSet<()>>>,
}

impl Scheduler {
    /// Brings store and engine together, in both directions: adopts what lives and is known, ends
    /// what is known and due or dead, removes what nobody owns (design 4).
    ///
    /// # Errors
    /// The store's or the engine's failure to say what they hold.
    pub async fn start(parts: SchedulerParts) -> Result<Self, SandboxError> {
        let shared = Arc::new(Shared {
            parts,
            entries: Mutex::default(),
            gone: Notify::new(),
            disk_is_full: AtomicBool::new(false),
        });
        let scheduler = Self { shared, tasks: Arc::default() };
        scheduler.reconcile().await?;
        Ok(scheduler)
    }

    /// Follows the engine's events until dropped: a container that ends by itself ends its sandbox.
    pub async fn watch(&self) {
        let mut events = self.shared.parts.runtime.watch();
        while let Some(event) = events.next().await {
            match event {
                RuntimeEvent::Died(instance) => {
                    if let Some(id) = self.sandbox_of(&instance) {
                        self.report_death(&id).await;
                    }
                }
                RuntimeEvent::Resync => {
                    // Who runs is asked before the engine is: a sandbox that becomes ready while the engine
                    // answers would be missing in the answer.
                    let known = self.instances();
                    match self.shared.parts.runtime.list().await {
                        Ok(instances) => self.report_missing(known, &instances).await,
                        Err(error) => warn!(%error, "cannot compare sandboxes with the engine"),
                    }
                }
            }
        }
    }

    /// The sandbox that a container is; `None` for one that is nobody's.
    fn sandbox_of(&self, instance: &InstanceId) -> Option<SandboxId> {
        let entries = self.shared.entries();
        let found = entries.iter().find(|(_, entry)| entry.instance == *instance);
        found.map(|(id, _)| id.clone())
    }

    async fn report_death(&self, id: &SandboxId) {
        if let Some(live) = self.live(id) {
            // A task that has ended knows already.
            let _ = live.requests.send(Request::Died).await;
        }
    }

    /// All sandboxes that have a task, with their containers.
    pub fn instances(&self) -> Vec<(SandboxId, InstanceId)> {
        let entries = self.shared.entries();
        let live = entries.iter().filter(|(_, entry)| entry.live.is_some());
        live.map(|(id, entry)| (id.clone(), entry.instance.clone())).collect()
    }

    /// Ends those that the engine no longer runs.
    async fn report_missing(&self, known: Vec<(SandboxId, InstanceId)>, instances: &[Instance]) {
        let runs = |id: &InstanceId| instances.iter().any(|i| i.id == *id && i.address.is_some());
        for (id, _) in known.iter().filter(|(_, instance)| !runs(instance)) {
            self.report_death(id).await;
        }
    }

    /// The bounds.
    pub fn limits(&self) -> &Limits {
        &self.shared.parts.limits
    }

    /// The templates.
    pub fn templates(&self) -> &Templates {
        &self.shared.parts.templates
    }

    /// The store.
    pub fn store(&self) -> &Store {
        &self.shared.parts.store
    }

    /// Makes a sandbox. Returns when it takes requests and its workspace is mounted. If the caller
    /// gives up before that, the sandbox is ended as soon as it is made, because nobody knows its id.
    ///
    /// # Errors
    /// [`SandboxError`]; nothing of the sandbox is left then.
    pub async fn create(
        &self,
        team: TeamId,
        request: CreateSandbox,
    ) -> Result<Arc<Sandbox>, SandboxError> {
        let provision = self.provision(team, request)?;
        let id = provision.id.clone();
        let span = info_span!("sandbox", sandbox.id = %id);
        let (answer, created) = oneshot::channel();
        provision.reserve().await?;
        let task = async move {
            match provision.run().await {
                Ok((record, instance)) => {
                    let task = task::SandboxTask::new(provision.shared, record, instance);
                    let sandbox = task.publish();
                    if answer.send(Ok(sandbox)).is_err() {
                        info!("the client left before its sandbox was ready: ending it");
                        task.run_abandoned().await;
                    } else {
                        task.run().await;
                    }
                }
                Err(failure) => {
                    let half_done = matches!(failure, SandboxError::Cleanup { .. });
                    // Nobody may be listening any more; the log has it in any case.
                    if let Err(Err(failure)) = answer.send(Err(failure)) {
                        warn!(failure = failure.chain(), "a create that nobody waits for failed");
                    }
                    if half_done {
                        provision.undo_in_the_end().await;
                    }
                }
            }
        };
        self.spawn(task.instrument(span));
        created.await.unwrap_or_else(|_| Err(SandboxError::NotFound(id)))
    }

    /// The making of a sandbox in the caller's own future, up to where the sandbox would be served: for
    /// tests that drop it half-way, as the end of the process does.
    ///
    /// # Errors
    /// As [`Self::create`].
    #[doc(hidden)]
    pub async fn create_unserved(
        &self,
        team: TeamId,
        request: CreateSandbox,
    ) -> Result<(), SandboxError> {
        let provision = self.provision(team, request)?;
        provision.reserve().await?;
        provision.run().await.map(drop)
    }

    fn provision(
        &self,
        team: TeamId,
        request: CreateSandbox,
    ) -> Result<provision::Provision, SandboxError> {
        let template = self.templates().resolve(&request.template)?;
        let max = self.limits().max_length;
        if request.timeout.is_zero() {
            return Err(SandboxError::ZeroTimeout);
        }
        if request.timeout > max {
            return Err(SandboxError::TimeoutTooLong { max });
        }
        Ok(provision::Provision {
            shared: self.shared.clone(),
            id: SandboxId::random(),
            instance: InstanceId::random(),
            team,
            template,
            request,
        })
    }

    fn tasks(&self) -> MutexGuard<'_, JoinSet<()>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks();
        // What has ended is collected here, so that the set does not grow with every sandbox.
        while let Some(ended) = tasks.try_join_next() {
            if let Err(error) = ended
                && error.is_panic()
            {
                error!(%error, "a sandbox's task panicked");
            }
        }
        tasks.spawn(task);
    }

    fn live(&self, id: &SandboxId) -> Option<Live> {
        self.shared.entries().get(id).and_then(|entry| entry.live.clone())
    }

    fn of_team(&self, team: TeamId, id: &SandboxId) -> Result<Live, SandboxError> {
        let entries = self.shared.entries();
        let entry = entries.get(id).filter(|entry| entry.team == team);
        let live = entry.and_then(|entry| entry.live.clone());
        live.ok_or_else(|| SandboxError::NotFound(id.clone()))
    }

    /// A sandbox of the team as it is now.
    ///
    /// # Errors
    /// [`SandboxError::NotFound`] if it is unknown, of another team, or being killed.
    pub fn get(&self, team: TeamId, id: &SandboxId) -> Result<Arc<Sandbox>, SandboxError> {
        let sandbox = self.of_team(team, id)?.view.borrow().clone();
        if sandbox.state == State::Killing {
            return Err(SandboxError::NotFound(id.clone()));
        }
        Ok(sandbox)
    }

    /// All sandboxes of the team but those being killed, in no order.
    pub fn list(&self, team: TeamId) -> Vec<Arc<Sandbox>> {
        let entries = self.shared.entries();
        let live = entries.values().filter(|entry| entry.team == team);
        let views = live.filter_map(|entry| entry.live.as_ref().map(|l| l.view.borrow().clone()));
        views.filter(|sandbox| sandbox.state != State::Killing).collect()
    }

    /// The sandbox whatever its team, for the proxy. `None` if it is unknown or being killed.
    pub fn route(&self, id: &SandboxId) -> Option<Arc<Sandbox>> {
        let sandbox = self.live(id)?.view.borrow().clone();
        (sandbox.state != State::Killing).then_some(sandbox)
    }

    /// Whether the address belongs to a sandbox of any team, also to one that is still made or ended.
    pub fn is_sandbox(&self, address: IpAddr) -> bool {
        self.shared.entries().values().any(|entry| entry.address == Some(address))
    }

    /// What a sandbox may reach of the object store, for the gateway. Known from before the container
    /// exists until after it is gone: a key must outlive its mount.
    pub fn workspace(&self, id: &SandboxId) -> Option<ReachableWorkspace> {
        let entries = self.shared.entries();
        let entry = entries.get(id)?;
        Some(ReachableWorkspace { spec: entry.workspace.clone()?, from: entry.address })
    }

    async fn ask<T>(
        &self,
        team: TeamId,
        id: &SandboxId,
        request: impl FnOnce(oneshot::Sender<Result<T, SandboxError>>) -> Request,
    ) -> Result<T, SandboxError> {
        let live = self.of_team(team, id)?;
        let (answer, answered) = oneshot::channel();
        let not_found = || SandboxError::NotFound(id.clone());
        live.requests.send(request(answer)).await.map_err(|_| not_found())?;
        answered.await.map_err(|_| not_found())?
    }

    /// Ends a sandbox. Returns when what was closed is in the store and the container is gone; joins
    /// an end that is under way.
    ///
    /// # Errors
    /// [`SandboxError::NotFound`]; [`SandboxError::DataLeft`] if it is gone but the barrier's limit was
    /// over first.
    pub async fn kill(&self, team: TeamId, id: &SandboxId) -> Result<(), SandboxError> {
        self.ask(team, id, |answer| Request::Kill { answer }).await
    }

    /// Sets the sandbox to expire `timeout` from now, which may shorten its life; zero expires it at
    /// once. Clamped to the team's maximum (control-plane 3.4).
    ///
    /// # Errors
    /// [`SandboxError::NotFound`], [`SandboxError::Conflict`] while it changes state,
    /// [`SandboxError::LengthUsedUp`].
    pub async fn set_timeout(
        &self,
        team: TeamId,
        id: &SandboxId,
        timeout: Duration,
    ) -> Result<(), SandboxError> {
        self.ask(team, id, |answer| Request::SetTimeout { timeout, answer }).await
    }

    /// Makes the sandbox live at least `timeout` from now; never shortens (control-plane 3.2).
    ///
    /// # Errors
    /// As [`Self::set_timeout`].
    pub async fn extend(
        &self,
        team: TeamId,
        id: &SandboxId,
        timeout: Duration,
    ) -> Result<Arc<Sandbox>, SandboxError> {
        self.ask(team, id, |answer| Request::Extend { op: Op::Change, timeout, answer }).await
    }

    /// Connects to a running sandbox: like [`Self::extend`], but a timeout above the team's maximum is
    /// refused before the sandbox is looked for (control-plane 3.4).
    ///
    /// # Errors
    /// [`SandboxError::TimeoutTooLong`] first, then as [`Self::extend`].
    pub async fn connect(
        &self,
        team: TeamId,
        id: &SandboxId,
        timeout: Duration,
    ) -> Result<Arc<Sandbox>, SandboxError> {
        let max = self.limits().max_length;
        if timeout > max {
            return Err(SandboxError::TimeoutTooLong { max });
        }
        self.ask(team, id, |answer| Request::Extend { op: Op::Connect, timeout, answer }).await
    }

    /// The durability barrier for all workspaces, with the sandboxes left running for the next start
    /// (design 5). Then stops all tasks: the scheduler answers nothing more.
    pub async fn shut_down(&self) -> ShutdownReport {
        let views: Vec<Arc<Sandbox>> = {
            let entries = self.shared.entries();
            let live = entries.values().filter_map(|entry| entry.live.as_ref());
            live.map(|l| l.view.borrow().clone()).collect()
        };
        let parts = &self.shared.parts;
        let sync = views.iter().filter(|s| s.workspace.is_some()).map(async |sandbox| {
            let flushed = parts.executor.sync(&sandbox.instance, parts.limits.flush).await;
            if let Err(error) = &flushed {
                warn!(sandbox.id = %sandbox.id, %error, "cannot sync the workspace at shutdown");
            }
            (sandbox.id.clone(), matches!(flushed, Ok(Flushed::Complete)))
        });
        let mut report = ShutdownReport::default();
        for (id, complete) in futures::future::join_all(sync).await {
            if complete {
                report.synced += 1;
            } else {
                report.unsynced.push(id);
            }
        }
        let mut tasks = std::mem::take(&mut *self.tasks());
        tasks.shutdown().await;
        report
    }

    /// Ends every sandbox of every team. Returns how many and which of them failed.
    pub async fn kill_all(&self) -> Vec<(SandboxId, Result<(), SandboxError>)> {
        let all: Vec<(TeamId, SandboxId)> = {
            let entries = self.shared.entries();
            entries.iter().map(|(id, entry)| (entry.team, id.clone())).collect()
        };
        let kills = all.into_iter().map(async |(team, id)| {
            let result = self.kill(team, &id).await;
            (id, result)
        });
        futures::future::join_all(kills).await
    }

    /// Waits until no sandbox is left in memory. For tests and for `down`.
    pub async fn emptied(&self) {
        loop {
            let gone = self.shared.gone.notified();
            if self.shared.entries().is_empty() {
                return;
            }
            gone.await;
        }
    }
}

impl Record {
    /// A record as the rest of the world sees it.
    fn view(&self, template: &Arc<Template>, instance: &Instance, state: State) -> Sandbox {
        debug_assert_ne!(self.stage, Stage::Creating, "a sandbox in the making has no view");
        Sandbox {
            id: self.id.clone(),
            team: self.team,
            template: template.clone(),
            started_at: self.started_at,
            end_at: self.end_at,
            state,
            metadata: Arc::new(self.metadata.clone()),
            secure: self.secure,
            internet: self.internet,
            network: self.network.clone().map(Arc::new),
            instance: instance.clone(),
            workspace: self.workspace.clone().map(Arc::new),
        }
    }
}
