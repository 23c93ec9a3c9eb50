//! `sandyard down`: end every sandbox, the network and the server.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use tokio::io::{BufReader, Lines};
use tokio::net::UnixStream;
use tokio::time::sleep;

use crate::config::Config;
use crate::connection_budget::ConnectionBudget;
use crate::control_socket::{DONE, DOWN, ask};
use crate::data_dir::DataDir;
use crate::installation::Installation;

/// How long a server may take to start, with much to take over.
const START_LIMIT: Duration = Duration::from_secs(60);

/// Between two looks at a server that does not listen yet.
const POLL: Duration = Duration::from_millis(100);

/// Asks the running server to end everything; where none runs, does it itself.
///
/// # Errors
/// What could not be ended.
pub async fn run(config: &Config) -> anyhow::Result<()> {
    let data = DataDir::open(&config.data_dir)?;
    let begun = Instant::now();
    loop {
        if let Ok(answer) = ask(&data, DOWN).await {
            return follow(answer).await;
        }
        match data.lock() {
            Ok(_lock) => return end(config, &data).await,
            // A server that has the folder but does not listen yet is starting, or about to go.
            Err(_) if begun.elapsed() < START_LIMIT => sleep(POLL).await,
            Err(error) => return Err(error),
        }
    }
}

/// Nobody serves: sandboxes that an earlier server left running still end in order.
async fn end(config: &Config, data: &DataDir) -> anyhow::Result<()> {
    println!("no server runs on {}: ending what it left", data.path().display());
    let budget = ConnectionBudget::raise()?;
    let installation = Installation::start(config, data.clone(), &budget).await?;
    installation.end(|line| println!("{line}")).await?;
    data.remove_running()
}

async fn follow(mut lines: Lines<BufReader<UnixStream>>) -> anyhow::Result<()> {
    let mut last = String::new();
    while let Some(line) = lines.next_line().await.context("the server broke off")? {
        println!("{line}");
        last = line;
    }
    // It stays open until this process has ended: the server waits for that before it ends.
    std::mem::forget(lines);
    if last == DONE { Ok(()) } else { bail!("the server did not end everything; see its log") }
}
