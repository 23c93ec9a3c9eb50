//! The control channel: signed calls from the server to `init`, PID 1 of a sandbox's container.
//!
//! `init` listens on TCP port [`CONTROL_PORT`] of the container. Messages are JSON, one a line; a call has
//! at most [`MAX_CALL_BYTES`], a reply [`MAX_LINE_BYTES`]. `init` speaks first and says a fresh [`Hello`]
//! (a nonce) on connect and after each [`ControlReply`]; the server sends [`SignedCall`]s, the first within
//! [`SIGNED_CALL_LIMIT`]. Nothing on this channel is encrypted: it runs on the engine's bridge, which
//! nothing in a sandbox can sniff (NET_RAW is gone, design 6.1 (5)), and a signature is worth nothing for
//! another container or a second time.
//!
//! A newer server speaks to older containers. So readers ignore fields that they do not know, and new fields have
//! defaults. A new call needs a new [`CONTROL_VERSION`], which [`Hello`] names.

use std::time::Duration;

use sandyard_types::{
    Access, BucketName, Cache, InstanceId, KeyPrefix, MountDriver, Secret, TargetPath,
};
use serde::{Deserialize, Serialize};

/// TCP port of `init` in every sandbox. The proxy never routes to it.
pub const CONTROL_PORT: u16 = 49982;

/// The version of this protocol: 1 since there are [`ControlCall::Drain`] and [`ControlCall::Resume`].
pub const CONTROL_VERSION: u32 = 1;

/// How long `init` waits on a new connection for the first valid call. Then it closes the connection.
pub const SIGNED_CALL_LIMIT: Duration = Duration::from_secs(1);

/// The longest line with a call, in bytes: a stranger can send as much before its signature is looked at.
pub const MAX_CALL_BYTES: usize = 64 << 10;

/// The longest line with a reply, in bytes.
pub const MAX_LINE_BYTES: usize = 1 << 20;

/// What `init` says on connect and after each reply: the nonce the next call must be signed over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// 64 lower-case hex digits, never used twice.
    pub nonce: String,
    /// The [`CONTROL_VERSION`] of `init`; 0 if it is from before there were versions.
    #[serde(default)]
    pub version: u32,
}

/// A call and the proof that the installation's server makes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedCall {
    /// Ed25519 signature of [`signing_input`] by the installation's key, 128 hex digits.
    pub signature: String,
    /// A [`ControlCall`] as JSON text: signed as sent, so that no two encodings need to agree.
    pub body: String,
}

/// The bytes a call's signature is made over.
pub fn signing_input(instance: &InstanceId, nonce: &str, body: &str) -> Vec<u8> {
    format!("sandyard control v1\n{instance}\n{nonce}\n{body}").into_bytes()
}

/// What the server may ask of `init`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "call")]
pub enum ControlCall {
    /// Makes all mounts, at the same time; either all of them are there afterwards or none.
    Mount {
        /// What to mount.
        mounts: Vec<MountCall>,
    },
    /// The durability barrier (design 6.3), then the end of the container: user processes get TERM and
    /// 5 s, then the file systems are synced and unmounted, the FUSE programs awaited. `init` answers
    /// when that is done and exits.
    Stop {
        /// Limit in milliseconds for sync, unmount and the programs' exit.
        flush_limit_ms: u64,
    },
    /// Before the container is frozen (design 5.1): halts the user's side, lets its requests to the FUSE
    /// programs finish, syncs all mounts. What was halted goes on by [`ControlCall::Resume`]; if not everything
    /// was in the store within the limit, `init` lets it go on itself before it answers. It also does if the
    /// container runs for [`LONGEST_HALT`](crate::budget::LONGEST_HALT) without a resume. A program that has
    /// died makes it incomplete. Refused while a mount call is worked on.
    Drain {
        /// Limit in milliseconds for all of it.
        limit_ms: u64,
    },
    /// After the container was thawed: forgets what is cached of the store, lets the user's side go on.
    /// Without effect if nothing is halted. Breaks off a drain that is worked on.
    Resume,
    /// Sync of all mounts, open files included, without stopping anything.
    Sync {
        /// Limit in milliseconds.
        limit_ms: u64,
    },
    /// What is mounted and what happened to it.
    Status,
}

/// One mount with the key for it; the secret prints as `***`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountCall {
    /// Bucket.
    pub bucket: BucketName,
    /// Part of the bucket.
    pub prefix: KeyPrefix,
    /// Where it appears in the sandbox.
    pub target: TargetPath,
    /// Read-only or writable.
    pub access: Access,
    /// The program that makes it.
    pub driver: MountDriver,
    /// Base URL of the gateway as the sandbox reaches it, `http://host:port`.
    pub endpoint: String,
    /// Access key id of this sandbox's grant.
    pub access_key_id: String,
    /// Secret of this sandbox's grant.
    pub secret_access_key: Secret,
    /// Owner shown on every file.
    pub uid: u32,
    /// Group shown on every file.
    pub gid: u32,
    /// Local cache of the driver.
    pub cache: Cache,
}

/// What `init` answers to a call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "reply")]
pub enum ControlReply {
    /// All mounts are visible inside.
    Mounted {
        /// One entry a mount, in the call's order.
        mounts: Vec<Mounted>,
    },
    /// The barrier was passed, or its limit is over; `init` exits after this line.
    Stopped {
        /// How it went.
        flush: FlushReport,
    },
    /// The user's side is halted and everything in the store, or the limit was over and it goes on.
    Drained {
        /// How it went.
        flush: FlushReport,
    },
    /// The user's side goes on.
    Resumed,
    /// The mounts were synced, or the limit is over.
    Synced {
        /// How it went.
        flush: FlushReport,
    },
    /// The state of all mounts.
    Status {
        /// One entry a mount.
        mounts: Vec<MountStatus>,
    },
    /// The call was not done.
    Failed(ControlFailure),
}

/// One mount that was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mounted {
    /// Where.
    pub target: TargetPath,
    /// Microseconds from the start of the program until the mount was usable inside.
    pub micros: u64,
}

/// How a sync or the durability barrier went.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlushReport {
    /// Whether everything was in the store within the limit.
    pub complete: bool,
    /// Bytes that programs have written and that were not in the store when the limit was over; a byte that was
    /// written twice counts twice. After a stop also what could not be uploaded at a file's last close. `None`
    /// where a driver cannot tell, for its program has died.
    pub bytes_left: Option<u64>,
    /// How long it took, in milliseconds.
    pub millis: u64,
}

/// The state of one mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountStatus {
    /// Where.
    pub target: TargetPath,
    /// Whether its program runs.
    pub running: bool,
    /// How often the program died and was started again.
    pub restarts: u32,
    /// The last lines the program printed.
    pub last_lines: Vec<String>,
}

/// Why a call was not done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControlFailure {
    /// What kind of failure, for the server's decision.
    pub kind: FailureKind,
    /// What was tried, on what, and what the system said.
    pub message: String,
    /// The last lines the FUSE program printed, where one was involved.
    pub program_output: Vec<String>,
}

/// Kinds of [`ControlFailure`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureKind {
    /// The signature does not fit the nonce, the instance or the key.
    Unauthorized,
    /// The call could not be read, or makes no sense now.
    BadCall,
    /// The container lacks /dev/fuse or SYS_ADMIN.
    NoFuse,
    /// The FUSE program ended or was not ready in time.
    Program,
    /// The mount could not be attached to its target.
    Attach,
}
