//! Section 6: files that are composed of others.

use std::os::unix::fs::MetadataExt as _;

use serde_json::json;

use super::files::noise;
use super::support::TestDaemon;

#[test]
fn files_are_composed_and_their_sources_go() {
    let daemon = TestDaemon::start();
    let (one, two, all) = (daemon.path("1"), daemon.path("2"), daemon.path("n/all"));
    std::fs::write(&one, "a").unwrap();
    std::fs::write(&two, "b").unwrap();
    let kind = [("Content-Type", "application/json")];
    let compose = |body: serde_json::Value| {
        daemon.call("POST", "/files/compose", &kind, body.to_string().as_bytes())
    };
    let missing = compose(json!({"source_paths": [one, "/none"], "destination": all}));
    assert_eq!(missing.status, 404);
    assert_eq!(compose(json!({"source_paths": [], "destination": all})).status, 400);
    assert_eq!(compose(json!({"source_paths": [one], "destination": one})).status, 400);
    let answer = compose(json!({"source_paths": [one, two], "destination": all}));
    assert_eq!(answer.json(), json!({"name": "all", "path": all, "type": "file"}));
    assert_eq!(std::fs::read(&all).unwrap(), b"ab");
    assert!(!std::path::Path::new(&one).exists());
}

#[test]
fn composing_fails_without_a_trace() {
    // executor 6.6
    let daemon = TestDaemon::start();
    let kind = [("Content-Type", "application/json")];
    let send = |body: &str| daemon.call("POST", "/files/compose", &kind, body.as_bytes());
    let compose = |sources: &[&str], destination: &str, username: &str| {
        let body =
            json!({"source_paths": sources, "destination": destination, "username": username});
        send(&body.to_string()).status
    };
    let (one, all) = (daemon.path("1"), daemon.path("all"));
    std::fs::write(&one, "a").unwrap();
    std::fs::write(&all, "before").unwrap();
    assert_eq!(send("{").status, 400);
    assert_eq!(send("{}").status, 400);
    assert_eq!(compose(&[&one], "", "root"), 400);
    assert_eq!(compose(&[&one, "/tmp"], &all, "root"), 400);
    assert_eq!(compose(&[&one, &all], &all, "root"), 400);
    assert_eq!(compose(&[&one, "/none"], &all, "root"), 404);
    assert_eq!(compose(&[&one], &all, "no-such-user"), 401);
    assert_eq!(compose(&[&one], &format!("{one}/x"), "root"), 500);
    assert_eq!(std::fs::read(&all).unwrap(), b"before");
    assert_eq!(compose(&[&one], &all, "nobody"), 200);
    assert_eq!(std::fs::read(&all).unwrap(), b"a");
    assert_ne!(std::fs::metadata(&all).unwrap().uid(), 0);
    let left: Vec<_> =
        std::fs::read_dir(daemon.path("")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["all"]);
    let full = TestDaemon::start_within("mount -t tmpfs -o size=1m none /mnt");
    let large = daemon.path("large");
    std::fs::write(&large, noise(2 << 20)).unwrap();
    let body = json!({"source_paths": [large], "destination": "/mnt/all"}).to_string();
    assert_eq!(full.call("POST", "/files/compose", &kind, body.as_bytes()).status, 507);
    assert!(std::fs::exists(&large).unwrap());
    assert_eq!(full.get("/files?path=/mnt/all").status, 404);
    let listed = full.unary("/filesystem.Filesystem/ListDir", &json!({"path": "/mnt"}));
    assert_eq!(listed.text(), "{}");
}
