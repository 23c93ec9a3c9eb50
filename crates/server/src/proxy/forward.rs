//! From a request to the sandbox's answer (control-plane 5.5).

use std::error::Error;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::header::{CONNECTION, HOST};
use http::uri::Authority;
use http::{HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body_util::Either;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::client::legacy::{self, Client};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use sandyard_contract::control::CONTROL_PORT;
use sandyard_contract::daemon::{DAEMON_PORT, EXECUTE_PATH, INTERPRETER_PORT};
use sandyard_http::{Inbound, MAX_HEADERS};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tracing::{Instrument as _, Span, debug, debug_span, field, warn};

use super::Routes;
use super::access::{check, check_once, put_access_token, put_mask};
use super::answers::{ProxyBody, ProxyRefusal, wants_html};
use super::connect::{SandboxConnectError, SandboxConnector, daemon_answers, pool_uri};
use super::connection::{BackgroundDiscard, ConnectionContext, upgraded};
use super::headers::{prepare_request, put_upgrade, remove_hop_by_hop, wanted_upgrade};
use super::http2::{ForwardFailure, is_grpc};
use super::reserved::reserved;
use super::signed::SignedUrl;
use super::target::{ProxyTarget, Unaddressed, target_of};
use super::unframed::{Unframed, is_unframed};
use super::wake::{by_access_token, wake};
use crate::http_server::requested_host;

/// The daemon never closes an idle connection by itself, and each costs it some memory.
const DAEMON_IDLE: Duration = Duration::from_secs(10);
/// Services close idle connections after a few seconds, some after two; a request sent into that is lost.
const SERVICE_IDLE: Duration = Duration::from_secs(1);
/// Idle connections that are kept for one port of one sandbox.
const MAX_IDLE: usize = 16;

/// Starts a process, also if the client gives up before it hears of it (executor 2.7).
const START_PATH: &str = "/process.Process/Start";

/// Forwards requests.
pub(super) struct Proxy {
    routes: Arc<dyn Routes>,
    daemons: Client<SandboxConnector, Inbound>,
    services: Client<SandboxConnector, Inbound>,
    starts: Starts,
}

/// Requests that go on though their client gave up. They end with the proxy.
#[derive(Default)]
struct Starts(Mutex<JoinSet<()>>);

impl Starts {
    /// Runs to the end of `work`, whoever still waits. `None` if it panicked.
    async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Option<T> {
        let (sender, receiver) = oneshot::channel();
        {
            let mut tasks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            while tasks.try_join_next().is_some() {}
            tasks.spawn(async move {
                // Without a receiver the client has given up.
                let _ = sender.send(work.await);
            });
        }
        receiver.await.ok()
    }
}

impl Proxy {
    pub(super) fn new(routes: Arc<dyn Routes>) -> Self {
        let client = |idle| {
            let connector = SandboxConnector { routes: routes.clone() };
            Client::builder(TokioExecutor::new())
                .pool_timer(TokioTimer::new())
                .pool_idle_timeout(idle)
                .pool_max_idle_per_host(MAX_IDLE)
                .http1_max_headers(MAX_HEADERS)
                // Services see names as the original's proxy writes them (control-plane 5.5): some look for `Host:`.
                .http1_title_case_headers(true)
                // Services see the host that the client asked for.
                .set_host(false)
                .build(connector)
        };
        let (daemons, services) = (client(DAEMON_IDLE), client(SERVICE_IDLE));
        Self { daemons, services, starts: Starts::default(), routes }
    }

    /// Answers a request of the connection with this context.
    pub(super) async fn answer(
        &self,
        request: Request<Incoming>,
        context: &ConnectionContext,
    ) -> Response<ProxyBody> {
        let browser = wants_html(request.headers());
        let request = match request.version() {
            Version::HTTP_2 => request.map(Inbound::of_stream),
            _ => {
                let discard = Arc::new(BackgroundDiscard(context.background.downgrade()));
                request.map(|body| Inbound::new(body, discard))
            }
        };
        let unread = request.body().unread();
        // Neither path nor query: both may hold secrets.
        let span = debug_span!(
            "proxy",
            method = %request.method(),
            sandbox.id = field::Empty,
            port = field::Empty,
        );
        async {
            let answer = self.forward(request, context).await;
            match &answer {
                Ok(response) => debug!(status = response.status().as_u16(), "forwarded"),
                Err(ProxyRefusal::Daemon { id, reason }) => {
                    warn!(sandbox.id = %id, reason, "the executor failed");
                }
                Err(refusal) => debug!(?refusal, "not forwarded"),
            }
            let mut answer = answer.unwrap_or_else(|refusal| refusal.respond(browser));
            if unread.get() {
                // Whoever keeps connections for later has to hear that this one ends.
                answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            answer
        }
        .instrument(span)
        .await
    }

    async fn forward(
        &self,
        mut request: Request<Inbound>,
        context: &ConnectionContext,
    ) -> Result<Response<ProxyBody>, ProxyRefusal> {
        if *request.method() == Method::CONNECT {
            return Err(ProxyRefusal::Method);
        }
        context.follows_execution.send_replace(false);
        let host = requested_host(&request).map_err(ProxyRefusal::Host)?;
        check_once(request.headers())?;
        let target = self.target(&request, host.as_ref())?;
        Span::current().record("sandbox.id", target.id.as_str()).record("port", target.port);
        if target.port == DAEMON_PORT
            && let Some(path) = reserved(request.uri().path())
        {
            return Err(ProxyRefusal::Reserved { path });
        }
        let route = match self.routes.route(&target.id) {
            Some(route) => route,
            // No request there is for a service: none wakes anybody.
            None if target.port == CONTROL_PORT => return Err(ProxyRefusal::NotFound(target.id)),
            None => {
                let signed = SignedUrl::of(request.method(), request.uri());
                wake(self.routes.as_ref(), &target, request.headers(), signed).await?
            }
        };
        if target.port != DAEMON_PORT {
            check(route.traffic_token.as_ref(), &target, request.headers())?;
        }
        if target.port == CONTROL_PORT {
            return Err(ProxyRefusal::PortClosed(target));
        }

        let executes = target.port == INTERPRETER_PORT && request.uri().path() == EXECUTE_PATH;
        let grpc = target.port != DAEMON_PORT && is_grpc(&request);
        let upgrade = wanted_upgrade(request.headers());
        let downstream = upgrade.as_ref().map(|_| hyper::upgrade::on(&mut request));
        address(&mut request, &target)?;
        prepare_request(request.headers_mut(), upgrade.as_ref());
        if target.port == DAEMON_PORT
            && let Some(token) = &route.access_token
            // Code in a sandbox is not that sandbox's client: it would be root by its daemon, sudo or not.
            && !context.source.is_some_and(|source| self.routes.is_sandbox(source))
        {
            put_access_token(request.headers_mut(), token);
        }
        if target.port != DAEMON_PORT
            && let Some(mask) = &route.host_mask
        {
            put_mask(request.headers_mut(), mask, target.port);
        }
        let response = if grpc {
            let routes = self.routes.as_ref();
            match context.services.send(request, &target, routes, &context.background).await {
                Ok(response) => response,
                Err(ForwardFailure::Connect(error)) => return Err(refusal_of(target, &error)),
                Err(ForwardFailure::Http(error)) => return Err(self.hung_up(target, &error).await),
                Err(ForwardFailure::Refused(refusal)) => return Err(refusal),
            }
        } else {
            let of_daemon = target.port == DAEMON_PORT;
            let starts = of_daemon && request.uri().path() == START_PATH;
            let client = if of_daemon { &self.daemons } else { &self.services };
            let answer = client.request(request);
            let answer = match starts {
                true => self.starts.run(answer).await,
                false => Some(answer.await),
            };
            match answer.ok_or_else(|| no_answer(target.clone()))? {
                Ok(response) => response,
                Err(error) => return Err(self.refusal(target, &error).await),
            }
        };
        match self.answer_from(response, &target, downstream, context).await {
            Some(answer) => {
                context.follows_execution.send_replace(executes);
                Ok(answer)
            }
            None => Err(no_answer(target)),
        }
    }

    /// For which sandbox a request is.
    fn target(
        &self,
        request: &Request<Inbound>,
        host: Option<&Authority>,
    ) -> Result<ProxyTarget, ProxyRefusal> {
        let refused = match target_of(host.map(Authority::as_str), request.headers()) {
            Ok(target) => return Ok(target),
            Err(refused) => refused,
        };
        // Also for a name in a local network that only looks like a sandbox's, as `build-machine.lan`.
        if matches!(refused, Unaddressed::MissingHeader(_)) {
            return Err(ProxyRefusal::Unaddressed(refused));
        }
        let routes = self.routes.as_ref();
        if let Some(target) = by_access_token(routes, request.headers()) {
            return Ok(target);
        }
        let Some(url) = SignedUrl::of(request.method(), request.uri()) else {
            return Err(ProxyRefusal::Unaddressed(refused));
        };
        let id = url.sandbox(routes).ok_or(match refused {
            Unaddressed::Host => ProxyRefusal::Signature,
            other => ProxyRefusal::Unaddressed(other),
        })?;
        Ok(ProxyTarget { id, port: DAEMON_PORT })
    }

    /// The sandbox's answer as the client gets it; `None` if it goes on in a protocol that nobody asked for.
    async fn answer_from(
        &self,
        mut response: Response<Incoming>,
        target: &ProxyTarget,
        downstream: Option<OnUpgrade>,
        context: &ConnectionContext,
    ) -> Option<Response<ProxyBody>> {
        let mut upgrade = None;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let upstream = hyper::upgrade::on(&mut response);
            upgrade = wanted_upgrade(response.headers());
            let downstream = downstream?;
            // The receiver is the connection itself: without it nobody waits for this answer either.
            context.background.send(upgraded(downstream, upstream)).await.ok()?;
        }
        let unframed = is_unframed(&response);
        remove_hop_by_hop(response.headers_mut());
        put_upgrade(response.headers_mut(), upgrade.as_ref());
        *response.version_mut() = Version::HTTP_11;
        Some(response.map(|body| {
            Either::Left(if unframed {
                Either::Right(Unframed::new(body, self.routes.clone(), target.clone()))
            } else {
                Either::Left(body)
            })
        }))
    }

    /// Why there is no answer.
    async fn refusal(&self, target: ProxyTarget, error: &legacy::Error) -> ProxyRefusal {
        let mut cause = error.source();
        while let Some(source) = cause {
            match source.downcast_ref::<SandboxConnectError>() {
                Some(error) => return refusal_of(target, error),
                None => cause = source.source(),
            }
        }
        self.hung_up(target, error).await
    }

    /// Why a connection ended before the answer.
    async fn hung_up(
        &self,
        target: ProxyTarget,
        error: &(dyn Error + Send + Sync),
    ) -> ProxyRefusal {
        debug!(?error, "the connection ended before the answer");
        // Did the service hang up, or the whole sandbox end?
        if daemon_answers(self.routes.as_ref(), &target).await {
            no_answer(target)
        } else {
            ProxyRefusal::NotFound(target.id)
        }
    }
}

/// Whatever took the request and gave no answer still runs.
fn no_answer(target: ProxyTarget) -> ProxyRefusal {
    match target.port {
        DAEMON_PORT => {
            let reason = "it closed the connection without an answer".to_owned();
            ProxyRefusal::Daemon { id: target.id, reason }
        }
        _ => ProxyRefusal::NoAnswer(target),
    }
}

/// Why there is no connection.
fn refusal_of(target: ProxyTarget, error: &SandboxConnectError) -> ProxyRefusal {
    match error {
        SandboxConnectError::Gone(reason) => {
            debug!(reason, "the sandbox does not answer");
            ProxyRefusal::NotFound(target.id)
        }
        SandboxConnectError::PortClosed(_) => ProxyRefusal::PortClosed(target),
        SandboxConnectError::Refused(reason) => {
            let (id, reason) = (target.id, reason.clone());
            ProxyRefusal::Daemon { id, reason }
        }
    }
}

/// Points the request at the target; its `Host` stays what the client asked for.
fn address<B>(request: &mut Request<B>, target: &ProxyTarget) -> Result<(), ProxyRefusal> {
    let refused = || ProxyRefusal::Unaddressed(Unaddressed::Host);
    if let Some(authority) = request.uri().authority() {
        let host = HeaderValue::from_str(authority.as_str()).map_err(|_| refused())?;
        request.headers_mut().insert(HOST, host);
    }
    *request.uri_mut() = pool_uri(target, request.uri()).map_err(|_| refused())?;
    *request.version_mut() = Version::HTTP_11;
    Ok(())
}
