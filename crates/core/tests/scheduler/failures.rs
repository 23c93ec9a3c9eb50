//! What fails leaves a sandbox as it was, or says what is left of it.

use sandyard_core::{
    ContainerState, CreateSandbox, EndReason, RuntimeEvent, SandboxError, SandboxEvent,
    SandboxState,
};
use sandyard_testkit::{Behaviour, EngineCall};
use sandyard_types::PauseKind;
use tokio::task::JoinSet;

use crate::host::{
    HostSettings, MINUTE, SchedulerHost, StillTime, breathe, eventually, next_event, request,
    within,
};

use PauseKind::{Filesystem, Full};

/// Makes every write of a sandbox's row fail, or only those that would note a stage.
async fn break_store(host: &SchedulerHost, stage: Option<&str>) -> anyhow::Result<()> {
    let when = stage.map_or(String::new(), |stage| {
        format!("WHEN json_extract(NEW.document, '$.stage.is') = '{stage}'")
    });
    let trigger = format!(
        "CREATE TRIGGER broken BEFORE UPDATE ON sandboxes {when} \
         BEGIN SELECT RAISE(ABORT, 'told to fail'); END"
    );
    sqlx::query(sqlx::AssertSqlSafe(trigger)).execute(&host.database).await?;
    Ok(())
}

async fn mend_store(host: &SchedulerHost) -> anyhow::Result<()> {
    sqlx::query("DROP TRIGGER broken").execute(&host.database).await?;
    Ok(())
}

#[tokio::test]
async fn a_pause_that_fails_anywhere_leaves_the_sandbox_running() -> anyhow::Result<()> {
    for kind in [Full, Filesystem] {
        let host = SchedulerHost::start().await?;
        let sandbox = host.create(request()).await?;
        let last = if kind == Full { EngineCall::Freeze } else { EngineCall::Halt };
        let mut cases = vec![(EngineCall::Ready, Behaviour::Fail), (last, Behaviour::Fail)];
        cases.extend([
            (EngineCall::Drain, Behaviour::Fail),
            (EngineCall::Drain, Behaviour::FailAfter),
        ]);
        if kind == Full {
            cases.push((last, Behaviour::FailAfter));
        }
        for (call, behaviour) in cases {
            let case = format!("{kind:?}: {call:?} {behaviour:?}");
            host.engine.script(call, behaviour);
            let failed = host.scheduler.pause(host.team, &sandbox.id, kind, true).await;
            assert!(failed.is_err(), "{case}");
            host.engine.heal(call);
            assert_eq!(host.get(&sandbox.id)?.state, SandboxState::Running, "{case}");
            host.settled(&case).await?;
            // Nothing of its time is lost.
            assert_eq!(host.get(&sandbox.id)?.end_at, sandbox.end_at, "{case}");
        }
        // What is not in the store is not frozen away.
        let frozen = host.count(last);
        host.engine.let_drain(false);
        let failed = host.pause(&sandbox.id, kind).await.expect_err("not drained");
        assert!(failed.chain().contains("7 bytes were left"), "{}", failed.chain());
        assert_eq!(host.count(last), frozen);
        host.settled("not drained").await?;
        host.engine.let_drain(true);
        host.pause(&sandbox.id, kind).await?;
        host.settled("paused").await?;
    }
    Ok(())
}

/// The processes are gone then: to call the sandbox running would end it, and lose its files.
#[tokio::test]
async fn a_stop_that_fails_but_has_stopped_is_a_pause() -> anyhow::Result<()> {
    let host = SchedulerHost::start().await?;
    let sandbox = host.create(request()).await?;
    host.engine.script(EngineCall::Halt, Behaviour::FailAfter);
    host.pause(&sandbox.id, Filesystem).await?;
    host.engine.heal(EngineCall::Halt);
    host.settled("stopped").await?;
    assert_eq!(host.get(&sandbox.id)?.paused, Some(Filesystem));
    host.scheduler.resume(host.team, &sandbox.id, MINUTE, true, None).await?;
    host.settled("resumed").await
}

#[tokio::test]
async fn a_pause_that_the_store_cannot_note_does_not_happen() -> anyhow::Result<()> {
    for kind in [Full, Filesystem] {
        let host = SchedulerHost::start().await?;
        let sandbox = host.create(request()).await?;
        break_store(&host, Some("pausing")).await?;
        let failed = host.pause(&sandbox.id, kind).await;
        assert!(matches!(failed, Err(SandboxError::Shared(_))), "{failed:?}");
        assert_eq!((host.count(EngineCall::Freeze), host.count(EngineCall::Halt)), (0, 0));
        host.settled("not noted").await?;
        mend_store(&host).await?;
        break_store(&host, Some("paused")).await?;
        let paused = host.pause(&sandbox.id, kind).await;
        mend_store(&host).await?;
        match kind {
            // It goes on as if nothing had been.
            Full => {
                assert!(paused.is_err());
                host.settled("not noted").await?;
                let still = host.get(&sandbox.id)?;
                assert_eq!((still.state, still.end_at), (SandboxState::Running, sandbox.end_at));
            }
            // There is nothing to go back to; a start after a crash finds that out.
            Filesystem => {
                paused?;
                assert_eq!(host.get(&sandbox.id)?.paused, Some(Filesystem));
                let mut host = host;
                host.crash_and_restart().await?;
                host.settled("restarted").await?;
                assert_eq!(host.get(&sandbox.id)?.paused, Some(Filesystem));
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_resume_that_fails_keeps_what_was_paused() -> anyhow::Result<()> {
    for (kind, call, behaviour, kept) in [
        (Full, EngineCall::Inspect, Behaviour::Fail, Full),
        (Full, EngineCall::Inspect, Behaviour::FailAfter, Full),
        (Full, EngineCall::Thaw, Behaviour::Fail, Full),
        (Full, EngineCall::Thaw, Behaviour::FailAfter, Full),
        (Full, EngineCall::Resume, Behaviour::Fail, Full),
        (Full, EngineCall::Resume, Behaviour::FailAfter, Full),
        (Filesystem, EngineCall::Inspect, Behaviour::Fail, Filesystem),
        (Filesystem, EngineCall::Start, Behaviour::Fail, Filesystem),
        (Filesystem, EngineCall::Start, Behaviour::FailAfter, Filesystem),
        (Filesystem, EngineCall::Claim, Behaviour::Fail, Filesystem),
        (Filesystem, EngineCall::Claim, Behaviour::FailAfter, Filesystem),
    ] {
        let case = format!("{kind:?}: {call:?} {behaviour:?}");
        let host = SchedulerHost::start().await?;
        let sandbox = host.create(request()).await?;
        host.pause(&sandbox.id, kind).await?;
        let paused = host.get(&sandbox.id)?;
        host.engine.script(call, behaviour);
        let failed = host.scheduler.connect(host.team, &sandbox.id, MINUTE, true).await;
        assert!(failed.is_err(), "{case}");
        host.engine.heal(call);
        host.settled(&case).await?;
        let still = host.get(&sandbox.id)?;
        assert_eq!((still.state, still.paused), (SandboxState::Paused, Some(kept)), "{case}");
        let times = (still.started_at, still.end_at);
        assert_eq!(times, (paused.started_at, paused.end_at), "{case}");
        // It takes no place of its team's: three others can run.
        for _ in 0..3 {
            host.create(request()).await?;
        }
        assert!(host.create(request()).await.is_err());
        let other = host.scheduler.list(host.team).into_iter().find(|s| s.id != sandbox.id);
        host.scheduler.kill(host.team, &other.expect("three").id).await?;
        host.scheduler.connect(host.team, &sandbox.id, MINUTE, true).await?;
        host.settled(&case).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_resume_that_the_store_cannot_note_keeps_the_memory() -> anyhow::Result<()> {
    for stage in ["resuming", "running"] {
        let host = SchedulerHost::start().await?;
        let sandbox = host.create(request()).await?;
        host.pause(&sandbox.id, Full).await?;
        break_store(&host, Some(stage)).await?;
        let failed = host.scheduler.resume(host.team, &sandbox.id, MINUTE, true, None).await;
        assert!(failed.is_err(), "{stage}");
        host.settled(stage).await?;
        assert_eq!(host.get(&sandbox.id)?.paused, Some(Full), "{stage}");
        mend_store(&host).await?;
        host.scheduler.resume(host.team, &sandbox.id, MINUTE, true, None).await?;
        host.settled(stage).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_paused_sandbox_whose_container_was_removed_is_gone() -> anyhow::Result<()> {
    for kind in [Full, Filesystem] {
        let host = SchedulerHost::start().await?;
        let sandbox = host.create(request()).await?;
        host.pause(&sandbox.id, kind).await?;
        let mut events = host.scheduler.events();
        host.engine.take_away(&sandbox.instance.id);
        let lost = host.scheduler.connect(host.team, &sandbox.id, MINUTE, true).await;
        let Err(SandboxError::Shared(lost)) = lost else { panic!("{lost:?}") };
        assert!(matches!(*lost, SandboxError::ContainerGone(_)), "{lost:?}");
        host.assert_empty("lost").await?;
        let mut told = next_event(&mut events).await;
        if told == SandboxEvent::MemoryLost {
            told = next_event(&mut events).await;
        }
        assert_eq!(told, SandboxEvent::Ended { reason: EndReason::Died });
    }
    Ok(())
}

#[tokio::test]
async fn what_somebody_did_to_the_container_of_a_paused_sandbox_is_seen() -> anyhow::Result<()> {
    let mut host = SchedulerHost::start().await?;
    host.watch().await;
    let sandbox = host.create(request()).await?;
    let (id, instance) = (&sandbox.id, &sandbox.instance.id);
    host.pause(id, Full).await?;
    let mut events = host.scheduler.events();
    // Let go on: paused again, and nothing of it lost.
    host.engine.set_state(instance, ContainerState::Running);
    assert!(!host.faults().await?.is_empty(), "the check sees nothing");
    host.engine.announce(RuntimeEvent::Resync);
    host.settled("thawed by somebody").await?;
    assert_eq!(host.get(id)?.paused, Some(Full));
    // Stopped: its memory is gone, and that is said.
    host.engine.set_state(instance, ContainerState::Stopped);
    host.engine.announce(RuntimeEvent::Died(instance.clone()));
    host.settled("stopped by somebody").await?;
    assert_eq!(host.get(id)?.paused, Some(Filesystem));
    assert_eq!(next_event(&mut events).await, SandboxEvent::MemoryLost);
    // Started: stopped again, for nobody asked for it.
    host.engine.set_state(instance, ContainerState::Running);
    host.engine.announce(RuntimeEvent::Resync);
    host.settled("started by somebody").await?;
    assert_eq!(host.get(id)?.paused, Some(Filesystem));
    host.engine.take_away(instance);
    host.engine.announce(RuntimeEvent::Resync);
    host.assert_empty("removed by somebody").await
}

#[tokio::test]
async fn memory_that_is_gone_when_a_resume_looks_is_files_only() -> anyhow::Result<()> {
    let host = SchedulerHost::start().await?;
    let sandbox = host.create(request()).await?;
    host.pause(&sandbox.id, Full).await?;
    host.engine.set_state(&sandbox.instance.id, ContainerState::Stopped);
    let mut events = host.scheduler.events();
    let resumed = host.scheduler.connect(host.team, &sandbox.id, MINUTE, true).await?;
    assert!(resumed.resumed);
    assert_eq!(host.count_of(EngineCall::Start, &sandbox.instance.id), 1);
    let told = next_event(&mut events).await;
    assert_eq!(told, SandboxEvent::Resumed { kind: Filesystem });
    host.settled("resumed").await
}

#[tokio::test]
async fn a_client_that_leaves_a_snapshot_or_a_fork_at_any_moment_leaves_nothing()
-> anyhow::Result<()> {
    for forks in [false, true] {
        for polls in 1.. {
            assert!(polls < 500, "it has no end");
            let host = SchedulerHost::start().await?;
            let sandbox = host.create(request()).await?;
            let (scheduler, team, id) = (host.scheduler.clone(), host.team, sandbox.id.clone());
            let mut call = Box::pin(async move {
                match forks {
                    true => scheduler.fork(team, &id, 2, MINUTE).await.map(drop),
                    false => scheduler.snapshot(team, &id, None).await.map(drop),
                }
            });
            let mut left = polls;
            let ended = std::future::poll_fn(|context| {
                left -= 1;
                context.waker().wake_by_ref();
                match call.as_mut().poll(context) {
                    std::task::Poll::Ready(result) => std::task::Poll::Ready(Some(result)),
                    std::task::Poll::Pending if left == 0 => std::task::Poll::Ready(None),
                    std::task::Poll::Pending => std::task::Poll::Pending,
                }
            })
            .await;
            drop(call);
            let when =
                format!("left after {polls} polls of {}", if forks { "fork" } else { "snapshot" });
            host.settled(&when).await?;
            // A snapshot whose client left at the very end may be there: it is listed and can be deleted.
            within(&when, async {
                while host.scheduler.instances().len() > 1 || !host.engine.images().is_empty() {
                    let catalogue = host.scheduler.catalogue();
                    for snapshot in catalogue.snapshots(team, &Default::default())? {
                        host.scheduler.delete_template(team, &snapshot.id.parse()?).await?;
                    }
                    breathe().await;
                }
                anyhow::Ok(())
            })
            .await?;
            host.scheduler.kill(team, &sandbox.id).await?;
            host.assert_empty(&when).await?;
            if let Some(result) = ended {
                result?;
                break;
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_snapshot_or_fork_that_fails_anywhere_leaves_nothing_and_the_sandbox_runs()
-> anyhow::Result<()> {
    let host = SchedulerHost::start().await?;
    let sandbox = host.create(request()).await?;
    for call in [EngineCall::Drain, EngineCall::Freeze, EngineCall::Commit] {
        for behaviour in [Behaviour::Fail, Behaviour::FailAfter] {
            let case = format!("{call:?} {behaviour:?}");
            host.engine.script(call, behaviour);
            assert!(host.scheduler.snapshot(host.team, &sandbox.id, None).await.is_err(), "{case}");
            assert!(host.scheduler.fork(host.team, &sandbox.id, 1, MINUTE).await.is_err());
            host.engine.heal(call);
            assert_eq!(host.get(&sandbox.id)?.state, SandboxState::Running, "{case}");
            host.settled(&case).await?;
            assert!(host.engine.images().is_empty(), "{case}");
        }
    }
    // A copy that fails takes the image with it, and nothing of the source.
    for call in [EngineCall::Create, EngineCall::Claim] {
        host.engine.script(call, Behaviour::Fail);
        let forks = host.scheduler.fork(host.team, &sandbox.id, 2, MINUTE).await?;
        assert!(forks.iter().all(Result::is_err), "{forks:?}");
        host.engine.heal(call);
        eventually("the image's removal", || host.engine.images().is_empty()).await;
        host.settled("no fork").await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_snapshot_that_the_store_does_not_take_leaves_no_image() -> anyhow::Result<()> {
    let host = SchedulerHost::start().await?;
    let sandbox = host.create(request()).await?;
    sqlx::query(
        "CREATE TRIGGER broken BEFORE INSERT ON template_tags \
         BEGIN SELECT RAISE(ABORT, 'told to fail'); END",
    )
    .execute(&host.database)
    .await?;
    let name = "saved".parse()?;
    let failed = host.scheduler.snapshot(host.team, &sandbox.id, Some(&name)).await;
    assert!(matches!(failed, Err(SandboxError::Store(_))), "{failed:?}");
    mend_store(&host).await?;
    host.settled("not taken").await?;
    assert!(host.engine.images().is_empty());
    assert!(host.scheduler.catalogue().resolve(host.team, &name).is_err());
    Ok(())
}

#[tokio::test]
async fn frozen_memory_beyond_its_bound_is_given_up_oldest_first() -> anyhow::Result<()> {
    let mut settings = HostSettings::default();
    // Room for two: the fake engine's containers keep 100 MiB each.
    settings.limits.frozen_memory = Some(250 << 20);
    let mut host = SchedulerHost::with(settings).await?;
    let bounding = host.scheduler.clone();
    host.tasks.spawn(async move { bounding.bound_frozen_memory().await });
    let mut paused = Vec::new();
    for _ in 0..3 {
        let sandbox = host.create(request()).await?;
        host.pause(&sandbox.id, Full).await?;
        paused.push(sandbox.id.clone());
    }
    let kinds = || paused.iter().map(|id| host.get(id).ok()?.paused).collect::<Vec<_>>();
    let expected = [Some(Filesystem), Some(Full), Some(Full)];
    eventually("the oldest one's turn", || kinds() == expected).await;
    host.settled("bounded").await?;
    // It goes on from its files, and the others keep what they have.
    host.scheduler.connect(host.team, &paused[0], MINUTE, true).await?;
    assert_eq!(kinds(), [None, Some(Full), Some(Full)]);
    host.settled("resumed").await
}

/// An `init` that answers nothing must not keep its sandbox from being killed for ever.
#[tokio::test(start_paused = true)]
async fn a_sandbox_that_cannot_go_on_after_a_failed_pause_can_be_killed() -> anyhow::Result<()> {
    let (time, host) = (StillTime::new(), SchedulerHost::start().await?);
    let sandbox = host.create(request()).await?;
    host.engine.script(EngineCall::Freeze, Behaviour::Fail);
    host.engine.script(EngineCall::Resume, Behaviour::Fail);
    let mut calls = JoinSet::new();
    let (scheduler, team, id) = (host.scheduler.clone(), host.team, sandbox.id.clone());
    calls.spawn(async move { scheduler.pause(team, &id, Full, false).await.is_ok() });
    within("the undoing", host.engine.called(EngineCall::Resume, 1)).await;
    let (scheduler, team, id) = (host.scheduler.clone(), host.team, sandbox.id.clone());
    calls.spawn(async move { scheduler.kill(team, &id).await.is_ok() });
    breathe().await;
    assert!(calls.try_join_next().is_none(), "it is not tried again");
    let mut answers = Vec::new();
    within("both", async {
        while answers.len() < 2 {
            time.pass(MINUTE / 20).await;
            while let Some(answered) = calls.try_join_next() {
                answers.push(answered);
            }
        }
    })
    .await;
    assert!(matches!(answers[..], [Ok(false), Ok(true)]), "{answers:?}");
    assert!(host.count(EngineCall::Resume) > 5);
    host.assert_empty("killed").await
}

#[tokio::test]
async fn an_engine_that_does_not_say_whether_a_container_runs_ends_nothing() -> anyhow::Result<()> {
    let mut host = SchedulerHost::start().await?;
    host.watch().await;
    let sandbox = host.create(CreateSandbox { session: None, ..request() }).await?;
    host.engine.script(EngineCall::Inspect, Behaviour::Fail);
    host.engine.announce(RuntimeEvent::Died(sandbox.instance.id.clone()));
    within("a look", host.engine.called(EngineCall::Inspect, 1)).await;
    breathe().await;
    assert_eq!(host.get(&sandbox.id)?.state, SandboxState::Running);
    host.engine.heal(EngineCall::Inspect);
    // A container that runs again by the time somebody looks has not died.
    host.engine.announce(RuntimeEvent::Died(sandbox.instance.id.clone()));
    within("a look", host.engine.called(EngineCall::Inspect, 2)).await;
    breathe().await;
    assert_eq!(host.get(&sandbox.id)?.state, SandboxState::Running);
    host.settled("looked at").await
}
