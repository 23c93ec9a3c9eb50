//! What an installation needs from its container engine around the sandboxes: the network they are on, what is said to
//! operators, tidying up.

use std::net::IpAddr;

use async_trait::async_trait;

use super::{Runtime, RuntimeError};

/// What the engine says about itself, for `doctor` and the log.
#[derive(Clone, Debug)]
pub struct EngineFacts {
    /// Its version.
    pub version: String,
    /// The API it speaks.
    pub api_version: String,
    /// Whether AppArmor confines containers there.
    pub apparmor: bool,
    /// `1` or `2`.
    pub cgroup_version: String,
    /// Whether users in containers are others than those of the host (`userns-remap`).
    pub remaps_users: bool,
}

/// What an installation needs around its sandboxes.
#[async_trait]
pub trait Engine: Runtime {
    /// What the engine says about itself.
    fn facts(&self) -> &EngineFacts;

    /// Makes sure that the sandboxes' network is there. To be called before the first create.
    ///
    /// # Errors
    /// The engine's refusal, most often because it has no free address range left.
    async fn prepare(&self) -> Result<(), RuntimeError>;

    /// The name of the sandboxes' network.
    fn network_name(&self) -> &str;

    /// The address under which a server on the engine's host is reached from inside a sandbox. `None` on a network
    /// without one, and before [`Engine::prepare`].
    fn sandbox_facing_address(&self) -> Option<IpAddr>;

    /// Whether sandboxes cannot reach each other on their network as it is now; `None` if it does not exist. Changes
    /// nothing.
    ///
    /// # Errors
    /// The engine's refusal.
    async fn isolates_sandboxes(&self) -> Result<Option<bool>, RuntimeError>;

    /// Removes what earlier versions left and nobody uses; with `all` also what the present version keeps for its
    /// next start, which must not be under way. Returns the names of what went.
    ///
    /// # Errors
    /// The engine's refusal.
    async fn collect_garbage(&self, all: bool) -> Result<Vec<String>, RuntimeError>;

    /// Removes what the installation has on the engine besides sandboxes and images, which must be gone or are kept:
    /// its hold on shared volumes, and its own network.
    ///
    /// # Errors
    /// The engine's refusal.
    async fn tear_down(&self) -> Result<(), RuntimeError>;
}
