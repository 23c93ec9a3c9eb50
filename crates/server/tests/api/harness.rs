//! A whole server but for its engine, and clients for it.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use sandyard::api::{App, Service};
use sandyard::data_dir::DataDir;
use sandyard::proxy::{Port, SchedulerRoutes, serve};
use sandyard::tls::{CA_FILE, Tls};
use sandyard::tokens::{Tokens, hash_api_key};
use sandyard_core::{Limits, PoolSettings, Scheduler, SchedulerParts, Store, Team};
use sandyard_http::{MAX_HEADERS, Quota};
use sandyard_testkit::{FakeDaemon, FakeEngine};
use sandyard_types::{Cache, InstanceId, SandboxId, Secret, TeamId, Template, TemplateKind};
use serde_json::{Value, json};
use socket2::SockRef;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub(crate) const KEY: &str = "e2b_0011";
pub(crate) const OTHER_KEY: &str = "e2b_2233";
pub(crate) const DOMAIN: &str = "sbx.localhost:3002";
pub(crate) const TEMPLATE_ID: &str = "abcdefghij0123456789";
pub(crate) const MAX_SANDBOXES: usize = 4;

pub(crate) struct TestTokens;

impl Tokens for TestTokens {
    fn envd_access_token(&self, id: &SandboxId) -> Secret {
        Secret::new(format!("envd{id}"))
    }

    fn traffic_access_token(&self, id: &SandboxId) -> Secret {
        Secret::new(format!("traffic{id}"))
    }

    fn control_token(&self, id: &SandboxId) -> Secret {
        Secret::new(format!("control{id}"))
    }
}

pub(crate) struct Harness {
    pub(crate) engine: FakeEngine,
    scheduler: Scheduler,
    pub(crate) api: SocketAddr,
    pub(crate) proxy: SocketAddr,
    pub(crate) stop: CancellationToken,
    /// What a client of the proxy's TLS trusts.
    pub(crate) ca: PathBuf,
    client: Client<HttpConnector, Full<Bytes>>,
    tasks: JoinSet<()>,
    _folder: tempfile::TempDir,
}

/// An answer that was read to its end.
#[derive(Debug)]
pub(crate) struct ApiAnswer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl ApiAnswer {
    pub(crate) fn json(&self) -> anyhow::Result<Value> {
        serde_json::from_slice(&self.body).with_context(|| {
            format!("{} with a body that is no JSON: {:?}", self.status, self.body)
        })
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The error's message, after a look at what all errors have in common (control-plane G1, G4).
    pub(crate) fn error(&self, status: u16) -> anyhow::Result<String> {
        let body = self.json()?;
        anyhow::ensure!(self.status.as_u16() == status, "{}: {body}", self.status);
        anyhow::ensure!(body["code"] == json!(status), "{body}");
        let message = body["message"].as_str().context("no message")?;
        Ok(message.to_owned())
    }
}

impl Harness {
    pub(crate) async fn start() -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let store = Store::open(&folder.path().join("store.db")).await?;
        for (slug, key) in [("one", KEY), ("two", OTHER_KEY)] {
            let team = Team { id: TeamId::random(), slug: slug.to_owned(), name: slug.to_owned() };
            store.add_team(&team).await?;
            store.add_api_key(team.id, &hash_api_key(key)).await?;
        }
        let engine = FakeEngine::with_daemons();
        let scheduler = Scheduler::start(SchedulerParts {
            runtime: Arc::new(engine.clone()),
            executor: Arc::new(engine.clone()),
            workspaces: Arc::new(engine.clone()),
            store,
            templates: vec![template()?],
            limits: Limits {
                max_length: Duration::from_secs(24 * 3600),
                max_sandboxes: MAX_SANDBOXES,
                flush: Duration::from_secs(1),
                disk_watch: Duration::from_secs(3600),
                pool: PoolSettings { max: 0, memory_mib: 0 },
                frozen_memory: None,
            },
            bucket: "sandyard".parse()?,
            cache: Cache::Disk { limit_mib: 64 },
        })
        .await?;

        let tokens: Arc<dyn Tokens> = Arc::new(TestTokens);
        let api_listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let proxy_listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let (api, proxy) = (api_listener.local_addr()?, proxy_listener.local_addr()?);
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        let app =
            App { scheduler: scheduler.clone(), tokens: tokens.clone(), domain: DOMAIN.parse()? };
        let api_host = app.domain.api_host();
        let data = DataDir::open(&folder.path().join("data"))?;
        let tls = Tls::open(&data, &app.domain, None)?;
        let service = Service::new(app);
        tasks.spawn(sandyard::api::serve(
            api_listener,
            Quota::of_all(1024),
            service.clone(),
            stop.clone(),
        ));
        let routes = Arc::new(SchedulerRoutes::new(scheduler.clone(), tokens));
        let port = Port { routes, api: service, api_host, tls: tls.acceptor() };
        tasks.spawn(serve(proxy_listener, Quota::of_all(1024), port, stop.clone()));
        Ok(Self {
            engine,
            scheduler,
            api,
            proxy,
            stop,
            ca: data.path().join(CA_FILE),
            client: Client::builder(TokioExecutor::new())
                .http1_max_headers(MAX_HEADERS)
                .build_http(),
            tasks,
            _folder: folder,
        })
    }

    pub(crate) async fn send(&self, request: Request<Full<Bytes>>) -> anyhow::Result<ApiAnswer> {
        let response = self.client.request(request).await?;
        let (parts, body) = response.into_parts();
        Ok(ApiAnswer {
            status: parts.status,
            headers: parts.headers,
            body: body.collect().await?.to_bytes(),
        })
    }

    /// A call of the REST API with a team's key.
    pub(crate) async fn call_as(
        &self,
        key: &str,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> anyhow::Result<ApiAnswer> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("http://{}{path}", self.api))
            .header("X-API-KEY", key);
        if body.is_some() {
            request = request.header("content-type", "application/json");
        }
        let body = body.map(|body| body.to_string()).unwrap_or_default();
        self.send(request.body(Full::from(body))?).await
    }

    pub(crate) async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> anyhow::Result<ApiAnswer> {
        self.call_as(KEY, method, path, body).await
    }

    pub(crate) async fn get(&self, path: &str) -> anyhow::Result<ApiAnswer> {
        self.call(Method::GET, path, None).await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> anyhow::Result<ApiAnswer> {
        self.call(Method::POST, path, Some(body)).await
    }

    /// Makes a sandbox with these members over the bare minimum.
    pub(crate) async fn create(&self, members: Value) -> anyhow::Result<SandboxId> {
        let mut body = json!({"templateID": "base"});
        let (all, more) = (body.as_object_mut(), members.as_object());
        all.context("object")?.extend(more.context("object")?.clone());
        let answer = self.post("/v2/sandboxes", body).await?;
        anyhow::ensure!(answer.status == StatusCode::CREATED, "{}", answer.text());
        let id = answer.json()?["sandboxID"].as_str().context("id")?.parse()?;
        Ok(id)
    }

    pub(crate) async fn kill(&self, id: &SandboxId) -> anyhow::Result<ApiAnswer> {
        self.call(Method::DELETE, &format!("/sandboxes/{id}"), None).await
    }

    /// The container of a sandbox.
    pub(crate) fn instance(&self, id: &SandboxId) -> anyhow::Result<InstanceId> {
        let found = self.scheduler.instances().into_iter().find(|(sandbox, _)| sandbox == id);
        Ok(found.context("no sandbox")?.1)
    }

    /// The daemon of a sandbox, which from now on demands the right control token.
    pub(crate) fn daemon(&self, id: &SandboxId) -> anyhow::Result<Arc<FakeDaemon>> {
        let daemon = self.engine.daemon(&self.instance(id)?).context("no daemon")?;
        daemon.demand_token(TestTokens.control_token(id).reveal());
        Ok(daemon)
    }

    /// A sandbox with a service on a port.
    pub(crate) async fn with_service(&self, port: u16) -> anyhow::Result<(SandboxId, FakeDaemon)> {
        let id = self.create(json!({})).await?;
        let service = FakeDaemon::start_service().await?;
        self.daemon(&id)?.open_port(port, service.address());
        Ok((id, service))
    }

    /// A request through the proxy with more headers.
    pub(crate) async fn proxied(
        &self,
        host: &str,
        path: &str,
        headers: &[(&'static str, &str)],
    ) -> anyhow::Result<ApiAnswer> {
        let mut request = Request::get(format!("http://{}{path}", self.proxy)).header("host", host);
        for (name, value) in headers {
            request = request.header(*name, HeaderValue::from_str(value)?);
        }
        self.send(request.body(Full::default())?).await
    }

    /// A connection to the proxy on which `request` has been sent.
    pub(crate) async fn raw(&self, request: &str) -> anyhow::Result<TcpStream> {
        let mut stream = TcpStream::connect(self.proxy).await?;
        stream.write_all(request.as_bytes()).await?;
        Ok(stream)
    }

    /// Waits until proxy and API have ended.
    pub(crate) async fn stopped(mut self) {
        self.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            assert!(ended.is_ok(), "{ended:?}");
        }
    }
}

fn template() -> anyhow::Result<Template> {
    Ok(Template {
        id: TEMPLATE_ID.parse()?,
        name: "base".parse()?,
        kind: TemplateKind::BuiltIn,
        image: "image".to_owned(),
        cpu_count: 2,
        memory_mib: 512,
        pids: 1024,
        disk_mib: 1024,
        user: "user".to_owned(),
        workdir: None,
        env: BTreeMap::new(),
        sudo: true,
        interpreter: false,
        workspace_target: "/workspace".parse()?,
        pool: 0,
    })
}

/// Reads until `end` has come, and returns all that came.
pub(crate) async fn read_until(stream: &mut TcpStream, end: &str) -> anyhow::Result<String> {
    let mut all = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let text = String::from_utf8_lossy(&all);
        if text.contains(end) {
            return Ok(text.into_owned());
        }
        let length = stream.read(&mut buffer).await?;
        anyhow::ensure!(length > 0, "closed before {end:?}: {text:?}");
        all.extend_from_slice(&buffer[..length]);
    }
}

/// Reads until the other side closes, however it does that.
pub(crate) async fn read_remaining(stream: &mut TcpStream) -> String {
    let mut all = Vec::new();
    // A reset is an end too; what came before it stays.
    let _ = stream.read_to_end(&mut all).await;
    String::from_utf8_lossy(&all).into_owned()
}

/// Ends a connection so that the other side knows: as the system does for a client that is killed with an
/// answer unread.
pub(crate) fn reset(stream: TcpStream) -> anyhow::Result<()> {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    Ok(())
}
