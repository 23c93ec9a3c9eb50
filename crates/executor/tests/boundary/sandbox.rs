//! A sandbox's container as the runtime makes it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use sandyard_contract::control::{
    ControlCall, ControlReply, FlushReport, MountCall, MountStatus, Mounted,
};
use sandyard_types::{Access, Cache, MountDriver, Secret};

use super::control::{ControlAuthority, ControlClient};
use super::docker::{Container, Volume, bundle, image, name, wait_for};
use super::rpc;
use super::s3::{ACCESS_KEY, BUCKET, Minio, SECRET_KEY};

/// A container with `init` and, in most tests, a mount.
pub(super) struct TestSandbox {
    pub(super) container: Container,
    pub(super) authority: ControlAuthority,
    pub(super) store: Arc<Minio>,
    /// Its part of the bucket, without the last slash.
    pub(super) prefix: String,
    _bundle: Arc<Volume>,
}

impl TestSandbox {
    /// Starts a sandbox with a workspace and more arguments for `docker run`.
    pub(super) fn start(options: &[&str]) -> anyhow::Result<Self> {
        let mut all = vec!["--device", "/dev/fuse"];
        all.extend_from_slice(options);
        Self::start_without_device(&all)
    }

    /// The same without the claim of the daemon.
    pub(super) fn start_unclaimed(options: &[&str]) -> anyhow::Result<Self> {
        let mut all = vec!["--device", "/dev/fuse"];
        all.extend_from_slice(options);
        Self::make(bundle()?, &all, Minio::shared()?)
    }

    /// The same without /dev/fuse.
    pub(super) fn start_without_device(options: &[&str]) -> anyhow::Result<Self> {
        Self::start_from(bundle()?, options)
    }

    /// The same as [`Self::start`] from another bundle.
    pub(super) fn start_from_bundle(bundle: Volume) -> anyhow::Result<Self> {
        Self::start_from(Arc::new(bundle), &["--device", "/dev/fuse"])
    }

    fn start_from(bundle: Arc<Volume>, options: &[&str]) -> anyhow::Result<Self> {
        Self::make(bundle, options, Minio::shared()?)?.claimed()
    }

    fn claimed(self) -> anyhow::Result<Self> {
        rpc::claim(self.container.address, &self.authority)?;
        Ok(self)
    }

    fn make(bundle: Arc<Volume>, options: &[&str], store: Arc<Minio>) -> anyhow::Result<Self> {
        let authority = ControlAuthority::new();
        let volume = format!("{}:/.sandyard:ro", bundle.0);
        let mut all = vec!["--cap-add", "SYS_ADMIN", "-v", &volume];
        all.extend(["-v", "/.sandyard/cache", "--memory", "512m", "--pids-limit", "512"]);
        all.extend_from_slice(options);
        all.extend(["--user", "0:0", "--entrypoint", "/.sandyard/executor"]);
        let key = hex::encode(authority.key.verifying_key().as_bytes());
        let instance = authority.instance.to_string();
        let command = ["init", "--instance", &instance, "--control-key", &key, "--workspace"];
        let container = Container::start(&all, &image(), &command)?;
        let prefix = format!("sessions/{}", name("s"));
        store.put(&format!("{prefix}/"), b"")?;
        let sandbox = Self { container, authority, store, prefix, _bundle: bundle };
        sandbox.wait_for_init()?;
        Ok(sandbox)
    }

    fn wait_for_init(&self) -> anyhow::Result<()> {
        wait_for("init", Duration::from_secs(10), || {
            Ok(ControlClient::open(self.container.address).is_ok())
        })?;
        Ok(())
    }

    /// Starts its container again after its end, claims it and mounts its workspace.
    pub(super) fn start_again(&mut self) -> anyhow::Result<()> {
        self.container.start_again()?;
        self.wait_for_init()?;
        rpc::claim(self.container.address, &self.authority)?;
        self.mount(vec![self.workspace()])?;
        Ok(())
    }

    /// Starts a sandbox with its workspace mounted.
    pub(super) fn mounted() -> anyhow::Result<Self> {
        let sandbox = Self::start(&[])?;
        sandbox.mount(vec![sandbox.workspace()])?;
        Ok(sandbox)
    }

    /// The same with a store that the test may halt.
    pub(super) fn mounted_from(store: Minio) -> anyhow::Result<Self> {
        let options = ["--device", "/dev/fuse"];
        let sandbox = Self::make(bundle()?, &options, Arc::new(store))?.claimed()?;
        sandbox.mount(vec![sandbox.workspace()])?;
        Ok(sandbox)
    }

    /// A call for a mount of this sandbox's prefix.
    pub(super) fn workspace(&self) -> MountCall {
        MountCall {
            bucket: BUCKET.parse().expect("valid"),
            prefix: format!("{}/", self.prefix).parse().expect("valid"),
            target: "/workspace".parse().expect("valid"),
            access: Access::ReadWrite,
            driver: MountDriver::S3fs,
            endpoint: self.store.endpoint(),
            access_key_id: ACCESS_KEY.to_owned(),
            secret_access_key: Secret::new(SECRET_KEY),
            uid: 1000,
            gid: 1000,
            cache: Cache::Disk { limit_mib: 1024 },
        }
    }

    /// The key of a file of the workspace.
    pub(super) fn key(&self, file: &str) -> String {
        format!("{}/{file}", self.prefix)
    }

    /// Makes one call on a connection of its own.
    pub(super) fn call(&self, call: &ControlCall) -> anyhow::Result<ControlReply> {
        ControlClient::open(self.container.address)?.call(&self.authority, call)
    }

    /// Mounts, or fails with what `init` said.
    pub(super) fn mount(&self, mounts: Vec<MountCall>) -> anyhow::Result<Vec<Mounted>> {
        match self.call(&ControlCall::Mount { mounts })? {
            ControlReply::Mounted { mounts } => Ok(mounts),
            reply => bail!("{reply:?}; log: {}", self.container.logs()?),
        }
    }

    /// Stops the sandbox.
    pub(super) fn stop(&self, flush_limit_ms: u64) -> anyhow::Result<FlushReport> {
        match self.call(&ControlCall::Stop { flush_limit_ms })? {
            ControlReply::Stopped { flush } => Ok(flush),
            reply => bail!("{reply:?}"),
        }
    }

    /// Halts the user's side and syncs.
    pub(super) fn drain(&self, limit_ms: u64) -> anyhow::Result<FlushReport> {
        match self.call(&ControlCall::Drain { limit_ms })? {
            ControlReply::Drained { flush } => Ok(flush),
            reply => bail!("{reply:?}"),
        }
    }

    /// Lets the user's side go on.
    pub(super) fn resume(&self) -> anyhow::Result<()> {
        match self.call(&ControlCall::Resume)? {
            ControlReply::Resumed => Ok(()),
            reply => bail!("{reply:?}"),
        }
    }

    /// The state of its mounts.
    pub(super) fn status(&self) -> anyhow::Result<Vec<MountStatus>> {
        match self.call(&ControlCall::Status)? {
            ControlReply::Status { mounts } => Ok(mounts),
            reply => bail!("{reply:?}"),
        }
    }

    /// The host's process id of its daemon, the first process of the nested namespace.
    pub(super) fn daemon(&self) -> anyhow::Result<i32> {
        let children = format!("/proc/{0}/task/{0}/children", self.container.init);
        let nested = |id: &&str| {
            let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
            let ids = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
            ids.is_some_and(|ids| ids.split_whitespace().count() == 3)
        };
        let listed = std::fs::read_to_string(children)?;
        Ok(listed.split_whitespace().find(nested).context("the daemon runs")?.parse()?)
    }

    /// The host's process id of its only FUSE program.
    pub(super) fn program(&self) -> anyhow::Result<i32> {
        self.container.processes("s3fs")?.first().copied().context("s3fs runs")
    }

    /// Waits until the container has ended.
    pub(super) fn wait_for_end(&self, limit: Duration) -> anyhow::Result<i32> {
        wait_for("the container's end", limit, || Ok(!self.container.running()?))?;
        self.container.exit_code()
    }
}
