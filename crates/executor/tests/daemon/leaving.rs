//! Clients that leave, or close their side, before they have their answer (executor 2.7).

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd as _;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustix::net::sockopt::set_socket_linger;
use serde_json::json;

use super::support::{DaemonAnswer, TOKEN_LINE, TestDaemon, basic, envelope, shell, until};

const START: &str = "/process.Process/Start";
const LIST: &str = "/process.Process/List";
const JSON: &[(&str, &str)] = &[("Content-Type", "application/json")];

/// Many, because what is pinned here are races.
const CLIENTS: usize = 50;

/// How a client leaves: its system says FIN, or RST as for one that is killed with something unread.
fn leave(socket: TcpStream, abruptly: bool) {
    if abruptly {
        set_socket_linger(socket.as_fd(), Some(Duration::ZERO)).expect("a socket can linger");
    }
    drop(socket);
}

// "Cancel before the start event was sent: the process still starts", also if the user has to be looked up
// first; and "disconnect must be noticed while idle".
#[test]
fn a_process_starts_though_its_client_has_left() {
    let mut daemon = TestDaemon::start();
    let sockets = || daemon.tcp_sockets();
    // The connection of the claim may still be closing.
    until("only the listener is left", || sockets() == 1);
    let mut body = shell("exec sleep 60");
    body["stdin"] = json!(false);
    let body = envelope(body.to_string().as_bytes());
    let user = basic("root");
    let mut expected = 0;
    for abruptly in [false, true] {
        for user in [None, Some(("Authorization", &*user))] {
            for _ in 0..CLIENTS {
                let mut headers = vec![("Content-Type", "application/connect+json")];
                headers.extend(user);
                leave(daemon.send("POST", START, &headers, &body), abruptly);
            }
            expected += CLIENTS;
            let running =
                || daemon.unary(LIST, &json!({})).json()["processes"].as_array().map(Vec::len);
            until("all that were asked for run", || running() == Some(expected));
        }
    }
    until("no connection is left", || sockets() == 1);
    // Its end is its processes'.
    daemon.terminate();
    assert!(daemon.wait().success());
}

// Also after a stream on the same connection, which would have ended with its client.
#[test]
fn an_upload_on_a_kept_connection_is_carried_out_too() {
    let daemon = TestDaemon::start();
    for number in 0..CLIENTS {
        let mut socket = daemon.connect();
        let body = envelope(shell("true").to_string().as_bytes());
        let head = |target: &str, kind: &str, length| {
            format!(
                "POST {target} HTTP/1.1\r\nHost: x\r\n{TOKEN_LINE}Content-Type: {kind}\r\nContent-Length: {length}\r\n\r\n"
            )
        };
        let start = head(START, "application/connect+json", body.len());
        socket.write_all(&[start.as_bytes(), &body].concat()).expect("it is sent");
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n0\r\n\r\n") {
            let mut buffer = [0; 4096];
            let length = socket.read(&mut buffer).expect("it comes in time");
            assert_ne!(length, 0, "the connection is not kept");
            answer.extend_from_slice(&buffer[..length]);
        }
        let path = daemon.path(&number.to_string());
        let upload = head(&format!("/files?path={path}"), "application/octet-stream", 4);
        socket.write_all(&[upload.as_bytes(), b"kept"].concat()).expect("it is sent");
        drop(socket);
        until("the upload is there", || {
            std::fs::read(&path).is_ok_and(|content| content == b"kept")
        });
    }
}

// Nobody told these clients that it was not done.
#[test]
fn a_request_that_arrived_is_carried_out_though_its_client_has_left() {
    let daemon = TestDaemon::start();
    for abruptly in [false, true] {
        for number in 0..CLIENTS {
            let path = daemon.path(&format!("{abruptly}-{number}"));
            let target = format!("/files?path={path}");
            let headers = [("Content-Type", "application/octet-stream")];
            leave(daemon.send("POST", &target, &headers, b"kept"), abruptly);
            until("the upload is there", || {
                std::fs::read(&path).is_ok_and(|content| content == b"kept")
            });
        }
    }
    let mut cat = daemon.stream(START, &shell("cat"), &[]);
    let pid = cat.pid();
    for abruptly in [false, true] {
        for number in 0..CLIENTS {
            let line = format!("{abruptly} {number}\n");
            let input =
                json!({"process": {"pid": pid}, "input": {"stdin": STANDARD.encode(&line)}});
            let input = input.to_string();
            leave(
                daemon.send("POST", "/process.Process/SendInput", JSON, input.as_bytes()),
                abruptly,
            );
            cat.until(&line);
        }
    }
}

#[test]
fn a_client_that_closes_its_side_gets_its_answer() {
    let daemon = TestDaemon::start();
    let large = daemon.path("large");
    std::fs::write(&large, vec![b'x'; 8 << 20]).expect("a file");
    for _ in 0..CLIENTS {
        let mut list = daemon.send("POST", LIST, JSON, b"{}");
        list.shutdown(Shutdown::Write).expect("it is open");
        assert_eq!(DaemonAnswer::read(&mut list).text(), "{}");
    }
    let mut download = daemon.send("GET", &format!("/files?path={large}"), &[], b"");
    download.shutdown(Shutdown::Write).expect("it is open");
    assert_eq!(DaemonAnswer::read(&mut download).body.len(), 8 << 20);
    let mut silent = daemon.connect();
    silent.shutdown(Shutdown::Write).expect("it is open");
    assert_eq!(silent.read(&mut [0]).expect("the end comes"), 0);
}
