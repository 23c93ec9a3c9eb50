//! What must outlive the server: sandboxes and their end times, sessions, teams and keys, the catalogue of
//! templates. SQLite, one file in the data folder. One file here for each repository.

mod accounts;
mod catalogue;
mod sandboxes;
mod sessions;

use std::fmt::Display;
use std::fs::{OpenOptions, Permissions};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};

pub use accounts::{ApiKeyHash, FIRST_TEAM, Team};
pub(crate) use catalogue::{StoredBuild, StoredTemplate};
pub(crate) use sandboxes::{SandboxRecord, Stage};

/// Why the store did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The data base refused or failed.
    #[error("the store failed to {call}")]
    Database {
        /// What was tried.
        call: &'static str,
        /// What the data base said.
        source: sqlx::Error,
    },
    /// Its file cannot be kept from other users of the machine.
    #[error("cannot keep the store's file {} for its owner alone", file.display())]
    File {
        /// Which.
        file: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The data base is from a newer version, or damaged.
    #[error("the store cannot be brought to this version's form")]
    Migration(#[from] sqlx::migrate::MigrateError),
    /// A row holds what this version cannot read.
    #[error("the store's record of {what} is not readable: {reason}")]
    Corrupt {
        /// Which record.
        what: String,
        /// Why.
        reason: String,
    },
}

/// Connections for reading, so that looking up a key never waits for a create's fsync.
const READERS: u32 = 4;

/// The store. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {
    writer: SqlitePool,
    readers: SqlitePool,
}

/// Turns a data base error into ours, naming what was tried.
fn failed(call: &'static str) -> impl Fn(sqlx::Error) -> StoreError {
    move |source| StoreError::Database { call, source }
}

fn corrupt(what: &str, reason: &dyn Display) -> StoreError {
    StoreError::Corrupt { what: format!("'{what}'"), reason: reason.to_string() }
}

fn to_json<T: serde::Serialize>(what: &str, value: &T) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|error| corrupt(what, &error))
}

/// It holds what clients gave their sandboxes as variables. SQLite gives the files beside it the same mode.
fn keep_private(file: &Path) -> std::io::Result<()> {
    let opened = OpenOptions::new().create(true).append(true).mode(0o600).open(file)?;
    opened.set_permissions(Permissions::from_mode(0o600))
}

impl Store {
    /// Opens the store in `file`, making it or bringing it to this version's form.
    ///
    /// # Errors
    /// [`StoreError`] if the file cannot be opened or is from a newer version.
    pub async fn open(file: &Path) -> Result<Self, StoreError> {
        keep_private(file).map_err(|source| StoreError::File { file: file.to_owned(), source })?;
        let options = SqliteConnectOptions::new()
            .filename(file)
            .journal_mode(SqliteJournalMode::Wal)
            // An answered create must survive a power cut: its container would otherwise be removed
            // as nobody's.
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(Duration::from_secs(10));
        let writer = SqlitePoolOptions::new()
            // SQLite has one writer; more connections would only wait for each other.
            .max_connections(1)
            .connect_with(options.clone())
            .await
            .map_err(failed("open its file"))?;
        sqlx::migrate!().run(&writer).await?;
        let readers = SqlitePoolOptions::new()
            .max_connections(READERS)
            .connect_with(options.read_only(true))
            .await
            .map_err(failed("open its file for reading"))?;
        Ok(Self { writer, readers })
    }

    /// Closes the data base, so that its file is whole on disk.
    pub async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) async fn open() -> anyhow::Result<(tempfile::TempDir, Store)> {
        let folder = tempfile::tempdir()?;
        let store = Store::open(&folder.path().join("store.db")).await?;
        Ok((folder, store))
    }

    #[tokio::test]
    async fn a_file_that_is_no_data_base_is_an_error_that_says_so() -> anyhow::Result<()> {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("store.db");
        std::fs::write(&file, "not a data base, but long enough to be taken for one".repeat(100))?;
        let opened = Store::open(&file).await;
        assert!(matches!(opened, Err(StoreError::Database { .. })), "{opened:?}");
        Ok(())
    }
}
