//! What clients send. Unknown members are ignored (control-plane G9); `null` counts as absent.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::control::Secret;

/// Body of a create (control-plane 3.3).
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CreateBody {
    /// Template id or name, with optional namespace and tag.
    #[serde(rename = "templateID")]
    pub template_id: String,
    /// Seconds to live; the default differs between the two paths.
    pub timeout: Option<i32>,
    /// Pause instead of kill when the time is over.
    pub auto_pause: Option<bool>,
    /// Whether that pause keeps the memory.
    pub auto_pause_memory: Option<bool>,
    /// Whether traffic wakes a paused sandbox.
    pub auto_resume: Option<AutoResume>,
    /// Whether the in-sandbox API demands a token. A value of any type: only `POST /sandboxes` knows the
    /// member.
    pub secure: Option<Value>,
    /// `false` asks for a sandbox without egress.
    #[serde(rename = "allow_internet_access")]
    pub allow_internet_access: Option<bool>,
    /// Rules for traffic in and out.
    pub network: Option<NetworkBody>,
    /// What the client notes about the sandbox.
    pub metadata: Option<BTreeMap<String, String>>,
    /// Environment of every process.
    pub env_vars: Option<BTreeMap<String, Secret>>,
    /// Configuration of an MCP gateway.
    pub mcp: Option<Map<String, Value>>,
    /// Workload identity.
    pub iam: Option<Iam>,
    /// Volumes to mount.
    pub volume_mounts: Option<Vec<Value>>,
}

/// Member `autoResume` of a create.
#[derive(Deserialize)]
pub struct AutoResume {
    /// Whether traffic wakes the sandbox.
    pub enabled: bool,
}

/// Member `iam` of a create.
#[derive(Deserialize)]
pub struct Iam {
    /// Tokens by name.
    pub tokens: Option<Map<String, Value>>,
}

/// Member `network` of a create (control-plane 3.1, `SandboxNetworkConfig`).
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NetworkBody {
    /// Whether ports are open to everybody.
    pub allow_public_traffic: Option<bool>,
    /// Destinations that are allowed.
    pub allow_out: Option<Vec<String>>,
    /// Destinations that are refused.
    pub deny_out: Option<Vec<String>>,
    /// Name servers.
    pub dns_servers: Option<Vec<String>>,
    /// Proxy for traffic out.
    pub egress_proxy: Option<EgressProxyBody>,
    /// Ports that speak TLS themselves.
    pub https_ports: Option<Vec<u32>>,
    /// Host header that services see.
    pub mask_request_host: Option<String>,
    /// Headers put into traffic out, by domain.
    pub rules: Option<BTreeMap<String, Vec<Value>>>,
}

/// Member `egressProxy` of a network: an object of which nothing is read yet.
#[derive(Deserialize)]
pub struct EgressProxyBody {}

/// Body of `POST …/timeout` (control-plane 3.4).
#[derive(Deserialize)]
pub struct TimeoutBody {
    /// Seconds to live from now; zero ends the sandbox.
    pub timeout: i32,
}

/// Body of `POST …/refreshes` (control-plane 3.4).
#[derive(Default, Deserialize)]
pub struct RefreshBody {
    /// Seconds to live at least, from now.
    pub duration: Option<i32>,
}

/// Body of `POST …/pause` (control-plane 3.4).
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PauseBody {
    /// Whether memory and processes are kept; they are if absent.
    pub memory: Option<bool>,
    /// Whether the pause is refused if the in-sandbox API does not answer.
    pub require_healthy_guest: Option<bool>,
}

/// Body of `POST …/resume`, deprecated (control-plane 3.4).
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ResumeBody {
    /// Seconds to live from now.
    pub timeout: Option<i32>,
    /// Whether this run ends with a pause.
    pub auto_pause: Option<bool>,
    /// Whether a paused sandbox gets its memory back.
    pub memory: Option<bool>,
}

/// Body of `POST …/fork` (control-plane 3.5).
#[derive(Default, Deserialize)]
pub struct ForkBody {
    /// Seconds that each copy lives from its start.
    pub timeout: Option<i32>,
    /// How many copies.
    pub count: Option<i32>,
}

/// Body of `POST …/snapshots` (control-plane 3.5).
#[derive(Default, Deserialize)]
pub struct SnapshotBody {
    /// What it is called: `[namespace/]name[:tag]`.
    pub name: Option<String>,
    /// Whether memory is kept. It never is here, whatever is asked.
    pub memory: Option<bool>,
}

/// Body of both connects (control-plane 3.4).
#[derive(Default, Deserialize)]
pub struct ConnectBody {
    /// Seconds to live at least, from now.
    pub timeout: Option<i32>,
    /// Whether a paused sandbox gets its memory back.
    pub memory: Option<bool>,
}
