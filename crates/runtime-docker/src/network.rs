//! The network that sandboxes are on (design 4.1).

use std::net::IpAddr;

use bollard::Docker;
use bollard::models::NetworkCreateRequest;
use sandyard_core::RuntimeError;

use crate::engine::{DockerSettings, LABEL_INSTALLATION, LABEL_ROLE};
use crate::error::{failed, is_not_found};

/// The sandboxes' network.
#[derive(Clone, Debug)]
pub(crate) struct Network {
    pub(crate) name: String,
    /// Whether it is the installation's own, to be made and removed with it.
    owned: bool,
}

impl Network {
    pub(crate) fn of(settings: &DockerSettings) -> Self {
        let own_name = || format!("sandyard-{}", settings.installation);
        Self {
            name: settings.network.clone().unwrap_or_else(own_name),
            owned: settings.network.is_none(),
        }
    }

    /// Makes sure it is there; returns the engine's own address on it.
    pub(crate) async fn ensure(
        &self,
        docker: &Docker,
        settings: &DockerSettings,
    ) -> Result<Option<IpAddr>, RuntimeError> {
        let fail = |call| move |error| failed(&settings.host, call, error);
        let found = match docker.inspect_network(&self.name, None).await {
            Err(error) if is_not_found(&error) && self.owned => {
                Self::create(docker, settings, &self.name).await?;
                docker.inspect_network(&self.name, None).await
            }
            found => found,
        };
        let found = found.map_err(fail("find the sandboxes' network"))?;
        let configs = found.ipam.and_then(|ipam| ipam.config).unwrap_or_default();
        let gateways = configs.into_iter().filter_map(|config| config.gateway);
        // The engine may add a prefix length to the address.
        let parse = |text: String| text.split('/').next().and_then(|a| a.parse().ok());
        Ok(gateways.filter_map(parse).find(IpAddr::is_ipv4))
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
