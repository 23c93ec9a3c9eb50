//! The REST API: what is refused, and that nothing is left behind.

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::Full;
use sandyard_testkit::EngineCall;
use serde_json::{Value, json};

use crate::harness::{ApiAnswer, Harness, KEY, MAX_SANDBOXES};

async fn send(
    server: &Harness,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: impl Into<Bytes>,
) -> anyhow::Result<ApiAnswer> {
    let mut request = Request::builder().method(method).uri(format!("http://{}{path}", server.api));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    server.send(request.body(Full::from(body.into()))?).await
}

#[tokio::test]
async fn who_calls_is_asked_before_anything_else() -> anyhow::Result<()> {
    let server = Harness::start().await?;
    for (method, path) in [
        (Method::POST, "/v2/sandboxes"),
        (Method::POST, "/sandboxes"),
        (Method::GET, "/v2/sandboxes?limit=x"),
        (Method::GET, "/sandboxes/NOT%20AN%20ID"),
        (Method::DELETE, "/sandboxes/iunknown"),
        (Method::POST, "/sandboxes/iunknown/timeout"),
        (Method::POST, "/v2/sandboxes/iunknown/connect"),
        (Method::PUT, "/sandboxes/nonsense/network"),
        (Method::GET, "/volumes"),
    ] {
        for (headers, expected) in [
            (vec![], "no API key"),
            (vec![("x-api-key", "wrong")], "'e2b_'"),
            (vec![("x-api-key", "e2b_99")], "not known"),
            (vec![("authorization", "Bearer sk_e2b_0")], "Authorization"),
            (vec![("authorization", "Bearer x"), ("x-api-key", "e2b_99")], "not known"),
        ] {
            let answer = send(&server, method.clone(), path, &headers, "{broken").await?;
            let message = answer.error(401)?;
            assert!(message.contains(expected), "{path}: {message}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn routes_that_are_not_built_name_themselves() -> anyhow::Result<()> {
    let server = Harness::start().await?;
    for (method, path, named) in [
        (Method::PUT, "/sandboxes/iabc/network", "PUT /sandboxes/{sandboxID}/network"),
        (Method::GET, "/templates/aliases/team%2Fname%3Atag", "GET /templates/aliases/{alias}"),
        (Method::DELETE, "/templates/tags", "DELETE /templates/tags"),
        (Method::GET, "/sandboxes/metrics", "GET /sandboxes/metrics"),
        (Method::GET, "/no/such/route", "GET /no/such/route"),
        (Method::PATCH, "/v2/sandboxes", "PATCH /v2/sandboxes"),
        (Method::POST, "/health", "POST /health"),
        (Method::GET, "/envs/x", "GET /envs/x"),
    ] {
        let message = server.call(method, path, None).await?.error(501)?;
        assert!(message.contains(named), "{message}");
    }
    Ok(())
}

#[tokio::test]
async fn bad_requests_say_what_is_wrong_and_leave_nothing() -> anyhow::Result<()> {
    let server = Harness::start().await?;
    let long = "a".repeat(200);
    let with_session =
        |session: &str| json!({"templateID": "base", "metadata": {"session": session}});
    for (body, status, expected) in [
        (json!({}), 400, "templateID"),
        (json!([]), 400, "validation error"),
        (json!({"templateID": 1}), 400, "'templateID'"),
        (json!({"templateID": "nope"}), 404, "template 'nope' not found"),
        (json!({"templateID": "base:v9"}), 404, "tag 'v9' does not exist for template 'base'"),
        (json!({"templateID": "base", "timeout": 0}), 400, "'timeout'"),
        (json!({"templateID": "base", "timeout": -5}), 400, "'timeout'"),
        (json!({"templateID": "base", "timeout": 24 * 3600 + 1}), 400, "24 hours"),
        (json!({"templateID": "base", "metadata": {"a": 1}}), 400, "'metadata.a'"),
        (with_session("../x"), 400, "'metadata.session'"),
        (with_session(""), 400, "'metadata.session'"),
        (with_session("ünï"), 400, "'metadata.session'"),
        (with_session(&long), 400, "'metadata.session'"),
        (json!({"templateID": "base", "autoPauseMemory": false}), 400, "'autoPauseMemory'"),
        (json!({"templateID": "base", "network": {"allowOut": "x"}}), 400, "'network.allowOut'"),
    ] {
        let answer = server.post("/v2/sandboxes", body.clone()).await?;
        let message = answer.error(status)?;
        assert!(message.contains(expected), "{body}: {message}");
    }
    let calls: Vec<EngineCall> = server.engine.calls().into_iter().map(|(call, _)| call).collect();
    assert_eq!(calls, [EngineCall::List, EngineCall::Images], "only what a start looks at");
    Ok(())
}

#[tokio::test]
async fn broken_and_oversized_bodies_are_refused() -> anyhow::Result<()> {
    let server = Harness::start().await?;
    let key = ("x-api-key", KEY);
    let json = ("content-type", "application/json; charset=utf-8");
    let create = async |headers: &[(&str, &str)], body: Bytes| {
        send(&server, Method::POST, "/v2/sandboxes", headers, body).await
    };
    let message = create(&[key, json], "{\"templateID\"".into()).await?.error(400)?;
    assert!(message.contains("JSON"), "{message}");
    let message = create(&[key, json], Bytes::new()).await?.error(400)?;
    assert!(message.contains("no body"), "{message}");
    let form = ("content-type", "application/x-www-form-urlencoded");
    let message = create(&[key, form], "a=b".into()).await?.error(400)?;
    assert!(message.contains("application/json"), "{message}");

    // No content type: it is JSON all the same.
    let bare = create(&[key], r#"{"templateID":"base"}"#.into()).await?;
    assert_eq!(bare.status, StatusCode::CREATED);

    let huge = Bytes::from(vec![b' '; 50 << 20]);
    let message = create(&[key, json], huge).await?.error(413)?;
    assert!(message.contains("1048576 bytes"), "{message}");
    // The server is none the worse for it.
    assert_eq!(server.get("/v2/sandboxes").await?.status, StatusCode::OK);
    Ok(())
}

#[tokio::test]
async fn sandbox_calls_refuse_what_they_cannot_do() -> anyhow::Result<()> {
    let server = Harness::start().await?;
    let id = server.create(json!({})).await?;
    let connect = format!("/sandboxes/{id}/connect");
    let v2 = format!("/v2{connect}");
    let timeout = format!("/sandboxes/{id}/timeout");
    let refreshes = format!("/sandboxes/{id}/refreshes");
    let days = json!({"timeout": 72 * 3600});
    let cases: [(&str, Value, u16); 14] = [
        (&connect, json!({}), 400),
        (&connect, days.clone(), 400),
        (&connect, json!({"timeout": -1}), 400),
        (&v2, json!({"timeout": -1}), 400),
        (&v2, json!({"memory": "x"}), 400),
        // Before anybody looks whether it exists.
        ("/v2/sandboxes/iunknown/connect", days.clone(), 400),
        ("/v2/sandboxes/iunknown/connect", json!({}), 404),
        (&timeout, json!({}), 400),
        (&timeout, json!({"timeout": -1}), 400),
        ("/sandboxes/iunknown/timeout", json!({"timeout": 1}), 404),
        (&refreshes, json!({"duration": 3601}), 400),
        (&refreshes, json!({"duration": -1}), 400),
        ("/sandboxes/a-b-c/timeout", json!({"timeout": 1}), 400),
        // `not`, with the client suffix `found`.
        ("/sandboxes/not-found/timeout", json!({"timeout": 1}), 404),
    ];
    for (path, body, status) in cases {
        let answer = server.post(path, body.clone()).await?;
        answer.error(status).map_err(|error| error.context(format!("{path} {body}")))?;
    }
    // A timeout beyond the maximum is cut, not refused.
    let answer = server.post(&timeout, days).await?;
    assert_eq!(answer.status, StatusCode::NO_CONTENT);
    for bad in ["NOT", "a%2Fb", "%FF", "a.b"] {
        let message = server.get(&format!("/sandboxes/{bad}")).await?.error(400)?;
        assert_eq!(message, "Invalid sandbox ID", "{bad}");
    }
    Ok(())
}

#[tokio::test]
async fn more_sandboxes_than_allowed_are_refused_for_good() -> anyhow::Result<()> {
    let server = Harness::start().await?;
    for _ in 0..MAX_SANDBOXES {
        server.create(json!({})).await?;
    }
    let answer = server.post("/v2/sandboxes", json!({"templateID": "base"})).await?;
    answer.error(429)?;
    assert_eq!(answer.headers["should-retry"], "false");
    Ok(())
}

#[tokio::test]
async fn browsers_may_call_from_anywhere() -> anyhow::Result<()> {
    let server = Harness::start().await?;
    let asks = [
        ("origin", "https://app.example"),
        ("access-control-request-method", "POST"),
        ("access-control-request-headers", "x-api-key"),
    ];
    let answer = send(&server, Method::OPTIONS, "/v2/sandboxes", &asks, "").await?;
    assert_eq!(answer.status, StatusCode::NO_CONTENT);
    assert_eq!(answer.headers["access-control-allow-origin"], "*");
    let allowed = answer.headers["access-control-allow-headers"].to_str()?;
    for name in ["X-API-Key", "Idempotency-Key", "package_version", "sdk_runtime"] {
        assert!(allowed.contains(name), "{name}");
    }
    // On errors too, or the page cannot read them.
    let answer = send(&server, Method::GET, "/v2/sandboxes", &[], "").await?;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
    assert_eq!(answer.headers["access-control-allow-origin"], "*");
    let exposed = answer.headers["access-control-expose-headers"].to_str()?;
    assert!(exposed.contains("X-Next-Token") && exposed.contains("X-Total-Running"));
    Ok(())
}
