//! What an access key may do, and the decisions that follow from it. Pure: no request, no store.

use std::net::IpAddr;

use s3s::auth::SecretKey;
use sandyard_types::{Access, BucketName, KeyPrefix, SandboxId};

/// Where grants come from; the server answers from the scheduler's state.
pub trait GrantSource: Send + Sync + 'static {
    /// The grant of an access key, or `None` if there is no such key (any more). Asked on every
    /// request, before its signature is checked: it must not block.
    fn grant(&self, access_key_id: &str) -> Option<Grant>;

    /// Whether a key without a grant is really unknown. While this is `false` (the server has just
    /// started and does not know its sandboxes yet) such a key is answered 503, which drivers try
    /// again; a 403 they pass on to programs as an error, or as an empty file.
    fn is_ready(&self) -> bool {
        true
    }
}

/// Who holds a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GrantOwner {
    /// A sandbox; its requests are counted.
    Sandbox(SandboxId),
    /// Whoever runs the installation.
    Installation,
}

/// A part of the store that a grant opens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrantScope {
    /// The bucket.
    pub bucket: BucketName,
    /// The part of it; `None` is all of it, and only for the installation's own key.
    pub prefix: Option<KeyPrefix>,
    /// What may be done there.
    pub access: Access,
}

impl GrantScope {
    fn covers(&self, bucket: &str, key: &str) -> bool {
        self.bucket.as_str() == bucket
            && self.prefix.as_ref().is_none_or(|prefix| prefix.covers(key))
    }
}

/// What an access key stands for. Where scopes overlap, a key may be written if any of them says so:
/// a sandbox has one key for all its mounts.
#[derive(Clone, Debug)]
pub struct Grant {
    /// The secret that signs.
    pub secret: SecretKey,
    /// Who holds the key.
    pub owner: GrantOwner,
    /// The only address that it is good from; `None`: any.
    pub source: Option<IpAddr>,
    /// What it opens.
    pub scopes: Vec<GrantScope>,
}

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum GrantRefusal {
    #[error("the key has no access to this bucket")]
    Bucket,
    #[error("the key has no access to this part of the bucket")]
    Outside,
    #[error("the key has read-only access to this part of the bucket")]
    ReadOnly,
    #[error("object keys with the segments '.' or '..' are not accepted")]
    DotSegment,
}

/// How a list is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ListView {
    /// All that the list can name is granted.
    Inside,
    /// The list asks above what is granted: only these parts of it exist for this key. Sorted, and
    /// none inside another.
    Parts(Vec<KeyPrefix>),
}

impl Grant {
    /// Whether this key can see the bucket at all.
    pub(crate) fn check_bucket(&self, bucket: &str) -> Result<(), GrantRefusal> {
        if self.scopes.iter().any(|scope| scope.bucket.as_str() == bucket) {
            Ok(())
        } else {
            Err(GrantRefusal::Bucket)
        }
    }

    /// Whether the object may be read, or written where `need` says so.
    pub(crate) fn check_key(
        &self,
        bucket: &str,
        key: &str,
        need: Access,
    ) -> Result<(), GrantRefusal> {
        self.check_bucket(bucket)?;
        if has_dot_segment(key) {
            return Err(GrantRefusal::DotSegment);
        }
        let mut covering = self.scopes.iter().filter(|scope| scope.covers(bucket, key)).peekable();
        if covering.peek().is_none() {
            return Err(GrantRefusal::Outside);
        }
        match need {
            Access::ReadOnly => Ok(()),
            Access::ReadWrite if covering.any(|scope| scope.access == Access::ReadWrite) => Ok(()),
            Access::ReadWrite => Err(GrantRefusal::ReadOnly),
        }
    }

    /// What a list of `prefix` shows.
    pub(crate) fn list_view(&self, bucket: &str, prefix: &str) -> Result<ListView, GrantRefusal> {
        self.check_bucket(bucket)?;
        if has_dot_segment(prefix) {
            return Err(GrantRefusal::DotSegment);
        }
        let in_bucket = || self.scopes.iter().filter(|scope| scope.bucket.as_str() == bucket);
        if in_bucket().any(|scope| scope.covers(bucket, prefix)) {
            return Ok(ListView::Inside);
        }
        let mut below: Vec<KeyPrefix> = in_bucket()
            .filter_map(|scope| scope.prefix.clone())
            .filter(|granted| granted.as_str().starts_with(prefix))
            .collect();
        below.sort_by(|a, b| a.as_str().cmp(b.as_str()));
        below.dedup_by(|later, kept| kept.covers(later.as_str()));
        if below.is_empty() { Err(GrantRefusal::Outside) } else { Ok(ListView::Parts(below)) }
    }

    /// The buckets this key can see, each once.
    pub(crate) fn buckets(&self) -> Vec<&BucketName> {
        let mut buckets: Vec<_> = self.scopes.iter().map(|scope| &scope.bucket).collect();
        buckets.sort_by_key(|bucket| bucket.as_str());
        buckets.dedup();
        buckets
    }
}

/// A key is only a name to S3, but a store or proxy that treats it as a path would climb out of the
/// prefix with these. A backslash separates segments on some of them.
fn has_dot_segment(key: &str) -> bool {
    key.split(['/', '\\']).any(|segment| matches!(segment, "." | ".."))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn grant(scopes: &[(&str, Option<&str>, Access)]) -> Grant {
        let scope = |(bucket, prefix, access): &(&str, Option<&str>, Access)| GrantScope {
            bucket: bucket.parse().expect("valid"),
            prefix: prefix.map(|p| p.parse().expect("valid")),
            access: *access,
        };
        Grant {
            secret: SecretKey::from("secret"),
            owner: GrantOwner::Installation,
            source: None,
            scopes: scopes.iter().map(scope).collect(),
        }
    }

    fn parts(prefixes: &[&str]) -> ListView {
        ListView::Parts(prefixes.iter().map(|p| p.parse().expect("valid")).collect())
    }

    #[test]
    fn keys_outside_the_prefix_bucket_or_access_are_refused() {
        let grant = grant(&[
            ("one", Some("sessions/a/"), Access::ReadWrite),
            ("one", Some("skills/"), Access::ReadOnly),
        ]);
        assert_eq!(grant.check_key("one", "sessions/a/x", Access::ReadWrite), Ok(()));
        assert_eq!(grant.check_key("one", "sessions/a/", Access::ReadWrite), Ok(()));
        assert_eq!(grant.check_key("one", "skills/x", Access::ReadOnly), Ok(()));
        let refused = [
            ("one", "skills/x", Access::ReadWrite, GrantRefusal::ReadOnly),
            ("one", "sessions/ab/x", Access::ReadOnly, GrantRefusal::Outside),
            ("one", "sessions/a", Access::ReadOnly, GrantRefusal::Outside),
            ("one", "/sessions/a/x", Access::ReadOnly, GrantRefusal::Outside),
            ("one", "", Access::ReadOnly, GrantRefusal::Outside),
            ("two", "sessions/a/x", Access::ReadOnly, GrantRefusal::Bucket),
            ("one", "sessions/a/../b/x", Access::ReadOnly, GrantRefusal::DotSegment),
            ("one", "sessions/a/..", Access::ReadOnly, GrantRefusal::DotSegment),
            ("one", "sessions/a/..\\b", Access::ReadOnly, GrantRefusal::DotSegment),
            ("one", "sessions/a/./b", Access::ReadOnly, GrantRefusal::DotSegment),
        ];
        for (bucket, key, need, why) in refused {
            assert_eq!(grant.check_key(bucket, key, need), Err(why), "{bucket} {key}");
        }
    }

    #[test]
    fn a_list_above_the_grant_shows_the_grants_parts_only() {
        let grant = grant(&[
            ("one", Some("threads/t/"), Access::ReadWrite),
            ("one", Some("skills/u/"), Access::ReadOnly),
            ("one", Some("skills/u/deep/"), Access::ReadOnly),
        ]);
        assert_eq!(grant.list_view("one", ""), Ok(parts(&["skills/u/", "threads/t/"])));
        assert_eq!(grant.list_view("one", "threads"), Ok(parts(&["threads/t/"])));
        assert_eq!(grant.list_view("one", "threads/t"), Ok(parts(&["threads/t/"])));
        assert_eq!(grant.list_view("one", "threads/t/"), Ok(ListView::Inside));
        assert_eq!(grant.list_view("one", "threads/t/x"), Ok(ListView::Inside));
        assert_eq!(grant.list_view("one", "threads/u"), Err(GrantRefusal::Outside));
        assert_eq!(grant.list_view("two", ""), Err(GrantRefusal::Bucket));
        assert_eq!(grant.list_view("one", "threads/t/../u"), Err(GrantRefusal::DotSegment));
    }

    #[test]
    fn the_whole_bucket_is_one_bucket() {
        let grant = grant(&[("one", None, Access::ReadWrite)]);
        assert_eq!(grant.check_key("one", "any", Access::ReadWrite), Ok(()));
        assert_eq!(grant.list_view("one", ""), Ok(ListView::Inside));
        assert_eq!(grant.check_key("two", "any", Access::ReadOnly), Err(GrantRefusal::Bucket));
    }

    proptest! {
        #[test]
        fn what_is_accepted_begins_with_the_prefix_and_cannot_climb(
            prefix in "[ab]{1,2}(/[ab]{1,2}){0,2}/",
            key in "[ab./\\\\]{0,14}",
            write: bool,
        ) {
            let grant = grant(&[("one", Some(&prefix), Access::ReadWrite)]);
            let need = if write { Access::ReadWrite } else { Access::ReadOnly };
            if grant.check_key("one", &key, need).is_ok() {
                prop_assert!(key.starts_with(&prefix));
                let resolved = key.replace('\\', "/");
                prop_assert!(!resolved.split('/').any(|s| s == ".." || s == "."));
            }
        }

        #[test]
        fn a_list_names_nothing_outside(
            prefixes in proptest::collection::vec("[ab]{1,2}(/[ab]{1,2}){0,2}/", 1..4),
            asked in "[ab/]{0,8}",
            key in "[ab/]{0,10}",
        ) {
            let scopes: Vec<_> =
                prefixes.iter().map(|p| ("one", Some(p.as_str()), Access::ReadOnly)).collect();
            let grant = grant(&scopes);
            let granted = prefixes.iter().any(|p| key.starts_with(p.as_str()));
            let in_list = key.starts_with(&asked);
            match grant.list_view("one", &asked) {
                Ok(ListView::Inside) => prop_assert!(!in_list || granted),
                Ok(ListView::Parts(parts)) => {
                    let shown = parts.iter().any(|part| part.covers(&key));
                    prop_assert_eq!(shown, in_list && granted);
                    prop_assert!(parts.windows(2).all(|w| !w[0].covers(w[1].as_str())));
                }
                Err(_) => prop_assert!(!(in_list && granted)),
            }
        }
    }
}
