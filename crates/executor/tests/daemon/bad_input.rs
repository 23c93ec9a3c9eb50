//! What clients should not send: the contract's code, and nothing left running.

use std::io::Write as _;
use std::net::Shutdown;

use serde_json::{Value, json};

use super::support::{DaemonAnswer, TOKEN_LINE, TestDaemon, basic, envelope, shell};

const START: &str = "/process.Process/Start";
const LIST: &str = "/process.Process/List";
const STREAM: (&str, &str) = ("Content-Type", "application/connect+json");

fn nothing_runs(daemon: &TestDaemon) {
    assert_eq!(daemon.unary(LIST, &json!({})).text(), "{}");
}

/// The code that ends a stream without messages.
fn code(answer: &DaemonAnswer) -> Value {
    assert_eq!(answer.status, 200, "{}", answer.head);
    assert_eq!(answer.body[0], 2, "{:?}", String::from_utf8_lossy(&answer.body));
    let end: Value = serde_json::from_slice(&answer.body[5..]).expect("JSON");
    end["error"]["code"].clone()
}

// executor 2.2 and 2.3
#[test]
fn envelopes_that_are_none_start_nothing() {
    let daemon = TestDaemon::start();
    let whole = envelope(shell("sleep 30").to_string().as_bytes());
    let two = [&whole[..], &whole].concat();
    let compressed = [&[1][..], &whole[1..]].concat();
    for (body, expected) in [
        (&b""[..], "unimplemented"),
        (&whole[..whole.len() - 1], "invalid_argument"),
        (&whole[..3], "invalid_argument"),
        (b"\0\xff\xff\xff\xff{}", "invalid_argument"),
        (b"\0\0\0\0\x01{", "invalid_argument"),
        (b"\0\0\0\0\x02[]", "invalid_argument"),
        (&two, "unimplemented"),
        (&compressed, "invalid_argument"),
        (b"\x02\0\0\0\x02{}", "unimplemented"),
    ] {
        assert_eq!(code(&daemon.call("POST", START, &[STREAM], body)), expected, "{body:?}");
    }
    let proto = [("Content-Type", "application/connect+proto")];
    let answer = daemon.call("POST", START, &proto, b"\0\0\0\0\x03\x0a\xff\x01");
    assert_eq!(code(&answer), "invalid_argument");
    nothing_runs(&daemon);
}

// executor 2.1
#[test]
fn other_content_types_are_not_served() {
    let daemon = TestDaemon::start();
    let body = envelope(shell("sleep 30").to_string().as_bytes());
    for kind in ["application/json", "application/grpc", "text/plain", ""] {
        let answer = daemon.call("POST", START, &[("Content-Type", kind)], &body);
        assert_eq!((answer.status, answer.body.len()), (415, 0), "{kind}");
        assert!(answer.header("accept-post").unwrap().contains("application/connect+json"));
    }
    assert_eq!(daemon.call("POST", LIST, &[STREAM], &envelope(b"{}")).status, 415);
    nothing_runs(&daemon);
}

// executor 3.1, 4.1 and 4.2
#[test]
fn requests_that_cannot_be_carried_out_start_nothing() {
    let daemon = TestDaemon::start();
    let error = |change: &dyn Fn(&mut Value)| {
        let mut request = shell("sleep 30");
        change(&mut request);
        daemon.stream(START, &request, &[]).error()
    };
    let long = "x".repeat(5000);
    for cwd in [&*format!("/{long}"), &long, &"/x".repeat(2500), "/a\0b", "~nobody"] {
        let error = error(&|request| request["process"]["cwd"] = json!(cwd));
        assert_eq!(error["code"], "invalid_argument", "{error}");
    }
    for envs in [json!({"A=B": "x"}), json!({"": "x"}), json!({"A": "x\0y"})] {
        let error = error(&|request| request["process"]["envs"] = envs.clone());
        assert_eq!(error["code"], "invalid_argument", "{error}");
    }
    let nul = error(&|request| request["process"]["args"] = json!(["a\0b"]));
    assert_eq!(nul["code"], "invalid_argument");
    let stranger = basic("no-such-user");
    let stranger = [("Authorization", stranger.as_str())];
    for pty in [Value::Null, json!({})] {
        let mut request = shell("sleep 30");
        request["pty"] = pty;
        assert_eq!(daemon.stream(START, &request, &stranger).error()["code"], "unauthenticated");
    }
    let mut over = shell("sleep 30");
    over["pty"] = json!({});
    let over = daemon.stream(START, &over, &[("Connect-Timeout-Ms", "0")]).error();
    assert_eq!(over["code"], "deadline_exceeded");
    nothing_runs(&daemon);
}

// executor 4.1: a command is no part of a request's form, however long.
#[test]
fn commands_that_cannot_be_executed_end_by_themselves() {
    let daemon = TestDaemon::start();
    for (process, exit) in [
        (json!({"cmd": format!("/{}", "x".repeat(5000))}), 126),
        (json!({"cmd": ""}), 127),
        (json!({"cmd": "/bin/echo", "args": ["x".repeat(1 << 20)]}), 126),
        (json!({}), 127),
    ] {
        for pty in [Value::Null, json!({})] {
            let request = json!({"process": process, "stdin": false, "pty": pty});
            let (_, _, end) = daemon.stream(START, &request, &[]).finish();
            assert_eq!(end["exitCode"], exit, "{end}");
        }
    }
    nothing_runs(&daemon);
}

// executor 4.6 and 4.7
#[test]
fn selectors_and_signals_that_mean_nothing() {
    let daemon = TestDaemon::start();
    let mut sleeper = daemon.start_command("exec sleep 30");
    let pid = sleeper.pid();
    for procedure in ["SendInput", "SendSignal", "Update", "CloseStdin"] {
        let call = |process: Value| {
            let request = json!({"process": process, "signal": 9, "input": {"stdin": ""}});
            let answer = daemon.unary(&format!("/process.Process/{procedure}"), &request);
            (answer.status, answer.json()["code"].clone())
        };
        for process in [json!({"pid": 999_999_999}), json!({"tag": "nobody"}), json!({"pid": 0})] {
            assert_eq!(call(process.clone()), (404, json!("not_found")), "{procedure} {process}");
        }
        assert_eq!(call(json!({})), (501, json!("unimplemented")), "{procedure}");
        assert_eq!(call(json!({"pid": -1})), (400, json!("invalid_argument")), "{procedure}");
    }
    for signal in [json!("SIGNAL_SIGINT"), json!(2), json!(0), json!(-9), json!("")] {
        let request = json!({"process": {"pid": pid}, "signal": signal});
        let answer = daemon.unary("/process.Process/SendSignal", &request);
        assert_eq!((answer.status, &answer.json()["code"]), (501, &json!("unimplemented")));
    }
    let end = json!({"process": {"pid": pid}, "signal": 15});
    assert_eq!(daemon.unary("/process.Process/SendSignal", &end).text(), "{}");
    assert_eq!(sleeper.remaining().2["status"], "signal: terminated");
    nothing_runs(&daemon);
}

// executor 2.7: a client that vanishes in the middle of its request has asked for nothing.
#[test]
fn half_a_request_starts_nothing() {
    let daemon = TestDaemon::start();
    let body = envelope(shell("sleep 30").to_string().as_bytes());
    let head = format!(
        "POST {START} HTTP/1.1\r\nHost: x\r\n{TOKEN_LINE}Content-Type: application/connect+json\r\n\
         Content-Length: {}\r\n\r\n",
        body.len()
    );
    let mut socket = daemon.connect();
    socket.write_all(&[head.as_bytes(), &body[..20]].concat()).unwrap();
    socket.shutdown(Shutdown::Both).unwrap();
    nothing_runs(&daemon);
    let (stdout, _, _) = daemon.run("echo still");
    assert_eq!(stdout, "still\n");
}

// Who keeps connections for later would lose its next request.
#[test]
fn an_answer_before_the_end_of_its_request_says_that_the_connection_closes() {
    let daemon = TestDaemon::start();
    daemon.show_no_token();
    for (target, status) in [
        ("/process.Process/List", 401),
        ("/files?path=/tmp/x", 401),
        ("/files/compose", 401),
        ("/nothing", 401),
    ] {
        for (announced, closes) in [(1_000_000, true), (0, false)] {
            let mut stream = daemon.connect();
            write!(
                stream,
                "POST {target} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n\
                 Content-Length: {announced}\r\n\r\n"
            )
            .unwrap();
            let answer = DaemonAnswer::read_head(&mut stream);
            assert_eq!(answer.status, status, "{target}");
            let close = answer.header("connection").as_deref() == Some("close");
            assert_eq!(close, closes, "{target} {announced}");
        }
    }
}

// A connection that is closed with unread bytes is reset, and then its client may never see the answer.
#[test]
fn a_client_that_sends_everything_first_gets_its_refusal() {
    let daemon = TestDaemon::start();
    let body = vec![b'x'; 8 << 20];
    let directory = format!("/files?path={}", daemon.path(""));
    for (target, status) in [
        ("/nothing", 404),
        ("/health", 405),
        ("/files/compose", 400),
        ("/files?path=/tmp/x&username=nobody-at-all", 401),
        (&*directory, 400),
        (START, 415),
        (LIST, 415),
    ] {
        let headers = [("Content-Type", "application/octet-stream")];
        let mut stream = daemon.send("POST", target, &headers, &body);
        assert_eq!(DaemonAnswer::read_head(&mut stream).status, status, "{target}");
    }
}
