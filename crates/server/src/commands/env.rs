//! `sandyard env`: what to export so that the SDKs talk to the running server.

use anyhow::Context as _;

use crate::config::Config;
use crate::data_dir::DataDir;

/// Prints one `export NAME=value` a line.
///
/// # Errors
/// If no server runs on the data folder, or its files cannot be read.
pub fn run(config: &Config) -> anyhow::Result<()> {
    let data = DataDir::open(&config.data_dir)?;
    let running = data.running()?.with_context(|| {
        format!(
            "no server runs on the data folder {}: start one with 'sandyard up'",
            data.path().display()
        )
    })?;
    let key = match &config.api_key {
        Some(key) => key.reveal().to_owned(),
        None => data.first_api_key()?,
    };
    let owner = data.secrets()?.owner_key();
    let variables = [
        ("E2B_API_KEY", key.as_str()),
        ("E2B_API_URL", &running.public.api),
        ("E2B_SANDBOX_URL", &running.public.sandbox),
        ("SANDYARD_S3_ENDPOINT", &running.public.s3),
        ("SANDYARD_S3_BUCKET", &running.bucket),
        ("SANDYARD_S3_ACCESS_KEY_ID", &owner.id),
        ("SANDYARD_S3_SECRET_ACCESS_KEY", owner.secret.expose()),
    ];
    for (name, value) in variables {
        println!("export {name}={value}");
    }
    Ok(())
}
