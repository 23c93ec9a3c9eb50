//! Section 6.4 and 6.5: compressed downloads and uploads.

use std::io::{Read as _, Write as _};

use flate2::read::GzDecoder;
use flate2::write::GzEncoder;

use super::files::{noise, upload};
use super::support::TestDaemon;

fn gunzip(bytes: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    GzDecoder::new(bytes).read_to_end(&mut plain).expect("gzip");
    plain
}

#[test]
fn downloads_are_compressed_where_it_is_asked_and_helps() {
    let daemon = TestDaemon::start();
    let path = daemon.path("big.txt");
    let text: Vec<u8> =
        (0..50_000).flat_map(|n| format!("line {n} of a log\n").into_bytes()).collect();
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
fn compressed_is_what_gains_by_it() {
    // executor 6.4; issue 4: "gets it only where it is a gain"
    let daemon = TestDaemon::start();
    let noise = noise(200_000);
    let text =
        |length: usize| b"one line of many in a log\n".repeat(length / 26 + 1)[..length].to_vec();
    let gzip = [("Accept-Encoding", "gzip, deflate, br")];
    let only = [("Accept-Encoding", "gzip;q=1, *;q=0")];
    for (name, content, packed) in [
        ("empty", Vec::new(), false),
        ("packet", text(1300), false),
        ("small text", text(2000), true),
        ("text", text(60_000), true),
        ("large text", text(300_000), true),
        ("small noise", noise[..3000].to_vec(), false),
        ("noise", noise.clone(), false),
        // Much of it is noise, though not its start.
        ("mixed", [text(60_000), noise].concat(), false),
    ] {
        let path = daemon.path(&name.replace(' ', "-"));
        std::fs::write(&path, &content).unwrap();
        let target = format!("/files?path={path}");
        let answer = daemon.call("GET", &target, &gzip, b"");
        let encoding = answer.header("content-encoding");
        assert_eq!(encoding.as_deref(), packed.then_some("gzip"), "{name}");
        let body = if packed { gunzip(&answer.body) } else { answer.body };
        assert!(body == content, "{name}");
        // Whoever refuses identity gets gzip all the same.
        let answer = daemon.call("GET", &target, &only, b"");
        assert_eq!(answer.header("content-encoding").as_deref(), Some("gzip"), "{name}");
        assert_eq!(answer.header("content-type").as_deref(), Some("application/octet-stream"));
        assert_eq!((answer.header("accept-ranges"), answer.header("last-modified")), (None, None));
        assert!(gunzip(&answer.body) == content, "{name}");
    }
}

#[test]
fn uploads_are_unpacked_and_broken_ones_refused() {
    // executor 6.5: Content-Encoding of the request, for both content types
    let daemon = TestDaemon::start();
    let pack = |bytes: &[u8]| {
        let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    };
    let path = daemon.path("f");
    let gzip = [("Content-Encoding", "gzip")];
    let content = noise(600_000);
    assert_eq!(upload(&daemon, &path, &gzip, &pack(&content)).status, 200);
    assert!(std::fs::read(&path).unwrap() == content);
    let body = "--XX\r\nContent-Disposition: form-data; name=\"file\"\r\n\r\nparts\r\n--XX--\r\n";
    let headers = [("Content-Type", "multipart/form-data; boundary=XX"), gzip[0]];
    let target = format!("/files?path={path}");
    assert_eq!(daemon.call("POST", &target, &headers, &pack(body.as_bytes())).status, 200);
    assert_eq!(std::fs::read(&path).unwrap(), b"parts");
    let cut = &pack(&content)[..300_000];
    assert_eq!(upload(&daemon, &path, &gzip, cut).status, 400);
    let missing = daemon.path("new");
    assert_eq!(upload(&daemon, &missing, &gzip, b"no gzip").status, 400);
    assert!(!std::fs::exists(&missing).unwrap());
    assert_eq!(upload(&daemon, &path, &[("Content-Encoding", "deflate")], b"x").status, 400);
}
