//! Section 5: the filesystem service.

use serde_json::{Value, json};

use super::support::{Answer, Daemon, basic};

fn call(daemon: &Daemon, method: &str, request: Value) -> Answer {
    daemon.unary(&format!("/filesystem.Filesystem/{method}"), &request)
}

#[track_caller]
fn refused(answer: &Answer, status: u16, code: &str) {
    assert_eq!((answer.status, &answer.json()["code"]), (status, &json!(code)));
}

#[test]
fn entries_are_described() {
    let daemon = Daemon::start();
    let path = daemon.path("a.txt");
    std::fs::write(&path, "12345").unwrap();
    let entry = call(&daemon, "Stat", json!({"path": path})).json()["entry"].clone();
    assert_eq!(entry["name"], "a.txt");
    assert_eq!(entry["path"], path);
    assert_eq!(entry["type"], "FILE_TYPE_FILE");
    assert_eq!(entry["size"], "5");
    assert_eq!(entry["mode"], 0o644);
    assert_eq!(entry["permissions"], "-rw-r--r--");
    assert_eq!((&entry["owner"], &entry["group"]), (&json!("root"), &json!("root")));
    assert!(entry["modifiedTime"].as_str().unwrap().ends_with('Z'), "{entry}");
    assert_eq!(entry.get("symlinkTarget"), None);
    refused(&call(&daemon, "Stat", json!({"path": daemon.path("none")})), 404, "not_found");
    refused(&call(&daemon, "Stat", json!({"path": format!("{path}/x")})), 500, "internal");
    refused(&call(&daemon, "Stat", json!({"path": "~bob/x"})), 400, "invalid_argument");
}

#[test]
fn directories_are_made_with_their_parents_for_the_user() {
    let daemon = Daemon::start();
    let path = daemon.path("x/y/z");
    let nobody = basic("nobody");
    let make = |path: &str| {
        let headers = [("Authorization", nobody.as_str())];
        let request = json!({"path": path});
        daemon.unary_with("/filesystem.Filesystem/MakeDir", &request, &headers)
    };
    let entry = make(&path).json()["entry"].clone();
    assert_eq!((&entry["owner"], &entry["permissions"]), (&json!("nobody"), &json!("drwxr-xr-x")));
    let parent = call(&daemon, "Stat", json!({"path": daemon.path("x")})).json();
    assert_eq!(parent["entry"]["owner"], "nobody");
    refused(&make(&path), 409, "already_exists");
    std::fs::write(daemon.path("file"), "").unwrap();
    refused(&make(&daemon.path("file")), 400, "invalid_argument");
    refused(&make(&daemon.path("file/x")), 500, "internal");
}

#[test]
fn listings_are_depth_first_and_sorted() {
    let daemon = Daemon::start();
    let root = daemon.path("tree");
    std::fs::create_dir_all(format!("{root}/subdir1/subdir1_1")).unwrap();
    std::fs::create_dir_all(format!("{root}/subdir2/subdir2_1")).unwrap();
    std::fs::write(format!("{root}/file1.txt"), "").unwrap();
    let paths = |depth: u32| -> Vec<String> {
        let listed = call(&daemon, "ListDir", json!({"path": root, "depth": depth})).json();
        let path = |entry: &Value| entry["path"].as_str().unwrap()[root.len() + 1..].to_owned();
        listed["entries"].as_array().unwrap().iter().map(path).collect()
    };
    let one = ["file1.txt", "subdir1", "subdir2"];
    assert_eq!(paths(0), one);
    assert_eq!(paths(1), one);
    let two = ["file1.txt", "subdir1", "subdir1/subdir1_1", "subdir2", "subdir2/subdir2_1"];
    assert_eq!(paths(2), two);
    std::fs::create_dir(daemon.path("empty")).unwrap();
    assert_eq!(call(&daemon, "ListDir", json!({"path": daemon.path("empty")})).text(), "{}");
    refused(&call(&daemon, "ListDir", json!({"path": daemon.path("none")})), 404, "not_found");
    let file = json!({"path": format!("{root}/file1.txt")});
    refused(&call(&daemon, "ListDir", file), 400, "invalid_argument");
    std::os::unix::fs::symlink("loop", daemon.path("loop")).unwrap();
    let looped = call(&daemon, "ListDir", json!({"path": daemon.path("loop")}));
    refused(&looped, 400, "failed_precondition");
}

#[test]
fn moves_and_removals() {
    let daemon = Daemon::start();
    let (from, to) = (daemon.path("from"), daemon.path("new/dir/to"));
    std::fs::write(&from, "1").unwrap();
    let moved = call(&daemon, "Move", json!({"source": from, "destination": to})).json();
    assert_eq!(moved["entry"]["path"], to);
    let again = call(&daemon, "Move", json!({"source": from, "destination": daemon.path("p/q")}));
    refused(&again, 404, "not_found");
    assert!(std::path::Path::new(&daemon.path("p")).is_dir());
    for _ in 0..2 {
        let removed = call(&daemon, "Remove", json!({"path": daemon.path("new")}));
        assert_eq!((removed.status, removed.text()), (200, "{}"));
    }
    assert!(!std::path::Path::new(&daemon.path("new")).exists());
}
