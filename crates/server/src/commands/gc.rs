//! `sandyard gc`: remove what earlier versions left on the engine.

use crate::config::Config;
use crate::installation;

/// Removes executor volumes that no container uses and no server holds; with `all` this version's too, unless a
/// server runs on this data folder.
///
/// # Errors
/// If the engine does not answer or refuses.
pub async fn run(config: &Config, all: bool) -> anyhow::Result<()> {
    let data = crate::data_dir::DataDir::open(&config.data_dir)?;
    let engine = installation::connect(config, &data).await?;
    // Held from here on: a server that starts now would need the volume that is about to go.
    let idle = data.lock();
    let removed = engine.collect_garbage(all && idle.is_ok()).await?;
    for name in &removed {
        println!("removed volume {name}");
    }
    if removed.is_empty() {
        println!("nothing to remove");
    }
    Ok(())
}
