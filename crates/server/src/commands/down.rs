//! `sandyard down`: end every sandbox, the network and the server.

use anyhow::{Context as _, bail};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;

use super::up::{DONE, DOWN};
use crate::config::Config;
use crate::data_dir::DataDir;
use crate::installation::Installation;

/// Asks the running server to end everything; where none runs, does it itself.
///
/// # Errors
/// What could not be ended.
pub async fn run(config: &Config) -> anyhow::Result<()> {
    let data = DataDir::open(&config.data_dir)?;
    match UnixStream::connect(data.control_socket()).await {
        Ok(server) => ask(server).await,
        // Nobody listens: sandboxes that an earlier server left running still end in order.
        Err(_) => {
            let _lock = data.lock()?;
            println!("no server runs on {}: ending what it left", data.path().display());
            let installation = Installation::start(config, data.clone()).await?;
            installation.end(|line| println!("{line}")).await?;
            data.remove_running()
        }
    }
}

async fn ask(mut server: UnixStream) -> anyhow::Result<()> {
    server.write_all(DOWN).await.context("cannot ask the server to go down")?;
    let mut lines = BufReader::new(server).lines();
    let mut last = String::new();
    while let Some(line) = lines.next_line().await.context("the server broke off")? {
        println!("{line}");
        last = line;
    }
    if last == DONE { Ok(()) } else { bail!("the server did not end everything; see its log") }
}
