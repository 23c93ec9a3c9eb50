//! A container that is stopped and started again: what a pause without memory keeps (design 5.1).

use anyhow::ensure;

use super::docker::docker;
use super::rpc::{TestUser, claim};
use super::sandbox::TestSandbox;
use super::stop::{claimed_without_workspace, command_in};

/// What user code may leave where the executor will write.
const LEFTOVERS: &str =
    "rm -rf /run/e2b; echo x > /run/e2b; mkdir -p /etc/mine; echo kept > /etc/mine/file";

#[test]
#[ignore = "needs docker and minio"]
fn a_workspace_is_there_again_after_stop_and_start() -> anyhow::Result<()> {
    let mut sandbox = TestSandbox::mounted()?;
    sandbox.run(TestUser::Root, LEFTOVERS)?.success()?;
    for turn in 0..3 {
        let script = format!(
            "echo {turn} > /workspace/{turn}; echo {turn} > ~/{turn}; head -c 9000000 /dev/zero > /workspace/large"
        );
        sandbox.run(TestUser::User, &script)?.success()?;
        // A file that is open at the end is in the cache then.
        sandbox
            .start_command(
                TestUser::User,
                "exec 3< /workspace/large; cat <&3 > /dev/null; echo ready; sleep 100",
            )?
            .until("ready")?;
        if turn == 1 {
            docker(["kill", &sandbox.container.name])?;
        } else {
            docker(["stop", "-t", "20", &sandbox.container.name])?;
        }
        sandbox.start_again()?;
        assert_eq!(sandbox.status()?.len(), 1);
        for before in 0..=turn {
            let script = format!("cat /workspace/{before} ~/{before} /etc/mine/file");
            let read = sandbox.run(TestUser::User, &script)?.success()?.stdout;
            assert_eq!(read, format!("{before}\n{before}\nkept\n"));
        }
        let processes =
            sandbox.run(TestUser::User, "pgrep -x sleep; cat /run/e2b/.E2B_SANDBOX_ID")?;
        assert_eq!(
            processes.stdout, "sandbox",
            "nothing of before runs, and the identity is there"
        );
        let cached = docker(["exec", &sandbox.container.name, "ls", "/.sandyard/cache"])?;
        assert_eq!(cached.trim(), "0.0", "only this run's cache");
    }
    ensure!(sandbox.stop(30_000)?.complete, "complete");
    Ok(())
}

#[test]
#[ignore = "needs docker and minio"]
fn a_sandbox_that_was_drained_starts_again_too() -> anyhow::Result<()> {
    let mut sandbox = TestSandbox::mounted()?;
    sandbox.run(TestUser::User, "echo x > /workspace/x")?.success()?;
    ensure!(sandbox.drain(30_000)?.complete, "complete");
    docker(["pause", &sandbox.container.name])?;
    docker(["kill", &sandbox.container.name])?;
    sandbox.wait_for_end(std::time::Duration::from_secs(5))?;
    sandbox.start_again()?;
    assert_eq!(sandbox.run(TestUser::User, "cat /workspace/x")?.success()?.stdout, "x\n");
    Ok(())
}

#[test]
#[ignore = "needs docker"]
fn a_daemon_without_a_workspace_is_claimed_anew_after_stop_and_start() -> anyhow::Result<()> {
    let (_bundle, mut container, authority) = claimed_without_workspace()?;
    command_in(&container, "root:", LEFTOVERS)?.finish()?.success()?;
    for turn in 0..3 {
        command_in(&container, "user:", &format!("echo {turn} > ~/{turn}"))?.finish()?.success()?;
        if turn == 1 {
            docker(["kill", &container.name])?;
        } else {
            docker(["stop", "-t", "20", &container.name])?;
        }
        container.start_again()?;
        claim(container.address, &authority)?;
        let script = format!("cat ~/{turn} /etc/mine/file /run/e2b/.E2B_SANDBOX_ID");
        let read = command_in(&container, "user:", &script)?.finish()?.success()?;
        assert_eq!(read.stdout, format!("{turn}\nkept\nsandbox"));
    }
    Ok(())
}
