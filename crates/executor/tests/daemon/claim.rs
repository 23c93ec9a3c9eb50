//! Section 7, and what a container answers before it is anybody's sandbox: nothing.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use sandyard_contract::daemon::{INIT_BODY_LIMIT, INIT_SIGNATURE_HEADER};
use serde_json::{Value, json};

use super::support::{CLAIMED_AT, DaemonAnswer, TOKEN, TestDaemon, shell};

const START: &str = "/process.Process/Start";

fn claim(time: &str, value: &str) -> Value {
    json!({"accessToken": TOKEN, "envVars": {"A": value}, "timestamp": time})
}

/// Waits until the other side has closed the connection, and returns what came before.
fn to_the_end(mut stream: TcpStream) -> String {
    let mut text = String::new();
    match stream.read_to_string(&mut text) {
        Ok(_) => text,
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => text,
        Err(error) => panic!("still open: {error}"),
    }
}

// The attack: a neighbour is root in a container that waits for its sandbox.
#[test]
fn nothing_but_the_claim_is_served_before_it() {
    let daemon = TestDaemon::start_unclaimed();
    daemon.show_no_token();
    let target = daemon.path("planted");
    for headers in [&[][..], &[("X-Access-Token", TOKEN)], &[("X-Access-Token", "")]] {
        assert_eq!(daemon.stream(START, &shell(&format!("touch {target}")), headers).status(), 503);
        for (method, path) in [
            ("GET", "/files?path=/etc/passwd"),
            ("POST", &*format!("/files?path={target}")),
            ("POST", "/files/compose"),
            ("GET", "/envs"),
            ("GET", "/metrics"),
            ("GET", "/init"),
            ("GET", "/sandyard/tunnel/22"),
            ("OPTIONS", START),
            ("POST", "/health"),
            ("GET", "//health"),
            ("GET", "/nothing"),
        ] {
            let kind = ("Content-Type", "application/octet-stream");
            let answer = daemon.call(method, path, &[&[kind], headers].concat(), b"x");
            assert_eq!(answer.status, 503, "{method} {path}");
        }
    }
    assert_eq!(daemon.get("/health").status, 204);
    assert!(!std::fs::exists(&target).expect("its directory is ours"));
    let daemon = daemon.claimed_with(json!({}));
    daemon.show_no_token();
    assert_eq!(daemon.get("/envs").status, 401);
}

#[test]
fn connections_from_before_the_claim_end_with_it() {
    let daemon = TestDaemon::start_unclaimed();
    let silent = daemon.connect();
    let mut asked = daemon.connect();
    write!(asked, "GET /envs HTTP/1.1\r\nHost: x\r\n\r\n").expect("sent");
    assert_eq!(DaemonAnswer::read_whole(&mut asked).status, 503);
    // A head that begins before the claim and would end after it, with the right token.
    let mut half = daemon.connect();
    write!(half, "GET /envs HTTP/1.1\r\nHost: x\r\nX-Access-").expect("sent");
    let daemon = daemon.claimed_with(json!({}));
    // The system may have closed it already.
    drop(write!(half, "Token: {TOKEN}\r\n\r\n"));
    for stream in [silent, asked, half] {
        assert_eq!(to_the_end(stream), "");
    }
    assert_eq!(daemon.get("/envs").status, 200);
}

#[test]
fn only_a_signed_claim_is_obeyed_and_only_once() {
    let daemon = TestDaemon::start_unclaimed();
    let unsigned = daemon.call("POST", "/init", &[], b"{}");
    assert_eq!(unsigned.status, 401);
    assert!(unsigned.header("x-envd-version").is_some());
    let body = claim(CLAIMED_AT, "new").to_string();
    let signed = daemon.signed(body.as_bytes());
    let headers = signed.each_ref().map(|(name, value)| (*name, &**value));
    let zeros = "00".repeat(64);
    let forged = [(INIT_SIGNATURE_HEADER, &*zeros), headers[1]];
    assert_eq!(daemon.call("POST", "/init", &forged, body.as_bytes()).status, 401);
    // A signature is for this very body.
    let other = body.replace("new", "old");
    assert_eq!(daemon.call("POST", "/init", &headers, other.as_bytes()).status, 401);
    assert_eq!(daemon.call("POST", "/init", &headers, format!("{body} ").as_bytes()).status, 401);
    assert_eq!(daemon.init(&json!({"accessToken": TOKEN})).status, 400, "no timestamp");
    assert_eq!(daemon.init(&json!({"timestamp": CLAIMED_AT})).status, 400, "no token");
    assert_eq!(daemon.get("/envs").status, 503, "nothing of all that was a claim");

    assert_eq!(daemon.init(&claim(CLAIMED_AT, "new")).status, 204);
    // Its answer may have been lost.
    assert_eq!(daemon.init(&claim(CLAIMED_AT, "new")).status, 204);
    for time in ["2026-01-01T00:00:01Z", "2025-01-01T00:00:00Z"] {
        assert_eq!(daemon.init(&claim(time, "another")).status, 409);
    }
    assert_eq!(daemon.get("/envs").json(), json!({"A": "new"}));
    assert_eq!(daemon.run("echo $A").0, "new\n");
}

// The attack: bodies are collected before their signature is looked at.
#[test]
fn no_body_is_read_before_its_signature() {
    let daemon = TestDaemon::start_unclaimed();
    for (head, status) in [
        (format!("Content-Length: {}", INIT_BODY_LIMIT + 1), 413),
        ("Content-Length: 60000".to_owned(), 401),
        ("Transfer-Encoding: chunked".to_owned(), 411),
    ] {
        let mut stream = daemon.connect();
        write!(stream, "POST /init HTTP/1.1\r\nHost: x\r\n{head}\r\n\r\n").expect("sent");
        // The answer comes though nothing of the body does.
        assert_eq!(DaemonAnswer::read_head(&mut stream).status, status, "{head}");
    }
    // What is signed for may be as long as the limit.
    let padding = "x".repeat(usize::try_from(INIT_BODY_LIMIT).expect("small") - 300);
    assert_eq!(daemon.init(&claim(CLAIMED_AT, &padding)).status, 204);
}

#[test]
fn credentials_come_once() {
    let daemon = TestDaemon::start();
    daemon.show_no_token();
    let token = ("X-Access-Token", TOKEN);
    for twice in [[token, token], [token, ("X-Access-Token", "another")]] {
        let answer = daemon.call("GET", "/envs", &twice, b"");
        assert_eq!((answer.status, &answer.json()["code"]), (400, &json!(400)));
        assert!(answer.text().contains("x-access-token"), "{}", answer.text());
    }
    let users = [token, ("Authorization", "Basic cm9vdDo="), ("Authorization", "Basic dXNlcjo=")];
    assert_eq!(daemon.call("GET", "/envs", &users, b"").status, 400);
}
