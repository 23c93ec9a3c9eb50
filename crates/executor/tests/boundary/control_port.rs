//! Who may give orders, and that nobody can stand in the way of who may.

use std::time::{Duration, Instant};

use anyhow::ensure;
use ed25519_dalek::SigningKey;
use sandyard_contract::control::{
    ControlCall, ControlReply, FailureKind, MAX_CALL_BYTES, SIGNED_CALL_LIMIT,
};
use sandyard_types::InstanceId;

use super::control::{ControlAuthority, ControlClient};
use super::docker::{Container, image, wait_for};
use super::rpc::{self, TestUser};
use super::sandbox::TestSandbox;

fn kind(reply: ControlReply) -> Option<FailureKind> {
    match reply {
        ControlReply::Failed(failure) => Some(failure.kind),
        _ => None,
    }
}

#[test]
#[ignore = "needs docker"]
fn only_signed_fresh_calls_for_this_container_are_obeyed() -> anyhow::Result<()> {
    let sandbox = TestSandbox::start(&[])?;
    let mut connection = ControlClient::open(sandbox.container.address)?;

    let other_key = ControlAuthority {
        key: SigningKey::from_bytes(&[43; 32]),
        instance: sandbox.authority.instance.clone(),
    };
    let reply = connection.call(&other_key, &ControlCall::Status)?;
    assert_eq!(kind(reply), Some(FailureKind::Unauthorized), "another key");

    let other_instance =
        ControlAuthority { key: sandbox.authority.key.clone(), instance: InstanceId::random() };
    let reply = connection.call(&other_instance, &ControlCall::Status)?;
    assert_eq!(kind(reply), Some(FailureKind::Unauthorized), "for another container");

    let nonce = connection.nonce()?;
    connection.send(r#"{"signature":"","body":"{\"call\":\"status\"}"}"#)?;
    assert_eq!(kind(connection.reply()?), Some(FailureKind::Unauthorized), "unsigned");

    // The nonce of the refused call is spent.
    connection.nonce()?;
    connection.send(&sandbox.authority.sign(&nonce, &ControlCall::Status)?)?;
    assert_eq!(kind(connection.reply()?), Some(FailureKind::Unauthorized), "an old nonce");

    let nonce = connection.nonce()?;
    let line = sandbox.authority.sign(&nonce, &ControlCall::Status)?;
    connection.send(&line)?;
    assert_eq!(connection.reply()?, ControlReply::Status { mounts: Vec::new() });
    connection.nonce()?;
    connection.send(&line)?;
    assert_eq!(kind(connection.reply()?), Some(FailureKind::Unauthorized), "a replay");
    Ok(())
}

#[test]
#[ignore = "needs docker"]
fn connections_that_do_nothing_are_in_nobodys_way() -> anyhow::Result<()> {
    let sandbox = TestSandbox::start(&[])?;
    // More than one address may have; the oldest of them make room.
    let mut idle = Vec::new();
    for _ in 0..40 {
        idle.push(ControlClient::open(sandbox.container.address)?);
    }
    // Half a line, and a line without an end.
    idle[39].send(&"x".repeat(4096))?;
    let endless = "y".repeat(MAX_CALL_BYTES + 1);
    ensure!(
        idle[38].send(&endless).is_err() || idle[38].nonce().is_ok(),
        "an endless line is cut off"
    );
    let started = Instant::now();
    let flush = sandbox.stop(5000)?;
    ensure!(flush.complete, "{flush:?}");
    ensure!(started.elapsed() < Duration::from_secs(3), "took {:?}", started.elapsed());
    assert_eq!(sandbox.wait_for_end(Duration::from_secs(5))?, 0);
    Ok(())
}

#[test]
#[ignore = "needs docker"]
fn who_shows_no_signed_call_is_closed_within_moments() -> anyhow::Result<()> {
    let sandbox = TestSandbox::start(&[])?;
    let mut silent = ControlClient::open(sandbox.container.address)?;
    silent.nonce()?;
    let started = Instant::now();
    ensure!(silent.nonce().is_err(), "it is closed");
    ensure!(started.elapsed() < SIGNED_CALL_LIMIT * 3, "after {:?}", started.elapsed());
    // Who has shown one stays.
    let mut known = ControlClient::open(sandbox.container.address)?;
    known.call(&sandbox.authority, &ControlCall::Status)?;
    std::thread::sleep(SIGNED_CALL_LIMIT * 2);
    assert_eq!(
        known.call(&sandbox.authority, &ControlCall::Status)?,
        ControlReply::Status { mounts: vec![] }
    );
    Ok(())
}

/// Floods both ports of an address from another container, and says so when it has begun.
const FLOOD: &str = r#"
import socket, sys, threading, time
host, end = sys.argv[1], time.monotonic() + 60
def flood(port, text):
    held = []
    while time.monotonic() < end:
        try:
            s = socket.create_connection((host, port), 1)
            s.sendall(text)
            held.append(s)
        except OSError:
            pass
        held = held[-500:]
head = b"POST /init HTTP/1.1\r\nHost: x\r\nContent-Length: 8000000\r\n"
texts = [(49982, b""), (49982, b"x" * 60000), (49982, b'{"signature":"00","body":"{}"}\n'),
         (49983, head + b"X: " + b"x" * 40000), (49983, head + b"\r\n" + b"x" * 100000), (49983, b"")]
for port, text in texts:
    threading.Thread(target=flood, args=(port, text), daemon=True).start()
time.sleep(1)
print("flooding", flush=True)
time.sleep(60)
"#;

// The attack: kills lost their stop call in 3 of 3, creates failed in 1 of 3, and the sandbox ended by
// out-of-memory. On the engine's own bridge, whose containers reach each other.
#[test]
#[ignore = "needs docker and python in the image"]
fn a_neighbours_flood_ends_nothing_and_keeps_no_call_from_arriving() -> anyhow::Result<()> {
    for round in 0..3 {
        let sandbox = TestSandbox::start(&["--memory", "512m", "--memory-swap", "512m"])?;
        let address = sandbox.container.address.to_string();
        let command = ["-c", FLOOD, &address];
        let neighbour = Container::start(&["--entrypoint", "python3"], &image(), &command)?;
        wait_for("the flood", Duration::from_secs(20), || {
            Ok(neighbour.logs()?.contains("flooding"))
        })?;
        for _ in 0..20 {
            let reply = sandbox.call(&ControlCall::Status)?;
            ensure!(reply == ControlReply::Status { mounts: vec![] }, "{reply:?}");
        }
        assert_eq!(sandbox.run(TestUser::User, "echo here")?.stdout, "here\n", "round {round}");
        // The whole create of another sandbox under the same flood is what the claim is here.
        let flush = sandbox.stop(5000)?;
        ensure!(flush.complete, "{flush:?}");
        assert_eq!(sandbox.wait_for_end(Duration::from_secs(5))?, 0, "ended in order");
    }
    Ok(())
}

// The same before the claim: the flood is there first.
#[test]
#[ignore = "needs docker and python in the image"]
fn a_claim_comes_through_a_neighbours_flood() -> anyhow::Result<()> {
    let sandbox = TestSandbox::start_unclaimed(&[])?;
    let address = sandbox.container.address.to_string();
    let command = ["-c", FLOOD, &address];
    let neighbour = Container::start(&["--entrypoint", "python3"], &image(), &command)?;
    wait_for("the flood", Duration::from_secs(20), || Ok(neighbour.logs()?.contains("flooding")))?;
    rpc::claim(sandbox.container.address, &sandbox.authority)?;
    assert_eq!(sandbox.run(TestUser::User, "echo here")?.stdout, "here\n");
    Ok(())
}

#[test]
#[ignore = "needs docker and python in the image"]
fn user_code_gets_no_connection() -> anyhow::Result<()> {
    let sandbox = TestSandbox::start(&[])?;
    let flood = format!(
        "python3 - <<'END'\n\
         import socket\n\
         got = 0\n\
         for i in range(200):\n\
         \x20   s = socket.create_connection(('127.0.0.1' if i % 2 else '{}', 49982), 2)\n\
         \x20   try: got += len(s.recv(100))\n\
         \x20   except OSError: pass\n\
         print(got)\n\
         END",
        sandbox.container.address
    );
    assert_eq!(sandbox.run(TestUser::User, &flood)?.stdout.trim(), "0");
    ensure!(sandbox.stop(5000)?.complete, "stopped");
    Ok(())
}
