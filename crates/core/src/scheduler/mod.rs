//! The scheduler: makes sandboxes, keeps a driver for each, and brings store and engine together.

mod disk;
mod error;
mod frozen;
mod new_sandbox;
mod reconcile;
mod shared;
mod snapshots;

use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sandyard_types::{
    BucketName, Cache, InstanceId, PauseKind, SandboxId, TeamId, Template, WorkspaceSpec,
};
use tokio::sync::{broadcast, oneshot};
use tokio::task::JoinSet;
use tracing::{Instrument as _, error, info_span, warn};

pub use error::SandboxError;
pub use new_sandbox::NewSandbox;
pub(crate) use shared::{SandboxEntry, SchedulerShared};

use crate::events::{EndReason, Event};
use crate::sandbox::transition::create::spec_of;
use crate::sandbox::{Answer, Bound, Request, RunRequest, SandboxDriver};
use crate::store::{SandboxRecord, Stage};
use crate::{
    Catalogue, Connected, ContainerState, CreateSandbox, ExecutorClient, Flushed, Instance, Op,
    PoolReport, PoolSettings, Runtime, Sandbox, SandboxState, Store, Workspaces, now, workspace,
};

/// What bounds the server puts on sandboxes.
#[derive(Clone, Debug)]
pub struct Limits {
    /// The longest life of a sandbox, from its start (control-plane 1.1: "maximum sandbox length").
    pub max_length: Duration,
    /// Sandboxes a team may have running at once.
    pub max_sandboxes: usize,
    /// How long the durability barrier may take (design 6.3).
    pub flush: Duration,
    /// Between two looks at what sandboxes have written.
    pub disk_watch: Duration,
    /// How the pool is kept.
    pub pool: PoolSettings,
    /// The memory that all frozen sandboxes may keep together, in bytes; `None`: as much as there is.
    pub frozen_memory: Option<u64>,
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
    /// The templates of the configuration; their names and ids are unique.
    pub templates: Vec<Template>,
    /// The bounds.
    pub limits: Limits,
    /// Where workspaces' prefixes live.
    pub bucket: BucketName,
    /// Where a workspace's driver keeps file contents.
    pub cache: Cache,
}

/// What of the object store a sandbox may reach, and from where.
#[derive(Clone, Debug)]
pub struct ReachableWorkspace {
    /// What is mounted in it.
    pub spec: Arc<WorkspaceSpec>,
    /// Its container's address; `None` while that does not exist or is stopped.
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

/// Decides what runs. Cheap to clone: all clones are one scheduler.
#[derive(Clone)]
pub struct Scheduler {
    shared: Arc<SchedulerShared>,
    /// Owner of every driver. Not an asynchronous lock: a create that is given up must not be able to stop between
    /// its reservation and its driver.
    tasks: Arc<Mutex<JoinSet<()>>>,
}

/// A create that was accepted: its driver runs.
struct AcceptedCreate {
    id: SandboxId,
    created: oneshot::Receiver<Result<NewSandbox, SandboxError>>,
}

impl Scheduler {
    /// Brings store and engine together, in both directions: adopts what lives and is known, ends
    /// what is known and due or dead, removes what nobody owns (design 4). What the engine does not let be removed is
    /// tried again in the background, and what the store cannot read is left alone.
    ///
    /// # Errors
    /// The store's or the engine's failure to say what they hold.
    pub async fn start(parts: SchedulerParts) -> Result<Self, SandboxError> {
        let catalogue = Catalogue::load(parts.templates.clone(), parts.store.clone()).await?;
        let shared = Arc::new(SchedulerShared::new(parts, catalogue));
        let scheduler = Self { shared, tasks: Arc::default() };
        scheduler.reconcile().await?;
        Ok(scheduler)
    }

    /// All sandboxes, with their containers.
    pub fn instances(&self) -> Vec<(SandboxId, InstanceId)> {
        let entries = self.shared.entries();
        let pair = |(id, entry): (&SandboxId, &SandboxEntry)| {
            (id.clone(), entry.view.borrow().instance.id.clone())
        };
        entries.iter().map(pair).collect()
    }

    /// What is in the pool.
    pub fn pool(&self) -> Vec<PoolReport> {
        self.shared.pool.report()
    }

    /// Keeps the pool as it should be, until dropped.
    pub async fn keep_pool(&self) {
        self.shared.pool.keep().await;
    }

    /// What happens to sandboxes from now on.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.shared.events.subscribe()
    }

    /// The bounds.
    pub fn limits(&self) -> &Limits {
        &self.shared.parts.limits
    }

    /// The templates.
    pub fn catalogue(&self) -> &Catalogue {
        &self.shared.catalogue
    }

    /// The store.
    pub fn store(&self) -> &Store {
        &self.shared.parts.store
    }

    /// Makes a sandbox. Returns when it takes requests and its workspace is mounted. If the caller
    /// gives up before that, or drops the result, the sandbox is ended, because nobody knows its id.
    ///
    /// # Errors
    /// [`SandboxError`]; nothing of the sandbox is left then.
    pub async fn create(
        &self,
        team: TeamId,
        request: CreateSandbox,
    ) -> Result<NewSandbox, SandboxError> {
        let template = self.catalogue().resolve(team, &request.template)?;
        self.shared.pool.offer(&template);
        let session = request.session.as_ref();
        let workspace = match session {
            Some(session) => {
                Some(workspace::resolve(&self.shared.parts, team, &template, session).await?)
            }
            None => None,
        };
        let record = SandboxRecord {
            id: SandboxId::random(),
            team,
            template,
            instance: InstanceId::random(),
            stage: Stage::Creating,
            started_at: now(),
            end_at: now() + request.timeout,
            metadata: Arc::new(request.metadata),
            env: request.env,
            image_env: Default::default(),
            image_workdir: None,
            secure: request.secure,
            internet: request.internet,
            network: request.network.map(Arc::new),
            workspace,
            timeout: request.timeout,
            lifecycle: request.lifecycle,
        };
        self.made(self.accept(record)?).await
    }

    /// Waits until a create that was accepted is done.
    async fn made(&self, accepted: AcceptedCreate) -> Result<NewSandbox, SandboxError> {
        let AcceptedCreate { id, created } = accepted;
        created.await.unwrap_or_else(|_| Err(SandboxError::NotFound(id)))
    }

    /// Checks a create, takes a place for it and starts its driver.
    fn accept(&self, mut record: SandboxRecord) -> Result<AcceptedCreate, SandboxError> {
        self.check_length(record.timeout)?;
        if self.shared.disk_is_full.load(Ordering::Relaxed) {
            return Err(SandboxError::DiskFull);
        }
        let id = record.id.clone();
        let (answer, created) = oneshot::channel();
        let warm = self.shared.pool.take(&spec_of(&self.shared, &record));
        if let Some(warm) = &warm {
            record.instance = warm.instance.id.clone();
        }
        let state = ContainerState::Stopped;
        let instance = Instance { id: record.instance.clone(), state, address: None };
        let driver = SandboxDriver::new(self.shared.clone(), record, instance);
        if let Err(refused) = self.shared.reserve(&id, driver.entry()) {
            self.shared.pool.give_back(warm);
            return Err(refused);
        }
        let span = info_span!(parent: None, "sandbox", sandbox.id = %id);
        self.spawn(driver.create(warm, answer).instrument(span));
        Ok(AcceptedCreate { id, created })
    }

    fn check_length(&self, timeout: Duration) -> Result<(), SandboxError> {
        let max = self.limits().max_length;
        if timeout.is_zero() {
            return Err(SandboxError::ZeroTimeout);
        }
        self.check_maximum(timeout, max)
    }

    fn check_maximum(&self, timeout: Duration, max: Duration) -> Result<(), SandboxError> {
        if timeout > max { Err(SandboxError::TimeoutTooLong { max }) } else { Ok(()) }
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
                error!(%error, "a sandbox's driver panicked");
            }
        }
        tasks.spawn(task);
    }

    /// A sandbox of the team as it is now.
    ///
    /// # Errors
    /// [`SandboxError::NotFound`] if it is unknown, of another team, or being killed.
    pub fn get(&self, team: TeamId, id: &SandboxId) -> Result<Arc<Sandbox>, SandboxError> {
        let found = self.route(id).filter(|sandbox| sandbox.team == team);
        found.ok_or_else(|| SandboxError::NotFound(id.clone()))
    }

    /// All sandboxes of the team but those being made or killed, in no order.
    pub fn list(&self, team: TeamId) -> Vec<Arc<Sandbox>> {
        let entries = self.shared.entries();
        let own = entries.values().filter(|entry| entry.team == team);
        let views = own.map(|entry| entry.view.borrow().clone());
        views.filter(|sandbox| sandbox.state.is_visible()).collect()
    }

    /// The sandbox whatever its team, for the proxy. `None` if it is unknown, being made or being killed.
    pub fn route(&self, id: &SandboxId) -> Option<Arc<Sandbox>> {
        let entries = self.shared.entries();
        let sandbox = entries.get(id)?.view.borrow().clone();
        sandbox.state.is_visible().then_some(sandbox)
    }

    /// All sandboxes whatever their team that clients can reach, for the proxy.
    pub fn routes(&self) -> Vec<Arc<Sandbox>> {
        let entries = self.shared.entries();
        let views = entries.values().map(|entry| entry.view.borrow().clone());
        views.filter(|sandbox| sandbox.state.is_visible()).collect()
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
        team: Option<TeamId>,
        id: &SandboxId,
        request: impl FnOnce(Answer<T>) -> Request,
    ) -> Result<T, SandboxError> {
        let not_found = || SandboxError::NotFound(id.clone());
        let driver = {
            let entries = self.shared.entries();
            let entry = entries.get(id).filter(|entry| team.is_none_or(|team| entry.team == team));
            entry.map(|entry| entry.requests.clone()).ok_or_else(not_found)?
        };
        let (answer, answered) = oneshot::channel();
        driver.send(request(answer)).await.map_err(|_| not_found())?;
        answered.await.map_err(|_| not_found())?
    }

    /// Ends a sandbox. Returns when what was closed is in the store and the container is gone; joins
    /// an end that is under way.
    ///
    /// # Errors
    /// [`SandboxError::NotFound`]; [`SandboxError::DataLeft`] if it is gone but the barrier's limit was
    /// over first.
    pub async fn kill(&self, team: TeamId, id: &SandboxId) -> Result<(), SandboxError> {
        let reason = EndReason::Killed;
        self.ask(Some(team), id, |answer| Request::Kill { reason, answer }).await
    }

    /// Pauses a sandbox. Returns when it is paused, and everything of its workspace in the store (control-plane
    /// 3.4). With `require_healthy` its daemon must answer.
    ///
    /// # Errors
    /// [`SandboxError::NotFound`], [`SandboxError::Conflict`] if it is paused already; others if it could not be
    /// paused: it runs on then.
    pub async fn pause(
        &self,
        team: TeamId,
        id: &SandboxId,
        kind: PauseKind,
        require_healthy: bool,
    ) -> Result<(), SandboxError> {
        let request = |answer| Request::Pause { kind, require_healthy, answer };
        self.ask(Some(team), id, request).await
    }

    /// Resumes a paused sandbox, with a new end time (control-plane 3.4). `auto_pause` replaces what happens at the
    /// end of this run.
    ///
    /// # Errors
    /// [`SandboxError::NotFound`], [`SandboxError::Conflict`] if it runs, [`SandboxError::TooMany`].
    pub async fn resume(
        &self,
        team: TeamId,
        id: &SandboxId,
        timeout: Duration,
        memory: bool,
        auto_pause: Option<bool>,
    ) -> Result<Connected, SandboxError> {
        self.check_length(timeout)?;
        let (op, by_traffic) = (Op::Resume, false);
        self.ask(Some(team), id, |answer| {
            Request::Run(RunRequest { op, timeout, by_traffic, memory, auto_pause, answer })
        })
        .await
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
        let bound = Bound::Exactly;
        self.ask(Some(team), id, |answer| Request::SetEnd { timeout, bound, answer }).await
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
    ) -> Result<(), SandboxError> {
        let bound = Bound::AtLeast;
        self.ask(Some(team), id, |answer| Request::SetEnd { timeout, bound, answer }).await
    }

    /// Makes sure that a sandbox runs, for at least `timeout` from now: resumes a paused one, and never shortens the
    /// life of a running one. A timeout above the team's maximum is refused before the sandbox is looked for
    /// (control-plane 3.4). Without `memory` a paused one starts from its files.
    ///
    /// # Errors
    /// [`SandboxError::TimeoutTooLong`] first, then as [`Self::resume`].
    pub async fn connect(
        &self,
        team: TeamId,
        id: &SandboxId,
        timeout: Duration,
        memory: bool,
    ) -> Result<Connected, SandboxError> {
        self.check_maximum(timeout, self.limits().max_length)?;
        let (op, by_traffic, auto_pause) = (Op::Connect, false, None);
        self.ask(Some(team), id, |answer| {
            Request::Run(RunRequest { op, timeout, by_traffic, memory, auto_pause, answer })
        })
        .await
    }

    /// Wakes a sandbox for traffic to it, whatever its team, if its create allowed that and its memory was kept
    /// (control-plane 3.4, 5.7). Without effect on one that runs.
    ///
    /// # Errors
    /// [`SandboxError::NotFound`] if it may not be woken; [`SandboxError::TooMany`].
    pub async fn wake(&self, id: &SandboxId) -> Result<Arc<Sandbox>, SandboxError> {
        let (op, timeout) = (Op::Connect, Duration::ZERO);
        let (by_traffic, memory, auto_pause) = (true, true, None);
        let woken = self.ask(None, id, |answer| {
            Request::Run(RunRequest { op, timeout, by_traffic, memory, auto_pause, answer })
        });
        woken.await.map(|connected| connected.sandbox)
    }

    /// The durability barrier for all workspaces, with the sandboxes left running for the next start
    /// (design 5). Then stops all drivers, and empties the pool: the scheduler answers nothing more.
    pub async fn shut_down(&self) -> ShutdownReport {
        let running: Vec<Arc<Sandbox>> = {
            let entries = self.shared.entries();
            let views = entries.values().map(|entry| entry.view.borrow().clone());
            views.filter(|sandbox| sandbox.state == SandboxState::Running).collect()
        };
        let parts = &self.shared.parts;
        let sync = running.iter().filter(|s| s.workspace.is_some()).map(async |sandbox| {
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
        self.shared.pool.empty().await;
        report
    }

    /// Stops all background tasks where they are, as the end of the process does. For tests of what a start after a
    /// crash finds.
    #[doc(hidden)]
    pub async fn abort(&self) {
        let mut tasks = std::mem::take(&mut *self.tasks());
        tasks.shutdown().await;
    }

    /// Ends every sandbox of every team. Returns each with what became of it.
    pub async fn kill_all(&self) -> Vec<(SandboxId, Result<(), SandboxError>)> {
        let all: Vec<SandboxId> = self.shared.entries().keys().cloned().collect();
        let kills = all.into_iter().map(async |id| {
            let reason = EndReason::Killed;
            let result = self.ask(None, &id, |answer| Request::Kill { reason, answer }).await;
            let result = match result {
                // It ended by itself meanwhile, as one does whose create failed.
                Err(SandboxError::NotFound(_)) if !self.shared.entries().contains_key(&id) => {
                    Ok(())
                }
                result => result,
            };
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
