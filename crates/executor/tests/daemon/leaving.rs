//! Clients that leave, or close their side, before they have their answer (executor 2.7).

use std::io::Read as _;
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd as _;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustix::net::sockopt::set_socket_linger;
use serde_json::json;

use super::support::{Answer, Daemon, basic, envelope, shell, until};

const START: &str = "/process.Process/Start";
const LIST: &str = "/process.Process/List";
const JSON: &[(&str, &str)] = &[("Content-Type", "application/json")];

/// Many, because what is pinned here are races.
const CLIENTS: usize = 50;

/// How a client leaves: with what it was sent unread or not, its system says FIN or RST.
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
    let daemon = Daemon::start();
    let sockets = || daemon.open_files("socket:");
    let before = sockets();
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
    until("no connection is left", || sockets() == before);
}

// Nobody told these clients that it was not done.
#[test]
fn a_request_that_arrived_is_carried_out_though_its_client_has_left() {
    let daemon = Daemon::start();
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
    let daemon = Daemon::start();
    let large = daemon.path("large");
    std::fs::write(&large, vec![b'x'; 8 << 20]).expect("a file");
    for _ in 0..CLIENTS {
        let mut list = daemon.send("POST", LIST, JSON, b"{}");
        list.shutdown(Shutdown::Write).expect("it is open");
        assert_eq!(Answer::read(&mut list).text(), "{}");
    }
    let mut download = daemon.send("GET", &format!("/files?path={large}"), &[], b"");
    download.shutdown(Shutdown::Write).expect("it is open");
    assert_eq!(Answer::read(&mut download).body.len(), 8 << 20);
    let mut silent = daemon.connect();
    silent.shutdown(Shutdown::Write).expect("it is open");
    assert_eq!(silent.read(&mut [0]).expect("the end comes"), 0);
}
