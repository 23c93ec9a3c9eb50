//! What clients and processes see of a sandbox's end (executor 10): first everything is over for clients,
//! then processes are asked to end.

use std::io::ErrorKind;
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::ensure;
use sandyard_contract::daemon::DAEMON_PORT;
use serde_json::json;

use super::control::ControlAuthority;
use super::docker::{Container, bundle, docker, halt, image, wait_for};
use super::rpc::{RunningCommand, TestUser, claim, start};
use super::sandbox::TestSandbox;

/// Takes TERM for a reason to finish its work: says that it was asked, tries to answer in the daemon's
/// place, waits for leave, writes its last words and calls all that a success.
const FINISHES_ON_TERM: &str = r#"
finish() {
    python3 -c 'import socket; socket.create_server(("", 49983))' 2>/tmp/bind
    touch /tmp/asked
    until [ -e /tmp/go ]; do sleep 0.02; done
    [ ! -d /workspace ] || echo last > /workspace/last
    exit 0
}
trap finish TERM
echo ready
while :; do sleep 0.02; done
"#;

/// Once the process of [`FINISHES_ON_TERM`] was asked to end, everything must be over for `client`.
fn is_over_for_clients(container: &Container, client: RunningCommand) -> anyhow::Result<()> {
    let root = container.root();
    wait_for("TERM", Duration::from_secs(5), || Ok(root.join("tmp/asked").exists()))?;
    client.until_cut()?;
    let again = TcpStream::connect((container.address, DAEMON_PORT)).map_err(|e| e.kind());
    assert_eq!(again.err(), Some(ErrorKind::ConnectionRefused));
    let bind = std::fs::read_to_string(root.join("tmp/bind"))?;
    ensure!(bind.contains("Address already in use"), "the port can be taken over: {bind}");
    Ok(())
}

fn let_go(root: &Path) -> anyhow::Result<()> {
    Ok(std::fs::write(root.join("tmp/go"), "")?)
}

#[test]
#[ignore = "needs docker and minio"]
fn a_stop_is_over_for_clients_before_processes_hear_of_it() -> anyhow::Result<()> {
    let sandbox = TestSandbox::mounted()?;
    let mut client = sandbox.start_command(TestUser::User, FINISHES_ON_TERM)?;
    client.until("ready")?;
    let flush = std::thread::scope(|scope| {
        let stop = scope.spawn(|| sandbox.stop(30_000));
        let over = is_over_for_clients(&sandbox.container, client);
        // Whatever came out: without it the stop takes its whole grace.
        let_go(&sandbox.container.root())?;
        let flush = stop.join().expect("no panic");
        over.and(flush)
    })?;
    ensure!(flush.complete, "{flush:?}");
    assert_eq!(sandbox.wait_for_end(Duration::from_secs(2))?, 0);
    assert_eq!(sandbox.store.get(&sandbox.key("last"))?.as_deref(), Some(&b"last\n"[..]));
    Ok(())
}

/// A container without a workspace, in which the daemon is the first process.
fn without_workspace() -> anyhow::Result<(std::sync::Arc<super::docker::Volume>, Container)> {
    let (bundle, container, _) = claimed_without_workspace()?;
    Ok((bundle, container))
}

/// The same with who may claim it.
pub(super) fn claimed_without_workspace()
-> anyhow::Result<(std::sync::Arc<super::docker::Volume>, Container, ControlAuthority)> {
    let (bundle, authority) = (bundle()?, ControlAuthority::new());
    let volume = format!("{}:/.sandyard:ro", bundle.0);
    let key = hex::encode(authority.key.verifying_key().as_bytes());
    let command = ["init", "--instance", authority.instance.as_str(), "--control-key", &key];
    let options = ["-v", &volume, "--user", "0:0", "--entrypoint", "/.sandyard/executor"];
    let container = Container::start(&options, &image(), &command)?;
    claim(container.address, &authority)?;
    Ok((bundle, container, authority))
}

pub(super) fn command_in(
    container: &Container,
    login: &str,
    script: &str,
) -> anyhow::Result<RunningCommand> {
    let process = json!({"process": {"cmd": "/bin/bash", "args": ["-c", script]}});
    start(container.address, login, &process)
}

#[test]
#[ignore = "needs docker"]
fn a_stop_without_a_workspace_is_no_different() -> anyhow::Result<()> {
    let (_bundle, container) = without_workspace()?;
    let mut client = command_in(&container, "user:", FINISHES_ON_TERM)?;
    client.until("ready")?;
    std::thread::scope(|scope| {
        let stop = scope.spawn(|| docker(["stop", "-t", "20", &container.name]));
        let over = is_over_for_clients(&container, client);
        let_go(&container.root())?;
        let stopped = stop.join().expect("no panic");
        over.and(stopped)
    })?;
    assert_eq!(container.exit_code()?, 0);
    Ok(())
}

#[test]
#[ignore = "needs docker"]
fn a_kill_without_a_workspace_cuts_clients_off() -> anyhow::Result<()> {
    let (_bundle, container) = without_workspace()?;
    let mut client = command_in(&container, "user:", FINISHES_ON_TERM)?;
    client.until("ready")?;
    docker(["kill", &container.name])?;
    client.until_cut()
}

#[test]
#[ignore = "needs docker"]
fn without_a_workspace_root_cannot_trace_the_daemon_either() -> anyhow::Result<()> {
    let (_bundle, container) = without_workspace()?;
    for attempt in ["cat /proc/1/environ", "head -c 1 /proc/1/mem", "cat /proc/1/fd/0"] {
        let finished = command_in(&container, "root:", attempt)?.finish()?;
        ensure!(finished.exit_code != 0, "{attempt}: {finished:?}");
        ensure!(finished.stderr.contains("Permission denied"), "{attempt}: {finished:?}");
    }
    Ok(())
}

#[test]
#[ignore = "needs docker and minio"]
fn a_daemon_that_hangs_delays_a_stop_by_the_grace_and_no_longer() -> anyhow::Result<()> {
    let sandbox = TestSandbox::mounted()?;
    sandbox.run(TestUser::User, "echo x > /workspace/closed")?.success()?;
    let mut writer = sandbox.start_command(
        TestUser::User,
        "exec 3> /workspace/open; head -c 5000000 /dev/zero >&3; echo ready; sleep 100",
    )?;
    writer.until("ready")?;
    halt(sandbox.daemon()?)?;
    let started = Instant::now();
    let flush = sandbox.stop(30_000)?;
    let took = started.elapsed();
    ensure!(flush.complete, "{flush:?}");
    ensure!(took < Duration::from_secs(7), "took {took:?}");
    sandbox.wait_for_end(Duration::from_secs(2))?;
    writer.until_cut()?;
    assert_eq!(sandbox.store.get(&sandbox.key("closed"))?.as_deref(), Some(&b"x\n"[..]));
    let open = sandbox.store.get(&sandbox.key("open"))?;
    assert_eq!(open.map(|object| object.len()), Some(5_000_000));
    Ok(())
}
