//! Templates: what a sandbox starts from (design 3.1).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{TargetPath, TemplateId, TemplateName};

/// Where a template comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TemplateKind {
    /// Part of sandyard (`base`).
    BuiltIn,
    /// An entry of the server's configuration.
    Configured,
    /// Made from a sandbox: its image is on the engine and nowhere else.
    Snapshot,
}

/// What a sandbox starts from, as configured. Values a template leaves out were filled with the
/// defaults before this exists.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Template {
    /// Its id for good.
    pub id: TemplateId,
    /// The name clients create by.
    pub name: TemplateName,
    /// Where it comes from.
    pub kind: TemplateKind,
    /// The engine's reference of the image, which must be on the engine or in a registry it can
    /// reach.
    pub image: String,
    /// CPUs a sandbox may use, whole ones, at least 1.
    pub cpu_count: u32,
    /// Memory limit in MiB, at least 128.
    pub memory_mib: u32,
    /// Processes and threads a sandbox may have at once.
    pub pids: u32,
    /// What a sandbox may write on the engine's disk outside its workspace, in MiB.
    #[serde(default = "default_disk_mib")]
    pub disk_mib: u32,
    /// User that commands run as when a request names none.
    pub user: String,
    /// Directory that commands start in when a request names none; the user's home if absent.
    pub workdir: Option<String>,
    /// Environment of every process, over the image's own `ENV`.
    pub env: BTreeMap<String, String>,
    /// Whether set-user-id programs work in it. Without, the engine's no-new-privileges holds.
    pub sudo: bool,
    /// Whether a code interpreter runs in it, whose kernels are in the image (code-interpreter 9).
    #[serde(default)]
    pub interpreter: bool,
    /// Where a session's workspace appears; `{session_id}` in it stands for the session.
    pub workspace_target: TargetPath,
    /// Containers that wait in the pool at least, without and with a workspace each.
    #[serde(default)]
    pub pool: u32,
}

impl Template {
    /// The name that clients see; `None` for a snapshot that was given none.
    pub fn alias(&self) -> Option<&TemplateName> {
        (self.name.as_str() != self.id.as_str()).then_some(&self.name)
    }
}

/// [`Template::disk_mib`] where nothing else is said, in MiB.
pub const DEFAULT_DISK_MIB: u32 = 10 << 10;

/// For records of versions that knew no limit.
fn default_disk_mib() -> u32 {
    DEFAULT_DISK_MIB
}
