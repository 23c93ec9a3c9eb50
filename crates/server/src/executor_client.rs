//! Speaks to executors: signed calls to `init`, the signed `/init` of the daemon.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use async_trait::async_trait;
use bytes::Bytes;
use ed25519_dalek::Signer as _;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use sandyard_contract::budget;
use sandyard_contract::control::{
    CONTROL_PORT, ControlCall, ControlFailure, ControlReply, FailureKind, FlushReport, Hello,
    MAX_LINE_BYTES, MountCall, SignedCall, signing_input,
};
use sandyard_contract::daemon::{
    DAEMON_PORT, INIT_BODY_HASH_HEADER, INIT_BODY_LIMIT, INIT_PATH, INIT_SIGNATURE_HEADER,
    InitBody, init_signing_input,
};
use sandyard_core::{Claim, ExecutorClient, ExecutorError, Flushed, Instance};
use sandyard_types::{Cache, Secret, WORKSPACE_OWNER, WorkspaceSpec};
use sha2::{Digest as _, Sha256};
use time::OffsetDateTime;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::secrets::Secrets;
use crate::tokens::Tokens as _;

/// Between two tries to reach an executor that does not listen yet. A container says nothing when it
/// is ready; a refused connection costs about 0.1 ms.
const BOOT_RETRY: Duration = Duration::from_millis(2);

/// The daemon's route that says whether it takes requests (executor 6.1).
const HEALTH_PATH: &str = "/health";

/// How long a daemon may take to answer its claim. Where the template asks for a code interpreter it waits up to 60 s for
/// that.
const CLAIM_LIMIT: Duration = budget::ANSWER.saturating_add(Duration::from_secs(60));

/// [`ExecutorClient`] over TCP.
pub struct NetworkExecutor {
    secrets: Arc<Secrets>,
    /// The gateway as sandboxes reach it.
    gateway_endpoint: String,
    cache: Cache,
}

impl NetworkExecutor {
    /// A client that signs with the installation's key and sends drivers to `gateway_endpoint`.
    pub fn new(secrets: Arc<Secrets>, gateway_endpoint: String, cache: Cache) -> Self {
        Self { secrets, gateway_endpoint, cache }
    }

    fn mount_call(&self, claim: &Claim, workspace: &WorkspaceSpec) -> ControlCall {
        let key = self.secrets.sandbox_key(&claim.id);
        let mounts = workspace.mounts.iter().map(|mount| MountCall {
            bucket: mount.bucket.clone(),
            prefix: mount.prefix.clone(),
            target: mount.target.clone(),
            access: mount.access,
            driver: mount.driver,
            endpoint: self.gateway_endpoint.clone(),
            access_key_id: key.id.clone(),
            secret_access_key: Secret::new(key.secret.expose()),
            uid: WORKSPACE_OWNER,
            gid: WORKSPACE_OWNER,
            cache: self.cache,
        });
        ControlCall::Mount { mounts: mounts.collect() }
    }

    async fn mount(&self, instance: &Instance, call: &ControlCall) -> Result<(), ExecutorError> {
        match self.call(instance, call, budget::MOUNT_CALL).await? {
            ControlReply::Mounted { mounts } => {
                for mount in mounts {
                    tracing::debug!(target = %mount.target, micros = mount.micros, "mounted");
                }
                Ok(())
            }
            other => Err(unexpected(&other)),
        }
    }

    async fn call(
        &self,
        instance: &Instance,
        call: &ControlCall,
        limit: Duration,
    ) -> Result<ControlReply, ExecutorError> {
        let address = SocketAddr::new(address(instance)?, CONTROL_PORT);
        let stream = connect(address).await?;
        let spoken = async {
            let (reader, mut writer) = stream.into_split();
            let mut reader = BufReader::new(reader);
            let hello: Hello = read_line(&mut reader).await?;
            let body = serde_json::to_string(call).context("cannot write the call")?;
            let input = signing_input(&instance.id, &hello.nonce, &body);
            let signature = hex::encode(self.secrets.control().sign(&input).to_bytes());
            let mut line = serde_json::to_vec(&SignedCall { signature, body })?;
            line.push(b'\n');
            writer.write_all(&line).await.context("cannot send the call")?;
            read_line::<ControlReply>(&mut reader).await
        };
        let reply = timeout(limit, spoken).await.map_err(|_| {
            ExecutorError::Unreachable(format!("init at {address} gave no answer in {limit:?}"))
        })?;
        match reply.map_err(|e| ExecutorError::Unreachable(format!("init at {address}: {e:#}")))? {
            ControlReply::Failed(failure) => Err(ExecutorError::Refused(describe(&failure))),
            reply => Ok(reply),
        }
    }

    async fn identify(&self, instance: &Instance, claim: &Claim) -> Result<(), ExecutorError> {
        let address = SocketAddr::new(address(instance)?, DAEMON_PORT);
        let body = InitBody {
            access_token: self.secrets.envd_access_token(&claim.id),
            env_vars: Some(claim.env.clone()),
            default_user: Some(claim.default_user.clone()),
            default_workdir: claim.default_workdir.clone(),
            secured: claim.secured,
            timestamp: Some(OffsetDateTime::now_utc()),
            sandbox_id: Some(claim.id.to_string()),
            template_id: Some(claim.template_id.to_string()),
            control_token: Some(self.secrets.control_token(&claim.id)),
        };
        let body = serde_json::to_vec(&body).map_err(|error| {
            ExecutorError::Refused(format!("cannot write its settings: {error}"))
        })?;
        if body.len() as u64 > INIT_BODY_LIMIT {
            return Err(ExecutorError::Refused(format!(
                "the environment is too large: image, template and request together make {} bytes of settings, and \
                 {INIT_BODY_LIMIT} are allowed",
                body.len()
            )));
        }
        let stream = connect(address).await?;
        let sent = timeout(CLAIM_LIMIT, self.send_init(stream, instance, address, body));
        let answered = sent.await.map_err(|_| no_answer(address, CLAIM_LIMIT))?;
        answered.map_err(|e| ExecutorError::Refused(format!("the daemon at {address}: {e:#}")))
    }

    async fn send_init(
        &self,
        stream: TcpStream,
        instance: &Instance,
        address: SocketAddr,
        body: Vec<u8>,
    ) -> anyhow::Result<()> {
        let hash = hex::encode(Sha256::digest(&body));
        let input = init_signing_input(&instance.id, body.len() as u64, &hash);
        let signature = hex::encode(self.secrets.control().sign(&input).to_bytes());
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let request = http::Request::post(INIT_PATH)
            .header(http::header::HOST, address.to_string())
            .header(http::header::CONTENT_TYPE, "application/json")
            .header(INIT_SIGNATURE_HEADER, signature)
            .header(INIT_BODY_HASH_HEADER, hash)
            .body(Full::new(Bytes::from(body)))?;
        let exchange = async {
            let response = sender.send_request(request).await?;
            let status = response.status();
            let body = response.into_body().collect().await?.to_bytes();
            // Closes the connection, which ends the other side of the join.
            drop(sender);
            anyhow::Ok((status, body))
        };
        let (answer, connection) = tokio::join!(exchange, connection);
        let (status, body) = answer?;
        connection?;
        if status != http::StatusCode::NO_CONTENT {
            bail!("it refused its settings: {status} {}", String::from_utf8_lossy(&body));
        }
        Ok(())
    }
}

#[async_trait]
impl ExecutorClient for NetworkExecutor {
    async fn claim(&self, instance: &Instance, claim: &Claim) -> Result<(), ExecutorError> {
        let mounted = async {
            match &claim.workspace {
                Some(workspace) => self.mount(instance, &self.mount_call(claim, workspace)).await,
                None => Ok(()),
            }
        };
        // Neither needs the other: init mounts while the daemon takes its settings.
        let (mounted, identified) = tokio::join!(mounted, self.identify(instance, claim));
        mounted.and(identified)
    }

    async fn ready(&self, instance: &Instance) -> Result<(), ExecutorError> {
        let address = SocketAddr::new(address(instance)?, DAEMON_PORT);
        let stream = connect(address).await?;
        // One that waits for its claim answers when its code interpreter is ready too.
        let asked = timeout(CLAIM_LIMIT, health(stream, address));
        let answered = asked.await.map_err(|_| no_answer(address, CLAIM_LIMIT))?;
        answered.map_err(|e| ExecutorError::Unreachable(format!("the daemon at {address}: {e:#}")))
    }

    async fn drain(&self, instance: &Instance, limit: Duration) -> Result<Flushed, ExecutorError> {
        // Nobody's processes are halted for longer, whatever a kill may take.
        let limit = limit.min(budget::FLUSH_DEFAULT);
        let call = ControlCall::Drain { limit_ms: millis(limit) };
        match self.call(instance, &call, limit + budget::FLUSH_CALL_MARGIN).await? {
            ControlReply::Drained { flush } => Ok(flushed(&flush)),
            other => Err(unexpected(&other)),
        }
    }

    async fn resume(&self, instance: &Instance) -> Result<(), ExecutorError> {
        match self.call(instance, &ControlCall::Resume, budget::ANSWER).await? {
            ControlReply::Resumed => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    async fn sync(&self, instance: &Instance, limit: Duration) -> Result<Flushed, ExecutorError> {
        let call = ControlCall::Sync { limit_ms: millis(limit) };
        match self.call(instance, &call, limit + budget::FLUSH_CALL_MARGIN).await? {
            ControlReply::Synced { flush } => Ok(flushed(&flush)),
            other => Err(unexpected(&other)),
        }
    }

    async fn stop(&self, instance: &Instance, limit: Duration) -> Result<Flushed, ExecutorError> {
        let call = ControlCall::Stop { flush_limit_ms: millis(limit) };
        match self.call(instance, &call, limit + budget::FLUSH_CALL_MARGIN).await? {
            ControlReply::Stopped { flush } => Ok(flushed(&flush)),
            other => Err(unexpected(&other)),
        }
    }
}

fn address(instance: &Instance) -> Result<IpAddr, ExecutorError> {
    instance.address.ok_or_else(|| ExecutorError::Unreachable("its container is not up".to_owned()))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn flushed(report: &FlushReport) -> Flushed {
    if report.complete {
        Flushed::Complete
    } else {
        Flushed::Incomplete { bytes_left: report.bytes_left }
    }
}

fn unexpected(reply: &ControlReply) -> ExecutorError {
    ExecutorError::Refused(format!("init answered something else than was asked: {reply:?}"))
}

/// What went wrong, the last lines of a program that was involved, and what to do about it.
fn describe(failure: &ControlFailure) -> String {
    let mut text = failure.message.clone();
    if !failure.program_output.is_empty() {
        text = format!("{text}; its last lines: {}", failure.program_output.join(" | "));
    }
    let advice = match failure.kind {
        FailureKind::Unauthorized => {
            "; it takes no calls signed with this data folder's key: was the folder replaced?"
        }
        FailureKind::NoFuse => "; load the kernel module 'fuse' on the engine's host",
        FailureKind::Attach => "; choose a target that the template's image does not use otherwise",
        // The text says what was wrong with the call, or the program's lines do.
        FailureKind::BadCall | FailureKind::Program => "",
    };
    text + advice
}

fn no_answer(address: SocketAddr, limit: Duration) -> ExecutorError {
    ExecutorError::Unreachable(format!("the daemon at {address} gave no answer in {limit:?}"))
}

/// Asks a daemon whether it takes requests.
async fn health(stream: TcpStream, address: SocketAddr) -> anyhow::Result<()> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let request = http::Request::get(HEALTH_PATH)
        .header(http::header::HOST, address.to_string())
        .body(Full::new(Bytes::new()))?;
    let exchange = async {
        let status = sender.send_request(request).await?.status();
        // Closes the connection, which ends the other side of the join.
        drop(sender);
        anyhow::Ok(status)
    };
    let (status, connection) = tokio::join!(exchange, connection);
    let status = status?;
    connection?;
    if !status.is_success() {
        bail!("it is not well: {status}");
    }
    Ok(())
}

/// Connects to an executor that may still be on its way up. Until it listens, its container refuses the connection;
/// an address that cannot be reached at all is told at once.
async fn connect(address: SocketAddr) -> Result<TcpStream, ExecutorError> {
    let mut last = None;
    let trying = async {
        loop {
            match TcpStream::connect(address).await {
                Ok(stream) => return Ok(stream),
                Err(error) if is_not_yet(&error) => {
                    last = Some(error);
                    sleep(BOOT_RETRY).await;
                }
                Err(error) => return Err(error),
            }
        }
    };
    let connected = timeout(budget::BOOT, trying).await;
    let stream = match connected {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            let text = format!("{address} cannot be reached: {error}");
            return Err(ExecutorError::Unreachable(text));
        }
        Err(_) => {
            let reason = last.map_or_else(|| "no answer".to_owned(), |error| error.to_string());
            let text = format!("nothing listens at {address} after {:?}: {reason}", budget::BOOT);
            return Err(ExecutorError::Unreachable(text));
        }
    };
    // Small messages that each wait for an answer.
    let failed = |e| ExecutorError::Unreachable(format!("{address}: {e}"));
    stream.set_nodelay(true).map_err(failed)?;
    Ok(stream)
}

/// Whether an error may go away while a container starts: its port is not open yet, or its address not yet known to
/// the bridge.
fn is_not_yet(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{ConnectionRefused, ConnectionReset, HostUnreachable, TimedOut};
    matches!(error.kind(), ConnectionRefused | ConnectionReset | HostUnreachable | TimedOut)
}

async fn read_line<T: serde::de::DeserializeOwned>(
    reader: &mut (impl tokio::io::AsyncBufRead + Unpin),
) -> anyhow::Result<T> {
    let limit = u64::try_from(MAX_LINE_BYTES)?;
    let mut line = String::new();
    let read = reader.take(limit).read_line(&mut line).await.context("cannot read its answer")?;
    if read == 0 {
        bail!("it closed the connection without an answer");
    }
    serde_json::from_str(&line).context("its answer is not readable")
}
