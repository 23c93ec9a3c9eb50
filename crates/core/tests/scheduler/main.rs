//! The scheduler on an engine in memory: what it makes, what it leaves, what survives a restart.

mod catalogue;
mod crash;
mod create;
mod disk;
mod failures;
mod host;
mod life_cycle;
mod model;
mod pool;
mod restart;
mod times;
