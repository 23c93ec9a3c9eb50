//! Started containers that are nobody's yet (design 5.2): a create that finds one of its kind takes it, and is
//! spared the engine's time.
//!
//! There is a shelf for each kind of container. How many it should hold follows from the template's minimum and from
//! what recent creates took. One container is made at a time, and none while a create waits for the engine. A
//! container of the pool has no record: what a crash leaves of it the next start removes.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt as _;
use futures::future::BoxFuture;
use sandyard_types::{Cache, InstanceId, Template, TemplateKind};
use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use crate::{
    ContainerSpec, ContainerState, ExecutorClient, ExecutorError, ImageFacts, Instance, Profile,
    Runtime, RuntimeError,
};

/// How the pool is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolSettings {
    /// The most containers of one kind; 0 switches the pool off.
    pub max: u32,
    /// The memory that all containers of the pool may take together, in MiB, each counted as
    /// [`IDLE_MIB`], or [`IDLE_INTERPRETER_MIB`] with a code interpreter.
    pub memory_mib: u32,
}

impl Default for PoolSettings {
    fn default() -> Self {
        Self { max: 10, memory_mib: 512 }
    }
}

/// What a container that nobody uses takes of the host's memory, in MiB: its processes and the engine's shim,
/// rounded up.
pub const IDLE_MIB: u32 = 16;

/// The same of a container whose code interpreter has two kernels running: Python with its libraries for data, and
/// Node.js.
pub const IDLE_INTERPRETER_MIB: u32 = 192;

fn idle_mib(template: &Template) -> u32 {
    if template.interpreter { IDLE_INTERPRETER_MIB } else { IDLE_MIB }
}

/// Creates that are this old say nothing about the next ones.
const MEMORY_OF_DEMAND: Duration = Duration::from_secs(60);

/// A shelf that nobody took from for so long gives back a container above its minimum, and after as long the
/// next one.
const SHRINK_AFTER: Duration = Duration::from_secs(60);

/// After a container that could not be made, until the next try.
const RETRY: Duration = Duration::from_secs(5);

/// After the image of a template was not on the engine, until the next look. The pool fetches none: a create does.
const NO_IMAGE_RETRY: Duration = Duration::from_secs(60);

/// What one kind of container is made from. Two templates that differ in nothing that is fixed at create share it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct ShelfKey {
    image: String,
    cpu_count: u32,
    memory_mib: u32,
    pids: u32,
    disk_mib: u32,
    sudo: bool,
    interpreter: bool,
    profile: Profile,
}

impl ShelfKey {
    fn of(template: &Template, profile: Profile) -> Self {
        Self {
            image: template.image.clone(),
            cpu_count: template.cpu_count,
            memory_mib: template.memory_mib,
            pids: template.pids,
            disk_mib: template.disk_mib,
            sudo: template.sudo,
            interpreter: template.interpreter,
            profile,
        }
    }
}

/// A container that waits to be claimed.
#[derive(Clone, Debug)]
pub(crate) struct Warm {
    pub(crate) instance: Instance,
    /// What its image says about itself.
    pub(crate) facts: ImageFacts,
    key: ShelfKey,
}

struct Shelf {
    template: Arc<Template>,
    profile: Profile,
    minimum: usize,
    warm: VecDeque<Warm>,
    /// When creates asked for one, within [`MEMORY_OF_DEMAND`].
    demand: VecDeque<Instant>,
    /// How long the last container took to make.
    making_time: Duration,
    /// When somebody last asked, or a container was last given back.
    quiet_since: Instant,
    not_before: Option<Instant>,
}

impl Shelf {
    /// How many it should hold: the minimum, and what is asked for while a batch of new ones is made.
    fn target(&self, settings: PoolSettings) -> usize {
        let max = settings.max as usize;
        let asked = u32::try_from(self.demand.len()).unwrap_or(u32::MAX);
        let per_making = f64::from(asked) * self.making_time.as_secs_f64();
        let rate = per_making / MEMORY_OF_DEMAND.as_secs_f64();
        // As many again as were taken at once, for such creates come in bursts.
        let burst = self.burst();
        let extra = (rate.ceil() as usize).max(burst);
        self.minimum.max(if asked == 0 { 0 } else { extra.min(max) }).min(max.max(self.minimum))
    }

    /// The most that was asked for within one second.
    fn burst(&self) -> usize {
        let mut most = 0;
        for (index, first) in self.demand.iter().enumerate() {
            let within = self.demand.iter().skip(index);
            most =
                most.max(within.take_while(|at| **at <= *first + Duration::from_secs(1)).count());
        }
        most
    }

    fn forget_old_demand(&mut self, now: Instant) {
        while self.demand.front().is_some_and(|at| *at + MEMORY_OF_DEMAND < now) {
            self.demand.pop_front();
        }
    }
}

/// One kind of container in the pool, for the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolReport {
    /// Name of the template.
    pub template: String,
    /// Whether its containers can have a workspace.
    pub workspace: bool,
    /// Containers that wait.
    pub ready: usize,
    /// Containers that should wait.
    pub target: usize,
}

/// The pool.
pub(crate) struct Pool {
    settings: PoolSettings,
    cache: Cache,
    runtime: Arc<dyn Runtime>,
    executor: Arc<dyn ExecutorClient>,
    shelves: Mutex<HashMap<ShelfKey, Shelf>>,
    /// Told when there may be something to make.
    changed: Notify,
    /// Creates that wait for the engine.
    cold: AtomicUsize,
    /// The container that is being made.
    making: Mutex<Option<InstanceId>>,
    /// The making of it. Kept here, and not by whoever keeps the pool: a call to the engine that is dropped half-way
    /// may still have its effect, so it is finished before the pool is emptied.
    work: tokio::sync::Mutex<Option<BoxFuture<'static, ()>>>,
}

/// A create that waits for the engine: nothing is made for the pool meanwhile.
pub(crate) struct HeldRefills<'a>(&'a Pool);

impl Drop for HeldRefills<'_> {
    fn drop(&mut self) {
        if self.0.cold.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.changed.notify_one();
        }
    }
}

impl Pool {
    /// A pool for these templates, each with its minimum.
    pub(crate) fn new(
        settings: PoolSettings,
        cache: Cache,
        runtime: Arc<dyn Runtime>,
        executor: Arc<dyn ExecutorClient>,
        templates: impl Iterator<Item = Arc<Template>>,
    ) -> Self {
        let mut shelves = HashMap::new();
        for template in templates.filter(|template| template.pool > 0) {
            for profile in [Profile::Plain, Profile::Workspace] {
                let shelf = Shelf::new(template.clone(), profile);
                shelves.insert(ShelfKey::of(&template, profile), shelf);
            }
        }
        Self {
            settings,
            cache,
            runtime,
            executor,
            shelves: Mutex::new(shelves),
            changed: Notify::new(),
            cold: AtomicUsize::new(0),
            making: Mutex::default(),
            work: tokio::sync::Mutex::default(),
        }
    }

    fn shelves(&self) -> MutexGuard<'_, HashMap<ShelfKey, Shelf>> {
        self.shelves.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A container for a spec, whose instance is the container's from here on. Notes that one was asked for.
    pub(crate) fn take(&self, spec: &ContainerSpec) -> Option<Warm> {
        // A fork's image serves the creates of that fork only.
        if self.settings.max == 0 {
            return None;
        }
        let key = ShelfKey::of(&spec.template, spec.profile);
        let now = Instant::now();
        let taken = {
            let mut shelves = self.shelves();
            if !shelves.contains_key(&key) && spec.template.kind == TemplateKind::Snapshot {
                return None;
            }
            let shelf = shelves
                .entry(key)
                .or_insert_with(|| Shelf::new(Arc::new(spec.template.clone()), spec.profile));
            shelf.demand.push_back(now);
            shelf.forget_old_demand(now);
            shelf.quiet_since = now;
            shelf.warm.pop_front()
        };
        self.changed.notify_one();
        taken
    }

    /// What was taken is not needed after all.
    pub(crate) fn give_back(&self, warm: Option<Warm>) {
        let Some(warm) = warm else { return };
        let mut shelves = self.shelves();
        if let Some(shelf) = shelves.get_mut(&warm.key) {
            shelf.warm.push_front(warm);
        }
    }

    /// A template of the catalogue may have containers in the pool from now on.
    pub(crate) fn offer(&self, template: &Arc<Template>) {
        let mut shelves = self.shelves();
        for profile in [Profile::Plain, Profile::Workspace] {
            let key = ShelfKey::of(template, profile);
            shelves.entry(key).or_insert_with(|| Shelf::new(template.clone(), profile));
        }
    }

    /// Nothing is made for the pool as long as the result lives.
    pub(crate) fn hold_refills(&self) -> HeldRefills<'_> {
        self.cold.fetch_add(1, Ordering::SeqCst);
        HeldRefills(self)
    }

    /// A container has ended. True if it was one of the pool's.
    pub(crate) fn remove(&self, instance: &InstanceId) -> bool {
        let mut shelves = self.shelves();
        let found = shelves.values_mut().find_map(|shelf| {
            let place = shelf.warm.iter().position(|warm| warm.instance.id == *instance)?;
            shelf.warm.remove(place)
        });
        drop(shelves);
        if found.is_some() {
            warn!(%instance, "a container of the pool ended by itself");
            self.changed.notify_one();
        }
        found.is_some()
    }

    /// Whether a container is the pool's, or being made for it.
    pub(crate) fn has(&self, instance: &InstanceId) -> bool {
        let making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        let shelves = self.shelves();
        let mut warm = shelves.values().flat_map(|shelf| &shelf.warm);
        making.as_ref() == Some(instance) || warm.any(|warm| warm.instance.id == *instance)
    }

    /// The containers that wait.
    pub(crate) fn instances(&self) -> Vec<InstanceId> {
        let shelves = self.shelves();
        let warm = shelves.values().flat_map(|shelf| &shelf.warm);
        warm.map(|warm| warm.instance.id.clone()).collect()
    }

    /// Removes those of the pool that do not run. `known` are those that waited before the engine was asked what it
    /// has: one that came later would be missing in its answer.
    pub(crate) async fn compare(&self, known: &[InstanceId], instances: &[Instance]) {
        let runs = |id: &InstanceId| {
            instances.iter().any(|i| i.id == *id && i.state == ContainerState::Running)
        };
        for id in known.iter().filter(|id| !runs(id)) {
            if self.remove(id) {
                self.delete(id).await;
            }
        }
    }

    /// No container of an image is kept any more: it is about to be removed.
    pub(crate) async fn drop_image(&self, image: &str) {
        let dropped: Vec<Warm> = {
            let mut shelves = self.shelves();
            let keys: Vec<ShelfKey> =
                shelves.keys().filter(|key| key.image == image).cloned().collect();
            let removed = keys.iter().filter_map(|key| shelves.remove(key));
            removed.flat_map(|shelf| shelf.warm).collect()
        };
        for warm in dropped {
            self.delete(&warm.instance.id).await;
        }
        // One that is being made from it goes when it finds no shelf.
        self.finish_work().await;
    }

    /// What is in it.
    pub(crate) fn report(&self) -> Vec<PoolReport> {
        let mut shelves = self.shelves();
        let now = Instant::now();
        let mut reports: Vec<PoolReport> = shelves
            .values_mut()
            .map(|shelf| {
                shelf.forget_old_demand(now);
                PoolReport {
                    template: shelf.template.name.to_string(),
                    workspace: shelf.profile == Profile::Workspace,
                    ready: shelf.warm.len(),
                    target: shelf.target(self.settings),
                }
            })
            .collect();
        reports.sort_by(|a, b| (&a.template, a.workspace).cmp(&(&b.template, b.workspace)));
        reports
    }

    /// Keeps the pool as it should be, until dropped.
    pub(crate) async fn keep(self: &Arc<Self>) {
        if self.settings.max == 0 {
            return std::future::pending().await;
        }
        loop {
            self.finish_work().await;
            match self.next() {
                PoolStep::Make(key, template, profile) => {
                    let pool = self.clone();
                    let make = async move { pool.make(&key, &template, profile).await };
                    *self.work.lock().await = Some(Box::pin(make));
                }
                PoolStep::Drop(warm) => {
                    debug!(instance = %warm.instance.id, "the pool gives a container back");
                    self.delete(&warm.instance.id).await;
                }
                PoolStep::Wait(limit) => {
                    // A time limit is no error: the next look is due then.
                    let _ = tokio::time::timeout(limit, self.changed.notified()).await;
                }
            }
        }
    }

    async fn finish_work(&self) {
        let mut work = self.work.lock().await;
        if let Some(running) = work.as_mut() {
            running.await;
            *work = None;
        }
    }

    fn next(&self) -> PoolStep {
        if self.cold.load(Ordering::SeqCst) > 0 {
            return PoolStep::Wait(SHRINK_AFTER);
        }
        let now = Instant::now();
        let mut shelves = self.shelves();
        let weights = shelves.values().map(|s| s.warm.len() * idle_mib(&s.template) as usize);
        let room = (self.settings.memory_mib as usize).saturating_sub(weights.sum());
        let mut wait = SHRINK_AFTER;
        let mut best: Option<(usize, ShelfKey)> = None;
        for (key, shelf) in shelves.iter_mut() {
            shelf.forget_old_demand(now);
            let target = shelf.target(self.settings);
            if shelf.warm.len() > target && now >= shelf.quiet_since + SHRINK_AFTER {
                shelf.quiet_since = now;
                if let Some(warm) = shelf.warm.pop_front() {
                    return PoolStep::Drop(warm);
                }
            }
            if let Some(at) = shelf.not_before.filter(|at| *at > now) {
                wait = wait.min(at - now);
                continue;
            }
            let missing = target.saturating_sub(shelf.warm.len());
            let fits = idle_mib(&shelf.template) as usize <= room;
            if missing > 0 && fits && best.as_ref().is_none_or(|(most, _)| missing > *most) {
                best = Some((missing, key.clone()));
            }
        }
        let wanted = best.and_then(|(_, key)| {
            let shelf = shelves.get(&key)?;
            Some(PoolStep::Make(key, shelf.template.clone(), shelf.profile))
        });
        wanted.unwrap_or(PoolStep::Wait(wait))
    }

    async fn make(&self, key: &ShelfKey, template: &Arc<Template>, profile: Profile) {
        let instance = InstanceId::random();
        self.set_making(Some(instance.clone()));
        let begun = Instant::now();
        let made = self.start(&instance, template, profile).await;
        match made {
            Ok(Some(warm)) => {
                let mut shelves = self.shelves();
                if let Some(shelf) = shelves.get_mut(key) {
                    shelf.making_time = begun.elapsed();
                    shelf.not_before = None;
                    shelf.warm.push_back(warm);
                    drop(shelves);
                    return self.set_making(None);
                }
            }
            Ok(None) => {
                debug!(template = %template.name, "no container for the pool: its image is not on the engine");
                if let Some(shelf) = self.shelves().get_mut(key) {
                    shelf.not_before = Some(Instant::now() + NO_IMAGE_RETRY);
                }
                // Nothing was made.
                return self.set_making(None);
            }
            Err(reason) => {
                info!(reason, template = %template.name, "cannot make a container for the pool");
                if let Some(shelf) = self.shelves().get_mut(key) {
                    shelf.not_before = Some(Instant::now() + RETRY);
                }
            }
        }
        self.delete(&instance).await;
        self.set_making(None);
    }

    fn set_making(&self, instance: Option<InstanceId>) {
        *self.making.lock().unwrap_or_else(PoisonError::into_inner) = instance;
    }

    /// One more container; nothing if its image is not on the engine.
    async fn start(
        &self,
        instance: &InstanceId,
        template: &Arc<Template>,
        profile: Profile,
    ) -> Result<Option<Warm>, String> {
        let spec = ContainerSpec {
            instance: instance.clone(),
            template: Template::clone(template),
            profile,
            cache: self.cache,
        };
        let engine = |error: RuntimeError| error.to_string();
        if !self.runtime.image_present(template).await.map_err(engine)? {
            return Ok(None);
        }
        let facts = self.runtime.ensure_image(template).await.map_err(engine)?;
        let instance = self.runtime.create(&spec).await.map_err(engine)?;
        let ready = self.executor.ready(&instance).await;
        ready.map_err(|error: ExecutorError| error.to_string())?;
        Ok(Some(Warm { instance, facts, key: ShelfKey::of(template, profile) }))
    }

    async fn delete(&self, instance: &InstanceId) {
        if let Err(error) = self.runtime.delete(instance).await {
            // The comparison with the engine finds it again, as nobody's.
            warn!(%error, %instance, "cannot remove a container of the pool");
        }
    }

    /// Removes all containers of the pool. It must not be kept any more.
    pub(crate) async fn empty(&self) {
        self.finish_work().await;
        let all: Vec<InstanceId> = {
            let mut shelves = self.shelves();
            let warm = shelves.values_mut().flat_map(|shelf| shelf.warm.drain(..));
            warm.map(|warm| warm.instance.id).collect()
        };
        let removals = futures::stream::iter(&all).map(|id| self.delete(id));
        removals.buffer_unordered(4).collect::<()>().await;
    }
}

enum PoolStep {
    Make(ShelfKey, Arc<Template>, Profile),
    Drop(Warm),
    Wait(Duration),
}

impl Shelf {
    fn new(template: Arc<Template>, profile: Profile) -> Self {
        Self {
            minimum: template.pool as usize,
            template,
            profile,
            warm: VecDeque::new(),
            demand: VecDeque::new(),
            making_time: Duration::from_millis(500),
            quiet_since: Instant::now(),
            not_before: None,
        }
    }
}
