//! The network that sandboxes are on (design 4.1). Its containers do not reach each other: traffic between them
//! is off, and only the engine's own address, where the server's gateway listens, is there for all.

use std::net::IpAddr;

use bollard::Docker;
use bollard::models::{NetworkCreateRequest, NetworkInspect};
use sandyard_core::RuntimeError;
use tracing::info;

use crate::engine::{DockerSettings, LABEL_INSTALLATION, LABEL_ROLE};
use crate::error::{failed, is_not_found};

/// The bridge's switch for traffic between its containers.
const BETWEEN_CONTAINERS: &str = "com.docker.network.bridge.enable_icc";

/// What is known of a network that is there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NetworkFacts {
    /// The engine's own address on it.
    pub(crate) gateway: Option<IpAddr>,
    /// Whether its containers cannot reach each other.
    pub(crate) isolated: bool,
}

/// The sandboxes' network.
#[derive(Clone, Debug)]
pub(crate) struct DockerNetwork {
    pub(crate) name: String,
    /// Whether it is the installation's own, to be made and removed with it.
    owned: bool,
}

impl DockerNetwork {
    pub(crate) fn of(settings: &DockerSettings) -> Self {
        let own_name = || format!("sandyard-{}", settings.installation);
        Self {
            name: settings.network.clone().unwrap_or_else(own_name),
            owned: settings.network.is_none(),
        }
    }

    /// Makes sure it is there. One of our own from before, in which containers reach each other, is made anew
    /// if nothing is on it.
    pub(crate) async fn ensure(
        &self,
        docker: &Docker,
        settings: &DockerSettings,
    ) -> Result<NetworkFacts, RuntimeError> {
        let fail = |call| move |error| failed(&settings.host, call, error);
        let found = match docker.inspect_network(&self.name, None).await {
            Err(error) if is_not_found(&error) && self.owned => None,
            found => Some(found.map_err(fail("find the sandboxes' network"))?),
        };
        let found = match found {
            Some(found) if self.owned && !is_isolated(&found) && is_unused(&found) => {
                info!(network = self.name, "replacing a network whose containers reach each other");
                self.remove(docker, &settings.host).await?;
                None
            }
            found => found,
        };
        let found = match found {
            Some(found) => found,
            None => {
                Self::create(docker, settings, &self.name).await?;
                let made = docker.inspect_network(&self.name, None).await;
                made.map_err(fail("find the sandboxes' network"))?
            }
        };
        let isolated = is_isolated(&found);
        let configs = found.ipam.and_then(|ipam| ipam.config).unwrap_or_default();
        let gateways = configs.into_iter().filter_map(|config| config.gateway);
        // The engine may add a prefix length to the address.
        let parse = |text: String| text.split('/').next().and_then(|a| a.parse().ok());
        Ok(NetworkFacts { gateway: gateways.filter_map(parse).find(IpAddr::is_ipv4), isolated })
    }

    /// Whether its containers cannot reach each other; `None` if it does not exist.
    pub(crate) async fn inspect_isolation(
        &self,
        docker: &Docker,
        endpoint: &str,
    ) -> Result<Option<bool>, RuntimeError> {
        match docker.inspect_network(&self.name, None).await {
            Ok(found) => Ok(Some(is_isolated(&found))),
            Err(error) if is_not_found(&error) => Ok(None),
            Err(error) => Err(failed(endpoint, "find the sandboxes' network", error)),
        }
    }

    async fn create(
        docker: &Docker,
        settings: &DockerSettings,
        name: &str,
    ) -> Result<(), RuntimeError> {
        let labels =
            [(LABEL_INSTALLATION, settings.installation.as_str()), (LABEL_ROLE, "network")];
        let request = NetworkCreateRequest {
            name: name.to_owned(),
            driver: Some("bridge".to_owned()),
            options: Some([(BETWEEN_CONTAINERS.to_owned(), "false".to_owned())].into()),
            labels: Some(labels.map(|(k, v)| (k.to_owned(), v.to_owned())).into()),
            ..NetworkCreateRequest::default()
        };
        let created = docker.create_network(request).await;
        let call = "create the sandboxes' network";
        created.map(drop).map_err(|error| failed(&settings.host, call, error))
    }

    pub(crate) async fn remove(&self, docker: &Docker, endpoint: &str) -> Result<(), RuntimeError> {
        if !self.owned {
            return Ok(());
        }
        match docker.remove_network(&self.name).await {
            Ok(()) => Ok(()),
            Err(error) if is_not_found(&error) => Ok(()),
            Err(error) => Err(failed(endpoint, "remove the sandboxes' network", error)),
        }
    }
}

fn is_isolated(network: &NetworkInspect) -> bool {
    let options = network.options.as_ref();
    options.and_then(|options| options.get(BETWEEN_CONTAINERS)).is_some_and(|on| on == "false")
}

fn is_unused(network: &NetworkInspect) -> bool {
    network.containers.as_ref().is_none_or(|containers| containers.is_empty())
}
