//! The scheduler on an engine in memory: what it makes, what it leaves, what survives a restart.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use sandyard_core::{
    CreateSandbox, DiskSpace, FIRST_TEAM, Limits, Sandbox, SandboxError, Scheduler, SchedulerParts,
    State, Store, Team, Templates, now,
};
use sandyard_testkit::{Behaviour, Call, FakeEngine};
use sandyard_types::{Cache, InstanceId, Network, SandboxId, TeamId, Template, TemplateKind};
use tokio::time::timeout;

/// How long anything in here may take before the test fails instead of hanging.
const LIMIT: Duration = Duration::from_secs(20);

struct Host {
    _folder: tempfile::TempDir,
    engine: FakeEngine,
    store: Store,
    team: TeamId,
    other_team: TeamId,
    scheduler: Scheduler,
}

impl Host {
    async fn start() -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let store = Store::open(&folder.path().join("store.db")).await?;
        let mut teams = Vec::new();
        for slug in [FIRST_TEAM, "two"] {
            let team = Team { id: TeamId::random(), slug: slug.to_owned(), name: slug.to_owned() };
            store.add_team(&team).await?;
            teams.push(team.id);
        }
        let engine = FakeEngine::new();
        let scheduler = start(&engine, &store).await?;
        Ok(Self { _folder: folder, engine, store, team: teams[0], other_team: teams[1], scheduler })
    }

    /// The process ends without a word, and another one starts.
    async fn crash_and_restart(&mut self) -> anyhow::Result<()> {
        self.scheduler = start(&self.engine, &self.store).await?;
        Ok(())
    }

    async fn create(&self, request: CreateSandbox) -> Result<Arc<Sandbox>, SandboxError> {
        self.scheduler.create(self.team, request).await
    }

    /// Nothing of any sandbox is left, in memory, on the engine or in the store.
    async fn assert_empty(&self, when: &str) -> anyhow::Result<()> {
        timeout(LIMIT, self.scheduler.emptied()).await?;
        assert!(self.engine.instances().is_empty(), "{when}: a container is left");
        // What the store still held would come back now.
        let again = start(&self.engine, &self.store).await?;
        assert!(again.list(self.team).is_empty(), "{when}: a record is left");
        Ok(())
    }
}

async fn start(engine: &FakeEngine, store: &Store) -> Result<Scheduler, SandboxError> {
    let template = Template {
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
    };
    Scheduler::start(SchedulerParts {
        runtime: Arc::new(engine.clone()),
        executor: Arc::new(engine.clone()),
        workspaces: Arc::new(engine.clone()),
        store: store.clone(),
        templates: Templates::new(vec![template]),
        limits: Limits {
            max_length: Duration::from_secs(3600),
            max_sandboxes: 3,
            flush: Duration::from_secs(1),
            disk_watch: Duration::from_millis(20),
        },
        bucket: "sandyard".parse().expect("valid"),
        cache: Cache::Tmpfs { size_mib: 100 },
    })
    .await
}

fn request() -> CreateSandbox {
    CreateSandbox {
        template: "base".parse().expect("valid"),
        timeout: Duration::from_secs(600),
        metadata: BTreeMap::new(),
        env: [("B".to_owned(), "request".to_owned())].into(),
        secure: true,
        internet: None,
        network: None,
        session: Some("s1".parse().expect("valid")),
    }
}

#[tokio::test]
async fn a_created_sandbox_runs_is_known_and_has_its_settings() -> anyhow::Result<()> {
    let host = Host::start().await?;
    let sandbox = host.create(request()).await?;
    assert_eq!(sandbox.state, State::Running);
    assert_eq!(sandbox.end_at - sandbox.started_at, Duration::from_secs(600));
    assert_eq!(host.scheduler.get(host.team, &sandbox.id)?.id, sandbox.id);
    let claim = &host.engine.claims()[0];
    assert_eq!(claim.env["A"], "template");
    assert_eq!(claim.env["B"], "request");
    assert_eq!(claim.default_workdir.as_deref(), Some("/work"));
    let mounts = &claim.workspace.as_ref().expect("a workspace").mounts;
    assert_eq!(mounts[0].prefix.as_str(), "sessions/s1/");
    assert_eq!(host.engine.prepared().len(), 1);
    Ok(())
}

#[tokio::test]
async fn another_team_sees_nothing_and_its_session_of_the_same_name_is_another_one()
-> anyhow::Result<()> {
    let host = Host::start().await?;
    let sandbox = host.create(request()).await?;
    let (other, id) = (host.other_team, &sandbox.id);
    let minute = Duration::from_secs(60);
    assert!(matches!(host.scheduler.get(other, id), Err(SandboxError::NotFound(_))));
    assert!(matches!(host.scheduler.kill(other, id).await, Err(SandboxError::NotFound(_))));
    let connect = host.scheduler.connect(other, id, minute).await;
    assert!(matches!(connect, Err(SandboxError::NotFound(_))));
    let set = host.scheduler.set_timeout(other, id, minute).await;
    assert!(matches!(set, Err(SandboxError::NotFound(_))));
    assert!(host.scheduler.list(other).is_empty());
    let own = host.scheduler.create(other, request()).await?;
    let prefix = |sandbox: &Sandbox| {
        sandbox.workspace.as_ref().expect("a workspace").mounts[0].prefix.to_string()
    };
    assert_eq!(prefix(&sandbox), "sessions/s1/");
    assert_eq!(prefix(&own), "teams/two/sessions/s1/");
    Ok(())
}

#[tokio::test]
async fn a_sandbox_that_writes_too_much_is_ended_and_a_full_disk_takes_no_more()
-> anyhow::Result<()> {
    const MIB: u64 = 1 << 20;
    let host = Host::start().await?;
    let mut tasks = tokio::task::JoinSet::new();
    let watching = host.scheduler.clone();
    tasks.spawn(async move { watching.watch_disk().await });
    let (small, large, most) = (
        host.create(request()).await?,
        host.create(request()).await?,
        host.create(request()).await?,
    );
    let gone = async |sandbox: &Sandbox| {
        timeout(LIMIT, async {
            while host.scheduler.get(host.team, &sandbox.id).is_ok() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
    };
    let written = |megabytes: [u64; 3]| {
        let all = [&small, &large, &most].into_iter().zip(megabytes);
        all.map(|(sandbox, megabytes)| (sandbox.instance.id.clone(), megabytes * MIB)).collect()
    };
    // The template allows 100 MiB.
    host.engine.fill_disk(written([1, 101, 99]), None);
    gone(&large).await?;
    assert!(host.scheduler.get(host.team, &most.id).is_ok());
    // Full, but not by what these add: it is a workspace's or another program's doing, and no sandbox pays for it.
    let full = DiskSpace { total: 1000, free: 49 };
    host.engine.fill_disk(written([1, 0, 99]), Some(full));
    timeout(LIMIT, async {
        while !matches!(host.create(request()).await, Err(SandboxError::DiskFull)) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await?;
    let looks = host.engine.calls().iter().filter(|(call, _)| *call == Call::DiskUsage).count();
    timeout(LIMIT, host.engine.called(Call::DiskUsage, looks + 2)).await?;
    assert!(host.scheduler.get(host.team, &most.id).is_ok());
    // Whoever has added most since goes, who has added little stays.
    host.engine.fill_disk(written([66, 0, 99]), Some(full));
    gone(&small).await?;
    assert!(host.scheduler.get(host.team, &most.id).is_ok());
    host.engine.fill_disk(written([0, 0, 99]), Some(DiskSpace { total: 1000, free: 51 }));
    timeout(LIMIT, async {
        while host.create(request()).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await?;
    Ok(())
}

#[tokio::test]
async fn a_create_that_fails_at_any_step_leaves_nothing() -> anyhow::Result<()> {
    let host = Host::start().await?;
    for call in [Call::EnsureImage, Call::Prepare, Call::Create, Call::Claim] {
        for behaviour in [Behaviour::Fail, Behaviour::FailAfter] {
            host.engine.script(call, behaviour);
            let failed = host.create(request()).await;
            assert!(failed.is_err(), "{call:?} {behaviour:?}");
            host.engine.heal(call);
            host.assert_empty(&format!("{call:?} {behaviour:?}")).await?;
        }
    }
    host.create(request()).await?;
    Ok(())
}

#[tokio::test]
async fn what_could_not_be_undone_is_tried_again_here_and_by_the_next_start() -> anyhow::Result<()>
{
    let mut host = Host::start().await?;
    host.engine.script(Call::Claim, Behaviour::Fail);
    host.engine.script(Call::Delete, Behaviour::Fail);
    let failed = host.create(request()).await.expect_err("fails");
    assert!(matches!(failed, SandboxError::Cleanup { .. }), "{failed}");
    assert_eq!(host.engine.instances().len(), 1);
    let begun = host.engine.calls().iter().filter(|(call, _)| *call == Call::Delete).count();
    timeout(LIMIT, host.engine.called(Call::Delete, begun + 1)).await?;
    host.engine.heal(Call::Delete);
    timeout(LIMIT, host.engine.called(Call::Delete, begun + 2)).await?;
    host.assert_empty("undone without a restart").await?;

    host.engine.script(Call::Delete, Behaviour::Fail);
    host.create(request()).await.expect_err("fails");
    host.engine.heal(Call::Claim);
    host.engine.heal(Call::Delete);
    host.crash_and_restart().await?;
    host.assert_empty("after the restart").await
}

/// Gives a future a number of polls and then no more.
struct Polls<F> {
    future: F,
    left: usize,
}

impl<F: Future + Unpin> Future for Polls<F> {
    type Output = Option<F::Output>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        self.left -= 1;
        Pin::new(&mut self.future).poll(context).map(Some)
    }
}

#[tokio::test]
async fn a_create_dropped_at_any_await_leaves_nothing_after_the_next_start() -> anyhow::Result<()> {
    let mut host = Host::start().await?;
    for awaits in 0.. {
        assert!(awaits < 500, "a create has no end");
        let finished = {
            let create = pin!(host.scheduler.create_unserved(host.team, request()));
            Polls { future: create, left: awaits }.await
        };
        host.crash_and_restart().await?;
        match finished {
            None => {
                // The last await is the store's own: what it had written is a whole sandbox by then,
                // which its team sees and which ends at its time.
                for whole in host.scheduler.list(host.team) {
                    let calls = host.engine.calls();
                    let made = |(call, id): &(Call, Option<InstanceId>)| {
                        *call == Call::Claim && id.as_ref() == Some(&whole.instance.id)
                    };
                    assert!(calls.iter().any(made), "await {awaits}: half a sandbox is kept");
                    host.scheduler.kill(host.team, &whole.id).await?;
                }
                host.assert_empty(&format!("dropped at await {awaits}")).await?;
            }
            Some(result) => {
                result?;
                assert!(awaits > 10, "the fake engine alone awaits more often");
                // It was answered for: it is adopted, not removed.
                let adopted = host.scheduler.list(host.team);
                assert_eq!(adopted.len(), 1);
                host.scheduler.kill(host.team, &adopted[0].id).await?;
                return host.assert_empty("killed").await;
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_sandbox_whose_client_left_before_the_answer_is_ended() -> anyhow::Result<()> {
    let host = Host::start().await?;
    tokio::select! {
        biased;
        // The container is being made when the client goes.
        () = host.engine.called(Call::Create, 1) => {}
        created = host.create(request()) => panic!("it was ready at once: {created:?}"),
    }
    timeout(LIMIT, host.engine.called(Call::Delete, 1)).await?;
    host.assert_empty("abandoned").await
}

#[tokio::test]
async fn a_restart_adopts_what_lives_and_ends_what_is_due_dead_or_nobodys() -> anyhow::Result<()> {
    let mut host = Host::start().await?;
    let network = Network { allow_public_traffic: Some(false), ..Network::default() };
    let lives = host.create(CreateSandbox { network: Some(network), ..request() }).await?;
    let due =
        host.create(CreateSandbox { timeout: Duration::from_millis(300), ..request() }).await?;
    let dead = host.create(request()).await?;
    // The process is gone; meanwhile one container dies and one that nobody knows appears.
    host.scheduler.shut_down().await;
    host.engine.die_unseen(&dead.instance.id);
    let stranger = InstanceId::random();
    host.engine.add(sandyard_core::Instance { id: stranger, ..lives.instance.clone() });
    while now() < due.end_at {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    host.crash_and_restart().await?;
    timeout(LIMIT, async {
        while host.engine.instances().len() > 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await?;
    let left = host.engine.instances();
    assert_eq!(left.iter().map(|i| &i.id).collect::<Vec<_>>(), [&lives.instance.id]);
    let adopted = host.scheduler.get(host.team, &lives.id)?;
    assert_eq!((adopted.started_at, adopted.end_at), (lives.started_at, lives.end_at));
    assert_eq!(adopted.workspace, lives.workspace);
    assert_eq!(adopted.network, lives.network);
    assert!(!adopted.is_public());
    Ok(())
}

#[tokio::test]
async fn a_container_that_dies_ends_its_sandbox() -> anyhow::Result<()> {
    let host = Host::start().await?;
    let watching = host.scheduler.clone();
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(async move { watching.watch().await });
    let one = host.create(request()).await?;
    let two = host.create(request()).await?;
    // The watcher may not be there yet, and an event is not repeated.
    timeout(LIMIT, async {
        while host.scheduler.get(host.team, &one.id).is_ok() {
            host.engine.die(&one.instance.id);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await?;
    host.engine.die_unseen(&two.instance.id);
    host.engine.announce(sandyard_core::RuntimeEvent::Resync);
    timeout(LIMIT, host.scheduler.emptied()).await?;
    // Nobody is left to be asked for a flush.
    assert!(!host.engine.calls().iter().any(|(call, _)| *call == Call::StopExecutor));
    host.assert_empty("died").await
}

#[tokio::test]
async fn a_kill_flushes_first_and_others_join_it() -> anyhow::Result<()> {
    let host = Host::start().await?;
    let sandbox = host.create(request()).await?;
    let kill = || host.scheduler.kill(host.team, &sandbox.id);
    let results = futures::future::join_all((0..5).map(|_| kill())).await;
    assert!(results.iter().all(Result::is_ok), "{results:?}");
    assert!(matches!(kill().await, Err(SandboxError::NotFound(_))));
    let order: Vec<Call> = host
        .engine
        .calls()
        .into_iter()
        .map(|(call, _)| call)
        .filter(|call| matches!(call, Call::StopExecutor | Call::Delete))
        .collect();
    assert_eq!(order, [Call::StopExecutor, Call::Delete]);
    assert_eq!(host.engine.released(), std::slice::from_ref(&sandbox.id));
    host.assert_empty("killed").await
}

#[tokio::test]
async fn a_sandbox_that_starts_while_the_engine_says_what_runs_is_not_taken_for_dead()
-> anyhow::Result<()> {
    let host = Host::start().await?;
    let mut tasks = tokio::task::JoinSet::new();
    let watching = host.scheduler.clone();
    tasks.spawn(async move { watching.watch().await });
    let dead = host.create(request()).await?;
    host.engine.die_unseen(&dead.instance.id);
    // The answer is made before the other sandbox exists, and comes after.
    host.engine.script(Call::List, Behaviour::HangAfter);
    host.engine.announce(sandyard_core::RuntimeEvent::Resync);
    let lists = host.engine.calls().iter().filter(|(call, _)| *call == Call::List).count();
    timeout(LIMIT, host.engine.called(Call::List, lists + 1)).await?;
    let new = host.create(request()).await?;
    host.engine.heal(Call::List);
    // When the next comparison begins, all that the first one found is reported.
    host.engine.announce(sandyard_core::RuntimeEvent::Resync);
    timeout(LIMIT, host.engine.called(Call::List, lists + 2)).await?;
    timeout(LIMIT, host.engine.called(Call::Delete, 1)).await?;
    assert!(host.scheduler.get(host.team, &dead.id).is_err());
    assert!(host.scheduler.get(host.team, &new.id).is_ok());
    Ok(())
}

#[tokio::test]
async fn a_sandbox_being_killed_is_not_there_and_its_key_still_is() -> anyhow::Result<()> {
    let host = Host::start().await?;
    let sandbox = host.create(request()).await?;
    host.engine.script(Call::StopExecutor, Behaviour::Hang);
    let killing = host.scheduler.clone();
    let (team, id) = (host.team, sandbox.id.clone());
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(async move { killing.kill(team, &id).await });
    timeout(LIMIT, host.engine.called(Call::StopExecutor, 1)).await?;
    assert!(host.scheduler.get(host.team, &sandbox.id).is_err());
    assert!(host.scheduler.list(host.team).is_empty());
    assert!(host.scheduler.route(&sandbox.id).is_none());
    assert!(host.scheduler.workspace(&sandbox.id).is_some(), "the driver still needs its key");
    let minute = Duration::from_secs(60);
    let connect = host.scheduler.connect(host.team, &sandbox.id, minute).await;
    assert!(matches!(connect, Err(SandboxError::Conflict { .. })), "{connect:?}");
    Ok(())
}

#[tokio::test]
async fn an_executor_that_does_not_stop_is_stopped_by_the_engine() -> anyhow::Result<()> {
    let host = Host::start().await?;
    let sandbox = host.create(request()).await?;
    host.engine.script(Call::StopExecutor, Behaviour::Fail);
    host.scheduler.kill(host.team, &sandbox.id).await?;
    let stopped = |(call, id): &(Call, Option<InstanceId>)| {
        *call == Call::Stop && id.as_ref() == Some(&sandbox.instance.id)
    };
    assert!(host.engine.calls().iter().any(stopped));
    host.assert_empty("stopped by the engine").await
}

#[tokio::test]
async fn a_kill_that_the_engine_refuses_is_said_and_tried_again() -> anyhow::Result<()> {
    let host = Host::start().await?;
    let sandbox = host.create(request()).await?;
    host.engine.script(Call::Delete, Behaviour::Fail);
    let refused = host.scheduler.kill(host.team, &sandbox.id).await;
    assert!(matches!(refused, Err(SandboxError::Runtime { .. })), "{refused:?}");
    assert!(host.scheduler.get(host.team, &sandbox.id).is_err(), "it is on its way out");
    host.engine.heal(Call::Delete);
    host.assert_empty("after the retry").await
}

#[tokio::test]
async fn end_times_follow_the_contract() -> anyhow::Result<()> {
    let host = Host::start().await?;
    let sandbox = host.create(request()).await?;
    let (scheduler, team, id) = (&host.scheduler, host.team, &sandbox.id);
    let seconds = Duration::from_secs;

    // Connect only ever extends, and an unchanged end is the same to the digit.
    let same = scheduler.connect(team, id, seconds(10)).await?;
    assert_eq!((same.started_at, same.end_at), (sandbox.started_at, sandbox.end_at));
    let longer = scheduler.connect(team, id, seconds(1200)).await?;
    assert!(longer.end_at > sandbox.end_at + seconds(500));
    // A set timeout may shorten, and is clamped to the maximum from the start.
    scheduler.set_timeout(team, id, seconds(60)).await?;
    let shorter = scheduler.get(team, id)?.end_at;
    assert!(shorter <= now() + seconds(60) && shorter > now() + seconds(50));
    scheduler.set_timeout(team, id, seconds(100_000)).await?;
    assert_eq!(scheduler.get(team, id)?.end_at, sandbox.started_at + seconds(3600));
    // Too long is refused before the sandbox is looked for.
    let unknown: SandboxId = "iunknown".parse()?;
    let refused = scheduler.connect(team, &unknown, seconds(3601)).await;
    assert!(matches!(refused, Err(SandboxError::TimeoutTooLong { .. })));
    let unknown = scheduler.connect(team, &unknown, seconds(10)).await;
    assert!(matches!(unknown, Err(SandboxError::NotFound(_))));
    // Zero expires it at once.
    scheduler.set_timeout(team, id, Duration::ZERO).await?;
    host.assert_empty("expired").await
}

#[tokio::test]
async fn creates_beyond_a_bound_are_refused() -> anyhow::Result<()> {
    let host = Host::start().await?;
    let zero = CreateSandbox { timeout: Duration::ZERO, ..request() };
    assert!(matches!(host.create(zero).await, Err(SandboxError::ZeroTimeout)));
    let long = CreateSandbox { timeout: Duration::from_secs(3601), ..request() };
    assert!(matches!(host.create(long).await, Err(SandboxError::TimeoutTooLong { .. })));
    let unknown = CreateSandbox { template: "nope".parse()?, ..request() };
    assert!(matches!(host.create(unknown).await, Err(SandboxError::Template(_))));
    for _ in 0..3 {
        host.create(request()).await?;
    }
    assert!(matches!(host.create(request()).await, Err(SandboxError::TooMany { max: 3 })));
    // Another team has a count of its own.
    let session = Some("s2".parse()?);
    host.scheduler.create(host.other_team, CreateSandbox { session, ..request() }).await?;
    assert_eq!(host.engine.instances().len(), 4);
    Ok(())
}

#[tokio::test]
async fn a_shutdown_syncs_workspaces_and_leaves_sandboxes() -> anyhow::Result<()> {
    let mut host = Host::start().await?;
    let one = host.create(request()).await?;
    host.create(CreateSandbox { session: None, ..request() }).await?;
    let report = host.scheduler.shut_down().await;
    assert_eq!((report.synced, report.unsynced.len()), (1, 0));
    assert_eq!(host.engine.instances().len(), 2);
    host.crash_and_restart().await?;
    assert_eq!(host.scheduler.list(host.team).len(), 2);
    host.engine.script(Call::Sync, Behaviour::Fail);
    let report = host.scheduler.shut_down().await;
    assert_eq!(report.unsynced, std::slice::from_ref(&one.id));
    Ok(())
}
