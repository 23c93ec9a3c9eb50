//! The scheduler: which sandboxes exist, what may be done with them, and when they end.
//!
//! It knows no container engine, no HTTP and no object store: those are behind [`Runtime`],
//! [`ExecutorClient`] and [`Workspaces`]. The engine's objects are the truth for what runs, the
//! [`Store`] for what should run and until when; [`Scheduler::start`] brings the two together.
#![deny(missing_docs)]

mod executor;
mod lifecycle;
mod runtime;
mod scheduler;
mod store;
mod templates;
mod time_text;
mod workspaces;

pub use executor::{Claim, ExecutorClient, ExecutorError, Flushed};
pub use lifecycle::{Op, Plan, State};
pub use runtime::{
    ContainerSpec, DiskSpace, ImageFacts, Instance, Profile, Runtime, RuntimeError, RuntimeEvent,
};
pub use scheduler::{
    CreateSandbox, Limits, ReachableWorkspace, Sandbox, SandboxError, Scheduler, SchedulerParts,
    ShutdownReport,
};
pub use store::{ApiKeyHash, FIRST_TEAM, Store, StoreError, Team};
pub use templates::{InvalidReference, TemplateReference, Templates, UnknownTemplate};
pub use time_text::now;
pub use workspaces::{WorkspaceError, Workspaces};
