//! The owner of all background tasks.

use std::sync::{Mutex, PoisonError};

use tokio::task::{JoinError, JoinSet};

/// Tasks that end with this.
#[derive(Debug, Default)]
pub(crate) struct InterpreterTasks(Mutex<JoinSet<()>>);

impl InterpreterTasks {
    /// Runs a task until it ends by itself.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(ended) = tasks.try_join_next() {
            report(ended);
        }
        tasks.spawn(task);
    }
}

fn report(ended: Result<(), JoinError>) {
    if let Err(error) = ended
        && !error.is_cancelled()
    {
        crate::log!("a task failed: {error}");
    }
}
