//! Pause, resume, snapshots and forks over the REST API (control-plane 3.4, 3.5).

use http::{Method, StatusCode};
use sandyard_testkit::{Behaviour, EngineCall};
use sandyard_types::SandboxId;
use serde_json::{Value, json};

use crate::harness::{ApiAnswer, Harness, KEY, MAX_SANDBOXES, OTHER_KEY, TEMPLATE_ID};

async fn post(server: &Harness, path: &str, body: Option<Value>) -> anyhow::Result<ApiAnswer> {
    server.call(Method::POST, path, body).await
}

async fn detail(server: &Harness, id: &SandboxId) -> anyhow::Result<Value> {
    server.get(&format!("/sandboxes/{id}")).await?.json()
}

#[tokio::test]
async fn a_pause_is_seen_and_connects_bring_it_back() -> anyhow::Result<()> {
    let server = Harness::start().await?;
    let id = server.create(json!({"timeout": 60, "metadata": {"a": "b"}})).await?;
    let path = format!("/sandboxes/{id}");
    let before = detail(&server, &id).await?;
    for (body, mode) in [
        (None, "full"),
        (Some(json!({})), "full"),
        (Some(json!({"memory": true, "requireHealthyGuest": true})), "full"),
        (Some(json!({"memory": false})), "filesystem"),
    ] {
        let paused = post(&server, &format!("{path}/pause"), body.clone()).await?;
        assert_eq!(paused.status, StatusCode::NO_CONTENT, "{body:?}: {}", paused.text());
        let seen = detail(&server, &id).await?;
        assert_eq!((&seen["state"], &seen["pauseMode"]), (&json!("paused"), &json!(mode)));
        assert_eq!(seen["metadata"], before["metadata"]);
        assert_eq!(seen["envdAccessToken"], before["envdAccessToken"]);
        let again = post(&server, &format!("{path}/pause"), None).await?;
        again.error(409)?;
        server.post(&format!("{path}/timeout"), json!({"timeout": 9})).await?.error(404)?;
        server.post(&format!("{path}/snapshots"), json!({})).await?.error(404)?;
        server.post(&format!("{path}/fork"), json!({})).await?.error(409)?;
        let back = post(&server, &format!("/v2{path}/connect"), None).await?;
        assert_eq!(back.status, StatusCode::CREATED, "{}", back.text());
        let seen = detail(&server, &id).await?;
        assert_eq!((&seen["state"], seen.get("pauseMode")), (&json!("running"), None));
        let same = post(&server, &format!("{path}/connect"), Some(json!({"timeout": 1}))).await?;
        assert_eq!(same.status, StatusCode::OK);
    }
    Ok(())
}

#[tokio::test]
async fn a_deprecated_resume_gives_fifteen_seconds() -> anyhow::Result<()> {
    let server = Harness::start().await?;
    let id = server.create(json!({"timeout": 600})).await?;
    let path = format!("/sandboxes/{id}");
    post(&server, &format!("{path}/pause"), None).await?;
    server.post(&format!("{path}/resume"), json!({"timeout": 0})).await?.error(400)?;
    let resumed = server.post(&format!("{path}-6532622b/resume"), json!({})).await?;
    assert_eq!(resumed.status, StatusCode::CREATED, "{}", resumed.text());
    let seen = detail(&server, &id).await?;
    let time = |member: &str| -> anyhow::Result<time::OffsetDateTime> {
        let text = seen[member].as_str().unwrap_or_default();
        Ok(time::OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339)?)
    };
    assert_eq!((time("endAt")? - time("startedAt")?).whole_seconds(), 15);
    Ok(())
}

#[tokio::test]
async fn what_a_create_said_of_its_end_is_shown() -> anyhow::Result<()> {
    let server = Harness::start().await?;
    for (members, expected) in [
        (json!({}), json!({"autoResume": false, "onTimeout": "kill"})),
        (json!({"autoPause": true}), json!({"autoResume": false, "onTimeout": "pause"})),
        (
            json!({"autoPause": true, "autoResume": {"enabled": true}}),
            json!({"autoResume": true, "onTimeout": "pause"}),
        ),
    ] {
        let id = server.create(members).await?;
        assert_eq!(detail(&server, &id).await?["lifecycle"], expected);
    }
    Ok(())
}

#[tokio::test]
async fn a_pause_that_cannot_bring_the_workspace_into_the_store_is_503() -> anyhow::Result<()> {
    let server = Harness::start().await?;
    let id = server.create(json!({"metadata": {"session": "s1"}})).await?;
    server.engine.let_drain(false);
    let refused = post(&server, &format!("/sandboxes/{id}/pause"), None).await?;
    let message = refused.error(503)?;
    assert!(message.contains("7 bytes were left"), "{message}");
    assert_eq!(refused.headers["should-retry"], "false");
    assert_eq!(detail(&server, &id).await?["state"], json!("running"));
    Ok(())
}

#[tokio::test]
async fn snapshots_are_named_listed_started_from_and_deleted() -> anyhow::Result<()> {
    let server = Harness::start().await?;
    let id = server.create(json!({})).await?;
    let path = format!("/sandboxes/{id}/snapshots");
    let taken = server.post(&path, json!({})).await?;
    assert_eq!(taken.status, StatusCode::CREATED, "{}", taken.text());
    let unnamed = taken.json()?;
    let unnamed = unnamed["snapshotID"].as_str().expect("id").to_owned();
    let template = unnamed.strip_suffix(":default").expect("a tag").to_owned();
    let named = server.post(&path, json!({"name": "mine:v1"})).await?.json()?;
    assert_eq!(named, json!({"snapshotID": "one/mine:v1", "names": ["one/mine"]}));
    for (name, what) in [("two/mine", "namespace"), ("a b", "name"), ("x:", "name")] {
        let message = server.post(&path, json!({"name": name})).await?.error(400)?;
        assert!(message.contains(what), "{name}: {message}");
    }

    let first = server.get("/snapshots?limit=1").await?;
    let next = first.headers["x-next-token"].to_str()?.to_owned();
    assert_eq!(first.json()?[0]["snapshotID"], json!("one/mine:v1"));
    let last = server.get(&format!("/snapshots?limit=1&nextToken={next}")).await?;
    assert_eq!(last.json()?[0]["snapshotID"], json!(unnamed));
    assert!(!last.headers.contains_key("x-next-token"));
    assert_eq!(server.get("/snapshots?name=mine").await?.json()?.as_array().map(Vec::len), Some(1));
    assert_eq!(server.get("/snapshots?name=nope").await?.json()?, json!([]));
    server.get("/snapshots?name=two%2Fmine").await?.error(400)?;
    let foreign = server.call_as(OTHER_KEY, Method::GET, "/snapshots", None).await?;
    assert_eq!(foreign.json()?, json!([]));

    let copy = server.post("/v2/sandboxes", json!({"templateID": unnamed})).await?.json()?;
    assert_eq!((&copy["templateID"], copy.get("alias")), (&json!(template), None));
    let delete = async |key, reference: &str| {
        let encoded = reference.replace('/', "%2F").replace(':', "%3A");
        server.call_as(key, Method::DELETE, &format!("/templates/{encoded}"), None).await
    };
    delete(KEY, &unnamed).await?.error(400)?;
    let copy: SandboxId = copy["sandboxID"].as_str().expect("id").parse()?;
    server.kill(&copy).await?;
    delete(OTHER_KEY, &template).await?.error(403)?;
    delete(OTHER_KEY, "mine").await?.error(404)?;
    delete(KEY, "base").await?.error(403)?;
    for reference in [&unnamed, "one/mine:v1"] {
        assert_eq!(delete(KEY, reference).await?.status, StatusCode::NO_CONTENT);
        delete(KEY, reference).await?.error(404)?;
    }
    assert_eq!(server.engine.images(), Vec::<String>::new());
    Ok(())
}

#[tokio::test]
async fn forks_are_copies_of_their_own_each_made_or_failed() -> anyhow::Result<()> {
    let server = Harness::start().await?;
    let id = server.create(json!({"metadata": {"a": "b"}})).await?;
    let path = format!("/sandboxes/{id}/fork");
    for count in [0, -1, 101, MAX_SANDBOXES as i64] {
        server.post(&path, json!({"count": count})).await?.error(400)?;
    }
    server.post(&path, json!({"timeout": 0})).await?.error(400)?;
    let forked = server.post(&path, json!({"count": 2, "timeout": 60})).await?;
    assert_eq!(forked.status, StatusCode::CREATED, "{}", forked.text());
    for fork in forked.json()?.as_array().expect("a list") {
        let fork = &fork["sandbox"];
        assert_eq!(fork["templateID"], json!(TEMPLATE_ID));
        let copy: SandboxId = fork["sandboxID"].as_str().expect("id").parse()?;
        assert_ne!(copy, id);
        assert_eq!(detail(&server, &copy).await?["metadata"], json!({"a": "b"}));
        server.kill(&copy).await?;
    }
    assert_eq!(server.engine.images(), Vec::<String>::new());

    server.engine.script(EngineCall::Create, Behaviour::Fail);
    let failed = server.post(&path, json!({})).await?;
    assert_eq!(failed.status, StatusCode::CREATED);
    assert_eq!(failed.json()?[0]["error"]["code"], json!(500));
    assert_eq!(server.engine.images(), Vec::<String>::new());
    Ok(())
}

#[tokio::test]
async fn an_mcp_configuration_is_accepted_for_the_client_starts_the_gateway() -> anyhow::Result<()>
{
    let server = Harness::start().await?;
    server.create(json!({"mcp": {"a": {"command": "x"}}})).await?;
    Ok(())
}
