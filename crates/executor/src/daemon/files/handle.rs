//! An open file of a request.

use std::fs::File;
use std::ops::Deref;

use super::super::pool;

/// A file that is closed on the pool, wherever its request ends: closing waits for the file system,
/// which may be a program that no longer answers.
pub(super) struct Handle(Option<File>);

impl Handle {
    pub(super) fn new(file: File) -> Self {
        Self(Some(file))
    }

    /// Closes the file now. Blocks.
    pub(super) fn close(mut self) {
        drop(self.0.take());
    }
}

impl Deref for Handle {
    type Target = File;
    fn deref(&self) -> &File {
        match &self.0 {
            Some(file) => file,
            None => unreachable!("it is there until it is closed"),
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if let Some(file) = self.0.take() {
            drop(pool::run(move || drop(file)));
        }
    }
}
