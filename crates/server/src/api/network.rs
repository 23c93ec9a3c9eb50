//! Member `network` of a create (control-plane 3.6).

use sandyard_contract::rest::NetworkBody;
use sandyard_types::Network;

use super::error::ApiError;

/// What the client said, with what is not built refused already.
pub(super) fn network(body: Option<NetworkBody>) -> Result<Option<Network>, ApiError> {
    let Some(body) = body else {
        return Ok(None);
    };
    let mask = body.mask_request_host.filter(|mask| !mask.is_empty());
    let mask_request_host = mask
        .map(|mask| mask.parse())
        .transpose()
        .map_err(|error| ApiError::validation("network.maskRequestHost", error))?;
    Ok(Some(Network {
        allow_public_traffic: body.allow_public_traffic,
        allow_out: body.allow_out,
        deny_out: body.deny_out,
        dns_servers: body.dns_servers,
        https_ports: body.https_ports,
        mask_request_host,
    }))
}
