//! Section 6: files.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::support::{Answer, Daemon};

const OCTETS: (&str, &str) = ("Content-Type", "application/octet-stream");

fn upload(daemon: &Daemon, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    let headers = [&[OCTETS], headers].concat();
    daemon.call("POST", &format!("/files?path={path}"), &headers, body)
}

fn gunzip(bytes: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    GzDecoder::new(bytes).read_to_end(&mut plain).expect("gzip");
    plain
}

#[test]
fn an_upload_answers_exactly_and_belongs_to_the_user() {
    let daemon = Daemon::start();
    let path = daemon.path("deep/new/a.txt");
    let answer = upload(&daemon, &path, &[], b"hello");
    assert_eq!(answer.status, 200);
    assert_eq!(answer.json(), json!([{"name": "a.txt", "path": path, "type": "file"}]));
    assert_eq!(std::fs::read(&path).unwrap(), b"hello");
    assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, 0o644);
    let target = format!("/files?username=nobody&path={path}");
    assert_eq!(daemon.call("POST", &target, &[OCTETS], b"x").status, 200);
    assert_eq!(std::fs::read(&path).unwrap(), b"x");
    assert_ne!(std::fs::metadata(&path).unwrap().uid(), 0);
}

#[test]
fn what_cannot_be_written_says_why() {
    let daemon = Daemon::start();
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
    let daemon = Daemon::start();
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
fn downloads_are_compressed_where_it_is_asked_and_helps() {
    let daemon = Daemon::start();
    let path = daemon.path("big.txt");
    let text: Vec<u8> = (0..200_000u32).flat_map(|n| n.to_string().into_bytes()).collect();
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(&text).unwrap();
    let packed = encoder.finish().unwrap();
    let uploaded = upload(&daemon, &path, &[("Content-Encoding", "gzip")], &packed);
    assert_eq!(uploaded.status, 200);
    let target = format!("/files?path={path}");
    let plain = daemon.get(&target);
    assert!(plain.body == text);
    assert_eq!(plain.header("content-length"), Some(text.len().to_string()));
    let gzip = [("Accept-Encoding", "gzip, deflate")];
    let compressed = daemon.call("GET", &target, &gzip, b"");
    assert_eq!(compressed.header("content-encoding").as_deref(), Some("gzip"));
    assert_eq!(compressed.header("accept-ranges"), None);
    assert!(gunzip(&compressed.body) == text);
    // Once more compressed it would not shrink: it is sent as it is.
    let mut noise = vec![0; 300_000];
    std::fs::File::open("/dev/urandom").unwrap().read_exact(&mut noise).unwrap();
    let path = daemon.path("noise");
    assert_eq!(upload(&daemon, &path, &[], &noise).status, 200);
    let target = format!("/files?path={path}");
    let answer = daemon.call("GET", &target, &gzip, b"");
    assert_eq!(answer.header("content-encoding"), None);
    assert_eq!(answer.header("content-type").as_deref(), Some("application/octet-stream"));
    assert!(answer.body == noise);
    let only = [("Accept-Encoding", "gzip, identity;q=0")];
    assert!(gunzip(&daemon.call("GET", &target, &only, b"").body) == noise);
    let neither = [("Accept-Encoding", "identity;q=0")];
    assert_eq!(daemon.call("GET", &target, &neither, b"").status, 406);
}

#[test]
fn parts_and_conditions() {
    let daemon = Daemon::start();
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
    let daemon = Daemon::start();
    let init = json!({"accessToken": "tok", "timestamp": "2026-01-01T00:00:00Z"});
    assert_eq!(daemon.init(&init).status, 204);
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
    let daemon = Daemon::start();
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

#[test]
fn files_are_composed_and_their_sources_go() {
    let daemon = Daemon::start();
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
