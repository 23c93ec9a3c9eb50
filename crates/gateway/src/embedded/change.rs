//! Changes of the index. A change is a message of its own to the writer: a client that goes away
//! cannot leave half of it.
//!
//! What a change replaces or removes may be a row that cannot be read. That is logged and does not
//! stop the change: writing a key anew and deleting it must always work.

use s3s::dto::{CompletedPart, ETagCondition};
use s3s::{S3Result, s3_error};
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};
use tracing::error;

use super::content::{FileId, ObjectContent, Segment};
use super::index::{
    self, Attributes, ObjectRecord, Replaced, RowError, failed, need_bucket, now, signed, to_json,
};
use super::upload_uses::UploadUse;

/// S3's limit for every part but the last.
const SMALLEST_PART: u64 = 5 * 1024 * 1024;

/// One change.
pub(super) enum Change {
    CreateBucket {
        bucket: String,
    },
    Put {
        target: ObjectTarget,
        record: ObjectRecord,
        condition: Condition,
    },
    Copy {
        source: ObjectTarget,
        target: ObjectTarget,
        /// `None` keeps the source's.
        attributes: Option<Attributes>,
        /// The source's tag as the conditions were checked on; another one means it changed.
        source_etag: String,
    },
    Delete {
        target: ObjectTarget,
        if_match: Option<ETagCondition>,
    },
    CreateUpload {
        id: String,
        target: ObjectTarget,
        attributes: Attributes,
    },
    PutPart {
        upload: UploadUse,
        target: ObjectTarget,
        number: i32,
        size: u64,
        etag: String,
        segments: Vec<Segment>,
        /// Whether the segments lie in files that other contents use already.
        shared: bool,
    },
    Complete {
        upload: UploadUse,
        target: ObjectTarget,
        parts: Vec<CompletedPart>,
        condition: Condition,
    },
    Abort {
        upload: String,
        target: ObjectTarget,
    },
}

/// Where an object is or will be.
#[derive(Clone, Debug)]
pub(super) struct ObjectTarget {
    pub(super) bucket: String,
    pub(super) key: String,
}

/// What must hold for what is there before.
#[derive(Clone, Debug, Default)]
pub(super) struct Condition {
    pub(super) if_match: Option<ETagCondition>,
    pub(super) if_none_match: Option<ETagCondition>,
}

/// What a change made.
#[derive(Clone, Debug, Default)]
pub(super) struct Applied {
    pub(super) etag: String,
    pub(super) modified: i64,
}

/// Applies one change. On an error the caller takes back what was written.
pub(super) async fn apply(
    db: &mut SqliteConnection,
    change: Change,
    freed: &mut Vec<FileId>,
) -> S3Result<Applied> {
    match change {
        Change::CreateBucket { bucket } => {
            sqlx::query("INSERT OR IGNORE INTO buckets (name, created) VALUES (?, ?)")
                .bind(bucket)
                .bind(now())
                .execute(db)
                .await
                .map_err(failed)?;
            Ok(Applied::default())
        }
        Change::Put { target, record, condition } => {
            need_bucket(db, &target.bucket).await?;
            let before = index::replaced(db, &target.bucket, &target.key).await?;
            check(&condition, before.as_ref())?;
            if let ObjectContent::Segments(segments) = &record.content {
                use_files(db, segments, false).await?;
            }
            replace(db, &target, before, record, freed).await
        }
        Change::Copy { source, target, attributes, source_etag } => {
            copy(db, source, target, attributes, source_etag, freed).await
        }
        Change::Delete { target, if_match } => {
            need_bucket(db, &target.bucket).await?;
            let before = index::replaced(db, &target.bucket, &target.key).await?;
            check(&Condition { if_match, if_none_match: None }, before.as_ref())?;
            if let Some(before) = before {
                sqlx::query("DELETE FROM objects WHERE bucket = ? AND key = ?")
                    .bind(target.bucket)
                    .bind(target.key.into_bytes())
                    .execute(&mut *db)
                    .await
                    .map_err(failed)?;
                release(db, &before.segments, freed).await?;
            }
            Ok(Applied::default())
        }
        Change::CreateUpload { id, target, attributes } => {
            need_bucket(db, &target.bucket).await?;
            sqlx::query(
                "INSERT INTO uploads (id, bucket, key, initiated, attributes) \
                 VALUES (?, ?, ?, ?, ?)",
            )
            .bind(id)
            .bind(target.bucket)
            .bind(target.key.into_bytes())
            .bind(now())
            .bind(to_json(&attributes)?)
            .execute(db)
            .await
            .map_err(failed)?;
            Ok(Applied::default())
        }
        Change::PutPart { upload, target, number, size, etag, segments, shared } => {
            let upload = upload.upload_id();
            need_upload(db, upload, &target).await?;
            use_files(db, &segments, shared).await?;
            let before = part_segments(db, upload, number).await?;
            release(db, &before, freed).await?;
            let modified = now();
            sqlx::query(
                "INSERT OR REPLACE INTO parts (upload, number, size, etag, modified, segments) \
                 VALUES (?, ?, ?, ?, ?, ?)",
            )
            .bind(upload)
            .bind(number)
            .bind(signed(size)?)
            .bind(&etag)
            .bind(modified)
            .bind(to_json(&segments)?)
            .execute(db)
            .await
            .map_err(failed)?;
            Ok(Applied { etag, modified })
        }
        Change::Complete { upload, target, parts, condition } => {
            complete(db, upload.upload_id(), target, parts, condition, freed).await
        }
        Change::Abort { upload, target } => {
            need_upload(db, &upload, &target).await?;
            drop_upload(db, &upload, &[], freed).await?;
            Ok(Applied::default())
        }
    }
}

/// The conditions of a write, on what is there before it.
fn check(condition: &Condition, before: Option<&Replaced>) -> S3Result<()> {
    match (&condition.if_match, before) {
        (None, _) | (Some(ETagCondition::Any), Some(_)) => {}
        (Some(ETagCondition::ETag(tag)), Some(before)) if tag.value() == before.etag => {}
        (Some(_), None) => return Err(s3_error!(NoSuchKey, "the key does not exist")),
        (Some(_), Some(_)) => return Err(s3_error!(PreconditionFailed, "If-Match does not hold")),
    }
    match (&condition.if_none_match, before) {
        (None, _) | (_, None) => Ok(()),
        (Some(ETagCondition::ETag(tag)), Some(before)) if tag.value() != before.etag => Ok(()),
        (Some(_), Some(_)) => Err(s3_error!(PreconditionFailed, "If-None-Match does not hold")),
    }
}

/// Writes the row and lets go of what it replaces.
async fn replace(
    db: &mut SqliteConnection,
    target: &ObjectTarget,
    before: Option<Replaced>,
    record: ObjectRecord,
    freed: &mut Vec<FileId>,
) -> S3Result<Applied> {
    let (segments, inline) = match &record.content {
        ObjectContent::Segments(segments) => (Some(to_json(segments)?), None),
        ObjectContent::Inline(bytes) => (None, Some(bytes.as_ref())),
    };
    sqlx::query(
        "INSERT OR REPLACE INTO objects \
         (bucket, key, size, etag, modified, attributes, segments, inline) \
         VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(&target.bucket)
    .bind(target.key.as_bytes())
    .bind(signed(record.size)?)
    .bind(&record.etag)
    .bind(record.modified)
    .bind(to_json(&record.attributes)?)
    .bind(segments)
    .bind(inline)
    .execute(&mut *db)
    .await
    .map_err(failed)?;
    if let Some(before) = before {
        release(db, &before.segments, freed).await?;
    }
    Ok(Applied { etag: record.etag, modified: record.modified })
}

async fn copy(
    db: &mut SqliteConnection,
    source: ObjectTarget,
    target: ObjectTarget,
    attributes: Option<Attributes>,
    source_etag: String,
    freed: &mut Vec<FileId>,
) -> S3Result<Applied> {
    need_bucket(db, &target.bucket).await?;
    let found = index::object(db, &source.bucket, &source.key).await?;
    let found = found.ok_or_else(|| s3_error!(NoSuchKey, "the copy source does not exist"))?;
    if found.etag != source_etag {
        return Err(s3_error!(PreconditionFailed, "the copy source changed meanwhile"));
    }
    let before = index::replaced(db, &target.bucket, &target.key).await?;
    if let ObjectContent::Segments(segments) = &found.content {
        use_files(db, segments, true).await?;
    }
    let record = ObjectRecord {
        attributes: attributes.unwrap_or(found.attributes),
        modified: now(),
        ..found
    };
    replace(db, &target, before, record, freed).await
}

async fn complete(
    db: &mut SqliteConnection,
    upload: &str,
    target: ObjectTarget,
    wanted: Vec<CompletedPart>,
    condition: Condition,
    freed: &mut Vec<FileId>,
) -> S3Result<Applied> {
    let attributes = need_upload(db, upload, &target).await?;
    let attributes = serde_json::from_str(&attributes).map_err(|error| {
        error!(upload, key = target.key, %error, "an upload cannot be read from the index");
        s3_error!(
            InternalError,
            "the upload of '{}' cannot be read: {error}; it must be given up and begun anew",
            target.key
        )
    })?;
    let before = index::replaced(db, &target.bucket, &target.key).await?;
    check(&condition, before.as_ref())?;
    if wanted.is_empty() {
        return Err(s3_error!(MalformedXML, "the list of parts is empty"));
    }
    let (mut segments, mut digests, mut size) = (Vec::new(), Vec::new(), 0);
    let mut numbers = Vec::with_capacity(wanted.len());
    for (place, part) in wanted.iter().enumerate() {
        let number = part.part_number.ok_or_else(|| s3_error!(MalformedXML, "no part number"))?;
        if numbers.last().is_some_and(|last| *last >= number) {
            return Err(s3_error!(InvalidPartOrder, "the parts are not in order"));
        }
        let row =
            sqlx::query("SELECT size, etag, segments FROM parts WHERE upload = ? AND number = ?")
                .bind(upload)
                .bind(number)
                .fetch_optional(&mut *db)
                .await
                .map_err(failed)?
                .ok_or_else(|| s3_error!(InvalidPart, "part {number} was not uploaded"))?;
        let stored = StoredPart::read(&row).map_err(|error| {
            error!(upload, number, %error, "a part cannot be read from the index");
            s3_error!(
                InvalidPart,
                "part {number} cannot be used: {error}; it can be uploaded again"
            )
        })?;
        if part.e_tag.as_ref().is_some_and(|wanted| wanted.value() != stored.etag) {
            return Err(s3_error!(InvalidPart, "part {number} has another ETag"));
        }
        if stored.size < SMALLEST_PART && place + 1 < wanted.len() {
            return Err(s3_error!(EntityTooSmall, "part {number} is smaller than 5 MiB"));
        }
        size += stored.size;
        digests.extend(stored.digest);
        segments.extend(stored.segments);
        numbers.push(number);
    }
    let etag = super::multipart_etag(&digests, numbers.len());
    // The object takes over the uses of its parts; those of unused parts end.
    drop_upload(db, upload, &numbers, freed).await?;
    let content = ObjectContent::Segments(segments);
    let record = ObjectRecord { size, etag, modified: now(), attributes, content };
    replace(db, &target, before, record, freed).await
}

/// A part as it was uploaded.
struct StoredPart {
    size: u64,
    etag: String,
    digest: Vec<u8>,
    segments: Vec<Segment>,
}

impl StoredPart {
    fn read(row: &SqliteRow) -> Result<Self, RowError> {
        let etag: String = row.try_get("etag")?;
        let content = ObjectContent::Segments(index::segments(row)?);
        let size = index::size(row, &content)?;
        let digest = hex::decode(&etag).map_err(|_| RowError::Tag)?;
        Ok(Self { size, etag, digest, segments: content.segments().to_vec() })
    }
}

/// The upload's attributes as they are stored; it must be one of this very key.
async fn need_upload(
    db: &mut SqliteConnection,
    upload: &str,
    target: &ObjectTarget,
) -> S3Result<String> {
    let row = sqlx::query("SELECT attributes FROM uploads WHERE id = ? AND bucket = ? AND key = ?")
        .bind(upload)
        .bind(&target.bucket)
        .bind(target.key.as_bytes())
        .fetch_optional(db)
        .await
        .map_err(failed)?
        .ok_or_else(|| s3_error!(NoSuchUpload, "there is no such upload of this key"))?;
    row.try_get("attributes").map_err(failed)
}

/// What a part held that is written again; nothing if that cannot be read.
async fn part_segments(
    db: &mut SqliteConnection,
    upload: &str,
    number: i32,
) -> S3Result<Vec<Segment>> {
    let row = sqlx::query("SELECT segments FROM parts WHERE upload = ? AND number = ?")
        .bind(upload)
        .bind(number)
        .fetch_optional(db)
        .await
        .map_err(failed)?;
    Ok(row.map(|row| index::readable_segments(&row, "a part")).unwrap_or_default())
}

/// The uploads that were begun before `idle_since`, and have no part since then.
pub(super) async fn idle_uploads(
    db: &mut SqliteConnection,
    idle_since: i64,
) -> S3Result<Vec<String>> {
    let rows = sqlx::query(
        "SELECT id FROM uploads WHERE initiated < ?1 AND NOT EXISTS \
         (SELECT 1 FROM parts WHERE upload = uploads.id AND modified >= ?1)",
    )
    .bind(idle_since)
    .fetch_all(db)
    .await
    .map_err(failed)?;
    rows.iter().map(|row| row.try_get("id").map_err(failed)).collect()
}

/// Removes an upload with its parts; the files of the parts in `kept` stay in use.
pub(super) async fn drop_upload(
    db: &mut SqliteConnection,
    upload: &str,
    kept: &[i32],
    freed: &mut Vec<FileId>,
) -> S3Result<()> {
    let rows = sqlx::query("SELECT number, segments FROM parts WHERE upload = ?")
        .bind(upload)
        .fetch_all(&mut *db)
        .await
        .map_err(failed)?;
    for row in rows {
        let number: i32 = row.try_get("number").map_err(failed)?;
        if !kept.contains(&number) {
            release(db, &index::readable_segments(&row, "a part"), freed).await?;
        }
    }
    for statement in ["DELETE FROM parts WHERE upload = ?", "DELETE FROM uploads WHERE id = ?"] {
        sqlx::query(statement).bind(upload).execute(&mut *db).await.map_err(failed)?;
    }
    Ok(())
}

/// Counts one more use for the file of each segment. Shared files must still be in use: what is no
/// longer named may be removed at any moment.
async fn use_files(db: &mut SqliteConnection, segments: &[Segment], shared: bool) -> S3Result<()> {
    if shared {
        for segment in segments {
            let row = sqlx::query("SELECT 1 FROM files WHERE id = ?").bind(segment.file.as_str());
            if row.fetch_optional(&mut *db).await.map_err(failed)?.is_none() {
                return Err(s3_error!(NoSuchKey, "the copy source was deleted meanwhile"));
            }
        }
    }
    for segment in segments {
        let statement = if shared {
            "UPDATE files SET uses = uses + 1 WHERE id = ?"
        } else {
            "INSERT INTO files (id, uses) VALUES (?, 1)"
        };
        sqlx::query(statement)
            .bind(segment.file.as_str())
            .execute(&mut *db)
            .await
            .map_err(failed)?;
    }
    Ok(())
}

/// Counts one use less for the file of each segment, and notes the files nobody uses any more.
async fn release(
    db: &mut SqliteConnection,
    segments: &[Segment],
    freed: &mut Vec<FileId>,
) -> S3Result<()> {
    for segment in segments {
        let left = sqlx::query("UPDATE files SET uses = uses - 1 WHERE id = ? RETURNING uses")
            .bind(segment.file.as_str())
            .fetch_optional(&mut *db)
            .await
            .map_err(failed)?;
        let uses: Option<i64> = left.map(|row| row.try_get("uses")).transpose().map_err(failed)?;
        if uses.is_some_and(|uses| uses <= 0) {
            sqlx::query("DELETE FROM files WHERE id = ?")
                .bind(segment.file.as_str())
                .execute(&mut *db)
                .await
                .map_err(failed)?;
            freed.push(segment.file.clone());
        }
    }
    Ok(())
}
