//! What the executor takes of memory while nothing happens.

use std::time::Duration;

use anyhow::{Context as _, ensure};

use super::rpc::TestUser;
use super::sandbox::TestSandbox;

/// What both may take, in KiB: half a MiB below the target of 5 MiB.
const LIMIT: u64 = 4608;

/// KiB of each process of the executor; pages that they share count in both.
fn resident(sandbox: &TestSandbox) -> anyhow::Result<Vec<u64>> {
    let resident = |process: i32| {
        let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    };
    sandbox.container.processes("executor")?.into_iter().map(resident).collect()
}

#[test]
#[ignore = "needs docker and minio"]
fn an_idle_executor_is_small() -> anyhow::Result<()> {
    let sandbox = TestSandbox::mounted()?;
    sandbox.run(TestUser::User, "true")?.success()?;
    let after_command = resident(&sandbox)?;
    // Longer than until the first look at the cache.
    std::thread::sleep(Duration::from_secs(6));
    let idle = resident(&sandbox)?;
    eprintln!("init and daemon, KiB: {after_command:?} after a command, {idle:?} later");
    for sum in [after_command, idle].map(|each| each.iter().sum::<u64>()) {
        ensure!(sum <= LIMIT, "{sum} KiB");
    }
    Ok(())
}
