//! The durability contract: what was closed is in the store (design 6.3).

use std::time::{Duration, Instant};

use anyhow::ensure;
use sandyard_contract::control::{ControlCall, ControlReply, FailureKind};

use super::docker::{docker, halt, wait_for};
use super::rpc::TestUser;
use super::sandbox::TestSandbox;

#[test]
#[ignore = "needs docker and minio"]
fn a_stop_brings_everything_into_the_store() -> anyhow::Result<()> {
    let sandbox = TestSandbox::mounted()?;
    sandbox
        .run(TestUser::User, "for i in $(seq 20); do echo $i > /workspace/$i; done")?
        .success()?;
    // A process that writes its last words when it is asked to end, and one that holds a file open.
    let writer =
        "trap 'echo last > /workspace/last; exit' TERM; echo ready; while :; do sleep 0.1; done";
    sandbox.start_command(TestUser::User, writer)?.until("ready")?;
    let holder = "exec 3> /workspace/open; head -c 5000000 /dev/zero >&3; echo ready; sleep 100";
    sandbox.start_command(TestUser::User, holder)?.until("ready")?;
    let started = Instant::now();
    let flush = sandbox.stop(30_000)?;
    eprintln!("stopped after {:?}: {flush:?}", started.elapsed());
    ensure!(flush.complete, "{flush:?}");
    assert_eq!(sandbox.wait_for_end(Duration::from_secs(2))?, 0);
    for number in 1..=20 {
        let object = sandbox.store.get(&sandbox.key(&number.to_string()))?;
        assert_eq!(object, Some(format!("{number}\n").into_bytes()));
    }
    assert_eq!(sandbox.store.get(&sandbox.key("last"))?.as_deref(), Some(&b"last\n"[..]));
    let open = sandbox.store.get(&sandbox.key("open"))?;
    assert_eq!(open.map(|object| object.len()), Some(5_000_000));
    Ok(())
}

#[test]
#[ignore = "needs docker and minio"]
fn a_process_that_ignores_term_is_killed_after_five_seconds() -> anyhow::Result<()> {
    let sandbox = TestSandbox::mounted()?;
    let stubborn = "trap '' TERM; echo ready; while :; do sleep 1; done";
    sandbox.start_command(TestUser::User, stubborn)?.until("ready")?;
    let started = Instant::now();
    ensure!(sandbox.stop(30_000)?.complete, "complete");
    let took = started.elapsed();
    ensure!(took > Duration::from_secs(5) && took < Duration::from_secs(7), "took {took:?}");
    Ok(())
}

#[test]
#[ignore = "needs docker and minio"]
fn sigterm_is_a_stop() -> anyhow::Result<()> {
    let sandbox = TestSandbox::mounted()?;
    sandbox.run(TestUser::User, "echo x > /workspace/x")?.success()?;
    docker(["stop", "-t", "20", &sandbox.container.name])?;
    assert_eq!(sandbox.container.exit_code()?, 0);
    assert_eq!(sandbox.store.get(&sandbox.key("x"))?.as_deref(), Some(&b"x\n"[..]));
    Ok(())
}

#[test]
#[ignore = "needs docker and minio"]
fn a_killed_sandbox_has_lost_no_closed_file() -> anyhow::Result<()> {
    let sandbox = TestSandbox::mounted()?;
    sandbox
        .run(TestUser::User, "for i in $(seq 20); do echo $i > /workspace/$i; done")?
        .success()?;
    docker(["kill", &sandbox.container.name])?;
    for number in 1..=20 {
        let object = sandbox.store.get(&sandbox.key(&number.to_string()))?;
        assert_eq!(object, Some(format!("{number}\n").into_bytes()));
    }
    Ok(())
}

#[test]
#[ignore = "needs docker and minio"]
fn a_program_that_hangs_delays_a_stop_to_its_limit_and_no_longer() -> anyhow::Result<()> {
    let sandbox = TestSandbox::mounted()?;
    halt(sandbox.program()?)?;
    // Someone waits for it already, where no signal reaches.
    let _stuck = sandbox.start_command(TestUser::User, "ls -l /workspace/nothing")?;
    let started = Instant::now();
    let flush = sandbox.stop(3000)?;
    let took = started.elapsed();
    eprintln!("stopped after {took:?}: {flush:?}");
    ensure!(!flush.complete, "nothing can be complete here");
    ensure!(took < Duration::from_secs(5 + 3 + 2), "took {took:?}");
    sandbox.wait_for_end(Duration::from_secs(3))?;
    Ok(())
}

#[test]
#[ignore = "needs docker and minio"]
fn a_program_that_hangs_does_not_keep_its_container() -> anyhow::Result<()> {
    let sandbox = TestSandbox::mounted()?;
    halt(sandbox.program()?)?;
    let _stuck = sandbox.start_command(TestUser::User, "ls -l /workspace/nothing")?;
    wait_for("a process that the program keeps waiting", Duration::from_secs(5), || {
        let stuck = |process: &i32| {
            let waits_in = std::fs::read_to_string(format!("/proc/{process}/wchan"));
            waits_in.is_ok_and(|function| function.contains("request_wait_answer"))
        };
        Ok(sandbox.container.processes("ls")?.iter().any(stuck))
    })?;
    let started = Instant::now();
    docker(["rm", "-fv", &sandbox.container.name])?;
    ensure!(started.elapsed() < Duration::from_secs(5), "took {:?}", started.elapsed());
    Ok(())
}

#[test]
#[ignore = "needs docker and minio"]
fn a_stop_gets_through_while_a_mount_hangs() -> anyhow::Result<()> {
    let sandbox = TestSandbox::start(&[])?;
    // An endpoint that takes connections and says nothing.
    let format = "{{.NetworkSettings.Gateway}}";
    let gateway = docker(["inspect", "--format", format, &sandbox.container.name])?;
    let silent = std::net::TcpListener::bind((gateway.as_str(), 0))?;
    let mut call = sandbox.workspace();
    call.endpoint = format!("http://{}", silent.local_addr()?);
    let mut mounting = super::control::ControlClient::open(sandbox.container.address)?;
    let nonce = mounting.nonce()?;
    mounting.send(&sandbox.authority.sign(&nonce, &ControlCall::Mount { mounts: vec![call] })?)?;
    let _program = silent.accept()?;
    assert_eq!(sandbox.status()?.len(), 1, "init answers meanwhile");
    let started = Instant::now();
    sandbox.stop(5000)?;
    ensure!(started.elapsed() < Duration::from_secs(3), "took {:?}", started.elapsed());
    let ControlReply::Failed(failure) = mounting.reply()? else { anyhow::bail!("mounted?") };
    assert_eq!(failure.kind, FailureKind::Program);
    sandbox.wait_for_end(Duration::from_secs(3))?;
    Ok(())
}

#[test]
#[ignore = "needs docker and minio"]
fn a_sync_leaves_everything_running() -> anyhow::Result<()> {
    let sandbox = TestSandbox::mounted()?;
    sandbox.run(TestUser::User, "echo x > /workspace/x")?.success()?;
    let ControlReply::Synced { flush } = sandbox.call(&ControlCall::Sync { limit_ms: 5000 })?
    else {
        anyhow::bail!("no sync")
    };
    ensure!(flush.complete, "{flush:?}");
    halt(sandbox.program()?)?;
    let ControlReply::Synced { flush } = sandbox.call(&ControlCall::Sync { limit_ms: 500 })? else {
        anyhow::bail!("no sync")
    };
    ensure!(!flush.complete, "{flush:?}");
    sandbox.container.signal(sandbox.program()?, "CONT")?;
    sandbox.run(TestUser::User, "echo y > /workspace/y")?.success()?;
    Ok(())
}

#[test]
#[ignore = "needs docker and minio"]
fn the_container_ends_with_the_users_side() -> anyhow::Result<()> {
    let sandbox = TestSandbox::mounted()?;
    sandbox.run(TestUser::User, "echo x > /workspace/x")?.success()?;
    sandbox.container.signal(sandbox.daemon()?, "KILL")?;
    wait_for("the end", Duration::from_secs(5), || Ok(!sandbox.container.running()?))?;
    assert_eq!(sandbox.container.exit_code()?, 1);
    Ok(())
}
