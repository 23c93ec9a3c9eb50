//! The connection to the engine and the [`Runtime`] made of it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use bollard::query_parameters::{
    ListContainersOptionsBuilder, LogsOptionsBuilder, RenameContainerOptionsBuilder,
    StopContainerOptionsBuilder,
};
use bollard::{ClientVersion, Docker};
use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _};
use sandyard_core::{
    ContainerSpec, DiskSpace, Engine, EngineFacts, ImageFacts, Instance, Profile, Runtime,
    RuntimeError, RuntimeEvent,
};
use sandyard_types::{InstallationId, InstanceId, Template};
use tokio::sync::Mutex;
use tracing::{info, warn};

use crate::bundle::{Bundle, MOUNT_POINT};
use crate::container::{self, Optional, container_name};
use crate::error::{DockerError, failed, is_not_found};
use crate::network::{DockerNetwork, NetworkFacts};

pub(crate) const LABEL_INSTALLATION: &str = "dev.sandyard.installation";
pub(crate) const LABEL_INSTANCE: &str = "dev.sandyard.instance";
pub(crate) const LABEL_TEMPLATE: &str = "dev.sandyard.template";
pub(crate) const LABEL_PROFILE: &str = "dev.sandyard.profile";
/// What an object is for: `sandbox`, `hold`, `executor`, `cache`, `network`.
pub(crate) const LABEL_ROLE: &str = "dev.sandyard.role";

/// The oldest API we are tested with.
const OLDEST_API: ClientVersion = ClientVersion { major_version: 1, minor_version: 41 };

/// Longest wait for one answer of the engine, in seconds. Removing a container whose disk is slow
/// takes long; a create never does.
const ANSWER_LIMIT_SECS: u64 = 120;

/// What the runtime is told by the server's configuration.
#[derive(Clone, Debug)]
pub struct DockerSettings {
    /// The engine: `unix://…` or `tcp://host:port`.
    pub host: String,
    /// Which containers are ours.
    pub installation: InstallationId,
    /// An existing network to put sandboxes on; absent: one of our own, made when missing.
    pub network: Option<String>,
    /// The installation's public key, 64 hex digits, for `init`'s command line.
    pub control_key: String,
    /// A folder on the disk that containers write to, for an engine whose own folder is not seen from here: the
    /// server's data is on a volume of the same engine then.
    pub data_dir: PathBuf,
}

/// [`Runtime`] over the Docker Engine.
pub struct DockerRuntime {
    pub(crate) docker: Docker,
    pub(crate) endpoint: String,
    pub(crate) settings: DockerSettings,
    pub(crate) bundle: Bundle,
    pub(crate) facts: EngineFacts,
    pub(crate) network: DockerNetwork,
    /// Set once the network is known to be there.
    network_facts: OnceLock<NetworkFacts>,
    /// Where the disk is that containers write to, if it can be seen from here.
    disk: PathBuf,
    pub(crate) volume_ready: Mutex<bool>,
    /// Whether the engine's kernel is taken to have IPv6.
    ipv6_loopback: AtomicBool,
    /// Whether the engine's storage is taken to bound the writable layer of a container, and has done so once.
    layer_size: AtomicBool,
    layer_size_proven: AtomicBool,
}

impl DockerRuntime {
    /// Connects and checks the engine's version.
    ///
    /// # Errors
    /// [`DockerError`] if the engine does not answer or is too old.
    pub async fn connect(settings: DockerSettings, bundle: Bundle) -> Result<Self, DockerError> {
        let endpoint = settings.host.clone();
        let fail = |call| {
            let endpoint = endpoint.clone();
            move |error| DockerError::Engine(failed(&endpoint, call, error))
        };
        let docker = if let Some(address) = settings.host.strip_prefix("tcp://") {
            Docker::connect_with_http(address, ANSWER_LIMIT_SECS, &OLDEST_API)
        } else {
            Docker::connect_with_unix(&settings.host, ANSWER_LIMIT_SECS, &OLDEST_API)
        };
        let docker = docker.map_err(fail("open a connection"))?;
        let version = docker.version().await.map_err(fail("say its version"))?;
        let api_version = version.api_version.unwrap_or_default();
        if !speaks_at_least(&api_version, &OLDEST_API) {
            return Err(DockerError::TooOld { found: api_version, needed: "1.41" });
        }
        let docker = docker.negotiate_version().await.map_err(fail("agree on an API version"))?;
        let info = docker.info().await.map_err(fail("say what it can do"))?;
        let facts = EngineFacts {
            version: version.version.unwrap_or_default(),
            api_version,
            apparmor: info.security_options.iter().flatten().any(|o| o.contains("name=apparmor")),
            cgroup_version: info.cgroup_version.map(|v| v.to_string()).unwrap_or_default(),
            remaps_users: info.security_options.iter().flatten().any(|o| o.contains("name=userns")),
        };
        let root = info.docker_root_dir.map(PathBuf::from).filter(|root| root.is_dir());
        let driver = info.driver.unwrap_or_default();
        let backing = info.driver_status.iter().flatten().any(|pair| {
            pair.first().is_some_and(|name| name == "Backing Filesystem")
                && pair.get(1).is_some_and(|value| value == "xfs")
        });
        // On others it is not even tried: the engine refuses the whole container.
        let layer_size = match driver.as_str() {
            "overlay2" => backing,
            "btrfs" | "zfs" => true,
            _ => false,
        };
        Ok(Self {
            docker,
            endpoint: settings.host.clone(),
            bundle,
            facts,
            network: DockerNetwork::of(&settings),
            network_facts: OnceLock::new(),
            disk: root.unwrap_or_else(|| settings.data_dir.clone()),
            settings,
            volume_ready: Mutex::new(false),
            ipv6_loopback: AtomicBool::new(true),
            layer_size: AtomicBool::new(layer_size),
            layer_size_proven: AtomicBool::new(false),
        })
    }

    pub(crate) fn labels(&self, role: &str) -> HashMap<String, String> {
        let labels =
            [(LABEL_INSTALLATION, self.settings.installation.as_str()), (LABEL_ROLE, role)];
        labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into()
    }

    /// What lists this installation's sandboxes.
    fn sandbox_filters(&self) -> HashMap<&'static str, Vec<String>> {
        let label = format!("{LABEL_INSTALLATION}={}", self.settings.installation);
        let role = format!("{LABEL_ROLE}=sandbox");
        [("label", vec![label, role])].into()
    }

    async fn create_and_start(&self, spec: &ContainerSpec) -> Result<(), RuntimeError> {
        let fail = |call| move |error| failed(&self.endpoint, call, error);
        let optional = Optional {
            ipv6_loopback: self.ipv6_loopback.load(Ordering::Relaxed),
            layer_size: self.layer_size.load(Ordering::Relaxed),
        };
        let (options, body) = container::plan(self, spec, optional);
        let created = self.docker.create_container(Some(options), body).await;
        created.map_err(fail("create a container"))?;
        if optional.layer_size {
            self.layer_size_proven.store(true, Ordering::Relaxed);
        }
        let started = self.docker.start_container(&container_name(&spec.instance), None).await;
        started.map_err(fail("start a container"))
    }

    /// What made the engine refuse a container, if that can be mended.
    fn mendable(&self, refusal: &str) -> Option<Mendable> {
        if refusal.contains(container::IPV6_LOOPBACK) {
            return self.ipv6_loopback.load(Ordering::Relaxed).then_some(Mendable::NoIpv6);
        }
        if refusal.contains("storage-opt") || refusal.contains("pquota") {
            return self.layer_size.load(Ordering::Relaxed).then_some(Mendable::NoLayerSize);
        }
        // Of the executor in it, or of the folder for a cache's volume.
        refusal.contains(MOUNT_POINT).then_some(Mendable::NoVolume)
    }

    async fn mend(&self, what: Mendable, image: &str) -> Result<(), RuntimeError> {
        match what {
            Mendable::NoIpv6 => {
                info!("the engine's kernel has no IPv6: sandboxes have no ::1");
                self.ipv6_loopback.store(false, Ordering::Relaxed);
            }
            Mendable::NoLayerSize => {
                info!("the engine's storage does not bound what a container writes");
                self.layer_size.store(false, Ordering::Relaxed);
                self.layer_size_proven.store(false, Ordering::Relaxed);
            }
            Mendable::NoVolume => {
                warn!("the executor's volume is gone or not whole: making it again");
                self.renew_volume(image).await?;
            }
        }
        Ok(())
    }

    /// The last lines of a container's log.
    pub(crate) async fn log_lines(&self, id: &InstanceId) -> Result<Vec<String>, RuntimeError> {
        let options = LogsOptionsBuilder::default().stdout(true).stderr(true).tail("20").build();
        let name = container_name(id);
        let logs = self.docker.logs(&name, Some(options));
        let lines = logs.map_ok(|line| line.to_string().trim_end().to_owned()).boxed();
        let lines = lines.try_collect().await;
        lines.map_err(|error| failed(&self.endpoint, "read a container's log", error))
    }

    /// Waits until a container whose removal somebody else began is gone.
    pub(crate) async fn removed(&self, id: &InstanceId) -> Result<(), RuntimeError> {
        let name = container_name(id);
        let limit = std::time::Duration::from_secs(30);
        let gone = async {
            loop {
                let found = self.docker.inspect_container(&name, None).await;
                match found {
                    Err(error) if is_not_found(&error) => return Ok(()),
                    Err(error) => return Err(failed(&self.endpoint, "inspect a container", error)),
                    // The engine has no event to wait for that cannot have passed already.
                    Ok(_) => tokio::time::sleep(std::time::Duration::from_millis(50)).await,
                }
            }
        };
        tokio::time::timeout(limit, gone).await.unwrap_or_else(|_| {
            let reason = format!("its removal by another call did not end within {limit:?}");
            Err(RuntimeError::Failed { call: "remove a container", reason })
        })
    }
}

/// Why the engine refused a container, where another try can do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mendable {
    /// The engine's kernel has no IPv6.
    NoIpv6,
    /// Its storage does not bound the writable layer.
    NoLayerSize,
    /// Somebody removed the executor's volume.
    NoVolume,
}

fn speaks_at_least(found: &str, oldest: &ClientVersion) -> bool {
    let mut parts = found.split('.').map(str::parse::<usize>);
    match (parts.next(), parts.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => {
            (major, minor) >= (oldest.major_version, oldest.minor_version)
        }
        _ => false,
    }
}

#[async_trait]
impl Runtime for DockerRuntime {
    fn validate(&self, spec: &ContainerSpec) -> Result<(), RuntimeError> {
        let template = &spec.template;
        // The engine's own lower bound for a memory limit.
        if template.memory_mib < 6 {
            let text = format!("{} MiB of memory; the least is 6 MiB", template.memory_mib);
            return Err(RuntimeError::Unsupported(text));
        }
        Ok(())
    }

    async fn image_present(&self, template: &Template) -> Result<bool, RuntimeError> {
        self.is_present(&template.image).await
    }

    async fn ensure_image(&self, template: &Template) -> Result<ImageFacts, RuntimeError> {
        self.image_facts(template).await
    }

    async fn create(&self, spec: &ContainerSpec) -> Result<Instance, RuntimeError> {
        let mut mended = Vec::new();
        while let Err(error) = self.create_and_start(spec).await {
            // Each is tried once: what comes again is something else.
            let found = self.mendable(&error.to_string()).filter(|what| !mended.contains(what));
            let Some(what) = found else { return Err(error) };
            self.delete(&spec.instance).await?;
            self.mend(what, &spec.template.image).await?;
            mended.push(what);
        }
        self.running(&spec.instance).await
    }

    async fn list(&self) -> Result<Vec<Instance>, RuntimeError> {
        let filters = self.sandbox_filters();
        let options = ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
        let listed = self.docker.list_containers(Some(options)).await;
        let listed = listed.map_err(|error| failed(&self.endpoint, "list containers", error))?;
        for (found, wanted) in listed.iter().filter_map(container::misnamed) {
            // Of a version that named containers by sandbox. All calls go by name, so it would stay for ever.
            info!(
                container = found,
                name = wanted,
                "giving a container of an earlier version its name"
            );
            let options = RenameContainerOptionsBuilder::default().name(&wanted).build();
            let renamed = self.docker.rename_container(found, options).await;
            match renamed {
                Err(error) if !is_not_found(&error) => {
                    return Err(failed(&self.endpoint, "rename a container", error));
                }
                _ => {}
            }
        }
        let read = |summary| container::from_summary(summary, &self.network.name);
        Ok(listed.into_iter().filter_map(read).collect())
    }

    fn watch(&self) -> BoxStream<'static, RuntimeEvent> {
        crate::events::watch(self.docker.clone(), &self.settings.installation)
    }

    async fn inspect(&self, id: &InstanceId) -> Result<Option<Instance>, RuntimeError> {
        self.find(id).await
    }

    async fn freeze(&self, id: &InstanceId) -> Result<(), RuntimeError> {
        self.freeze_container(id).await
    }

    async fn thaw(&self, id: &InstanceId) -> Result<(), RuntimeError> {
        self.thaw_container(id).await
    }

    async fn halt(&self, id: &InstanceId) -> Result<(), RuntimeError> {
        self.halt_container(id).await
    }

    async fn start(&self, id: &InstanceId) -> Result<Instance, RuntimeError> {
        self.start_again(id).await
    }

    async fn commit(&self, id: &InstanceId, name: &str) -> Result<String, RuntimeError> {
        self.commit_container(id, name).await
    }

    async fn remove_image(&self, image: &str) -> Result<(), RuntimeError> {
        self.delete_image(image).await
    }

    async fn images(&self) -> Result<Vec<String>, RuntimeError> {
        self.own_images().await
    }

    async fn stop(&self, id: &InstanceId, limit_secs: u32) -> Result<(), RuntimeError> {
        let seconds = i32::try_from(limit_secs).unwrap_or(i32::MAX);
        let options = StopContainerOptionsBuilder::default().t(seconds).build();
        match self.docker.stop_container(&container_name(id), Some(options)).await {
            Ok(()) => Ok(()),
            // 304: it does not run.
            Err(bollard::errors::Error::DockerResponseServerError {
                status_code: 304 | 404,
                ..
            }) => Ok(()),
            Err(error) => Err(failed(&self.endpoint, "stop a container", error)),
        }
    }

    async fn delete(&self, id: &InstanceId) -> Result<(), RuntimeError> {
        self.remove(id).await
    }

    fn bounds_disk(&self) -> bool {
        self.layer_size_proven.load(Ordering::Relaxed)
    }

    async fn disk_usage(&self) -> Result<Vec<(InstanceId, u64)>, RuntimeError> {
        let filters = self.sandbox_filters();
        let options = ListContainersOptionsBuilder::default().size(true).filters(&filters).build();
        let listed = self.docker.list_containers(Some(options)).await;
        let listed = listed
            .map_err(|error| failed(&self.endpoint, "tell what containers have written", error))?;
        let read = |summary: bollard::models::ContainerSummary| {
            let id = summary.labels?.get(LABEL_INSTANCE)?.parse().ok()?;
            Some((id, u64::try_from(summary.size_rw?).ok()?))
        };
        Ok(listed.into_iter().filter_map(read).collect())
    }

    async fn memory_usage(&self, id: &InstanceId) -> Result<u64, RuntimeError> {
        self.memory_of(id).await
    }

    fn disk_space(&self) -> Option<DiskSpace> {
        let found = rustix::fs::statvfs(&self.disk)
            .inspect_err(|error| warn!(%error, disk = %self.disk.display(), "cannot see the disk"));
        let found = found.ok()?;
        Some(DiskSpace {
            total: found.f_blocks.saturating_mul(found.f_frsize),
            free: found.f_bavail.saturating_mul(found.f_frsize),
        })
    }

    async fn last_lines(&self, id: &InstanceId) -> Result<Vec<String>, RuntimeError> {
        self.log_lines(id).await
    }
}

#[async_trait]
impl Engine for DockerRuntime {
    fn facts(&self) -> &EngineFacts {
        &self.facts
    }

    async fn prepare(&self) -> Result<(), RuntimeError> {
        let found = self.network.ensure(&self.docker, &self.settings).await?;
        self.network_facts.get_or_init(|| found);
        Ok(())
    }

    fn network_name(&self) -> &str {
        &self.network.name
    }

    fn sandbox_facing_address(&self) -> Option<IpAddr> {
        self.network_facts.get()?.gateway
    }

    async fn isolates_sandboxes(&self) -> Result<Option<bool>, RuntimeError> {
        match self.network_facts.get() {
            Some(found) => Ok(Some(found.isolated)),
            None => self.network.inspect_isolation(&self.docker, &self.endpoint).await,
        }
    }

    async fn collect_garbage(&self, all: bool) -> Result<Vec<String>, RuntimeError> {
        if all {
            self.release_volume().await?;
        }
        self.remove_old_volumes(all).await
    }

    async fn tear_down(&self) -> Result<(), RuntimeError> {
        self.release_volume().await?;
        self.network.remove(&self.docker, &self.endpoint).await
    }
}

/// The profile's label.
pub(crate) fn profile_name(profile: Profile) -> &'static str {
    match profile {
        Profile::Plain => "plain",
        Profile::Workspace => "workspace",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_by_number() {
        for good in ["1.41", "1.50", "2.0"] {
            assert!(speaks_at_least(good, &OLDEST_API), "{good}");
        }
        for bad in ["1.9", "1.40", "", "x.y", "1"] {
            assert!(!speaks_at_least(bad, &OLDEST_API), "{bad}");
        }
    }
}
