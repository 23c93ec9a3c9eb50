//! One installation, put together: store, engine, gateway, scheduler. What `up` serves, what `down` ends
//! and what `doctor` tries out.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use sandyard_core::{Engine, FIRST_TEAM, Limits, Scheduler, SchedulerParts, Store, Team};
use sandyard_gateway::{Backend, Embedded, Gateway, SecretKey, Upstream, UpstreamConfig};
use sandyard_runtime_docker::{Bundle, DockerRuntime, DockerSettings};
use sandyard_types::{Secret, TeamId};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::config::{Config, StoreConfig};
use crate::connection_budget::ConnectionBudget;
use crate::data_dir::DataDir;
use crate::executor_client::NetworkExecutor;
use crate::grants::{GatewayWorkspaces, SchedulerGrants};
use crate::secrets::Secrets;
use crate::tokens::hash_api_key;

/// What to do about a network whose containers reach each other.
pub const ISOLATION_ADVICE: &str = "let sandyard make its own network (leave docker.network out), or make that \
    one with the option com.docker.network.bridge.enable_icc=false; a network of sandyard's own from before is \
    replaced when no sandbox runs on it";

/// A running installation, without its API and proxy.
pub struct Installation {
    /// The folder it lives in.
    pub data: DataDir,
    /// Its secrets.
    pub secrets: Arc<Secrets>,
    /// Its engine.
    pub engine: Arc<dyn Engine>,
    /// Its scheduler.
    pub scheduler: Scheduler,
    /// Its gateway's address for the owner.
    pub gateway_address: SocketAddr,
    store: Store,
    embedded: Option<Embedded>,
    /// Ends the gateway, after everything that needs it.
    gateway_stop: CancellationToken,
    gateway_tasks: JoinSet<()>,
}

/// Binds a listener; the error names the setting.
///
/// # Errors
/// The system's refusal, most often because the port is in use.
pub async fn bind(setting: &str, address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| {
        format!("cannot listen on {address}: choose another address or port with {setting}")
    })
}

impl Installation {
    /// Puts everything together and takes over what lives from an earlier run. The data folder's lock
    /// must be held.
    ///
    /// # Errors
    /// What is missing or refuses, and what to do about it.
    pub async fn start(
        config: &Config,
        data: DataDir,
        budget: &ConnectionBudget,
    ) -> anyhow::Result<Self> {
        let secrets = Arc::new(data.secrets()?);
        let store = Store::open(&data.store_file()).await?;
        ensure_default_team(&store, &data, config.api_key.as_ref()).await?;

        let engine = connect(config, &data).await?;
        engine.prepare().await?;
        if engine.isolates_sandboxes().await? != Some(true) {
            warn!(
                network = engine.network_name(),
                "sandboxes on this network can reach each other's addresses: {}", ISOLATION_ADVICE
            );
        }
        info!(
            version = engine.facts().version,
            api = engine.facts().api_version,
            "connected to the container engine"
        );

        let (backend, embedded) = open_backend(config, &data).await?;
        let grants = Arc::new(SchedulerGrants::new(
            secrets.clone(),
            config.bucket.clone(),
            config.gateway_keys_by_address,
        ));
        let gateway = Arc::new(Gateway::new(backend, grants.clone()));
        let listeners = gateway_listeners(config, &data, engine.as_ref()).await?;
        let gateway_address = listeners.owner.local_addr()?;
        let gateway_stop = CancellationToken::new();
        let mut gateway_tasks = JoinSet::new();
        let sandboxes = listeners.sandboxes.map(|listener| (listener, budget.gateway_sandboxes()));
        for (listener, quota) in
            std::iter::once((listeners.owner, budget.gateway_owner())).chain(sandboxes)
        {
            let (gateway, stop) = (gateway.clone(), gateway_stop.clone());
            gateway_tasks.spawn(async move { gateway.serve(listener, quota, stop).await });
        }
        if let Err(error) = gateway.ensure_bucket(&config.bucket).await {
            // Sandboxes without a workspace need no object store; a create with one says this again.
            warn!(%error, "the object store cannot be used");
        }

        let executor =
            NetworkExecutor::new(secrets.clone(), listeners.endpoint.clone(), config.cache);
        let scheduler = Scheduler::start(SchedulerParts {
            runtime: engine.clone(),
            executor: Arc::new(executor),
            workspaces: Arc::new(GatewayWorkspaces(gateway)),
            store: store.clone(),
            templates: config.templates.clone(),
            limits: Limits {
                max_length: config.max_length,
                max_sandboxes: config.max_sandboxes,
                flush: config.flush,
                disk_watch: config.disk_watch,
                pool: config.pool,
                frozen_memory: config.frozen_memory,
            },
            bucket: config.bucket.clone(),
            cache: config.cache,
        })
        .await
        .map_err(|error| anyhow::anyhow!(error.chain()))?;
        grants.serve(scheduler.clone());
        Ok(Self {
            data,
            secrets,
            engine,
            scheduler,
            gateway_address,
            store,
            embedded,
            gateway_stop,
            gateway_tasks,
        })
    }

    /// Waits for a task of the gateway to end, which it never does by itself.
    ///
    /// # Errors
    /// Why it ended.
    pub async fn gateway_ended(&mut self) -> anyhow::Result<()> {
        match self.gateway_tasks.join_next().await {
            Some(ended) => ended.context("the S3 gateway died"),
            None => std::future::pending().await,
        }
    }

    /// The durability barrier, with the sandboxes left running (design 5); then everything closes.
    ///
    /// # Errors
    /// A sandbox whose workspace may not be wholly in the store.
    pub async fn leave(self) -> anyhow::Result<()> {
        let report = self.scheduler.shut_down().await;
        info!(synced = report.synced, "workspaces are in the store; sandboxes stay");
        self.close().await?;
        if !report.unsynced.is_empty() {
            let ids: Vec<_> = report.unsynced.iter().map(ToString::to_string).collect();
            bail!("not certain to be wholly in the store: the workspaces of {}", ids.join(", "));
        }
        Ok(())
    }

    /// Ends every sandbox, removes the network, closes everything. `progress` is told each step.
    ///
    /// # Errors
    /// What could not be ended or removed.
    pub async fn end(self, mut progress: impl FnMut(String)) -> anyhow::Result<()> {
        let mut failures = Vec::new();
        for (id, result) in self.scheduler.kill_all().await {
            match result {
                Ok(()) => progress(format!("killed {id}")),
                Err(error) => {
                    progress(format!("{id}: {}", error.chain()));
                    failures.push(format!("{id} ({})", error.chain()));
                }
            }
        }
        self.scheduler.shut_down().await;
        if failures.is_empty() {
            self.engine.tear_down().await?;
            progress("removed the sandboxes' network".to_owned());
        }
        self.close().await?;
        if failures.is_empty() {
            return Ok(());
        }
        bail!("could not end {}; the next start tries again", failures.join(", "))
    }

    async fn close(mut self) -> anyhow::Result<()> {
        self.gateway_stop.cancel();
        while let Some(ended) = self.gateway_tasks.join_next().await {
            ended.context("the S3 gateway died")?;
        }
        if let Some(embedded) = &self.embedded {
            embedded.close().await;
        }
        self.store.close().await;
        Ok(())
    }
}

/// Connects to the engine as this installation.
///
/// # Errors
/// If the executor bundle is missing, or the engine does not answer or is too old.
pub async fn connect(config: &Config, data: &DataDir) -> anyhow::Result<Arc<dyn Engine>> {
    let bundle = Bundle::open(&bundle_path(config)?).await?;
    let settings = DockerSettings {
        host: config.docker_host.clone(),
        installation: data.installation()?,
        network: config.docker_network.clone(),
        control_key: data.secrets()?.control_public(),
        data_dir: data.path().to_owned(),
    };
    Ok(Arc::new(DockerRuntime::connect(settings, bundle).await?))
}

async fn ensure_default_team(
    store: &Store,
    data: &DataDir,
    configured: Option<&Secret>,
) -> anyhow::Result<()> {
    let teams = store.teams().await?;
    let team = match teams.into_iter().find(|team| team.slug == FIRST_TEAM) {
        Some(team) => team,
        None => {
            let team = Team {
                id: TeamId::random(),
                slug: FIRST_TEAM.to_owned(),
                name: "Default".to_owned(),
            };
            store.add_team(&team).await?;
            team
        }
    };
    let key = match configured {
        Some(key) => key.reveal().to_owned(),
        None => data.first_api_key()?,
    };
    Ok(store.add_api_key(team.id, &hash_api_key(&key)).await?)
}

/// The configured bundle, or the one beside this program.
fn bundle_path(config: &Config) -> anyhow::Result<PathBuf> {
    if let Some(path) = &config.bundle {
        return Ok(path.clone());
    }
    let program = std::env::current_exe().context("cannot find this program's own path")?;
    let folder = program.parent().context("this program has no folder")?;
    Ok(folder.join("sandyard-bundle.tar"))
}

/// Opens the configured object store; the embedded one too for its orderly end.
///
/// # Errors
/// If the configuration names no usable upstream, or the data folder fails.
pub async fn open_backend(
    config: &Config,
    data: &DataDir,
) -> anyhow::Result<(Backend, Option<Embedded>)> {
    match &config.store {
        StoreConfig::Embedded => {
            let embedded = Embedded::open(&data.objects()).await?;
            Ok((Backend::Embedded(embedded.clone()), Some(embedded)))
        }
        StoreConfig::Upstream {
            endpoint,
            region,
            path_style,
            access_key_id,
            secret_access_key,
        } => {
            let upstream = Upstream::new(UpstreamConfig {
                endpoint: endpoint.clone(),
                region: region.clone(),
                path_style: *path_style,
                access_key_id: access_key_id.clone(),
                secret: SecretKey::from(secret_access_key.reveal()),
                session_token: None,
            })
            .context("store.endpoint")?;
            Ok((Backend::Upstream(upstream), None))
        }
    }
}

struct GatewayListeners {
    owner: TcpListener,
    /// Absent where the owner's listener takes sandboxes too.
    sandboxes: Option<TcpListener>,
    /// The base URL for sandboxes.
    endpoint: String,
}

/// One listener for the owner and, for a server on the host, one on the engine network's own address
/// (design 4.1).
async fn gateway_listeners(
    config: &Config,
    data: &DataDir,
    engine: &dyn Engine,
) -> anyhow::Result<GatewayListeners> {
    let mut address = config.gateway_listen;
    if address.port() == 0 {
        // Mounts made by an earlier run go on speaking to the port they were made with.
        address.set_port(data.gateway_port()?.unwrap_or(0));
    }
    let owner = bind("gateway.listen", address).await?;
    let port = owner.local_addr()?.port();
    data.write_gateway_port(port)?;
    if let Some(endpoint) = &config.gateway_endpoint {
        return Ok(GatewayListeners { owner, sandboxes: None, endpoint: endpoint.clone() });
    }
    let Some(inner) = engine.sandbox_facing_address() else {
        bail!(
            "the sandboxes' network has no address of the host on it: set gateway.endpoint to a \
             URL under which sandboxes reach the S3 gateway"
        );
    };
    let inner = SocketAddr::new(inner, port);
    let sandboxes = TcpListener::bind(inner).await.with_context(|| {
        format!(
            "cannot listen on {inner}, the host's address on the sandboxes' network: is the engine \
             on another machine or in a VM? Then run the server in a container (compose/), or the \
             port is in use: choose another with gateway.listen"
        )
    })?;
    let endpoint = format!("http://{inner}");
    Ok(GatewayListeners { owner, sandboxes: Some(sandboxes), endpoint })
}
