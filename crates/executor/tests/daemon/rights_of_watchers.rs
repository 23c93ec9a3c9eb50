//! Section 3.1: what a watcher sees has the rights of its user.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use serde_json::{Value, json};

use super::rights::{TestFolder, both, call, upload};
use super::support::TestDaemon;

/// The events that a watcher collected, as short texts.
fn told(daemon: &TestDaemon, watcher: &Value) -> Vec<String> {
    let answer = call(daemon, "root", "GetWatcherEvents", watcher);
    assert_eq!(answer.status, 200, "{}", answer.text());
    let events = answer.json()["events"].as_array().cloned().unwrap_or_default();
    let short = |event: &Value| {
        let kind = event["type"]
            .as_str()
            .expect("it is there, and ours")
            .trim_start_matches("EVENT_TYPE_");
        format!("{kind} {}", event["name"].as_str().expect("it is there, and ours"))
    };
    events.iter().map(short).collect()
}

fn watch(daemon: &TestDaemon, path: &str) -> Value {
    let request = json!({"path": path, "recursive": true, "includeEntry": true});
    let created = call(daemon, "nobody", "CreateWatcher", &request);
    assert_eq!(created.status, 200, "{}", created.text());
    json!({"watcherId": created.json()["watcherId"]})
}

#[test]
fn a_users_work_is_seen_as_ever() {
    // executor 5.4, the table; 11.26, 11.27
    for (kind, daemon) in both() {
        let folder = TestFolder::new(&daemon);
        // With sudo also where the user itself may not write.
        let root = if kind == "with sudo" { &folder.closed } else { &folder.home };
        let watcher = watch(&daemon, root);
        let all = |kinds: &[&str], name: &str| -> Vec<String> {
            kinds.iter().map(|kind| format!("{kind} {name}")).collect()
        };
        let at = |name: &str| format!("{root}/{name}");
        for round in 0..20 {
            let name = format!("f{round}");
            assert_eq!(upload(&daemon, "nobody", &at(&name), b"content").status, 200);
            assert_eq!(
                told(&daemon, &watcher),
                all(&["CREATE", "CHMOD", "WRITE"], &name),
                "{kind}"
            );
        }
        let made = call(&daemon, "nobody", "MakeDir", &json!({"path": at("child")}));
        assert_eq!(made.status, 200);
        assert_eq!(told(&daemon, &watcher), all(&["CREATE", "CHMOD"], "child"), "{kind}");
        if kind == "with sudo" {
            continue;
        }
        assert_eq!(upload(&daemon, "nobody", &at("f0"), b"other").status, 200);
        assert_eq!(told(&daemon, &watcher), all(&["CHMOD", "WRITE", "WRITE"], "f0"));
        assert_eq!(upload(&daemon, "nobody", &at("child/a/b/file"), b"x").status, 200);
        let events = told(&daemon, &watcher);
        let file = all(&["CREATE", "CHMOD", "WRITE"], "child/a/b/file");
        assert_eq!(events[events.len() - 3..], file);
    }
}

#[test]
fn a_watcher_sees_later_too_only_what_its_user_may() {
    for (kind, daemon) in both() {
        let folder = TestFolder::new(&daemon);
        let watcher = watch(&daemon, &folder.home);
        // A directory that nobody but root may look into, with a file in it.
        let secret = daemon.path("moved");
        fs::create_dir_all(format!("{secret}/below")).unwrap();
        fs::write(format!("{secret}/below/file"), "").unwrap();
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o700)).unwrap();
        fs::rename(&secret, folder.at("moved")).unwrap();
        assert_eq!(told(&daemon, &watcher), ["CREATE moved"], "{kind}");
        fs::write(folder.at("moved/below/other"), "").unwrap();
        // Whoever works there.
        assert_eq!(upload(&daemon, "root", &folder.at("moved/by-root"), b"x").status, 200);
        assert_eq!(told(&daemon, &watcher), [""; 0], "{kind}");
    }
}
