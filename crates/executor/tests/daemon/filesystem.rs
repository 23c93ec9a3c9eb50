//! Section 5: the filesystem service.

use serde_json::{Value, json};

use super::support::{DaemonAnswer, TestDaemon, basic};

fn call(daemon: &TestDaemon, method: &str, request: Value) -> DaemonAnswer {
    daemon.unary(&format!("/filesystem.Filesystem/{method}"), &request)
}

#[track_caller]
fn refused(answer: &DaemonAnswer, status: u16, code: &str) {
    assert_eq!((answer.status, &answer.json()["code"]), (status, &json!(code)));
}

#[test]
fn entries_are_described() {
    let daemon = TestDaemon::start();
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
    let daemon = TestDaemon::start();
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
    let daemon = TestDaemon::start();
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
    let daemon = TestDaemon::start();
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

#[test]
fn entries_of_every_kind() {
    // executor 5.2
    let daemon = TestDaemon::start();
    let stat = |path: &str| {
        let answer = call(&daemon, "Stat", json!({"path": path}));
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()["entry"].clone()
    };
    let at = |name: &str| daemon.path(name);
    std::fs::write(at("file"), "12345").unwrap();
    let link = |to: &str, name: &str| std::os::unix::fs::symlink(to, at(name)).unwrap();
    link("file", "link");
    link("nowhere", "broken");
    link("loop", "loop");
    link(".", "here");
    let run = |program: &str, arguments: &[&str]| {
        assert!(std::process::Command::new(program).args(arguments).status().unwrap().success());
    };
    run("mkfifo", &["-m", "644", &at("pipe")]);
    run("chown", &["4711:4712", &at("file")]);
    run("touch", &["-d", "2024-02-03T04:05:06.789Z", &at("file")]);
    let file = stat(&at("file"));
    assert_eq!((&file["owner"], &file["group"]), (&json!("4711"), &json!("4712")));
    assert_eq!(file["modifiedTime"], "2024-02-03T04:05:06.789Z");
    run("touch", &["-d", "@0", &at("file")]);
    assert_eq!(stat(&at("file")).get("modifiedTime"), None);
    run("chmod", &["4755", &at("file")]);
    let file = stat(&at("file"));
    assert_eq!((&file["permissions"], &file["mode"]), (&json!("urwxr-xr-x"), &json!(0o755)));
    let real = std::fs::canonicalize(at("file")).unwrap().to_str().unwrap().to_owned();
    let found = stat(&at("link"));
    assert_eq!(found["type"], "FILE_TYPE_FILE");
    assert_eq!((&found["size"], &found["mode"]), (&json!("4"), &json!(0o755)));
    assert_eq!(found["permissions"], "Lrwxrwxrwx");
    assert_eq!(found["symlinkTarget"], real);
    assert_eq!(found["owner"], "root");
    assert_eq!(found.get("isSymlink"), None);
    for name in ["broken", "loop"] {
        let found = stat(&at(name));
        assert_eq!((found.get("type"), found.get("mode")), (None, None), "{name}");
        assert_eq!(found["symlinkTarget"], at(name));
    }
    assert_eq!(stat(&at("here"))["type"], "FILE_TYPE_DIRECTORY");
    let pipe = stat(&at("pipe"));
    assert_eq!((pipe.get("type"), &pipe["permissions"]), (None, &json!("prw-r--r--")));
    assert_eq!(stat("/dev/null")["permissions"], "Dcrw-rw-rw-");
    assert_eq!(stat("/tmp")["permissions"], "dtrwxrwxrwx");
    assert_eq!((stat("/")["name"].clone(), stat("/")["path"].clone()), (json!("/"), json!("/")));
    // executor 5.1: not normalised.
    let odd =
        format!("{}/../{}/file", at(""), at("").trim_end_matches('/').rsplit('/').next().unwrap());
    assert_eq!(stat(&odd)["path"], odd);
    // executor 11.24: attributes set by a program show; those that are no text do not.
    let script = "import os,sys\nos.setxattr(sys.argv[1],'user.e2b.author',b'me')\n\
                  os.setxattr(sys.argv[1],'user.e2b.bytes',b'\\xff')\nos.setxattr(sys.argv[1],'user.other',b'x')";
    run("python3", &["-c", script, &at("file")]);
    assert_eq!(stat(&at("file"))["metadata"], json!({"author": "me"}));
    // Listed too, apart from nothing: clients drop what has no type.
    let listed = call(&daemon, "ListDir", json!({"path": at("here"), "depth": 3})).json();
    let names: Vec<&str> =
        listed["entries"].as_array().unwrap().iter().map(|e| e["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["broken", "file", "here", "link", "loop", "pipe"]);
    assert_eq!(listed["entries"][1]["path"], format!("{}/file", at("here")));
    assert_eq!(listed["entries"][1]["metadata"], json!({"author": "me"}));
}

#[test]
fn paths_that_name_nothing() {
    // executor 5.1, 5.3; issue 4, "Bad input"
    let daemon = TestDaemon::start();
    let long = format!("/{}", "x".repeat(5000));
    for method in ["Stat", "MakeDir", "ListDir", "Remove"] {
        let ask = |path: &str| call(&daemon, method, json!({"path": path}));
        refused(&ask("a\0b"), 400, "invalid_argument");
        refused(&ask("~bob"), 400, "invalid_argument");
        refused(&ask(&long), 500, "internal");
        refused(&ask("/etc/hosts/x"), 500, "internal");
    }
    let looped = daemon.path("loop");
    std::os::unix::fs::symlink("loop", &looped).unwrap();
    refused(&call(&daemon, "MakeDir", json!({"path": looped})), 500, "internal");
    refused(&call(&daemon, "MakeDir", json!({"path": format!("{looped}/x")})), 500, "internal");
    let broken = daemon.path("broken");
    std::os::unix::fs::symlink("nowhere", &broken).unwrap();
    refused(&call(&daemon, "MakeDir", json!({"path": broken})), 500, "internal");
    refused(&call(&daemon, "ListDir", json!({"path": broken})), 404, "not_found");
    assert_eq!(call(&daemon, "Remove", json!({"path": looped})).status, 200);
    assert!(std::fs::symlink_metadata(&looped).is_err());
}

#[test]
fn moves_that_cannot_be_and_what_they_replace() {
    // executor 5.3
    let daemon = TestDaemon::start_within("mount -t tmpfs none /mnt");
    let at = |name: &str| daemon.path(name);
    let rename =
        |from: &str, to: &str| call(&daemon, "Move", json!({"source": from, "destination": to}));
    std::fs::write(at("a"), "a").unwrap();
    std::fs::write(at("b"), "b").unwrap();
    assert_eq!(rename(&at("a"), &at("b")).status, 200);
    assert_eq!(std::fs::read(at("b")).unwrap(), b"a");
    std::fs::create_dir_all(at("full/x")).unwrap();
    std::fs::create_dir(at("d")).unwrap();
    refused(&rename(&at("d"), &at("full")), 500, "internal");
    refused(&rename(&at("d"), &at("d/below")), 500, "internal");
    refused(&rename(&at("b"), "/mnt/b"), 500, "internal");
    refused(&rename(&at("b"), &at("b/c")), 500, "internal");
    std::os::unix::fs::symlink("nowhere", at("link")).unwrap();
    let moved = rename(&at("link"), &at("new/link")).json();
    assert_eq!(moved["entry"]["permissions"], "Lrwxrwxrwx");
    assert_eq!(std::fs::read_link(at("new/link")).unwrap().to_str(), Some("nowhere"));
}
