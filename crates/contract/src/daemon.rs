//! Routes of the in-sandbox daemon that only the server calls. The proxy refuses them to everybody
//! (control-plane 5.5 (3), executor 6.7).

use std::collections::BTreeMap;

use sandyard_types::{InstanceId, Secret};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

/// TCP port of the daemon in every sandbox (executor 2.1).
pub const DAEMON_PORT: u16 = 49983;

/// TCP port of the code interpreter in sandboxes that have one (code-interpreter 1).
pub const INTERPRETER_PORT: u16 = 49999;

/// Path of the code interpreter's executions (code-interpreter 3). One means nothing without a client that listens, so it
/// ends at its client's FIN, here and in the proxy.
pub const EXECUTE_PATH: &str = "/execute";

/// Path of the call that gives a sandbox its identity, token and environment (executor 7).
pub const INIT_PATH: &str = "/init";

/// Header of [`INIT_PATH`] with the Ed25519 signature of [`init_signing_input`], 128 hex digits. It takes
/// the place of the original's metadata service: user code can reach the daemon on the loopback
/// address, and must not be able to set the token first.
pub const INIT_SIGNATURE_HEADER: &str = "x-sandyard-signature";

/// Header of [`INIT_PATH`] with the SHA-256 of the body, 64 hex digits. The signature covers it and
/// `Content-Length`, so a caller is known before a byte of its body is read.
pub const INIT_BODY_HASH_HEADER: &str = "x-sandyard-body-sha256";

/// The longest body of [`INIT_PATH`], in bytes. A longer one is answered 413, unread.
pub const INIT_BODY_LIMIT: u64 = 64 << 10;

/// Path prefix of tunnels: `GET /sandyard/tunnel/<port>` with `Connection: Upgrade` and
/// `Upgrade: sandyard-tunnel`. 101 once the port was dialled on 127.0.0.1, then ::1, and bytes follow
/// both ways with half-closes; 503 if nothing listens on either (executor 9.3 (b)).
pub const TUNNEL_PATH: &str = "/sandyard/tunnel/";

/// Value of `Upgrade` for [`TUNNEL_PATH`].
pub const TUNNEL_PROTOCOL: &str = "sandyard-tunnel";

/// Header of [`TUNNEL_PATH`] with this sandbox's control token, given by [`InitBody::control_token`].
/// Missing or wrong: 401.
pub const CONTROL_TOKEN_HEADER: &str = "x-sandyard-control";

/// The bytes the signature of a call to [`INIT_PATH`] is made over: the instance, so that a call for
/// another sandbox means nothing here, and the body's length and SHA-256 in lower-case hex.
pub fn init_signing_input(instance: &InstanceId, length: u64, hash: &str) -> Vec<u8> {
    format!("sandyard init v2\n{instance}\n{length}\n{hash}").into_bytes()
}

/// Body of [`INIT_PATH`]: the contract's members that we use and our own (executor 7). Others are ignored, so that a
/// newer server can claim a container with an older executor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InitBody {
    /// Token that RPC and `/files` demand from now on (executor 3.2). Every sandbox has one.
    pub access_token: Secret,
    /// Replaces all user variables; absent: unchanged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env_vars: Option<BTreeMap<String, String>>,
    /// User of requests that name none; absent or empty: unchanged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_user: Option<String>,
    /// Directory of processes that name none; absent or empty: unchanged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_workdir: Option<String>,
    /// Names the call: the first one is obeyed, the same one again is answered as before, and any other
    /// is refused with 409. Never sets the clock.
    #[serde(default, with = "time::serde::rfc3339::option")]
    pub timestamp: Option<OffsetDateTime>,
    /// Our own: the sandbox's id, for `E2B_SANDBOX_ID`.
    #[serde(default, rename = "sandboxID", skip_serializing_if = "Option::is_none")]
    pub sandbox_id: Option<String>,
    /// Our own: the template's id, for `E2B_TEMPLATE_ID`.
    #[serde(default, rename = "templateID", skip_serializing_if = "Option::is_none")]
    pub template_id: Option<String>,
    /// Our own: whether clients know the token, and so have to show it to the code interpreter too. The SDKs show it with
    /// code to run, and not with calls for contexts (code-interpreter 2).
    #[serde(default)]
    pub secured: bool,
    /// Our own: what [`CONTROL_TOKEN_HEADER`] must carry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control_token: Option<Secret>,
}
