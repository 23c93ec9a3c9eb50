//! The user's side has limits of its own, a little below the container's (design 6.1 (2)).

use std::time::Duration;

use anyhow::ensure;

use super::docker::wait_for;
use super::rpc::TestUser;
use super::sandbox::TestSandbox;

#[test]
#[ignore = "needs docker and minio"]
fn filling_the_memory_hits_user_code_only() -> anyhow::Result<()> {
    let sandbox = TestSandbox::start(&["--memory", "256m", "--memory-swap", "256m"])?;
    sandbox.mount(vec![sandbox.workspace()])?;
    sandbox.run(TestUser::User, "head -c 40000000 /dev/zero > /workspace/held")?.success()?;
    let program = sandbox.program()?;
    for _ in 0..3 {
        let many = "for i in $(seq 60); do python3 -c 'x = bytearray(8 << 20); \
                    import time; time.sleep(2)' & done; wait";
        sandbox.run(TestUser::User, many)?;
    }
    assert_eq!(sandbox.program()?, program, "the FUSE program was killed");
    sandbox.run(TestUser::User, "echo x > /workspace/x")?.success()?;
    Ok(())
}

#[test]
#[ignore = "needs docker and minio"]
fn a_full_process_table_does_not_prevent_the_repair() -> anyhow::Result<()> {
    let sandbox = TestSandbox::start(&["--pids-limit", "200"])?;
    sandbox.mount(vec![sandbox.workspace()])?;
    // Bounded by what the group allows, and by itself.
    let filler = "for i in $(seq 300); do sleep 8 & done 2>&1; sleep 8";
    let mut filler = sandbox.start_command(TestUser::User, filler)?;
    filler.until("Resource temporarily unavailable")?;
    sandbox.container.signal(sandbox.program()?, "KILL")?;
    let took = wait_for("the mount's return", Duration::from_secs(2), || {
        let status = sandbox.status()?;
        Ok(status[0].restarts == 1 && status[0].running)
    })?;
    ensure!(took < Duration::from_secs(2), "took {took:?}");
    Ok(())
}
