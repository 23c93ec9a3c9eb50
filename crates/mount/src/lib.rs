//! Mount drivers: how a part of a bucket becomes a directory.
//!
//! A driver is a pure function from a [`Mount`] and [`Credentials`] to a [`MountPlan`]: the command line,
//! the environment and the file with the key. Who starts the program, where, and with which privileges
//! is the caller's business: `init` inside a sandbox does it in its own root (design 6.1). What a program prints when
//! it fails is read back into a [`MountErrorKind`] that says what to do.

mod mount_error;
mod plan;
mod s3fs;

pub use mount_error::MountErrorKind;
pub use plan::{
    ATTRIBUTES_LIMIT, Credentials, KeyFile, LISTING_LIMIT, Mount, MountPaths, MountPlan, page, plan,
};
