//! The owners of all background tasks: connections and processes.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::task::{JoinError, JoinSet};

use super::log;

/// Tasks that end when the daemon does, or all together before it.
pub(super) struct DaemonTasks(Mutex<Option<JoinSet<()>>>);

impl Default for DaemonTasks {
    fn default() -> Self {
        Self(Mutex::new(Some(JoinSet::new())))
    }
}

impl DaemonTasks {
    /// Runs a task until it ends by itself or all are cut off; after that it is dropped at once.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = lock(&self.0);
        let Some(set) = tasks.as_mut() else { return };
        while let Some(ended) = set.try_join_next() {
            log_fault(ended);
        }
        set.spawn(task);
    }

    /// Cuts all tasks off where they are, for good. Everything they held is dropped when this returns.
    pub(super) async fn cut_off(&self) {
        let set = lock(&self.0).take();
        let Some(mut set) = set else { return };
        set.abort_all();
        while let Some(ended) = set.join_next().await {
            log_fault(ended);
        }
    }
}

fn log_fault(ended: Result<(), JoinError>) {
    if let Err(error) = ended
        && !error.is_cancelled()
    {
        log!("a task failed: {error}");
    }
}

/// Locks, also after a panic elsewhere: no invariant here spans several statements.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
