//! Section 5.4: watchers that are streams.

use std::fs;

use serde_json::{Value, json};

use super::support::{RpcStream, TestDaemon, envelope, find, until};
use super::watch::{call, descriptors, short, upload};

pub(super) fn watch_stream(
    daemon: &TestDaemon,
    request: &Value,
    headers: &[(&str, &str)],
) -> RpcStream {
    let mut stream = daemon.stream("/filesystem.Filesystem/WatchDir", request, headers);
    // executor 2.2, 5.4: the first message, flushed alone.
    assert_eq!(stream.next(), (0, json!({"start": {}})));
    stream
}

fn next_event(stream: &mut RpcStream) -> Value {
    let (flags, message) = stream.next();
    assert_eq!(flags, 0, "{message}");
    message["filesystem"].clone()
}

#[test]
fn a_stream_tells_one_event_a_message_and_is_kept_alive() {
    // executor 2.6, 5.4
    let daemon = TestDaemon::start();
    let root = daemon.path("w");
    fs::create_dir(&root).unwrap();
    let mut stream =
        watch_stream(&daemon, &json!({"path": root}), &[("Keepalive-Ping-Interval", "1")]);
    assert!(stream.head.contains("application/connect+json"), "{}", stream.head);
    upload(&daemon, &format!("{root}/f"), &[], b"x");
    let told: Vec<String> = (0..3).map(|_| short(&next_event(&mut stream))).collect();
    assert_eq!(told, ["CREATE f", "CHMOD f", "WRITE f"]);
    assert_eq!(stream.next(), (0, json!({"keepalive": {}})));
    fs::remove_file(format!("{root}/f")).unwrap();
    assert_eq!(short(&next_event(&mut stream)), "REMOVE f");
    assert_eq!(descriptors(&daemon), 1);
    // executor 2.7: torn down with its client.
    drop(stream);
    until("the watcher is torn down", || descriptors(&daemon) == 0);
}

#[test]
fn a_stream_ends_at_its_deadline() {
    // executor 2.5
    let daemon = TestDaemon::start();
    let root = daemon.path("w");
    fs::create_dir(&root).unwrap();
    let mut stream =
        watch_stream(&daemon, &json!({"path": root}), &[("Connect-Timeout-Ms", "300")]);
    let (flags, end) = stream.next();
    assert_eq!((flags, &end["error"]["code"]), (2, &json!("deadline_exceeded")));
    until("the watcher is torn down", || descriptors(&daemon) == 0);
}

#[test]
fn the_binary_codec_watches_too() {
    use prost::Message as _;
    use sandyard_contract::rpc::filesystem::{
        CreateWatcherRequest, CreateWatcherResponse, EventType, GetWatcherEventsRequest,
        GetWatcherEventsResponse, WatchDirRequest,
    };
    let daemon = TestDaemon::start();
    let root = daemon.path("w");
    fs::create_dir(&root).unwrap();
    let proto = ("Content-Type", "application/proto");
    let call = |method: &str, body: &[u8]| {
        daemon.call("POST", &format!("/filesystem.Filesystem/{method}"), &[proto], body).body
    };
    let request = CreateWatcherRequest { path: root.clone(), ..CreateWatcherRequest::default() };
    let created = call("CreateWatcher", &request.encode_to_vec());
    let watcher_id = CreateWatcherResponse::decode(&created[..]).unwrap().watcher_id;
    fs::write(format!("{root}/f"), "x").unwrap();
    let events = call("GetWatcherEvents", &GetWatcherEventsRequest { watcher_id }.encode_to_vec());
    let events = GetWatcherEventsResponse::decode(&events[..]).unwrap().events;
    let kinds: Vec<i32> = events.iter().map(|event| event.r#type).collect();
    assert_eq!(kinds, [EventType::Create as i32, EventType::Write as i32]);
    let missing = WatchDirRequest { path: "/none".into(), ..WatchDirRequest::default() };
    let kind = ("Content-Type", "application/connect+proto");
    let target = "/filesystem.Filesystem/WatchDir";
    let refused = daemon.call("POST", target, &[kind], &envelope(&missing.encode_to_vec()));
    assert!(find(&refused.body, b"\"not_found\"").is_some());
}

#[test]
fn a_stream_keeps_no_event_back() {
    // Requests that collect for a stream must wake it. Nothing else happens here that could.
    let daemon = TestDaemon::start();
    let root = daemon.path("w");
    fs::create_dir(&root).unwrap();
    let flat = watch_stream(&daemon, &json!({"path": root}), &[]);
    let deep = watch_stream(&daemon, &json!({"path": root, "recursive": true}), &[]);
    let mut streams = [flat, deep];
    let mut told = |event: &str| {
        for stream in &mut streams {
            while short(&next_event(stream)) != event {}
        }
    };
    for number in 0..1000 {
        let made = call(&daemon, "MakeDir", &json!({"path": format!("{root}/d{number}")}));
        assert_eq!(made.status, 200, "{}", made.text());
        told(&format!("CREATE d{number}"));
    }
    for number in 0..100 {
        upload(&daemon, &format!("{root}/f{number}"), &[], b"");
        told(&format!("CREATE f{number}"));
        let (source, destination) = (format!("{root}/d{number}"), format!("{root}/m{number}"));
        let moved = call(&daemon, "Move", &json!({"source": source, "destination": destination}));
        assert_eq!(moved.status, 200, "{}", moved.text());
        told(&format!("CREATE m{number}"));
    }
}
