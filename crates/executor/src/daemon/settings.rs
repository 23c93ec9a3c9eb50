//! What `/init` sets and requests read (executor 7).

use std::collections::BTreeMap;

use sandyard_types::Secret;
use time::OffsetDateTime;

/// The user of requests that name none, until `/init` names one (executor 3.1).
const BOOT_USER: &str = "root";

/// The sandbox's state apart from its processes.
pub(super) struct Settings {
    /// Token that requests need; `None` before the claim.
    pub access_token: Option<Secret>,
    /// Token of tunnels; `None` before the claim, and in a sandbox without tunnels.
    pub control_token: Option<Secret>,
    /// Whether clients know the access token.
    pub secured: bool,
    /// User of requests that name none.
    pub default_user: String,
    /// Directory of processes that name none, else the user's home.
    pub default_workdir: Option<String>,
    /// Variables that `/init` replaces as a whole.
    pub user_variables: BTreeMap<String, String>,
    /// Variables of the system's own, which those cannot overwrite.
    pub system_variables: BTreeMap<&'static str, String>,
    /// The time that names the claim; `None` before it.
    pub claimed_at: Option<OffsetDateTime>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            access_token: None,
            control_token: None,
            secured: false,
            default_user: BOOT_USER.to_owned(),
            default_workdir: None,
            user_variables: BTreeMap::new(),
            system_variables: BTreeMap::new(),
            claimed_at: None,
        }
    }
}

impl Settings {
    /// All global variables (executor 4.1, 6.3).
    pub(super) fn variables(&self) -> BTreeMap<String, String> {
        let mut all = self.user_variables.clone();
        all.extend(
            self.system_variables.iter().map(|(name, value)| ((*name).to_owned(), value.clone())),
        );
        all
    }
}
