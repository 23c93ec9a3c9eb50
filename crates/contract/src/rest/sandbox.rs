//! Sandboxes as clients see them (control-plane 3.1).

use std::collections::BTreeMap;

use sandyard_types::{Network, Secret};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

/// The one client id there is (control-plane 3.1).
pub const CLIENT_ID: &str = "6532622b";

/// `Sandbox`: the answer to create and connect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SandboxBody {
    /// Id of the template, never its name.
    #[serde(rename = "templateID")]
    pub template_id: String,
    /// Its id.
    #[serde(rename = "sandboxID")]
    pub sandbox_id: String,
    /// [`CLIENT_ID`].
    #[serde(rename = "clientID")]
    pub client_id: String,
    /// [`crate::ENVD_VERSION`].
    pub envd_version: String,
    /// Name of the template.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alias: Option<String>,
    /// Token of the in-sandbox API, if it demands one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub envd_access_token: Option<Secret>,
    /// What the proxy demands for ports other than the in-sandbox API's, if they are not public.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traffic_access_token: Option<Secret>,
    /// What sandbox hosts end in.
    pub domain: Option<String>,
}

/// State as clients see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VisibleState {
    /// Takes requests.
    Running,
    /// Stored.
    Paused,
}

/// A volume in a sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeMount {
    /// Name of the volume.
    pub name: String,
    /// Where it is mounted.
    pub path: String,
}

/// `ListedSandbox`: an entry of both lists.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ListedSandboxBody {
    /// Id of the template.
    #[serde(rename = "templateID")]
    pub template_id: String,
    /// Its id.
    #[serde(rename = "sandboxID")]
    pub sandbox_id: String,
    /// [`CLIENT_ID`].
    #[serde(rename = "clientID")]
    pub client_id: String,
    /// [`crate::ENVD_VERSION`].
    pub envd_version: String,
    /// Name of the template.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alias: Option<String>,
    /// Start of the present run.
    #[serde(with = "time::serde::rfc3339")]
    pub started_at: OffsetDateTime,
    /// End of the present run if nobody changes it.
    #[serde(with = "time::serde::rfc3339")]
    pub end_at: OffsetDateTime,
    /// CPUs it may use.
    pub cpu_count: u32,
    /// Memory it may use, in MiB.
    #[serde(rename = "memoryMB")]
    pub memory_mb: u32,
    /// Disk it may use, in MiB.
    #[serde(rename = "diskSizeMB")]
    pub disk_size_mb: u32,
    /// State as clients see it.
    pub state: VisibleState,
    /// What the client noted; absent if nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<BTreeMap<String, String>>,
    /// Volumes in it.
    #[serde(default)]
    pub volume_mounts: Vec<VolumeMount>,
}

/// What happens when the time is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TimeoutAction {
    /// The sandbox ends.
    Kill,
    /// The sandbox is paused.
    Pause,
}

/// Member `lifecycle` of [`SandboxDetailBody`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LifecycleBody {
    /// Whether traffic wakes it.
    pub auto_resume: bool,
    /// What happens when the time is over.
    pub on_timeout: TimeoutAction,
}

/// `SandboxDetail`: the answer to `GET /sandboxes/{sandboxID}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SandboxDetailBody {
    /// All that a list entry has.
    #[serde(flatten)]
    pub listed: ListedSandboxBody,
    /// Token of the in-sandbox API, if it demands one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub envd_access_token: Option<Secret>,
    /// What the client said about egress; `null` if nothing.
    pub allow_internet_access: Option<bool>,
    /// What sandbox hosts end in.
    pub domain: Option<String>,
    /// What the client said about traffic; absent if nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<Network>,
    /// What happens when the time is over.
    pub lifecycle: LifecycleBody,
    /// What the latest pause kept; only while it is paused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause_mode: Option<PauseMode>,
}

/// Member `pauseMode` of [`SandboxDetailBody`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PauseMode {
    /// Memory and files.
    Full,
    /// Files.
    Filesystem,
}

/// An entry of the answer to `POST …/fork`: one of both (control-plane 3.5).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ForkedBody {
    /// The copy.
    Sandbox(SandboxBody),
    /// Why there is none.
    Error(super::ErrorBody),
}

/// `SnapshotInfo` (control-plane 3.1).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotInfoBody {
    /// What a create can name, with the tag.
    #[serde(rename = "snapshotID")]
    pub snapshot_id: String,
    /// Its names, with the namespace and without a tag.
    pub names: Vec<String>,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_detail_is_read_and_written_without_loss() {
        let wire = json!({
            "templateID": "abcdefghij0123456789",
            "sandboxID": "i0123456789abcdefghij",
            "clientID": CLIENT_ID,
            "envdVersion": crate::ENVD_VERSION,
            "alias": "base",
            "startedAt": "2026-08-01T10:00:00.123456Z",
            "endAt": "2026-08-01T10:05:00.1Z",
            "cpuCount": 2,
            "memoryMB": 512,
            "diskSizeMB": 1024,
            "state": "running",
            "metadata": {"a": "b"},
            "volumeMounts": [],
            "envdAccessToken": "token",
            "allowInternetAccess": null,
            "domain": "sbx.localhost:3002",
            "network": {"allowPublicTraffic": false},
            "lifecycle": {"autoResume": false, "onTimeout": "kill"},
            "pauseMode": "filesystem",
        });
        let detail: SandboxDetailBody = serde_json::from_value(wire.clone()).expect("readable");
        assert_eq!(serde_json::to_value(detail).expect("writable"), wire);
    }
}
