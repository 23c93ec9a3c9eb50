//! From a [`ContainerSpec`] to what the engine is told, and back.

use std::collections::HashMap;
use std::net::IpAddr;

use bollard::models::{
    ContainerCreateBody, ContainerSummary, ContainerSummaryStateEnum, DeviceMapping,
    EndpointSettings, HealthConfig, HostConfig, HostConfigLogConfig, Mount, MountType,
    MountVolumeOptions, NetworkSettings, NetworkingConfig, ResourcesUlimits,
};
use bollard::query_parameters::{CreateContainerOptions, CreateContainerOptionsBuilder};
use sandyard_contract::boundary::{HIDDEN_PATHS, READ_ONLY_PATHS};
use sandyard_core::{ContainerSpec, ContainerState, Instance, Profile};
use sandyard_types::{Cache, InstanceId};

use crate::bundle::{MOUNT_POINT, volume_labels};
use crate::engine::{DockerRuntime, LABEL_INSTANCE, LABEL_PROFILE, LABEL_TEMPLATE, profile_name};
use crate::seccomp;

/// What user code keeps (design 6.1 (5)). Everything else is not even given to the container, but for
/// what `init` needs.
const CAPABILITIES: [&str; 12] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// What `init` needs on top to make mounts and its own device nodes; it takes both away from everything
/// it starts.
const INIT_CAPABILITIES: [&str; 2] = ["SYS_ADMIN", "MKNOD"];

/// The engine switches IPv6 off wherever a network has none, even for `::1`, where services of users
/// listen too (executor 9.3). Unknown to a kernel without IPv6.
pub(crate) const IPV6_LOOPBACK: &str = "net.ipv6.conf.lo.disable_ipv6";

/// The engine's option for the size of a container's writable layer.
pub(crate) const LAYER_SIZE: &str = "size";

/// Queued signals and bytes of message queues, which the kernel counts per user over all sandboxes: enough for
/// programs that use them, and so little that the host's own users keep theirs.
const SIGNALS_PENDING: i64 = 1024;
const MESSAGE_QUEUE_BYTES: i64 = 256 << 10;

/// What the engine is asked for only where it can do it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Optional {
    /// `::1` in containers.
    pub(crate) ipv6_loopback: bool,
    /// A bound on the writable layer.
    pub(crate) layer_size: bool,
}

/// The name of a sandbox's container.
pub fn container_name(id: &InstanceId) -> String {
    format!("sandyard-{id}")
}

/// The whole request for one container.
pub(crate) fn plan(
    runtime: &DockerRuntime,
    spec: &ContainerSpec,
    optional: Optional,
) -> (CreateContainerOptions, ContainerCreateBody) {
    let template = &spec.template;
    let workspace = spec.profile == Profile::Workspace;
    let mut labels = runtime.labels("sandbox");
    labels.insert(LABEL_INSTANCE.to_owned(), spec.instance.to_string());
    labels.insert(LABEL_TEMPLATE.to_owned(), template.id.to_string());
    labels.insert(LABEL_PROFILE.to_owned(), profile_name(spec.profile).to_owned());

    let mut command: Vec<String> = [
        "init",
        "--instance",
        spec.instance.as_str(),
        "--control-key",
        &runtime.settings.control_key,
    ]
    .map(str::to_owned)
    .into();
    if template.interpreter {
        command.push("--interpreter".to_owned());
    }
    let mut cap_add: Vec<String> = CAPABILITIES.map(str::to_owned).into();
    let mut devices = Vec::new();
    let mut security = Vec::new();
    let mut mounts = vec![Mount {
        target: Some(MOUNT_POINT.to_owned()),
        source: Some(runtime.bundle.volume()),
        typ: Some(MountType::VOLUME),
        read_only: Some(true),
        // The engine makes a volume that is missing: it is to be found by its label all the same.
        volume_options: Some(MountVolumeOptions { labels: Some(volume_labels()), ..no_copy() }),
        ..Mount::default()
    }];
    // None: the engine's own.
    let (mut masked, mut read_only) = (None, None);
    if workspace {
        command.push("--workspace".to_owned());
        cap_add.extend(INIT_CAPABILITIES.map(str::to_owned));
        if runtime.facts.remaps_users {
            // There `init` can mount a fresh /proc only where nothing covers parts of the one that it has. It
            // masks the one that user code gets, here as elsewhere.
            (masked, read_only) = (Some(Vec::new()), Some(Vec::new()));
        }
        devices.push(DeviceMapping {
            path_on_host: Some("/dev/fuse".to_owned()),
            path_in_container: Some("/dev/fuse".to_owned()),
            cgroup_permissions: Some("rwm".to_owned()),
        });
        if runtime.facts.apparmor {
            // The engine's profile forbids mount to everybody, init too; what user code may do is
            // limited by init's own filter.
            security.push("apparmor=unconfined".to_owned());
        }
        if matches!(spec.cache, Cache::Disk { .. }) {
            mounts.push(Mount {
                target: Some(format!("{MOUNT_POINT}/cache")),
                typ: Some(MountType::VOLUME),
                volume_options: Some(MountVolumeOptions {
                    labels: Some(runtime.labels("cache")),
                    ..no_copy()
                }),
                ..Mount::default()
            });
        }
    } else {
        security.push(format!("seccomp={}", *seccomp::PROFILE));
        let texts = |paths: &[&str]| paths.iter().map(|path| (*path).to_owned()).collect();
        masked = Some(texts(&HIDDEN_PATHS));
        read_only = Some(texts(&READ_ONLY_PATHS));
    }
    if !template.sudo {
        security.push("no-new-privileges".to_owned());
    }
    let memory = i64::from(template.memory_mib) << 20;
    let log_options = [("max-size", "1m"), ("max-file", "2")];
    let host_config = HostConfig {
        memory: Some(memory),
        // 64 MiB, the engine's default, break browsers and data loaders. It counts against the memory.
        shm_size: Some(memory / 2),
        // The same number: no swap on top of it.
        memory_swap: Some(memory),
        nano_cpus: Some(i64::from(template.cpu_count) * 1_000_000_000),
        pids_limit: Some(i64::from(template.pids)),
        cap_drop: Some(vec!["ALL".to_owned()]),
        cap_add: Some(cap_add),
        devices: Some(devices),
        security_opt: Some(security),
        mounts: Some(mounts),
        network_mode: Some(runtime.network.name.clone()),
        masked_paths: masked,
        readonly_paths: read_only,
        ulimits: Some(vec![
            limit("sigpending", SIGNALS_PENDING),
            limit("msgqueue", MESSAGE_QUEUE_BYTES),
        ]),
        storage_opt: optional
            .layer_size
            .then(|| [(LAYER_SIZE.to_owned(), format!("{}M", template.disk_mib))].into()),
        sysctls: optional
            .ipv6_loopback
            .then(|| [(IPV6_LOOPBACK.to_owned(), "0".to_owned())].into()),
        log_config: Some(HostConfigLogConfig {
            typ: Some("json-file".to_owned()),
            config: Some(log_options.map(|(k, v)| (k.to_owned(), v.to_owned())).into()),
        }),
        ..HostConfig::default()
    };
    let endpoints: HashMap<String, EndpointSettings> =
        [(runtime.network.name.clone(), EndpointSettings::default())].into();
    let body = ContainerCreateBody {
        image: Some(template.image.clone()),
        // The image's own entrypoint, user and directory are read, not used (design 3).
        entrypoint: Some(vec![format!("{MOUNT_POINT}/executor")]),
        cmd: Some(command),
        user: Some("0:0".to_owned()),
        working_dir: Some("/".to_owned()),
        healthcheck: Some(HealthConfig {
            test: Some(vec!["NONE".to_owned()]),
            ..HealthConfig::default()
        }),
        labels: Some(labels),
        host_config: Some(host_config),
        networking_config: Some(NetworkingConfig { endpoints_config: Some(endpoints) }),
        ..ContainerCreateBody::default()
    };
    (CreateContainerOptionsBuilder::default().name(&container_name(&spec.instance)).build(), body)
}

fn limit(name: &str, value: i64) -> ResourcesUlimits {
    ResourcesUlimits { name: Some(name.to_owned()), soft: Some(value), hard: Some(value) }
}

/// An image that has files at the target must not get them copied into the volume.
fn no_copy() -> MountVolumeOptions {
    MountVolumeOptions { no_copy: Some(true), ..MountVolumeOptions::default() }
}

/// The container's address on the sandboxes' network.
pub(crate) fn address(settings: Option<NetworkSettings>, network: &str) -> Option<IpAddr> {
    on_network(settings?.networks?.get(network)?)
}

fn on_network(endpoint: &EndpointSettings) -> Option<IpAddr> {
    endpoint.ip_address.as_deref()?.parse().ok()
}

/// A listed container's id and the name that it should have, if it has another.
pub(crate) fn misnamed(summary: &ContainerSummary) -> Option<(&str, String)> {
    let instance = summary.labels.as_ref()?.get(LABEL_INSTANCE)?.parse().ok()?;
    let wanted = container_name(&instance);
    let is_wanted = |name: &String| name.trim_start_matches('/') == wanted;
    let names = summary.names.as_ref()?;
    (!names.iter().any(is_wanted)).then_some((summary.id.as_deref()?, wanted))
}

/// A listed container as an instance; `None` for one that is none of ours after all.
pub(crate) fn from_summary(summary: ContainerSummary, network: &str) -> Option<Instance> {
    let labels = summary.labels?;
    let state = match summary.state {
        Some(ContainerSummaryStateEnum::RUNNING) => ContainerState::Running,
        Some(ContainerSummaryStateEnum::PAUSED) => ContainerState::Frozen,
        _ => ContainerState::Stopped,
    };
    let networks = summary.network_settings.and_then(|settings| settings.networks);
    let address = networks.and_then(|networks| on_network(networks.get(network)?));
    Some(Instance {
        id: labels.get(LABEL_INSTANCE)?.parse().ok()?,
        state,
        address: address.filter(|_| state != ContainerState::Stopped),
    })
}
