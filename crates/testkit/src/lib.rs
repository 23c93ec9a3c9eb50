//! For tests only: a container engine, an object store and executors that exist in memory, do as they
//! are told, and remember what was asked of them.

mod daemon;
mod engine;

pub use daemon::{FakeDaemon, SeenRequest};
pub use engine::{Behaviour, EngineCall, FakeEngine};
