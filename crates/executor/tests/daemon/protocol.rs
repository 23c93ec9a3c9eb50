//! Sections 2, 3 and 7: transport, Connect, tokens, `/init`, tunnels.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;

use flate2::write::GzEncoder;
use sandyard_contract::daemon::CONTROL_TOKEN_HEADER;
use serde_json::json;

use super::support::{DaemonAnswer, TestDaemon, basic, envelope, find, shell};

const LIST: &str = "/process.Process/List";
const START: &str = "/process.Process/Start";

#[test]
fn routes_and_methods_that_are_not_there() {
    let daemon = TestDaemon::start();
    let health = daemon.get("/health");
    assert_eq!((health.status, health.body.len()), (204, 0));
    assert_eq!(health.header("cache-control").as_deref(), Some("no-store"));
    for target in ["/nothing", "/process.Process/Nothing", "/files/", "//health"] {
        let answer = daemon.get(target);
        assert_eq!((answer.status, answer.text().trim_end()), (404, "404 page not found"));
        assert!(answer.header("content-type").unwrap().starts_with("text/plain"));
    }
    let wrong_method = daemon.get(LIST);
    assert_eq!((wrong_method.status, wrong_method.body.len()), (405, 0));
    assert_eq!(wrong_method.header("allow").as_deref(), Some("POST"));
    let wrong_type = daemon.call("POST", LIST, &[("Content-Type", "text/plain")], b"{}");
    assert_eq!((wrong_type.status, wrong_type.body.len()), (415, 0));
    assert!(wrong_type.header("accept-post").unwrap().contains("application/json"));
    assert_eq!(daemon.call("HEAD", "/files?path=/etc/hosts", &[], b"").status, 405);
}

#[test]
fn unary_calls_mirror_the_codec_and_fail_as_json() {
    let daemon = TestDaemon::start();
    let list = daemon.unary(LIST, &json!({"unknown": 1}));
    assert_eq!((list.status, list.text()), (200, "{}"));
    assert_eq!(list.header("content-type").as_deref(), Some("application/json"));
    assert_eq!(list.header("content-encoding"), None);
    let binary = daemon.call("POST", LIST, &[("Content-Type", "application/proto")], b"");
    assert_eq!((binary.status, binary.body.len()), (200, 0));
    assert_eq!(binary.header("content-type").as_deref(), Some("application/proto"));
    let kind = ("Content-Type", "application/json");
    let malformed = daemon.call("POST", LIST, &[kind], b"{");
    assert_eq!((malformed.status, &malformed.json()["code"]), (400, &json!("invalid_argument")));
    let encoded = daemon.call("POST", LIST, &[kind, ("Content-Encoding", "identity")], b"{}");
    assert_eq!(encoded.status, 200);
    let unknown = daemon.call("POST", LIST, &[kind, ("Content-Encoding", "br")], b"{}");
    assert_eq!((unknown.status, &unknown.json()["code"]), (501, &json!("unimplemented")));
    for (timeout, status, code) in
        [("0", 504, "deadline_exceeded"), ("soon", 400, "invalid_argument")]
    {
        let answer = daemon.unary_with(LIST, &json!({}), &[("Connect-Timeout-Ms", timeout)]);
        assert_eq!((answer.status, &answer.json()["code"]), (status, &json!(code)));
    }
}

// executor 2.2: compressed requests are read, answers offer that, and are never compressed themselves.
#[test]
fn requests_may_be_compressed() {
    let gzip = |bytes: &[u8]| {
        let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    };
    let daemon = TestDaemon::start();
    let headers = [
        ("Content-Type", "application/json"),
        ("Content-Encoding", "gzip"),
        ("Accept-Encoding", "gzip"),
    ];
    let list = daemon.call("POST", LIST, &headers, &gzip(b"{}"));
    assert_eq!((list.status, list.text()), (200, "{}"));
    assert_eq!(list.header("accept-encoding").as_deref(), Some("gzip"));
    assert_eq!(list.header("content-encoding"), None);
    let headers =
        [("Content-Type", "application/connect+json"), ("Connect-Content-Encoding", "gzip")];
    let mut body = envelope(&gzip(shell("echo packed").to_string().as_bytes()));
    body[0] = 1;
    let start = daemon.call("POST", START, &headers, &body);
    assert_eq!(start.header("connect-accept-encoding").as_deref(), Some("gzip"));
    assert_eq!(start.header("connect-content-encoding"), None);
    assert!(find(&start.body, b"cGFja2VkCg==").is_some(), "{start:?}");
}

// executor 8: generated code of old refuses members that it does not know.
#[test]
fn legacy_clients_are_told_three_members_of_an_entry() {
    let daemon = TestDaemon::start();
    for (agent, is_legacy) in [("connect-python", true), ("connect-python/0.1", false)] {
        let ask = |procedure: &str, message| {
            daemon.unary_with(procedure, &message, &[("User-Agent", agent)])
        };
        let stat = ask("/filesystem.Filesystem/Stat", json!({"path": "/etc/hosts"}));
        let list = ask("/filesystem.Filesystem/ListDir", json!({"path": "/etc"}));
        for (answer, entry) in [(&stat, &stat.json()["entry"]), (&list, &list.json()["entries"][0])]
        {
            let mut names: Vec<&String> = entry.as_object().unwrap().keys().collect();
            names.sort();
            assert_eq!(names == ["name", "path", "type"], is_legacy, "{agent}: {names:?}");
            let marked = answer.header("x-e2b-legacy-sdk").as_deref() == Some("true");
            assert_eq!(marked, is_legacy, "{agent}");
        }
        assert_eq!(ask(LIST, json!({})).header("x-e2b-legacy-sdk"), None);
    }
}

// executor 7, 6.3: who a program is in, as variables that nobody can change, and as files.
#[test]
fn the_identity_is_in_the_environment_and_in_files() {
    let daemon = TestDaemon::start_unclaimed_within("mount -t tmpfs none /run");
    // A newer server may say more than this daemon knows.
    let daemon = daemon.claimed_with(json!({
        "addedLater": {"a": 1}, "sandboxID": "iabc", "templateID": "tabc", "envVars": {"E2B_SANDBOX": "no", "A": "1"},
    }));
    let known = [("E2B_SANDBOX", "true"), ("E2B_SANDBOX_ID", "iabc"), ("E2B_TEMPLATE_ID", "tabc")];
    let variables = daemon.get("/envs").json();
    assert_eq!(variables["A"], "1");
    for (name, value) in known {
        assert_eq!(variables[name], value);
        // In the daemon's own mounts.
        let file = format!("/proc/{}/root/run/e2b/.{name}", daemon.pid());
        assert_eq!(std::fs::read_to_string(file).unwrap(), value);
    }
}

#[test]
fn streams_have_the_exact_content_type_and_no_encoding() {
    let daemon = TestDaemon::start();
    let mut stream =
        daemon.stream(START, &shell("true"), &[("Accept-Encoding", "gzip, deflate, br")]);
    assert_eq!(stream.status(), 200);
    let head = stream.head.to_ascii_lowercase();
    assert!(head.contains("content-type: application/connect+json\r\n"), "{head}");
    assert!(!head.contains("\r\ncontent-encoding"), "{head}");
    assert!(stream.pid() > 0);
    let kind = ("Content-Type", "application/connect+json");
    let broken = daemon.call("POST", START, &[kind], &envelope(b"{}")[..4]);
    assert_eq!(broken.status, 200);
    assert!(find(&broken.body, b"\"invalid_argument\"").is_some());
}

#[test]
fn the_binary_codec_speaks_the_same_protocol() {
    use prost::Message as _;
    use sandyard_contract::rpc::process::process_event::Event;
    use sandyard_contract::rpc::process::{ProcessConfig, StartRequest, StartResponse};
    let daemon = TestDaemon::start();
    let config = ProcessConfig {
        cmd: "/bin/sh".into(),
        args: vec!["-c".into(), "exit 3".into()],
        ..ProcessConfig::default()
    };
    let request =
        StartRequest { process: Some(config), stdin: Some(false), ..StartRequest::default() };
    let kind = ("Content-Type", "application/connect+proto");
    let answer = daemon.call("POST", START, &[kind], &envelope(&request.encode_to_vec()));
    assert_eq!(answer.header("content-type").as_deref(), Some("application/connect+proto"));
    let mut rest = &answer.body[..];
    let mut events = Vec::new();
    while rest[0] == 0 {
        let length = u32::from_be_bytes(rest[1..5].try_into().unwrap()) as usize;
        let message = StartResponse::decode(&rest[5..5 + length]).unwrap();
        events.push(message.event.unwrap().event.unwrap());
        rest = &rest[5 + length..];
    }
    assert_eq!(rest, b"\x02\0\0\0\x02{}");
    assert!(matches!(events[0], Event::Start(_)), "{events:?}");
    let Some(Event::End(end)) = events.last() else { panic!("{events:?}") };
    assert_eq!((end.exit_code, end.exited), (3, true));
}

#[test]
fn preflights_need_no_token_and_answers_name_origins() {
    let daemon = TestDaemon::start();
    daemon.show_no_token();
    let answer = daemon.call(
        "OPTIONS",
        LIST,
        &[
            ("Origin", "https://a.b"),
            ("Access-Control-Request-Method", "POST"),
            ("Access-Control-Request-Headers", "content-type,x-access-token"),
        ],
        b"",
    );
    assert_eq!(answer.status, 204);
    let header = |name| answer.header(name).unwrap_or_default();
    assert_eq!(header("access-control-allow-origin"), "*");
    assert_eq!(header("access-control-allow-headers"), "content-type,x-access-token");
    assert_eq!(header("access-control-max-age"), "7200");
    let health = daemon.call("GET", "/health", &[("Origin", "https://a.b")], b"");
    assert_eq!(health.header("access-control-allow-origin").as_deref(), Some("*"));
    assert_eq!(
        health.header("access-control-expose-headers").unwrap(),
        "Grpc-Status, Grpc-Message, Grpc-Status-Details-Bin, Location, Cache-Control, \
         X-Content-Type-Options"
    );
    for method in ["HEAD", "GET", "POST", "PUT", "PATCH", "DELETE", "TRACE"] {
        let asked = [("Origin", "https://a.b"), ("Access-Control-Request-Method", method)];
        let answer = daemon.call("OPTIONS", LIST, &asked, b"");
        let allowed = answer.header("access-control-allow-methods").unwrap_or_default();
        assert_eq!(allowed.contains(method), method != "TRACE", "{method}: {allowed}");
    }
}

#[test]
fn a_token_covers_everything_but_the_open_routes() {
    let daemon = TestDaemon::start();
    daemon.show_no_token();
    for target in ["/metrics", "/envs", "/nothing", LIST] {
        let answer = daemon.get(target);
        assert_eq!((answer.status, &answer.json()["code"]), (401, &json!(401)), "{target}");
    }
    let stream = daemon.stream(START, &shell("true"), &[]);
    assert_eq!(stream.status(), 401);
    assert_eq!(daemon.get("/health").status, 204);
    let wrong = daemon.unary_with(LIST, &json!({}), &[("X-Access-Token", "tok2")]);
    assert_eq!(wrong.status, 401);
    let right = daemon.unary_with(LIST, &json!({}), &[("X-Access-Token", "tok")]);
    assert_eq!(right.status, 200);
    let unsigned = daemon.get("/files?path=/etc/hosts");
    assert_eq!(unsigned.status, 401);
    assert_eq!(unsigned.json()["message"], "missing signature query parameter");
}

#[test]
fn unknown_users_are_refused_in_the_form_of_the_call() {
    let daemon = TestDaemon::start();
    let nobody = basic("no-such-user");
    let authorization = [("Authorization", nobody.as_str())];
    let expected =
        json!({"code": "unauthenticated", "message": "invalid username: 'no-such-user'"});
    for target in ["/health", "/envs", "/files?path=/etc/hosts"] {
        let answer = daemon.call("GET", target, &authorization, b"");
        assert_eq!((answer.status, answer.json()), (401, expected.clone()), "{target}");
    }
    assert_eq!(daemon.stream(START, &shell("true"), &authorization).error(), expected);
    let bearer = [("Authorization", "Bearer x")];
    assert_eq!(daemon.call("GET", "/health", &bearer, b"").status, 204);
    let daemon = TestDaemon::start_with(json!({"defaultUser": "no-such-user"}));
    assert_eq!(daemon.stream(START, &shell("true"), &[]).error()["code"], "unauthenticated");
}

#[test]
fn tunnels_lead_to_ports_and_need_the_control_token() {
    let daemon = TestDaemon::start_with(json!({"controlToken": "ctl"}));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let target = format!("/sandyard/tunnel/{port}");
    for wrong in [vec![], vec![(CONTROL_TOKEN_HEADER, "another")]] {
        assert_eq!(daemon.call("GET", &target, &wrong, b"").status, 401);
    }
    let echo = std::thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        let mut text = String::new();
        // To the end: a half-close must come through.
        socket.read_to_string(&mut text).unwrap();
        socket.write_all(text.to_uppercase().as_bytes()).unwrap();
    });
    let mut socket = daemon.connect();
    let head = format!(
        "GET {target} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n\
         Upgrade: sandyard-tunnel\r\n{CONTROL_TOKEN_HEADER}: ctl\r\n\r\n"
    );
    socket.write_all(head.as_bytes()).unwrap();
    socket.write_all(b"hello").unwrap();
    socket.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).unwrap();
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
    assert!(answer.ends_with("\r\n\r\nHELLO"), "{answer}");
    echo.join().unwrap();
    // The listener is gone with its thread.
    let mut closed = daemon.connect();
    closed
        .write_all(head.replace("Upgrade\r\nUpgrade", "Upgrade, close\r\nUpgrade").as_bytes())
        .unwrap();
    assert_eq!(DaemonAnswer::read(&mut closed).status, 503);
}

/// An address that was another sandbox's a moment ago: its token, which is its own, opens nothing here.
#[test]
fn a_tunnel_for_another_sandbox_is_refused_before_anything_is_dialled() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let target = format!("/sandyard/tunnel/{}", listener.local_addr().unwrap().port());
    let mine = (CONTROL_TOKEN_HEADER, "token of the first");
    let upgrade = [("Upgrade", "sandyard-tunnel"), mine];
    for settings in [json!({"controlToken": "token of the second"}), json!({})] {
        let second = TestDaemon::start_with(settings);
        let answer = second.call("GET", &target, &upgrade, b"");
        assert_eq!(answer.status, 401, "{}", answer.text());
    }
    let unclaimed = TestDaemon::start_unclaimed();
    assert_eq!(unclaimed.call("GET", &target, &upgrade, b"").status, 503);
    let dialled = listener.accept().map_err(|error| error.kind());
    assert_eq!(dialled.err(), Some(std::io::ErrorKind::WouldBlock));
}

#[test]
fn metrics_have_every_field() {
    let daemon = TestDaemon::start();
    for target in ["/metrics", "/envs"] {
        assert_eq!(daemon.get(target).header("cache-control").as_deref(), Some("no-store"));
    }
    let metrics = daemon.get("/metrics").json();
    for field in [
        "ts",
        "cpu_count",
        "cpu_used_pct",
        "mem_total",
        "mem_used",
        "mem_cache",
        "mem_total_mib",
        "mem_used_mib",
        "disk_total",
        "disk_used",
    ] {
        assert!(metrics[field].is_number(), "{field} in {metrics}");
    }
}
