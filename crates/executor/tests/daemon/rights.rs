//! Section 3.1: file work has the rights of its user. Attacks of user code on the daemon, which is root.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, lchown, symlink};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde_json::{Value, json};

use super::support::{DaemonAnswer, PROGRAM, TestDaemon, basic, shell, until};

const OCTETS: (&str, &str) = ("Content-Type", "application/octet-stream");
const NOBODY: u32 = 65534;

/// One whose users cannot become root: set-user-id programs do not work below it.
fn without_sudo() -> TestDaemon {
    let unclaimed = TestDaemon::start_by(Command::new("setpriv").args(["--no-new-privs", PROGRAM]));
    unclaimed.claimed_with(json!({}))
}

/// Both kinds, with names for messages.
pub(super) fn both() -> [(&'static str, TestDaemon); 2] {
    [("without sudo", without_sudo()), ("with sudo", TestDaemon::start())]
}

pub(super) fn upload(daemon: &TestDaemon, user: &str, path: &str, content: &[u8]) -> DaemonAnswer {
    daemon.call("POST", &format!("/files?username={user}&path={path}"), &[OCTETS], content)
}

fn download(daemon: &TestDaemon, user: &str, path: &str) -> DaemonAnswer {
    daemon.get(&format!("/files?username={user}&path={path}"))
}

pub(super) fn call(daemon: &TestDaemon, user: &str, method: &str, request: &Value) -> DaemonAnswer {
    let user = basic(user);
    let headers = [("Authorization", user.as_str())];
    daemon.unary_with(&format!("/filesystem.Filesystem/{method}"), request, &headers)
}

fn compose(daemon: &TestDaemon, user: &str, source: &str, destination: &str) -> DaemonAnswer {
    let body = json!({"source_paths": [source], "destination": destination, "username": user});
    let kind = [("Content-Type", "application/json")];
    daemon.call("POST", "/files/compose", &kind, body.to_string().as_bytes())
}

/// The refusal of a request: status, code, and a message with user and path that names nothing else.
#[track_caller]
fn refused(what: &str, answer: &DaemonAnswer, path: &str) {
    assert_eq!(answer.status, 403, "{what}: {}", answer.text());
    let code = answer.json()["code"].clone();
    assert!(code == json!(403) || code == json!("permission_denied"), "{what}: {code}");
    let message = answer.json()["message"].as_str().expect("a text").to_owned();
    assert!(message.starts_with("user 'nobody' may not "), "{what}: {message}");
    assert!(message.contains(path) && !message.contains("/proc/"), "{what}: {message}");
}

/// A user's directory and root's things next to it, with links of the user that lead to them.
pub(super) struct TestFolder {
    /// The user's own directory.
    pub(super) home: String,
    /// Everybody may enter it; it holds `secret`, which nobody may read or write.
    protected: String,
    /// Nobody may enter it; it holds `secret` too.
    pub(super) closed: String,
}

impl TestFolder {
    pub(super) fn new(daemon: &TestDaemon) -> Self {
        let [home, protected, closed] =
            ["home", "protected", "closed"].map(|name| daemon.path(name));
        let folder = Self { home, protected, closed };
        for directory in [&folder.home, &folder.protected, &folder.closed] {
            fs::create_dir(directory).expect("it is there, and ours");
        }
        for directory in [&folder.protected, &folder.closed] {
            let secret = format!("{directory}/secret");
            fs::write(&secret, "kept").expect("it is there, and ours");
            fs::set_permissions(secret, fs::Permissions::from_mode(0o600))
                .expect("it is there, and ours");
        }
        fs::set_permissions(&folder.closed, fs::Permissions::from_mode(0o700))
            .expect("it is there, and ours");
        chown(&folder.home, Some(NOBODY), Some(NOBODY)).expect("it is there, and ours");
        folder.plant(&format!("{}/secret", folder.protected), "file");
        folder.plant(&folder.protected, "directory");
        folder.plant(&folder.closed, "shut");
        folder.plant(&format!("{}/secret", folder.closed), "hidden");
        folder
    }

    fn plant(&self, target: &str, name: &str) {
        let link = self.at(name);
        symlink(target, &link).expect("it is there, and ours");
        lchown(link, Some(NOBODY), Some(NOBODY)).expect("it is there, and ours");
    }

    pub(super) fn at(&self, name: &str) -> String {
        format!("{}/{name}", self.home)
    }

    /// Root's things are as they were.
    #[track_caller]
    fn check(&self, what: &str) {
        for directory in [&self.protected, &self.closed] {
            let names: Vec<_> = fs::read_dir(directory)
                .expect("it is there, and ours")
                .map(|e| e.expect("it is there, and ours").file_name())
                .collect();
            assert_eq!(names, ["secret"], "{what}");
            let secret = format!("{directory}/secret");
            assert_eq!(
                fs::read_to_string(&secret).expect("it is there, and ours"),
                "kept",
                "{what}"
            );
            let found = fs::metadata(&secret).expect("it is there, and ours");
            assert_eq!((found.uid(), found.mode() & 0o7777), (0, 0o600), "{what}");
            assert_eq!(fs::metadata(directory).expect("it is there, and ours").uid(), 0, "{what}");
        }
    }
}

#[test]
fn links_of_a_user_lead_the_daemon_nowhere_that_the_user_may_not_go() {
    for (kind, daemon) in both() {
        let folder = TestFolder::new(&daemon);
        let at = |name: &str| folder.at(name);
        fs::write(at("own"), "own").unwrap();
        chown(at("own"), Some(NOBODY), Some(NOBODY)).unwrap();
        for path in ["file", "directory/secret", "directory/new", "directory/a/b", "shut/secret"] {
            let what = format!("upload to {path}, {kind}");
            refused(&what, &upload(&daemon, "nobody", &at(path), b"attack"), &at(path));
            folder.check(&what);
        }
        for path in ["file", "directory/secret", "shut/secret", "shut/none"] {
            let what = format!("download of {path}, {kind}");
            refused(&what, &download(&daemon, "nobody", &at(path)), &at(path));
        }
        for path in ["directory/new", "directory/a/b", "shut/new", "shut/secret"] {
            let what = format!("MakeDir {path}, {kind}");
            let answer = call(&daemon, "nobody", "MakeDir", &json!({"path": at(path)}));
            refused(&what, &answer, &at(path));
            folder.check(&what);
        }
        for (from, to) in [
            ("own", "directory/own"),
            ("own", "directory/a/own"),
            ("own", "directory/secret"),
            ("directory/secret", "stolen"),
            ("shut/secret", "stolen"),
            ("directory/secret", "directory/other"),
        ] {
            let what = format!("Move {from} to {to}, {kind}");
            let request = json!({"source": at(from), "destination": at(to)});
            refused(&what, &call(&daemon, "nobody", "Move", &request), &at(to));
            folder.check(&what);
        }
        for path in ["directory/secret", "shut/secret", "shut/none", "directory/secret/"] {
            let what = format!("Remove {path}, {kind}");
            refused(
                &what,
                &call(&daemon, "nobody", "Remove", &json!({"path": at(path)})),
                &at(path),
            );
            folder.check(&what);
        }
        for (method, path) in [
            ("Stat", "shut/secret"),
            ("Stat", "shut/none"),
            ("ListDir", "shut"),
            ("CreateWatcher", "shut"),
        ] {
            let answer = call(&daemon, "nobody", method, &json!({"path": at(path)}));
            refused(&format!("{method} {path}, {kind}"), &answer, &at(path));
        }
        for (source, destination) in [
            ("file", "new"),
            ("shut/secret", "new"),
            ("own", "directory/new"),
            ("own", "shut/secret"),
        ] {
            let what = format!("compose {source} to {destination}, {kind}");
            let answer = compose(&daemon, "nobody", &at(source), &at(destination));
            assert_eq!(answer.status, 403, "{what}: {}", answer.text());
            folder.check(&what);
        }
        // A link itself is the user's to describe and to remove.
        let link = call(&daemon, "nobody", "Stat", &json!({"path": at("hidden")})).json();
        assert_eq!(link["entry"]["symlinkTarget"], at("hidden"), "{kind}: {link}");
        assert_eq!(link["entry"].get("type"), None);
        for name in ["file", "directory", "shut", "hidden"] {
            let removed = call(&daemon, "nobody", "Remove", &json!({"path": at(name)}));
            assert_eq!(removed.status, 200, "{}", removed.text());
        }
        let left: Vec<_> =
            fs::read_dir(&folder.home).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["own"], "{kind}");
        folder.check(kind);
    }
}

#[test]
fn a_directory_exchanged_for_a_link_meanwhile_gains_nothing() {
    for (kind, daemon) in both() {
        let folder = TestFolder::new(&daemon);
        let at = |name: &str| folder.at(name);
        fs::create_dir(at("d")).unwrap();
        chown(at("d"), Some(NOBODY), Some(NOBODY)).unwrap();
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    renameat_with(CWD, at("d"), CWD, at("directory"), RenameFlags::EXCHANGE)
                        .unwrap();
                }
            });
            for round in 0..150 {
                let path = at("d/secret");
                // Whatever they answer.
                upload(&daemon, "nobody", &path, b"attack");
                call(&daemon, "nobody", "MakeDir", &json!({"path": at(&format!("d/x{round}"))}));
                call(&daemon, "nobody", "Remove", &json!({"path": path}));
            }
            is_over.store(true, Ordering::Relaxed);
        });
        folder.check(kind);
    }
}

#[test]
fn without_sudo_a_user_may_what_its_programs_may() {
    let daemon = without_sudo();
    let folder = TestFolder::new(&daemon);
    for path in [&format!("{}/secret", folder.protected), "/etc/shadow"] {
        refused("download", &download(&daemon, "nobody", path), path);
        assert_eq!(download(&daemon, "root", path).status, 200);
    }
    let closed = json!({"path": folder.closed, "recursive": true});
    for method in ["ListDir", "CreateWatcher"] {
        refused(method, &call(&daemon, "nobody", method, &closed), &folder.closed);
        assert_eq!(call(&daemon, "root", method, &closed).status, 200);
    }
    let parent = folder.home.trim_end_matches("/home");
    for path in ["0/file.txt", "file.txt", "protected/new"].map(|name| format!("{parent}/{name}")) {
        refused("upload", &upload(&daemon, "nobody", &path, b"x"), &path);
        refused("MakeDir", &call(&daemon, "nobody", "MakeDir", &json!({"path": path})), &path);
        assert!(!fs::exists(&path).unwrap());
    }
    assert!(!fs::exists(format!("{parent}/0")).unwrap());
    folder.check("refused");
    // Where it may, it may, and root may everywhere.
    for (user, owner) in [("nobody", NOBODY), ("root", 0)] {
        let path = folder.at(&format!("{user}/a/file"));
        assert_eq!(upload(&daemon, user, &path, b"x").status, 200);
        let modes = [(path.clone(), 0o644), (folder.at(user), 0o755)];
        for (path, mode) in modes {
            let found = fs::metadata(path).unwrap();
            assert_eq!((found.uid(), found.mode() & 0o7777), (owner, mode));
        }
        assert_eq!(download(&daemon, user, &path).text(), "x");
    }
    // Another's file that everybody may write is written and stays the other's.
    let open = folder.at("open");
    fs::write(&open, "longer").unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o666)).unwrap();
    assert_eq!(upload(&daemon, "nobody", &open, b"x").status, 200);
    assert_eq!(fs::read_to_string(&open).unwrap(), "x");
    assert_eq!(fs::metadata(&open).unwrap().uid(), 0);
    // Root's calls give a file to root, as ever.
    let path = folder.at("nobody/a/file");
    assert_eq!(upload(&daemon, "root", &path, b"x").status, 200);
    assert_eq!(fs::metadata(&path).unwrap().uid(), 0);
    refused("upload", &upload(&daemon, "nobody", &path, b"y"), &path);
}

#[test]
fn the_groups_of_a_user_count() {
    let files = tempfile::tempdir().unwrap();
    let at = |name: &str| files.path().join(name).to_str().unwrap().to_owned();
    let line = |name: &str, uid: u32| format!("{name}:x:{uid}:{uid}::/tmp:/bin/sh\n");
    let users = [line("root", 0), line("member", 2001), line("other", 2003)].concat();
    fs::write(at("passwd"), users).unwrap();
    fs::write(at("group"), "root:x:0:\nmember:x:2001:\nshared:x:2002:x,member\n").unwrap();
    let script = format!(
        "mount --bind {} /etc/passwd; mount --bind {} /etc/group; \
         exec setpriv --no-new-privs \"$0\" \"$@\"",
        at("passwd"),
        at("group")
    );
    let arguments = ["--mount", "sh", "-ec", &script, PROGRAM];
    let daemon =
        TestDaemon::start_by(Command::new("unshare").args(arguments)).claimed_with(json!({}));
    let (file, directory) = (daemon.path("file"), daemon.path("directory"));
    fs::write(&file, "shared").unwrap();
    fs::create_dir(&directory).unwrap();
    for (path, mode) in [(&file, 0o640), (&directory, 0o770)] {
        chown(path, Some(0), Some(2002)).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
    assert_eq!(download(&daemon, "member", &file).text(), "shared");
    assert_eq!(download(&daemon, "other", &file).status, 403);
    let new = format!("{directory}/new");
    assert_eq!(upload(&daemon, "other", &new, b"x").status, 403);
    assert_eq!(upload(&daemon, "member", &new, b"x").status, 200);
    let found = fs::metadata(&new).unwrap();
    assert_eq!((found.uid(), found.gid()), (2001, 2001));
    // The groups of now.
    fs::write(at("group"), "root:x:0:\nmember:x:2001:\nshared:x:2002:other\n").unwrap();
    assert_eq!(download(&daemon, "member", &file).status, 403);
    assert_eq!(download(&daemon, "other", &file).text(), "shared");
}

#[test]
fn with_sudo_a_user_reaches_what_only_root_controls() {
    // executor 11.16
    let daemon = TestDaemon::start();
    let folder = TestFolder::new(&daemon);
    let at = |name: &str| daemon.path(name);
    assert_eq!(upload(&daemon, "nobody", &at("0/file.txt"), b"x").status, 200);
    let made = call(&daemon, "nobody", "MakeDir", &json!({"path": at("test-dir/")})).json();
    assert_eq!(
        (&made["entry"]["owner"], &made["entry"]["mode"]),
        (&json!("nobody"), &json!(0o755))
    );
    for (name, mode) in [("0/file.txt", 0o644), ("0", 0o755), ("test-dir", 0o755)] {
        let found = fs::metadata(at(name)).unwrap();
        let owner = (found.uid(), found.gid());
        assert_eq!((owner, found.mode() & 0o7777), ((NOBODY, NOBODY), mode), "{name}");
    }
    // Another's file is written, and keeps its owner and its mode.
    let secret = format!("{}/secret", folder.closed);
    assert_eq!(download(&daemon, "nobody", &secret).text(), "kept");
    let target = format!("/files?username=nobody&path={secret}");
    let headers = [OCTETS, ("X-Metadata-Author", "me")];
    let written = daemon.call("POST", &target, &headers, b"new");
    assert_eq!(written.status, 200, "{}", written.text());
    assert_eq!(written.json()[0]["path"], secret);
    assert_eq!(fs::read_to_string(&secret).unwrap(), "new");
    let found = fs::metadata(&secret).unwrap();
    assert_eq!((found.uid(), found.mode() & 0o7777), (0, 0o600));
    // What is described has the paths that were asked for.
    symlink("secret", format!("{}/link", folder.closed)).unwrap();
    fs::create_dir(format!("{}/d", folder.closed)).unwrap();
    fs::write(format!("{}/d/inner", folder.closed), "").unwrap();
    let listed = call(&daemon, "nobody", "ListDir", &json!({"path": folder.closed, "depth": 2}));
    let listed = listed.json()["entries"].clone();
    let paths: Vec<&str> =
        listed.as_array().unwrap().iter().map(|entry| entry["path"].as_str().unwrap()).collect();
    let expected =
        ["d", "d/inner", "link", "secret"].map(|name| format!("{}/{name}", folder.closed));
    assert_eq!(paths, expected);
    assert_eq!(listed[2]["symlinkTarget"], fs::canonicalize(&secret).unwrap().to_str().unwrap());
    assert_eq!(listed[3]["metadata"], json!({"author": "me"}));
    // Root's link in root's directory is as good as the name it leads to.
    let link = format!("{}/link", folder.closed);
    assert_eq!(download(&daemon, "nobody", &link).text(), "new");
    assert_eq!(upload(&daemon, "nobody", &link, b"through").status, 200);
    assert_eq!(fs::read_to_string(&secret).unwrap(), "through");
    // Other errors are the ones of root.
    let below = format!("{secret}/x");
    let answer = upload(&daemon, "nobody", &below, b"x");
    assert_eq!(answer.status, 500);
    assert!(!answer.text().contains("/proc/"), "{}", answer.text());
    assert_eq!(download(&daemon, "nobody", &format!("{}/none", folder.closed)).status, 404);
    let moved = json!({"source": secret, "destination": format!("{}/a/b", folder.closed)});
    // The directory is made for the user, who then controls its names.
    refused("Move", &call(&daemon, "nobody", "Move", &moved), &format!("{}/a/b", folder.closed));
    let moved = json!({"source": secret, "destination": format!("{}/moved", folder.closed)});
    assert_eq!(call(&daemon, "nobody", "Move", &moved).status, 200);
    let all = format!("{}/all", folder.closed);
    let joined = compose(&daemon, "nobody", &format!("{}/moved", folder.closed), &all);
    assert_eq!(joined.status, 200, "{}", joined.text());
    assert_eq!(fs::metadata(&all).unwrap().uid(), NOBODY);
    let removed = call(&daemon, "nobody", "Remove", &json!({"path": folder.closed}));
    assert_eq!(removed.status, 200, "{}", removed.text());
    assert!(!fs::exists(&folder.closed).unwrap());
}

#[test]
fn with_sudo_nothing_is_changed_where_others_control_names() {
    let daemon = TestDaemon::start();
    let folder = TestFolder::new(&daemon);
    for mode in [0o1777, 0o777, 0o775] {
        let public = daemon.path(&format!("public{mode:o}"));
        fs::create_dir(&public).unwrap();
        fs::set_permissions(&public, fs::Permissions::from_mode(mode)).unwrap();
        let at = |name: &str| format!("{public}/{name}");
        symlink(format!("{}/secret", folder.closed), at("planted")).unwrap();
        lchown(at("planted"), Some(NOBODY), Some(NOBODY)).unwrap();
        // Not even root's, since another may have put it there under this name.
        symlink(format!("{}/secret", folder.closed), at("roots")).unwrap();
        fs::write(at("file"), "kept").unwrap();
        fs::create_dir(at("d")).unwrap();
        fs::write(at("d/inner"), "kept").unwrap();
        for name in ["file", "d", "d/inner"] {
            fs::set_permissions(at(name), fs::Permissions::from_mode(0o700)).unwrap();
        }
        for name in ["planted", "roots", "file"] {
            refused("upload", &upload(&daemon, "nobody", &at(name), b"attack"), &at(name));
        }
        refused("download", &download(&daemon, "nobody", &at("planted")), &at("planted"));
        // Reading changes nothing, and goes by no link.
        assert_eq!(download(&daemon, "nobody", &at("file")).text(), "kept");
        assert_eq!(download(&daemon, "nobody", &at("d/inner")).text(), "kept");
        if mode != 0o777 {
            let request = json!({"path": at("file")});
            refused("Remove", &call(&daemon, "nobody", "Remove", &request), &at("file"));
            let request = json!({"source": at("file"), "destination": at("other")});
            refused("Move", &call(&daemon, "nobody", "Move", &request), &at("other"));
        }
        assert_eq!(fs::read_to_string(at("file")).unwrap_or("kept".into()), "kept");
        folder.check("public");
    }
}

#[test]
fn every_request_of_many_at_once_has_its_own_rights() {
    for (kind, daemon) in both() {
        let public = daemon.path("public");
        fs::create_dir(&public).unwrap();
        fs::set_permissions(&public, fs::Permissions::from_mode(0o1777)).unwrap();
        let secret = daemon.path("secret");
        fs::write(&secret, "kept").unwrap();
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
        let watch = json!({"path": public, "recursive": true});
        assert_eq!(call(&daemon, "games", "CreateWatcher", &watch).status, 200);
        let users = [("root", 0), ("nobody", NOBODY), ("daemon", 1), ("games", 5)];
        std::thread::scope(|scope| {
            for worker in 0..8 {
                let (daemon, public, secret) = (&daemon, &public, &secret);
                scope.spawn(move || {
                    for round in 0..25 {
                        let (user, uid) = users[(worker + round) % users.len()];
                        let path = format!("{public}/{worker}-{round}/a/file");
                        assert_eq!(upload(daemon, user, &path, b"x").status, 200, "{kind}");
                        let found = fs::metadata(&path).unwrap();
                        assert_eq!((found.uid(), user), (uid, user), "{kind}");
                        let status = download(daemon, user, secret).status;
                        let expected = if uid == 0 || kind == "with sudo" { 200 } else { 403 };
                        assert_eq!(status, expected, "{kind}: {user}");
                        // An upload to root's file; another user has no right to it.
                        let status = upload(daemon, user, &format!("{path}/x"), b"x").status;
                        assert_eq!(status, 500, "{kind}: {user}");
                    }
                });
            }
        });
        // What the threads do by themselves is root's: a command that reads root's file.
        let (stdout, _, end) = daemon.run(&format!("cat {secret}"));
        assert_eq!((&*stdout, &end["status"]), ("kept", &json!("exit status 0")));
        for task in fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap() {
            // A thread may end meanwhile.
            let Ok(status) = fs::read_to_string(task.unwrap().path().join("status")) else {
                continue;
            };
            assert!(status.contains("Uid:\t0\t0\t0\t0\n"), "{kind}: {status}");
            assert!(status.contains("Gid:\t0\t0\t0\t0\n"), "{kind}: {status}");
            assert!(!status.contains("CapEff:\t0000000000000000\n"), "{kind}: {status}");
        }
    }
}

#[test]
fn rights_that_cannot_be_taken_are_an_error_and_no_more() {
    // No other user than root is mapped, and no group can be set.
    let daemon = TestDaemon::start_within("true");
    for _ in 0..3 {
        let answer = download(&daemon, "nobody", "/etc/hosts");
        assert_eq!((answer.status, &answer.json()["code"]), (500, &json!(500)));
        let answer = call(&daemon, "nobody", "Stat", &json!({"path": "/"}));
        assert_eq!((answer.status, &answer.json()["code"]), (500, &json!("internal")));
        assert_eq!(download(&daemon, "root", "/etc/hosts").status, 200);
    }
}

#[test]
fn what_the_daemon_has_open_for_others_is_theirs() {
    let daemon = without_sudo();
    let folder = TestFolder::new(&daemon);
    // Everybody may read it, and nobody may go there.
    let path = format!("{}/open", folder.closed);
    fs::write(&path, vec![b'x'; 50 << 20]).unwrap();
    let reading = daemon.send("GET", &format!("/files?username=root&path={path}"), &[], b"");
    until("it reads", || daemon.open_files(&path) == 1);
    for directory in ["self", "thread-self", &daemon.pid().to_string()] {
        for number in 0..64 {
            let link = format!("/proc/{directory}/fd/{number}");
            let answer = download(&daemon, "nobody", &link);
            assert_ne!(answer.status, 200, "{link}");
            let answer = call(&daemon, "nobody", "ListDir", &json!({"path": link}));
            assert_ne!(answer.status, 200, "{link}");
        }
    }
    assert_eq!(daemon.open_files(&path), 1);
    drop(reading);
}

#[test]
fn a_working_directory_tells_nothing_that_the_user_may_not_know() {
    // executor 4.2
    let daemon = TestDaemon::start();
    let folder = TestFolder::new(&daemon);
    let nobody = basic("nobody");
    let refusal = |path: &str| {
        let mut message = shell("true");
        message["process"]["cwd"] = json!(path);
        let headers = [("Authorization", nobody.as_str())];
        let error = daemon.stream("/process.Process/Start", &message, &headers).error();
        assert_eq!(error["code"], "invalid_argument");
        error["message"].as_str().unwrap().replace(path, "")
    };
    let (there, missing) = (format!("{}/secret/x", folder.closed), format!("{}/x", folder.closed));
    assert_eq!(refusal(&there), refusal(&missing));
    assert_eq!(refusal(&folder.at("x")), "cwd '' does not exist");
}
