//! The REST API: what works.

use http::{Method, Request, StatusCode};
use http_body_util::Full;
use sandyard_testkit::{Behaviour, EngineCall};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::harness::{DOMAIN, Harness, KEY, OTHER_KEY, TEMPLATE_ID};

#[tokio::test]
async fn health_is_open_and_its_text_fixed() -> anyhow::Result<()> {
    let server = Harness::start().await?;
    let request = Request::get(format!("http://{}/health", server.api)).body(Full::default())?;
    let answer = server.send(request).await?;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(answer.text(), "Health check successful");
    Ok(())
}

#[tokio::test]
async fn a_sandbox_lives_as_the_contract_says() -> anyhow::Result<()> {
    let server = Harness::start().await?;
    let metadata = json!({"a": "b c"});
    let answer = server
        .post(
            "/v2/sandboxes",
            json!({"templateID": " Base:default ", "metadata": metadata, "envVars": {"X": "1"}}),
        )
        .await?;
    assert_eq!(answer.status, StatusCode::CREATED);
    let created = answer.json()?;
    let id = created["sandboxID"].as_str().expect("id").to_owned();
    assert_eq!(
        created,
        json!({
            "templateID": TEMPLATE_ID,
            "sandboxID": id,
            "clientID": "6532622b",
            "envdVersion": "0.6.13",
            "alias": "base",
            "envdAccessToken": format!("envd{id}"),
            "domain": DOMAIN,
        })
    );
    let claim = server.engine.claims().remove(0);
    assert_eq!(claim.env.get("X").map(String::as_str), Some("1"));
    assert!(claim.workspace.is_none());

    // With the client's suffix, and with an encoded character in the segment.
    for path in [
        format!("/sandboxes/{id}"),
        format!("/sandboxes/{id}-6532622b"),
        format!("/sandboxes/%69{}", &id[1..]),
    ] {
        let answer = server.get(&path).await?;
        assert_eq!(answer.status, StatusCode::OK, "{path}");
        let mut detail = answer.json()?;
        let members = detail.as_object_mut().expect("object");
        let started = members.remove("startedAt").expect("startedAt");
        let end = members.remove("endAt").expect("endAt");
        assert!(started.as_str() < end.as_str());
        assert!(members.remove("diskSizeMB").expect("disk").is_u64());
        assert_eq!(
            detail,
            json!({
                "templateID": TEMPLATE_ID,
                "sandboxID": id,
                "clientID": "6532622b",
                "envdVersion": "0.6.13",
                "alias": "base",
                "cpuCount": 2,
                "memoryMB": 512,
                "state": "running",
                "metadata": metadata,
                "volumeMounts": [],
                "envdAccessToken": format!("envd{id}"),
                "allowInternetAccess": null,
                "domain": DOMAIN,
                "lifecycle": {"autoResume": false, "onTimeout": "kill"},
            })
        );
    }

    let path = format!("/sandboxes/{id}-6532622b");
    let killed = server.call(Method::DELETE, &path, None).await?;
    assert_eq!(killed.status, StatusCode::NO_CONTENT);
    assert!(killed.body.is_empty());
    assert!(server.engine.instances().is_empty());
    for method in [Method::DELETE, Method::GET] {
        let message = server.call(method, &path, None).await?.error(404)?;
        assert!(message.contains("doesn't exist or you don't have access to it"), "{message}");
    }
    Ok(())
}

#[tokio::test]
async fn the_older_path_secures_only_on_request() -> anyhow::Result<()> {
    let server = Harness::start().await?;
    let open = json!({"templateID": "base", "secure": false, "allow_internet_access": true});
    let open = server.post("/sandboxes", open).await?;
    assert_eq!(open.status, StatusCode::CREATED);
    let open = open.json()?;
    assert_eq!(open.get("envdAccessToken"), None);
    let path = format!("/sandboxes/{}", open["sandboxID"].as_str().expect("id"));
    let detail = server.get(&path).await?.json()?;
    assert_eq!(detail["allowInternetAccess"], json!(true));
    assert_eq!(detail.get("envdAccessToken"), None);
    assert_eq!(detail.get("metadata"), None);

    let secured = json!({"templateID": "base", "secure": true});
    let secured = server.post("/sandboxes", secured).await?.json()?;
    assert!(secured["envdAccessToken"].is_string());
    Ok(())
}

#[tokio::test]
async fn connect_and_refresh_only_ever_extend() -> anyhow::Result<()> {
    let server = Harness::start().await?;
    let id = server.create(json!({"timeout": 600})).await?;
    let path = format!("/sandboxes/{id}");
    let end = async || anyhow::Ok(server.get(&path).await?.json()?["endAt"].clone());
    let first = end().await?;
    for (path, body) in [
        (format!("{path}/connect"), json!({"timeout": 1})),
        (format!("{path}/connect"), json!({"timeout": 0})),
        (format!("/v2{path}/connect"), json!({"memory": false})),
    ] {
        let answer = server.post(&path, body).await?;
        assert_eq!(answer.status, StatusCode::OK);
        assert_eq!(answer.json()?["sandboxID"], json!(id));
        assert_eq!(answer.json()?["envdAccessToken"], json!(format!("envd{id}")));
    }
    // No body at all is as good as an empty object.
    let bare = server.call(Method::POST, &format!("/v2{path}/connect"), None).await?;
    assert_eq!(bare.status, StatusCode::OK);
    for body in [json!({}), json!({"duration": 20})] {
        let answer = server.post(&format!("{path}/refreshes"), body).await?;
        assert_eq!(answer.status, StatusCode::NO_CONTENT);
    }
    // Equal to the digit.
    assert_eq!(end().await?, first);

    let answer = server.post(&format!("{path}/refreshes"), json!({"duration": 3600})).await?;
    assert_eq!(answer.status, StatusCode::NO_CONTENT);
    let second = end().await?;
    assert!(second.as_str() > first.as_str());
    let answer = server.post(&format!("{path}/connect"), json!({"timeout": 7200})).await?;
    assert_eq!(answer.status, StatusCode::OK);
    let third = end().await?;
    assert!(third.as_str() > second.as_str());
    // Set timeout may shorten.
    let answer = server.post(&format!("{path}/timeout"), json!({"timeout": 60})).await?;
    assert_eq!(answer.status, StatusCode::NO_CONTENT);
    assert!(end().await?.as_str() < first.as_str());
    Ok(())
}

#[tokio::test]
async fn timeout_zero_ends_the_sandbox() -> anyhow::Result<()> {
    let server = Harness::start().await?;
    let id = server.create(json!({})).await?;
    let path = format!("/sandboxes/{id}");
    let answer = server.post(&format!("{path}/timeout"), json!({"timeout": 0})).await?;
    assert_eq!(answer.status, StatusCode::NO_CONTENT);
    server.engine.called(EngineCall::Delete, 1).await;
    server.get(&path).await?.error(404)?;
    Ok(())
}

/// The oldest releases connect by it: 404 is "gone", 409 "runs already" (control-plane 9).
#[tokio::test]
async fn what_runs_cannot_be_resumed() -> anyhow::Result<()> {
    let server = Harness::start().await?;
    let id = server.create(json!({})).await?;
    let resume = async |id: &str, body| {
        let path = format!("/sandboxes/{id}/resume");
        server.call_as(KEY, Method::POST, &path, body).await
    };
    for body in [None, Some(json!({"timeout": 60, "autoPause": false}))] {
        let message = resume(id.as_str(), body.clone()).await?.error(409)?;
        assert!(message.contains("already running"), "{message}");
        resume("iunknown", body).await?.error(404)?;
    }
    Ok(())
}

#[tokio::test]
async fn another_teams_sandbox_does_not_exist() -> anyhow::Result<()> {
    let server = Harness::start().await?;
    let id = server.create(json!({"metadata": {"session": "s1"}})).await?;
    let as_other =
        async |method, path: &str, body| server.call_as(OTHER_KEY, method, path, body).await;
    let path = format!("/sandboxes/{id}");
    as_other(Method::GET, &path, None).await?.error(404)?;
    as_other(Method::DELETE, &path, None).await?.error(404)?;
    for call in ["timeout", "connect", "refreshes", "resume"] {
        let body = json!({"timeout": 60, "duration": 60});
        as_other(Method::POST, &format!("{path}/{call}"), Some(body)).await?.error(404)?;
    }
    let listed = as_other(Method::GET, "/v2/sandboxes", None).await?;
    assert_eq!(listed.json()?, json!([]));
    // Nor does anything tell that its session is taken.
    let body = json!({"templateID": "base", "metadata": {"session": "s1"}});
    let made = as_other(Method::POST, "/v2/sandboxes", Some(body)).await?;
    assert_eq!(made.status.as_u16(), 201, "{}", made.text());
    Ok(())
}

#[tokio::test]
async fn a_session_mounts_its_workspace() -> anyhow::Result<()> {
    let server = Harness::start().await?;
    server.create(json!({"metadata": {"session": "s-1"}})).await?;
    let claim = server.engine.claims().remove(0);
    let workspace = claim.workspace.expect("workspace");
    assert_eq!(workspace.session.as_str(), "s-1");
    assert_eq!(server.engine.prepared(), [workspace]);
    Ok(())
}

#[tokio::test]
async fn bodies_may_be_chunked() -> anyhow::Result<()> {
    let server = Harness::start().await?;
    let mut stream = TcpStream::connect(server.api).await?;
    let head = format!(
        "POST /v2/sandboxes HTTP/1.1\r\nHost: x\r\nX-API-Key: {KEY}\r\nConnection: close\r\n\
         Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await?;
    for piece in ["{\"templateID\"", ":\"base\"}"] {
        let chunk = format!("{:x}\r\n{piece}\r\n", piece.len());
        stream.write_all(chunk.as_bytes()).await?;
        stream.flush().await?;
    }
    stream.write_all(b"0\r\n\r\n").await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
    Ok(())
}

async fn create_with_key(
    server: &Harness,
    key: &str,
    body: Value,
) -> anyhow::Result<crate::harness::ApiAnswer> {
    let request = Request::post(format!("http://{}/v2/sandboxes", server.api))
        .header("X-API-Key", KEY)
        .header("Idempotency-Key", key)
        .header("Content-Type", "application/json")
        .body(Full::from(body.to_string()))?;
    server.send(request).await
}

#[tokio::test]
async fn a_repeated_create_gets_the_same_sandbox() -> anyhow::Result<()> {
    let server = Harness::start().await?;
    let body = json!({"templateID": "base"});
    let (one, two) = tokio::try_join!(
        create_with_key(&server, "k", body.clone()),
        create_with_key(&server, "k", body.clone()),
    )?;
    let three = create_with_key(&server, "k", body.clone()).await?;
    for answer in [&two, &three] {
        assert_eq!(answer.status, StatusCode::CREATED);
        assert_eq!(answer.body, one.body);
    }
    assert_eq!(server.engine.instances().len(), 1);

    let other = json!({"templateID": "base", "timeout": 60});
    let answer = create_with_key(&server, "k", other).await?;
    answer.error(422)?;
    let code = answer.json()?["error_code"].clone();
    assert_eq!(code, json!("idempotency_request_mismatch"));

    let fresh = create_with_key(&server, "k2", body.clone()).await?;
    assert_ne!(fresh.body, one.body);
    create_with_key(&server, "Not_A_Key", body).await?.error(400)?;
    Ok(())
}

#[tokio::test]
async fn a_failed_create_says_why_leaves_nothing_and_may_be_repeated() -> anyhow::Result<()> {
    let server = Harness::start().await?;
    let body = json!({"templateID": "base"});
    for call in [EngineCall::EnsureImage, EngineCall::Create, EngineCall::Claim] {
        for behaviour in [Behaviour::Fail, Behaviour::FailAfter] {
            server.engine.script(call, behaviour);
            let answer = create_with_key(&server, "k", body.clone()).await?;
            let message = answer.error(500)?;
            assert!(message.contains("told to fail"), "{message}");
            assert_eq!(answer.headers["should-retry"], "false");
            assert!(server.engine.instances().is_empty());
            server.engine.heal(call);
        }
    }
    let answer = create_with_key(&server, "k", body).await?;
    assert_eq!(answer.status, StatusCode::CREATED);
    Ok(())
}
