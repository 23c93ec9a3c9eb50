//! A scheduler with its store and a fake engine, and what can be asked of all three at once.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sandyard_core::{
    ContainerState, CreateSandbox, Event, FIRST_TEAM, Limits, PoolSettings, Sandbox, SandboxError,
    SandboxEvent, SandboxState, Scheduler, SchedulerParts, Store, Team,
};
use sandyard_testkit::{EngineCall, FakeEngine};
use sandyard_types::{
    Cache, InstanceId, Lifecycle, OnTimeout, PauseKind, SandboxId, TeamId, Template, TemplateKind,
};
use serde_json::{Value, json};
use sqlx::Row as _;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool, SqlitePoolOptions};
use tokio::sync::broadcast::Receiver;
use tokio::task::JoinSet;

/// How long anything in here may take before the test fails instead of hanging.
const LIMIT: Duration = Duration::from_secs(30);

pub(crate) const MINUTE: Duration = Duration::from_secs(60);

/// What a host is started with.
pub(crate) struct HostSettings {
    pub(crate) templates: Vec<Template>,
    pub(crate) limits: Limits,
}

impl Default for HostSettings {
    fn default() -> Self {
        Self {
            templates: vec![template()],
            limits: Limits {
                max_length: Duration::from_secs(3600),
                max_sandboxes: 3,
                flush: Duration::from_secs(1),
                disk_watch: Duration::from_millis(20),
                pool: PoolSettings { max: 0, memory_mib: 0 },
                frozen_memory: None,
            },
        }
    }
}

pub(crate) struct SchedulerHost {
    _folder: tempfile::TempDir,
    settings: HostSettings,
    pub(crate) engine: FakeEngine,
    pub(crate) store: Store,
    /// A view of the store's file beside the store.
    pub(crate) database: SqlitePool,
    pub(crate) team: TeamId,
    pub(crate) other_team: TeamId,
    pub(crate) scheduler: Scheduler,
    /// What a server runs beside its API, as far as a test wants it.
    pub(crate) tasks: JoinSet<()>,
}

impl SchedulerHost {
    pub(crate) async fn start() -> anyhow::Result<Self> {
        Self::with(HostSettings::default()).await
    }

    pub(crate) async fn with(settings: HostSettings) -> anyhow::Result<Self> {
        // In memory where that is offered: thousands of writes that each wait for a disk take minutes.
        let memory = std::path::Path::new("/dev/shm");
        let folder = match memory.is_dir() {
            true => tempfile::tempdir_in(memory)?,
            false => tempfile::tempdir()?,
        };
        let file = folder.path().join("store.db");
        let store = Store::open(&file).await?;
        let mut teams = Vec::new();
        for slug in [FIRST_TEAM, "two"] {
            let team = Team { id: TeamId::random(), slug: slug.to_owned(), name: slug.to_owned() };
            store.add_team(&team).await?;
            teams.push(team.id);
        }
        let options = SqliteConnectOptions::new().filename(&file);
        let database = SqlitePoolOptions::new().max_connections(1).connect_with(options).await?;
        let engine = FakeEngine::new();
        let scheduler = Scheduler::start(parts(&settings, &engine, &store)).await?;
        Ok(Self {
            _folder: folder,
            settings,
            engine,
            store,
            database,
            team: teams[0],
            other_team: teams[1],
            scheduler,
            tasks: JoinSet::new(),
        })
    }

    /// The process ends without a word.
    pub(crate) async fn crash(&mut self) {
        self.tasks.shutdown().await;
        self.scheduler.abort().await;
        self.engine.never_stop();
    }

    /// Another process starts.
    pub(crate) async fn restart(&mut self) -> Result<(), SandboxError> {
        let parts = parts(&self.settings, &self.engine, &self.store);
        self.scheduler = within("the start", Scheduler::start(parts)).await?;
        Ok(())
    }

    /// Another process starts and may stop half-way; false if it did.
    pub(crate) async fn restart_or_stop(&mut self) -> Result<bool, SandboxError> {
        let parts = parts(&self.settings, &self.engine, &self.store);
        let engine = self.engine.clone();
        tokio::select! {
            biased;
            started = Scheduler::start(parts) => {
                self.scheduler = started?;
                Ok(true)
            }
            () = engine.stopped() => Ok(false),
        }
    }

    pub(crate) async fn crash_and_restart(&mut self) -> anyhow::Result<()> {
        self.crash().await;
        Ok(self.restart().await?)
    }

    /// Follows the engine's events from now on.
    pub(crate) async fn watch(&mut self) {
        let (watching, lists) = (self.scheduler.clone(), self.count(EngineCall::List));
        self.tasks.spawn(async move { watching.watch().await });
        // It listens before anything else happens.
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        assert_eq!(self.count(EngineCall::List), lists);
    }

    /// Keeps the pool from now on.
    pub(crate) fn keep_pool(&mut self) {
        let keeping = self.scheduler.clone();
        self.tasks.spawn(async move { keeping.keep_pool().await });
    }

    pub(crate) async fn create(
        &self,
        request: CreateSandbox,
    ) -> Result<Arc<Sandbox>, SandboxError> {
        Ok(self.scheduler.create(self.team, request).await?.keep())
    }

    pub(crate) async fn pause(&self, id: &SandboxId, kind: PauseKind) -> Result<(), SandboxError> {
        self.scheduler.pause(self.team, id, kind, false).await
    }

    pub(crate) fn get(&self, id: &SandboxId) -> Result<Arc<Sandbox>, SandboxError> {
        self.scheduler.get(self.team, id)
    }

    /// How often a call has been made.
    pub(crate) fn count(&self, call: EngineCall) -> usize {
        self.engine.calls().iter().filter(|(made, _)| *made == call).count()
    }

    /// How often a call has been made to a container.
    pub(crate) fn count_of(&self, call: EngineCall, instance: &InstanceId) -> usize {
        let calls = self.engine.calls();
        calls.iter().filter(|(made, id)| *made == call && id.as_ref() == Some(instance)).count()
    }

    /// Every sandbox's row in the store: what its stage is.
    pub(crate) async fn rows(&self) -> anyhow::Result<BTreeMap<String, Value>> {
        let rows = sqlx::query("SELECT id, document FROM sandboxes").fetch_all(&self.database);
        let mut stages = BTreeMap::new();
        for row in rows.await? {
            let document: Value = serde_json::from_str(&row.try_get::<String, _>("document")?)?;
            stages.insert(row.try_get("id")?, document["stage"].clone());
        }
        Ok(stages)
    }

    /// The images of all builds in the store.
    pub(crate) async fn built_images(&self) -> anyhow::Result<BTreeSet<String>> {
        let rows = sqlx::query("SELECT document FROM builds").fetch_all(&self.database).await?;
        let mut images = BTreeSet::new();
        for row in rows {
            let document: Value = serde_json::from_str(&row.try_get::<String, _>(0)?)?;
            images.insert(document["image"].as_str().unwrap_or_default().to_owned());
        }
        Ok(images)
    }

    /// What is wrong now with what the scheduler, the engine and the store have, if anything: each sandbox is in a
    /// state that it can stay in, its container and its row say the same, and nothing is there that nobody owns.
    pub(crate) async fn faults(&self) -> anyhow::Result<Vec<String>> {
        let mut faults = Vec::new();
        let mut sandboxes = self.scheduler.list(self.team);
        sandboxes.extend(self.scheduler.list(self.other_team));
        let known = self.scheduler.instances();
        if known.len() != sandboxes.len() {
            faults.push(format!("{} sandboxes, {} of them seen", known.len(), sandboxes.len()));
        }
        let mut rows = self.rows().await?;
        let mut images = self.built_images().await?;
        let mut containers: BTreeSet<InstanceId> =
            self.engine.instances().into_iter().map(|instance| instance.id).collect();
        for sandbox in &sandboxes {
            let (id, instance) = (&sandbox.id, &sandbox.instance.id);
            let (container, row) = match (sandbox.state, sandbox.paused) {
                (SandboxState::Running, None) => {
                    (ContainerState::Running, json!({"is": "running"}))
                }
                (SandboxState::Paused, Some(PauseKind::Full)) => {
                    (ContainerState::Frozen, json!({"is": "paused", "pause": "full"}))
                }
                (SandboxState::Paused, Some(PauseKind::Filesystem)) => {
                    (ContainerState::Stopped, json!({"is": "paused", "pause": "filesystem"}))
                }
                (state, paused) => {
                    faults.push(format!("{id} is {state}, {paused:?}"));
                    containers.remove(instance);
                    rows.remove(id.as_str());
                    continue;
                }
            };
            let found = self.engine.state_of(instance);
            if found != Some(container) {
                faults.push(format!("{id} is {}, its container {found:?}", sandbox.state));
            }
            if sandbox.instance.state != container {
                faults.push(format!("{id} takes its container for {:?}", sandbox.instance.state));
            }
            if sandbox.state == SandboxState::Running && self.engine.is_halted(instance) {
                faults.push(format!("{id} runs, its processes are halted"));
            }
            containers.remove(instance);
            match rows.remove(id.as_str()) {
                Some(stage) if stage == row => {}
                other => faults.push(format!("{id} is {}, its row {other:?}", sandbox.state)),
            }
            if sandbox.template.kind == TemplateKind::Snapshot {
                images.insert(sandbox.template.image.clone());
            }
        }
        let warm: usize = self.scheduler.pool().iter().map(|shelf| shelf.ready).sum();
        if containers.len() != warm {
            faults.push(format!("nobody's containers: {containers:?}; in the pool: {warm}"));
        }
        if !rows.is_empty() {
            faults.push(format!("nobody's rows: {rows:?}"));
        }
        let found: BTreeSet<String> = self.engine.images().into_iter().collect();
        if found != images {
            faults.push(format!("there are images {found:?}, needed are {images:?}"));
        }
        let hanging = self.engine.hanging();
        if !hanging.is_empty() {
            faults.push(format!("hangs: {hanging:?}"));
        }
        Ok(faults)
    }

    /// Waits until [`SchedulerHost::faults`] finds none.
    pub(crate) async fn settled(&self, when: &str) -> anyhow::Result<()> {
        let begun = Instant::now();
        loop {
            let faults = self.faults().await?;
            if faults.is_empty() {
                return Ok(());
            }
            assert!(begun.elapsed() < LIMIT, "{when}: {faults:#?}");
            breathe().await;
        }
    }

    /// Nothing of any sandbox is left, in memory, on the engine or in the store.
    pub(crate) async fn assert_empty(&self, when: &str) -> anyhow::Result<()> {
        within(when, self.scheduler.emptied()).await;
        // The removal of an image follows that of its last user.
        self.settled(when).await?;
        let left = self.engine.instances();
        assert!(left.is_empty(), "{when}: containers are left: {left:?}");
        let images = self.engine.images();
        assert!(images.is_empty(), "{when}: images are left: {images:?}");
        let rows = self.rows().await?;
        assert!(rows.is_empty(), "{when}: rows are left: {rows:?}");
        Ok(())
    }
}

fn parts(settings: &HostSettings, engine: &FakeEngine, store: &Store) -> SchedulerParts {
    SchedulerParts {
        runtime: Arc::new(engine.clone()),
        executor: Arc::new(engine.clone()),
        workspaces: Arc::new(engine.clone()),
        store: store.clone(),
        templates: settings.templates.clone(),
        limits: settings.limits.clone(),
        bucket: "sandyard".parse().expect("valid"),
        cache: Cache::Tmpfs { size_mib: 100 },
    }
}

pub(crate) fn template() -> Template {
    Template {
        id: "abcdefghij0123456789".parse().expect("valid"),
        name: "base".parse().expect("valid"),
        kind: TemplateKind::BuiltIn,
        image: "image".to_owned(),
        cpu_count: 2,
        memory_mib: 512,
        pids: 512,
        disk_mib: 100,
        user: "user".to_owned(),
        workdir: Some("/work".to_owned()),
        env: [("A", "template"), ("B", "template")]
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .into(),
        sudo: true,
        interpreter: false,
        workspace_target: "/workspace".parse().expect("valid"),
        pool: 0,
    }
}

/// A create with a workspace.
pub(crate) fn request() -> CreateSandbox {
    CreateSandbox {
        template: "base".parse().expect("valid"),
        timeout: Duration::from_secs(600),
        metadata: BTreeMap::new(),
        env: [("B".to_owned(), "request".to_owned())].into(),
        secure: true,
        internet: None,
        network: None,
        session: Some("s1".parse().expect("valid")),
        lifecycle: Lifecycle::default(),
    }
}

/// A create that pauses at its end.
pub(crate) fn pausing(kind: PauseKind) -> CreateSandbox {
    let on_timeout = OnTimeout::Pause(kind);
    CreateSandbox { lifecycle: Lifecycle { on_timeout, auto_resume: false }, ..request() }
}

/// Lets everything go on that can, without the clock of the tests.
pub(crate) async fn breathe() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
    // The store has threads of its own.
    std::thread::sleep(Duration::from_micros(300));
}

/// Waits for something, with a limit on a clock that no test stops.
pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    let begun = Instant::now();
    let mut future = pin!(future);
    loop {
        tokio::select! {
            biased;
            result = &mut future => return result,
            () = breathe() => assert!(begun.elapsed() < LIMIT, "{what}: takes too long"),
        }
    }
}

/// Waits until a condition holds.
pub(crate) async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    within(what, async {
        while !condition() {
            breathe().await;
        }
    })
    .await;
}

/// The next event of a sandbox.
pub(crate) async fn next_event(events: &mut Receiver<Event>) -> SandboxEvent {
    within("an event", events.recv()).await.expect("none is missed").what
}

/// The clock of a test that was started paused stands still as long as this lives, also while everything waits for a
/// thread of the store.
pub(crate) struct StillTime {
    _release: std::sync::mpsc::Sender<()>,
    _tasks: JoinSet<()>,
}

impl StillTime {
    pub(crate) fn new() -> Self {
        let (release, released) = std::sync::mpsc::channel();
        let mut tasks = JoinSet::new();
        tasks.spawn_blocking(move || {
            // It ends when the other side is dropped.
            let _ = released.recv();
        });
        Self { _release: release, _tasks: tasks }
    }

    /// Lets time pass, with what is due in it.
    pub(crate) async fn pass(&self, time: Duration) {
        tokio::time::advance(time).await;
        breathe().await;
    }
}
