//! What a neighbour without credentials can do to a sandbox: take a few connections, for a short time.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use super::support::{TOKEN, TestDaemon, until};

/// Connects from an address of the loopback network of its own.
fn connect_from(last: u8, to: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    let source = SocketAddr::from((Ipv4Addr::new(127, 0, 3, last), 0));
    socket.bind(&source.into()).expect("every address of that network is ours");
    socket.connect(&to.into()).expect("it listens");
    socket.into()
}

/// Whether the other side has closed it; never waits.
fn is_closed(stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).expect("a socket has it");
    match (&mut &*stream).read(&mut [0; 1]) {
        Ok(0) => true,
        Ok(_) => false,
        Err(error) => error.kind() != ErrorKind::WouldBlock,
    }
}

// The attack: 57 unsigned calls with long heads and bodies end a sandbox of 512 MiB by out-of-memory.
#[test]
fn a_flood_without_credentials_costs_little_memory() {
    let daemon = TestDaemon::start_unclaimed();
    let before = daemon.resident_kib();
    let mut flood = Vec::new();
    for source in 1..=20 {
        for _ in 0..30 {
            let mut stream = connect_from(source, daemon.address);
            let head = format!("POST /init HTTP/1.1\r\nHost: x\r\nX: {}", "x".repeat(40_000));
            // It may have been closed for another one already.
            drop(stream.write_all(head.as_bytes()));
            flood.push(stream);
        }
    }
    let open = || flood.iter().filter(|stream| !is_closed(stream)).count();
    until("few of them are open", || open() <= 64);
    let used = daemon.resident_kib() - before;
    assert!(used < 12 << 10, "{used} KiB");
    // Meanwhile the server comes through.
    let daemon = daemon.claimed_with(serde_json::json!({}));
    assert_eq!(daemon.get("/envs").status, 200);
}

#[test]
fn a_stranger_takes_the_place_of_its_own_connections_only() {
    let daemon = TestDaemon::start();
    // Not the address that the claim came from: that one is trusted.
    let mut neighbour = connect_from(1, daemon.address);
    let flood: Vec<_> = (0..100).map(|_| connect_from(2, daemon.address)).collect();
    until("the flood is down to its share", || {
        flood.iter().filter(|stream| !is_closed(stream)).count() <= 8
    });
    assert!(!is_closed(&neighbour));
    // Who shows the token is no stranger any more, nor is anybody from there.
    neighbour.set_nonblocking(false).expect("a socket has it");
    neighbour.set_read_timeout(Some(Duration::from_secs(10))).expect("a socket has it");
    write!(neighbour, "GET /envs HTTP/1.1\r\nHost: x\r\nX-Access-Token: {TOKEN}\r\n\r\n")
        .expect("sent");
    let mut answer = [0; 12];
    neighbour.read_exact(&mut answer).expect("an answer");
    assert_eq!(&answer, b"HTTP/1.1 200");
    let trusted: Vec<_> = (0..100).map(|_| connect_from(1, daemon.address)).collect();
    assert_eq!(daemon.get("/envs").status, 200);
    assert!(!trusted.iter().any(is_closed));
}

#[test]
fn a_stranger_that_says_nothing_is_not_waited_for() {
    let daemon = TestDaemon::start_unclaimed();
    let silent = connect_from(1, daemon.address);
    let mut slow = connect_from(2, daemon.address);
    write!(slow, "GET /health HT").expect("sent");
    until("both are closed", || is_closed(&silent) && is_closed(&slow));
    assert_eq!(daemon.get("/health").status, 204);
}
