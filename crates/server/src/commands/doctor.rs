//! `sandyard doctor`: tries everything a sandbox needs, with a real container and a real mount, and says
//! what is missing.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use sandyard_core::CreateSandbox;
use sandyard_gateway::Gateway;

use crate::config::{Config, StoreConfig};
use crate::data_dir::DataDir;
use crate::grants::SchedulerGrants;
use crate::installation::{Installation, connect, open_backend};

/// Tries each part and prints a line for it.
///
/// # Errors
/// If anything is missing.
pub async fn run(config: &Config) -> anyhow::Result<()> {
    let mut report = Report::default();
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
    let engine_there = engine.is_ok();
    report.step("container engine", engine.map(|runtime| {
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
    if engine_there {
        let _lock = data.lock()?;
        match Installation::start(&trial, data).await {
            Ok(installation) => {
                report.step("a container", create(&installation, false).await);
                report.step(
                    "a container with a mounted workspace",
                    create(&installation, true).await,
                );
                let ended = installation.end(|_| ()).await;
                report.step("leaving nothing", ended.map(|()| "all removed".to_owned()));
            }
            Err(error) => report.step("a trial installation", Err(error)),
        }
    }
    report.finish()
}

#[derive(Default)]
struct Report {
    missing: usize,
}

impl Report {
    fn step(&mut self, what: &str, result: anyhow::Result<String>) {
        match result {
            Ok(text) => println!("ok       {what}: {text}"),
            Err(error) => {
                self.missing += 1;
                println!("MISSING  {what}: {error:#}");
            }
        }
    }

    fn finish(self) -> anyhow::Result<()> {
        if self.missing == 0 {
            println!("everything a sandbox needs is there");
            return Ok(());
        }
        bail!("{} of the checks failed", self.missing)
    }
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
    let grants = SchedulerGrants::new(Arc::new(data.secrets()?), config.bucket.clone());
    Gateway::new(backend, Arc::new(grants)).check(&config.bucket).await?;
    Ok(format!("{endpoint}, bucket '{}'", config.bucket))
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
        session: workspace.then(|| "doctor".parse()).transpose()?,
    };
    let created = installation.scheduler.create(team, request).await;
    let sandbox = created.map_err(|error| anyhow::anyhow!(error.chain()))?;
    let took = begun.elapsed();
    let killed = installation.scheduler.kill(team, &sandbox.id).await;
    killed.map_err(|error| anyhow::anyhow!(error.chain()))?;
    Ok(format!("ready after {} ms", took.as_millis()))
}
