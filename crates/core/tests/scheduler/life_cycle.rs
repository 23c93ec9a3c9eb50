//! The life-cycle table of control-plane 3.2, every row and column, as a client sees it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use sandyard_core::{Sandbox, SandboxError, SandboxState, Scheduler};
use sandyard_testkit::{Behaviour, EngineCall};
use sandyard_types::{PauseKind, SandboxId, TeamId};
use tokio::task::JoinSet;

use crate::host::{HostSettings, MINUTE, SchedulerHost, breathe, eventually, request, within};

/// A column of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Column {
    Pause,
    Kill,
    Connect,
    Resume,
    SetTimeout,
    Refresh,
    Snapshot,
    Fork,
}

pub(crate) const COLUMNS: [Column; 8] = [
    Column::Pause,
    Column::Kill,
    Column::Connect,
    Column::Resume,
    Column::SetTimeout,
    Column::Refresh,
    Column::Snapshot,
    Column::Fork,
];

/// What a call answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CallAnswer {
    /// 204, and 201 of a snapshot or fork.
    Done,
    /// 200.
    Ran,
    /// 201 of a connect or resume.
    Resumed,
    /// 409.
    Conflict,
    /// 404.
    NotFound,
    /// Anything else.
    Failed,
}

fn answer<T>(result: Result<T, SandboxError>, done: impl FnOnce(T) -> CallAnswer) -> CallAnswer {
    match result {
        Ok(value) => done(value),
        Err(SandboxError::Conflict { .. }) => CallAnswer::Conflict,
        Err(SandboxError::NotFound(_) | SandboxError::Paused { .. }) => CallAnswer::NotFound,
        Err(SandboxError::Shared(error)) => match &*error {
            SandboxError::Conflict { .. } => CallAnswer::Conflict,
            SandboxError::NotFound(_) => CallAnswer::NotFound,
            _ => CallAnswer::Failed,
        },
        Err(_) => CallAnswer::Failed,
    }
}

/// Makes a call of a column, and keeps what it makes.
pub(crate) async fn call(
    scheduler: Scheduler,
    team: TeamId,
    id: SandboxId,
    column: Column,
) -> CallAnswer {
    let done = |()| CallAnswer::Done;
    match column {
        Column::Pause => answer(scheduler.pause(team, &id, PauseKind::Full, false).await, done),
        Column::Kill => answer(scheduler.kill(team, &id).await, done),
        Column::SetTimeout => answer(scheduler.set_timeout(team, &id, 10 * MINUTE).await, done),
        Column::Refresh => answer(scheduler.extend(team, &id, 10 * MINUTE).await, done),
        Column::Snapshot => answer(scheduler.snapshot(team, &id, None).await, |_| CallAnswer::Done),
        Column::Fork => {
            answer(scheduler.fork(team, &id, 1, 10 * MINUTE).await, |forks| {
                match forks.into_iter().map(|fork| fork.map(|new| new.keep())).all(|f| f.is_ok()) {
                    true => CallAnswer::Done,
                    false => CallAnswer::Failed,
                }
            })
        }
        Column::Connect => {
            answer(scheduler.connect(team, &id, 10 * MINUTE, true).await, |connected| {
                if connected.resumed { CallAnswer::Resumed } else { CallAnswer::Ran }
            })
        }
        Column::Resume => {
            answer(scheduler.resume(team, &id, 10 * MINUTE, true, None).await, |connected| {
                if connected.resumed { CallAnswer::Resumed } else { CallAnswer::Ran }
            })
        }
    }
}

/// A cell of the table.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Cell {
    /// Answered at once.
    Now(CallAnswer),
    /// Answered when what was under way has ended: it waits for that, or joins it.
    Then(CallAnswer),
}

/// The contract's table, with the columns in the order of [`COLUMNS`].
pub(crate) fn row(state: SandboxState) -> [Cell; 8] {
    use CallAnswer::{Conflict, Done, NotFound, Ran, Resumed};
    use Cell::{Now, Then};
    match state {
        SandboxState::Creating => [
            Now(NotFound),
            Then(Done),
            Now(NotFound),
            Now(NotFound),
            Now(NotFound),
            Now(NotFound),
            Now(NotFound),
            Now(NotFound),
        ],
        SandboxState::Running => [
            Now(Done),
            Now(Done),
            Now(Ran),
            Now(Conflict),
            Now(Done),
            Now(Done),
            Now(Done),
            Now(Done),
        ],
        SandboxState::Snapshotting => [
            Then(Done),
            Then(Done),
            Then(Ran),
            Now(Conflict),
            Now(Conflict),
            Now(Conflict),
            Now(Conflict),
            Now(Conflict),
        ],
        SandboxState::Pausing => [
            Then(Done),
            Then(Done),
            Then(Resumed),
            Then(Resumed),
            Now(Conflict),
            Now(Conflict),
            Now(Conflict),
            Now(Conflict),
        ],
        SandboxState::Paused => [
            Now(Conflict),
            Now(Done),
            Now(Resumed),
            Now(Resumed),
            Now(NotFound),
            Now(NotFound),
            Now(NotFound),
            Now(Conflict),
        ],
        SandboxState::Resuming => [
            Then(Done),
            Then(Done),
            Then(Resumed),
            Then(Resumed),
            Now(Conflict),
            Now(Conflict),
            Now(Conflict),
            Now(Conflict),
        ],
        SandboxState::Killing => [
            Now(Conflict),
            Then(Done),
            Now(Conflict),
            Now(NotFound),
            Now(Conflict),
            Now(Conflict),
            Now(Conflict),
            Now(Conflict),
        ],
    }
}

/// What a client that asks is shown: the contract knows `running` and `paused`.
fn shown(sandbox: &Sandbox) -> &'static str {
    match sandbox.state {
        SandboxState::Running | SandboxState::Snapshotting => "running",
        SandboxState::Pausing | SandboxState::Paused | SandboxState::Resuming => "paused",
        SandboxState::Creating | SandboxState::Killing => "shown, and should not be",
    }
}

/// A sandbox that is held in a state.
struct HeldTransition {
    host: SchedulerHost,
    id: SandboxId,
    /// The call that hangs, and what is waiting for it.
    hangs: Option<EngineCall>,
    waits: JoinSet<CallAnswer>,
}

impl HeldTransition {
    async fn new(state: SandboxState) -> anyhow::Result<Self> {
        let settings = HostSettings::default();
        let host = SchedulerHost::with(settings).await?;
        let mut waits = JoinSet::new();
        let (scheduler, team) = (host.scheduler.clone(), host.team);
        if state == SandboxState::Creating {
            host.engine.script(EngineCall::Create, Behaviour::Hang);
            waits.spawn(async move {
                answer(scheduler.create(team, request()).await, |new| {
                    new.keep();
                    CallAnswer::Done
                })
            });
            within("a create", host.engine.hangs(EngineCall::Create)).await;
            let id = host.scheduler.instances().remove(0).0;
            return Ok(Self { host, id, hangs: Some(EngineCall::Create), waits });
        }
        let id = host.create(request()).await?.id.clone();
        if matches!(state, SandboxState::Paused | SandboxState::Resuming) {
            host.pause(&id, PauseKind::Full).await?;
        }
        let (column, hangs) = match state {
            SandboxState::Running | SandboxState::Paused | SandboxState::Creating => {
                return Ok(Self { host, id, hangs: None, waits });
            }
            SandboxState::Snapshotting => (Column::Snapshot, EngineCall::Commit),
            SandboxState::Pausing => (Column::Pause, EngineCall::Freeze),
            SandboxState::Resuming => (Column::Connect, EngineCall::Thaw),
            SandboxState::Killing => (Column::Kill, EngineCall::StopExecutor),
        };
        host.engine.script(hangs, Behaviour::Hang);
        waits.spawn(call(scheduler, team, id.clone(), column));
        within("what holds it", host.engine.hangs(hangs)).await;
        Ok(Self { host, id, hangs: Some(hangs), waits })
    }

    /// What clients see of it now, by all ways.
    fn seen(&self) -> Option<&'static str> {
        let listed: Vec<Arc<Sandbox>> = self.host.scheduler.list(self.host.team);
        let listed: Vec<_> = listed.iter().filter(|sandbox| sandbox.id == self.id).collect();
        assert!(listed.len() < 2, "listed twice");
        let got = self.host.get(&self.id).ok();
        let routed = self.host.scheduler.route(&self.id);
        let seen = got.as_deref().map(shown);
        assert_eq!(listed.first().map(|sandbox| shown(sandbox)), seen);
        assert_eq!(routed.as_deref().map(shown), seen);
        seen
    }
}

#[tokio::test]
async fn every_call_in_every_state_answers_as_the_table_says() -> anyhow::Result<()> {
    for state in SandboxState::ALL {
        for (column, cell) in COLUMNS.into_iter().zip(row(state)) {
            let case = format!("{column:?} while {state}");
            let mut held = HeldTransition::new(state).await?;
            let seen = match state {
                SandboxState::Running | SandboxState::Snapshotting => Some("running"),
                SandboxState::Pausing | SandboxState::Paused | SandboxState::Resuming => {
                    Some("paused")
                }
                SandboxState::Creating | SandboxState::Killing => None,
            };
            assert_eq!(held.seen(), seen, "{case}: before");
            let mut calls = JoinSet::new();
            let (scheduler, team) = (held.host.scheduler.clone(), held.host.team);
            calls.spawn(call(scheduler, team, held.id.clone(), column));
            let expected = match cell {
                Cell::Now(expected) => expected,
                Cell::Then(expected) => {
                    for _ in 0..20 {
                        breathe().await;
                    }
                    assert!(calls.try_join_next().is_none(), "{case}: does not wait");
                    assert_eq!(held.seen(), seen, "{case}: meanwhile");
                    let hangs = held.hangs.take().expect("something holds it");
                    held.host.engine.heal(hangs);
                    expected
                }
            };
            let answered = within(&case, calls.join_next()).await.expect("one call")?;
            assert_eq!(answered, expected, "{case}");
            // No call returns before the sandbox really is what it answers.
            let after = match (column, answered) {
                (Column::Pause, CallAnswer::Done) => Some("paused"),
                (Column::Kill, CallAnswer::Done) => None,
                (Column::Connect | Column::Resume, CallAnswer::Ran | CallAnswer::Resumed) => {
                    Some("running")
                }
                _ => seen,
            };
            assert_eq!(held.seen(), after, "{case}: after");
            if let Some(hangs) = held.hangs.take() {
                held.host.engine.heal(hangs);
            }
            if let Some(first) = within(&case, held.waits.join_next()).await {
                let first = first?;
                let fine =
                    matches!(first, CallAnswer::Done | CallAnswer::Ran | CallAnswer::Resumed);
                assert!(fine, "{case}: what was under way is disturbed: {first:?}");
            }
            held.host.settled(&case).await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn the_unknown_the_killed_and_the_foreign_are_not_there() -> anyhow::Result<()> {
    let host = SchedulerHost::start().await?;
    let (killed, foreign) = (host.create(request()).await?, host.create(request()).await?);
    host.scheduler.kill(host.team, &killed.id).await?;
    let unknown: SandboxId = "iunknown".parse()?;
    for column in COLUMNS {
        let cases =
            [(host.team, &unknown), (host.team, &killed.id), (host.other_team, &foreign.id)];
        for (team, id) in cases {
            let answered = call(host.scheduler.clone(), team, id.clone(), column).await;
            assert_eq!(answered, CallAnswer::NotFound, "{column:?} of {id}");
        }
        assert_eq!(host.get(&foreign.id)?.state, SandboxState::Running);
    }
    Ok(())
}

/// Makes calls all at once.
async fn at_once(
    host: &SchedulerHost,
    id: &SandboxId,
    column: Column,
    times: usize,
) -> Vec<CallAnswer> {
    let calls = (0..times).map(|_| call(host.scheduler.clone(), host.team, id.clone(), column));
    within("calls at once", futures::future::join_all(calls)).await
}

#[tokio::test]
async fn the_same_at_once_is_done_once_and_answered_alike() -> anyhow::Result<()> {
    let host = SchedulerHost::start().await?;
    let sandbox = host.create(request()).await?;
    let (id, instance) = (&sandbox.id, &sandbox.instance.id);
    assert_eq!(at_once(&host, id, Column::Pause, 5).await, [CallAnswer::Done; 5]);
    assert_eq!(host.count_of(EngineCall::Freeze, instance), 1);
    assert_eq!(at_once(&host, id, Column::Resume, 5).await, [CallAnswer::Resumed; 5]);
    assert_eq!(host.count_of(EngineCall::Thaw, instance), 1);
    assert_eq!(at_once(&host, id, Column::Resume, 2).await, [CallAnswer::Conflict; 2]);
    host.pause(id, PauseKind::Filesystem).await?;
    assert_eq!(at_once(&host, id, Column::Connect, 5).await, [CallAnswer::Resumed; 5]);
    assert_eq!(host.count_of(EngineCall::Start, instance), 1);
    assert_eq!(at_once(&host, id, Column::Kill, 5).await, [CallAnswer::Done; 5]);
    assert_eq!(host.count_of(EngineCall::Delete, instance), 1);
    host.assert_empty("killed").await
}

#[tokio::test]
async fn who_joins_shares_the_failure_too() -> anyhow::Result<()> {
    let host = SchedulerHost::start().await?;
    let sandbox = host.create(request()).await?;
    let (id, instance) = (&sandbox.id, &sandbox.instance.id);
    host.engine.script(EngineCall::Freeze, Behaviour::Fail);
    assert_eq!(at_once(&host, id, Column::Pause, 3).await, [CallAnswer::Failed; 3]);
    assert_eq!(host.count_of(EngineCall::Freeze, instance), 1);
    host.engine.heal(EngineCall::Freeze);
    host.settled("the pause failed").await?;
    host.pause(id, PauseKind::Full).await?;
    host.engine.script(EngineCall::Thaw, Behaviour::Fail);
    assert_eq!(at_once(&host, id, Column::Connect, 3).await, [CallAnswer::Failed; 3]);
    host.engine.heal(EngineCall::Thaw);
    host.settled("the resume failed").await?;
    assert_eq!(host.get(id)?.state, SandboxState::Paused);
    Ok(())
}

#[tokio::test]
async fn what_waits_is_served_in_order_each_by_the_state_that_it_finds() -> anyhow::Result<()> {
    let held = HeldTransition::new(SandboxState::Snapshotting).await?;
    let host = &held.host;
    let mut calls = Vec::new();
    let mut tasks = JoinSet::new();
    for (place, column) in
        [Column::Pause, Column::Connect, Column::Pause, Column::Kill, Column::Connect]
            .into_iter()
            .enumerate()
    {
        let calling = call(host.scheduler.clone(), host.team, held.id.clone(), column);
        tasks.spawn(async move { (place, calling.await) });
        breathe().await;
    }
    host.engine.heal(EngineCall::Commit);
    while let Some(called) = within("the calls", tasks.join_next()).await {
        calls.push(called?);
    }
    calls.sort_by_key(|(place, _)| *place);
    let answers: Vec<CallAnswer> = calls.into_iter().map(|(_, answered)| answered).collect();
    // Once the pause has begun, the second pause joins it, and the rest waits for its end.
    let [first, second, third, fourth, fifth] = answers[..] else { panic!("{answers:?}") };
    assert_eq!(
        [first, second, third, fourth],
        [CallAnswer::Done, CallAnswer::Resumed, CallAnswer::Done, CallAnswer::Done]
    );
    assert!(
        matches!(fifth, CallAnswer::Conflict | CallAnswer::NotFound | CallAnswer::Resumed),
        "{fifth:?}"
    );
    within("the end", async {
        while host.get(&held.id).is_ok() {
            breathe().await;
        }
    })
    .await;
    Ok(())
}

/// Whoever lists while sandboxes change sees each of them, and none twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sandbox_is_listed_at_every_moment_and_once() -> anyhow::Result<()> {
    let host = SchedulerHost::start().await?;
    let sandbox = host.create(request()).await?;
    let stop = Arc::new(AtomicBool::new(false));
    let mut lists = JoinSet::new();
    let (scheduler, team, stopped) = (host.scheduler.clone(), host.team, stop.clone());
    let id = sandbox.id.clone();
    lists.spawn_blocking(move || {
        let mut looks = 0_u64;
        while !stopped.load(Ordering::Relaxed) {
            let listed = scheduler.list(team);
            let times = listed.iter().filter(|listed| listed.id == id).count();
            assert_eq!(times, 1, "look {looks}: {listed:?}");
            assert!(scheduler.get(team, &id).is_ok());
            looks += 1;
        }
        looks
    });
    for _ in 0..50 {
        for column in [Column::Pause, Column::Connect, Column::Snapshot] {
            let answered =
                call(host.scheduler.clone(), host.team, sandbox.id.clone(), column).await;
            assert!(!matches!(
                answered,
                CallAnswer::Failed | CallAnswer::NotFound | CallAnswer::Conflict
            ));
        }
        host.pause(&sandbox.id, PauseKind::Filesystem).await?;
        host.scheduler.resume(host.team, &sandbox.id, MINUTE, true, None).await?;
    }
    stop.store(true, Ordering::Relaxed);
    let looks = lists.join_next().await.expect("one task")?;
    assert!(looks > 1000, "{looks} looks say little");
    Ok(())
}

#[tokio::test]
async fn a_kill_in_a_resume_that_fails_ends_the_sandbox_all_the_same() -> anyhow::Result<()> {
    let mut held = HeldTransition::new(SandboxState::Resuming).await?;
    let (scheduler, team) = (held.host.scheduler.clone(), held.host.team);
    held.waits.spawn(call(scheduler, team, held.id.clone(), Column::Kill));
    breathe().await;
    held.host.engine.script(EngineCall::Resume, Behaviour::Fail);
    held.host.engine.heal(EngineCall::Thaw);
    let mut answers = Vec::new();
    while let Some(answered) = within("both", held.waits.join_next()).await {
        answers.push(answered?);
    }
    answers.sort_by_key(|answered| *answered == CallAnswer::Failed);
    assert_eq!(answers, [CallAnswer::Done, CallAnswer::Failed]);
    held.host.assert_empty("killed").await
}

#[tokio::test]
async fn right_after_a_start_calls_wait_for_what_it_sets_right() -> anyhow::Result<()> {
    for (column, expected) in [
        (Column::Pause, CallAnswer::Done),
        (Column::Connect, CallAnswer::Ran),
        (Column::Kill, CallAnswer::Done),
        (Column::Snapshot, CallAnswer::Done),
    ] {
        let mut held = HeldTransition::new(SandboxState::Pausing).await?;
        held.host.crash().await;
        held.host.engine.heal(EngineCall::Freeze);
        held.host.engine.script(EngineCall::Thaw, Behaviour::Hang);
        held.host.restart().await?;
        within("the undoing", held.host.engine.hangs(EngineCall::Thaw)).await;
        assert_eq!(held.seen(), Some("paused"));
        let mut calls = JoinSet::new();
        let (scheduler, team) = (held.host.scheduler.clone(), held.host.team);
        calls.spawn(call(scheduler, team, held.id.clone(), column));
        breathe().await;
        assert!(calls.try_join_next().is_none(), "{column:?} does not wait");
        held.host.engine.heal(EngineCall::Thaw);
        let answered = within("the call", calls.join_next()).await.expect("one call")?;
        assert_eq!(answered, expected, "{column:?}");
        held.host.settled("set right").await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_paused_sandbox_takes_no_place_of_its_team_and_needs_one_to_run() -> anyhow::Result<()> {
    let host = SchedulerHost::start().await?;
    let paused = host.create(request()).await?;
    host.pause(&paused.id, PauseKind::Full).await?;
    for _ in 0..3 {
        host.create(request()).await?;
    }
    let (scheduler, team) = (&host.scheduler, host.team);
    for refused in [
        scheduler.resume(team, &paused.id, MINUTE, true, None).await,
        scheduler.connect(team, &paused.id, MINUTE, true).await,
    ] {
        assert!(matches!(refused, Err(SandboxError::TooMany { max: 3 })), "{refused:?}");
    }
    assert_eq!(host.get(&paused.id)?.state, SandboxState::Paused);
    let other = host.scheduler.list(host.team).into_iter().find(|s| s.id != paused.id);
    let other = other.expect("there are three").id.clone();
    // A fork is made, and its copies are refused for themselves.
    let forks = scheduler.fork(team, &other, 2, MINUTE).await?;
    assert!(forks.iter().all(|f| matches!(f, Err(SandboxError::TooMany { max: 3 }))), "{forks:?}");
    let too_many = scheduler.fork(team, &other, 3, MINUTE).await;
    assert!(matches!(too_many, Err(SandboxError::TooManyForks { count: 3, max: 3 })));
    eventually("the image's removal", || host.engine.images().is_empty()).await;
    scheduler.kill(team, &other).await?;
    scheduler.resume(team, &paused.id, MINUTE, true, None).await?;
    host.settled("resumed").await
}
