//! What `sandyard` can be told to do.

pub mod client;
pub mod doctor;
pub mod down;
pub mod env;
pub mod gc;
pub mod sandboxes;
pub mod team;
pub mod up;
