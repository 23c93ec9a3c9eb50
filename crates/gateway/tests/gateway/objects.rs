use percent_encoding::{AsciiSet, NON_ALPHANUMERIC};

use crate::client::noise;
use crate::host::{BUCKET, GatewayHost};
use crate::on_both_stores;

/// What a canonical path does not encode.
const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

on_both_stores!(an_object_comes_back_with_all_that_was_stored);
async fn an_object_comes_back_with_all_that_was_stored(host: GatewayHost) -> anyhow::Result<()> {
    let client = host.session("sessions/a/");
    let target = format!("/{BUCKET}/sessions/a/file.txt");
    let headers = [
        ("content-type", "text/plain"),
        ("cache-control", "max-age=5"),
        ("content-disposition", "attachment"),
        ("x-amz-meta-mode", "33188"),
        ("x-amz-meta-uid", "1000"),
        ("x-amz-acl", "private"),
    ];
    let put = client.send("PUT", &target, &headers, b"hello").await?.expect(200);
    assert_eq!(put.header("etag"), "\"5d41402abc4b2a76b9719d911017c592\"");
    for reply in [client.get(&target).await?, client.head(&target).await?] {
        let reply = reply.expect(200);
        assert_eq!(reply.header("content-length"), "5");
        assert_eq!(reply.header("content-type"), "text/plain");
        assert_eq!(reply.header("cache-control"), "max-age=5");
        assert_eq!(reply.header("content-disposition"), "attachment");
        assert_eq!(reply.header("x-amz-meta-mode"), "33188");
        assert_eq!(reply.header("x-amz-meta-uid"), "1000");
        assert_eq!(reply.header("etag"), put.header("etag"));
        assert!(reply.header("last-modified").ends_with("GMT"));
    }
    assert_eq!(client.get(&target).await?.body, "hello");
    client.delete(&target).await?.expect(204);
    client.delete(&target).await?.expect(204);
    client.get(&target).await?.expect_error(404, "NoSuchKey");
    client.head(&target).await?.expect(404);
    Ok(())
}

on_both_stores!(contents_of_all_sizes_come_back_whole_and_in_parts);
async fn contents_of_all_sizes_come_back_whole_and_in_parts(
    host: GatewayHost,
) -> anyhow::Result<()> {
    let client = host.session("sessions/a/");
    for size in [0usize, 1, 16_384, 16_385, 1_048_576, 3_000_001] {
        let (target, body) = (format!("/{BUCKET}/sessions/a/{size}"), noise(size, 1));
        client.put(&target, &body).await?.expect(200);
        assert!(client.get(&target).await?.expect(200).body == body, "{size}");
        if size < 2 {
            continue;
        }
        let last = size - 1;
        for (range, from, to) in [
            ("bytes=0-0".to_owned(), 0, 1),
            (format!("bytes=1-{}", size + 100), 1, size),
            (format!("bytes={last}-"), last, size),
            ("bytes=-10".to_owned(), size - 10, size),
        ] {
            let part = client.send("GET", &target, &[("range", &range)], b"").await?.expect(206);
            assert!(part.body == body[from..to], "{size} {range}");
            assert_eq!(part.header("content-range"), format!("bytes {from}-{}/{size}", to - 1));
        }
        let beyond = format!("bytes={size}-");
        let refused = client.send("GET", &target, &[("range", &beyond)], b"").await?;
        refused.expect_error(416, "InvalidRange");
    }
    Ok(())
}

on_both_stores!(keys_with_special_characters_are_kept);
async fn keys_with_special_characters_are_kept(host: GatewayHost) -> anyhow::Result<()> {
    let client = host.session("sessions/a/");
    let keys =
        ["a b", "a+b", "100%", "ü/ß", "q?x=1&y", "#h", "it's <ok> \"&\"", "~tilde", "a%2Fb", "x/"];
    for key in keys {
        let full = format!("sessions/a/{key}");
        let path = percent_encoding::utf8_percent_encode(&full, UNRESERVED);
        let target = format!("/{BUCKET}/{}", path.to_string().replace("%2F", "/"));
        // A slash inside a name that is encoded twice must not become a separator.
        let target = if key == "a%2Fb" { format!("/{BUCKET}/sessions/a/a%252Fb") } else { target };
        client.put(&target, key.as_bytes()).await?.expect(200);
        assert_eq!(client.get(&target).await?.expect(200).body, key.as_bytes(), "{key}");
    }
    let list = client.get(&format!("/{BUCKET}?encoding-type=url&prefix=sessions%2Fa%2F")).await?;
    let mut names: Vec<String> = list
        .expect(200)
        .elements("Key")
        .iter()
        .map(|name| {
            let plain = name.replace('+', " ");
            let bytes = percent_encoding::percent_decode_str(&plain).decode_utf8_lossy();
            bytes.trim_start_matches("sessions/a/").to_owned()
        })
        .collect();
    names.sort();
    let mut expected: Vec<String> = keys.iter().map(|key| (*key).to_owned()).collect();
    expected.sort();
    assert_eq!(names, expected);
    Ok(())
}

on_both_stores!(conditions_are_honoured);
async fn conditions_are_honoured(host: GatewayHost) -> anyhow::Result<()> {
    let client = host.session("sessions/a/");
    let target = format!("/{BUCKET}/sessions/a/c");
    let tag = client.put(&target, b"1").await?.expect(200).header("etag").to_owned();
    let past = "Thu, 01 Jan 2015 00:00:00 GMT";
    let future = "Thu, 01 Jan 2099 00:00:00 GMT";
    for (name, value, status) in [
        ("if-match", tag.as_str(), 200),
        ("if-match", "\"other\"", 412),
        ("if-none-match", tag.as_str(), 304),
        ("if-none-match", "\"other\"", 200),
        ("if-modified-since", past, 200),
        ("if-modified-since", future, 304),
        ("if-unmodified-since", past, 412),
        ("if-unmodified-since", future, 200),
    ] {
        let reply = client.send("GET", &target, &[(name, value)], b"").await?;
        assert_eq!(reply.status.as_u16(), status, "{name}: {value}");
    }
    let once = [("if-none-match", "*")];
    client.send("PUT", &target, &once, b"2").await?.expect_error(412, "PreconditionFailed");
    client.send("PUT", &format!("{target}2"), &once, b"2").await?.expect(200);
    assert_eq!(client.get(&target).await?.body, "1");
    Ok(())
}

on_both_stores!(a_copy_keeps_or_replaces_the_metadata);
async fn a_copy_keeps_or_replaces_the_metadata(host: GatewayHost) -> anyhow::Result<()> {
    let client = host.session("sessions/a/");
    let (from, to) = (format!("/{BUCKET}/sessions/a/f rom"), format!("/{BUCKET}/sessions/a/to"));
    let from_target = from.replace(' ', "%20");
    let body = noise(100_000, 2);
    let kept = [("x-amz-meta-mode", "1"), ("content-type", "text/x")];
    client.send("PUT", &from_target, &kept, &body).await?.expect(200);
    let source = [("x-amz-copy-source", from_target.as_str())];
    let copied = client.send("PUT", &to, &source, b"").await?.expect(200);
    assert_eq!(copied.elements("ETag").len(), 1, "{}", copied.text());
    let reply = client.get(&to).await?.expect(200);
    assert_eq!((reply.header("x-amz-meta-mode"), reply.header("content-type")), ("1", "text/x"));
    assert!(reply.body == body);
    // How s3fs changes modes and times.
    let touch = [
        ("x-amz-copy-source", to.as_str()),
        ("x-amz-metadata-directive", "REPLACE"),
        ("x-amz-meta-mode", "2"),
        ("content-type", "text/y"),
    ];
    client.send("PUT", &to, &touch, b"").await?.expect(200);
    client.delete(&from_target).await?.expect(204);
    let reply = client.get(&to).await?.expect(200);
    assert_eq!((reply.header("x-amz-meta-mode"), reply.header("content-type")), ("2", "text/y"));
    assert!(reply.body == body);
    client.send("PUT", &to, &source, b"").await?.expect_error(404, "NoSuchKey");
    let conditional = [("x-amz-copy-source", to.as_str()), ("x-amz-copy-source-if-match", "\"x\"")];
    let refused = client.send("PUT", &from_target, &conditional, b"").await?;
    refused.expect_error(412, "PreconditionFailed");
    Ok(())
}

on_both_stores!(many_keys_are_deleted_at_once);
async fn many_keys_are_deleted_at_once(host: GatewayHost) -> anyhow::Result<()> {
    let client = host.session("sessions/a/");
    for name in ["one", "two%20%26%20%3Cthree%3E", "four"] {
        client.put(&format!("/{BUCKET}/sessions/a/{name}"), b"x").await?.expect(200);
    }
    let xml = "<Delete><Object><Key>sessions/a/one</Key></Object>\
               <Object><Key>sessions/a/two &amp; &lt;three&gt;</Key></Object>\
               <Object><Key>sessions/a/missing</Key></Object></Delete>";
    let deleted = client.delete_many(BUCKET, xml).await?.expect(200);
    assert_eq!(deleted.elements("Deleted").len(), 3, "{}", deleted.text());
    let left = client.get(&format!("/{BUCKET}?prefix=sessions/a/")).await?.elements("Key");
    assert_eq!(left, ["sessions/a/four"]);
    Ok(())
}

on_both_stores!(writers_of_one_key_do_not_mix);
async fn writers_of_one_key_do_not_mix(host: GatewayHost) -> anyhow::Result<()> {
    let client = host.session("sessions/a/");
    let target = format!("/{BUCKET}/sessions/a/shared");
    let bodies: Vec<Vec<u8>> = (1..=8).map(|seed| noise(400_000, seed)).collect();
    for _ in 0..3 {
        let writes = bodies.iter().map(|body| client.put(&target, body));
        let reads = (0..4).map(|_| client.get(&target));
        let (writes, reads) =
            tokio::join!(futures::future::join_all(writes), futures::future::join_all(reads));
        for write in writes {
            write?.expect(200);
        }
        for read in reads {
            let read = read?;
            assert!(read.status == 404 || bodies.iter().any(|body| read.body == *body));
        }
        let read = client.get(&target).await?.expect(200).body;
        assert!(bodies.iter().any(|body| read == *body));
    }
    Ok(())
}
