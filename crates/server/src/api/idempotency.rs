//! `Idempotency-Key` of a create (control-plane 3.3): a repetition gets the same sandbox. Results are kept
//! in memory, so a restart of the server forgets them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared, WeakShared};
use http::{HeaderMap, StatusCode};
use sandyard_core::Sandbox;
use sandyard_types::TeamId;
use sha2::{Digest as _, Sha256};

use super::create::Version;
use super::error::ApiError;

const HEADER: &str = "idempotency-key";
const MAX_LENGTH: usize = 255;
/// How long a result is kept.
const KEPT: Duration = Duration::from_secs(24 * 60 * 60);
/// How many results are kept; beyond that the oldest go.
const MAX_KEYS: usize = 10_000;

type Created = Result<Arc<Sandbox>, ApiError>;
type Creating = BoxFuture<'static, Created>;

/// What a key is good for: one team.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Name {
    team: TeamId,
    key: String,
}

/// A key and what it was sent with.
pub(super) struct Key {
    name: Name,
    fingerprint: [u8; 32],
}

impl Key {
    pub(super) fn new(name: Name, version: Version, body: &[u8]) -> Self {
        let mut hash = Sha256::new();
        hash.update(match version {
            Version::V1 => b"1",
            Version::V2 => b"2",
        });
        hash.update(body);
        Self { name, fingerprint: hash.finalize().into() }
    }
}

/// The key in the headers, if there is one.
pub(super) fn key_of(headers: &HeaderMap, team: TeamId) -> Result<Option<Name>, ApiError> {
    let Some(value) = headers.get(HEADER) else {
        return Ok(None);
    };
    let allowed = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-';
    let key = value
        .to_str()
        .ok()
        .filter(|key| (1..=MAX_LENGTH).contains(&key.len()) && key.as_bytes().iter().all(allowed))
        .ok_or_else(|| {
            ApiError::validation("Idempotency-Key", "it is 1 to 255 characters of [a-z0-9-]")
        })?;
    let key = key.to_owned();
    Ok(Some(Name { team, key }))
}

enum CreateProgress {
    /// Under way as long as anybody waits for it: a create that nobody waits for is undone.
    Running(WeakShared<Creating>),
    Done(Arc<Sandbox>),
}

struct KeyEntry {
    fingerprint: [u8; 32],
    since: Instant,
    outcome: CreateProgress,
}

/// The creates that were asked for with a key.
#[derive(Default)]
pub(super) struct Idempotency {
    entries: Mutex<HashMap<Name, KeyEntry>>,
}

impl Idempotency {
    /// Whole entries are put in and taken out, so a poisoned lock guards nothing half done.
    fn entries(&self) -> MutexGuard<'_, HashMap<Name, KeyEntry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The result of the create that was first asked for with this key. A failure is not kept: nothing of
    /// its sandbox is left, and the next request with the key tries again.
    pub(super) async fn once(
        &self,
        key: Key,
        create: impl Future<Output = Created> + Send + 'static,
    ) -> Created {
        let running = match self.join_or_start(&key, create)? {
            Joined::Done(sandbox) => return Ok(sandbox),
            Joined::Running(running) => running,
        };
        let created = running.clone().await;
        let mut entries = self.entries();
        let ours = |entry: &KeyEntry| match &entry.outcome {
            CreateProgress::Running(other) => other.upgrade().is_some_and(|o| o.ptr_eq(&running)),
            CreateProgress::Done(_) => false,
        };
        if let Some(entry) = entries.get_mut(&key.name).filter(|entry| ours(entry)) {
            match &created {
                Ok(sandbox) => entry.outcome = CreateProgress::Done(sandbox.clone()),
                Err(_) => {
                    entries.remove(&key.name);
                }
            }
        }
        created
    }

    fn join_or_start(
        &self,
        key: &Key,
        create: impl Future<Output = Created> + Send + 'static,
    ) -> Result<Joined, ApiError> {
        let mut entries = self.entries();
        if let Some(entry) = entries.get(&key.name) {
            let known = match &entry.outcome {
                CreateProgress::Done(sandbox) => {
                    (entry.since.elapsed() < KEPT).then(|| Joined::Done(sandbox.clone()))
                }
                CreateProgress::Running(running) => running.upgrade().map(Joined::Running),
            };
            if let Some(known) = known {
                if entry.fingerprint != key.fingerprint {
                    return Err(mismatch());
                }
                return Ok(known);
            }
        }
        let running = create.boxed().shared();
        make_room(&mut entries);
        if let Some(weak) = running.downgrade() {
            entries.insert(
                key.name.clone(),
                KeyEntry {
                    fingerprint: key.fingerprint,
                    since: Instant::now(),
                    outcome: CreateProgress::Running(weak),
                },
            );
        }
        Ok(Joined::Running(running))
    }
}

enum Joined {
    Running(Shared<Creating>),
    Done(Arc<Sandbox>),
}

fn make_room(entries: &mut HashMap<Name, KeyEntry>) {
    if entries.len() < MAX_KEYS {
        return;
    }
    entries.retain(|_, entry| entry.since.elapsed() < KEPT);
    while entries.len() >= MAX_KEYS {
        let oldest = entries.iter().min_by_key(|(_, entry)| entry.since);
        let Some(name) = oldest.map(|(name, _)| name.clone()) else {
            return;
        };
        entries.remove(&name);
    }
}

fn mismatch() -> ApiError {
    ApiError::new(
        StatusCode::UNPROCESSABLE_ENTITY,
        "this Idempotency-Key was used for a create with another body: choose a new key",
    )
    .with_error_code("idempotency_request_mismatch")
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn a_key_has_the_form_that_clients_check_too() {
        let team = TeamId::random();
        let read = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(HEADER, HeaderValue::from_str(value).expect("value"));
            key_of(&headers, team)
        };
        assert!(key_of(&HeaderMap::new(), team).expect("absent").is_none());
        assert!(read("a-1").expect("valid").is_some());
        assert!(read(&"a".repeat(255)).expect("valid").is_some());
        for bad in ["", "A", "a_b", "a b", &"a".repeat(256)] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn failures_are_not_kept_and_other_bodies_are_refused_while_one_runs() {
        let idempotency = Idempotency::default();
        let name = Name { team: TeamId::random(), key: "k".to_owned() };
        let key = |body: &[u8]| Key::new(name.clone(), Version::V2, body);
        let failure = || ApiError::bad_request("no");
        let first = idempotency.once(key(b"a"), async move { Err(failure()) });
        assert_eq!(first.await.err(), Some(failure()));
        assert!(idempotency.entries().is_empty());

        let (release, released) = tokio::sync::oneshot::channel::<()>();
        let slow = idempotency.once(key(b"a"), async move {
            drop(released.await);
            Err(failure())
        });
        let mut slow = std::pin::pin!(slow);
        assert!(futures::poll!(slow.as_mut()).is_pending());
        let other = idempotency.once(key(b"b"), async { unreachable!("refused before") });
        assert_eq!(other.await.err(), Some(mismatch()));
        let joined = idempotency.once(key(b"a"), async { unreachable!("joins the first") });
        let mut joined = std::pin::pin!(joined);
        assert!(futures::poll!(joined.as_mut()).is_pending());
        drop(release);
        assert_eq!(slow.await.err(), Some(failure()));
        assert_eq!(joined.await.err(), Some(failure()));
    }

    #[tokio::test]
    async fn a_create_that_nobody_waits_for_any_more_is_started_again() {
        let idempotency = Idempotency::default();
        let name = Name { team: TeamId::random(), key: "k".to_owned() };
        let key = || Key::new(name.clone(), Version::V2, b"a");
        {
            let left = idempotency.once(key(), std::future::pending());
            let mut left = std::pin::pin!(left);
            assert!(futures::poll!(left.as_mut()).is_pending());
        }
        let failure = ApiError::bad_request("second");
        let expected = failure.clone();
        let second = idempotency.once(key(), async move { Err(failure) }).await;
        assert_eq!(second.err(), Some(expected));
    }
}
