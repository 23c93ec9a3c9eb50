use sandyard_types::Access;

use crate::client::{S3Client, S3Reply};
use crate::host::{BUCKET, GatewayHost};
use crate::on_both_stores;

async fn fill(host: &GatewayHost) -> anyhow::Result<()> {
    let owner = host.owner();
    for key in [
        "sessions/a/1",
        "sessions/a/d/2",
        "sessions/a/d/3",
        "sessions/a/e/4",
        "sessions/a/z",
        "sessions/ab/secret",
        "sessions/b/secret",
        "skills/u/1",
        "skills/v/secret",
        "top-secret",
    ] {
        owner.put(&format!("/{BUCKET}/{key}"), b"x").await?.expect(200);
    }
    Ok(())
}

fn names(reply: &S3Reply) -> Vec<String> {
    let mut names = reply.elements("Key");
    for group in reply.elements("CommonPrefixes") {
        let inner = group.trim_start_matches("<Prefix>").trim_end_matches("</Prefix>");
        names.push(inner.to_owned());
    }
    names.sort();
    names
}

async fn list(client: &S3Client, query: &str) -> anyhow::Result<Vec<String>> {
    Ok(names(&client.get(&format!("/{BUCKET}?{query}")).await?.expect(200)))
}

on_both_stores!(lists_fold_at_the_delimiter);
async fn lists_fold_at_the_delimiter(host: GatewayHost) -> anyhow::Result<()> {
    fill(&host).await?;
    let client = host.session("sessions/a/");
    for version in ["", "&list-type=2"] {
        let all = list(&client, &format!("prefix=sessions/a/{version}")).await?;
        let expected =
            ["sessions/a/1", "sessions/a/d/2", "sessions/a/d/3", "sessions/a/e/4", "sessions/a/z"];
        assert_eq!(all, expected);
        let folded = list(&client, &format!("prefix=sessions/a/&delimiter=/{version}")).await?;
        assert_eq!(folded, ["sessions/a/1", "sessions/a/d/", "sessions/a/e/", "sessions/a/z"]);
        let below = list(&client, &format!("prefix=sessions/a/d&delimiter=/{version}")).await?;
        assert_eq!(below, ["sessions/a/d/"]);
        let none = list(&client, &format!("prefix=sessions/a/none{version}")).await?;
        assert_eq!(none, [""; 0]);
    }
    Ok(())
}

on_both_stores!(pages_join_to_the_whole_list);
async fn pages_join_to_the_whole_list(host: GatewayHost) -> anyhow::Result<()> {
    fill(&host).await?;
    let client = host.session("sessions/a/");
    for delimiter in ["", "&delimiter=/"] {
        for prefix in ["sessions/a/", "sessions/", ""] {
            let query = format!("prefix={prefix}{delimiter}");
            let whole = list(&client, &query).await?;
            for size in [1, 2, 3] {
                let mut paged = Vec::new();
                let mut next = format!("&max-keys={size}");
                for _ in 0..20 {
                    let page = client.get(&format!("/{BUCKET}?{query}{next}")).await?.expect(200);
                    assert!(names(&page).len() <= size);
                    paged.extend(names(&page));
                    if page.elements("IsTruncated") != ["true"] {
                        break;
                    }
                    // Without a delimiter the last key is the marker.
                    let marker = page.elements("NextMarker").pop();
                    let marker = marker.or_else(|| paged.last().cloned()).expect("a marker");
                    next = format!("&max-keys={size}&marker={marker}");
                }
                assert_eq!(paged, whole, "v1 {query} {size}");

                let mut paged = Vec::new();
                let mut next = format!("&list-type=2&max-keys={size}");
                for _ in 0..20 {
                    let page = client.get(&format!("/{BUCKET}?{query}{next}")).await?.expect(200);
                    paged.extend(names(&page));
                    if page.elements("IsTruncated") != ["true"] {
                        break;
                    }
                    let token = page.elements("NextContinuationToken").pop().expect("a token");
                    let token = percent_encoding::utf8_percent_encode(
                        &token,
                        percent_encoding::NON_ALPHANUMERIC,
                    );
                    next = format!("&list-type=2&max-keys={size}&continuation-token={token}");
                }
                assert_eq!(paged, whole, "v2 {query} {size}");
            }
        }
    }
    Ok(())
}

on_both_stores!(a_list_above_the_grant_names_only_what_is_granted);
async fn a_list_above_the_grant_names_only_what_is_granted(
    host: GatewayHost,
) -> anyhow::Result<()> {
    fill(&host).await?;
    let one = host.session("sessions/a/");
    let own = list(&one, "prefix=sessions/a/").await?;
    for query in ["", "prefix=", "prefix=s", "prefix=sessions/", "prefix=sessions/a", "list-type=2"]
    {
        assert_eq!(list(&one, query).await?, own, "{query}");
    }
    assert_eq!(list(&one, "delimiter=/").await?, ["sessions/"]);
    assert_eq!(list(&one, "delimiter=/&prefix=sessions/").await?, ["sessions/a/"]);
    assert_eq!(list(&one, "delimiter=/&prefix=sessions/a&list-type=2").await?, ["sessions/a/"]);
    assert_eq!(list(&one, "delimiter=/&marker=sessions/").await?, [""; 0]);
    for query in ["prefix=sessions/b/", "prefix=sessions/ab", "prefix=top", "prefix=/"] {
        let refused = one.get(&format!("/{BUCKET}?{query}")).await?;
        refused.expect_error(403, "AccessDenied");
    }
    let scopes = [("sessions/a/", Access::ReadWrite), ("skills/u/", Access::ReadOnly)];
    let (_, two) = host.sandbox(&scopes);
    let mut expected = own.clone();
    expected.push("skills/u/1".to_owned());
    assert_eq!(list(&two, "").await?, expected);
    assert_eq!(list(&two, "delimiter=/").await?, ["sessions/", "skills/"]);
    assert_eq!(list(&host.owner(), "delimiter=/").await?, ["sessions/", "skills/", "top-secret"]);
    Ok(())
}

on_both_stores!(buckets_are_the_granted_ones);
async fn buckets_are_the_granted_ones(host: GatewayHost) -> anyhow::Result<()> {
    let client = host.session("sessions/a/");
    assert_eq!(client.get("/").await?.expect(200).elements("Name"), [BUCKET]);
    client.head(&format!("/{BUCKET}")).await?.expect(200);
    client.get(&format!("/{BUCKET}?location=")).await?.expect(200);
    client.head("/other-bucket").await?.expect(403);
    client.get("/other-bucket?location=").await?.expect_error(403, "AccessDenied");
    client.put("/other-bucket", b"").await?.expect_error(403, "AccessDenied");
    client.put(&format!("/{BUCKET}"), b"").await?.expect_error(409, "BucketAlreadyOwnedByYou");
    for unknown in ["acl=", "policy=", "versions=", "tagging="] {
        client.get(&format!("/{BUCKET}?{unknown}")).await?.expect_error(501, "NotImplemented");
    }
    Ok(())
}
