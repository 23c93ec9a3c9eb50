//! Mount drivers: how a part of a bucket becomes a directory.
//!
//! A driver is a pure function from a mount call to a [`Plan`]: the command line, the environment and
//! the file with the key. Who starts the program, where, and with which privileges is the caller's
//! business: `init` inside a sandbox does it in its own root (design 6.1). What a program prints when
//! it fails is read back into a [`Trouble`] that says what to do.

mod plan;
mod s3fs;
mod trouble;

pub use plan::{ATTRIBUTES_LIMIT, KeyFile, LISTING_LIMIT, Places, Plan, page, plan};
pub use trouble::Trouble;
