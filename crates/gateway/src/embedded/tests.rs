//! What needs a slow disk or little patience.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

use bytes::Bytes;
use futures::StreamExt;
use http::{HeaderMap, Method, Uri};
use s3s::dto::{
    CompleteMultipartUploadInput, CompletedMultipartUpload, CompletedPart,
    CreateMultipartUploadInput, DeleteObjectInput, GetObjectInput, ListMultipartUploadsInput,
    PutObjectInput, StreamingBlob, UploadPartInput,
};
use s3s::{Body, S3Request, S3Result};
use sqlx::Connection;
use tempfile::TempDir;
use tokio::time::timeout;

use super::*;

const BUCKET: &str = "workspaces";
/// Longer than anything here takes, and shorter than a test may hang.
const LIMIT: Duration = Duration::from_secs(60);

fn request<T>(input: T) -> S3Request<T> {
    S3Request {
        input,
        method: Method::GET,
        uri: Uri::from_static("/"),
        headers: HeaderMap::new(),
        extensions: http::Extensions::new(),
        credentials: None,
        region: None,
        service: None,
        trailing_headers: None,
    }
}

fn body(content: Bytes) -> Option<StreamingBlob> {
    Some(StreamingBlob::from(Body::from(content)))
}

async fn open(options: EmbeddedOptions) -> (TempDir, Embedded) {
    let folder = tempfile::tempdir().expect("a folder");
    let store = Embedded::open_with(folder.path(), options).await.expect("opens");
    store.ensure_bucket(&BUCKET.parse().expect("a name")).await.expect("a bucket");
    (folder, store)
}

impl Embedded {
    async fn put_bytes(&self, key: &str, content: Bytes) -> S3Result<()> {
        let (bucket, key) = (BUCKET.to_owned(), key.to_owned());
        let input = PutObjectInput { bucket, key, body: body(content), ..Default::default() };
        self.put(request(input)).await.map(|_| ())
    }

    async fn get_stream(&self, key: &str) -> S3Result<StreamingBlob> {
        let (bucket, key) = (BUCKET.to_owned(), key.to_owned());
        let output = self.get(GetObjectInput { bucket, key, ..Default::default() }).await?;
        Ok(output.body.expect("a body"))
    }

    async fn delete_key(&self, key: &str) -> S3Result<()> {
        let (bucket, key) = (BUCKET.to_owned(), key.to_owned());
        self.delete(DeleteObjectInput { bucket, key, ..Default::default() }).await.map(|_| ())
    }

    async fn begin_upload(&self, key: &str) -> String {
        let (bucket, key) = (BUCKET.to_owned(), key.to_owned());
        let input = CreateMultipartUploadInput { bucket, key, ..Default::default() };
        self.create_upload(input).await.expect("begins").upload_id.expect("an id")
    }

    async fn put_one_part(&self, key: &str, upload: &str, content: StreamingBlob) -> S3Result<()> {
        let input = UploadPartInput {
            bucket: BUCKET.to_owned(),
            key: key.to_owned(),
            upload_id: upload.to_owned(),
            part_number: 1,
            body: Some(content),
            ..Default::default()
        };
        self.put_part(request(input)).await.map(|_| ())
    }

    async fn upload_ids(&self) -> Vec<String> {
        let bucket = BUCKET.to_owned();
        let input = ListMultipartUploadsInput { bucket, ..Default::default() };
        let listed = self.uploads(input).await.expect("lists").uploads.unwrap_or_default();
        listed.into_iter().filter_map(|upload| upload.upload_id).collect()
    }
}

async fn whole(mut stream: StreamingBlob) -> Vec<u8> {
    let mut content = Vec::new();
    while let Some(piece) = stream.next().await {
        content.extend_from_slice(&piece.expect("readable"));
    }
    content
}

fn content_files(folder: &Path) -> usize {
    let folders = fs::read_dir(folder.join("objects")).expect("a folder");
    folders.map(|f| fs::read_dir(f.expect("an entry").path()).expect("a folder").count()).sum()
}

async fn wait_for(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(LIMIT, wait).await.unwrap_or_else(|_| panic!("not within a minute: {what}"));
}

/// A disk that unlinks when it is told to.
#[derive(Default)]
struct SlowDisk {
    begun: AtomicUsize,
    open: Mutex<bool>,
    opened: Condvar,
}

impl SlowDisk {
    fn options(self: &Arc<Self>) -> EmbeddedOptions {
        let disk = Arc::clone(self);
        let unlink = move |path: &Path| {
            disk.begun.fetch_add(1, Ordering::SeqCst);
            let open = disk.open.lock().unwrap_or_else(PoisonError::into_inner);
            drop(disk.opened.wait_while(open, |open| !*open));
            fs::remove_file(path)
        };
        EmbeddedOptions { unlink: Arc::new(unlink), ..EmbeddedOptions::default() }
    }

    fn release(&self) {
        *self.open.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.opened.notify_all();
    }
}

/// Lets the disk go on when a test fails, so that its threads end.
struct Released(Arc<SlowDisk>);

impl Drop for Released {
    fn drop(&mut self) {
        self.0.release();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unlink_that_takes_long_stalls_nobody() {
    let disk = Arc::new(SlowDisk::default());
    let (folder, store) = open(disk.options()).await;
    let _released = Released(Arc::clone(&disk));
    let content = Bytes::from(vec![7; 100_000]);
    for key in ["deleted", "replaced", "read"] {
        store.put_bytes(key, content.clone()).await.expect("puts");
    }
    store.delete_key("deleted").await.expect("deletes");
    wait_for("the first unlink", async || disk.begun.load(Ordering::SeqCst) > 0).await;
    let others = async {
        assert_eq!(whole(store.get_stream("read").await.expect("reads")).await, content);
        store.put_bytes("replaced", Bytes::from_static(b"small")).await.expect("replaces");
        store.put_bytes("new", content.clone()).await.expect("puts");
        assert!(store.get_stream("deleted").await.is_err());
        // A body of the wrong length leaves a file to be removed too.
        let (bucket, key) = (BUCKET.to_owned(), "broken".to_owned());
        let content_length = Some(3);
        let input = PutObjectInput {
            bucket,
            key,
            content_length,
            body: body(content.clone()),
            ..Default::default()
        };
        store.put(request(input)).await.expect_err("refuses");
        assert_eq!(whole(store.get_stream("new").await.expect("reads")).await, content);
    };
    timeout(LIMIT / 2, others).await.expect("the disk stalls others");
    assert_eq!(disk.begun.load(Ordering::SeqCst), 1);
    assert!(content_files(folder.path()) >= 4);
    disk.release();
    wait_for("the removal", async || content_files(folder.path()) == 2).await;
    store.close().await;
}

#[tokio::test]
async fn a_file_that_is_read_stays_until_its_reader_is_done() {
    let (folder, store) = open(EmbeddedOptions::default()).await;
    let content: Vec<u8> = (0..3_000_000u32).map(|n| (n / 1000) as u8).collect();
    store.put_bytes("read", content.clone().into()).await.expect("puts");
    let reader = store.get_stream("read").await.expect("reads");
    store.delete_key("read").await.expect("deletes");
    // What is freed later is removed already.
    store.put_bytes("other", content.clone().into()).await.expect("puts");
    store.delete_key("other").await.expect("deletes");
    wait_for("the other's removal", async || content_files(folder.path()) == 1).await;
    assert!(whole(reader).await == content);
    wait_for("the removal", async || content_files(folder.path()) == 0).await;
    store.close().await;
}

#[tokio::test]
async fn what_a_crash_keeps_from_being_unlinked_is_removed_at_the_next_open() {
    let failing = EmbeddedOptions {
        unlink: Arc::new(|_: &Path| Err(io::Error::other("the disk is gone"))),
        ..EmbeddedOptions::default()
    };
    let (folder, store) = open(failing).await;
    for key in ["gone", "kept"] {
        store.put_bytes(key, vec![1; 100_000].into()).await.expect("puts");
    }
    store.delete_key("gone").await.expect("deletes");
    store.close().await;
    drop(store);
    assert_eq!(content_files(folder.path()), 2);
    let store = Embedded::open(folder.path()).await.expect("opens");
    assert_eq!(content_files(folder.path()), 1);
    assert_eq!(whole(store.get_stream("kept").await.expect("reads")).await.len(), 100_000);
    store.close().await;
}

/// The body of a request whose client sends when it is told to.
fn slow_body() -> (mpsc::Sender<Bytes>, StreamingBlob) {
    let (sender, receiver) = mpsc::channel::<Bytes>(1);
    let pieces = futures::stream::unfold(receiver, |mut receiver| async move {
        let piece = receiver.recv().await?;
        Some((Ok::<_, io::Error>(piece), receiver))
    });
    (sender, StreamingBlob::wrap(pieces))
}

#[tokio::test]
async fn uploads_expire_while_the_store_is_open_but_not_while_they_are_written() {
    let often =
        EmbeddedOptions { expiry_interval: Duration::from_millis(5), ..EmbeddedOptions::default() };
    let (folder, store) = open(often).await;
    let (written, idle) = (store.begin_upload("written").await, store.begin_upload("idle").await);
    let content = Bytes::from(vec![3; 100_000]);
    let part = body(content.clone()).expect("a body");
    store.put_one_part("idle", &idle, part).await.expect("a part");

    let (sender, slow) = slow_body();
    let mut clients = JoinSet::new();
    clients.spawn({
        let (store, upload) = (store.clone(), written.clone());
        async move { store.put_one_part("written", &upload, slow).await }
    });
    // Once the third piece is accepted, the first was taken, so the part is being written.
    for _ in 0..3 {
        sender.send(content.clone()).await.expect("is read");
    }
    let index = SqliteConnectOptions::new().filename(folder.path().join("index.sqlite"));
    let mut index = index.busy_timeout(LIMIT).connect().await.expect("opens");
    for age in ["UPDATE parts SET modified = 1", "UPDATE uploads SET initiated = 1"] {
        sqlx::query(age).execute(&mut index).await.expect("ages");
    }
    index.close().await.expect("closes");
    wait_for("the end of the idle upload", async || store.upload_ids().await.len() == 1).await;
    assert_eq!(store.upload_ids().await, std::slice::from_ref(&written));
    // Only the file that is being written is left.
    wait_for("the removal of its part", async || content_files(folder.path()) <= 1).await;

    drop(sender);
    clients.join_next().await.expect("a client").expect("lives").expect("the part is stored");
    let parts = vec![CompletedPart { part_number: Some(1), ..Default::default() }];
    let input = CompleteMultipartUploadInput {
        bucket: BUCKET.to_owned(),
        key: "written".to_owned(),
        upload_id: written,
        multipart_upload: Some(CompletedMultipartUpload { parts: Some(parts) }),
        ..Default::default()
    };
    store.complete_upload(input).await.expect("completes");
    assert_eq!(whole(store.get_stream("written").await.expect("reads")).await.len(), 300_000);
    let part = body(content).expect("a body");
    let gone = store.put_one_part("idle", &idle, part).await.expect_err("it is gone");
    assert_eq!(*gone.code(), s3s::S3ErrorCode::NoSuchUpload);
    store.close().await;
}
