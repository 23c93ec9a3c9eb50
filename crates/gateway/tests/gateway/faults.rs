//! The embedded store with faults in its folder: a file or a row that is lost concerns the objects
//! that have it, and nothing else.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use sandyard_gateway::{Embedded, EmbeddedError};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection};
use tempfile::TempDir;

use crate::client::{S3Client, S3Reply, noise};
use crate::host::{BUCKET, GatewayHost};
use crate::uploads::{PART, begin, parts_xml};

const SIZE: usize = 600_000;

struct FaultyStore {
    folder: TempDir,
    store: Embedded,
    host: GatewayHost,
}

impl FaultyStore {
    async fn new() -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let store = Embedded::open(folder.path()).await?;
        let host = GatewayHost::over(store.clone()).await?;
        Ok(Self { folder, store, host })
    }

    fn client(&self) -> S3Client {
        self.host.session("sessions/a/")
    }

    /// Closes the store and opens it again, with `fault` between.
    async fn reopened<F>(self, fault: impl FnOnce(PathBuf) -> F) -> anyhow::Result<Self>
    where
        F: Future<Output = anyhow::Result<()>>,
    {
        let Self { folder, store, host } = self;
        store.close().await;
        drop((store, host));
        fault(folder.path().to_owned()).await?;
        // The last connection lets go of the store a moment later.
        let limit = Instant::now() + Duration::from_secs(30);
        let store = loop {
            match Embedded::open(folder.path()).await {
                Err(EmbeddedError::InUse(_)) if Instant::now() < limit => {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                opened => break opened?,
            }
        };
        let host = GatewayHost::over(store.clone()).await?;
        Ok(Self { folder, store, host })
    }

    fn files(&self) -> anyhow::Result<HashSet<PathBuf>> {
        content_files(self.folder.path())
    }

    /// Puts a content, and returns the files that it is in.
    async fn put(&self, target: &str, content: &[u8]) -> anyhow::Result<Vec<PathBuf>> {
        let before = self.files()?;
        self.client().put(target, content).await?.expect(200);
        Ok(self.files()?.difference(&before).cloned().collect())
    }

    /// Changes the index behind the store's back.
    async fn alter(&self, statement: String) -> anyhow::Result<()> {
        alter(self.folder.path(), statement).await
    }

    /// Waits until there are so many content files: they are removed after the answer.
    async fn has_files(&self, count: usize) -> anyhow::Result<()> {
        let limit = Instant::now() + Duration::from_secs(30);
        while self.files()?.len() != count {
            let left = self.files()?.len();
            anyhow::ensure!(Instant::now() < limit, "{left} content files, not {count}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }
}

async fn index(folder: &Path) -> anyhow::Result<SqliteConnection> {
    let options = SqliteConnectOptions::new().filename(folder.join("index.sqlite"));
    Ok(options.busy_timeout(Duration::from_secs(30)).connect().await?)
}

async fn alter(folder: &Path, statement: String) -> anyhow::Result<()> {
    let mut index = index(folder).await?;
    let done = sqlx::query(AssertSqlSafe(statement)).execute(&mut index).await?;
    index.close().await?;
    anyhow::ensure!(done.rows_affected() > 0, "nothing was altered");
    Ok(())
}

async fn rows(folder: &Path, table: &str) -> anyhow::Result<i64> {
    let mut index = index(folder).await?;
    let count = AssertSqlSafe(format!("SELECT count(*) FROM {table}"));
    Ok(sqlx::query_scalar(count).fetch_one(&mut index).await?)
}

fn content_files(folder: &Path) -> anyhow::Result<HashSet<PathBuf>> {
    let mut files = HashSet::new();
    for folder in fs::read_dir(folder.join("objects"))? {
        let folder = folder?.path();
        if folder.is_dir() {
            for entry in fs::read_dir(folder)? {
                files.insert(entry?.path());
            }
        }
    }
    Ok(files)
}

fn path(name: &str) -> String {
    format!("/{BUCKET}/sessions/a/{name}")
}

async fn listed(client: &S3Client) -> anyhow::Result<Vec<String>> {
    let list = format!("/{BUCKET}?list-type=2&prefix=sessions/a/");
    let keys = client.get(&list).await?.expect(200).elements("Key");
    Ok(keys.iter().map(|key| key.trim_start_matches("sessions/a/").to_owned()).collect())
}

/// A 500 that names the key and says what happened.
#[track_caller]
fn expect_lost(reply: S3Reply, name: &str, why: &str) {
    let reply = reply.expect_error(500, "InternalError");
    let text = reply.elements("Message").pop().unwrap_or_default().replace("&apos;", "'");
    assert!(text.contains(&format!("'sessions/a/{name}'")), "{text}");
    assert!(text.contains(why), "{text}");
}

async fn copy(client: &S3Client, from: &str, to: &str) -> anyhow::Result<S3Reply> {
    client.send("PUT", &path(to), &[("x-amz-copy-source", path(from).as_str())], b"").await
}

/// What holds while the contents of `a` and `b` are lost, and `c` and `small` are not.
async fn check_loss(store: &FaultyStore, why: &str) -> anyhow::Result<()> {
    let client = store.client();
    expect_lost(client.get(&path("a")).await?, "a", why);
    expect_lost(copy(&client, "a", "copy").await?, "a", why);
    let upload = begin(&client, &path("big")).await?;
    let part = format!("{}?partNumber=1&uploadId={upload}", path("big"));
    let source = path("a");
    let copied = client.send("PUT", &part, &[("x-amz-copy-source", source.as_str())], b"").await?;
    expect_lost(copied, "a", why);
    client.delete(&format!("{}?uploadId={upload}", path("big"))).await?.expect(204);
    // The key is there, and so is what the index knows of it.
    let head = client.head(&path("a")).await?.expect(200);
    assert_eq!(head.header("content-length"), SIZE.to_string());
    assert_eq!(listed(&client).await?, ["a", "b", "c", "small"]);
    // All else goes on.
    assert!(client.get(&path("c")).await?.expect(200).body == noise(SIZE, 3));
    assert_eq!(client.get(&path("small")).await?.expect(200).body, "small");
    client.put(&path("new"), &noise(SIZE, 4)).await?.expect(200);
    client.delete(&path("new")).await?.expect(204);
    Ok(())
}

/// Writing the key anew and deleting it work.
async fn check_repair(store: &FaultyStore) -> anyhow::Result<()> {
    let client = store.client();
    client.put(&path("a"), &noise(SIZE, 5)).await?.expect(200);
    assert!(client.get(&path("a")).await?.expect(200).body == noise(SIZE, 5));
    client.delete(&path("b")).await?.expect(204);
    client.get(&path("b")).await?.expect_error(404, "NoSuchKey");
    assert_eq!(listed(&client).await?, ["a", "c", "small"]);
    Ok(())
}

/// A store with `a`, `b`, `c` and `small`, and the files of `a` and `b`.
async fn filled() -> anyhow::Result<(FaultyStore, Vec<PathBuf>)> {
    let store = FaultyStore::new().await?;
    let mut files = store.put(&path("a"), &noise(SIZE, 1)).await?;
    files.extend(store.put(&path("b"), &noise(SIZE, 2)).await?);
    store.put(&path("c"), &noise(SIZE, 3)).await?;
    store.put(&path("small"), b"small").await?;
    assert_eq!((files.len(), store.files()?.len()), (2, 3));
    Ok((store, files))
}

#[tokio::test]
async fn a_file_lost_while_the_store_is_open_fails_its_object_only() -> anyhow::Result<()> {
    let (store, files) = filled().await?;
    for file in files {
        fs::remove_file(file)?;
    }
    check_loss(&store, "is missing").await?;
    check_repair(&store).await?;
    store.has_files(2).await
}

#[tokio::test]
async fn a_file_lost_while_the_store_is_closed_fails_its_object_only() -> anyhow::Result<()> {
    let (store, files) = filled().await?;
    let lose = |_| async move {
        for file in files {
            fs::remove_file(file)?;
        }
        Ok(())
    };
    let store = store.reopened(lose).await?;
    check_loss(&store, "is missing").await?;
    check_repair(&store).await?;
    let store = store.reopened(|_| async { Ok(()) }).await?;
    assert!(store.client().get(&path("a")).await?.expect(200).body == noise(SIZE, 5));
    store.has_files(2).await
}

#[tokio::test]
async fn a_file_that_lost_its_end_fails_what_reaches_there() -> anyhow::Result<()> {
    let (store, files) = filled().await?;
    for file in files {
        fs::OpenOptions::new().write(true).open(file)?.set_len(300_000)?;
    }
    check_loss(&store, "ends after 300000 bytes").await?;
    let store = store.reopened(|_| async { Ok(()) }).await?;
    check_loss(&store, "ends after 300000 bytes").await?;
    let client = store.client();
    let range = [("range", "bytes=1000-299999")];
    let there = client.send("GET", &path("a"), &range, b"").await?.expect(206);
    assert!(there.body == noise(SIZE, 1)[1000..300_000]);
    let range = [("range", "bytes=299999-300000")];
    let gone = client.send("GET", &path("a"), &range, b"").await?;
    expect_lost(gone, "a", "ends after 300000 bytes");
    check_repair(&store).await
}

#[tokio::test]
async fn a_file_that_cannot_be_read_fails_its_object_only() -> anyhow::Result<()> {
    let (store, files) = filled().await?;
    for file in files {
        // Permissions do not stop root; a directory stops everybody.
        fs::remove_file(&file)?;
        fs::create_dir(&file)?;
    }
    let client = store.client();
    client.get(&path("a")).await?.expect_error(500, "InternalError");
    assert!(client.get(&path("c")).await?.expect(200).body == noise(SIZE, 3));
    let store = store.reopened(|_| async { Ok(()) }).await?;
    check_repair(&store).await
}

#[tokio::test]
async fn a_lost_folder_and_things_of_others_do_not_keep_the_store_closed() -> anyhow::Result<()> {
    let (store, files) = filled().await?;
    let [first, second] = &files[..] else { anyhow::bail!("two files") };
    let (first, second) = (first.clone(), second.clone());
    let spoil = |folder: PathBuf| async move {
        fs::remove_dir_all(first.parent().context("a folder")?)?;
        if second.exists() {
            fs::remove_file(&second)?;
        }
        fs::write(folder.join("objects/.DS_Store"), "x")?;
        fs::create_dir(folder.join("objects/00/of-somebody"))?;
        Ok(())
    };
    let store = store.reopened(spoil).await?;
    let client = store.client();
    expect_lost(client.get(&path("a")).await?, "a", "is missing");
    check_repair(&store).await?;
    // And a folder that goes while the store is open.
    for byte in 0..=u8::MAX {
        fs::remove_dir_all(store.folder.path().join("objects").join(format!("{byte:02x}")))?;
    }
    store.put(&path("after"), &noise(SIZE, 6)).await?;
    assert!(client.get(&path("after")).await?.expect(200).body == noise(SIZE, 6));
    Ok(())
}

#[tokio::test]
async fn a_row_that_cannot_be_read_fails_its_object_only() -> anyhow::Result<()> {
    let faults = [
        "attributes = '{'",
        "segments = 'no json'",
        r#"segments = '[{"file":"../../lock","offset":0,"length":600000}]'"#,
        "segments = '[]'",
        "size = -1",
        "size = 'large'",
    ];
    for fault in faults {
        let (store, _) = filled().await?;
        store
            .alter(format!("UPDATE objects SET {fault} WHERE key <= CAST('sessions/a/b' AS BLOB)"))
            .await?;
        let client = store.client();
        expect_lost(client.get(&path("a")).await?, "a", "cannot be read");
        expect_lost(copy(&client, "a", "copy").await?, "a", "cannot be read");
        assert_eq!(listed(&client).await?, ["a", "b", "c", "small"], "{fault}");
        let store = store.reopened(|_| async { Ok(()) }).await?;
        check_repair(&store).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_small_object_of_the_wrong_length_fails_alone() -> anyhow::Result<()> {
    let (store, _) = filled().await?;
    store.alter("UPDATE objects SET inline = X'00' WHERE segments IS NULL".to_owned()).await?;
    let client = store.client();
    expect_lost(client.get(&path("small")).await?, "small", "cannot be read");
    client.put(&path("small"), b"anew").await?.expect(200);
    assert_eq!(client.get(&path("small")).await?.expect(200).body, "anew");
    Ok(())
}

#[tokio::test]
async fn a_key_that_nobody_can_name_is_not_listed() -> anyhow::Result<()> {
    let (store, _) = filled().await?;
    let odd = "INSERT INTO objects SELECT bucket, CAST('sessions/a/b' AS BLOB) || X'FF', size, etag, \
               modified, attributes, NULL, X'' FROM objects LIMIT 1";
    store.alter(odd.to_owned()).await?;
    assert_eq!(listed(&store.client()).await?, ["a", "b", "c", "small"]);
    Ok(())
}

#[tokio::test]
async fn a_list_of_files_that_cannot_be_read_costs_no_file() -> anyhow::Result<()> {
    let (store, _) = filled().await?;
    let fault = "UPDATE files SET id = 'nonsense' WHERE id = (SELECT min(id) FROM files)";
    store.alter(fault.to_owned()).await?;
    let store = store.reopened(|_| async { Ok(()) }).await?;
    let client = store.client();
    for (name, seed) in [("a", 1), ("b", 2), ("c", 3)] {
        assert!(client.get(&path(name)).await?.expect(200).body == noise(SIZE, seed));
    }
    Ok(())
}

/// An upload with one part of the usual size, and the file that it is in.
async fn upload_of_one(store: &FaultyStore) -> anyhow::Result<(String, String, PathBuf)> {
    let upload = begin(&store.client(), &path("big")).await?;
    let part = format!("{}?partNumber=1&uploadId={upload}", path("big"));
    let files = store.put(&part, &noise(PART, 1)).await?;
    Ok((upload, part, files.into_iter().next().context("a file")?))
}

#[tokio::test]
async fn a_lost_part_is_told_at_the_completion_and_can_be_uploaded_again() -> anyhow::Result<()> {
    let store = FaultyStore::new().await?;
    let client = store.client();
    let rotten = "UPDATE parts SET segments = 'no json'".to_owned();
    for fault in ["a file", "a row"] {
        let (upload, part, file) = upload_of_one(&store).await?;
        let last = format!("{}?partNumber=2&uploadId={upload}", path("big"));
        match fault {
            "a file" => fs::remove_file(file)?,
            _ => store.alter(rotten.clone()).await?,
        }
        let two = client.put(&last, b"the end").await?.expect(200).header("etag").to_owned();
        let complete = format!("{}?uploadId={upload}", path("big"));
        let one = format!("\"{}\"", hex::encode(md5(&noise(PART, 1))));
        let xml = parts_xml(&[(1, &one), (2, &two)]);
        let refused = client.send("POST", &complete, &[], xml.as_bytes()).await?;
        let refused = refused.expect_error(400, "InvalidPart");
        assert!(refused.text().contains("part 1"), "{}", refused.text());
        client.head(&path("big")).await?.expect(404);
        client.put(&part, &noise(PART, 1)).await?.expect(200);
        client.send("POST", &complete, &[], xml.as_bytes()).await?.expect(200);
        let whole = client.get(&path("big")).await?.expect(200);
        assert!(whole.body == [&noise(PART, 1)[..], b"the end"].concat());
        client.delete(&path("big")).await?.expect(204);
    }
    Ok(())
}

fn md5(bytes: &[u8]) -> [u8; 16] {
    use s3s::crypto::Checksum;
    let mut md5 = s3s::crypto::Md5::new();
    md5.update(bytes);
    md5.finalize()
}

#[tokio::test]
async fn an_upload_that_cannot_be_read_can_be_given_up() -> anyhow::Result<()> {
    let store = FaultyStore::new().await?;
    let client = store.client();
    let (upload, part, _) = upload_of_one(&store).await?;
    store.alter("UPDATE uploads SET attributes = '{'".to_owned()).await?;
    store.alter("UPDATE parts SET segments = '{', size = 'large'".to_owned()).await?;
    let this = format!("{}?uploadId={upload}", path("big"));
    client.get(&this).await?.expect(200);
    client.put(&part, b"again").await?.expect(200);
    let xml = parts_xml(&[(1, &format!("\"{}\"", hex::encode(md5(b"again"))))]);
    let failed = client.send("POST", &this, &[], xml.as_bytes()).await?;
    expect_lost(failed, "big", "cannot be read");
    store.alter("UPDATE parts SET segments = '{', size = 'large'".to_owned()).await?;
    client.delete(&this).await?.expect(204);
    client.get(&this).await?.expect_error(404, "NoSuchUpload");
    assert_eq!(rows(store.folder.path(), "uploads").await?, 0);
    assert_eq!(rows(store.folder.path(), "parts").await?, 0);
    Ok(())
}

#[tokio::test]
async fn old_uploads_are_removed_when_the_store_opens() -> anyhow::Result<()> {
    const AGE: &str = "7 * 24 * 60 * 60 * 1000";
    let store = FaultyStore::new().await?;
    let client = store.client();
    store.put(&path("object"), &noise(SIZE, 2)).await?;
    let (old, _, _) = upload_of_one(&store).await?;
    let (rotten, _, _) = upload_of_one(&store).await?;
    let (going_on, part, _) = upload_of_one(&store).await?;
    let young = begin(&client, &path("big")).await?;
    let age = |folder: PathBuf| {
        let statements = [
            format!("UPDATE uploads SET initiated = initiated - {AGE} WHERE id <> '{young}'"),
            format!("UPDATE parts SET modified = modified - {AGE} WHERE upload <> '{going_on}'"),
            format!("UPDATE parts SET segments = '{{' WHERE upload = '{rotten}'"),
        ];
        async move {
            for statement in statements {
                alter(&folder, statement).await?;
            }
            Ok(())
        }
    };
    let store = store.reopened(age).await?;
    let client = store.client();
    let uploads = format!("/{BUCKET}?uploads=&prefix=sessions/a/");
    let listed = client.get(&uploads).await?.expect(200).elements("UploadId");
    let mut left = [going_on.clone(), young];
    left.sort();
    assert_eq!(listed, left, "{old} and {rotten} have expired");
    assert_eq!(rows(store.folder.path(), "parts").await?, 1);
    // What is left: the object, the part, and the file that the unreadable row does not tell.
    assert_eq!(store.files()?.len(), 3);
    let one = client.put(&part, &noise(PART, 7)).await?.expect(200).header("etag").to_owned();
    let complete = format!("{}?uploadId={going_on}", path("big"));
    let xml = parts_xml(&[(1, &one)]);
    client.send("POST", &complete, &[], xml.as_bytes()).await?.expect(200);
    assert!(client.get(&path("big")).await?.expect(200).body == noise(PART, 7));
    assert!(client.get(&path("object")).await?.expect(200).body == noise(SIZE, 2));
    Ok(())
}
