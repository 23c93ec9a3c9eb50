//! What sandboxes may write.

use std::time::Duration;

use sandyard_core::{DiskSpace, Sandbox, SandboxError};
use sandyard_testkit::EngineCall;

use crate::host::{SchedulerHost, eventually, request, within};

#[tokio::test]
async fn a_sandbox_that_writes_too_much_is_ended_and_a_full_disk_takes_no_more()
-> anyhow::Result<()> {
    const MIB: u64 = 1 << 20;
    let mut host = SchedulerHost::start().await?;
    let watching = host.scheduler.clone();
    host.tasks.spawn(async move { watching.watch_disk().await });
    let (small, large, most) = (
        host.create(request()).await?,
        host.create(request()).await?,
        host.create(request()).await?,
    );
    let gone = async |sandbox: &Sandbox| {
        eventually("its end", || host.get(&sandbox.id).is_err()).await;
    };
    let written = |megabytes: [u64; 3]| {
        let all = [&small, &large, &most].into_iter().zip(megabytes);
        all.map(|(sandbox, megabytes)| (sandbox.instance.id.clone(), megabytes * MIB)).collect()
    };
    // The template allows 100 MiB.
    host.engine.fill_disk(written([1, 101, 99]), None);
    gone(&large).await;
    assert!(host.scheduler.get(host.team, &most.id).is_ok());
    // Full, but not by what these add: it is a workspace's or another program's doing, and no sandbox pays for it.
    let full = DiskSpace { total: 1000, free: 49 };
    host.engine.fill_disk(written([1, 0, 99]), Some(full));
    within("the first refusal", async {
        while !matches!(host.create(request()).await, Err(SandboxError::DiskFull)) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let looks = host.count(EngineCall::DiskUsage);
    within("a call", host.engine.called(EngineCall::DiskUsage, looks + 2)).await;
    assert!(host.scheduler.get(host.team, &most.id).is_ok());
    // Whoever has added most since goes, who has added little stays.
    host.engine.fill_disk(written([66, 0, 99]), Some(full));
    gone(&small).await;
    assert!(host.scheduler.get(host.team, &most.id).is_ok());
    host.engine.fill_disk(written([0, 0, 99]), Some(DiskSpace { total: 1000, free: 51 }));
    within("room again", async {
        while host.create(request()).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    Ok(())
}
