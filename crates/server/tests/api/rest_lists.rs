//! Both lists: filters, order, pages.

use std::slice::from_ref;
use std::time::Duration;

use anyhow::Context as _;
use http::StatusCode;
use sandyard_types::SandboxId;
use serde_json::{Value, json};

use crate::harness::{ApiAnswer, Harness, TEMPLATE_ID};

fn ids(answer: &ApiAnswer) -> anyhow::Result<Vec<SandboxId>> {
    anyhow::ensure!(answer.status == StatusCode::OK, "{}", answer.text());
    let list = answer.json()?;
    let entries = list.as_array().context("no array")?.iter();
    entries.map(|entry| Ok(entry["sandboxID"].as_str().context("id")?.parse()?)).collect()
}

fn header<'a>(answer: &'a ApiAnswer, name: &str) -> Option<&'a str> {
    answer.headers.get(name).and_then(|value| value.to_str().ok())
}

#[tokio::test]
async fn pages_are_full_and_the_last_one_has_no_token() -> anyhow::Result<()> {
    let server = Harness::start().await?;
    let mut made = Vec::new();
    for _ in 0..3 {
        made.push(server.create(json!({})).await?);
    }
    for (order, expected) in [("asc", made.clone()), ("desc", made.iter().rev().cloned().collect())]
    {
        let mut seen = Vec::new();
        let mut token = String::new();
        loop {
            let path = format!("/v2/sandboxes?limit=1&order={order}&nextToken={token}");
            let answer = server.get(&path).await?;
            seen.extend(ids(&answer)?);
            assert_eq!(header(&answer, "x-total-running"), Some("3"));
            match header(&answer, "x-next-token") {
                Some(next) => next.clone_into(&mut token),
                None => break,
            }
        }
        assert_eq!(seen, expected, "{order}");
        let other = if order == "asc" { "desc" } else { "asc" };
        let path = format!("/v2/sandboxes?order={other}&nextToken={token}");
        server.get(&path).await?.error(400)?;
    }
    // A page that is full to the last entry is the last.
    let exact = server.get("/v2/sandboxes?limit=3").await?;
    assert_eq!(ids(&exact)?.len(), 3);
    assert_eq!(header(&exact, "x-next-token"), None);
    Ok(())
}

#[tokio::test]
async fn filters_are_joined() -> anyhow::Result<()> {
    let server = Harness::start().await?;
    let plain = server.create(json!({})).await?;
    let spaced = server.create(json!({"metadata": {"a": "b c"}})).await?;
    let both = server.create(json!({"metadata": {"a": "b c", "k&=": "v%"}})).await?;
    let list = async |query: &str| {
        let answer = server.get(&format!("/v2/sandboxes{query}")).await?;
        ids(&answer)
    };
    assert_eq!(list("").await?, [both.clone(), spaced.clone(), plain]);
    // As both SDKs send it, and as a person does.
    for query in ["?metadata=a%3Db%252520c", "?metadata=a%3Db%20c"] {
        assert_eq!(list(query).await?, [both.clone(), spaced.clone()], "{query}");
    }
    let query = "?metadata=a%3Db%252520c%26k%252526%25253D%3Dv%252525";
    assert_eq!(list(query).await?, from_ref(&both));
    assert_eq!(list("?metadata=a%3Dx").await?, []);
    for template in ["base", TEMPLATE_ID, "BASE"] {
        let query = format!("?template={template}&limit=1");
        assert_eq!(list(&query).await?, from_ref(&both));
    }
    assert_eq!(list("?state=paused").await?, []);
    assert_eq!(list("?state=running%2Cpaused").await?.len(), 3);
    Ok(())
}

#[tokio::test]
async fn totals_are_there_when_running_ones_were_asked_for() -> anyhow::Result<()> {
    let server = Harness::start().await?;
    server.create(json!({})).await?;
    for (query, total) in [
        ("", Some("1")),
        ("?state=running", Some("1")),
        ("?state=paused", None),
        ("?template=nope", Some("0")),
        ("?template=nope&state=paused", None),
        ("?metadata=a%3Db", Some("0")),
    ] {
        let answer = server.get(&format!("/v2/sandboxes{query}")).await?;
        assert_eq!(answer.status, StatusCode::OK);
        assert_eq!(header(&answer, "x-total-running"), total, "{query}");
    }
    Ok(())
}

#[tokio::test]
async fn started_after_includes_its_own_instant() -> anyhow::Result<()> {
    let server = Harness::start().await?;
    let id = server.create(json!({})).await?;
    let detail = server.get(&format!("/sandboxes/{id}")).await?.json()?;
    let own = detail["startedAt"].as_str().context("startedAt")?;
    let answer = server.get(&format!("/v2/sandboxes?startedAfter={own}")).await?;
    assert_eq!(ids(&answer)?, from_ref(&id));
    // JavaScript cuts to milliseconds.
    let (seconds, fraction) = own.trim_end_matches('Z').split_once('.').context("fraction")?;
    let millis: String = fraction.chars().chain("000".chars()).take(3).collect();
    let path = format!("/v2/sandboxes?startedAfter={seconds}.{millis}Z");
    assert_eq!(ids(&server.get(&path).await?)?, [id]);
    let format = &time::format_description::well_known::Rfc3339;
    let later = time::OffsetDateTime::parse(own, format)? + Duration::from_secs(1);
    let path = format!("/v2/sandboxes?startedAfter={}", later.format(format)?);
    assert_eq!(ids(&server.get(&path).await?)?, []);
    Ok(())
}

#[tokio::test]
async fn the_older_list_is_whole_and_newest_first() -> anyhow::Result<()> {
    let server = Harness::start().await?;
    let first = server.create(json!({"metadata": {"a": "b"}})).await?;
    let second = server.create(json!({})).await?;
    let all = server.get("/sandboxes").await?;
    assert_eq!(ids(&all)?, [second, first.clone()]);
    assert_eq!(all.json()?[1]["metadata"], json!({"a": "b"}));
    assert_eq!(all.json()?[0].get("metadata"), None::<&Value>);
    let filtered = server.get("/sandboxes?metadata=a%3Db").await?;
    assert_eq!(ids(&filtered)?, from_ref(&first));
    assert_eq!(server.kill(&first).await?.status, StatusCode::NO_CONTENT);
    assert_eq!(ids(&server.get("/sandboxes").await?)?.len(), 1);
    Ok(())
}
