//! Which multipart uploads are being written or completed at this moment. Those never expire.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The uploads in use. Clones are the same.
#[derive(Clone, Debug, Default)]
pub(super) struct UploadUses {
    state: Arc<Mutex<UsesState>>,
}

#[derive(Debug, Default)]
struct UsesState {
    /// How many requests use each upload.
    used: HashMap<String, usize>,
    /// The uploads that a transaction removes just now: nobody may begin to use them.
    expiring: HashSet<String>,
}

impl UploadUses {
    fn state(&self) -> MutexGuard<'_, UsesState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the upload from expiring while the result lives; `None` if it expires just now.
    pub(super) fn begin(&self, upload: &str) -> Option<UploadUse> {
        let mut state = self.state();
        if state.expiring.contains(upload) {
            return None;
        }
        *state.used.entry(upload.to_owned()).or_default() += 1;
        Some(UploadUse { uses: self.clone(), upload_id: upload.to_owned() })
    }

    /// Takes those uploads that nobody uses, `most` of them at most, and lets nobody use them until
    /// [`Self::expired`].
    pub(super) fn expire(&self, uploads: Vec<String>, most: usize) -> Vec<String> {
        let mut state = self.state();
        let unused = uploads.into_iter().filter(|upload| !state.used.contains_key(upload));
        let taken: Vec<String> = unused.take(most).collect();
        state.expiring.extend(taken.iter().cloned());
        taken
    }

    /// The transaction is over: what it removed is not in the index any more.
    pub(super) fn expired(&self) {
        self.state().expiring.clear();
    }
}

/// An upload is being written or completed.
#[derive(Debug)]
pub(super) struct UploadUse {
    uses: UploadUses,
    upload_id: String,
}

impl UploadUse {
    pub(super) fn upload_id(&self) -> &str {
        &self.upload_id
    }
}

impl Drop for UploadUse {
    fn drop(&mut self) {
        let mut state = self.uses.state();
        if let Some(users) = state.used.get_mut(&self.upload_id) {
            *users -= 1;
            if *users == 0 {
                state.used.remove(&self.upload_id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_does_not_expire_and_what_expires_is_not_used() {
        let uses = UploadUses::default();
        let both = || vec!["a".to_owned(), "b".to_owned()];
        let (first, second) = (uses.begin("a"), uses.begin("a"));
        assert_eq!(uses.expire(both(), 9), ["b"]);
        assert!(uses.begin("b").is_none());
        uses.expired();
        assert!(uses.begin("b").is_some());
        drop(first);
        assert_eq!(uses.expire(both(), 9), ["b"]);
        uses.expired();
        drop(second);
        assert_eq!(uses.expire(both(), 1), ["a"]);
        uses.expired();
        assert!(uses.state().used.is_empty());
    }
}
