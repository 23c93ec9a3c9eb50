//! Section 6: files.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::support::{DaemonAnswer, TOKEN_LINE, TestDaemon, until};

const OCTETS: (&str, &str) = ("Content-Type", "application/octet-stream");

pub(super) fn upload(
    daemon: &TestDaemon,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> DaemonAnswer {
    let headers = [&[OCTETS], headers].concat();
    daemon.call("POST", &format!("/files?path={path}"), &headers, body)
}

#[test]
fn an_upload_answers_exactly_and_belongs_to_the_user() {
    let daemon = TestDaemon::start();
    let path = daemon.path("deep/new/a.txt");
    let answer = upload(&daemon, &path, &[], b"hello");
    assert_eq!(answer.status, 200);
    assert_eq!(answer.json(), json!([{"name": "a.txt", "path": path, "type": "file"}]));
    assert_eq!(std::fs::read(&path).unwrap(), b"hello");
    assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, 0o644);
    // Another's file stays the other's, where a user who can become root writes it.
    let target = format!("/files?username=nobody&path={path}");
    assert_eq!(daemon.call("POST", &target, &[OCTETS], b"x").status, 200);
    assert_eq!(std::fs::read(&path).unwrap(), b"x");
    assert_eq!(std::fs::metadata(&path).unwrap().uid(), 0);
    std::os::unix::fs::chown(&path, Some(65534), None).unwrap();
    assert_eq!(upload(&daemon, &path, &[], b"y").status, 200);
    assert_eq!(std::fs::metadata(&path).unwrap().uid(), 0);
}

#[test]
fn what_cannot_be_written_says_why() {
    let daemon = TestDaemon::start();
    let directory = daemon.path("");
    let file = daemon.path("file");
    std::fs::write(&file, "").unwrap();
    let status = |path: &str, headers: &[(&str, &str)]| {
        let answer = upload(&daemon, path, headers, b"x");
        assert_eq!(answer.json()["code"], answer.status);
        answer.status
    };
    assert_eq!(status(&directory, &[]), 400);
    assert_eq!(status(&format!("{file}/below"), &[]), 500);
    assert_eq!(status("", &[]), 400);
    assert_eq!(status(&file, &[("Content-Encoding", "br")]), 400);
    assert_eq!(status(&file, &[("Content-Encoding", "gzip")]), 400);
    assert_eq!(status("/tmp/x&username=no-such-user", &[]), 401);
    let kind = [("Content-Type", "text/plain")];
    assert_eq!(daemon.call("POST", &format!("/files?path={file}"), &kind, b"x").status, 400);
    let full = upload(&daemon, "/dev/full", &[], b"x");
    assert_eq!((full.status, &full.json()["code"]), (507, &json!(507)));
}

#[test]
fn several_files_come_as_parts_with_their_directories() {
    let daemon = TestDaemon::start();
    let (one, two) = (daemon.path("d/one.txt"), daemon.path("d/e/zwei; ü.txt"));
    let kind = [("Content-Type", "multipart/form-data; boundary=XX")];
    let part = |name: &str, filename: Option<&str>, content: &str| {
        let filename = filename.map_or(String::new(), |name| format!("; filename=\"{name}\""));
        format!(
            "--XX\r\nContent-Disposition: form-data; name=\"{name}\"{filename}\r\n\r\n{content}\r\n"
        )
    };
    let body = [
        part("file", Some(&one), "1"),
        part("other", None, "skipped"),
        part("file", Some(&two), "22"),
        "--XX--\r\n".to_owned(),
    ]
    .concat();
    let answer = daemon.call("POST", "/files", &kind, body.as_bytes());
    let expected = json!([
        {"name": "one.txt", "path": one, "type": "file"},
        {"name": "zwei; ü.txt", "path": two, "type": "file"},
    ]);
    assert_eq!((answer.status, answer.json()), (200, expected));
    assert_eq!(std::fs::read(&two).unwrap(), b"22");
    let plain = [part("file", None, "field"), "--XX--\r\n".to_owned()].concat();
    assert_eq!(daemon.call("POST", "/files", &kind, plain.as_bytes()).status, 400);
    let target = format!("/files?path={one}");
    assert_eq!(daemon.call("POST", &target, &kind, plain.as_bytes()).status, 200);
    assert_eq!(std::fs::read(&one).unwrap(), b"field");
    let twice = [part("file", None, "a"), part("file", None, "b"), "--XX--\r\n".into()].concat();
    assert_eq!(daemon.call("POST", &target, &kind, twice.as_bytes()).status, 400);
    let none = daemon.call("POST", "/files", &kind, b"--XX--\r\n");
    assert_eq!((none.status, none.json()), (200, json!([])));
}

#[test]
fn parts_and_conditions() {
    let daemon = TestDaemon::start();
    let path = daemon.path("a b.txt");
    std::fs::write(&path, "0123456789").unwrap();
    let target = format!("/files?path={}", path.replace(' ', "+"));
    let whole = daemon.get(&target);
    let disposition = whole.header("content-disposition").unwrap();
    assert_eq!(disposition, "inline; filename=\"a b.txt\"");
    assert_eq!(whole.header("vary").as_deref(), Some("Accept-Encoding, Origin"));
    assert_eq!(whole.header("accept-ranges").as_deref(), Some("bytes"));
    let modified = whole.header("last-modified").unwrap();
    let part = daemon.call("GET", &target, &[("Range", "bytes=2-4")], b"");
    assert_eq!((part.status, part.text()), (206, "234"));
    assert_eq!(part.header("content-range").as_deref(), Some("bytes 2-4/10"));
    let parts = daemon.call("GET", &target, &[("Range", "bytes=0-1,8-")], b"");
    assert_eq!(parts.status, 206);
    assert_eq!(parts.header("content-length"), Some(parts.body.len().to_string()));
    assert!(parts.text().contains("Content-Range: bytes 8-9/10"), "{}", parts.text());
    let beyond = daemon.call("GET", &target, &[("Range", "bytes=10-")], b"");
    assert_eq!(beyond.status, 416);
    assert_eq!(beyond.header("content-range").as_deref(), Some("bytes */10"));
    let known = [("If-Modified-Since", modified.as_str())];
    assert_eq!(daemon.call("GET", &target, &known, b"").status, 304);
    std::fs::write(daemon.path("empty"), "").unwrap();
    let empty = daemon.get(&format!("/files?path={}", daemon.path("empty")));
    assert_eq!(empty.header("content-length").as_deref(), Some("0"));
    assert_eq!(empty.header("content-type").as_deref(), Some("text/plain; charset=utf-8"));
    let missing = daemon.get("/files?path=/home/user/demo/test.txt");
    assert_eq!(missing.status, 404);
    assert_eq!(missing.json()["message"], "path '/home/user/demo/test.txt' does not exist");
    let directory = daemon.get("/files?path=/tmp");
    assert_eq!(directory.json()["message"], "path '/tmp' is a directory");
}

#[test]
fn signatures_open_one_path_for_one_operation_and_time() {
    let daemon = TestDaemon::start();
    daemon.show_no_token();
    let path = daemon.path("signed");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let target = |operation: &str, expiration: u64| {
        let text = format!("{path}:{operation}::tok:{expiration}");
        let signature = format!("v1_{}", STANDARD_NO_PAD.encode(Sha256::digest(text)));
        let signature: String = form_urlencoded::byte_serialize(signature.as_bytes()).collect();
        format!("/files?path={path}&signature={signature}&signature_expiration={expiration}")
    };
    let uploaded = daemon.call("POST", &target("write", now + 60), &[OCTETS], b"x");
    assert_eq!(uploaded.status, 200);
    assert_eq!(daemon.get(&target("read", now + 60)).text(), "x");
    let wrong = daemon.get(&target("write", now + 60));
    assert_eq!(wrong.json(), json!({"code": 401, "message": "invalid signature"}));
    let expired = daemon.get(&target("read", now - 120));
    assert_eq!(expired.json(), json!({"code": 401, "message": "signature is already expired"}));
    let header = [("X-Access-Token", "no")];
    let mismatch = daemon.call("GET", &target("read", now + 60), &header, b"");
    let text = "access token present in header but does not match";
    assert_eq!(mismatch.json(), json!({"code": 401, "message": text}));
}

#[test]
fn metadata_is_replaced_by_every_upload() {
    let daemon = TestDaemon::start();
    let path = daemon.path("m");
    let first = upload(&daemon, &path, &[("X-Metadata-Author", "me"), ("X-Metadata-B", "2")], b"1");
    let stored = first.json()[0]["metadata"].clone();
    assert_eq!(stored, json!({"author": "me", "b": "2"}));
    let stat = daemon.unary("/filesystem.Filesystem/Stat", &json!({"path": path})).json();
    assert_eq!(stat["entry"]["metadata"], json!({"author": "me", "b": "2"}));
    let second = upload(&daemon, &path, &[("X-Metadata-Author", "you")], b"2");
    assert_eq!(second.json()[0]["metadata"], json!({"author": "you"}));
    assert_eq!(upload(&daemon, &path, &[], b"3").json()[0].get("metadata"), None);
}

pub(super) fn noise(length: usize) -> Vec<u8> {
    let mut noise = vec![0; length];
    let mut random = std::fs::File::open("/dev/urandom").expect("Linux has it");
    random.read_exact(&mut noise).expect("it never ends");
    noise
}

#[test]
fn a_full_disk_is_507_at_any_moment_of_an_upload() {
    // executor 6.5: no space, no inodes; issue 4: "a disk that fills up mid-upload"
    let daemon = TestDaemon::start_within("mount -t tmpfs -o size=1m,nr_inodes=8 none /mnt");
    let large = noise(4 << 20);
    let full = |answer: &DaemonAnswer| {
        assert_eq!(
            (answer.status, &answer.json()["code"]),
            (507, &json!(507)),
            "{}",
            answer.text()
        );
    };
    full(&upload(&daemon, "/mnt/large", &[], &large));
    let part = "--XX\r\nContent-Disposition: form-data; name=\"file\"\r\n\r\n";
    let body = [part.as_bytes(), &large, b"\r\n--XX--\r\n"].concat();
    let kind = [("Content-Type", "multipart/form-data; boundary=XX")];
    full(&daemon.call("POST", "/files?path=/mnt/large", &kind, &body));
    let remove = json!({"path": "/mnt/large"});
    assert_eq!(daemon.unary("/filesystem.Filesystem/Remove", &remove).status, 200);
    assert_eq!(upload(&daemon, "/mnt/small", &[], b"fits").status, 200);
    assert_eq!(daemon.get("/files?path=/mnt/small").text(), "fits");
    let statuses: Vec<u16> =
        (0..10).map(|n| upload(&daemon, &format!("/mnt/{n}"), &[], b"").status).collect();
    assert_eq!((statuses[0], statuses[9]), (200, 507), "{statuses:?}");
    full(&upload(&daemon, "/mnt/d/e/f", &[], b""));
    assert_eq!(daemon.open_files("/mnt"), 0);
}

#[test]
fn what_may_not_be_written_is_500() {
    // executor 6.5: "other I/O"
    let daemon = TestDaemon::start_within(
        "mount -t tmpfs none /mnt; echo kept > /mnt/file; mount -o remount,ro none /mnt",
    );
    for path in ["/mnt/new", "/mnt/file", "/mnt/d/new"] {
        let answer = upload(&daemon, path, &[], b"x");
        assert_eq!((answer.status, &answer.json()["code"]), (500, &json!(500)), "{path}");
    }
    assert_eq!(daemon.get("/files?path=/mnt/file").text(), "kept\n");
}

#[test]
fn strange_paths_are_errors_of_their_kind() {
    // executor 5.1, 6.4, 6.5; issue 4, "Bad input"
    let daemon = TestDaemon::start();
    let looped = daemon.path("loop");
    std::os::unix::fs::symlink("loop", &looped).unwrap();
    let pipe = daemon.path("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let long = format!("/{}", "x".repeat(5000));
    let many = format!("/{}", "d/".repeat(2500));
    for (path, read, written) in [
        ("a%00b", 400, 400),
        ("~bob/x", 400, 400),
        (&*long, 500, 500),
        (&*many, 500, 500),
        (&*looped, 500, 500),
        // Nobody reads or writes at its other end, and nobody waits for that.
        (&*pipe, 500, 500),
        ("/dev/null/x", 500, 500),
        ("/", 400, 400),
        ("/tmp/", 400, 400),
        ("", 400, 400),
    ] {
        let answer = daemon.get(&format!("/files?path={path}"));
        assert_eq!((answer.status, &answer.json()["code"]), (read, &json!(read)), "{path:.20}");
        assert_eq!(answer.header("x-content-type-options").as_deref(), Some("nosniff"));
        assert!(answer.text().ends_with("}\n"), "{}", answer.text());
        let answer = upload(&daemon, path, &[], b"x");
        assert_eq!(
            (answer.status, &answer.json()["code"]),
            (written, &json!(written)),
            "{path:.20}"
        );
    }
    let head = daemon.call("HEAD", "/files?path=/etc/hosts", &[], b"");
    assert_eq!((head.status, head.body.len()), (405, 0));
}

#[test]
fn checks_of_a_download_come_in_order() {
    // executor 6.4: signature, user, path, existence, directory, encoding
    let daemon = TestDaemon::start();
    let nothing = [("Accept-Encoding", "identity;q=0")];
    let status = |query: &str| daemon.call("GET", &format!("/files?{query}"), &nothing, b"").status;
    assert_eq!(status("path=~bob&username=no-such-user"), 401);
    assert_eq!(status("path=~bob"), 400);
    assert_eq!(status("path=/none"), 404);
    assert_eq!(status("path=/tmp"), 400);
    assert_eq!(status("path=/etc/hosts"), 406);
    daemon.show_no_token();
    assert_eq!(status("path=~bob&username=no-such-user"), 401);
    let unreadable = daemon.get("/files?path=x&signature=v1_x&signature_expiration=soon");
    assert_eq!(unreadable.status, 400);
    assert!(unreadable.header("content-type").unwrap().starts_with("text/plain"));
}

#[test]
fn a_signature_ends_with_its_second() {
    // executor 3.3: strictly less than now
    let daemon = TestDaemon::start();
    daemon.show_no_token();
    let path = daemon.path("f");
    std::fs::write(&path, "x").unwrap();
    let target = |expiration: u64| {
        let digest = Sha256::digest(format!("{path}:read::tok:{expiration}"));
        let signature = format!("v1_{}", STANDARD_NO_PAD.encode(digest));
        let signature: String = form_urlencoded::byte_serialize(signature.as_bytes()).collect();
        format!("/files?path={path}&signature={signature}&signature_expiration={expiration}")
    };
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let expired = daemon.get(&target(now() - 1));
    assert_eq!(expired.json(), json!({"code": 401, "message": "signature is already expired"}));
    // The second may end between the two; then once more.
    let answered = (0..10).any(|_| daemon.get(&target(now())).status == 200);
    assert!(answered);
    // Of a wrong one it is not said that it is expired.
    let forged = format!("{}x", target(now() - 1)).replace("signature=v1_", "signature=v1_A");
    assert_eq!(daemon.get(&forged).status, 400);
    let forged = target(now() - 1).replace("signature=v1_", "signature=v1_A");
    assert_eq!(daemon.get(&forged).json()["message"], "invalid signature");
    // executor 3.3, 1: an empty header is none, a wrong one is not made up for by a signature.
    let empty = [("X-Access-Token", "")];
    assert_eq!(daemon.call("GET", &target(now() + 60), &empty, b"").status, 200);
    // executor 6.6: composing has no signatures.
    assert_eq!(daemon.call("POST", "/files/compose", &[], b"{}").status, 401);
}

#[test]
fn a_client_that_vanishes_leaves_nothing_open() {
    // issue 4: "a client that vanishes mid-upload"
    let daemon = TestDaemon::start();
    let path = daemon.path("half");
    let head = |framing: &str| {
        format!(
            "POST /files?path={path} HTTP/1.1\r\nHost: x\r\n{TOKEN_LINE}{framing}\r\n\
             Content-Type: application/octet-stream\r\n\r\n"
        )
    };
    for framing in ["Content-Length: 50000000", "Transfer-Encoding: chunked"] {
        let mut socket = daemon.connect();
        socket.write_all(head(framing).as_bytes()).unwrap();
        let start = if framing.contains("chunked") { "F4240\r\n" } else { "" };
        socket.write_all(start.as_bytes()).unwrap();
        socket.write_all(&noise(1_000_000)).unwrap();
        until("it writes", || daemon.open_files(&path) == 1);
        drop(socket);
        until("the file is closed", || daemon.open_files(&path) == 0);
    }
    // A download that nobody reads, given up.
    std::fs::write(&path, vec![0; 50 << 20]).unwrap();
    let socket = daemon.send("GET", &format!("/files?path={path}"), &[], b"");
    until("it reads", || daemon.open_files(&path) == 1);
    drop(socket);
    until("the file is closed", || daemon.open_files(&path) == 0);
    assert_eq!(daemon.get("/health").status, 204);
}

#[test]
fn large_files_are_streamed_in_little_memory() {
    // executor 2.1: no body limit; issue 4: streamed to disk
    let daemon = TestDaemon::start();
    let memory = tempfile::tempdir_in("/dev/shm").unwrap();
    let path = memory.path().join("large").to_str().unwrap().to_owned();
    let chunk = noise(1 << 20);
    let mut socket = daemon.connect();
    let head = format!(
        "POST /files?path={path} HTTP/1.1\r\nHost: x\r\n{TOKEN_LINE}Connection: close\r\n\
         Transfer-Encoding: chunked\r\nContent-Type: application/octet-stream\r\n\r\n"
    );
    socket.write_all(head.as_bytes()).unwrap();
    let before = daemon.resident_kib();
    let mut most = before;
    for _ in 0..100 {
        socket.write_all(b"100000\r\n").unwrap();
        socket.write_all(&chunk).unwrap();
        socket.write_all(b"\r\n").unwrap();
        most = most.max(daemon.resident_kib());
    }
    socket.write_all(b"0\r\n\r\n").unwrap();
    assert_eq!(DaemonAnswer::read(&mut socket).status, 200);
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 100 << 20);
    let whole = daemon.get(&format!("/files?path={path}"));
    assert!(whole.body.chunks(1 << 20).all(|part| part == chunk) && whole.body.len() == 100 << 20);
    most = most.max(daemon.resident_kib());
    assert!(most - before < 8 << 10, "{before} to {most} KiB");
}

#[test]
fn parallel_uploads_make_one_tree() {
    // executor 11.25
    let daemon = TestDaemon::start();
    let path = daemon.path("new/nested/directory");
    std::thread::scope(|scope| {
        for name in ["a", "b", "c", "d"] {
            let (daemon, path) = (&daemon, &path);
            scope.spawn(move || {
                let target = format!("/files?username=nobody&path={path}/{name}");
                assert_eq!(daemon.call("POST", &target, &[OCTETS], name.as_bytes()).status, 200);
            });
        }
    });
    for name in ["a", "b", "c", "d"] {
        let file = std::fs::metadata(format!("{path}/{name}")).unwrap();
        let parent = std::fs::metadata(&path).unwrap();
        assert_eq!((file.uid(), file.mode() & 0o7777), (parent.uid(), 0o644));
        assert_ne!(file.uid(), 0);
        assert_eq!(parent.mode() & 0o7777, 0o755);
    }
}

#[test]
fn an_existing_file_is_written_in_place() {
    // executor 6.5: same inode, mode kept, another's file stays the other's, through links
    let daemon = TestDaemon::start();
    let (path, link) = (daemon.path("f"), daemon.path("link"));
    std::fs::write(&path, "a longer content").unwrap();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o750)).unwrap();
    std::os::unix::fs::symlink("f", &link).unwrap();
    let before = std::fs::metadata(&path).unwrap();
    let answer =
        daemon.call("POST", &format!("/files?username=nobody&path={link}"), &[OCTETS], b"x");
    assert_eq!(answer.json()[0]["path"], link);
    let after = std::fs::metadata(&path).unwrap();
    assert_eq!((after.ino(), after.mode() & 0o7777, after.len()), (before.ino(), 0o750, 1));
    assert_eq!(after.uid(), 0);
    assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
}

#[test]
fn file_names_of_parts_are_taken_as_they_stand() {
    // executor 6.5: raw UTF-8, "%22" not decoded, directories kept; relative to home
    let daemon = TestDaemon::start();
    let kind = [("Content-Type", "multipart/form-data; boundary=\"X X\"")];
    for name in ["a%22b.txt", "d/ü 文.txt", "semi;colon=1.txt", "'quoted'.txt", "plus+&?.txt"] {
        let path = daemon.path(name);
        let body = format!(
            "--X X\r\nContent-Disposition: form-data; name=\"file\"; filename=\"{path}\"\r\n\
             Content-Type: text/plain\r\n\r\n{name}\r\n--X X--\r\n"
        );
        let answer = daemon.call("POST", "/files", &kind, body.as_bytes());
        assert_eq!(answer.json()[0]["path"], path, "{name}");
        assert_eq!(std::fs::read_to_string(path).unwrap(), name);
    }
    let cut = b"--X X\r\nContent-Disposition: form-data; name=\"file\"; filename=\"x\"\r\n\r\nhalf";
    let target = format!("/files?path={}", daemon.path("half"));
    assert_eq!(daemon.call("POST", &target, &kind, cut).status, 400);
    let no_boundary = [("Content-Type", "multipart/form-data")];
    assert_eq!(daemon.call("POST", &target, &no_boundary, b"x").status, 400);
    assert_eq!(daemon.call("POST", &target, &[], b"x").status, 400);
}

#[test]
fn metadata_that_is_wrong_is_refused_before_anything_is_written() {
    // executor 6.5
    let daemon = TestDaemon::start();
    let path = daemon.path("m");
    let long = "k".repeat(247);
    for (name, value) in [
        (&*format!("X-Metadata-{long}"), "v"),
        ("X-Metadata-A", "tab\there"),
        ("X-Metadata-A", &*"v".repeat(4087)),
    ] {
        assert_eq!(upload(&daemon, &path, &[(name, value)], b"x").status, 400);
        assert!(!std::fs::exists(&path).unwrap());
    }
    let twice = [("X-Metadata-A", "first"), ("X-METADATA-a", "second"), ("X-Metadata-", "none")];
    let answer = upload(&daemon, &path, &twice, b"x");
    assert_eq!(answer.json()[0]["metadata"], json!({"a": "first"}));
    // Of every file of a request.
    let part = |path: &str| {
        let name = format!("name=\"file\"; filename=\"{path}\"");
        format!("--X\r\nContent-Disposition: form-data; {name}\r\n\r\n1\r\n")
    };
    let body = [part(&daemon.path("1")), part(&daemon.path("2")), "--X--\r\n".to_owned()].concat();
    let headers = [("Content-Type", "multipart/form-data; boundary=X"), ("X-Metadata-K", "v")];
    let answer = daemon.call("POST", "/files", &headers, body.as_bytes()).json();
    assert_eq!(answer[0]["metadata"], json!({"k": "v"}));
    assert_eq!(answer[1]["metadata"], json!({"k": "v"}));
}
