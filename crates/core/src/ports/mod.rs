//! What the scheduler needs from the outside: a container engine, the executors in its containers, an object
//! store. Each is a trait with two tenants, the real one and the one that tests script.

mod engine;
mod executor;
mod objects;
mod runtime;

pub use engine::{Engine, EngineFacts};
pub use executor::{Claim, ExecutorClient, ExecutorError, Flushed};
pub use objects::{WorkspaceError, Workspaces};
pub use runtime::{
    ContainerSpec, ContainerState, DiskSpace, ImageFacts, Instance, Profile, Runtime, RuntimeError,
    RuntimeEvent,
};
