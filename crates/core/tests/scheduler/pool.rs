//! The pool (design 5.2): what is taken, made, given back, and never left behind.

use std::collections::BTreeSet;
use std::time::Duration;

use sandyard_core::{
    CreateSandbox, IDLE_MIB, PoolSettings, RuntimeEvent, SandboxEvent, SandboxState,
};
use sandyard_testkit::{Behaviour, EngineCall};
use sandyard_types::{InstanceId, Template};
use tokio::task::JoinSet;

use crate::host::{
    HostSettings, SchedulerHost, StillTime, breathe, eventually, next_event, request, template,
    within,
};

/// A pool of so many of each kind, and at most `max` of one.
fn settings(minimum: u32, max: u32, memory_mib: u32) -> HostSettings {
    let templates = vec![Template { pool: minimum, ..template() }];
    let mut settings = HostSettings { templates, ..HostSettings::default() };
    settings.limits.pool = PoolSettings { max, memory_mib };
    settings.limits.max_sandboxes = 20;
    settings
}

fn plain() -> CreateSandbox {
    CreateSandbox { session: None, ..request() }
}

/// What waits of the kinds without and with a workspace.
fn ready(host: &SchedulerHost) -> Vec<usize> {
    host.scheduler.pool().iter().map(|shelf| shelf.ready).collect()
}

async fn filled(host: &SchedulerHost, expected: [usize; 2]) {
    eventually(&format!("a pool of {expected:?}"), || ready(host) == expected).await;
}

/// The containers that are no sandbox's.
fn warm(host: &SchedulerHost) -> BTreeSet<InstanceId> {
    let used: BTreeSet<_> = host.scheduler.instances().into_iter().map(|(_, id)| id).collect();
    let all = host.engine.instances().into_iter().map(|instance| instance.id);
    all.filter(|id| !used.contains(id)).collect()
}

#[tokio::test]
async fn a_create_takes_a_container_that_waits_and_another_is_made() -> anyhow::Result<()> {
    let mut host = SchedulerHost::with(settings(1, 1, 512)).await?;
    host.keep_pool();
    filled(&host, [1, 1]).await;
    assert_eq!(host.count(EngineCall::Ready), 2);
    let before = warm(&host);
    let mut events = host.scheduler.events();
    for request in [plain(), request()] {
        let sandbox = host.create(request.clone()).await?;
        assert!(before.contains(&sandbox.instance.id), "it was made for this");
        let event = next_event(&mut events).await;
        assert!(matches!(event, SandboxEvent::Created { from_pool: true, .. }), "{event:?}");
        // It has what its create says, and nothing of a create before.
        let claim = host.engine.claims().pop().expect("a claim");
        assert_eq!((&claim.id, claim.env["B"].as_str()), (&sandbox.id, "request"));
        assert_eq!(claim.workspace.is_some(), request.session.is_some());
        assert_eq!(sandbox.end_at, sandbox.started_at + request.timeout);
        assert_eq!(host.engine.state_of(&sandbox.instance.id), Some(sandbox.instance.state));
    }
    filled(&host, [1, 1]).await;
    host.settled("refilled").await?;
    // None is ever claimed twice.
    let claimed: BTreeSet<_> = host.scheduler.instances().into_iter().map(|(_, id)| id).collect();
    assert_eq!(claimed.len(), 2);
    Ok(())
}

#[tokio::test]
async fn without_a_pool_nothing_waits() -> anyhow::Result<()> {
    let mut host = SchedulerHost::with(settings(2, 0, 512)).await?;
    host.keep_pool();
    host.create(request()).await?;
    breathe().await;
    host.settled("no pool").await?;
    assert_eq!(host.engine.instances().len(), 1);
    Ok(())
}

#[tokio::test]
async fn a_container_that_does_not_answer_its_claim_is_replaced_at_once() -> anyhow::Result<()> {
    let mut host = SchedulerHost::with(settings(1, 1, 512)).await?;
    host.keep_pool();
    filled(&host, [1, 1]).await;
    host.tasks.shutdown().await;
    let dead = warm(&host);
    for id in &dead {
        host.engine.die_unseen(id);
    }
    let mut events = host.scheduler.events();
    let sandbox = host.create(request()).await?;
    assert_eq!(sandbox.state, SandboxState::Running);
    assert!(!dead.contains(&sandbox.instance.id));
    let event = next_event(&mut events).await;
    assert!(matches!(event, SandboxEvent::Created { from_pool: false, .. }), "{event:?}");
    // The one that was tried is gone; the other kind's still waits, for nobody asked.
    assert_eq!(host.engine.instances().len(), 2);
    host.settled("replaced").await
}

#[tokio::test]
async fn a_claim_that_is_refused_leaves_nothing() -> anyhow::Result<()> {
    let mut host = SchedulerHost::with(settings(1, 1, 512)).await?;
    host.keep_pool();
    filled(&host, [1, 1]).await;
    for call in [EngineCall::Claim, EngineCall::Prepare] {
        host.engine.script(call, Behaviour::Fail);
        assert!(host.create(request()).await.is_err());
        host.engine.heal(call);
        filled(&host, [1, 1]).await;
        host.settled("refused").await?;
        assert!(host.scheduler.instances().is_empty());
    }
    Ok(())
}

#[tokio::test]
async fn nothing_is_made_for_the_pool_while_a_create_waits_for_the_engine() -> anyhow::Result<()> {
    let mut host = SchedulerHost::with(settings(2, 4, 512)).await?;
    host.engine.script(EngineCall::Claim, Behaviour::Hang);
    let (scheduler, team) = (host.scheduler.clone(), host.team);
    let mut creates = JoinSet::new();
    creates.spawn(async move { scheduler.create(team, request()).await.map(|new| new.keep()) });
    within("the create", host.engine.hangs(EngineCall::Claim)).await;
    host.keep_pool();
    for _ in 0..20 {
        breathe().await;
    }
    assert_eq!(host.count(EngineCall::Create), 1);
    host.engine.heal(EngineCall::Claim);
    within("the create", creates.join_next()).await.expect("one")??;
    filled(&host, [2, 2]).await;
    host.settled("filled").await
}

#[tokio::test]
async fn one_container_is_made_at_a_time_and_no_more_than_fit() -> anyhow::Result<()> {
    // Room for three, though four are wanted.
    let mut host = SchedulerHost::with(settings(2, 2, 3 * IDLE_MIB + 1)).await?;
    host.engine.script(EngineCall::Ready, Behaviour::Hang);
    host.keep_pool();
    within("the first", host.engine.hangs(EngineCall::Ready)).await;
    for _ in 0..20 {
        breathe().await;
    }
    assert_eq!(host.count(EngineCall::Create), 1);
    host.engine.heal(EngineCall::Ready);
    eventually("three", || ready(&host).iter().sum::<usize>() == 3).await;
    breathe().await;
    host.settled("full").await?;
    assert_eq!(host.engine.instances().len(), 3);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn demand_grows_the_pool_to_its_maximum_and_passes() -> anyhow::Result<()> {
    let (time, mut host) = (StillTime::new(), SchedulerHost::with(settings(1, 4, 512)).await?);
    host.keep_pool();
    filled(&host, [1, 1]).await;
    for _ in 0..6 {
        host.create(request()).await?;
    }
    // As many as came at once, up to the maximum, and of their kind only.
    filled(&host, [1, 4]).await;
    host.settled("grown").await?;
    assert_eq!(host.scheduler.pool()[1].target, 4);
    // One a minute is given back when nobody asks, down to the minimum.
    let mut sizes = vec![4];
    for _ in 0..20 {
        time.pass(Duration::from_secs(31)).await;
        host.settled("shrinking").await?;
        sizes.push(ready(&host)[1]);
    }
    assert!(sizes.windows(2).all(|two| two[0] - two[1] <= 1), "{sizes:?}");
    assert_eq!((sizes[1], *sizes.last().expect("some")), (4, 1), "{sizes:?}");
    assert_eq!(ready(&host), [1, 1]);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_container_that_cannot_be_made_is_tried_again_later_and_leaves_nothing()
-> anyhow::Result<()> {
    for call in [EngineCall::EnsureImage, EngineCall::Create, EngineCall::Ready] {
        for behaviour in [Behaviour::Fail, Behaviour::FailAfter] {
            let case = format!("{call:?} {behaviour:?}");
            let (time, mut host) =
                (StillTime::new(), SchedulerHost::with(settings(1, 1, 512)).await?);
            host.engine.script(call, behaviour);
            host.keep_pool();
            // Each kind is tried once, and then not for a while.
            within(&case, host.engine.called(EngineCall::Delete, 2)).await;
            breathe().await;
            host.settled(&case).await?;
            assert!(host.engine.instances().is_empty(), "{case}");
            assert_eq!(host.count(call), 2, "{case}");
            host.engine.heal(call);
            time.pass(Duration::from_secs(6)).await;
            filled(&host, [1, 1]).await;
        }
    }
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn the_pool_waits_for_an_image_and_fetches_none() -> anyhow::Result<()> {
    let (time, mut host) = (StillTime::new(), SchedulerHost::with(settings(1, 1, 512)).await?);
    host.engine.set_image(&template().image, false);
    host.keep_pool();
    for _ in 0..3 {
        time.pass(Duration::from_secs(61)).await;
        breathe().await;
        assert_eq!((host.count(EngineCall::EnsureImage), ready(&host)), (0, vec![0, 0]));
    }
    host.engine.set_image(&template().image, true);
    time.pass(Duration::from_secs(61)).await;
    filled(&host, [1, 1]).await;
    Ok(())
}

#[tokio::test]
async fn a_container_that_dies_in_the_pool_is_replaced() -> anyhow::Result<()> {
    let mut host = SchedulerHost::with(settings(1, 1, 512)).await?;
    host.keep_pool();
    host.watch().await;
    filled(&host, [1, 1]).await;
    let before = warm(&host);
    let mut dying = before.iter();
    // One is told, the other is only missed by a comparison.
    host.engine.die(dying.next().expect("two"));
    host.engine.die_unseen(dying.next().expect("two"));
    host.engine.announce(RuntimeEvent::Resync);
    eventually("two others", || {
        let now = warm(&host);
        now.is_disjoint(&before) && now.len() == 2 && ready(&host) == [1, 1]
    })
    .await;
    host.settled("replaced").await
}

#[tokio::test]
async fn a_comparison_spares_what_is_being_made_or_claimed() -> anyhow::Result<()> {
    let mut host = SchedulerHost::with(settings(1, 1, 512)).await?;
    host.watch().await;
    let compared = async |host: &SchedulerHost| {
        let lists = host.count(EngineCall::List);
        host.engine.announce(RuntimeEvent::Resync);
        host.engine.announce(RuntimeEvent::Resync);
        // When the second comparison begins, the first one is over.
        within("two comparisons", host.engine.called(EngineCall::List, lists + 2)).await;
        for _ in 0..5 {
            breathe().await;
        }
    };
    // Being made.
    host.engine.script(EngineCall::Ready, Behaviour::Hang);
    host.keep_pool();
    within("the first", host.engine.hangs(EngineCall::Ready)).await;
    compared(&host).await;
    assert_eq!(host.engine.instances().len(), 1);
    host.engine.heal(EngineCall::Ready);
    filled(&host, [1, 1]).await;
    assert_eq!(host.count(EngineCall::Delete), 0);
    // Waiting since the engine has answered: it is not in the answer.
    let before = warm(&host);
    host.engine.script(EngineCall::List, Behaviour::HangAfter);
    host.engine.announce(RuntimeEvent::Resync);
    within("the comparison", host.engine.hangs(EngineCall::List)).await;
    let claimed = host.create(request()).await?;
    filled(&host, [1, 1]).await;
    let new: BTreeSet<_> = warm(&host).difference(&before).cloned().collect();
    assert_eq!(new.len(), 1);
    host.engine.heal(EngineCall::List);
    compared(&host).await;
    assert!(new.is_subset(&warm(&host)), "a container that had just been made is removed");
    assert_eq!(host.get(&claimed.id)?.state, SandboxState::Running);
    // Being claimed.
    host.engine.script(EngineCall::Claim, Behaviour::Hang);
    let (scheduler, team) = (host.scheduler.clone(), host.team);
    let mut creates = JoinSet::new();
    creates.spawn(async move { scheduler.create(team, request()).await.map(|new| new.keep()) });
    within("the claim", host.engine.hangs(EngineCall::Claim)).await;
    compared(&host).await;
    host.engine.heal(EngineCall::Claim);
    let sandbox = within("the create", creates.join_next()).await.expect("one")??;
    assert!(new.contains(&sandbox.instance.id));
    assert_eq!(host.count(EngineCall::Delete), 0);
    filled(&host, [1, 1]).await;
    host.settled("compared").await
}

#[tokio::test]
async fn a_comparison_removes_what_is_nobodys() -> anyhow::Result<()> {
    let mut host = SchedulerHost::with(settings(1, 1, 512)).await?;
    host.keep_pool();
    host.watch().await;
    filled(&host, [1, 1]).await;
    let sandbox = host.create(request()).await?;
    filled(&host, [1, 1]).await;
    let stranger = InstanceId::random();
    let instance = sandyard_core::Instance { id: stranger.clone(), ..sandbox.instance.clone() };
    host.engine.add(instance);
    host.engine.announce(RuntimeEvent::Resync);
    eventually("its removal", || host.engine.state_of(&stranger).is_none()).await;
    host.settled("removed").await
}

#[tokio::test]
async fn a_restart_removes_what_was_in_the_pool() -> anyhow::Result<()> {
    let mut host = SchedulerHost::with(settings(2, 2, 512)).await?;
    host.keep_pool();
    filled(&host, [2, 2]).await;
    let sandbox = host.create(request()).await?;
    filled(&host, [2, 2]).await;
    host.crash_and_restart().await?;
    eventually("the removals", || host.engine.instances().len() == 1).await;
    assert_eq!(host.get(&sandbox.id)?.state, SandboxState::Running);
    host.settled("restarted").await
}

#[tokio::test]
async fn a_shutdown_empties_the_pool_and_what_is_being_made_for_it() -> anyhow::Result<()> {
    let mut host = SchedulerHost::with(settings(1, 1, 512)).await?;
    host.keep_pool();
    filled(&host, [1, 1]).await;
    let sandbox = host.create(request()).await?;
    filled(&host, [1, 1]).await;
    // One more is asked for, and is half-made at the end.
    host.engine.script(EngineCall::Ready, Behaviour::Hang);
    let another = host.create(request()).await?;
    within("the next", host.engine.hangs(EngineCall::Ready)).await;
    host.tasks.shutdown().await;
    let heal = async {
        breathe().await;
        host.engine.heal(EngineCall::Ready);
    };
    within("the end", async { tokio::join!(host.scheduler.shut_down(), heal) }).await;
    let left: BTreeSet<_> = host.engine.instances().into_iter().map(|i| i.id).collect();
    let expected = [sandbox.instance.id.clone(), another.instance.id.clone()];
    assert_eq!(left, BTreeSet::from(expected));
    Ok(())
}

#[tokio::test]
async fn creates_at_once_take_what_waits_and_make_the_rest() -> anyhow::Result<()> {
    let mut host = SchedulerHost::with(settings(3, 3, 512)).await?;
    host.keep_pool();
    filled(&host, [3, 3]).await;
    let creates = (0..8).map(|_| host.create(request()));
    let made = within("all", futures::future::join_all(creates)).await;
    let made: Result<Vec<_>, _> = made.into_iter().collect();
    let instances: BTreeSet<_> = made?.iter().map(|sandbox| sandbox.instance.id.clone()).collect();
    assert_eq!(instances.len(), 8, "a container is two sandboxes'");
    filled(&host, [3, 3]).await;
    host.settled("made").await
}

#[tokio::test]
async fn a_refused_create_gives_back_what_it_took() -> anyhow::Result<()> {
    let mut settings = settings(1, 1, 512);
    settings.limits.max_sandboxes = 1;
    let mut host = SchedulerHost::with(settings).await?;
    host.keep_pool();
    filled(&host, [1, 1]).await;
    host.create(plain()).await?;
    filled(&host, [1, 1]).await;
    let before = warm(&host);
    assert!(host.create(request()).await.is_err());
    assert_eq!((ready(&host), warm(&host)), (vec![1, 1], before));
    host.settled("refused").await
}

#[tokio::test]
async fn a_snapshot_that_is_started_from_has_its_own_containers_and_takes_them_along()
-> anyhow::Result<()> {
    let mut host = SchedulerHost::with(settings(0, 2, 512)).await?;
    let sandbox = host.create(plain()).await?;
    let name = "saved".parse()?;
    host.scheduler.snapshot(host.team, &sandbox.id, Some(&name)).await?;
    host.scheduler.kill(host.team, &sandbox.id).await?;
    host.keep_pool();
    let from_snapshot = || CreateSandbox { template: name.clone(), ..plain() };
    let first = host.create(from_snapshot()).await?;
    let waiting = || {
        let pool = host.scheduler.pool();
        pool.iter()
            .filter(|shelf| shelf.template == "saved")
            .map(|shelf| shelf.ready)
            .sum::<usize>()
    };
    eventually("one of its own", || waiting() == 1).await;
    let image = first.template.image.clone();
    let second = host.create(from_snapshot()).await?;
    let specs = host.engine.specs();
    let spec = specs.iter().find(|spec| spec.instance == second.instance.id).expect("made");
    assert_eq!(spec.template.image, image);
    assert!(
        host.count_of(EngineCall::Ready, &second.instance.id) > 0,
        "it did not wait in the pool"
    );
    // With the snapshot go its containers, also one that is just being made.
    let full = || host.scheduler.pool().iter().all(|shelf| shelf.ready == shelf.target);
    eventually("nothing to make", || waiting() == 2 && full()).await;
    host.engine.script(EngineCall::Ready, Behaviour::Hang);
    host.create(from_snapshot()).await?;
    within("the next", host.engine.hangs(EngineCall::Ready)).await;
    assert_eq!(host.engine.specs().pop().expect("one").template.image, image);
    for sandbox in host.scheduler.list(host.team) {
        host.scheduler.kill(host.team, &sandbox.id).await?;
    }
    let (scheduler, team) = (host.scheduler.clone(), host.team);
    let mut deletes = JoinSet::new();
    let deleted = name.clone();
    deletes.spawn(async move { scheduler.delete_template(team, &deleted).await });
    breathe().await;
    host.engine.heal(EngineCall::Ready);
    within("the delete", deletes.join_next()).await.expect("one")??;
    eventually("its image's removal", || host.engine.images().is_empty()).await;
    assert!(host.scheduler.pool().iter().all(|shelf| shelf.template != "saved"));
    assert!(host.create(from_snapshot()).await.is_err());
    Ok(())
}
