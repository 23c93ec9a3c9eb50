//! One run of one mount's program, and its directories.

use std::fmt;

use super::boot::ROOT;

/// One run of the program of a slot. Each has its own mount point and cache, so that what is left of
/// a run that died cannot get into the way of the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MountRun {
    /// Number of the mount in this sandbox, never used twice.
    pub slot: usize,
    /// Number of the run.
    pub generation: u32,
}

impl MountRun {
    /// Where the program mounts, in its own root.
    pub(super) fn inner_mount_point(self) -> String {
        format!("/mnt/{self}")
    }

    /// The same directory, seen from `init`.
    pub(super) fn mount_point(self) -> String {
        format!("{ROOT}{}", self.inner_mount_point())
    }

    /// The program's cache, in its own root.
    pub(super) fn inner_cache(self) -> String {
        format!("/tmp/{self}")
    }

    /// The same directory, seen from `init`.
    pub(super) fn cache(self) -> String {
        format!("{ROOT}{}", self.inner_cache())
    }

    /// The run before this one.
    pub(super) fn before(self) -> Option<Self> {
        let generation = self.generation.checked_sub(1)?;
        Some(Self { generation, ..self })
    }
}

impl fmt::Display for MountRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.slot, self.generation)
    }
}
