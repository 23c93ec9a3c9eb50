//! Serves one back end on one address, with one key for one prefix: for measurements and for trying
//! a driver by hand.
//!
//! ```text
//! serve <address> <bucket> <prefix> embedded <folder>
//! serve <address> <bucket> <prefix> upstream <endpoint>    keys from AWS_ACCESS_KEY_ID and
//!                                                          AWS_SECRET_ACCESS_KEY
//! ```
//!
//! The key is printed as s3fs wants it in its password file.

use std::env;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail};
use sandyard_gateway::{
    Backend, Embedded, Gateway, GatewayKeys, Grant, GrantOwner, GrantScope, GrantSource, KeyName,
    SecretKey, Upstream, UpstreamConfig,
};
use sandyard_http::Quota;
use sandyard_types::{Access, BucketName, KeyPrefix, SandboxId};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

struct OneKey {
    id: String,
    grant: Grant,
}

impl GrantSource for OneKey {
    fn grant(&self, access_key_id: &str) -> Option<Grant> {
        (access_key_id == self.id).then(|| self.grant.clone())
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [address, bucket, prefix, kind, place] = arguments.as_slice() else {
        bail!("usage: serve <address> <bucket> <prefix> embedded|upstream <folder|endpoint>");
    };
    let backend = match kind.as_str() {
        "embedded" => Backend::Embedded(Embedded::open(Path::new(place)).await?),
        "upstream" => Backend::Upstream(Upstream::new(UpstreamConfig {
            endpoint: place.clone(),
            region: "us-east-1".to_owned(),
            path_style: true,
            access_key_id: env::var("AWS_ACCESS_KEY_ID").context("AWS_ACCESS_KEY_ID")?,
            secret: SecretKey::from(env::var("AWS_SECRET_ACCESS_KEY").context("the secret")?),
            session_token: None,
        })?),
        other => bail!("unknown back end '{other}'"),
    };
    let (bucket, prefix): (BucketName, KeyPrefix) = (bucket.parse()?, prefix.parse()?);
    let sandbox = SandboxId::random();
    let name = KeyName::Sandbox { sandbox: sandbox.clone(), generation: 1 };
    let key = GatewayKeys::new(&[7; 32]).key(&name);
    let scope = GrantScope {
        bucket: bucket.clone(),
        prefix: Some(prefix.clone()),
        access: Access::ReadWrite,
    };
    let grant = Grant {
        secret: key.secret.clone(),
        owner: GrantOwner::Sandbox(sandbox),
        source: None,
        scopes: vec![scope],
    };
    let gateway = Gateway::new(backend, Arc::new(OneKey { id: key.id.clone(), grant }));
    gateway.ensure_bucket(&bucket).await?;
    gateway.ensure_directories(&bucket, &prefix, &["uploads".to_owned()], 0, 0).await?;
    let listener = TcpListener::bind(address).await?;
    println!("{}:{}", key.id, key.secret.expose());
    gateway.serve(listener, Quota::of_all(1024), CancellationToken::new()).await;
    Ok(())
}
