//! The owner of everything that runs beside the accept loop: connections and processes.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::task::JoinSet;

use super::log;

/// Tasks that end when the daemon does.
#[derive(Default)]
pub(super) struct Tasks(Mutex<JoinSet<()>>);

impl Tasks {
    /// Runs a task until it ends by itself or the daemon does.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut set = lock(&self.0);
        while let Some(ended) = set.try_join_next() {
            if let Err(error) = ended {
                log!("a task failed: {error}");
            }
        }
        set.spawn(task);
    }
}

/// Locks, also after a panic elsewhere: no invariant here spans several statements.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
