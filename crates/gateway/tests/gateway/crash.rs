//! A server killed in the middle of writes loses nothing it has acknowledged.

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context;
use sandyard_gateway::{Backend, Embedded, Gateway, Grant, GrantOwner, GrantScope, GrantSource};
use sandyard_http::Quota;
use sandyard_types::Access;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::client::{S3Client, noise};
use crate::host::{BUCKET, bucket};

const FOLDER: &str = "SANDYARD_GATEWAY_CRASH_FOLDER";
const SIZES: [usize; 5] = [0, 900, 20_000, 300_000, 2_500_000];

struct Anyone;

impl GrantSource for Anyone {
    fn grant(&self, _: &str) -> Option<Grant> {
        let scope = GrantScope { bucket: bucket(), prefix: None, access: Access::ReadWrite };
        let owner = GrantOwner::Installation;
        Some(Grant { secret: "secret".into(), owner, source: None, scopes: vec![scope] })
    }
}

/// The server that is killed: this test binary, started again with [`FOLDER`] set. Alone it does
/// nothing.
#[tokio::test]
async fn child() -> anyhow::Result<()> {
    let Some(folder) = std::env::var_os(FOLDER) else {
        return Ok(());
    };
    let (gateway, listener) = open(Path::new(&folder)).await?;
    println!("\naddress http://{}", listener.local_addr()?);
    gateway.serve(listener, Quota::of_all(1024), CancellationToken::new()).await;
    Ok(())
}

async fn open(folder: &Path) -> anyhow::Result<(Gateway, TcpListener)> {
    let gateway = Gateway::new(Backend::Embedded(Embedded::open(folder).await?), Arc::new(Anyone));
    gateway.ensure_bucket(&bucket()).await?;
    Ok((gateway, TcpListener::bind("127.0.0.1:0").await?))
}

fn start(folder: &Path) -> anyhow::Result<(Child, S3Client)> {
    let mut child = Command::new(std::env::current_exe()?)
        .args(["--exact", "crash::child", "--nocapture"])
        .env(FOLDER, folder)
        .stdout(Stdio::piped())
        .spawn()?;
    let output = child.stdout.take().context("no output")?;
    for line in BufReader::new(output).lines() {
        if let Some(address) = line?.strip_prefix("address ") {
            return Ok((child, S3Client::new(address, "any", "secret")));
        }
    }
    anyhow::bail!("the server did not start")
}

/// What is known of a key: the seeds whose content it may have. `None` is "deleted".
type KnownObjects = Arc<Mutex<HashMap<String, Vec<Option<u64>>>>>;

fn content(seed: u64) -> Vec<u8> {
    noise(SIZES[seed as usize % SIZES.len()], seed)
}

/// Writes, overwrites, copies and deletes a few keys of its own until the server is gone.
async fn write(client: S3Client, writer: u64, known: KnownObjects) {
    for step in 0.. {
        let key = format!("w{writer}/{}", step % 7);
        let target = format!("/{BUCKET}/{key}");
        let seed = writer * 1_000_000 + step;
        let next = (step % 5 != 4).then_some(seed);
        // Until it is acknowledged, both the old and the new content are right.
        known.lock().expect("lock").entry(key.clone()).or_insert_with(|| vec![None]).push(next);
        let done = match next {
            Some(seed) => client.put(&target, &content(seed)).await,
            None => client.delete(&target).await,
        };
        match done {
            Ok(reply) => {
                assert!(reply.status.is_success(), "{}", reply.text());
                known.lock().expect("lock").insert(key, vec![next]);
            }
            Err(_) => return,
        }
    }
}

async fn check(client: &S3Client, known: &KnownObjects) -> anyhow::Result<()> {
    let known = known.lock().expect("lock").clone();
    for (key, possible) in known {
        let reply = client.get(&format!("/{BUCKET}/{key}")).await?;
        let right = possible.iter().any(|seed| match seed {
            None => reply.status == 404,
            Some(seed) => reply.status == 200 && reply.body == content(*seed),
        });
        let size = reply.body.len();
        assert!(right, "{key} is {} with {size} bytes, not one of {possible:?}", reply.status);
    }
    Ok(())
}

#[tokio::test]
async fn acknowledged_objects_survive_a_kill() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let known = KnownObjects::default();
    for round in 0..6 {
        let (mut child, client) = start(folder.path())?;
        check(&client, &known).await?;
        let mut writers = JoinSet::new();
        for writer in 0..4 {
            writers.spawn(write(client.clone(), round * 10 + writer, known.clone()));
        }
        tokio::time::sleep(Duration::from_millis(150 + round * 130)).await;
        child.kill()?;
        child.wait()?;
        while let Some(writer) = writers.join_next().await {
            writer?;
        }
    }
    let (mut child, client) = start(folder.path())?;
    check(&client, &known).await?;
    let acknowledged = known.lock().expect("lock").len();
    assert!(acknowledged > 20, "only {acknowledged} keys were written");
    let xml: String = known
        .lock()
        .expect("lock")
        .keys()
        .map(|key| format!("<Object><Key>{key}</Key></Object>"))
        .collect();
    client.delete_many(BUCKET, &format!("<Delete>{xml}</Delete>")).await?.expect(200);
    child.kill()?;
    child.wait()?;
    // With all objects gone, opening leaves no content file behind.
    Embedded::open(folder.path()).await?.close().await;
    let mut left = 0;
    for folder in std::fs::read_dir(folder.path().join("objects"))? {
        left += std::fs::read_dir(folder?.path())?.count();
    }
    assert_eq!(left, 0, "content files that no object has");
    Ok(())
}
