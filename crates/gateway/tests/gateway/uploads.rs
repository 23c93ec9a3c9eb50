use crate::client::{S3Client, noise};
use crate::host::{BUCKET, GatewayHost};
use crate::on_both_stores;

pub(crate) const PART: usize = 5 * 1024 * 1024;

pub(crate) async fn begin(client: &S3Client, target: &str) -> anyhow::Result<String> {
    let headers = [("x-amz-meta-mode", "7"), ("content-type", "text/m")];
    let begun =
        client.send("POST", &format!("{target}?uploads="), &headers, b"").await?.expect(200);
    Ok(begun.elements("UploadId").pop().expect("an upload id"))
}

pub(crate) fn parts_xml(parts: &[(u32, &str)]) -> String {
    let part = |(number, tag): &(u32, &str)| {
        format!("<Part><PartNumber>{number}</PartNumber><ETag>{tag}</ETag></Part>")
    };
    let parts: String = parts.iter().map(part).collect();
    format!("<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>")
}

on_both_stores!(parts_become_one_object);
async fn parts_become_one_object(host: GatewayHost) -> anyhow::Result<()> {
    let client = host.session("sessions/a/");
    let source = format!("/{BUCKET}/sessions/a/source");
    let (first, second, stored) = (noise(PART, 1), noise(1234, 2), noise(PART + 1000, 3));
    client.put(&source, &stored).await?.expect(200);
    let target = format!("/{BUCKET}/sessions/a/big");
    let upload = begin(&client, &target).await?;
    let part = |number: u32| format!("{target}?partNumber={number}&uploadId={upload}");
    client.put(&part(1), b"replaced below").await?.expect(200);
    let one = client.put(&part(1), &first).await?.expect(200).header("etag").to_owned();
    let range = format!("bytes=1000-{}", PART + 999);
    let copy = [("x-amz-copy-source", source.as_str()), ("x-amz-copy-source-range", &range)];
    let copied = client.send("PUT", &part(2), &copy, b"").await?.expect(200);
    let two =
        copied.elements("ETag").pop().expect("a tag").replace("&quot;", "").replace("&#34;", "");
    let two = format!("\"{}\"", two.trim_matches('"'));
    let three = client.put(&part(3), &second).await?.expect(200).header("etag").to_owned();

    let listed = client.get(&format!("{target}?uploadId={upload}&max-parts=2")).await?.expect(200);
    assert_eq!(listed.elements("PartNumber"), ["1", "2"]);
    assert_eq!(listed.elements("IsTruncated"), ["true"]);

    let complete = format!("{target}?uploadId={upload}");
    let wrong = parts_xml(&[(1, "\"0123456789abcdef0123456789abcdef\"")]);
    let refused = client.send("POST", &complete, &[], wrong.as_bytes()).await?;
    refused.expect_error(400, "InvalidPart");
    let xml = parts_xml(&[(1, &one), (2, &two), (3, &three)]);
    let done = client.send("POST", &complete, &[], xml.as_bytes()).await?.expect(200);
    assert!(done.text().contains("-3"), "{}", done.text());
    client.delete(&source).await?.expect(204);

    let whole = client.get(&target).await?.expect(200);
    assert_eq!((whole.header("x-amz-meta-mode"), whole.header("content-type")), ("7", "text/m"));
    assert!(whole.header("etag").ends_with("-3\""));
    let expected = [&first[..], &stored[1000..PART + 1000], &second[..]].concat();
    assert!(whole.body == expected);
    let over_the_seam = format!("bytes={}-{}", PART - 5, PART + 4);
    let seam = client.send("GET", &target, &[("range", &over_the_seam)], b"").await?.expect(206);
    assert!(seam.body == expected[PART - 5..PART + 5]);
    Ok(())
}

on_both_stores!(an_upload_can_be_given_up);
async fn an_upload_can_be_given_up(host: GatewayHost) -> anyhow::Result<()> {
    let client = host.session("sessions/a/");
    let target = format!("/{BUCKET}/sessions/a/big");
    let upload = begin(&client, &target).await?;
    let part = format!("{target}?partNumber=1&uploadId={upload}");
    client.put(&part, b"x").await?.expect(200);
    let prefix = "prefix=sessions/a/big";
    let listed = client.get(&format!("/{BUCKET}?uploads=&{prefix}")).await?.expect(200);
    assert_eq!(listed.elements("UploadId"), std::slice::from_ref(&upload));
    client.delete(&format!("{target}?uploadId={upload}")).await?.expect(204);
    client.put(&part, b"x").await?.expect_error(404, "NoSuchUpload");
    let listed = client.get(&format!("/{BUCKET}?uploads=&{prefix}")).await?.expect(200);
    assert!(listed.elements("UploadId").is_empty());
    client.get(&target).await?.expect(404);
    Ok(())
}

on_both_stores!(small_parts_in_the_middle_are_refused);
async fn small_parts_in_the_middle_are_refused(host: GatewayHost) -> anyhow::Result<()> {
    let client = host.session("sessions/a/");
    let target = format!("/{BUCKET}/sessions/a/big");
    let upload = begin(&client, &target).await?;
    let mut tags = Vec::new();
    for number in 1..=2 {
        let part = format!("{target}?partNumber={number}&uploadId={upload}");
        tags.push(client.put(&part, b"small").await?.expect(200).header("etag").to_owned());
    }
    let xml = parts_xml(&[(1, &tags[0]), (2, &tags[1])]);
    let complete = format!("{target}?uploadId={upload}");
    let refused = client.send("POST", &complete, &[], xml.as_bytes()).await?;
    refused.expect_error(400, "EntityTooSmall");
    Ok(())
}
