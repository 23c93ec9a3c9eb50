//! How bodies arrive: plain, in chunks, with checksums before or behind them, and broken.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use s3s::crypto::{Checksum as _, Crc32};

use crate::client::{S3Client, md5_base64, noise};
use crate::host::{BUCKET, GatewayHost};
use crate::on_both_stores;

fn crc32(body: &[u8]) -> String {
    let mut crc = Crc32::new();
    crc.update(body);
    STANDARD.encode(crc.finalize())
}

/// Sends `body` as SDKs do that put the checksum behind it.
async fn chunked(
    client: &S3Client,
    target: &str,
    body: &[u8],
    sum: &str,
) -> anyhow::Result<crate::client::S3Reply> {
    let mut framed = Vec::new();
    for chunk in body.chunks(65_536) {
        framed.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        framed.extend_from_slice(chunk);
        framed.extend_from_slice(b"\r\n");
    }
    framed.extend_from_slice(format!("0\r\nx-amz-checksum-crc32:{sum}\r\n\r\n").as_bytes());
    let length = body.len().to_string();
    let headers = [
        ("content-encoding", "aws-chunked"),
        ("x-amz-decoded-content-length", length.as_str()),
        ("x-amz-trailer", "x-amz-checksum-crc32"),
        ("x-amz-sdk-checksum-algorithm", "CRC32"),
    ];
    let payload = Some("STREAMING-UNSIGNED-PAYLOAD-TRAILER");
    client.raw(client.signed("PUT", target, &headers, &framed, payload)?).await
}

on_both_stores!(chunked_bodies_are_stored_without_their_frame);
async fn chunked_bodies_are_stored_without_their_frame(host: GatewayHost) -> anyhow::Result<()> {
    let client = host.session("sessions/a/");
    let target = format!("/{BUCKET}/sessions/a/chunked");
    for size in [1, 100, 200_000] {
        let body = noise(size, 4);
        chunked(&client, &target, &body, &crc32(&body)).await?.expect(200);
        let stored = client.get(&target).await?.expect(200);
        assert!(stored.body == body);
        assert_eq!(stored.header("content-encoding"), "");
        let before = stored.body;
        let wrong = chunked(&client, &target, &noise(size, 5), &crc32(b"other")).await?;
        assert_eq!(wrong.status, 400, "{}", wrong.text());
        assert!(client.get(&target).await?.body == before, "a body with a wrong sum was stored");
    }
    Ok(())
}

on_both_stores!(a_body_that_is_not_what_was_signed_is_not_stored);
async fn a_body_that_is_not_what_was_signed_is_not_stored(host: GatewayHost) -> anyhow::Result<()> {
    let client = host.session("sessions/a/");
    let target = format!("/{BUCKET}/sessions/a/body");
    for size in [10, 100_000] {
        let (good, bad) = (noise(size, 6), noise(size, 7));
        let mut request = client.signed("PUT", &target, &[], &good, None)?;
        *request.body_mut() = http_body_util::Full::new(bad.clone().into());
        let refused = client.raw(request).await?;
        assert!(refused.status.is_client_error(), "{} {}", refused.status, refused.text());
        let digest = md5_base64(&good);
        let refused = client.send("PUT", &target, &[("content-md5", &digest)], &bad).await?;
        refused.expect_error(400, "BadDigest");
        let sum = crc32(&good);
        let refused = client.send("PUT", &target, &[("x-amz-checksum-crc32", &sum)], &bad).await?;
        assert_eq!(refused.status, 400, "{}", refused.text());
        client.head(&target).await?.expect(404);
        client.send("PUT", &target, &[("x-amz-checksum-crc32", &sum)], &good).await?.expect(200);
        client.delete(&target).await?.expect(204);
    }
    Ok(())
}
