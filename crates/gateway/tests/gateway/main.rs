//! The gateway over real HTTP with signed requests, on both back ends: the embedded store, and MinIO
//! as the upstream. What needs MinIO looks for `minio` on the path and in `.sandyard/bin`.

mod address;
mod attacks;
mod bodies;
mod client;
mod crash;
mod faults;
mod host;
mod lists;
mod objects;
mod s3fs;
mod server_side;
mod uploads;

/// Makes two tests of one: on the embedded store and on MinIO.
macro_rules! on_both_stores {
    ($name:ident) => {
        mod $name {
            #[tokio::test]
            async fn embedded() -> anyhow::Result<()> {
                super::$name(crate::host::GatewayHost::embedded().await?).await
            }

            #[tokio::test]
            #[ignore = "needs minio"]
            async fn minio() -> anyhow::Result<()> {
                super::$name(crate::host::GatewayHost::minio().await?).await
            }
        }
    };
}
pub(crate) use on_both_stores;
