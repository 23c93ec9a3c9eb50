//! Sections 3.1 and 6: files that are not ordinary, uploads that break off, and in which order requests are checked.

use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;

use flate2::read::GzDecoder;

use super::support::{DaemonAnswer, TestDaemon, basic};

const OCTETS: (&str, &str) = ("Content-Type", "application/octet-stream");

// executor 6.4: the content, also of a file that the kernel makes as it is read and whose size it tells as 0.
#[test]
fn files_that_do_not_tell_their_size_are_read_to_their_end() {
    let daemon = TestDaemon::start();
    for path in ["/proc/cpuinfo", "/proc/kallsyms"] {
        let expected = std::fs::read(path).expect("it is there");
        assert!(!expected.is_empty());
        assert_eq!(std::fs::metadata(path).expect("it is there").size(), 0);
        let target = format!("/files?path={path}");
        // The clock of a processor may change while it is looked at.
        let same = |found: &[u8]| match path {
            "/proc/kallsyms" => found == expected,
            _ => found.starts_with(&expected[..40]) && found.len().abs_diff(expected.len()) < 99,
        };
        assert!(same(&daemon.get(&target).body), "{path}");
        let gzip = daemon.call("GET", &target, &[("Accept-Encoding", "gzip")], b"");
        assert_eq!(gzip.header("content-encoding").as_deref(), Some("gzip"), "{path}");
        let mut plain = Vec::new();
        GzDecoder::new(&gzip.body[..]).read_to_end(&mut plain).expect("gzip");
        assert!(same(&plain), "{path}");
    }
    let path = daemon.path("empty");
    std::fs::write(&path, "").expect("a file");
    let empty = daemon.get(&format!("/files?path={path}"));
    assert_eq!((empty.status, empty.header("content-length").as_deref()), (200, Some("0")));
}

#[test]
fn an_upload_that_breaks_off_early_leaves_everything_as_it_was() {
    let daemon = TestDaemon::start();
    let kind = [("Content-Type", "multipart/form-data; boundary=X")];
    let (new, old) = (daemon.path("new"), daemon.path("old"));
    std::fs::write(&old, "kept").expect("a file");
    for path in [&new, &old] {
        let cut = format!(
            "--X\r\nContent-Disposition: form-data; name=\"file\"; filename=\"{path}\"\r\n\r\nhalf"
        );
        assert_eq!(daemon.call("POST", "/files", &kind, cut.as_bytes()).status, 400);
    }
    assert!(!std::fs::exists(&new).expect("its directory is ours"));
    assert_eq!(std::fs::read_to_string(&old).expect("it is there"), "kept");
}

// executor 6.5: signature or token, encoding, user, metadata, content type.
#[test]
fn what_is_wrong_with_an_upload_is_told_in_order() {
    let daemon = TestDaemon::start();
    let path = daemon.path("x");
    let ask = |query: &str, headers: &[(&str, &str)]| {
        daemon.call("POST", &format!("/files?path={path}{query}"), headers, b"x")
    };
    let told = |answer: DaemonAnswer, status: u16, text: &str| {
        assert_eq!(answer.status, status, "{}", answer.text());
        assert!(answer.text().contains(text), "{} in {}", text, answer.text());
    };
    let (encoding, metadata) = (("Content-Encoding", "br"), ("X-Metadata-A", "tab\there"));
    let unknown = "&username=no-such-user";
    told(ask(unknown, &[encoding, OCTETS]), 400, "Content-Encoding");
    told(ask(unknown, &[metadata, OCTETS]), 401, "invalid username: 'no-such-user'");
    told(ask(unknown, &[("Content-Type", "text/plain")]), 401, "invalid username");
    told(ask("", &[metadata, ("Content-Type", "text/plain")]), 400, "etadata");
    told(ask("", &[("Content-Type", "text/plain")]), 400, "text/plain");
    // Nobody is named by an upload without files either.
    let kind = ("Content-Type", "multipart/form-data; boundary=X");
    let nothing = daemon.call("POST", &format!("/files?{unknown}"), &[kind], b"--X--\r\n");
    told(nothing, 401, "invalid username");
    daemon.show_no_token();
    told(ask(unknown, &[encoding]), 401, "missing signature");
    assert!(!std::fs::exists(&path).expect("its directory is ours"));
}

// executor 3.1: `username` counts, else the default user, who reads all where it can become root.
#[test]
fn files_go_by_their_own_parameter_for_the_user() {
    let daemon = TestDaemon::start();
    let nobody = basic("nobody");
    let path = daemon.path("mine");
    let headers = [OCTETS, ("Authorization", &*nobody)];
    let answer = daemon.call("POST", &format!("/files?path={path}"), &headers, b"x");
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(std::fs::metadata(&path).expect("it is there").uid(), 0);
    let secret = daemon.get("/files?username=nobody&path=/etc/shadow");
    assert_eq!(secret.status, 200, "{}", secret.text());
}

// executor 6.5: up to 4096 bytes of metadata, which comes as that many headers.
#[test]
fn metadata_may_come_in_hundreds_of_headers() {
    // A file system without attributes: the upload succeeds all the same.
    let daemon = TestDaemon::start_within("mount -t ramfs none /mnt");
    let names: Vec<String> = (0..370).map(|n| format!("X-Metadata-{}", letters(n))).collect();
    let mut headers = vec![OCTETS];
    headers.extend(names.iter().map(|name| (&**name, "")));
    let answer = daemon.call("POST", "/files?path=/mnt/x", &headers, b"content");
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.json()[0].get("metadata"), None);
    assert_eq!(daemon.get("/files?path=/mnt/x").body, b"content");
}

/// The names `aa`, `ab` and so on.
fn letters(number: u32) -> String {
    let letter = |n: u32| char::from_u32(u32::from(b'a') + n % 26).expect("a letter");
    [letter(number / 26), letter(number)].iter().collect()
}
