//! `sandyard team add`: one more team with an API key of its own.

use anyhow::bail;
use sandyard_core::{Store, Team};
use sandyard_types::TeamId;

use crate::config::Config;
use crate::data_dir::DataDir;
use crate::secrets::fresh_api_key;
use crate::tokens::hash_api_key;

/// Adds the team and prints its first key. The server may be running; it knows the key at once.
///
/// # Errors
/// If the name is taken or not of `[a-z0-9-_]`, or the store cannot be opened.
pub async fn add(config: &Config, slug: &str) -> anyhow::Result<()> {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_".contains(&b);
    if slug.is_empty() || slug.len() > 64 || !slug.bytes().all(plain) {
        bail!("'{slug}' is no team name: use 1 to 64 characters of [a-z0-9-_]");
    }
    let data = DataDir::open(&config.data_dir)?;
    let store = Store::open(&data.store_file()).await?;
    if store.teams().await?.iter().any(|team| team.slug == slug) {
        bail!("there is a team '{slug}' already");
    }
    let team = Team { id: TeamId::random(), slug: slug.to_owned(), name: slug.to_owned() };
    store.add_team(&team).await?;
    let key = fresh_api_key()?;
    store.add_api_key(team.id, &hash_api_key(&key)).await?;
    store.close().await;
    println!("{key}");
    Ok(())
}
