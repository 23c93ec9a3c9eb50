//! `sandyard ls` and `sandyard kill`.

use std::collections::BTreeMap;

use anyhow::{Context as _, bail};
use http::{Method, StatusCode};
use sandyard_runtime_docker::container_name;
use serde_json::Value;

use super::client::ApiClient;
use crate::config::Config;
use crate::control_socket::{self, INSTANCES, POOL};
use crate::data_dir::DataDir;

/// Prints one line a sandbox: id, template, state, start, end, and the name of its container on the engine, which
/// says nothing of the sandbox.
///
/// # Errors
/// If no server runs or it does not answer.
pub async fn list(config: &Config) -> anyhow::Result<()> {
    let sandboxes = all(&ApiClient::find(config)?).await?;
    let instances = instances(&DataDir::open(&config.data_dir)?).await?;
    for sandbox in sandboxes {
        let member = |name: &str| sandbox[name].as_str().unwrap_or("-").to_owned();
        println!(
            "{}  {}  {}  started {}  ends {}  container {}",
            member("sandboxID"),
            member("alias"),
            member("state"),
            member("startedAt"),
            member("endAt"),
            instances.get(&member("sandboxID")).map_or("-", String::as_str),
        );
    }
    Ok(())
}

/// Prints one line for each kind of container in the pool: template, with or without workspace, how many are ready and
/// how many should be.
///
/// # Errors
/// If no server runs.
pub async fn list_pool(config: &Config) -> anyhow::Result<()> {
    let data = DataDir::open(&config.data_dir)?;
    let asked = control_socket::ask(&data, POOL).await;
    let mut lines = asked.context("cannot ask the server for its pool: does one run?")?;
    while let Some(line) = lines.next_line().await? {
        let fields: Vec<&str> = line.split(' ').collect();
        let [template, profile, ready, target] = fields[..] else {
            bail!("the answer is not readable");
        };
        println!("{template}  {profile}  {ready} ready of {target}");
    }
    Ok(())
}

/// The name of each sandbox's container.
async fn instances(data: &DataDir) -> anyhow::Result<BTreeMap<String, String>> {
    let mut lines = control_socket::ask(data, INSTANCES)
        .await
        .context("cannot ask the server for its containers")?;
    let mut found = BTreeMap::new();
    while let Some(line) = lines.next_line().await? {
        let (sandbox, instance) = line.split_once(' ').context("the answer is not readable")?;
        found.insert(sandbox.to_owned(), container_name(&instance.parse()?));
    }
    Ok(found)
}

/// Kills sandboxes by their ids, or all of them.
///
/// # Errors
/// If no server runs, or a sandbox is unknown or could not be ended; the others are ended all the same.
pub async fn kill(config: &Config, ids: &[String], every: bool) -> anyhow::Result<()> {
    let api = ApiClient::find(config)?;
    let ids = if every {
        let found = all(&api).await?;
        found.iter().filter_map(|s| s["sandboxID"].as_str().map(str::to_owned)).collect()
    } else {
        ids.to_vec()
    };
    let mut failed = 0;
    for id in ids {
        let (status, _, body) = api.send(Method::DELETE, &format!("/sandboxes/{id}")).await?;
        if status == StatusCode::NO_CONTENT {
            println!("killed {id}");
        } else {
            failed += 1;
            eprintln!("{id}: {}", String::from_utf8_lossy(&body));
        }
    }
    if failed > 0 { bail!("{failed} could not be killed") } else { Ok(()) }
}

async fn all(api: &ApiClient) -> anyhow::Result<Vec<Value>> {
    let mut found = Vec::new();
    let mut path = "/v2/sandboxes".to_owned();
    loop {
        let (next, body) = api.expect(Method::GET, &path).await?;
        let page: Vec<Value> = serde_json::from_slice(&body).context("the list is not readable")?;
        found.extend(page);
        match next {
            Some(token) => path = format!("/v2/sandboxes?nextToken={token}"),
            None => return Ok(found),
        }
    }
}
