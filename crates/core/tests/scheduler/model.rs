//! Random calls from several clients at once, against a reference of the life-cycle table, while the engine fails,
//! hangs and heals, containers die, somebody uses the engine's own tools on them, and the server crashes.
//!
//! The reference is exact for a sandbox to which nothing of that has happened: what each call answers, and whether it
//! waits. One to which it has is `doubtful`: its calls may answer anything, but must answer. Every so often all faults
//! are healed; then everything must answer and settle, and every sandbox is known again.

mod calls;
mod faults;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use sandyard_core::{SandboxState, Scheduler};
use sandyard_testkit::{Behaviour, EngineCall};
use sandyard_types::{InstanceId, PauseKind, SandboxId, TeamId};
use tokio::sync::oneshot;
use tokio::task::{AbortHandle, JoinSet};

use calls::CallProgress;

use crate::host::{HostSettings, MINUTE, SchedulerHost, StillTime, request};
use crate::life_cycle::{COLUMNS, CallAnswer, Column};

const STEPS: usize = 10_000;
const CLIENTS: usize = 6;
const SANDBOXES: usize = 6;

/// Between two moments at which everything is healed and must settle.
const ROUND: usize = 25;

/// How long anything may take that must happen.
const LIMIT: Duration = Duration::from_secs(30);

/// xorshift64*.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() >> 33).expect("31 bits") % bound
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }
}

/// A call that has not answered.
struct Pending {
    answer: oneshot::Receiver<CallAnswer>,
    task: AbortHandle,
    column: Column,
    of: Option<SandboxId>,
}

/// A transition that hangs.
struct Busy {
    state: SandboxState,
    /// Who began it, and who joined.
    clients: Vec<usize>,
}

/// What the reference knows of a sandbox.
struct KnownSandbox {
    instance: InstanceId,
    /// Running or paused.
    state: SandboxState,
    busy: Option<Busy>,
    /// Who is served when the transition has ended.
    waiting: VecDeque<usize>,
    doubtful: bool,
}

struct Model {
    host: SchedulerHost,
    time: StillTime,
    random: Random,
    tasks: JoinSet<()>,
    /// Calls that let a sandbox's time be over.
    expiring: JoinSet<()>,
    clients: Vec<Option<Pending>>,
    known: BTreeMap<SandboxId, KnownSandbox>,
    faults: BTreeMap<String, (EngineCall, Behaviour)>,
    /// Whether a call may have been told to fail since all was well.
    may_fail: bool,
    log: VecDeque<String>,
    counts: BTreeMap<String, usize>,
}

/// Calls that are told to misbehave.
const CALLS: [EngineCall; 12] = [
    EngineCall::Freeze,
    EngineCall::Thaw,
    EngineCall::Halt,
    EngineCall::Start,
    EngineCall::Commit,
    EngineCall::Drain,
    EngineCall::Resume,
    EngineCall::Claim,
    EngineCall::Create,
    EngineCall::StopExecutor,
    EngineCall::Delete,
    EngineCall::RemoveImage,
];

impl Model {
    async fn new(seed: u64) -> anyhow::Result<Self> {
        let time = StillTime::new();
        let mut settings = HostSettings::default();
        settings.limits.max_sandboxes = 1000;
        let mut host = SchedulerHost::with(settings).await?;
        host.watch().await;
        Ok(Self {
            host,
            time,
            random: Random(seed | 1),
            tasks: JoinSet::new(),
            expiring: JoinSet::new(),
            clients: (0..CLIENTS).map(|_| None).collect(),
            known: BTreeMap::new(),
            faults: BTreeMap::new(),
            may_fail: false,
            log: VecDeque::new(),
            counts: BTreeMap::new(),
        })
    }

    fn note(&mut self, what: String) {
        *self.counts.entry(what.split(':').next().unwrap_or_default().to_owned()).or_default() += 1;
        self.log.push_back(what);
        if self.log.len() > 60 {
            self.log.pop_front();
        }
    }

    /// The test has failed: shows how it came to that.
    fn fail(&self, why: &str) -> ! {
        let steps: Vec<&str> = self.log.iter().map(String::as_str).collect();
        let stuck: Vec<String> = self
            .clients
            .iter()
            .flatten()
            .map(|pending| format!("{:?} of {:?}", pending.column, pending.of))
            .collect();
        panic!("{why}\nsteps until then:\n{}\nunanswered: {stuck:#?}", steps.join("\n"));
    }

    fn doubt(&mut self, id: &SandboxId) {
        if let Some(known) = self.known.get_mut(id) {
            known.doubtful = true;
            known.busy = None;
            known.waiting.clear();
        }
    }

    /// Who is answered is idle, whatever the answer was: what must be checked has been.
    fn collect(&mut self) {
        for place in 0..CLIENTS {
            let answered = match &mut self.clients[place] {
                Some(pending) => match pending.answer.try_recv() {
                    Ok(answer) => Some(answer),
                    Err(oneshot::error::TryRecvError::Empty) => continue,
                    Err(oneshot::error::TryRecvError::Closed) => None,
                },
                None => continue,
            };
            let pending = self.clients[place].take().expect("it was there");
            let of = pending.of.clone();
            let tracked = of.as_ref().and_then(|id| self.known.get(id)).is_some_and(|known| {
                let busy = known.busy.iter().flat_map(|busy| &busy.clients);
                busy.chain(&known.waiting).any(|client| *client == place)
            });
            if tracked {
                let column = pending.column;
                self.fail(&format!("{column:?} of {of:?} answered {answered:?}, and should wait"));
            }
        }
    }

    fn idle(&mut self) -> Option<usize> {
        self.collect();
        let idle: Vec<usize> = (0..CLIENTS).filter(|c| self.clients[*c].is_none()).collect();
        (!idle.is_empty()).then(|| self.random.of(&idle))
    }

    async fn create(&mut self, client: usize) {
        let (scheduler, team) = (self.host.scheduler.clone(), self.host.team);
        let with_workspace = self.random.below(2) == 0;
        let (told, id) = oneshot::channel();
        let work = create(scheduler, team, with_workspace, told);
        // Of the table's columns, as one that is not of a sandbox.
        self.start(client, Column::Fork, None, work);
        match self.progress(client).await {
            CallProgress::Answered(CallAnswer::Done) => {
                let (id, instance) = id.await.expect("it was told");
                let (state, busy, waiting) = (SandboxState::Running, None, VecDeque::new());
                let known = KnownSandbox { instance, state, busy, waiting, doubtful: false };
                self.known.insert(id.clone(), known);
                self.check_view(&id);
            }
            CallProgress::Answered(answer) if !self.may_fail => {
                self.fail(&format!("a create answers {answer:?} without a fault"));
            }
            CallProgress::Answered(_) | CallProgress::Hangs | CallProgress::Stuck => {}
        }
    }

    fn pick(&mut self) -> Option<SandboxId> {
        let all: Vec<SandboxId> = self.known.keys().cloned().collect();
        (!all.is_empty()).then(|| all[self.random.below(all.len())].clone())
    }

    async fn step(&mut self) -> anyhow::Result<()> {
        match self.random.below(100) {
            0..70 => {
                let Some(client) = self.idle() else { return self.settle().await };
                let id = match self.random.below(50) {
                    0 => Some("iunknown".parse()?),
                    _ => self.pick(),
                };
                let Some(id) = id else { return Ok(()) };
                let column = self.random.of(&COLUMNS);
                let many = self.known.len() >= SANDBOXES;
                // Neither none nor too many.
                let column = match column {
                    Column::Fork if many => Column::Kill,
                    Column::Kill if self.known.len() < 3 => Column::Pause,
                    other => other,
                };
                self.note(format!("call {column:?}: {id} by {client}"));
                self.call(client, id, column).await;
            }
            70..80 if self.known.len() < SANDBOXES => {
                let Some(client) = self.idle() else { return self.settle().await };
                self.note(format!("create: by {client}"));
                self.create(client).await;
            }
            70..84 if self.faults.len() < 2 => {
                let call = self.random.of(&CALLS);
                let behaviour = self.random.of(&[
                    Behaviour::Fail,
                    Behaviour::FailAfter,
                    Behaviour::Hang,
                    Behaviour::Hang,
                    Behaviour::HangAfter,
                    Behaviour::HangAfter,
                ]);
                let fails = matches!(behaviour, Behaviour::Fail | Behaviour::FailAfter);
                // An image that cannot be removed stays until the next start.
                let stays = call == EngineCall::RemoveImage && fails;
                if stays || self.faults.contains_key(&format!("{call:?}")) {
                    return Ok(());
                }
                self.may_fail |= fails;
                self.note(format!("fault {behaviour:?}: {call:?}"));
                self.host.engine.script(call, behaviour);
                self.faults.insert(format!("{call:?}"), (call, behaviour));
            }
            84..93 => {
                let names: Vec<String> = self.faults.keys().cloned().collect();
                if !names.is_empty() {
                    let name = names[self.random.below(names.len())].clone();
                    self.heal(&name).await;
                }
            }
            93..96 => self.interfere().await,
            96..98 => {
                // A client leaves: what it asked for goes on, or goes.
                let busy: Vec<usize> =
                    (0..CLIENTS).filter(|client| self.clients[*client].is_some()).collect();
                if !busy.is_empty() {
                    let client = self.random.of(&busy);
                    let pending = self.clients[client].take().expect("busy");
                    self.note(format!("leave: {client}, {:?} of {:?}", pending.column, pending.of));
                    pending.task.abort();
                    if let Some(id) = pending.of {
                        self.doubt(&id);
                    }
                }
            }
            98 => {
                if let Some(id) = self.pick() {
                    self.note(format!("expire: {id}"));
                    self.doubt(&id);
                    let (scheduler, team) = (self.host.scheduler.clone(), self.host.team);
                    self.expiring.spawn(async move {
                        // It may be gone, or something is under way.
                        let _ = scheduler.set_timeout(team, &id, Duration::ZERO).await;
                    });
                }
            }
            _ if self.random.below(3) == 0 => self.crash().await?,
            _ => {}
        }
        Ok(())
    }
}

async fn create(
    scheduler: Scheduler,
    team: TeamId,
    with_workspace: bool,
    told: oneshot::Sender<(SandboxId, InstanceId)>,
) -> CallAnswer {
    use sandyard_types::{Lifecycle, OnTimeout};
    let mut request = request();
    request.timeout = 10 * MINUTE;
    if !with_workspace {
        request.session = None;
        request.lifecycle =
            Lifecycle { on_timeout: OnTimeout::Pause(PauseKind::Filesystem), auto_resume: false };
    }
    match scheduler.create(team, request).await {
        Ok(new) => {
            let sandbox = new.keep();
            // The test may have given up on it.
            let _ = told.send((sandbox.id.clone(), sandbox.instance.id.clone()));
            CallAnswer::Done
        }
        Err(_) => CallAnswer::Failed,
    }
}

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// `SANDYARD_MODEL_SEED` runs one of its runs again, `SANDYARD_MODEL_STEPS` another number of steps.
#[tokio::test(start_paused = true)]
async fn random_calls_and_faults_leave_what_the_reference_says() -> anyhow::Result<()> {
    let random_seed = || {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.map_or(1, |since| u64::try_from(since.as_nanos() % 1_000_000_007).unwrap_or(1))
    };
    let seed = from_environment("SANDYARD_MODEL_SEED").unwrap_or_else(random_seed);
    let steps = from_environment("SANDYARD_MODEL_STEPS");
    let steps = steps.and_then(|steps| usize::try_from(steps).ok()).unwrap_or(STEPS);
    println!("SANDYARD_MODEL_SEED={seed}");
    let mut model = Model::new(seed).await?;
    for step in 0..steps {
        model.step().await?;
        if step % ROUND == ROUND - 1 {
            model.settle().await?;
        }
    }
    model.settle().await?;
    println!("{:#?}", model.counts);
    let ids: Vec<SandboxId> = model.known.keys().cloned().collect();
    for id in ids {
        model.host.scheduler.kill(model.host.team, &id).await?;
    }
    model.host.assert_empty("all killed").await
}
