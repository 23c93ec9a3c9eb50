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

/// Runs what may block in the kernel on the pool.
///
/// # Panics
/// If `work` panics, or the runtime is ending (then this task is dropped before it is polled again).
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        // Only the runtime's end cancels this work, and it drops the waiting task as well.
        Err(_) => std::future::pending().await,
    }
}
