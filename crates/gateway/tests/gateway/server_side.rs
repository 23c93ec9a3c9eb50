//! What the server itself does with the store.

use std::time::{Duration, Instant};

use sandyard_gateway::{Backend, Embedded, EmbeddedError, Gateway, ObjectStoreError, Upstream};
use sandyard_types::KeyPrefix;

use crate::host::{BUCKET, GatewayHost, Grants, Minio, bucket};
use crate::on_both_stores;

on_both_stores!(directories_are_made_once_and_as_s3fs_makes_them);
async fn directories_are_made_once_and_as_s3fs_makes_them(host: GatewayHost) -> anyhow::Result<()> {
    let prefix: KeyPrefix = "sessions/s/".parse()?;
    let directories = ["uploads".to_owned(), "a/b".to_owned()];
    host.gateway.ensure_directories(&bucket(), &prefix, &directories, 1000, 1001).await?;
    let client = host.session("sessions/s/");
    let listed = client.get(&format!("/{BUCKET}?prefix=sessions/s/")).await?.expect(200);
    let expected = ["sessions/s/", "sessions/s/a/", "sessions/s/a/b/", "sessions/s/uploads/"];
    assert_eq!(listed.elements("Key"), expected);
    let uploads = format!("/{BUCKET}/sessions/s/uploads/");
    let marker = client.head(&uploads).await?.expect(200);
    assert_eq!(marker.header("content-type"), "application/x-directory");
    assert_eq!(marker.header("x-amz-meta-mode"), "16877");
    assert_eq!(marker.header("x-amz-meta-uid"), "1000");
    assert_eq!(marker.header("x-amz-meta-gid"), "1001");
    let changed = [("x-amz-meta-mode", "16832"), ("content-type", "application/x-directory")];
    client.send("PUT", &uploads, &changed, b"").await?.expect(200);
    host.gateway.ensure_directories(&bucket(), &prefix, &directories, 0, 0).await?;
    let marker = client.head(&uploads).await?.expect(200);
    assert_eq!(marker.header("x-amz-meta-mode"), "16832");
    Ok(())
}

on_both_stores!(a_missing_bucket_is_named);
async fn a_missing_bucket_is_named(host: GatewayHost) -> anyhow::Result<()> {
    let missing = "no-such-bucket".parse()?;
    host.gateway.check(&bucket()).await?;
    let error = host.gateway.check(&missing).await.expect_err("there is no such bucket");
    assert!(matches!(error, ObjectStoreError::NoBucket { .. }), "{error}");
    let prefix: KeyPrefix = "sessions/s/".parse()?;
    let error = host.gateway.ensure_directories(&missing, &prefix, &[], 0, 0).await;
    let error = error.expect_err("there is no such bucket");
    assert!(matches!(error, ObjectStoreError::NoBucket { .. }), "{error}");
    host.gateway.ensure_bucket(&missing).await?;
    host.gateway.ensure_bucket(&missing).await?;
    host.gateway.check(&missing).await?;
    Ok(())
}

#[tokio::test]
#[ignore = "needs minio"]
async fn wrong_keys_are_told_from_a_wrong_address() -> anyhow::Result<()> {
    let minio = Minio::start().await?;
    let gateway = |config| -> anyhow::Result<Gateway> {
        let store = Backend::Upstream(Upstream::new(config)?);
        Ok(Gateway::new(store, std::sync::Arc::new(Grants::default())))
    };
    let mut config = minio.config();
    config.secret = "wrong-secret".into();
    let error = gateway(config)?.check(&bucket()).await.expect_err("the secret is wrong");
    assert!(matches!(error, ObjectStoreError::WrongKeys { .. }), "{error}");
    let mut config = minio.config();
    config.access_key_id = "nobody".to_owned();
    let error = gateway(config)?.check(&bucket()).await.expect_err("the key is unknown");
    assert!(matches!(error, ObjectStoreError::WrongKeys { .. }), "{error}");
    Ok(())
}

#[tokio::test]
async fn a_store_that_does_not_answer_is_named_within_seconds() -> anyhow::Result<()> {
    // One address that refuses, and one that accepts and stays silent.
    let refusing = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        listener.local_addr()?
    };
    let silent = std::net::TcpListener::bind("127.0.0.1:0")?;
    for address in [refusing, silent.local_addr()?] {
        let config = sandyard_gateway::UpstreamConfig {
            endpoint: format!("http://{address}"),
            region: "us-east-1".to_owned(),
            path_style: true,
            access_key_id: "id".to_owned(),
            secret: "secret".into(),
            session_token: None,
        };
        let store = Backend::Upstream(Upstream::new(config)?);
        let gateway = Gateway::new(store, std::sync::Arc::new(Grants::default()));
        let started = Instant::now();
        let error = gateway.check(&bucket()).await.expect_err("nobody answers");
        assert!(matches!(error, ObjectStoreError::Unreachable { .. }), "{error}");
        assert!(error.to_string().contains(&address.to_string()), "{error}");
        assert!(started.elapsed() < Duration::from_secs(8), "{:?}", started.elapsed());
    }
    Ok(())
}

#[tokio::test]
#[ignore = "needs minio"]
async fn requests_fail_clearly_while_the_upstream_is_away() -> anyhow::Result<()> {
    let mut host = GatewayHost::minio().await?;
    let client = host.session("sessions/a/");
    let target = format!("/{BUCKET}/sessions/a/x");
    client.put(&target, b"x").await?.expect(200);
    drop(host.minio.take());
    let away = client.get(&target).await?.expect_error(503, "ServiceUnavailable");
    assert!(away.text().contains("cannot be reached"), "{}", away.text());
    client.put(&target, b"x").await?.expect_error(503, "ServiceUnavailable");
    Ok(())
}

#[tokio::test]
#[ignore = "needs minio"]
async fn the_upstream_never_sees_the_callers_key() -> anyhow::Result<()> {
    let host = GatewayHost::minio().await?;
    let minio = host.minio.as_ref().expect("this host has one");
    let client = host.session("sessions/a/");
    client.put(&format!("/{BUCKET}/sessions/a/x"), b"x").await?.expect(200);
    // The sandbox's key is none of MinIO's.
    let mut past = client.clone();
    past.endpoint = minio.endpoint.clone();
    let refused = past.get(&format!("/{BUCKET}/sessions/a/x")).await?;
    refused.expect_error(403, "InvalidAccessKeyId");
    let stored = minio.direct().get(&format!("/{BUCKET}/sessions/a/x")).await?.expect(200);
    assert_eq!(stored.body, "x");
    Ok(())
}

#[tokio::test]
async fn a_folder_is_open_once_and_survives_a_close() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let store = Embedded::open(folder.path()).await?;
    let second = Embedded::open(folder.path()).await.err();
    assert!(matches!(second, Some(EmbeddedError::InUse(_))), "{second:?}");
    store.close().await;
    drop(store);
    Embedded::open(folder.path()).await?.close().await;
    Ok(())
}
