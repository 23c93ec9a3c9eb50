//! The embedded store: S3 on a folder of this server, for machines that have no other.
//!
//! ```text
//! <folder>/lock            held while the store is open: two servers would ruin each other's files
//! <folder>/index.sqlite    buckets, objects with their metadata, small contents, uploads
//! <folder>/objects/<xx>/   content files, named at random, never changed
//! ```
//!
//! A write is acknowledged when its content is synchronised and the index has committed it with
//! `synchronous=FULL`. Whatever a crash leaves half done is not in the index and removed at open.
//!
//! A fault of one file or one row is a fault of the objects that have it. Reading those fails with
//! 500 and says why; the key is still listed, and can be deleted and written anew.

mod change;
mod content;
mod index;
mod leases;
mod objects;
mod operations;
mod reading;
mod receive;
mod reconcile;
#[cfg(test)]
mod tests;
mod upload_uses;
mod uploads;
mod writer;

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use s3s::crypto::{Checksum as _, Md5};
use s3s::{S3Error, S3Result, s3_error};
use sandyard_types::BucketName;
use sqlx::ConnectOptions;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use self::change::{Applied, Change};
use self::content::{ContentFiles, Draft};
use self::leases::Unlink;
use self::upload_uses::UploadUses;
use self::writer::{ChangeMessage, IndexWriter};
use crate::backend::{DirectoryMarker, ObjectStore, ObjectStoreError};
use crate::listing::{ListingPage, PageRequest};

/// Changes that may wait for the writer before clients have to.
const QUEUE: usize = 256;
const READERS: u32 = 4;
/// Unfinished multipart uploads go when nobody wrote to them for so long. Whoever began one may have
/// died without a word, and its parts are in no list of objects. Seven days is what is commonly
/// chosen for this in the life-cycle rules of S3.
const UPLOAD_AGE: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// How often that is looked at while the store is open.
const EXPIRY_INTERVAL: Duration = Duration::from_secs(60 * 60);

/// What tests want otherwise.
struct EmbeddedOptions {
    upload_age: Duration,
    expiry_interval: Duration,
    unlink: Unlink,
}

impl Default for EmbeddedOptions {
    fn default() -> Self {
        Self {
            upload_age: UPLOAD_AGE,
            expiry_interval: EXPIRY_INTERVAL,
            unlink: Arc::new(|path: &Path| fs::remove_file(path)),
        }
    }
}

/// The data folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum EmbeddedError {
    /// A file operation failed.
    #[error("failed to {call} {path}")]
    File {
        /// What was tried.
        call: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// Another process has it open.
    #[error("object store {0} is in use by another process")]
    InUse(PathBuf),
    /// The index cannot be opened.
    #[error("failed to open the index {path}")]
    Index {
        /// The index file.
        path: PathBuf,
        /// Why.
        source: sqlx::Error,
    },
    /// The index cannot be brought to this version's form.
    #[error("failed to migrate the index {path}")]
    Migrate {
        /// The index file.
        path: PathBuf,
        /// Why.
        source: sqlx::migrate::MigrateError,
    },
    /// A change was refused or failed.
    #[error("the embedded object store failed to {call}: {message}")]
    Change {
        /// What was tried.
        call: &'static str,
        /// What the store says.
        message: String,
    },
}

/// Objects in a folder. Cheap to clone; the folder is released when the last clone is gone.
#[derive(Clone)]
pub struct Embedded {
    inner: Arc<EmbeddedParts>,
}

struct EmbeddedParts {
    folder: PathBuf,
    files: ContentFiles,
    readers: SqlitePool,
    uploads: UploadUses,
    changes: Mutex<Option<mpsc::Sender<ChangeMessage>>>,
    sender: mpsc::WeakSender<ChangeMessage>,
    /// The writer, and what unlinks files; the second ends after the first.
    tasks: Mutex<JoinSet<()>>,
    _lock: File,
}

impl Embedded {
    /// Opens the store in `folder`, which is made if it is missing, and removes what a crash left.
    /// Objects whose content is lost are logged; the store opens without them.
    ///
    /// # Errors
    /// [`EmbeddedError`]; [`EmbeddedError::InUse`] if another process has it open.
    pub async fn open(folder: &Path) -> Result<Self, EmbeddedError> {
        Self::open_with(folder, EmbeddedOptions::default()).await
    }

    async fn open_with(folder: &Path, options: EmbeddedOptions) -> Result<Self, EmbeddedError> {
        let EmbeddedOptions { upload_age, expiry_interval, unlink } = options;
        let (folder, lock, files) = tokio::task::spawn_blocking({
            let folder = folder.to_owned();
            move || prepare(folder)
        })
        .await
        .map_err(|error| EmbeddedError::Change { call: "open", message: error.to_string() })??;
        let path = folder.join("index.sqlite");
        let index = |source| EmbeddedError::Index { path: path.clone(), source };
        let options = SqliteConnectOptions::new()
            .filename(&path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(Duration::from_secs(5))
            .log_statements(tracing::log::LevelFilter::Trace);
        let db = options.connect().await.map_err(index)?;
        let pool = SqlitePoolOptions::new().max_connections(READERS);
        let readers = pool.connect_with(options).await.map_err(index)?;
        sqlx::migrate!("./migrations")
            .run(&readers)
            .await
            .map_err(|source| EmbeddedError::Migrate { path: path.clone(), source })?;
        let uploads = UploadUses::default();
        let mut writer = IndexWriter {
            db,
            leases: files.leases.clone(),
            uploads: uploads.clone(),
            upload_age,
            expiry_interval,
        };
        writer.expire_all().await;
        reconcile::reconcile(&files, &readers).await;

        let (sender, changes) = mpsc::channel(QUEUE);
        let writer_ended = CancellationToken::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(writer.run(changes, writer_ended.clone().drop_guard()));
        tasks.spawn(leases::unlink_free(files.clone(), unlink, writer_ended));
        let inner = EmbeddedParts {
            folder,
            files,
            readers,
            uploads,
            sender: sender.downgrade(),
            changes: Mutex::new(Some(sender)),
            tasks: Mutex::new(tasks),
            _lock: lock,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Finishes the changes under way and closes the index. Later requests fail.
    pub async fn close(&self) {
        drop(self.inner.changes.lock().await.take());
        let mut tasks = self.inner.tasks.lock().await;
        while let Some(ended) = tasks.join_next().await {
            if let Err(error) = ended {
                warn!(%error, "a task of the object store died");
            }
        }
        self.inner.readers.close().await;
    }

    /// Has a change made, and waits for it to be safe. `draft` is the file it brings along.
    async fn apply(&self, change: Change, draft: Option<Draft>) -> S3Result<Applied> {
        let closed = || s3_error!(ServiceUnavailable, "the object store is closed");
        let sender = self.inner.sender.upgrade().ok_or_else(closed)?;
        let (reply, answer) = oneshot::channel();
        sender.send(ChangeMessage { change, draft, reply }).await.map_err(|_| closed())?;
        drop(sender);
        answer.await.map_err(|_| closed())?
    }

    async fn db(&self) -> S3Result<sqlx::pool::PoolConnection<sqlx::Sqlite>> {
        self.inner.readers.acquire().await.map_err(index::failed)
    }
}

fn prepare(folder: PathBuf) -> Result<(PathBuf, File, ContentFiles), EmbeddedError> {
    let failed = |call, path: &Path| {
        let path = path.to_owned();
        move |source| EmbeddedError::File { call, path, source }
    };
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&folder)
        .map_err(failed("create", &folder))?;
    let folder = fs::canonicalize(&folder).map_err(failed("resolve", &folder))?;
    let path = folder.join("lock");
    let lock = File::create(&path).map_err(failed("create", &path))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(EmbeddedError::InUse(folder)),
        Err(TryLockError::Error(source)) => return Err(failed("lock", &path)(source)),
    }
    let objects = folder.join("objects");
    let files = ContentFiles::open(objects.clone()).map_err(failed("open", &objects))?;
    Ok((folder, lock, files))
}

/// The tag S3 gives an object made of parts: the MD5 of the parts' MD5s, and their number.
fn multipart_etag(digests: &[u8], parts: usize) -> String {
    let mut md5 = Md5::new();
    md5.update(digests);
    format!("{}-{parts}", hex::encode(md5.finalize()))
}

#[async_trait]
impl ObjectStore for Embedded {
    async fn page(&self, request: &PageRequest<'_>) -> S3Result<ListingPage> {
        let mut db = self.db().await?;
        index::need_bucket(&mut db, request.bucket).await?;
        index::page(&mut db, request).await
    }

    async fn check(&self, bucket: &BucketName) -> Result<(), ObjectStoreError> {
        let failed = |error: S3Error| change_error("check", &error);
        let mut db = self.db().await.map_err(failed)?;
        let found = index::has_bucket(&mut db, bucket.as_str()).await;
        if found.map_err(|error| change_error("check", &index::failed(error)))? {
            return Ok(());
        }
        let endpoint = self.inner.folder.display().to_string();
        Err(ObjectStoreError::NoBucket { endpoint, bucket: bucket.clone() })
    }

    async fn ensure_bucket(&self, bucket: &BucketName) -> Result<(), ObjectStoreError> {
        let change = Change::CreateBucket { bucket: bucket.to_string() };
        match self.apply(change, None).await {
            Ok(_) => Ok(()),
            Err(error) => Err(change_error("create the bucket", &error)),
        }
    }

    async fn put_marker(
        &self,
        bucket: &BucketName,
        key: &str,
        marker: &DirectoryMarker,
    ) -> Result<(), ObjectStoreError> {
        match self.store_marker(bucket, key, marker).await {
            Ok(()) => Ok(()),
            Err(error) if *error.code() == s3s::S3ErrorCode::NoSuchBucket => {
                let endpoint = self.inner.folder.display().to_string();
                Err(ObjectStoreError::NoBucket { endpoint, bucket: bucket.clone() })
            }
            Err(error) => Err(change_error("create a directory", &error)),
        }
    }
}

fn change_error(call: &'static str, error: &S3Error) -> ObjectStoreError {
    EmbeddedError::Change { call, message: error.to_string() }.into()
}
