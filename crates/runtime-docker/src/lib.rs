//! [`sandyard_core::Engine`] over the Docker Engine API, 1.41 (Docker 20.10) and later.
//!
//! Control goes through the engine, data never does: no exec, no attach, no copy on any request path
//! (design 4). The only crate that names bollard.
#![deny(missing_docs)]

mod bundle;
mod container;
mod engine;
mod error;
mod events;
mod images;
mod network;
mod seccomp;
mod states;

pub use bundle::Bundle;
pub use container::container_name;
pub use engine::{DockerRuntime, DockerSettings};
pub use error::DockerError;
