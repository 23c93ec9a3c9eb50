//! A gateway on a port of its own, on either store, and the keys to it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use sandyard_gateway::{
    Backend, Embedded, Gateway, GatewayKeys, Grant, GrantOwner, GrantScope, GrantSource, KeyName,
    SecretKey, Upstream, UpstreamConfig,
};
use sandyard_http::Quota;
use sandyard_types::{Access, BucketName, SandboxId};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::client::S3Client;

pub(crate) const BUCKET: &str = "workspaces";
pub(crate) const ROOT_KEY: &str = "rootkey";
pub(crate) const ROOT_SECRET: &str = "rootsecret";

/// Grants that a test hands out and takes back.
#[derive(Default)]
pub(crate) struct Grants {
    all: Mutex<HashMap<String, Grant>>,
    pub(crate) starting: AtomicBool,
}

impl GrantSource for Grants {
    fn grant(&self, access_key_id: &str) -> Option<Grant> {
        self.all.lock().expect("lock").get(access_key_id).cloned()
    }

    fn is_ready(&self) -> bool {
        !self.starting.load(Ordering::Relaxed)
    }
}

pub(crate) struct GatewayHost {
    pub(crate) gateway: Gateway,
    pub(crate) grants: Arc<Grants>,
    pub(crate) endpoint: String,
    pub(crate) minio: Option<Minio>,
    keys: GatewayKeys,
    _serving: JoinSet<()>,
    _folder: Option<TempDir>,
}

impl GatewayHost {
    pub(crate) async fn embedded() -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let store = Embedded::open(&folder.path().join("store")).await?;
        Self::start(Backend::Embedded(store), Some(folder), None).await
    }

    /// On a store whose folder the test looks after.
    pub(crate) async fn over(store: Embedded) -> anyhow::Result<Self> {
        Self::start(Backend::Embedded(store), None, None).await
    }

    pub(crate) async fn minio() -> anyhow::Result<Self> {
        let minio = Minio::start().await?;
        let store = Upstream::new(minio.config())?;
        Self::start(Backend::Upstream(store), None, Some(minio)).await
    }

    async fn start(
        backend: Backend,
        folder: Option<TempDir>,
        minio: Option<Minio>,
    ) -> anyhow::Result<Self> {
        let grants = Arc::new(Grants::default());
        let gateway = Gateway::new(backend, grants.clone());
        gateway.ensure_bucket(&bucket()).await?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let endpoint = format!("http://{}", listener.local_addr()?);
        let mut serving = JoinSet::new();
        let served = gateway.clone();
        serving.spawn(async move {
            served.serve(listener, Quota::of_all(1024), CancellationToken::new()).await;
        });
        let keys = GatewayKeys::new(&[3; 32]);
        Ok(Self { gateway, grants, endpoint, minio, keys, _serving: serving, _folder: folder })
    }

    /// A key for a new sandbox with these scopes.
    pub(crate) fn sandbox(&self, scopes: &[(&str, Access)]) -> (SandboxId, S3Client) {
        let sandbox = SandboxId::random();
        let name = KeyName::Sandbox { sandbox: sandbox.clone(), generation: 1 };
        let scopes = scopes.iter().map(|(prefix, access)| scope(Some(prefix), *access)).collect();
        let client = self.hand_out(&name, GrantOwner::Sandbox(sandbox.clone()), scopes);
        (sandbox, client)
    }

    /// A client that may write under one prefix.
    pub(crate) fn session(&self, prefix: &str) -> S3Client {
        self.sandbox(&[(prefix, Access::ReadWrite)]).1
    }

    /// The installation's own client.
    pub(crate) fn owner(&self) -> S3Client {
        let name = KeyName::Owner { generation: 1 };
        let scopes = vec![scope(None, Access::ReadWrite)];
        self.hand_out(&name, GrantOwner::Installation, scopes)
    }

    fn hand_out(&self, name: &KeyName, owner: GrantOwner, scopes: Vec<GrantScope>) -> S3Client {
        let key = self.keys.key(name);
        let client = S3Client::new(&self.endpoint, &key.id, key.secret.expose());
        let grant = Grant { secret: key.secret, owner, source: None, scopes };
        self.grants.all.lock().expect("lock").insert(key.id, grant);
        client
    }

    /// From now on the client's key is good from one address only.
    pub(crate) fn bind_to(&self, client: &S3Client, source: IpAddr) {
        let mut all = self.grants.all.lock().expect("lock");
        all.get_mut(&client.id).expect("it has a key").source = Some(source);
    }

    pub(crate) fn revoke(&self, client: &S3Client) {
        self.grants.all.lock().expect("lock").remove(&client.id);
    }
}

pub(crate) fn bucket() -> BucketName {
    BUCKET.parse().expect("a bucket name")
}

fn scope(prefix: Option<&str>, access: Access) -> GrantScope {
    let prefix = prefix.map(|prefix| prefix.parse().expect("a prefix"));
    GrantScope { bucket: bucket(), prefix, access }
}

/// A MinIO of this test alone; killed on drop.
pub(crate) struct Minio {
    pub(crate) endpoint: String,
    _process: Child,
    _folder: TempDir,
}

impl Minio {
    pub(crate) async fn start() -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let process = Command::new(program()?)
            .args(["server", "--quiet", "--address", &format!("127.0.0.1:{port}")])
            .arg(folder.path())
            .env("MINIO_ROOT_USER", ROOT_KEY)
            .env("MINIO_ROOT_PASSWORD", ROOT_SECRET)
            .env("MINIO_UPDATE", "off")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .context("cannot start minio")?;
        let endpoint = format!("http://127.0.0.1:{port}");
        let minio = Self { endpoint, _process: process, _folder: folder };
        minio.ready().await?;
        Ok(minio)
    }

    async fn ready(&self) -> anyhow::Result<()> {
        let client = S3Client::new(&self.endpoint, ROOT_KEY, ROOT_SECRET);
        let limit = Instant::now() + Duration::from_secs(30);
        while Instant::now() < limit {
            if client.get("/").await.is_ok_and(|reply| reply.status == 200) {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        bail!("minio was not ready within 30 s")
    }

    pub(crate) fn config(&self) -> UpstreamConfig {
        UpstreamConfig {
            endpoint: self.endpoint.clone(),
            region: "us-east-1".to_owned(),
            path_style: true,
            access_key_id: ROOT_KEY.to_owned(),
            secret: SecretKey::from(ROOT_SECRET),
            session_token: None,
        }
    }

    /// Straight to the store, past the gateway.
    pub(crate) fn direct(&self) -> S3Client {
        S3Client::new(&self.endpoint, ROOT_KEY, ROOT_SECRET)
    }
}

fn program() -> anyhow::Result<PathBuf> {
    let checkout = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../.sandyard/bin/minio");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .map(|folder| folder.join("minio"))
        .chain([checkout])
        .find(|candidate| candidate.is_file());
    found.context("minio is neither on the path nor in .sandyard/bin")
}
