//! Who calls (control-plane 1.1, 1.3). As an extractor that stands first in every handler: no path or body
//! is looked at before the caller is known.

use axum::extract::FromRequestParts;
use http::header::AUTHORIZATION;
use http::request::Parts;
use sandyard_types::TeamId;

use super::SharedApi;
use super::error::ApiError;
use crate::tokens::hash_api_key;

const API_KEY_HEADER: &str = "x-api-key";
const API_KEY_PREFIX: &str = "e2b_";

/// The team whose API key came with the request.
pub(super) struct Caller {
    pub(super) team: TeamId,
}

impl FromRequestParts<SharedApi> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &SharedApi) -> Result<Self, ApiError> {
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
