//! What has to be run for a mount, independent of the driver.

use std::time::Duration;

use sandyard_types::{Access, BucketName, Cache, KeyPrefix, MountDriver, Secret};

use crate::s3fs;

/// How long the first listing may take after the root directory answered. A program that lists a
/// large prefix slowly is not broken, so the mount counts as ready when this is over.
pub const LISTING_LIMIT: Duration = Duration::from_secs(2);

/// What is to be mounted, and how. No credential is in it.
#[derive(Clone, Copy, Debug)]
pub struct Mount<'a> {
    /// The bucket.
    pub bucket: &'a BucketName,
    /// The part of it that is shown.
    pub prefix: &'a KeyPrefix,
    /// Read-only or writable.
    pub access: Access,
    /// The program that makes it.
    pub driver: MountDriver,
    /// Owner shown on every file.
    pub uid: u32,
    /// Group shown on every file.
    pub gid: u32,
    /// Local cache of the driver.
    pub cache: Cache,
}

/// The store as the program reaches it, and the key that opens it there.
#[derive(Clone, Copy, Debug)]
pub struct Credentials<'a> {
    /// Base URL, `http://host:port`.
    pub endpoint: &'a str,
    /// Id of the key.
    pub access_key_id: &'a str,
    /// Its secret.
    pub secret_access_key: &'a Secret,
}

/// Paths that the starter of the program has prepared, as the program sees them.
#[derive(Clone, Copy, Debug)]
pub struct MountPaths<'a> {
    /// Empty directory to mount on.
    pub mount_point: &'a str,
    /// Directory for cached file contents, used by no other program: the drivers name cache files by
    /// bucket and path below the prefix, so two mounts of one bucket would share them.
    pub cache: &'a str,
}

/// A program to start for one mount. It stays in the foreground; the mount lives as long as it does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountPlan {
    /// Path of the program in the root it is started in.
    pub program: &'static str,
    /// Arguments after the program's name.
    pub arguments: Vec<String>,
    /// The whole environment, names and values.
    pub environment: Vec<(&'static str, &'static str)>,
    /// A library that the environment has the loader put into the program. Where it is missing the loader
    /// goes on without, so whoever starts the program has to look: it must not run unprotected.
    pub preload: &'static str,
    /// The key, to be readable at a descriptor while the program starts.
    pub key: KeyFile,
    /// Directories below the cache that must exist, be empty and take no writes.
    pub sealed: Vec<String>,
    /// Source in the mount table.
    pub source: String,
}

/// A file that the program reads its key from, once, when it starts. It never has a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyFile {
    /// Descriptor number at which the program expects it.
    pub descriptor: i32,
    /// What it holds.
    pub content: Secret,
}

/// The memory that a program's preloaded library shares with the starter of the program: a file of
/// [`page::BYTES`], never cut, that holds numbers of 64 bits in the machine's byte order.
pub mod page {
    /// Descriptor number at which the library expects it.
    pub const DESCRIPTOR: i32 = 4;

    /// Length of the file in bytes.
    pub const BYTES: u64 = 4096;

    /// Where the library counts the bytes that are written and not in the store. A byte that is written twice
    /// counts twice.
    pub const UNSENT_AT: u64 = 0;

    /// Where the library counts the bytes that were given up after the last close of their file.
    pub const LOST_AT: u64 = 8;

    /// Where the starter writes how many nanoseconds the program's clock for cached attributes is ahead.
    pub const CLOCK_AHEAD_AT: u64 = 16;
}

/// What is older in a program's cache of attributes is asked for again.
pub const ATTRIBUTES_LIMIT: Duration = Duration::from_secs(5);

/// The program for a mount.
pub fn plan(mount: &Mount<'_>, credentials: &Credentials<'_>, places: MountPaths<'_>) -> MountPlan {
    match mount.driver {
        MountDriver::S3fs => s3fs::plan(mount, credentials, places),
    }
}
