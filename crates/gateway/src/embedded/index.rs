//! Reading the index, and its rows.

use bytes::Bytes;
use s3s::dto::{ETag, Object, ObjectStorageClass, Timestamp};
use s3s::{S3Error, S3Result, s3_error};
use serde::{Deserialize, Serialize};
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};
use time::OffsetDateTime;
use tracing::error;

use super::content::{ObjectContent, Segment};
use crate::listing::{ListingEntry, ListingPage, PageRequest};

/// What a client stores beside the content. Kept as JSON.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Attributes {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) content_type: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) cache_control: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) content_disposition: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) content_encoding: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) content_language: Option<String>,
    /// Seconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) expires: Option<i64>,
    pub(super) metadata: std::collections::BTreeMap<String, String>,
}

/// One object.
#[derive(Clone, Debug)]
pub(super) struct ObjectRecord {
    pub(super) size: u64,
    pub(super) etag: String,
    /// Milliseconds since 1970.
    pub(super) modified: i64,
    pub(super) attributes: Attributes,
    pub(super) content: ObjectContent,
}

/// Why a row cannot be read. It concerns what the row describes, and nothing else.
#[derive(Debug, thiserror::Error)]
pub(super) enum RowError {
    #[error(transparent)]
    Column(#[from] sqlx::Error),
    #[error("no valid JSON: {0}")]
    Json(#[from] serde_json::Error),
    #[error("its content does not have the size {0}")]
    Size(i64),
    #[error("its tag is none of a part")]
    Tag,
}

pub(super) fn failed(error: sqlx::Error) -> S3Error {
    S3Error::internal_error(error)
}

pub(super) fn now() -> i64 {
    (OffsetDateTime::now_utc().unix_timestamp_nanos() / 1_000_000) as i64
}

pub(super) fn timestamp(milliseconds: i64) -> Timestamp {
    let nanoseconds = i128::from(milliseconds) * 1_000_000;
    // Out of range only in an index that something else wrote.
    OffsetDateTime::from_unix_timestamp_nanos(nanoseconds)
        .map_or_else(|_| Timestamp::default(), Timestamp::from)
}

pub(super) fn to_json<T: Serialize>(value: &T) -> S3Result<String> {
    serde_json::to_string(value).map_err(S3Error::internal_error)
}

pub(super) fn signed(number: u64) -> S3Result<i64> {
    i64::try_from(number).map_err(S3Error::internal_error)
}

/// Answers `NoSuchBucket` unless the bucket is there.
pub(super) async fn need_bucket(db: &mut SqliteConnection, bucket: &str) -> S3Result<()> {
    if has_bucket(db, bucket).await.map_err(failed)? {
        Ok(())
    } else {
        Err(s3_error!(NoSuchBucket, "the bucket does not exist"))
    }
}

pub(super) async fn has_bucket(
    db: &mut SqliteConnection,
    bucket: &str,
) -> Result<bool, sqlx::Error> {
    let row = sqlx::query("SELECT 1 FROM buckets WHERE name = ?").bind(bucket);
    Ok(row.fetch_optional(db).await?.is_some())
}

/// The object, if it is there.
pub(super) async fn object(
    db: &mut SqliteConnection,
    bucket: &str,
    key: &str,
) -> S3Result<Option<ObjectRecord>> {
    let row = sqlx::query(
        "SELECT size, etag, modified, attributes, segments, inline FROM objects \
         WHERE bucket = ? AND key = ?",
    )
    .bind(bucket)
    .bind(key.as_bytes())
    .fetch_optional(db)
    .await;
    let read = row.map_err(RowError::from).and_then(|row| row.as_ref().map(record).transpose());
    read.map_err(|error| {
        error!(bucket, key, %error, "the index entry of an object cannot be read");
        s3_error!(
            InternalError,
            "the index entry of '{key}' cannot be read: {error}; \
             the key can be deleted or written anew"
        )
    })
}

fn record(row: &SqliteRow) -> Result<ObjectRecord, RowError> {
    let segments: Option<&str> = row.try_get("segments")?;
    let content = match segments {
        Some(segments) => ObjectContent::Segments(serde_json::from_str(segments)?),
        None => ObjectContent::Inline(Bytes::copy_from_slice(row.try_get("inline")?)),
    };
    Ok(ObjectRecord {
        size: size(row, &content)?,
        etag: row.try_get("etag")?,
        modified: row.try_get("modified")?,
        attributes: serde_json::from_str(row.try_get("attributes")?)?,
        content,
    })
}

/// The size that the row tells, which is that of its content.
pub(super) fn size(row: &SqliteRow, content: &ObjectContent) -> Result<u64, RowError> {
    let told: i64 = row.try_get("size")?;
    match content.size() {
        Some(size) if u64::try_from(told) == Ok(size) => Ok(size),
        _ => Err(RowError::Size(told)),
    }
}

/// What a change must know of the object that it replaces or removes.
#[derive(Debug)]
pub(super) struct Replaced {
    pub(super) etag: String,
    pub(super) segments: Vec<Segment>,
}

/// The object that a change replaces or removes. What cannot be read of it is left out: no tag
/// equals an empty one, and the files of segments that nobody can read stay.
pub(super) async fn replaced(
    db: &mut SqliteConnection,
    bucket: &str,
    key: &str,
) -> S3Result<Option<Replaced>> {
    let row = sqlx::query("SELECT etag, segments FROM objects WHERE bucket = ? AND key = ?")
        .bind(bucket)
        .bind(key.as_bytes())
        .fetch_optional(db)
        .await
        .map_err(failed)?;
    Ok(row.map(|row| Replaced {
        etag: row.try_get("etag").unwrap_or_default(),
        segments: readable_segments(&row, key),
    }))
}

/// The segments of what a client stored as a part or object; small objects have none.
pub(super) fn segments(row: &SqliteRow) -> Result<Vec<Segment>, RowError> {
    let json: Option<&str> = row.try_get("segments")?;
    Ok(json.map(serde_json::from_str).transpose()?.unwrap_or_default())
}

/// The segments of `what`, which is to go. If they cannot be read, its files stay in the folder.
pub(super) fn readable_segments(row: &SqliteRow, what: &str) -> Vec<Segment> {
    segments(row).unwrap_or_else(|error| {
        error!(what, %error, "the segments of a content cannot be read, its files stay behind");
        Vec::new()
    })
}

/// One page of a list. Keys below a common prefix are jumped over, not read.
pub(super) async fn page(
    db: &mut SqliteConnection,
    ask: &PageRequest<'_>,
) -> S3Result<ListingPage> {
    let mut page = ListingPage::default();
    if ask.limit == 0 {
        return Ok(page);
    }
    let prefix = ask.prefix.as_bytes();
    let end = after_all(prefix);
    let mut from = start(ask).max(prefix.to_vec());
    loop {
        // With a delimiter most rows may fold into a prefix, so read little before jumping.
        let wanted = ask.limit - page.entries.len() + 1;
        let batch = if ask.delimiter.is_some() { wanted.min(64) } else { wanted };
        let rows = rows(db, ask.bucket, &from, end.as_deref(), batch).await?;
        let full = rows.len() == batch;
        let mut jump = None;
        for row in &rows {
            let key: &[u8] = row.try_get("key").map_err(failed)?;
            if jump.as_deref().is_some_and(|to: &[u8]| key < to) {
                continue;
            }
            let Ok(text) = std::str::from_utf8(key) else {
                // S3 has no way to name it.
                error!(bucket = ask.bucket, key = %key.escape_ascii(), "a key is not UTF-8");
                continue;
            };
            if page.entries.len() == ask.limit {
                page.more = true;
                return Ok(page);
            }
            match common_prefix(text, ask.prefix, ask.delimiter) {
                Some(common) => {
                    jump = after_all(common.as_bytes());
                    page.entries.push(ListingEntry::Prefix(common.to_owned()));
                    if jump.is_none() {
                        return Ok(page);
                    }
                }
                None => {
                    jump = None;
                    page.entries.push(ListingEntry::Object(Box::new(listed(row, text))));
                }
            }
        }
        let last = rows.last().map(|row| row.try_get::<&[u8], _>("key")).transpose();
        let Some(last) = last.map_err(failed)?.filter(|_| full) else {
            return Ok(page);
        };
        from = jump.unwrap_or_else(|| successor(last));
    }
}

async fn rows(
    db: &mut SqliteConnection,
    bucket: &str,
    from: &[u8],
    end: Option<&[u8]>,
    limit: usize,
) -> S3Result<Vec<SqliteRow>> {
    let limit = limit as i64;
    let found = match end {
        Some(end) => {
            sqlx::query(
                "SELECT key, size, etag, modified FROM objects \
                 WHERE bucket = ? AND key >= ? AND key < ? ORDER BY key LIMIT ?",
            )
            .bind(bucket)
            .bind(from)
            .bind(end)
            .bind(limit)
            .fetch_all(db)
            .await
        }
        None => {
            sqlx::query(
                "SELECT key, size, etag, modified FROM objects \
                 WHERE bucket = ? AND key >= ? ORDER BY key LIMIT ?",
            )
            .bind(bucket)
            .bind(from)
            .bind(limit)
            .fetch_all(db)
            .await
        }
    };
    found.map_err(failed)
}

/// Where a list begins: behind `after`, and behind all that a common prefix given as `after` folds.
fn start(ask: &PageRequest<'_>) -> Vec<u8> {
    let Some(after) = ask.after else {
        return Vec::new();
    };
    if common_prefix(after, ask.prefix, ask.delimiter) == Some(after)
        && let Some(behind) = after_all(after.as_bytes())
    {
        return behind;
    }
    successor(after.as_bytes())
}

/// What `key` folds into under a delimiter.
fn common_prefix<'a>(key: &'a str, prefix: &str, delimiter: Option<&str>) -> Option<&'a str> {
    let delimiter = delimiter?;
    let at = key.strip_prefix(prefix)?.find(delimiter)?;
    Some(&key[..prefix.len() + at + delimiter.len()])
}

/// The smallest name greater than `name`.
fn successor(name: &[u8]) -> Vec<u8> {
    let mut next = name.to_vec();
    next.push(0);
    next
}

/// The smallest name greater than all that begin with `prefix`; `None` if there is none.
fn after_all(prefix: &[u8]) -> Option<Vec<u8>> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return Some(end);
        }
    }
    None
}

/// The object as a list shows it. It is listed whatever can be read of it: the key is there, and its
/// owner may delete it.
fn listed(row: &SqliteRow, key: &str) -> Object {
    Object {
        key: Some(key.to_owned()),
        size: Some(row.try_get("size").unwrap_or_default()),
        e_tag: row.try_get("etag").ok().map(ETag::Strong),
        last_modified: Some(timestamp(row.try_get("modified").unwrap_or_default())),
        storage_class: Some(ObjectStorageClass::from_static(ObjectStorageClass::STANDARD)),
        ..Object::default()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn keys_fold_at_the_first_delimiter_behind_the_prefix() {
        assert_eq!(common_prefix("a/b/c", "a/", Some("/")), Some("a/b/"));
        assert_eq!(common_prefix("a/b/c", "", Some("/")), Some("a/"));
        assert_eq!(common_prefix("a/b", "a/", Some("/")), None);
        assert_eq!(common_prefix("a/b", "", None), None);
        assert_eq!(common_prefix("a--b--c", "a", Some("--")), Some("a--"));
    }

    #[test]
    fn the_end_of_a_prefix_is_behind_all_its_names() {
        assert_eq!(after_all(b"a/"), Some(b"a0".to_vec()));
        assert_eq!(after_all(&[b'a', 0xff]), Some(b"b".to_vec()));
        assert_eq!(after_all(&[0xff]), None);
        assert_eq!(after_all(b""), None);
    }

    /// The list as S3 describes it: fold, sort, skip, cut.
    fn plain_page(keys: &[String], ask: &PageRequest<'_>) -> (Vec<String>, bool) {
        let folded =
            |key: &String| common_prefix(key, ask.prefix, ask.delimiter).unwrap_or(key).to_owned();
        let mut names: Vec<String> =
            keys.iter().filter(|key| key.starts_with(ask.prefix)).map(folded).collect();
        names.sort();
        names.dedup();
        names.retain(|name| ask.after.is_none_or(|after| name.as_str() > after));
        let more = names.len() > ask.limit;
        names.truncate(ask.limit);
        (names, more)
    }

    async fn stored_page(keys: &[String], ask: &PageRequest<'_>) -> (Vec<String>, bool) {
        use sqlx::{Connection, Executor};
        let mut db = SqliteConnection::connect("sqlite::memory:").await.expect("opens");
        db.execute(include_str!("../../migrations/0001_index.sql")).await.expect("the schema");
        for key in keys {
            let insert =
                "INSERT OR IGNORE INTO objects VALUES ('b', ?, 0, 'e', 0, '{}', NULL, X'')";
            sqlx::query(insert).bind(key.as_bytes()).execute(&mut db).await.expect("inserts");
        }
        let page = page(&mut db, ask).await.expect("a page");
        (page.entries.iter().map(|entry| entry.name().to_owned()).collect(), page.more)
    }

    proptest! {
        #[test]
        fn a_page_is_what_a_plain_reading_gives(
            keys in proptest::collection::vec("[ab/é]{1,5}", 0..40),
            prefix in "[ab/]{0,2}",
            delimiter in proptest::option::of("(/|b|a/)"),
            after in proptest::option::of(0usize..60),
            limit in 1usize..6,
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
            let mut ask = PageRequest {
                bucket: "b",
                prefix: &prefix,
                delimiter: delimiter.as_deref(),
                after: None,
                limit: usize::MAX,
            };
            // A marker is a name that a page before has shown.
            let (shown, _) = plain_page(&keys, &ask);
            ask.after = after.and_then(|place| shown.get(place)).map(String::as_str);
            ask.limit = limit;
            let stored = runtime.block_on(stored_page(&keys, &ask));
            prop_assert_eq!(stored, plain_page(&keys, &ask));
        }
    }
}
