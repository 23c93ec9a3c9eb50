//! What a restart and the engine's events make of sandboxes, and the end of them.

use std::time::Duration;

use sandyard_core::{CreateSandbox, Instance, RuntimeEvent, SandboxError, now};
use sandyard_testkit::{Behaviour, EngineCall};
use sandyard_types::{InstanceId, Network};
use tokio::task::JoinSet;

use crate::host::{MINUTE, SchedulerHost, StillTime, eventually, request, within};

#[tokio::test]
async fn a_restart_adopts_what_lives_and_ends_what_is_due_dead_or_nobodys() -> anyhow::Result<()> {
    let mut host = SchedulerHost::start().await?;
    let network = Network { allow_public_traffic: Some(false), ..Network::default() };
    let lives = host.create(CreateSandbox { network: Some(network), ..request() }).await?;
    let due =
        host.create(CreateSandbox { timeout: Duration::from_millis(300), ..request() }).await?;
    let dead = host.create(request()).await?;
    // The process is gone; meanwhile one container dies and one that nobody knows appears.
    host.scheduler.shut_down().await;
    host.engine.die_unseen(&dead.instance.id);
    let stranger = InstanceId::random();
    host.engine.add(Instance { id: stranger, ..lives.instance.clone() });
    eventually("its end time", || now() > due.end_at).await;
    host.crash_and_restart().await?;
    eventually("the removals", || host.engine.instances().len() == 1).await;
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
    let mut host = SchedulerHost::start().await?;
    host.watch().await;
    let one = host.create(request()).await?;
    let two = host.create(request()).await?;
    host.engine.die(&one.instance.id);
    eventually("its end", || host.get(&one.id).is_err()).await;
    host.engine.die_unseen(&two.instance.id);
    host.engine.announce(RuntimeEvent::Resync);
    within("the end", host.scheduler.emptied()).await;
    // Nobody is left to be asked for a flush.
    assert!(!host.engine.calls().iter().any(|(call, _)| *call == EngineCall::StopExecutor));
    host.assert_empty("died").await
}

#[tokio::test]
async fn a_kill_flushes_first_and_others_join_it() -> anyhow::Result<()> {
    let host = SchedulerHost::start().await?;
    let sandbox = host.create(request()).await?;
    let kill = || host.scheduler.kill(host.team, &sandbox.id);
    let results = futures::future::join_all((0..5).map(|_| kill())).await;
    assert!(results.iter().all(Result::is_ok), "{results:?}");
    assert!(matches!(kill().await, Err(SandboxError::NotFound(_))));
    let order: Vec<EngineCall> = host
        .engine
        .calls()
        .into_iter()
        .map(|(call, _)| call)
        .filter(|call| matches!(call, EngineCall::StopExecutor | EngineCall::Delete))
        .collect();
    assert_eq!(order, [EngineCall::StopExecutor, EngineCall::Delete]);
    assert_eq!(host.engine.released(), std::slice::from_ref(&sandbox.id));
    host.assert_empty("killed").await
}

#[tokio::test]
async fn a_sandbox_that_starts_while_the_engine_says_what_runs_is_not_taken_for_dead()
-> anyhow::Result<()> {
    let mut host = SchedulerHost::start().await?;
    host.watch().await;
    let dead = host.create(request()).await?;
    host.engine.die_unseen(&dead.instance.id);
    // The answer is made before the other sandbox exists, and comes after.
    host.engine.script(EngineCall::List, Behaviour::HangAfter);
    let lists = host.count(EngineCall::List);
    host.engine.announce(RuntimeEvent::Resync);
    within("a call", host.engine.called(EngineCall::List, lists + 1)).await;
    let new = host.create(request()).await?;
    host.engine.heal(EngineCall::List);
    // When the next comparison begins, all that the first one found is reported.
    host.engine.announce(RuntimeEvent::Resync);
    within("a call", host.engine.called(EngineCall::List, lists + 2)).await;
    within("a call", host.engine.called(EngineCall::Delete, 1)).await;
    assert!(host.scheduler.get(host.team, &dead.id).is_err());
    assert!(host.scheduler.get(host.team, &new.id).is_ok());
    Ok(())
}

#[tokio::test]
async fn a_sandbox_being_killed_is_not_there_and_its_key_still_is() -> anyhow::Result<()> {
    let host = SchedulerHost::start().await?;
    let sandbox = host.create(request()).await?;
    host.engine.script(EngineCall::StopExecutor, Behaviour::Hang);
    let killing = host.scheduler.clone();
    let (team, id) = (host.team, sandbox.id.clone());
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { killing.kill(team, &id).await });
    within("a call", host.engine.called(EngineCall::StopExecutor, 1)).await;
    assert!(host.scheduler.get(host.team, &sandbox.id).is_err());
    assert!(host.scheduler.list(host.team).is_empty());
    assert!(host.scheduler.route(&sandbox.id).is_none());
    assert!(host.scheduler.workspace(&sandbox.id).is_some(), "the driver still needs its key");
    let connect = host.scheduler.connect(host.team, &sandbox.id, MINUTE, true).await;
    assert!(matches!(connect, Err(SandboxError::Conflict { .. })), "{connect:?}");
    Ok(())
}

#[tokio::test]
async fn an_executor_that_does_not_stop_is_stopped_by_the_engine() -> anyhow::Result<()> {
    let host = SchedulerHost::start().await?;
    let sandbox = host.create(request()).await?;
    host.engine.script(EngineCall::StopExecutor, Behaviour::Fail);
    host.scheduler.kill(host.team, &sandbox.id).await?;
    assert_eq!(host.count_of(EngineCall::Stop, &sandbox.instance.id), 1);
    host.assert_empty("stopped by the engine").await
}

#[tokio::test(start_paused = true)]
async fn a_kill_that_the_engine_refuses_is_said_and_tried_again() -> anyhow::Result<()> {
    let (time, host) = (StillTime::new(), SchedulerHost::start().await?);
    let sandbox = host.create(request()).await?;
    host.engine.script(EngineCall::Delete, Behaviour::Fail);
    let refused = host.scheduler.kill(host.team, &sandbox.id).await;
    assert!(matches!(refused, Err(SandboxError::Runtime { .. })), "{refused:?}");
    assert!(host.scheduler.get(host.team, &sandbox.id).is_err(), "it is on its way out");
    host.engine.heal(EngineCall::Delete);
    time.pass(MINUTE).await;
    host.assert_empty("after the retry").await
}

#[tokio::test]
async fn a_shutdown_syncs_workspaces_and_leaves_sandboxes() -> anyhow::Result<()> {
    let mut host = SchedulerHost::start().await?;
    let one = host.create(request()).await?;
    host.create(CreateSandbox { session: None, ..request() }).await?;
    let report = host.scheduler.shut_down().await;
    assert_eq!((report.synced, report.unsynced.len()), (1, 0));
    assert_eq!(host.engine.instances().len(), 2);
    host.crash_and_restart().await?;
    assert_eq!(host.scheduler.list(host.team).len(), 2);
    host.engine.script(EngineCall::Sync, Behaviour::Fail);
    let report = host.scheduler.shut_down().await;
    assert_eq!(report.unsynced, std::slice::from_ref(&one.id));
    Ok(())
}
