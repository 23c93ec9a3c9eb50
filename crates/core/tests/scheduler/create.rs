//! What a create makes, and what it leaves when it does not come to its end.

use std::time::Duration;

use sandyard_core::{CreateSandbox, Sandbox, SandboxError, SandboxState};
use sandyard_testkit::{Behaviour, EngineCall};

use crate::host::{MINUTE, SchedulerHost, StillTime, breathe, eventually, request, within};

#[tokio::test]
async fn a_created_sandbox_runs_is_known_and_has_its_settings() -> anyhow::Result<()> {
    let host = SchedulerHost::start().await?;
    let sandbox = host.create(request()).await?;
    assert_eq!(sandbox.state, SandboxState::Running);
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
    let host = SchedulerHost::start().await?;
    let sandbox = host.create(request()).await?;
    let (other, id) = (host.other_team, &sandbox.id);
    assert!(matches!(host.scheduler.get(other, id), Err(SandboxError::NotFound(_))));
    assert!(matches!(host.scheduler.kill(other, id).await, Err(SandboxError::NotFound(_))));
    let connect = host.scheduler.connect(other, id, MINUTE, true).await;
    assert!(matches!(connect, Err(SandboxError::NotFound(_))));
    let set = host.scheduler.set_timeout(other, id, MINUTE).await;
    assert!(matches!(set, Err(SandboxError::NotFound(_))));
    assert!(host.scheduler.list(other).is_empty());
    let own = host.scheduler.create(other, request()).await?.keep();
    let prefix = |sandbox: &Sandbox| {
        sandbox.workspace.as_ref().expect("a workspace").mounts[0].prefix.to_string()
    };
    assert_eq!(prefix(&sandbox), "sessions/s1/");
    assert_eq!(prefix(&own), "teams/two/sessions/s1/");
    Ok(())
}

#[tokio::test]
async fn a_create_that_fails_at_any_step_leaves_nothing() -> anyhow::Result<()> {
    let host = SchedulerHost::start().await?;
    for call in
        [EngineCall::EnsureImage, EngineCall::Prepare, EngineCall::Create, EngineCall::Claim]
    {
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

/// A failed create's driver may have ended a moment before it is asked: that is an end like any other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ending_all_right_after_a_failed_create_is_no_failure() -> anyhow::Result<()> {
    let host = SchedulerHost::start().await?;
    host.engine.script(EngineCall::EnsureImage, Behaviour::Fail);
    for _ in 0..200 {
        host.create(request()).await.expect_err("no image");
        for (id, ended) in host.scheduler.kill_all().await {
            assert!(ended.is_ok(), "{id}: {ended:?}");
        }
    }
    host.assert_empty("after all creates failed").await
}

#[tokio::test(start_paused = true)]
async fn what_could_not_be_undone_is_tried_again_here_and_by_the_next_start() -> anyhow::Result<()>
{
    let (time, mut host) = (StillTime::new(), SchedulerHost::start().await?);
    host.engine.script(EngineCall::Claim, Behaviour::Fail);
    host.engine.script(EngineCall::Delete, Behaviour::Fail);
    let failed = host.create(request()).await.expect_err("fails");
    assert!(matches!(failed, SandboxError::Cleanup { .. }), "{failed}");
    assert_eq!(host.engine.instances().len(), 1);
    within("the end that takes over", host.engine.called(EngineCall::Delete, 2)).await;
    breathe().await;
    time.pass(MINUTE).await;
    within("another try", host.engine.called(EngineCall::Delete, 3)).await;
    breathe().await;
    host.engine.heal(EngineCall::Delete);
    time.pass(MINUTE).await;
    host.assert_empty("undone without a restart").await?;

    host.engine.script(EngineCall::Delete, Behaviour::Fail);
    host.create(request()).await.expect_err("fails");
    host.engine.heal(EngineCall::Claim);
    host.engine.heal(EngineCall::Delete);
    host.crash_and_restart().await?;
    host.assert_empty("after the restart").await
}

#[tokio::test]
async fn a_sandbox_whose_client_left_before_the_answer_is_ended() -> anyhow::Result<()> {
    let host = SchedulerHost::start().await?;
    tokio::select! {
        biased;
        // The container is being made when the client goes.
        () = host.engine.called(EngineCall::Create, 1) => {}
        created = host.create(request()) => panic!("it was ready at once: {created:?}"),
    }
    within("its removal", host.engine.called(EngineCall::Delete, 1)).await;
    host.assert_empty("abandoned").await
}

#[tokio::test]
async fn a_sandbox_whose_client_left_at_any_moment_is_ended() -> anyhow::Result<()> {
    let host = SchedulerHost::start().await?;
    for breaths in 0.. {
        assert!(breaths < 500, "a create has no end");
        let mut create = Box::pin(host.create(request()));
        let mut left = breaths;
        // Each turn polls the create once, and lets all others go on.
        let created = std::future::poll_fn(|context| {
            if let std::task::Poll::Ready(created) = create.as_mut().poll(context) {
                return std::task::Poll::Ready(Some(created));
            }
            left -= usize::from(left > 0);
            context.waker().wake_by_ref();
            if left == 0 { std::task::Poll::Ready(None) } else { std::task::Poll::Pending }
        })
        .await;
        drop(create);
        match created {
            // Nobody knows of it.
            None => host.assert_empty(&format!("left after {breaths} polls")).await?,
            Some(created) => {
                let sandbox = created?;
                breathe().await;
                assert_eq!(host.get(&sandbox.id)?.state, SandboxState::Running);
                return Ok(());
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_sandbox_that_is_ready_but_not_taken_is_ended() -> anyhow::Result<()> {
    let host = SchedulerHost::start().await?;
    let mut create = Box::pin(host.create(request()));
    host.engine.script(EngineCall::Create, Behaviour::Hang);
    tokio::select! {
        created = &mut create => panic!("it was ready at once: {created:?}"),
        () = host.engine.hangs(EngineCall::Create) => {}
    }
    // Nobody asks any more: the result waits.
    host.engine.heal(EngineCall::Create);
    let running =
        || host.scheduler.list(host.team).iter().any(|s| s.state == SandboxState::Running);
    eventually("it runs", running).await;
    drop(create);
    host.assert_empty("not taken").await
}

#[tokio::test]
async fn creates_beyond_a_bound_are_refused() -> anyhow::Result<()> {
    let host = SchedulerHost::start().await?;
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
    let other = CreateSandbox { session, ..request() };
    host.scheduler.create(host.other_team, other).await?.keep();
    assert_eq!(host.engine.instances().len(), 4);
    Ok(())
}
