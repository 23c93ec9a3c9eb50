//! Who calls (control-plane 1.1, 1.3). As an extractor that stands first in every handler: no path or body
//! is looked at before the caller is known.

use axum::extract::FromRequestParts;
use http::header::AUTHORIZATION;
use http::request::Parts;
use sandyard_core::ApiKeyHash;
use sandyard_types::TeamId;
use sha2::{Digest as _, Sha256};

use super::Shared;
use super::error::ApiError;

const API_KEY_HEADER: &str = "x-api-key";
const API_KEY_PREFIX: &str = "e2b_";

/// What the store keeps of an API key: SHA-256 of its whole text, in lower-case hex.
pub fn hash_api_key(key: &str) -> ApiKeyHash {
    ApiKeyHash(hex::encode(Sha256::digest(key.as_bytes())))
}

/// The team whose API key came with the request.
pub(super) struct Caller {
    pub(super) team: TeamId,
}

impl FromRequestParts<Shared> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Shared) -> Result<Self, ApiError> {
        let mut values = parts.headers.get_all(API_KEY_HEADER).iter();
        let Some(value) = values.next() else {
            // What was tried is worth more to the caller than what is missing (control-plane 1.3).
            return Err(ApiError::unauthorized(if parts.headers.contains_key(AUTHORIZATION) {
                "this server takes no 'Authorization' credentials: send an API key in the header \
                     'X-API-Key'"
            } else {
                "no API key was given: send it in the header 'X-API-Key'"
            }));
        };
        if values.next().is_some() {
            return Err(ApiError::bad_request("there is more than one header 'X-API-Key'"));
        }
        let key =
            value.to_str().ok().filter(|key| key.starts_with(API_KEY_PREFIX)).ok_or_else(|| {
                ApiError::unauthorized("the API key has the wrong form: it begins with 'e2b_'")
            })?;
        let store = api.app.scheduler.store();
        match store.team_of_key(&hash_api_key(key)).await? {
            Some(team) => {
                api.app.scheduler.catalogue().learn(&team);
                Ok(Self { team: team.id })
            }
            None => Err(ApiError::unauthorized("the API key is not known here")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_stored_as_the_sha_256_of_its_whole_text() {
        assert_eq!(
            hash_api_key("e2b_00").0,
            "ee62d346e057821a022acfef71ed19de3434336a9e0d40bc0e99965ee3121944"
        );
    }
}
