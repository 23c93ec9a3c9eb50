//! Workspaces: which part of which bucket appears where in a sandbox (design 6).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::SessionId;

/// A workspace specification that cannot be honoured; the text names the member at fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid {member} '{value}': {rule}")]
pub struct InvalidWorkspace {
    /// The member at fault.
    pub member: &'static str,
    /// Its value.
    pub value: String,
    /// The rule it breaks.
    pub rule: &'static str,
}

impl InvalidWorkspace {
    fn new(member: &'static str, value: &str, rule: &'static str) -> Self {
        Self { member, value: value.chars().take(64).collect(), rule }
    }
}

macro_rules! checked_text {
    ($name:ident) => {
        impl $name {
            /// The value as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl TryFrom<String> for $name {
            type Error = InvalidWorkspace;
            fn try_from(text: String) -> Result<Self, Self::Error> {
                text.parse()
            }
        }
        impl From<$name> for String {
            fn from(value: $name) -> Self {
                value.0
            }
        }
    };
}

/// A bucket: 3 to 63 characters of `[a-z0-9.-]`, a letter or digit at both ends (S3's own rule).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BucketName(String);
checked_text!(BucketName);

impl FromStr for BucketName {
    type Err = InvalidWorkspace;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let plain = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let bytes = text.as_bytes();
        let ok = (3..=63).contains(&bytes.len())
            && bytes.iter().all(|b| plain(b) || b".-".contains(b))
            && bytes.first().is_some_and(plain)
            && bytes.last().is_some_and(plain)
            && !text.contains("..");
        if ok {
            return Ok(Self(text.to_owned()));
        }
        let rule = "a bucket name has 3 to 63 characters of [a-z0-9.-] and begins and ends with a \
                    letter or digit";
        Err(InvalidWorkspace::new("bucket", text, rule))
    }
}

/// The part of a bucket that a mount shows: key segments that each end in `/`, so that a prefix test
/// can never match a neighbour (`sessions/a/` does not cover `sessions/ab/`). Never empty: a grant
/// for a whole bucket is not a workspace.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct KeyPrefix(String);
checked_text!(KeyPrefix);

impl KeyPrefix {
    /// The prefix of a session's workspace, `sessions/<id>/`: those of the installation's own team.
    pub fn session(session: &SessionId) -> Self {
        Self(format!("sessions/{session}/"))
    }

    /// The same for any team, `teams/<slug>/sessions/<id>/`, so that names never clash.
    ///
    /// # Errors
    /// [`InvalidWorkspace`] if the slug cannot stand in a prefix.
    pub fn team_session(slug: &str, session: &SessionId) -> Result<Self, InvalidWorkspace> {
        format!("teams/{slug}/sessions/{session}/").parse()
    }

    /// Whether `key` lies inside. The prefix's own marker object (the key equal to it) does.
    pub fn covers(&self, key: &str) -> bool {
        key.starts_with(&self.0)
    }
}

impl FromStr for KeyPrefix {
    type Err = InvalidWorkspace;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let rule = "a prefix is one or more segments that each end in '/', none of them empty, '.' \
                    or '..', 900 bytes at most and without control characters";
        let refused = || Err(InvalidWorkspace::new("prefix", text, rule));
        let Some(body) = text.strip_suffix('/') else {
            return refused();
        };
        let segment_ok = |s: &str| !matches!(s, "" | "." | "..");
        if text.len() > 900
            || text.chars().any(char::is_control)
            || !body.split('/').all(segment_ok)
        {
            return refused();
        }
        Ok(Self(text.to_owned()))
    }
}

/// Where a mount appears in the sandbox: an absolute path without `.`, `..`, empty segments or
/// control characters, and not below what the sandbox itself needs.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TargetPath(String);
checked_text!(TargetPath);

impl TargetPath {
    /// Puts the session in the place of `{session_id}`.
    ///
    /// # Errors
    /// [`InvalidWorkspace`] if the result is no target any more (too long).
    pub fn for_session(&self, session: &SessionId) -> Result<Self, InvalidWorkspace> {
        self.0.replace("{session_id}", session.as_str()).parse()
    }
}

impl FromStr for TargetPath {
    type Err = InvalidWorkspace;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let rule = "a target is an absolute path of at most 512 bytes without '.', '..', empty \
                    segments or control characters, and not below /proc, /sys, /dev or /.sandyard";
        let Some(body) = text.strip_prefix('/') else {
            return Err(InvalidWorkspace::new("target", text, rule));
        };
        let reserved = ["proc", "sys", "dev", ".sandyard"];
        let ok = text.len() <= 512
            && !text.chars().any(char::is_control)
            && body.split('/').all(|s| !matches!(s, "" | "." | ".."))
            && !body.split('/').next().is_some_and(|first| reserved.contains(&first));
        if ok {
            return Ok(Self(text.to_owned()));
        }
        Err(InvalidWorkspace::new("target", text, rule))
    }
}

/// What a sandbox may do with a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Access {
    /// Reads only; the gateway refuses writes as well.
    ReadOnly,
    /// Reads and writes.
    ReadWrite,
}

/// The program that makes the mount (design 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MountDriver {
    /// s3fs 1.90: a closed file is in the store.
    S3fs,
}

impl fmt::Display for MountDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::S3fs => "s3fs",
        })
    }
}

/// Where the driver keeps file contents locally. It must hold the largest file: a file larger than
/// the cache fails to be written (design 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Cache {
    /// An anonymous volume of the engine on its disk, trimmed to about `limit_mib` of files that are
    /// not open.
    Disk {
        /// Size in MiB above which closed files are dropped.
        limit_mib: u32,
    },
    /// Memory, counted against the sandbox's memory limit.
    Tmpfs {
        /// Size in MiB.
        size_mib: u32,
    },
}

/// Owner and group of everything in a workspace: the user of the templates (design 3).
pub const WORKSPACE_OWNER: u32 = 1000;

/// One mount of a workspace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountSpec {
    /// The bucket.
    pub bucket: BucketName,
    /// The part of it that is shown.
    pub prefix: KeyPrefix,
    /// Where it appears.
    pub target: TargetPath,
    /// What the sandbox may do with it.
    pub access: Access,
    /// Who makes it.
    pub driver: MountDriver,
    /// Directories below the prefix that exist when the first command runs.
    pub directories: Vec<String>,
}

/// All mounts of one sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkspaceSpec {
    /// The session the workspace belongs to.
    pub session: SessionId,
    /// The mounts, in the order they are made.
    pub mounts: Vec<MountSpec>,
}

impl WorkspaceSpec {
    /// The short form of a workspace: `session = <id>` (design 6).
    pub fn for_session(
        session: SessionId,
        bucket: BucketName,
        prefix: KeyPrefix,
        target: TargetPath,
    ) -> Self {
        let mount = MountSpec {
            bucket,
            prefix,
            target,
            access: Access::ReadWrite,
            driver: MountDriver::S3fs,
            directories: vec!["uploads".to_owned(), "artifacts".to_owned()],
        };
        Self { session, mounts: vec![mount] }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_prefix_never_covers_a_neighbour() {
        let prefix = KeyPrefix::session(&"a".parse().expect("valid"));
        assert!(prefix.covers("sessions/a/x"));
        assert!(prefix.covers("sessions/a/"));
        for outside in ["sessions/ab/x", "sessions/a", "sessions/", "", "/sessions/a/x"] {
            assert!(!prefix.covers(outside), "{outside}");
        }
    }

    #[test]
    fn prefixes_that_could_climb_or_match_all_are_refused() {
        for bad in ["", "/", "a", "/a/", "a//b/", "a/../b/", "./", "../", "a/\n/"] {
            assert!(bad.parse::<KeyPrefix>().is_err(), "{bad:?}");
        }
        assert!("threads/t-1/".parse::<KeyPrefix>().is_ok());
    }

    #[test]
    fn targets_stay_out_of_what_the_sandbox_needs() {
        for bad in ["", "/", "x", "/a/../b", "/proc/1", "/sys", "/dev/x", "/.sandyard/run", "//a"] {
            assert!(bad.parse::<TargetPath>().is_err(), "{bad:?}");
        }
        let target: TargetPath = "/workspace/sessions/{session_id}".parse().expect("valid");
        let session = "s1".parse().expect("valid");
        assert_eq!(target.for_session(&session).expect("valid").as_str(), "/workspace/sessions/s1");
    }

    #[test]
    fn a_deserialized_value_is_checked_like_a_parsed_one() {
        assert!(serde_json::from_str::<BucketName>("\"UPPER\"").is_err());
        assert!(serde_json::from_str::<KeyPrefix>("\"../\"").is_err());
        let bucket: BucketName = serde_json::from_str("\"sandyard\"").expect("valid");
        assert_eq!(serde_json::to_string(&bucket).expect("serializes"), "\"sandyard\"");
    }

    proptest! {
        #[test]
        fn covered_keys_start_with_all_of_the_prefix(prefix in "[a-z]{1,5}(/[a-z]{1,5}){0,2}/", key in "[a-z/]{0,20}") {
            let prefix: KeyPrefix = prefix.parse().expect("valid");
            prop_assert_eq!(prefix.covers(&key), key.starts_with(prefix.as_str()));
        }
    }
}
