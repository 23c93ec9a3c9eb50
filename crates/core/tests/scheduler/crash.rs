//! The server dies at every await of every transition; the next start finds what is left.

use std::time::Duration;

use sandyard_core::{ContainerState, PoolSettings, SandboxState};
use sandyard_testkit::EngineCall;
use sandyard_types::{PauseKind, SandboxId};
use tokio::task::JoinSet;

use crate::host::{
    HostSettings, MINUTE, SchedulerHost, breathe, eventually, pausing, request, template, within,
};

/// What is under way when the server dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Transition {
    CreateCold,
    CreateFromPool,
    CreateFromDeadPool,
    Pause(PauseKind),
    /// From such a pause.
    Resume(PauseKind),
    ResumeWithoutMemory,
    Snapshot,
    Fork,
    Kill,
    KillPaused(PauseKind),
    PauseAtTheEnd(PauseKind),
    KillAtTheEnd,
}

use PauseKind::{Filesystem, Full};
use Transition::{
    CreateCold, CreateFromDeadPool, CreateFromPool, Fork, Kill, KillAtTheEnd, KillPaused, Pause,
    PauseAtTheEnd, Resume, ResumeWithoutMemory, Snapshot,
};

const ALL: [Transition; 16] = [
    CreateCold,
    CreateFromPool,
    CreateFromDeadPool,
    Pause(Full),
    Pause(Filesystem),
    Resume(Full),
    Resume(Filesystem),
    ResumeWithoutMemory,
    Snapshot,
    Fork,
    Kill,
    KillPaused(Full),
    KillPaused(Filesystem),
    PauseAtTheEnd(Full),
    PauseAtTheEnd(Filesystem),
    KillAtTheEnd,
];

impl Transition {
    /// A host with a sandbox to which it can happen.
    async fn prepare(self) -> anyhow::Result<(SchedulerHost, Option<SandboxId>)> {
        let mut settings = HostSettings::default();
        if matches!(self, CreateFromPool | CreateFromDeadPool) {
            settings.templates = vec![sandyard_types::Template { pool: 1, ..template() }];
            settings.limits.pool = PoolSettings { max: 1, memory_mib: 512 };
        }
        let mut host = SchedulerHost::with(settings).await?;
        match self {
            CreateCold => return Ok((host, None)),
            CreateFromPool | CreateFromDeadPool => {
                host.keep_pool();
                let full = || host.scheduler.pool().iter().all(|shelf| shelf.ready == 1);
                eventually("a full pool", full).await;
                host.tasks.shutdown().await;
                if self == CreateFromDeadPool {
                    for container in host.engine.instances() {
                        host.engine.die_unseen(&container.id);
                    }
                }
                return Ok((host, None));
            }
            _ => {}
        }
        let request = match self {
            PauseAtTheEnd(kind) => pausing(kind),
            _ => request(),
        };
        let id = host.create(request).await?.id.clone();
        match self {
            Resume(kind) | KillPaused(kind) => host.pause(&id, kind).await?,
            ResumeWithoutMemory => host.pause(&id, Full).await?,
            _ => {}
        }
        Ok((host, Some(id)))
    }

    /// Does it, and returns when its client is answered.
    async fn run(self, host: &SchedulerHost, id: Option<SandboxId>) -> JoinSet<anyhow::Result<()>> {
        let (scheduler, team) = (host.scheduler.clone(), host.team);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let Some(id) = id else {
                scheduler.create(team, request()).await?.keep();
                return Ok(());
            };
            match self {
                CreateCold | CreateFromPool | CreateFromDeadPool => {}
                Pause(kind) => scheduler.pause(team, &id, kind, true).await?,
                Resume(_) => drop(scheduler.resume(team, &id, MINUTE, true, None).await?),
                ResumeWithoutMemory => {
                    scheduler.resume(team, &id, MINUTE, false, None).await?;
                }
                Snapshot => drop(scheduler.snapshot(team, &id, Some(&"saved".parse()?)).await?),
                Fork => {
                    for fork in scheduler.fork(team, &id, 2, MINUTE).await? {
                        fork?.keep();
                    }
                }
                Kill | KillPaused(_) => scheduler.kill(team, &id).await?,
                PauseAtTheEnd(_) | KillAtTheEnd => {
                    scheduler.set_timeout(team, &id, Duration::ZERO).await?;
                    // Its end answers nobody.
                    while scheduler.get(team, &id).is_ok_and(|s| s.state != SandboxState::Paused)
                        || scheduler.instances().iter().any(|(other, _)| *other == id)
                            && scheduler.get(team, &id).is_err()
                    {
                        breathe().await;
                    }
                }
            }
            Ok(())
        });
        tasks
    }

    /// Whether the sandbox may be gone after a crash. Nobody was told of it, or it was to end.
    fn may_end(self) -> bool {
        matches!(
            self,
            CreateCold | CreateFromPool | CreateFromDeadPool | Kill | KillPaused(_) | KillAtTheEnd
        )
    }

    /// Whether a sandbox with memory may have lost it after a crash: only where it was to be given up.
    fn may_lose_memory(self) -> bool {
        matches!(
            self,
            Pause(Filesystem)
                | PauseAtTheEnd(Filesystem)
                | ResumeWithoutMemory
                | Resume(Filesystem)
                | KillPaused(Filesystem)
        )
    }
}

/// Checks what a start has made of the sandbox, and ends everything.
async fn check(host: &SchedulerHost, transition: Transition, when: &str) -> anyhow::Result<()> {
    host.settled(when).await?;
    let left = host.scheduler.list(host.team);
    match transition {
        Fork => assert!(!left.is_empty() && left.len() <= 3, "{when}: {left:?}"),
        _ if transition.may_end() => assert!(left.len() <= 1, "{when}: {left:?}"),
        _ => assert_eq!(left.len(), 1, "{when}"),
    }
    for sandbox in &left {
        let claims = host.count_of(EngineCall::Claim, &sandbox.instance.id);
        assert!(claims > 0, "{when}: half a sandbox is kept");
        if sandbox.paused == Some(Filesystem) {
            assert!(transition.may_lose_memory(), "{when}: its memory is lost");
        }
        // It can be used, whatever it is.
        host.scheduler.connect(host.team, &sandbox.id, MINUTE, true).await?;
        assert_eq!(host.engine.state_of(&sandbox.instance.id), Some(ContainerState::Running));
        host.scheduler.kill(host.team, &sandbox.id).await?;
    }
    let saved = "saved".parse()?;
    if host.scheduler.catalogue().resolve(host.team, &saved).is_ok() {
        host.scheduler.delete_template(host.team, &saved).await?;
    }
    host.assert_empty(when).await
}

/// Runs a transition that dies after so many await points. True if it came to its end before.
async fn crash_after(
    host: &mut SchedulerHost,
    transition: Transition,
    id: Option<SandboxId>,
    passes: usize,
) -> anyhow::Result<bool> {
    host.engine.stop_at(passes);
    let mut running = transition.run(host, id).await;
    let engine = host.engine.clone();
    let finished = within("the transition", async {
        tokio::select! {
            biased;
            finished = running.join_next() => finished,
            () = engine.stopped() => None,
        }
    })
    .await;
    let finished = match finished {
        Some(finished) => {
            finished??;
            true
        }
        None => false,
    };
    // What the store was asked for is written or not, but not half.
    breathe().await;
    running.shutdown().await;
    host.crash().await;
    Ok(finished)
}

#[tokio::test]
async fn a_crash_at_any_await_of_any_transition_leaves_what_the_table_allows() -> anyhow::Result<()>
{
    for transition in ALL {
        for passes in 0.. {
            assert!(passes < 200, "{transition:?} has no end");
            let when = format!("{transition:?}, dead at await {passes}");
            let (mut host, id) = transition.prepare().await?;
            let finished = crash_after(&mut host, transition, id.clone(), passes).await?;
            host.restart().await?;
            host.settled(&when).await?;
            if finished {
                // What a client was told holds.
                let after = id.and_then(|id| host.get(&id).ok()).map(|s| (s.state, s.paused));
                let told = match transition {
                    CreateCold | CreateFromPool | CreateFromDeadPool => {
                        assert_eq!(host.scheduler.list(host.team).len(), 1, "{when}");
                        None
                    }
                    Pause(kind) | PauseAtTheEnd(kind) => Some((SandboxState::Paused, Some(kind))),
                    Resume(_) | ResumeWithoutMemory | Snapshot | Fork => {
                        Some((SandboxState::Running, None))
                    }
                    Kill | KillPaused(_) | KillAtTheEnd => None,
                };
                assert_eq!(after, told, "{when}");
                if transition == Fork {
                    assert_eq!(host.scheduler.list(host.team).len(), 3, "{when}");
                }
                if transition == Snapshot {
                    host.scheduler.catalogue().resolve(host.team, &"saved".parse()?)?;
                }
                assert!(passes > 1, "{when}: the fake engine alone awaits more often");
            }
            check(&host, transition, &when).await?;
            if finished {
                break;
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_crash_of_the_start_after_a_crash_is_no_worse() -> anyhow::Result<()> {
    for transition in [
        CreateCold,
        Pause(Full),
        Pause(Filesystem),
        Resume(Full),
        Resume(Filesystem),
        Snapshot,
        Kill,
    ] {
        for passes in 0.. {
            let mut finished = true;
            for again in 0.. {
                assert!(again < 50, "the start has no end");
                let when = format!("{transition:?}, dead at {passes} and again at {again}");
                let (mut host, id) = transition.prepare().await?;
                finished = crash_after(&mut host, transition, id, passes).await?;
                host.engine.stop_at(again);
                let started = host.restart_or_stop().await?;
                if started {
                    // Whatever it does in the background comes to its end, or stops.
                    let engine = host.engine.clone();
                    tokio::select! {
                        biased;
                        () = engine.stopped() => {}
                        () = async { for _ in 0..20 { breathe().await } } => {}
                    }
                }
                let quiet = started && host.faults().await?.is_empty();
                host.crash().await;
                host.restart().await?;
                check(&host, transition, &when).await?;
                if quiet {
                    break;
                }
            }
            if finished {
                break;
            }
        }
    }
    Ok(())
}
