//! Mounts: made, seen, refused, repaired.

use std::time::{Duration, Instant};

use anyhow::ensure;
use sandyard_contract::control::{Call, FailureKind, Reply, Secret};

use super::docker::wait_for;
use super::rpc::User;
use super::sandbox::Sandbox;

#[test]
#[ignore = "needs docker and minio"]
fn a_workspace_is_a_prefix_of_the_bucket() -> anyhow::Result<()> {
    let sandbox = Sandbox::start(&[])?;
    sandbox.store.put(&sandbox.key("from-store.txt"), b"from the store")?;
    let mounted = sandbox.mount(vec![sandbox.workspace()])?;
    eprintln!("usable inside after {} us", mounted[0].micros);
    let read = sandbox.run(User::User, "cat /workspace/from-store.txt")?;
    assert_eq!(read.stdout, "from the store");
    sandbox.run(User::User, "echo -n from inside > /workspace/a.txt")?.success()?;
    let object = sandbox.store.get(&sandbox.key("a.txt"))?;
    assert_eq!(object.as_deref(), Some(&b"from inside"[..]));
    let table = sandbox.run(User::User, "grep ' /workspace ' /proc/mounts")?.stdout;
    let source = format!("hull:/{} /workspace fuse.s3fs rw,nosuid,nodev", sandbox.prefix);
    ensure!(table.starts_with(&source), "{table}");
    Ok(())
}

#[test]
#[ignore = "needs docker and minio"]
fn wrong_keys_fail_in_time_and_say_so() -> anyhow::Result<()> {
    let sandbox = Sandbox::start(&[])?;
    let mut call = sandbox.workspace();
    call.secret_access_key = Secret::new("not-the-secret");
    let started = Instant::now();
    let reply = sandbox.call(&Call::Mount { mounts: vec![call] })?;
    let Reply::Failed(failure) = reply else { anyhow::bail!("{reply:?}") };
    ensure!(started.elapsed() < Duration::from_secs(12), "took {:?}", started.elapsed());
    eprintln!("{failure:?}");
    assert_eq!(failure.kind, FailureKind::Program);
    ensure!(failure.message.contains("refused the key"), "{}", failure.message);
    ensure!(!failure.program_output.is_empty(), "no output");
    Ok(())
}

#[test]
#[ignore = "needs docker and minio"]
fn a_dead_program_is_replaced_within_two_seconds() -> anyhow::Result<()> {
    let sandbox = Sandbox::mounted()?;
    sandbox.store.put(&sandbox.key("a.txt"), b"1")?;
    let program = sandbox.program()?;
    sandbox.container.signal(program, "KILL")?;
    let took = wait_for("the mount's return", Duration::from_secs(2), || {
        let status = sandbox.status()?;
        Ok(status[0].restarts == 1 && status[0].running)
    })?;
    eprintln!("mounted again after {took:?}");
    assert_eq!(sandbox.run(User::User, "cat /workspace/a.txt")?.stdout, "1");
    Ok(())
}
