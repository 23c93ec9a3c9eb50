//! A sandbox whose client does not know of it yet.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};
use tracing::warn;

use crate::events::EndReason;
use crate::sandbox::{Request, Sandbox};

/// A sandbox that was just made and whose client does not know of it yet. Dropped without [`NewSandbox::keep`] it
/// ends: nobody could ever use it.
#[derive(Debug)]
pub struct NewSandbox {
    sandbox: Arc<Sandbox>,
    abandon: Option<mpsc::Sender<Request>>,
}

impl NewSandbox {
    pub(crate) fn new(sandbox: Arc<Sandbox>, driver: mpsc::Sender<Request>) -> Self {
        Self { sandbox, abandon: Some(driver) }
    }

    /// The sandbox, whose client is told of it now.
    pub fn keep(mut self) -> Arc<Sandbox> {
        self.abandon = None;
        self.sandbox.clone()
    }

    /// The sandbox, before it is kept.
    pub fn sandbox(&self) -> &Arc<Sandbox> {
        &self.sandbox
    }
}

impl Drop for NewSandbox {
    fn drop(&mut self) {
        if let Some(driver) = self.abandon.take() {
            let (answer, _nobody) = oneshot::channel();
            let request = Request::Kill { reason: EndReason::Abandoned, answer };
            // The queue of a sandbox that nobody knows is empty.
            if driver.try_send(request).is_err() {
                warn!(sandbox.id = %self.sandbox.id, "a sandbox that nobody knows of lives to its end time");
            }
        }
    }
}
