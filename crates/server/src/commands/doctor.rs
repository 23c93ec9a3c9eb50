//! `sandyard doctor`: tries everything a sandbox needs, with a real container and a real mount, and says
//! what is missing.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use sandyard_core::CreateSandbox;
use sandyard_gateway::Gateway;
use sandyard_types::Lifecycle;

use crate::config::{Config, StoreConfig};
use crate::connection_budget::ConnectionBudget;
use crate::data_dir::DataDir;
use crate::domain::Domain;
use crate::grants::SchedulerGrants;
use crate::installation::{ISOLATION_ADVICE, Installation, connect, open_backend};

/// So many that each of some dozens of sandboxes can have several.
const ENOUGH_WATCHERS: u32 = 1024;

/// Tries each part and prints a line for it.
///
/// # Errors
/// If anything is missing.
pub async fn run(config: &Config) -> anyhow::Result<()> {
    let mut report = DoctorReport::default();
    // An installation of its own: nothing of the user's is touched, and it may run beside a server.
    let folder = tempfile::tempdir().context("cannot make a folder for the trial")?;
    let trial = Config {
        data_dir: folder.path().to_owned(),
        gateway_listen: ([127, 0, 0, 1], 0).into(),
        store: StoreConfig::Embedded,
        ..config.clone()
    };
    let data = DataDir::open(&trial.data_dir)?;
    let engine = connect(&trial, &data).await;
    report.step("container engine", engine.as_ref().map_err(|error| anyhow::anyhow!("{error:#}")).map(|runtime| {
        let facts = runtime.facts();
        let apparmor = if facts.apparmor {
            "; AppArmor is on: containers with a workspace run unconfined by it, so that init can mount"
        } else {
            ""
        };
        format!(
            "{} (API {}, cgroup v{}){apparmor}",
            facts.version, facts.api_version, facts.cgroup_version
        )
    }));
    report.step("object store", check_store(config, &data).await);
    report.step("/dev/fuse here", fuse());
    check_names(config, &mut report).await;
    check_watchers(&report);
    if let Ok(runtime) = engine {
        if !runtime.facts().remaps_users {
            report.note(
                "users in sandboxes",
                "are users of this machine to its kernel, which counts some limits per user over all sandboxes \
                 (inotify, pipes, queued signals); where sandboxes are not trusted, give the engine \
                 'userns-remap' (docs/security.md)",
            );
        }
        let _lock = data.lock()?;
        match Installation::start(&trial, data, &ConnectionBudget::raise()?).await {
            Ok(installation) => {
                let apart = isolation(config, &installation).await;
                report.step("sandboxes apart from each other", apart);
                report.step("a container", create(&installation, false).await);
                report.step(
                    "a container with a mounted workspace",
                    create(&installation, true).await,
                );
                let ended = installation.end(|_| ()).await;
                report.step("leaving nothing", ended.map(|()| "all removed".to_owned()));
            }
            Err(error) => {
                report.step("a trial installation", Err(error));
                // Whatever it had made before it failed.
                let removed = runtime.tear_down().await.map(|()| "all removed".to_owned());
                report.step("leaving nothing", removed.map_err(Into::into));
            }
        }
    }
    report.finish()
}

#[derive(Default)]
struct DoctorReport {
    missing: usize,
}

impl DoctorReport {
    fn step(&mut self, what: &str, result: anyhow::Result<String>) {
        match result {
            Ok(text) => println!("ok       {what}: {text}"),
            Err(error) => {
                self.missing += 1;
                println!("MISSING  {what}: {error:#}");
            }
        }
    }

    /// What is missing for some clients only.
    fn note(&self, what: &str, text: &str) {
        println!("note     {what}: {text}");
    }

    fn finish(self) -> anyhow::Result<()> {
        if self.missing == 0 {
            println!("everything a sandbox needs is there");
            return Ok(());
        }
        bail!("{} of the checks failed", self.missing)
    }
}

/// Of a network made now, and of the one that the data folder's own server has, which may be older.
async fn isolation(config: &Config, trial: &Installation) -> anyhow::Result<String> {
    let reach =
        |name: &str| format!("on the network '{name}' they reach each other: {ISOLATION_ADVICE}");
    if trial.engine.isolates_sandboxes().await? != Some(true) {
        bail!(reach(trial.engine.network_name()));
    }
    let own = DataDir::open(&config.data_dir)?;
    if own.is_installed() {
        let engine = connect(config, &own).await?;
        if engine.isolates_sandboxes().await? == Some(false) {
            bail!(reach(engine.network_name()));
        }
    }
    Ok("they do not reach each other's addresses".to_owned())
}

/// The engine may be elsewhere: its own host is what counts, and the trial container shows that.
fn fuse() -> anyhow::Result<String> {
    if Path::new("/dev/fuse").exists() {
        return Ok("there".to_owned());
    }
    Ok("not there; needed on the engine's host if that is this machine".to_owned())
}

async fn check_store(config: &Config, data: &DataDir) -> anyhow::Result<String> {
    let StoreConfig::Upstream { endpoint, .. } = &config.store else {
        return Ok(format!("embedded, in {}", config.data_dir.join("objects").display()));
    };
    let (backend, _) = open_backend(config, data).await?;
    let grants = SchedulerGrants::new(
        Arc::new(data.secrets()?),
        config.bucket.clone(),
        config.gateway_keys_by_address,
    );
    Gateway::new(backend, Arc::new(grants)).check(&config.bucket).await?;
    Ok(format!("{endpoint}, bucket '{}'", config.bucket))
}

/// Over TLS clients go by host names. Without it they need none, so that a missing one is not always a fault.
async fn check_names(config: &Config, report: &mut DoctorReport) {
    let domain = config.proxy_domain.clone();
    let domain = domain.unwrap_or_else(|| Domain::local(config.proxy_listen.port()));
    let host = domain.api_host();
    let what = format!("the name {host}");
    match tokio::net::lookup_host((host.as_str(), domain.port())).await {
        Ok(found) => {
            let found: BTreeSet<String> = found.map(|address| address.ip().to_string()).collect();
            let found: Vec<String> = found.into_iter().collect();
            report.step(&what, Ok(format!("resolves to {}", found.join(", "))));
        }
        Err(error) if domain.is_localhost() => report.note(
            &what,
            &format!(
                "does not resolve ({error}). Over TLS, Node.js and the E2B CLI need that: on Debian and Ubuntu \
                 'apt-get install libnss-myhostname'. Python, and all clients over plain HTTP, do not"
            ),
        ),
        Err(error) => {
            let advice = format!(
                "clients reach the server by it over TLS: make the name server resolve '*.{}'",
                domain.name()
            );
            report.step(&what, Err(anyhow::Error::new(error).context(advice)));
        }
    }
}

/// All sandboxes watch directories as the host's root, and share what the kernel allows one user.
fn check_watchers(report: &DoctorReport) {
    const LIMIT: &str = "/proc/sys/fs/inotify/max_user_instances";
    let limit =
        std::fs::read_to_string(LIMIT).ok().and_then(|text| text.trim().parse::<u32>().ok());
    // Without it the kernel has no inotify, or this is another system; a watch says so itself.
    let Some(limit) = limit.filter(|limit| *limit < ENOUGH_WATCHERS) else {
        return;
    };
    let advice = format!(
        "{limit} at once, shared by all sandboxes of this machine; for more, \
         'sysctl fs.inotify.max_user_instances={ENOUGH_WATCHERS}'"
    );
    report.note("watched directories", &advice);
}

async fn create(installation: &Installation, workspace: bool) -> anyhow::Result<String> {
    let teams = installation.scheduler.store().teams().await?;
    let team = teams.first().context("no team")?.id;
    let begun = Instant::now();
    let request = CreateSandbox {
        template: "base".parse()?,
        timeout: Duration::from_secs(60),
        metadata: BTreeMap::new(),
        env: BTreeMap::new(),
        secure: true,
        internet: None,
        network: None,
        session: workspace.then(|| "doctor".parse()).transpose()?,
        lifecycle: Lifecycle::default(),
    };
    let created = installation.scheduler.create(team, request).await;
    let sandbox = created.map_err(|error| anyhow::anyhow!(error.chain()))?.keep();
    let took = begun.elapsed();
    let killed = installation.scheduler.kill(team, &sandbox.id).await;
    killed.map_err(|error| anyhow::anyhow!(error.chain()))?;
    Ok(format!("ready after {} ms", took.as_millis()))
}
