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
