//! Waking a paused sandbox for a request to it (control-plane 5.7): credentials first, then the resume, then the request
//! goes on as if nothing had been.

use std::time::Duration;

use http::{HeaderMap, HeaderValue};
use sandyard_contract::daemon::DAEMON_PORT;
use sandyard_types::Secret;
use subtle::ConstantTimeEq as _;
use tokio::time::timeout;

use super::access::{ACCESS_TOKEN, check};
use super::answers::ProxyRefusal;
use super::signed::SignedUrl;
use super::target::ProxyTarget;
use super::{NotWoken, Route, Routes, Sleeping};

/// The longest wait for a sandbox that is being paused or resumed.
const LIMIT: Duration = Duration::from_secs(60);

/// The way to a sandbox that is not running, if the request may wake it. `signed` is what the request has in the place of
/// the daemon's token, if it is for a signed URL.
pub(super) async fn wake(
    routes: &dyn Routes,
    target: &ProxyTarget,
    headers: &HeaderMap,
    signed: Option<SignedUrl>,
) -> Result<Route, ProxyRefusal> {
    let not_found = || ProxyRefusal::NotFound(target.id.clone());
    let Sleeping { access_token, traffic_token } =
        routes.sleeping(&target.id).ok_or_else(not_found)?;
    if target.port == DAEMON_PORT {
        let proves = |token: &Secret| {
            shows(headers, token) || signed.as_ref().is_some_and(|url| url.fits(token))
        };
        if !access_token.as_ref().is_none_or(proves) {
            return Err(ProxyRefusal::WakeDenied(target.id.clone()));
        }
    } else {
        check(traffic_token.as_ref(), target, headers)?;
    }
    match timeout(LIMIT, routes.wake(&target.id)).await {
        Ok(Ok(())) => routes.route(&target.id).ok_or_else(not_found),
        Ok(Err(NotWoken::Gone)) => Err(not_found()),
        Ok(Err(NotWoken::TooMany(reason))) => {
            Err(ProxyRefusal::WakeLimit { id: target.id.clone(), reason })
        }
        Ok(Err(NotWoken::Failed(reason))) => {
            Err(ProxyRefusal::WakeFailed { id: target.id.clone(), reason })
        }
        Err(_) => {
            let reason = format!("it did not run after {} s", LIMIT.as_secs());
            Err(ProxyRefusal::WakeFailed { id: target.id.clone(), reason })
        }
    }
}

fn shows(headers: &HeaderMap, token: &Secret) -> bool {
    let given = headers.get(ACCESS_TOKEN).map(HeaderValue::as_bytes).unwrap_or_default();
    token.reveal().as_bytes().ct_eq(given).into()
}

/// The sandbox whose daemon demands the token that a request shows. Some releases name a sandbox by nothing else
/// (control-plane 5.3).
pub(super) fn by_access_token(routes: &dyn Routes, headers: &HeaderMap) -> Option<ProxyTarget> {
    headers.get(ACCESS_TOKEN)?;
    let sandboxes = routes.secure_sandboxes();
    let found = sandboxes.into_iter().find(|(_, token)| shows(headers, token));
    found.map(|(id, _)| ProxyTarget { id, port: DAEMON_PORT })
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use async_trait::async_trait;
    use http::StatusCode;
    use http_body_util::BodyExt as _;
    use sandyard_types::SandboxId;
    use serde_json::{Value, json};
    use tokio::time::Instant;

    use super::*;

    /// One sandbox, whose resume never ends.
    struct NeverWakes;

    #[async_trait]
    impl Routes for NeverWakes {
        fn route(&self, _: &SandboxId) -> Option<Route> {
            None
        }

        fn sleeping(&self, _: &SandboxId) -> Option<Sleeping> {
            Some(Sleeping { access_token: None, traffic_token: None })
        }

        async fn wake(&self, _: &SandboxId) -> Result<(), NotWoken> {
            std::future::pending().await
        }

        fn is_sandbox(&self, _: IpAddr) -> bool {
            false
        }

        fn secure_sandboxes(&self) -> Vec<(SandboxId, Secret)> {
            Vec::new()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_resume_that_takes_too_long_is_a_conflict_to_try_again() {
        let target = ProxyTarget { id: "i1".parse().expect("valid"), port: 8000 };
        let begun = Instant::now();
        let woken = wake(&NeverWakes, &target, &HeaderMap::new(), None).await;
        let Err(refusal) = woken else { panic!("it has no way to it") };
        assert_eq!(begun.elapsed(), LIMIT);
        let answer = refusal.respond(false);
        assert_eq!(answer.status(), StatusCode::CONFLICT);
        let body = answer.into_body().collect().await.expect("whole").to_bytes();
        let body: Value = serde_json::from_slice(&body).expect("JSON");
        assert_eq!((&body["sandboxId"], &body["code"]), (&json!("i1"), &json!(409)));
        assert!(body["message"].as_str().is_some_and(|text| text.contains("try again")), "{body}");
    }
}
