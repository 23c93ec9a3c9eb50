//! The time fields of control-plane 3.2, and what happens when a sandbox's time is over (3.4).

use std::time::Duration;

use sandyard_core::{CreateSandbox, SandboxError, SandboxEvent, SandboxState, now};
use sandyard_testkit::{Behaviour, EngineCall};
use sandyard_types::{Lifecycle, OnTimeout, PauseKind, SandboxId};

use crate::host::{
    HostSettings, MINUTE, SchedulerHost, StillTime, breathe, eventually, next_event, pausing,
    request,
};

#[tokio::test]
async fn end_times_follow_the_contract() -> anyhow::Result<()> {
    let host = SchedulerHost::start().await?;
    let before = now();
    let sandbox = host.create(request()).await?;
    let (scheduler, team, id) = (&host.scheduler, host.team, &sandbox.id);
    let seconds = Duration::from_secs;
    assert!(before <= sandbox.started_at && sandbox.started_at <= now());
    assert_eq!(sandbox.end_at, sandbox.started_at + seconds(600));

    // Connect only ever extends, and an unchanged end is the same to the digit.
    for shorter in [0, 10] {
        let same = scheduler.connect(team, id, seconds(shorter), true).await?;
        assert!(!same.resumed);
        let times = (same.sandbox.started_at, same.sandbox.end_at);
        assert_eq!(times, (sandbox.started_at, sandbox.end_at));
    }
    scheduler.extend(team, id, seconds(10)).await?;
    assert_eq!(scheduler.get(team, id)?.end_at, sandbox.end_at);
    let longer = scheduler.connect(team, id, seconds(1200), true).await?.sandbox;
    assert!(longer.end_at > sandbox.end_at + seconds(500));
    assert_eq!(longer.started_at, sandbox.started_at);
    scheduler.extend(team, id, seconds(1300)).await?;
    assert!(scheduler.get(team, id)?.end_at > longer.end_at + seconds(90));
    // A set timeout may shorten, and is clamped to the maximum from the start.
    scheduler.set_timeout(team, id, seconds(60)).await?;
    let shorter = scheduler.get(team, id)?.end_at;
    assert!(shorter <= now() + seconds(60) && shorter > now() + seconds(50));
    scheduler.set_timeout(team, id, seconds(100_000)).await?;
    assert_eq!(scheduler.get(team, id)?.end_at, sandbox.started_at + seconds(3600));
    // Too long is refused before the sandbox is looked for.
    let unknown: SandboxId = "iunknown".parse()?;
    let refused = scheduler.connect(team, &unknown, seconds(3601), true).await;
    assert!(matches!(refused, Err(SandboxError::TimeoutTooLong { .. })));
    let unknown = scheduler.connect(team, &unknown, seconds(10), true).await;
    assert!(matches!(unknown, Err(SandboxError::NotFound(_))));
    // Zero expires it at once.
    scheduler.set_timeout(team, id, Duration::ZERO).await?;
    host.assert_empty("expired").await
}

#[tokio::test]
async fn a_pause_keeps_the_start_and_notes_its_moment_and_a_resume_begins_anew()
-> anyhow::Result<()> {
    for kind in [PauseKind::Full, PauseKind::Filesystem] {
        let mut host = SchedulerHost::start().await?;
        let sandbox = host.create(request()).await?;
        let before = now();
        host.pause(&sandbox.id, kind).await?;
        let paused = host.get(&sandbox.id)?;
        assert_eq!((paused.state, paused.paused), (SandboxState::Paused, Some(kind)));
        assert_eq!(paused.started_at, sandbox.started_at);
        assert!(before <= paused.end_at && paused.end_at <= now(), "{kind:?}");
        host.crash_and_restart().await?;
        host.settled("restarted").await?;
        let again = host.get(&sandbox.id)?;
        assert_eq!((again.started_at, again.end_at), (paused.started_at, paused.end_at));
        let before = now();
        let resumed = host.scheduler.resume(host.team, &sandbox.id, 2 * MINUTE, true, None).await?;
        assert!(resumed.resumed);
        let resumed = resumed.sandbox;
        assert!(before <= resumed.started_at && resumed.started_at <= now());
        assert_eq!(resumed.end_at, resumed.started_at + 2 * MINUTE);
        // The same to the digit for all who look, and after a restart.
        let times = (resumed.started_at, resumed.end_at);
        let seen = host.get(&sandbox.id)?;
        assert_eq!((seen.started_at, seen.end_at), times);
        host.crash_and_restart().await?;
        let seen = host.get(&sandbox.id)?;
        assert_eq!((seen.started_at, seen.end_at), times);
    }
    Ok(())
}

#[tokio::test]
async fn who_joins_a_resume_with_more_time_gets_it() -> anyhow::Result<()> {
    let host = SchedulerHost::start().await?;
    let sandbox = host.create(request()).await?;
    let (scheduler, team, id) = (&host.scheduler, host.team, &sandbox.id);
    host.pause(id, PauseKind::Full).await?;
    let (short, long) = futures::join!(
        scheduler.connect(team, id, MINUTE, true),
        scheduler.connect(team, id, 3 * MINUTE, true)
    );
    assert!(short?.resumed && long?.resumed);
    assert_eq!(host.count(EngineCall::Thaw), 1);
    let seen = scheduler.get(team, id)?;
    assert!(seen.end_at - seen.started_at >= 3 * MINUTE);
    Ok(())
}

#[tokio::test]
async fn an_end_that_is_over_pauses_or_ends_as_the_life_cycle_says() -> anyhow::Result<()> {
    for kind in [PauseKind::Full, PauseKind::Filesystem] {
        let host = SchedulerHost::start().await?;
        let sandbox = host.create(pausing(kind)).await?;
        host.scheduler.set_timeout(host.team, &sandbox.id, Duration::ZERO).await?;
        let paused = || host.get(&sandbox.id).is_ok_and(|s| s.state == SandboxState::Paused);
        eventually("the pause", paused).await;
        assert_eq!(host.get(&sandbox.id)?.paused, Some(kind));
        // A paused one never expires.
        breathe().await;
        host.settled("paused").await?;
        // What a resume says about the end replaces it for good.
        let resume = host.scheduler.resume(host.team, &sandbox.id, MINUTE, true, Some(false));
        assert_eq!(resume.await?.sandbox.lifecycle.on_timeout, OnTimeout::Kill);
        host.scheduler.set_timeout(host.team, &sandbox.id, Duration::ZERO).await?;
        host.assert_empty("expired").await?;
    }
    Ok(())
}

#[tokio::test]
async fn what_was_due_while_the_server_was_away_happens_at_its_start() -> anyhow::Result<()> {
    let mut host = SchedulerHost::start().await?;
    let short = Duration::from_millis(50);
    let pauses = CreateSandbox { timeout: short, ..pausing(PauseKind::Full) };
    host.engine.script(EngineCall::Freeze, Behaviour::Hang);
    host.engine.script(EngineCall::Drain, Behaviour::Hang);
    let pauses = host.create(pauses).await?;
    let ends = host.create(CreateSandbox { timeout: short, ..request() }).await?;
    host.crash().await;
    host.engine.heal(EngineCall::Freeze);
    host.engine.heal(EngineCall::Drain);
    eventually("both ends", || now() > pauses.end_at.max(ends.end_at)).await;
    host.restart().await?;
    eventually("the end", || host.get(&ends.id).is_err()).await;
    let paused = || host.get(&pauses.id).is_ok_and(|s| s.state == SandboxState::Paused);
    eventually("the pause", paused).await;
    host.settled("started").await
}

/// The fault of a store or an engine passes; a sandbox whose pause at its end fails must not run for ever.
#[tokio::test(start_paused = true)]
async fn a_pause_at_the_end_that_fails_is_tried_again() -> anyhow::Result<()> {
    let (time, host) = (StillTime::new(), SchedulerHost::start().await?);
    let sandbox = host.create(pausing(PauseKind::Full)).await?;
    let mut events = host.scheduler.events();
    host.engine.script(EngineCall::Freeze, Behaviour::Fail);
    host.scheduler.set_timeout(host.team, &sandbox.id, Duration::ZERO).await?;
    let failed = next_event(&mut events).await;
    assert!(matches!(failed, SandboxEvent::PauseFailed { .. }), "{failed:?}");
    host.settled("the pause failed").await?;
    assert_eq!(host.get(&sandbox.id)?.state, SandboxState::Running);
    // Not at once, and not only once.
    time.pass(Duration::from_secs(9)).await;
    assert_eq!(host.count(EngineCall::Freeze), 1);
    time.pass(Duration::from_secs(2)).await;
    let failed = next_event(&mut events).await;
    assert!(matches!(failed, SandboxEvent::PauseFailed { .. }), "{failed:?}");
    host.engine.heal(EngineCall::Freeze);
    host.settled("the pause failed again").await?;
    time.pass(Duration::from_secs(11)).await;
    assert_eq!(next_event(&mut events).await, SandboxEvent::Paused { kind: PauseKind::Full });
    host.settled("paused").await
}

#[tokio::test(start_paused = true)]
async fn a_sandbox_that_has_used_up_its_length_cannot_be_extended() -> anyhow::Result<()> {
    let mut settings = HostSettings::default();
    settings.limits.max_length = Duration::from_millis(200);
    let (_still, host) = (StillTime::new(), SchedulerHost::with(settings).await?);
    let timeout = Duration::from_millis(200);
    let sandbox = host.create(CreateSandbox { timeout, ..pausing(PauseKind::Full) }).await?;
    let (scheduler, team, id) = (&host.scheduler, host.team, &sandbox.id);
    eventually("its end", || now() > sandbox.end_at).await;
    // Its pause fails, and is not tried again soon: it outlives its end.
    let mut events = scheduler.events();
    host.engine.script(EngineCall::Freeze, Behaviour::Fail);
    // The timer's clock stands still, so it has to be told.
    assert!(scheduler.extend(team, id, timeout).await.is_err());
    let failed = next_event(&mut events).await;
    assert!(matches!(failed, SandboxEvent::PauseFailed { .. }), "{failed:?}");
    host.engine.heal(EngineCall::Freeze);
    for refused in [
        scheduler.extend(team, id, timeout).await,
        scheduler.set_timeout(team, id, timeout).await,
        scheduler.connect(team, id, timeout, true).await.map(drop),
    ] {
        assert!(matches!(refused, Err(SandboxError::LengthUsedUp { .. })), "{refused:?}");
    }
    // The next run counts from its own start.
    host.pause(id, PauseKind::Full).await?;
    let resumed = scheduler.connect(team, id, timeout, true).await?.sandbox;
    assert_eq!(resumed.end_at, resumed.started_at + timeout);
    Ok(())
}

#[tokio::test]
async fn traffic_wakes_what_may_be_woken_for_the_time_of_its_create() -> anyhow::Result<()> {
    let host = SchedulerHost::start().await?;
    let wakes = |timeout| CreateSandbox {
        timeout,
        lifecycle: Lifecycle { on_timeout: OnTimeout::Kill, auto_resume: true },
        ..request()
    };
    for (created, expected) in [(MINUTE, 5 * MINUTE), (7 * MINUTE, 7 * MINUTE)] {
        let sandbox = host.create(wakes(created)).await?;
        // Not the time of a later call.
        host.scheduler.set_timeout(host.team, &sandbox.id, 10 * MINUTE).await?;
        assert_eq!(host.scheduler.wake(&sandbox.id).await?.state, SandboxState::Running);
        host.pause(&sandbox.id, PauseKind::Full).await?;
        assert!(host.get(&sandbox.id)?.wakes_by_traffic());
        let woken = host.scheduler.wake(&sandbox.id).await?;
        assert_eq!(
            (woken.state, woken.end_at),
            (SandboxState::Running, woken.started_at + expected)
        );
        // Files only: never.
        host.pause(&sandbox.id, PauseKind::Filesystem).await?;
        assert!(!host.get(&sandbox.id)?.wakes_by_traffic());
        let refused = host.scheduler.wake(&sandbox.id).await;
        assert!(matches!(refused, Err(SandboxError::NotFound(_))), "{refused:?}");
        assert_eq!(host.get(&sandbox.id)?.state, SandboxState::Paused);
        host.scheduler.kill(host.team, &sandbox.id).await?;
    }
    let asleep = host.create(request()).await?;
    host.pause(&asleep.id, PauseKind::Full).await?;
    assert!(host.scheduler.wake(&asleep.id).await.is_err());
    let unknown: SandboxId = "iunknown".parse()?;
    assert!(host.scheduler.wake(&unknown).await.is_err());
    Ok(())
}
