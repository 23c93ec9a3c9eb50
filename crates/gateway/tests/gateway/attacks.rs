//! What a program in a sandbox with a working key could try.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use sandyard_types::Access;

use crate::client::S3Client;
use crate::host::{BUCKET, GatewayHost};
use crate::on_both_stores;

const OTHERS: &str = "/workspaces/sessions/b/secret";

async fn setup(host: &GatewayHost) -> anyhow::Result<S3Client> {
    host.session("sessions/b/").put(OTHERS, b"secret").await?.expect(200);
    let client = host.session("sessions/a/");
    client.put(&format!("/{BUCKET}/sessions/a/own"), b"own").await?.expect(200);
    Ok(client)
}

async fn unharmed(host: &GatewayHost) -> anyhow::Result<()> {
    let secret = host.session("sessions/b/").get(OTHERS).await?.expect(200);
    assert_eq!(secret.body, "secret");
    Ok(())
}

on_both_stores!(another_sessions_objects_are_out_of_reach);
async fn another_sessions_objects_are_out_of_reach(host: GatewayHost) -> anyhow::Result<()> {
    let client = setup(&host).await?;
    for target in [
        OTHERS,
        "/workspaces/sessions/ab",
        "/workspaces/sessions/a",
        "/workspaces//sessions/a/own",
        "/workspaces/sessions/a/../b/secret",
        "/workspaces/sessions/a/%2e%2e/b/secret",
        "/workspaces/sessions/a/..%2fb/secret",
        "/workspaces/sessions/a/%2E%2E%2Fb%2Fsecret",
        "/workspaces/sessions/a/..%5Cb",
        "/workspaces/sessions/a/./own",
        "/workspaces/%73essions/b/secret",
        "/other-bucket/sessions/a/own",
    ] {
        // What is not encoded the one right way fails at the signature already.
        client.get(target).await?.expect(403);
        client.head(target).await?.expect(403);
        client.put(target, b"x").await?.expect(403);
        client.delete(target).await?.expect(403);
        let begun = client.send("POST", &format!("{target}?uploads="), &[], b"").await?;
        begun.expect(403);
    }
    // Encoded twice it is a name with percent signs, and stays one.
    let twice = "/workspaces/sessions/a/%252e%252e%252fb%252fsecret";
    client.get(twice).await?.expect_error(404, "NoSuchKey");
    client.get(&format!("/{BUCKET}/sessions/a/own?versionId=123")).await?.expect(501);
    unharmed(&host).await
}

on_both_stores!(copies_cannot_read_elsewhere);
async fn copies_cannot_read_elsewhere(host: GatewayHost) -> anyhow::Result<()> {
    let client = setup(&host).await?;
    let own = format!("/{BUCKET}/sessions/a/stolen");
    let begun = client.send("POST", &format!("{own}?uploads="), &[], b"").await?.expect(200);
    let upload = begun.elements("UploadId").pop().expect("an id");
    for source in [
        "/workspaces/sessions/b/secret",
        "workspaces/sessions/b/secret",
        "/workspaces/sessions%2Fb%2Fsecret",
        "workspaces%2Fsessions%2Fb%2Fsecret",
        "/workspaces/sessions/b/secret?versionId=null",
        "/workspaces/sessions/a/../b/secret",
        "/workspaces/sessions/a/%2e%2e/b/secret",
        "//workspaces/sessions/b/secret",
        "/other-bucket/sessions/a/own",
    ] {
        let header = [("x-amz-copy-source", source)];
        for target in [own.clone(), format!("{own}?partNumber=1&uploadId={upload}")] {
            let refused = client.send("PUT", &target, &header, b"").await?;
            assert!([400, 403].contains(&refused.status.as_u16()), "{source} {}", refused.text());
        }
    }
    let versioned = [("x-amz-copy-source", "/workspaces/sessions/a/own?versionId=1")];
    client.send("PUT", &own, &versioned, b"").await?.expect_error(501, "NotImplemented");
    client.head(&own).await?.expect(404);
    Ok(())
}

on_both_stores!(one_foreign_key_stops_a_multi_delete);
async fn one_foreign_key_stops_a_multi_delete(host: GatewayHost) -> anyhow::Result<()> {
    let client = setup(&host).await?;
    for key in ["sessions/b/secret", "sessions/a/../b/secret", "sessions&#47;b&#47;secret"] {
        let xml = format!(
            "<Delete><Object><Key>sessions/a/own</Key></Object>\
             <Object><Key>{key}</Key></Object></Delete>"
        );
        client.delete_many(BUCKET, &xml).await?.expect_error(403, "AccessDenied");
    }
    client.get(&format!("/{BUCKET}/sessions/a/own")).await?.expect(200);
    unharmed(&host).await
}

on_both_stores!(an_upload_belongs_to_its_key);
async fn an_upload_belongs_to_its_key(host: GatewayHost) -> anyhow::Result<()> {
    let client = setup(&host).await?;
    let other = host.session("sessions/b/");
    let target = format!("/{BUCKET}/sessions/b/upload");
    let begun = other.send("POST", &format!("{target}?uploads="), &[], b"").await?.expect(200);
    let upload = begun.elements("UploadId").pop().expect("an id");
    let part = other.put(&format!("{target}?partNumber=1&uploadId={upload}"), b"x").await?;
    let tag = part.expect(200).header("etag").to_owned();
    let xml = format!(
        "<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>{tag}</ETag></Part>\
         </CompleteMultipartUpload>"
    );
    for (key, status) in [("sessions/b/upload", 403), ("sessions/a/upload", 404)] {
        let target = format!("/{BUCKET}/{key}");
        let numbered = format!("{target}?partNumber=2&uploadId={upload}");
        client.put(&numbered, b"x").await?.expect(status);
        let upload = format!("{target}?uploadId={upload}");
        client.get(&upload).await?.expect(status);
        client.send("POST", &upload, &[], xml.as_bytes()).await?.expect(status);
        if status == 403 {
            client.delete(&upload).await?.expect(status);
        }
    }
    let listed = client.get(&format!("/{BUCKET}?uploads=")).await?.expect(200);
    assert!(!listed.text().contains(&upload), "{}", listed.text());
    let listed = client.get(&format!("/{BUCKET}?uploads=&prefix=sessions/b/")).await?;
    listed.expect_error(403, "AccessDenied");
    Ok(())
}

on_both_stores!(a_signature_opens_only_what_was_signed);
async fn a_signature_opens_only_what_was_signed(host: GatewayHost) -> anyhow::Result<()> {
    let client = setup(&host).await?;
    let own = format!("/{BUCKET}/sessions/a/own");
    let signed = || client.signed("GET", &own, &[], b"", None);
    client.raw(signed()?).await?.expect(200);

    let mut moved = signed()?;
    *moved.uri_mut() = format!("{}{OTHERS}", host.endpoint).parse()?;
    client.raw(moved).await?.expect_error(403, "SignatureDoesNotMatch");

    let mut turned = signed()?;
    *turned.method_mut() = http::Method::DELETE;
    client.raw(turned).await?.expect_error(403, "SignatureDoesNotMatch");

    // The other session's key id on this one's signature.
    let other = host.session("sessions/b/");
    let mut renamed = signed()?;
    let value = renamed.headers()["authorization"].to_str()?.replace(&client.id, &other.id);
    renamed.headers_mut().insert("authorization", value.parse()?);
    client.raw(renamed).await?.expect_error(403, "SignatureDoesNotMatch");

    let mut extended = client.signed("PUT", &own, &[], b"", None)?;
    extended.headers_mut().insert("x-amz-copy-source", own.parse()?);
    client.raw(extended).await?.expect_error(403, "AccessDenied");

    let mut old = client.clone();
    old.age = Duration::from_secs(20 * 60);
    old.get(&own).await?.expect_error(403, "RequestTimeTooSkewed");

    let mut guessed = client.clone();
    guessed.secret = "0".repeat(64);
    guessed.get(&own).await?.expect_error(403, "SignatureDoesNotMatch");

    let plain = |target: &str| http::Request::get(format!("{}{target}", host.endpoint));
    let anonymous = plain(&own).body(Full::new(Bytes::new()))?;
    client.raw(anonymous).await?.expect_error(403, "AccessDenied");
    let version_2 = plain(&own)
        .header("authorization", format!("AWS {}:c2ln", client.id))
        .header("date", "Thu, 01 Jan 2026 00:00:00 GMT")
        .body(Full::new(Bytes::new()))?;
    client.raw(version_2).await?.expect_error(400, "InvalidRequest");
    for query in ["X-Amz-Signature=0&X-Amz-Algorithm=AWS4-HMAC-SHA256", "Signature=0&Expires=1"] {
        let presigned = plain(&format!("{own}?{query}")).body(Full::new(Bytes::new()))?;
        client.raw(presigned).await?.expect_error(400, "InvalidRequest");
    }
    Ok(())
}

on_both_stores!(a_read_only_mount_takes_no_writes);
async fn a_read_only_mount_takes_no_writes(host: GatewayHost) -> anyhow::Result<()> {
    let scopes = [("sessions/b/", Access::ReadOnly), ("sessions/a/", Access::ReadWrite)];
    setup(&host).await?;
    let (_, client) = host.sandbox(&scopes);
    assert_eq!(client.get(OTHERS).await?.expect(200).body, "secret");
    client.put(OTHERS, b"x").await?.expect_error(403, "AccessDenied");
    client.delete(OTHERS).await?.expect_error(403, "AccessDenied");
    let touch = [("x-amz-copy-source", OTHERS), ("x-amz-metadata-directive", "REPLACE")];
    client.send("PUT", OTHERS, &touch, b"").await?.expect_error(403, "AccessDenied");
    let begun = client.send("POST", &format!("{OTHERS}?uploads="), &[], b"").await?;
    begun.expect_error(403, "AccessDenied");
    let xml = "<Delete><Object><Key>sessions/b/secret</Key></Object></Delete>";
    client.delete_many(BUCKET, xml).await?.expect_error(403, "AccessDenied");
    // Reading it into the writable mount is fine.
    let copy = [("x-amz-copy-source", OTHERS)];
    client.send("PUT", &format!("/{BUCKET}/sessions/a/copy"), &copy, b"").await?.expect(200);
    unharmed(&host).await
}

on_both_stores!(a_revoked_key_is_dead_at_once_and_traffic_is_counted);
async fn a_revoked_key_is_dead_at_once_and_traffic_is_counted(
    host: GatewayHost,
) -> anyhow::Result<()> {
    let (sandbox, client) = host.sandbox(&[("sessions/a/", Access::ReadWrite)]);
    let target = format!("/{BUCKET}/sessions/a/x");
    client.put(&target, &[7; 1000]).await?.expect(200);
    client.get(&target).await?.expect(200);
    client.get(OTHERS).await?.expect(403);
    let traffic = host.gateway.traffic(&sandbox);
    assert_eq!((traffic.requests, traffic.errors, traffic.bytes_in), (3, 1, 1000));
    assert!(traffic.bytes_out >= 1000, "{traffic:?}");
    host.revoke(&client);
    client.get(&target).await?.expect_error(403, "InvalidAccessKeyId");
    client.put(&target, b"x").await?.expect_error(403, "InvalidAccessKeyId");
    assert_eq!(host.gateway.traffic(&sandbox).requests, 3);
    // A server that has just started does not know its keys yet: that is no refusal.
    host.grants.starting.store(true, std::sync::atomic::Ordering::Relaxed);
    client.get(&target).await?.expect_error(503, "ServiceUnavailable");
    host.gateway.forget(&sandbox);
    assert_eq!(host.gateway.traffic(&sandbox), sandyard_gateway::Traffic::default());
    Ok(())
}

on_both_stores!(what_is_not_supported_is_refused_and_not_dropped);
async fn what_is_not_supported_is_refused_and_not_dropped(host: GatewayHost) -> anyhow::Result<()> {
    let client = setup(&host).await?;
    let own = format!("/{BUCKET}/sessions/a/own");
    for header in [
        ("x-amz-acl", "public-read"),
        ("x-amz-tagging", "a=b"),
        ("x-amz-grant-read", "id=1"),
        ("x-amz-object-lock-mode", "GOVERNANCE"),
    ] {
        let refused = client.send("PUT", &own, &[header], b"x").await?;
        assert_eq!(refused.status, 501, "{header:?} {}", refused.text());
    }
    for query in ["acl=", "tagging=", "torrent=", "attributes=", "legal-hold="] {
        let refused = client.get(&format!("{own}?{query}")).await?;
        assert!(refused.status.is_client_error() || refused.status == 501, "{query}");
        assert_ne!(refused.body, "own", "{query}");
    }
    Ok(())
}
