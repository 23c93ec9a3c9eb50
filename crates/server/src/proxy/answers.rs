//! What the proxy answers by itself: JSON, or HTML for people in front of a browser (control-plane 5.6).

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use sandyard_types::SandboxId;
use serde_json::{Value, json};

use super::target::{ProxyTarget, Unaddressed};
use super::unframed::Unframed;
use crate::http_server::BadHost;

/// A body from a sandbox, or one of our own.
pub(super) type ProxyBody = Either<Either<Incoming, Unframed>, Full<Bytes>>;

const JSON: &str = "application/json; charset=utf-8";
const HTML: &str = "text/html; charset=utf-8";

/// What browsers call themselves, among others.
const BROWSERS: [&str; 7] = ["mozilla", "chrome", "safari", "firefox", "edge", "opera", "msie"];

/// Why a request was not forwarded, or got no answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ProxyRefusal {
    /// It names no host, or more than one.
    Host(BadHost),
    /// A header that says for which sandbox it is, or what opens it, is there twice.
    Repeated(HeaderName),
    /// Nobody knows for which sandbox it is.
    Unaddressed(Unaddressed),
    /// `CONNECT`, which is for proxies to anywhere.
    Method,
    /// The signature of a URL fits no sandbox.
    Signature,
    /// The path is the server's own.
    Reserved { path: String },
    /// Unknown, ended, or it died just now.
    NotFound(SandboxId),
    /// The sandbox's ports are not public, and no token was given.
    TrafficTokenMissing(SandboxId),
    /// The same, and another token was given.
    TrafficTokenWrong(SandboxId),
    /// The sandbox is paused, and the request does not show what would wake it.
    WakeDenied(SandboxId),
    /// The sandbox is paused, and its team has as many running as it may.
    WakeLimit { id: SandboxId, reason: String },
    /// The sandbox is paused, and could not be woken, or not in time.
    WakeFailed { id: SandboxId, reason: String },
    /// Nothing listens on the port.
    PortClosed(ProxyTarget),
    /// The service took the request and hung up.
    NoAnswer(ProxyTarget),
    /// The daemon did not do what the server asked, or gave no answer though it runs.
    Daemon { id: SandboxId, reason: String },
}

impl ProxyRefusal {
    fn status(&self) -> StatusCode {
        match self {
            Self::Host(_) | Self::Repeated(_) | Self::Unaddressed(_) | Self::Method => {
                StatusCode::BAD_REQUEST
            }
            Self::Signature => StatusCode::UNAUTHORIZED,
            Self::TrafficTokenMissing(_) | Self::TrafficTokenWrong(_) | Self::WakeDenied(_) => {
                StatusCode::FORBIDDEN
            }
            Self::WakeLimit { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::WakeFailed { .. } => StatusCode::CONFLICT,
            Self::Reserved { .. } => StatusCode::NOT_FOUND,
            Self::NotFound(_) | Self::PortClosed(_) | Self::NoAnswer(_) => StatusCode::BAD_GATEWAY,
            // Not 502, which means to clients that the sandbox is gone.
            Self::Daemon { .. } => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    fn json(&self) -> Value {
        let code = self.status().as_u16();
        match self {
            Self::Host(reason) => {
                json!({"code": code, "message": format!("Invalid host: {reason}")})
            }
            Self::Repeated(name) => {
                let message = format!("there is more than one header '{name}'");
                json!({"code": code, "message": message})
            }
            Self::Unaddressed(reason) => json!({"code": code, "message": reason.to_string()}),
            Self::Method => json!({"code": code, "message": "CONNECT is not served here"}),
            Self::Signature => json!({"code": code, "message": "invalid signature"}),
            Self::Reserved { path } => json!({
                "code": code,
                "path": path,
                "message": "this path is reserved for the E2B control plane",
            }),
            Self::NotFound(id) => json!({
                "code": code,
                "sandboxId": id,
                "message": "The sandbox was not found",
            }),
            Self::TrafficTokenMissing(id) => json!({
                "code": code,
                "sandboxId": id,
                "message": "Sandbox is secured with traffic access token. Token header \
                    'e2b-traffic-access-token' is missing",
            }),
            Self::TrafficTokenWrong(id) => json!({
                "code": code,
                "sandboxId": id,
                "message": "Sandbox is secured with traffic access token. Provided token in header \
                    'e2b-traffic-access-token' is invalid",
            }),
            Self::WakeDenied(id) => json!({
                "code": code,
                "sandboxId": id,
                "message": "The sandbox is paused, and the request does not show its access token in the \
                    header 'X-Access-Token': it stays paused",
            }),
            Self::WakeLimit { id, reason } => json!({
                "code": code,
                "sandboxId": id,
                "message": format!("The sandbox is paused and cannot be resumed now: {reason}"),
            }),
            Self::WakeFailed { id, reason } => json!({
                "code": code,
                "sandboxId": id,
                "message": format!("The sandbox is paused and could not be resumed; try again: {reason}"),
            }),
            Self::PortClosed(ProxyTarget { id, port }) => json!({
                "code": code,
                "sandboxId": id,
                "port": port,
                "message": "The sandbox is running but port is not open",
            }),
            Self::NoAnswer(ProxyTarget { id, port }) => json!({
                "code": code,
                "sandboxId": id,
                "port": port,
                "message": "The service on the port closed the connection without an answer",
            }),
            Self::Daemon { id, reason } => json!({
                "code": code,
                "sandboxId": id,
                "message": format!("the sandbox's executor failed: {reason}"),
            }),
        }
    }

    /// The page for a browser; `None` where programs and people get the same. Ids and ports need no
    /// escaping: letters and digits.
    fn html(&self) -> Option<String> {
        let (title, text) = match self {
            Self::NotFound(id) => (
                "Sandbox Not Found",
                format!("The sandbox <b>{id}</b> does not run any more, or never did."),
            ),
            Self::TrafficTokenMissing(id) => (
                "Missing Traffic Access Token",
                format!(
                    "The ports of the sandbox <b>{id}</b> are not public: send its token in the header \
                     <b>e2b-traffic-access-token</b>."
                ),
            ),
            Self::TrafficTokenWrong(id) => (
                "Invalid Traffic Access Token",
                format!(
                    "The header <b>e2b-traffic-access-token</b> does not hold the token of the sandbox \
                     <b>{id}</b>."
                ),
            ),
            Self::PortClosed(ProxyTarget { id, port }) => (
                "Closed Port",
                format!(
                    "The sandbox <b>{id}</b> is running, but there's no service running on port \
                     <b>{port}</b>."
                ),
            ),
            Self::NoAnswer(ProxyTarget { id, port }) => (
                "No Answer",
                format!(
                    "The service on port <b>{port}</b> of the sandbox <b>{id}</b> closed the connection \
                     without an answer."
                ),
            ),
            Self::Host(_)
            | Self::Repeated(_)
            | Self::Unaddressed(_)
            | Self::Method
            | Self::Signature
            | Self::Reserved { .. }
            | Self::WakeDenied(_)
            | Self::WakeLimit { .. }
            | Self::WakeFailed { .. }
            | Self::Daemon { .. } => return None,
        };
        Some(format!(
            "<html><head><title>{title}</title></head><body><h1>{title}</h1><p>{text}</p></body></html>"
        ))
    }

    /// The answer to a request with these headers.
    pub(super) fn respond(&self, browser: bool) -> Response<ProxyBody> {
        let (content_type, body) = match self.html().filter(|_| browser) {
            Some(page) => (HTML, page),
            None => (JSON, self.json().to_string()),
        };
        let mut response = Response::new(Either::Right(Full::from(body)));
        *response.status_mut() = self.status();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        response
    }
}

/// Whether a person sees the answer, as far as headers tell.
pub(super) fn wants_html(headers: &HeaderMap) -> bool {
    let text = |name: &str| {
        let value = headers.get(name).map(HeaderValue::as_bytes);
        String::from_utf8_lossy(value.unwrap_or_default()).to_lowercase()
    };
    let agent = text(USER_AGENT.as_str());
    let accept = text(ACCEPT.as_str());
    let mode = text("sec-fetch-mode");
    let browser = BROWSERS.iter().any(|name| agent.contains(name));
    let wants_json = accept.contains("application/json") && !accept.contains("text/html");
    let fetched = matches!(mode.as_str(), "cors" | "no-cors" | "same-origin" | "websocket");
    let scripted = headers.contains_key("x-requested-with") && mode != "navigate";
    browser && !wants_json && !fetched && !scripted
}

#[cfg(test)]
mod tests {
    use http::HeaderName;
    use http_body_util::BodyExt as _;

    use super::*;

    fn wants(pairs: &[(&'static str, &'static str)]) -> bool {
        let headers = pairs
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
        wants_html(&headers.collect())
    }

    #[test]
    fn only_a_browser_that_shows_the_answer_gets_a_page() {
        const AGENT: (&str, &str) = ("user-agent", "Mozilla/5.0 (X11) Firefox/1");
        assert!(wants(&[AGENT]));
        assert!(wants(&[AGENT, ("accept", "text/html,application/json")]));
        assert!(wants(&[AGENT, ("x-requested-with", "a"), ("sec-fetch-mode", "navigate")]));
        for agent in
            ["MOZILLA", "a Chrome b", "safari", "firefox/1", "Edge", "opera", "MSIE 6", "mozilla"]
        {
            assert!(wants(&[("user-agent", agent)]), "{agent}");
        }
        assert!(!wants(&[]));
        assert!(!wants(&[("user-agent", "python-httpx/0.27")]));
        assert!(!wants(&[AGENT, ("accept", "application/json")]));
        assert!(!wants(&[AGENT, ("x-requested-with", "XMLHttpRequest")]));
        for mode in ["cors", "no-cors", "same-origin", "websocket"] {
            assert!(!wants(&[AGENT, ("sec-fetch-mode", mode)]), "{mode}");
        }
    }

    async fn text(refusal: ProxyRefusal, browser: bool) -> (String, String) {
        let response = refusal.respond(browser);
        let content_type = response.headers()[CONTENT_TYPE].to_str().expect("text");
        let content_type = content_type.to_owned();
        let body = response.into_body().collect().await.expect("own body");
        let body = String::from_utf8(body.to_bytes().to_vec()).expect("text");
        (content_type, body)
    }

    #[tokio::test]
    async fn bodies_are_the_contracts() {
        let id: SandboxId = "iabc".parse().expect("valid");
        let target = ProxyTarget { id: id.clone(), port: 8000 };
        let (kind, body) = text(ProxyRefusal::NotFound(id.clone()), false).await;
        assert_eq!(kind, "application/json; charset=utf-8");
        let body: Value = serde_json::from_str(&body).expect("json");
        let expected =
            json!({"code": 502, "sandboxId": "iabc", "message": "The sandbox was not found"});
        assert_eq!(body, expected);

        let (_, body) = text(ProxyRefusal::PortClosed(target.clone()), false).await;
        let body: Value = serde_json::from_str(&body).expect("json");
        let expected = json!({
            "code": 502, "sandboxId": "iabc", "port": 8000,
            "message": "The sandbox is running but port is not open",
        });
        assert_eq!(body, expected);

        let (kind, page) = text(ProxyRefusal::NotFound(id), true).await;
        assert_eq!(kind, "text/html; charset=utf-8");
        assert!(page.starts_with("<html") && page.ends_with("</html>"));
        assert!(page.contains("Sandbox Not Found") && page.contains("iabc"));
        let (_, page) = text(ProxyRefusal::PortClosed(target), true).await;
        assert!(page.contains("no service running on port"));
        assert!(page.contains("iabc") && page.contains("8000"));

        let path = "/init".to_owned();
        let (kind, body) = text(ProxyRefusal::Reserved { path }, true).await;
        assert_eq!(kind, "application/json; charset=utf-8");
        assert!(body.contains("reserved for the E2B control plane"));
    }
}
