//! Section 5.4: watching directories.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;

use serde_json::{Value, json};

use super::support::{DaemonAnswer, TestDaemon, until};
use super::watch_streams::watch_stream;

const OCTETS: (&str, &str) = ("Content-Type", "application/octet-stream");

pub(super) fn call(daemon: &TestDaemon, method: &str, request: &Value) -> DaemonAnswer {
    daemon.unary(&format!("/filesystem.Filesystem/{method}"), request)
}

#[track_caller]
fn refused(answer: &DaemonAnswer, status: u16, code: &str) {
    assert_eq!((answer.status, &answer.json()["code"]), (status, &json!(code)));
}

/// A watcher with an id.
struct TestWatcher<'a> {
    daemon: &'a TestDaemon,
    request: Value,
}

impl<'a> TestWatcher<'a> {
    #[track_caller]
    fn create(daemon: &'a TestDaemon, request: &Value) -> Self {
        let created = call(daemon, "CreateWatcher", request);
        assert_eq!(created.status, 200, "{}", created.text());
        let id = created.json()["watcherId"].as_str().expect("an id").to_owned();
        let rest = id.strip_prefix('w').expect("the contract's form");
        assert!(rest.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()), "{id}");
        Self { daemon, request: json!({"watcherId": id}) }
    }

    /// Everything since the last time, at once: nothing is waited for (executor 5.4).
    #[track_caller]
    fn events(&self) -> Vec<Value> {
        let answer = call(self.daemon, "GetWatcherEvents", &self.request);
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()["events"].as_array().cloned().unwrap_or_default()
    }

    /// The same as short texts.
    #[track_caller]
    fn told(&self) -> Vec<String> {
        self.events().iter().map(short).collect()
    }
}

/// `CREATE name`
pub(super) fn short(event: &Value) -> String {
    let kind = event["type"].as_str().expect("a type").trim_start_matches("EVENT_TYPE_");
    format!("{kind} {}", event["name"].as_str().expect("a name"))
}

pub(super) fn upload(daemon: &TestDaemon, path: &str, headers: &[(&str, &str)], content: &[u8]) {
    let headers = [&[OCTETS], headers].concat();
    let answer = daemon.call("POST", &format!("/files?path={path}"), &headers, content);
    assert_eq!(answer.status, 200, "{}", answer.text());
}

/// A directory for many files.
fn in_memory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").expect("a file system in memory")
}

/// The daemon's inotify descriptors.
pub(super) fn descriptors(daemon: &TestDaemon) -> usize {
    daemon.open_files("anon_inode:inotify")
}

#[test]
fn uploads_are_exact_sequences_and_there_at_once() {
    // executor 5.4, the table; 11.26
    let daemon = TestDaemon::start();
    let root = daemon.path("w");
    fs::create_dir_all(format!("{root}/nested")).unwrap();
    let flat = TestWatcher::create(&daemon, &json!({"path": root}));
    let deep = TestWatcher::create(&daemon, &json!({"path": root, "recursive": true}));
    for round in 0..50 {
        let name = format!("f{round}");
        upload(&daemon, &format!("{root}/{name}"), &[], b"content");
        let new = ["CREATE", "CHMOD", "WRITE"].map(|kind| format!("{kind} {name}"));
        assert_eq!(flat.told(), new);
        assert_eq!(deep.told(), new);
    }
    upload(&daemon, &format!("{root}/f0"), &[], b"other");
    assert_eq!(flat.told(), ["CHMOD f0", "WRITE f0", "WRITE f0"]);
    upload(&daemon, &format!("{root}/m"), &[("X-Metadata-A", "1")], b"x");
    assert_eq!(flat.told(), ["CREATE m", "CHMOD m", "WRITE m", "CHMOD m"]);
    upload(&daemon, &format!("{root}/empty"), &[], b"");
    assert_eq!(flat.told(), ["CREATE empty", "CHMOD empty"]);
    deep.told();
    upload(&daemon, &format!("{root}/nested/file"), &[], b"x");
    assert_eq!(flat.told(), [""; 0]);
    assert_eq!(deep.told(), ["CREATE nested/file", "CHMOD nested/file", "WRITE nested/file"]);
    let made = call(&daemon, "MakeDir", &json!({"path": format!("{root}/child")}));
    assert_eq!(made.status, 200);
    assert_eq!(flat.told(), ["CREATE child", "CHMOD child"]);
    assert_eq!(deep.told(), ["CREATE child", "CHMOD child"]);
}

#[test]
fn an_upload_of_up_to_a_quarter_mebibyte_is_one_write() {
    // executor 11.26, 12: several chunks of a request are one write.
    let daemon = TestDaemon::start();
    let root = daemon.path("w");
    fs::create_dir(&root).unwrap();
    let watcher = TestWatcher::create(&daemon, &json!({"path": root}));
    upload(&daemon, &format!("{root}/f"), &[], &vec![b'x'; 200 << 10]);
    assert_eq!(watcher.told(), ["CREATE f", "CHMOD f", "WRITE f"]);
}

#[test]
fn checks_come_in_order() {
    // executor 5.4, 11.28
    let daemon = TestDaemon::start();
    let file = daemon.path("file");
    fs::write(&file, "").unwrap();
    for method in ["CreateWatcher", "WatchDir"] {
        let ask = |path: &str| {
            if method == "CreateWatcher" {
                return call(&daemon, method, &json!({"path": path})).json()["code"].clone();
            }
            let target = format!("/filesystem.Filesystem/{method}");
            daemon.stream(&target, &json!({"path": path}), &[]).error()["code"].clone()
        };
        assert_eq!(ask(&daemon.path("none")), "not_found");
        assert_eq!(ask(&file), "invalid_argument");
        assert_eq!(ask("~bob"), "invalid_argument");
        assert_eq!(ask("a\0b"), "invalid_argument");
        assert_eq!(ask(&format!("{file}/x")), "internal");
        assert_eq!(ask(&format!("/{}", "x".repeat(5000))), "internal");
    }
    assert_eq!(descriptors(&daemon), 0);
    let unknown = json!({"watcherId": "wnone"});
    refused(&call(&daemon, "GetWatcherEvents", &unknown), 404, "not_found");
    refused(&call(&daemon, "RemoveWatcher", &unknown), 404, "not_found");
}

#[test]
fn a_removed_watcher_is_gone_with_all_it_held() {
    // executor 5.4, 11.30
    let daemon = TestDaemon::start();
    let root = daemon.path("w");
    fs::create_dir(&root).unwrap();
    let watcher = TestWatcher::create(&daemon, &json!({"path": root}));
    assert_eq!(descriptors(&daemon), 1);
    let removed = call(&daemon, "RemoveWatcher", &watcher.request);
    assert_eq!((removed.status, removed.text()), (200, "{}"));
    assert_eq!(descriptors(&daemon), 0);
    refused(&call(&daemon, "GetWatcherEvents", &watcher.request), 404, "not_found");
    refused(&call(&daemon, "RemoveWatcher", &watcher.request), 404, "not_found");
}

#[test]
fn every_kind_by_its_name() {
    // executor 5.4: mapping, names, moves in, within and out
    let daemon = TestDaemon::start();
    let root = daemon.path("w");
    fs::create_dir(&root).unwrap();
    let outside = daemon.path("outside");
    fs::write(&outside, "1").unwrap();
    let at = |name: &str| format!("{root}/{name}");
    let watcher = TestWatcher::create(&daemon, &json!({"path": root}));
    fs::rename(&outside, at("in")).unwrap();
    assert_eq!(watcher.told(), ["CREATE in"]);
    fs::rename(at("in"), at("other")).unwrap();
    assert_eq!(watcher.told(), ["RENAME in", "CREATE other"]);
    fs::OpenOptions::new().append(true).open(at("other")).unwrap().write_all(b"23").unwrap();
    assert_eq!(watcher.told(), ["WRITE other"]);
    fs::set_permissions(at("other"), fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(watcher.told(), ["CHMOD other"]);
    fs::read(at("other")).unwrap();
    assert_eq!(watcher.told(), [""; 0]);
    fs::rename(at("other"), &outside).unwrap();
    assert_eq!(watcher.told(), ["RENAME other"]);
    fs::create_dir(at("d")).unwrap();
    fs::write(at("d/inner"), "").unwrap();
    assert_eq!(watcher.told(), ["CREATE d"]);
    std::os::unix::fs::symlink("d", at("link")).unwrap();
    fs::remove_dir_all(at("d")).unwrap();
    assert_eq!(watcher.told(), ["CREATE link", "REMOVE d"]);
    fs::set_permissions(&root, fs::Permissions::from_mode(0o700)).unwrap();
    assert_eq!(watcher.told(), ["CHMOD ."]);
    fs::remove_dir_all(&root).unwrap();
    assert_eq!(watcher.told(), ["REMOVE link", "REMOVE ."]);
    fs::create_dir(&root).unwrap();
    fs::write(at("x"), "").unwrap();
    assert_eq!(watcher.told(), [""; 0]);
}

#[test]
fn a_directory_that_is_moved_away_says_so_and_nothing_after() {
    let daemon = TestDaemon::start();
    let (root, away) = (daemon.path("w"), daemon.path("away"));
    fs::create_dir_all(format!("{root}/d")).unwrap();
    let watcher = TestWatcher::create(&daemon, &json!({"path": root, "recursive": true}));
    fs::rename(&root, &away).unwrap();
    fs::write(format!("{away}/x"), "").unwrap();
    fs::write(format!("{away}/d/x"), "").unwrap();
    assert_eq!(watcher.told(), ["RENAME ."]);
    fs::write(format!("{away}/y"), "").unwrap();
    assert_eq!(watcher.told(), [""; 0]);
}

#[test]
fn new_directories_are_watched_from_their_first_moment() {
    // executor 5.4, 11.27
    let daemon = TestDaemon::start();
    let root = daemon.path("w");
    fs::create_dir(&root).unwrap();
    let watcher = TestWatcher::create(&daemon, &json!({"path": root, "recursive": true}));
    for round in 0..50 {
        let name = format!("d{round}");
        let made = call(&daemon, "MakeDir", &json!({"path": format!("{root}/{name}")}));
        assert_eq!(made.status, 200);
        upload(&daemon, &format!("{root}/{name}/file"), &[], b"x");
        let expected = ["CREATE", "CHMOD"].map(|kind| format!("{kind} {name}"));
        let file = ["CREATE", "CHMOD", "WRITE"].map(|kind| format!("{kind} {name}/file"));
        assert_eq!(watcher.told(), [&expected[..], &file[..]].concat());
        // A file whose directories come into being with it.
        upload(&daemon, &format!("{root}/{name}/a/b/file"), &[], b"x");
        let told = watcher.told();
        let file = ["CREATE", "CHMOD", "WRITE"].map(|kind| format!("{kind} {name}/a/b/file"));
        assert_eq!(told[told.len() - 3..], file);
        for directory in ["a", "a/b"] {
            assert!(told.contains(&format!("CREATE {name}/{directory}")), "{told:?}");
        }
    }
    // By a program, in one go: each directory is told, found by a search or not.
    for round in 0..50 {
        fs::create_dir_all(format!("{root}/p{round}/b/c")).unwrap();
        let mut told = watcher.told();
        told.retain(|event| event.starts_with("CREATE"));
        told.sort();
        told.dedup();
        let expected = ["", "/b", "/b/c"].map(|below| format!("CREATE p{round}{below}"));
        assert_eq!(told, expected);
    }
}

#[test]
fn trees_moved_in_within_and_out_are_followed() {
    // executor 5.4: "A directory renamed inside the tree keeps being watched under its new name."
    let daemon = TestDaemon::start();
    let root = daemon.path("w");
    let outside = daemon.path("outside");
    fs::create_dir(&root).unwrap();
    fs::create_dir_all(format!("{outside}/sub")).unwrap();
    fs::write(format!("{outside}/sub/file"), "1").unwrap();
    let at = |name: &str| format!("{root}/{name}");
    let watcher = TestWatcher::create(&daemon, &json!({"path": root, "recursive": true}));
    fs::rename(&outside, at("in")).unwrap();
    assert_eq!(watcher.told(), ["CREATE in", "CREATE in/sub", "CREATE in/sub/file"]);
    fs::create_dir(at("target")).unwrap();
    watcher.told();
    fs::rename(at("in"), at("target/now")).unwrap();
    fs::write(at("target/now/sub/file"), "2").unwrap();
    let told = watcher.told();
    assert_eq!(told[..2], ["RENAME in", "CREATE target/now"]);
    assert!(told[2..].iter().all(|event| event == "WRITE target/now/sub/file"), "{told:?}");
    assert!(told.len() > 2, "{told:?}");
    fs::rename(at("target/now"), &outside).unwrap();
    fs::write(format!("{outside}/sub/file"), "3").unwrap();
    assert_eq!(watcher.told(), ["RENAME target/now"]);
    fs::write(format!("{outside}/sub/other"), "3").unwrap();
    assert_eq!(watcher.told(), [""; 0]);
    fs::create_dir_all(at("target/gone/deep")).unwrap();
    watcher.told();
    fs::remove_dir_all(at("target")).unwrap();
    let told = watcher.told();
    assert_eq!(told, ["REMOVE target/gone/deep", "REMOVE target/gone", "REMOVE target"]);
}

#[test]
fn many_renames_in_a_row_end_in_the_right_names() {
    let daemon = TestDaemon::start();
    let root = daemon.path("w");
    fs::create_dir_all(format!("{root}/d0/sub")).unwrap();
    let watcher = TestWatcher::create(&daemon, &json!({"path": root, "recursive": true}));
    for round in 0..200 {
        let (before, now) = (format!("{root}/d{round}"), format!("{root}/d{}", round + 1));
        fs::create_dir(format!("{before}/new{round}")).unwrap();
        fs::rename(before, now).unwrap();
    }
    watcher.told();
    for name in (0..200).map(|round| format!("new{round}")).chain(["sub".to_owned()]) {
        fs::write(format!("{root}/d200/{name}/file"), "x").unwrap();
        let told = watcher.told();
        assert_eq!(told.last(), Some(&format!("WRITE d200/{name}/file")), "{told:?}");
    }
}

#[test]
fn entries_come_with_events_that_leave_something_to_look_at() {
    // executor 5.4, 11.29
    let daemon = TestDaemon::start();
    let root = daemon.path("w");
    fs::create_dir_all(format!("{root}/d")).unwrap();
    let request = json!({"path": root, "recursive": true, "includeEntry": true});
    let watcher = TestWatcher::create(&daemon, &request);
    upload(&daemon, &format!("{root}/d/file"), &[], b"12345");
    let events = watcher.events();
    assert_eq!(events.len(), 3);
    for event in &events {
        assert_eq!(event["entry"]["path"], format!("{root}/d/file"));
        assert_eq!(event["entry"]["name"], "file");
    }
    assert_eq!(events[2]["entry"]["size"], "5");
    fs::rename(format!("{root}/d/file"), format!("{root}/d/f")).unwrap();
    fs::remove_file(format!("{root}/d/f")).unwrap();
    fs::set_permissions(&root, fs::Permissions::from_mode(0o700)).unwrap();
    let events = watcher.events();
    let told: Vec<String> = events.iter().map(short).collect();
    assert_eq!(told, ["RENAME d/file", "CREATE d/f", "REMOVE d/f", "CHMOD ."]);
    assert_eq!(events[0].get("entry"), None);
    assert_eq!(events[2].get("entry"), None);
    assert_eq!(events[3]["entry"]["path"], root);
    // Without being asked for there is none.
    let plain = TestWatcher::create(&daemon, &json!({"path": root}));
    fs::write(format!("{root}/x"), "").unwrap();
    assert_eq!(plain.events()[0].get("entry"), None);
}

#[test]
fn a_link_to_a_directory_is_watched_as_the_directory() {
    let daemon = TestDaemon::start();
    let (root, link) = (daemon.path("w"), daemon.path("link"));
    fs::create_dir_all(format!("{root}/real")).unwrap();
    std::os::unix::fs::symlink(&root, &link).unwrap();
    std::os::unix::fs::symlink("real", format!("{root}/below")).unwrap();
    let request = json!({"path": link, "recursive": true, "includeEntry": true});
    let watcher = TestWatcher::create(&daemon, &request);
    fs::write(format!("{root}/real/x"), "").unwrap();
    let events = watcher.events();
    assert_eq!(short(&events[0]), "CREATE real/x");
    assert_eq!(events[0]["entry"]["path"], format!("{link}/real/x"));
}

#[test]
fn ten_thousand_directories_are_watched_and_released() {
    // issue 4, "Bad input": 10,000 watch entries
    let daemon = TestDaemon::start();
    let memory = in_memory();
    let root = memory.path().to_str().unwrap();
    for outer in 0..100 {
        for inner in 0..100 {
            fs::create_dir_all(format!("{root}/{outer}/{inner}")).unwrap();
        }
    }
    let before = daemon.resident_kib();
    for _ in 0..3 {
        let watcher = TestWatcher::create(&daemon, &json!({"path": root, "recursive": true}));
        fs::write(format!("{root}/99/99/x"), "1").unwrap();
        fs::remove_file(format!("{root}/99/99/x")).unwrap();
        assert_eq!(watcher.told(), ["CREATE 99/99/x", "WRITE 99/99/x", "REMOVE 99/99/x"]);
        assert_eq!(call(&daemon, "RemoveWatcher", &watcher.request).status, 200);
        assert_eq!(descriptors(&daemon), 0);
    }
    let left = daemon.resident_kib().saturating_sub(before);
    assert!(left < 2048, "{left} KiB are not given back");
}

#[test]
fn more_events_than_the_kernels_queue_holds_are_collected() {
    // executor 5.4: "Buffer is unbounded."
    let daemon = TestDaemon::start();
    let memory = in_memory();
    let root = memory.path().to_str().unwrap();
    let watcher = TestWatcher::create(&daemon, &json!({"path": root}));
    let queue = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
    let files = queue.trim().parse::<usize>().unwrap();
    for number in 0..files {
        fs::write(format!("{root}/{number}"), "").unwrap();
        fs::remove_file(format!("{root}/{number}")).unwrap();
    }
    let told = watcher.told();
    assert_eq!(told.len(), 2 * files);
    let expected = (0..files).flat_map(|n| [format!("CREATE {n}"), format!("REMOVE {n}")]);
    assert!(told.into_iter().eq(expected));
}

#[test]
fn what_was_lost_is_an_error_that_stays() {
    // executor 5.4: "Overflow of the kernel queue is an error." "A watcher failure is sticky."
    let daemon = TestDaemon::start();
    let memory = in_memory();
    let root = memory.path().to_str().unwrap();
    let watcher = TestWatcher::create(&daemon, &json!({"path": root}));
    let mut stream = watch_stream(&daemon, &json!({"path": root}), &[]);
    let queue = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
    // Stopped, it reads nothing.
    daemon.signal("STOP");
    for number in 0..=queue.trim().parse::<usize>().unwrap() {
        fs::write(format!("{root}/{number}"), "").unwrap();
    }
    daemon.signal("CONT");
    for _ in 0..2 {
        let answer = call(&daemon, "GetWatcherEvents", &watcher.request);
        refused(&answer, 500, "internal");
        assert!(answer.text().contains("events were lost"), "{}", answer.text());
    }
    // What came before is told; then the stream says why it ends.
    let end = loop {
        let (flags, message) = stream.next();
        if flags == 2 {
            break message;
        }
    };
    assert_eq!(end["error"]["code"], "internal");
    assert_eq!(call(&daemon, "RemoveWatcher", &watcher.request).status, 200);
    until("the watchers are torn down", || descriptors(&daemon) == 0);
}

#[test]
fn the_limits_of_inotify_are_errors_with_nothing_left() {
    // issue 4, "Bad input"
    let daemon = TestDaemon::start_within(
        "echo 2 > /proc/sys/user/max_inotify_instances; \
        echo 20 > /proc/sys/user/max_inotify_watches",
    );
    let (small, large) = (daemon.path("small"), daemon.path("large"));
    fs::create_dir(&small).unwrap();
    for number in 0..30 {
        fs::create_dir_all(format!("{large}/{number}")).unwrap();
    }
    let create =
        |path: &str| call(&daemon, "CreateWatcher", &json!({"path": path, "recursive": true}));
    let refusal = create(&large);
    refused(&refusal, 500, "internal");
    assert!(refusal.text().contains("max_user_watches"), "{}", refusal.text());
    until("nothing is left", || descriptors(&daemon) == 0);
    // A directory too many later on is a failure of the watcher.
    let grown = TestWatcher::create(&daemon, &json!({"path": small, "recursive": true}));
    fs::rename(&large, format!("{small}/in")).unwrap();
    for _ in 0..2 {
        let answer = call(&daemon, "GetWatcherEvents", &grown.request);
        refused(&answer, 500, "internal");
        assert!(answer.text().contains("max_user_watches"), "{}", answer.text());
    }
    assert_eq!(call(&daemon, "RemoveWatcher", &grown.request).status, 200);
    let flat = json!({"path": small});
    let watchers = [TestWatcher::create(&daemon, &flat), TestWatcher::create(&daemon, &flat)];
    let refusal = create(&small);
    refused(&refusal, 500, "internal");
    assert!(refusal.text().contains("max_user_instances"), "{}", refusal.text());
    assert_eq!(descriptors(&daemon), 2);
    for watcher in &watchers {
        assert_eq!(call(&daemon, "RemoveWatcher", &watcher.request).status, 200);
    }
    TestWatcher::create(&daemon, &flat);
}

#[test]
fn many_watchers_and_writers_lose_nothing() {
    let daemon = TestDaemon::start();
    let root = daemon.path("w");
    fs::create_dir(&root).unwrap();
    let watchers: Vec<_> = (0..4)
        .map(|_| TestWatcher::create(&daemon, &json!({"path": root, "recursive": true})))
        .collect();
    std::thread::scope(|scope| {
        for writer in 0..4 {
            let (daemon, root) = (&daemon, &root);
            scope.spawn(move || {
                for number in 0..50 {
                    upload(daemon, &format!("{root}/{writer}/{number}/f"), &[], b"x");
                }
            });
        }
    });
    for watcher in &watchers {
        let told = watcher.told();
        for writer in 0..4 {
            for number in 0..50 {
                let file = format!("{writer}/{number}/f");
                let mine: Vec<_> =
                    told.iter().filter(|event| event.ends_with(&format!(" {file}"))).collect();
                assert_eq!(mine.last(), Some(&&format!("WRITE {file}")), "{mine:?}");
                assert!(mine.contains(&&format!("CREATE {file}")), "{mine:?}");
            }
        }
    }
}
