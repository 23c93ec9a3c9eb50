//! Ids, names, sizes and specifications that every part of sandyard speaks.
//!
//! Nothing here does I/O or knows a protocol, so everything may depend on it. Values are parsed once,
//! at the edge, into these types; what holds a value of one of them need not check it again.
#![deny(missing_docs)]

mod error_chain;
mod ids;
mod lifecycle;
mod network;
mod secret;
mod template;
mod workspace;

pub use error_chain::error_chain;
pub use ids::{
    BuildId, InstallationId, InstanceId, InvalidId, InvalidSandboxId, SandboxId, SessionId, TeamId,
    TemplateId, TemplateName,
};
pub use lifecycle::{Lifecycle, OnTimeout, PauseKind};
pub use network::{HostMask, InvalidHostMask, Network};
pub use secret::Secret;
pub use template::{DEFAULT_DISK_MIB, Template, TemplateKind};
pub use workspace::{
    Access, BucketName, Cache, InvalidWorkspace, KeyPrefix, MountDriver, MountSpec, TargetPath,
    WORKSPACE_OWNER, WorkspaceSpec,
};
