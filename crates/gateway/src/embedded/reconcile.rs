//! Folder and index are brought together at every open. What a crash left is removed. What is lost
//! is logged, and concerns its objects only: the store opens all the same.

use std::collections::HashSet;

use futures::TryStreamExt;
use sqlx::Row;
use sqlx::sqlite::{SqlitePool, SqliteRow};
use tokio::task::spawn_blocking;
use tracing::{error, info};

use super::content::{ContentFiles, FileId};
use super::index;

/// How many lost objects are named in the log, one by one.
const NAMED: usize = 50;

/// Compares the folder with the index.
pub(super) async fn reconcile(files: &ContentFiles, index: &SqlitePool) {
    let mut named = match named_files(index).await {
        Ok(named) => named,
        Err(error) => {
            // Without the whole list every file might be one that an object needs.
            return error!(
                %error,
                "the content files of the object store are not checked: \
                 their list in the index cannot be read"
            );
        }
    };
    let files = files.clone();
    let compared = spawn_blocking(move || {
        let removed = files.remove_orphans(&mut named);
        (removed, named)
    });
    let (removed, missing) = match compared.await {
        Ok(compared) => compared,
        Err(error) => return error!(%error, "the check of the content files died"),
    };
    if removed > 0 {
        info!(removed, "removed content files that no object has");
    }
    if !missing.is_empty() {
        report_lost(index, &missing).await;
    }
}

/// All files that the index names.
async fn named_files(index: &SqlitePool) -> Result<HashSet<FileId>, sqlx::Error> {
    let rows = sqlx::query("SELECT id FROM files").fetch_all(index).await?;
    let id = |row: &SqliteRow| {
        let id = FileId::try_from(row.try_get::<String, _>("id")?);
        id.map_err(|error| sqlx::Error::Decode(error.into()))
    };
    rows.iter().map(id).collect()
}

/// Says whose content is lost. This reads all objects, which is done only if a file is missing.
async fn report_lost(index: &SqlitePool, missing: &HashSet<FileId>) {
    error!(
        files = missing.len(),
        "the object store lost content files; reading the objects that had them fails, \
         all else goes on"
    );
    let mut objects = 0;
    let query = "SELECT bucket, key, segments FROM objects WHERE segments IS NOT NULL";
    let mut rows = sqlx::query(query).fetch(index);
    loop {
        let row = match rows.try_next().await {
            Ok(Some(row)) => row,
            Ok(None) => break,
            Err(error) => {
                error!(%error, "cannot read on in the index, there may be more lost objects");
                break;
            }
        };
        let segments = index::segments(&row).unwrap_or_default();
        let Some(lost) = segments.iter().find(|segment| missing.contains(&segment.file)) else {
            continue;
        };
        objects += 1;
        if objects <= NAMED {
            let bucket: String = row.try_get("bucket").unwrap_or_default();
            let key: Vec<u8> = row.try_get("key").unwrap_or_default();
            let key = String::from_utf8_lossy(&key);
            error!(bucket, %key, file = %lost.file, "the content of an object is lost");
        }
    }
    error!(objects, "objects whose content is lost; the other missing files were of uploads");
}
