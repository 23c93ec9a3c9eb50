//! Random calls from several clients at once, against a reference of the life-cycle table, while the engine fails,
//! hangs and heals, containers die, somebody uses the engine's own tools on them, and the server crashes.
//!
//! The reference is exact for a sandbox to which nothing of that has happened: what each call answers, and whether it
//! waits. One to which it has is `doubtful`: its calls may answer anything, but must answer. Every so often all faults
//! are healed; then everything must answer and settle, and every sandbox is known again.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

use sandyard_core::{ContainerState, RuntimeEvent, Scheduler, SnapshotFilter, State};
use sandyard_testkit::{Behaviour, Call};
use sandyard_types::{InstanceId, PauseKind, SandboxId, TeamId};
use tokio::sync::oneshot;
use tokio::task::{AbortHandle, JoinSet};

use crate::host::{Host, MINUTE, Settings, StillTime, breathe, request};
use crate::life_cycle::{Answer, COLUMNS, Cell, Column, call, row};

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
    answer: oneshot::Receiver<Answer>,
    task: AbortHandle,
    column: Column,
    of: Option<SandboxId>,
}

/// A transition that hangs.
struct Busy {
    state: State,
    /// Who began it, and who joined.
    clients: Vec<usize>,
}

/// What the reference knows of a sandbox.
struct Known {
    instance: InstanceId,
    /// Running or paused.
    state: State,
    busy: Option<Busy>,
    /// Who is served when the transition has ended.
    waiting: VecDeque<usize>,
    doubtful: bool,
}

/// How far a call has come.
enum Progress {
    Answered(Answer),
    Hangs,
    /// A fault of the engine keeps it from its end.
    Stuck,
}

struct Model {
    host: Host,
    time: StillTime,
    random: Random,
    tasks: JoinSet<()>,
    /// Calls that let a sandbox's time be over.
    expiring: JoinSet<()>,
    clients: Vec<Option<Pending>>,
    known: BTreeMap<SandboxId, Known>,
    faults: BTreeMap<String, (Call, Behaviour)>,
    /// Whether a call may have been told to fail since all was well.
    may_fail: bool,
    log: VecDeque<String>,
    counts: BTreeMap<String, usize>,
}

/// Calls that are told to misbehave.
const CALLS: [Call; 12] = [
    Call::Freeze,
    Call::Thaw,
    Call::Halt,
    Call::Start,
    Call::Commit,
    Call::Drain,
    Call::Resume,
    Call::Claim,
    Call::Create,
    Call::StopExecutor,
    Call::Delete,
    Call::RemoveImage,
];

impl Model {
    async fn new(seed: u64) -> anyhow::Result<Self> {
        let time = StillTime::new();
        let mut settings = Settings::default();
        settings.limits.max_sandboxes = 1000;
        let mut host = Host::with(settings).await?;
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

    fn start(
        &mut self,
        client: usize,
        column: Column,
        of: Option<SandboxId>,
        work: impl Future<Output = Answer> + Send + 'static,
    ) {
        let (sender, answer) = oneshot::channel();
        let task = self.tasks.spawn(async move {
            // A client that has left wants no answer.
            let _ = sender.send(work.await);
        });
        self.clients[client] = Some(Pending { answer, task, column, of });
    }

    /// Waits until a client's call is answered, or hangs on its sandbox.
    async fn progress(&mut self, client: usize) -> Progress {
        let begun = Instant::now();
        for look in 0.. {
            let Some(pending) = &mut self.clients[client] else { return Progress::Stuck };
            if let Ok(answer) = pending.answer.try_recv() {
                self.clients[client] = None;
                return Progress::Answered(answer);
            }
            // These two are answered a little after their transition, when the next one may hang already.
            let is_over = matches!(pending.column, Column::Snapshot | Column::Fork)
                && pending.of.as_ref().is_some_and(|id| {
                    self.host.get(id).map_or(true, |seen| seen.state != State::Snapshotting)
                });
            let of = pending.of.as_ref().and_then(|id| self.known.get(id));
            let hanging = self.host.engine.hanging();
            if let Some(known) = of
                && !is_over
                && hanging.iter().any(|(_, on)| on.as_ref() == Some(&known.instance))
            {
                return Progress::Hangs;
            }
            if look > 30 && (self.may_fail || !hanging.is_empty()) {
                return Progress::Stuck;
            }
            if begun.elapsed() > LIMIT {
                self.fail("a call neither answers nor hangs");
            }
            breathe().await;
        }
        Progress::Stuck
    }

    /// Begins a call of a client, and checks what becomes of it at once.
    async fn call(&mut self, client: usize, id: SandboxId, column: Column) {
        let (scheduler, team) = (self.host.scheduler.clone(), self.host.team);
        self.start(client, column, Some(id.clone()), call(scheduler, team, id.clone(), column));
        let Some(known) = self.known.get_mut(&id) else {
            // Killed, or never there.
            return self.check(client, &id, column, Answer::NotFound).await;
        };
        if known.doubtful {
            return breathe().await;
        }
        let state = known.busy.as_ref().map_or(known.state, |busy| busy.state);
        if let Some(answer) = Self::serve(known, client, column, state) {
            self.check(client, &id, column, answer).await;
        } else if known.busy.as_ref().is_some_and(|busy| busy.clients == [client]) {
            self.resolve(&id).await;
        } else {
            breathe().await;
            breathe().await;
        }
        self.check_view(&id);
    }

    /// What the table does with a call in a state: it is answered at once as returned, or noted as what runs, joins
    /// or waits.
    fn serve(known: &mut Known, client: usize, column: Column, state: State) -> Option<Answer> {
        let place = COLUMNS.iter().position(|other| *other == column).expect("a column");
        match row(state)[place] {
            Cell::Now(answer @ (Answer::Done | Answer::Resumed)) => {
                let state = match column {
                    Column::Pause => State::Pausing,
                    Column::Kill => State::Killing,
                    Column::Connect | Column::Resume => State::Resuming,
                    Column::Snapshot | Column::Fork => State::Snapshotting,
                    Column::SetTimeout | Column::Refresh => return Some(answer),
                };
                known.busy = Some(Busy { state, clients: vec![client] });
                None
            }
            Cell::Now(answer) => Some(answer),
            Cell::Then(_) => {
                let joins = matches!(
                    (state, column),
                    (State::Pausing, Column::Pause)
                        | (State::Resuming, Column::Connect | Column::Resume)
                        | (State::Killing, Column::Kill)
                );
                match &mut known.busy {
                    Some(busy) if joins => busy.clients.push(client),
                    _ => known.waiting.push_back(client),
                }
                None
            }
        }
    }

    /// Checks a call that must be answered at once.
    async fn check(&mut self, client: usize, id: &SandboxId, column: Column, expected: Answer) {
        let begun = Instant::now();
        while let Some(pending) = &mut self.clients[client] {
            match pending.answer.try_recv() {
                Ok(answer) if answer == expected => self.clients[client] = None,
                Ok(answer) => {
                    self.fail(&format!("{column:?} of {id} answers {answer:?}, not {expected:?}"));
                }
                Err(_) if begun.elapsed() > LIMIT => {
                    self.fail(&format!("{column:?} of {id} waits, and should answer {expected:?}"));
                }
                Err(_) => breathe().await,
            }
        }
    }

    /// Follows a sandbox's transitions until one hangs or all have ended.
    async fn resolve(&mut self, id: &SandboxId) {
        loop {
            let Some(known) = self.known.get(id) else { return };
            let Some(busy) = &known.busy else { return };
            let (state, first) = (busy.state, busy.clients[0]);
            let Some(column) = self.clients[first].as_ref().map(|pending| pending.column) else {
                return self.doubt(id);
            };
            let answer = match self.progress(first).await {
                Progress::Answered(answer) => Some(answer),
                Progress::Hangs => return self.check_view(id),
                // The copies of a fork may hang after their image is made.
                Progress::Stuck if column == Column::Fork => None,
                Progress::Stuck => return self.doubt(id),
            };
            let expected = match column {
                Column::Connect | Column::Resume => Answer::Resumed,
                _ => Answer::Done,
            };
            if answer.is_none_or(|answer| answer != expected) {
                if !self.may_fail && answer.is_some() {
                    self.fail(&format!("{column:?} of {id} answers {answer:?} without a fault"));
                }
                return self.doubt(id);
            }
            let known = self.known.get_mut(id).expect("it was there");
            let joined = known.busy.take().map(|busy| busy.clients).unwrap_or_default();
            for client in joined.into_iter().skip(1) {
                self.check(client, id, column, expected).await;
            }
            let known = self.known.get_mut(id).expect("it was there");
            known.state = match state {
                State::Pausing => State::Paused,
                State::Killing => {
                    let left: Vec<usize> = known.waiting.drain(..).collect();
                    self.known.remove(id);
                    if !left.is_empty() {
                        self.fail(&format!("{left:?} waited for a kill"));
                    }
                    return;
                }
                _ => State::Running,
            };
            // All that waited is served at once, each by what the one before it has begun.
            let mut answers = Vec::new();
            for client in std::mem::take(&mut known.waiting) {
                let Some(column) = self.clients[client].as_ref().map(|pending| pending.column)
                else {
                    continue;
                };
                let state = known.busy.as_ref().map_or(known.state, |busy| busy.state);
                let answer = Self::serve(known, client, column, state);
                answers.extend(answer.map(|answer| (client, column, answer)));
            }
            for (client, column, answer) in answers {
                self.check(client, id, column, answer).await;
            }
        }
    }

    /// What clients see of a sandbox is what the reference says.
    fn check_view(&self, id: &SandboxId) {
        let seen = self.host.get(id).ok().map(|sandbox| sandbox.state);
        let Some(known) = self.known.get(id) else {
            if seen.is_some() {
                self.fail(&format!("{id} is {seen:?}, and should be gone"));
            }
            return;
        };
        if known.doubtful {
            return;
        }
        let state = known.busy.as_ref().map_or(known.state, |busy| busy.state);
        if seen != state.is_visible().then_some(state) {
            self.fail(&format!("{id} is {seen:?}, and should be {state:?}"));
        }
        let listed = self.host.scheduler.list(self.host.team);
        let times = listed.iter().filter(|sandbox| sandbox.id == *id).count();
        if times != usize::from(state.is_visible()) {
            self.fail(&format!("{id} is listed {times} times while {state}"));
        }
    }

    async fn create(&mut self, client: usize) {
        let (scheduler, team) = (self.host.scheduler.clone(), self.host.team);
        let with_workspace = self.random.below(2) == 0;
        let (told, id) = oneshot::channel();
        let work = create(scheduler, team, with_workspace, told);
        // Of the table's columns, as one that is not of a sandbox.
        self.start(client, Column::Fork, None, work);
        match self.progress(client).await {
            Progress::Answered(Answer::Done) => {
                let (id, instance) = id.await.expect("it was told");
                let (state, busy, waiting) = (State::Running, None, VecDeque::new());
                let known = Known { instance, state, busy, waiting, doubtful: false };
                self.known.insert(id.clone(), known);
                self.check_view(&id);
            }
            Progress::Answered(answer) if !self.may_fail => {
                self.fail(&format!("a create answers {answer:?} without a fault"));
            }
            Progress::Answered(_) | Progress::Hangs | Progress::Stuck => {}
        }
    }

    fn pick(&mut self) -> Option<SandboxId> {
        let all: Vec<SandboxId> = self.known.keys().cloned().collect();
        (!all.is_empty()).then(|| all[self.random.below(all.len())].clone())
    }

    /// Somebody does something to a container.
    async fn interfere(&mut self) {
        let Some(id) = self.pick() else { return };
        let instance = self.known[&id].instance.clone();
        let engine = self.host.engine.clone();
        let what = self.random.below(6);
        self.note(format!("interfere {what}: {id}"));
        match what {
            0 => engine.die(&instance),
            1 => engine.die_unseen(&instance),
            2 => engine.set_state(&instance, ContainerState::Frozen),
            3 => engine.set_state(&instance, ContainerState::Running),
            4 => engine.set_state(&instance, ContainerState::Stopped),
            _ => engine.take_away(&instance),
        }
        if self.random.below(2) == 0 {
            engine.announce(RuntimeEvent::Resync);
        }
        self.doubt(&id);
        breathe().await;
    }

    async fn heal(&mut self, name: &str) {
        let Some((call, behaviour)) = self.faults.remove(name) else { return };
        self.note(format!("heal: {call:?} {behaviour:?}"));
        self.host.engine.heal(call);
        // What hung goes on.
        breathe().await;
        let busy: Vec<SandboxId> = self
            .known
            .iter()
            .filter(|(_, known)| known.busy.is_some())
            .map(|(id, _)| id.clone())
            .collect();
        for id in busy {
            self.resolve(&id).await;
            self.check_view(&id);
        }
    }

    /// The server dies, and all calls with it.
    async fn crash(&mut self) -> anyhow::Result<()> {
        self.note("crash:".to_owned());
        let stops = self.random.below(2) == 0;
        if stops {
            self.host.engine.stop_at(self.random.below(8));
            breathe().await;
        }
        self.tasks.shutdown().await;
        self.expiring.shutdown().await;
        self.host.crash().await;
        for (_, (call, _)) in std::mem::take(&mut self.faults) {
            self.host.engine.heal(call);
        }
        self.clients.iter_mut().for_each(|client| *client = None);
        self.host.restart().await?;
        self.host.watch().await;
        self.settle().await
    }

    /// Heals everything. Then all calls must answer, and all sandboxes be in order.
    async fn settle(&mut self) -> anyhow::Result<()> {
        for name in self.faults.keys().cloned().collect::<Vec<_>>() {
            self.heal(&name).await;
        }
        self.host.engine.announce(RuntimeEvent::Resync);
        let begun = Instant::now();
        let mut calm = false;
        for look in 1.. {
            breathe().await;
            self.collect();
            while self.expiring.try_join_next().is_some() {}
            let pending = self.clients.iter().flatten().count() + self.expiring.len();
            let faults = self.host.faults().await?;
            if pending == 0 && faults.is_empty() {
                // All is in order, but something may still wait to be tried again.
                if calm {
                    break;
                }
                calm = true;
                self.time.pass(Duration::from_millis(2500)).await;
                continue;
            }
            calm = false;
            if begun.elapsed() > LIMIT {
                self.fail(&format!("does not settle: {faults:#?}"));
            }
            // What is tried again later is tried now. Not faster than the store can follow.
            if look % 10 == 0 {
                self.time.pass(Duration::from_millis(2500)).await;
            }
            if look % 100 == 0 {
                self.host.engine.announce(RuntimeEvent::Resync);
            }
        }
        self.may_fail = false;
        for snapshot in
            self.host.scheduler.catalogue().snapshots(self.host.team, &SnapshotFilter::default())?
        {
            let reference = snapshot.id.parse()?;
            self.host.scheduler.delete_template(self.host.team, &reference).await?;
        }
        let all = self.host.scheduler.list(self.host.team).into_iter();
        self.known = all
            .map(|sandbox| {
                let (state, instance) = (sandbox.state, sandbox.instance.id.clone());
                let (busy, waiting) = (None, VecDeque::new());
                let known = Known { instance, state, busy, waiting, doubtful: false };
                (sandbox.id.clone(), known)
            })
            .collect();
        Ok(())
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
                let stays = call == Call::RemoveImage && fails;
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
) -> Answer {
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
            Answer::Done
        }
        Err(_) => Answer::Failed,
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
