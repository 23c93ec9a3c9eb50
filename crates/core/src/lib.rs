//! The scheduler: which sandboxes exist, what may be done with them, and when they end.
//!
//! It knows no container engine, no HTTP and no object store: those are behind [`Runtime`],
//! [`ExecutorClient`] and [`Workspaces`]. The engine's objects are the truth for what runs, the
//! [`Store`] for what should run and until when; [`Scheduler::start`] brings the two together.
#![deny(missing_docs)]

mod catalogue;
mod events;
mod pool;
mod ports;
mod sandbox;
mod scheduler;
mod store;
mod time_text;
mod workspace;

pub use catalogue::{
    Catalogue, DEFAULT_TAG, DeleteRefusal, InvalidReference, InvalidSnapshotName, Snapshot,
    SnapshotFilter, TemplateReference, UnknownTemplate,
};
pub use events::{EndReason, Event, SandboxEvent};
pub use pool::{IDLE_INTERPRETER_MIB, IDLE_MIB, PoolReport, PoolSettings};
pub use ports::{
    Claim, ContainerSpec, ContainerState, DiskSpace, Engine, EngineFacts, ExecutorClient,
    ExecutorError, Flushed, ImageFacts, Instance, Profile, Runtime, RuntimeError, RuntimeEvent,
    WorkspaceError, Workspaces,
};
pub use sandbox::{Connected, CreateSandbox, Op, Sandbox, SandboxState, TransitionPlan};
pub use scheduler::{
    Limits, NewSandbox, ReachableWorkspace, SandboxError, Scheduler, SchedulerParts, ShutdownReport,
};
pub use store::{ApiKeyHash, FIRST_TEAM, Store, StoreError, Team};
pub use time_text::now;
