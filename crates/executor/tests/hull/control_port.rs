//! Who may give orders, and that nobody can stand in the way of who may.

use std::time::{Duration, Instant};

use anyhow::ensure;
use ed25519_dalek::SigningKey;
use sandyard_contract::control::{Call, FailureKind, MAX_LINE_BYTES, Reply};
use sandyard_types::InstanceId;

use super::control::{Authority, Connection};
use super::rpc::User;
use super::sandbox::Sandbox;

fn kind(reply: Reply) -> Option<FailureKind> {
    match reply {
        Reply::Failed(failure) => Some(failure.kind),
        _ => None,
    }
}

#[test]
#[ignore = "needs docker"]
fn only_signed_fresh_calls_for_this_container_are_obeyed() -> anyhow::Result<()> {
    let sandbox = Sandbox::start(&[])?;
    let mut connection = Connection::open(sandbox.container.address)?;

    let other_key = Authority {
        key: SigningKey::from_bytes(&[43; 32]),
        instance: sandbox.authority.instance.clone(),
    };
    let reply = connection.call(&other_key, &Call::Status)?;
    assert_eq!(kind(reply), Some(FailureKind::Unauthorized), "another key");

    let other_instance =
        Authority { key: sandbox.authority.key.clone(), instance: InstanceId::random() };
    let reply = connection.call(&other_instance, &Call::Status)?;
    assert_eq!(kind(reply), Some(FailureKind::Unauthorized), "for another container");

    let nonce = connection.nonce()?;
    connection.send(r#"{"signature":"","body":"{\"call\":\"status\"}"}"#)?;
    assert_eq!(kind(connection.reply()?), Some(FailureKind::Unauthorized), "unsigned");

    // The nonce of the refused call is spent.
    connection.nonce()?;
    connection.send(&sandbox.authority.sign(&nonce, &Call::Status)?)?;
    assert_eq!(kind(connection.reply()?), Some(FailureKind::Unauthorized), "an old nonce");

    let nonce = connection.nonce()?;
    let line = sandbox.authority.sign(&nonce, &Call::Status)?;
    connection.send(&line)?;
    assert_eq!(connection.reply()?, Reply::Status { mounts: Vec::new() });
    connection.nonce()?;
    connection.send(&line)?;
    assert_eq!(kind(connection.reply()?), Some(FailureKind::Unauthorized), "a replay");
    Ok(())
}

#[test]
#[ignore = "needs docker"]
fn connections_that_do_nothing_are_in_nobodys_way() -> anyhow::Result<()> {
    let sandbox = Sandbox::start(&[])?;
    // More than are held at a time; the oldest of them make room.
    let mut idle = Vec::new();
    for _ in 0..40 {
        idle.push(Connection::open(sandbox.container.address)?);
    }
    // Half a line, and a line without an end.
    idle[39].send(&"x".repeat(4096))?;
    let endless = "y".repeat(MAX_LINE_BYTES + 1);
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
#[ignore = "needs docker and python in the image"]
fn user_code_gets_no_connection() -> anyhow::Result<()> {
    let sandbox = Sandbox::start(&[])?;
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
    assert_eq!(sandbox.run(User::User, &flood)?.stdout.trim(), "0");
    ensure!(sandbox.stop(5000)?.complete, "stopped");
    Ok(())
}
