//! The engine's events: a container that ends by itself.

use std::collections::HashMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bollard::Docker;
use bollard::models::EventMessage;
use bollard::query_parameters::EventsOptionsBuilder;
use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use sandyard_core::RuntimeEvent;
use sandyard_types::InstallationId;
use tracing::warn;

use crate::engine::{LABEL_INSTALLATION, LABEL_INSTANCE};

/// Between two tries to follow the events of an engine that does not answer.
const RECONNECT: Duration = Duration::from_millis(500);

/// How much the engine's clock may be behind ours without an event being missed.
const CLOCK_MARGIN: Duration = Duration::from_secs(10);

/// Follows the events for ever. After each break, and once at the start, what was missed is announced
/// as [`RuntimeEvent::Resync`].
pub(crate) fn watch(
    docker: Docker,
    installation: &InstallationId,
) -> BoxStream<'static, RuntimeEvent> {
    let label = format!("{LABEL_INSTALLATION}={installation}");
    let connections = stream::unfold(false, move |again| {
        let (docker, label) = (docker.clone(), label.clone());
        async move {
            if again {
                tokio::time::sleep(RECONNECT).await;
            }
            Some((one_connection(&docker, label), true))
        }
    });
    connections.flatten().boxed()
}

fn one_connection(docker: &Docker, label: String) -> BoxStream<'static, RuntimeEvent> {
    let filters: HashMap<&str, Vec<String>> = [
        ("type", vec!["container".to_owned()]),
        ("label", vec![label]),
        ("event", vec!["die".to_owned(), "destroy".to_owned()]),
    ]
    .into();
    // The connection is made when somebody waits for the first event, after the comparison: what happens between
    // comes then. With a margin, for the engine's clock may be another's; an event that comes twice does no harm.
    let since = (SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
        .saturating_sub(CLOCK_MARGIN)
        .as_secs()
        .to_string();
    let options = EventsOptionsBuilder::default().filters(&filters).since(&since).build();
    let events = docker.events(Some(options)).filter_map(|event| async {
        match event {
            Ok(message) => died(message),
            Err(error) => {
                warn!(%error, "the engine's events broke off");
                None
            }
        }
    });
    stream::once(async { RuntimeEvent::Resync }).chain(events).boxed()
}

fn died(message: EventMessage) -> Option<RuntimeEvent> {
    let attributes = message.actor?.attributes?;
    // Containers of another role have no such label.
    attributes.get(LABEL_INSTANCE)?.parse().ok().map(RuntimeEvent::Died)
}
