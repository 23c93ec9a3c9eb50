//! gRPC: the one kind of request that goes on to its service over HTTP/2, because such services speak
//! nothing else. All others go on over HTTP/1.1, which is what most services speak.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use futures::FutureExt as _;
use http::header::{CONTENT_TYPE, HOST};
use http::uri::{Authority, Scheme};
use http::{Request, Response, Uri, Version};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use sandyard_http::Inbound;
use tracing::debug;

use super::Routes;
use super::answers::ProxyRefusal;
use super::connect::{SandboxConnectError, connect};
use super::connection::BackgroundTasks;
use super::target::{ProxyTarget, Unaddressed};

const GRPC: &str = "application/grpc";

/// Whether a request is gRPC, which exists on HTTP/2 only. gRPC-Web, which does not need it, has another type.
pub(super) fn is_grpc<B>(request: &Request<B>) -> bool {
    let kind = request.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let rest = kind.and_then(|kind| kind.strip_prefix(GRPC));
    request.version() == Version::HTTP_2
        && rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['+', ';']))
}

/// Why there is no answer.
pub(super) enum ForwardFailure {
    Connect(SandboxConnectError),
    Http(hyper::Error),
    Refused(ProxyRefusal),
}

/// Connections to services, kept as long as the client's own connection, which gRPC keeps for long.
#[derive(Default)]
pub(super) struct Http2Services(Mutex<HashMap<ProxyTarget, SendRequest<Inbound>>>);

impl Http2Services {
    fn kept(&self) -> MutexGuard<'_, HashMap<ProxyTarget, SendRequest<Inbound>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a request on, whose `Host` says what the service is to see.
    pub(super) async fn send(
        &self,
        mut request: Request<Inbound>,
        target: &ProxyTarget,
        routes: &dyn Routes,
        background: &BackgroundTasks,
    ) -> Result<Response<Incoming>, ForwardFailure> {
        address(&mut request)
            .ok_or(ForwardFailure::Refused(ProxyRefusal::Unaddressed(Unaddressed::Host)))?;
        let kept = self.kept().get(target).filter(|kept| !kept.is_closed()).cloned();
        let mut service = match kept {
            Some(service) => service,
            None => {
                let service = open(target, routes, background).await?;
                // Of two that are made at once, the later one is used from then on.
                self.kept().insert(target.clone(), service.clone());
                service
            }
        };
        service.ready().await.map_err(ForwardFailure::Http)?;
        service.send_request(request).await.map_err(ForwardFailure::Http)
    }
}

async fn open(
    target: &ProxyTarget,
    routes: &dyn Routes,
    background: &BackgroundTasks,
) -> Result<SendRequest<Inbound>, ForwardFailure> {
    let stream = connect(routes, target).await.map_err(ForwardFailure::Connect)?;
    let shaken = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
    let (service, connection) = shaken.map_err(ForwardFailure::Http)?;
    let driven = connection.map(|ended| {
        if let Err(error) = ended {
            debug!(%error, "a connection to a service broke");
        }
    });
    // Refused only when the client's connection has ended: nobody waits for the answer then.
    let _ = background.send(driven.boxed()).await;
    Ok(service)
}

/// In HTTP/2 the host is part of the request's address.
fn address<B>(request: &mut Request<B>) -> Option<()> {
    let host = request.headers_mut().remove(HOST);
    let authority = match host {
        Some(host) => Authority::try_from(host.as_bytes()).ok()?,
        None => Authority::from_static("localhost"),
    };
    let mut parts = std::mem::take(request.uri_mut()).into_parts();
    parts.scheme = Some(Scheme::HTTP);
    parts.authority = Some(authority);
    *request.uri_mut() = Uri::from_parts(parts).ok()?;
    *request.version_mut() = Version::HTTP_2;
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(version: Version, kind: &str) -> Request<()> {
        let mut request = Request::builder().version(version).uri("http://a/b");
        if !kind.is_empty() {
            request = request.header(CONTENT_TYPE, kind);
        }
        request.body(()).expect("request")
    }

    #[test]
    fn only_grpc_needs_http2_inside() {
        for kind in ["application/grpc", "application/grpc+proto", "application/grpc;x"] {
            assert!(is_grpc(&request(Version::HTTP_2, kind)), "{kind}");
            assert!(!is_grpc(&request(Version::HTTP_11, kind)), "{kind}");
        }
        for kind in ["application/grpc-web", "application/json", ""] {
            assert!(!is_grpc(&request(Version::HTTP_2, kind)), "{kind}");
        }
    }

    #[test]
    fn the_host_moves_into_the_address() {
        let mut request = Request::builder().uri("http://iabc:80/p?q").header(HOST, "x.y:1");
        request = request.header("te", "trailers");
        let mut request = request.body(()).expect("request");
        address(&mut request).expect("addressed");
        assert_eq!(request.uri(), "http://x.y:1/p?q");
        assert!(!request.headers().contains_key(HOST));
        assert_eq!(request.headers()["te"], "trailers");
    }
}
