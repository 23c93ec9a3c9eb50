//! Routes of the contract that this version does not have, and those that no version has: all of them
//! answer 501 and name themselves (design 8).

use axum::Router;
use axum::extract::MatchedPath;
use axum::routing::{MethodFilter, on};
use http::{Method, Uri};

use super::SharedApi;
use super::auth::Caller;
use super::error::ApiError;

const GET: MethodFilter = MethodFilter::GET;
const POST: MethodFilter = MethodFilter::POST;
const PUT: MethodFilter = MethodFilter::PUT;
const PATCH: MethodFilter = MethodFilter::PATCH;
const DELETE: MethodFilter = MethodFilter::DELETE;

/// The contract's index (control-plane 3.0) without what is built.
const ROUTES: &[(&str, &[MethodFilter])] = &[
    ("/sandboxes/metrics", &[GET]),
    ("/sandboxes/{sandboxID}/network", &[PUT]),
    ("/sandboxes/{sandboxID}/metrics", &[GET]),
    ("/sandboxes/{sandboxID}/logs", &[GET]),
    ("/v2/sandboxes/{sandboxID}/logs", &[GET]),
    ("/v3/templates", &[POST]),
    ("/v2/templates", &[GET, POST]),
    ("/v2/templates/{templateID}", &[PATCH]),
    ("/v2/templates/{templateID}/builds/{buildID}", &[POST]),
    ("/templates", &[GET, POST]),
    ("/templates/{templateID}", &[GET, POST, PATCH]),
    ("/templates/{templateID}/files/{hash}", &[GET]),
    ("/templates/{templateID}/builds/{buildID}", &[POST]),
    ("/templates/{templateID}/builds/{buildID}/status", &[GET]),
    ("/templates/{templateID}/builds/{buildID}/logs", &[GET]),
    ("/templates/aliases/{alias}", &[GET]),
    ("/templates/tags", &[POST, DELETE]),
    ("/templates/{templateID}/tags", &[GET]),
    ("/templates/{templateID}/tags/count", &[GET]),
    ("/templates/{templateID}/tags/exists", &[GET]),
    ("/templates/{templateID}/tags/groups", &[GET]),
    ("/templates/{templateID}/tags/{tag}/assignments", &[GET]),
    ("/default-templates", &[GET]),
    ("/volumes", &[GET, POST]),
    ("/volumes/{volumeID}", &[GET, DELETE]),
    ("/volumecontent/{volumeID}/path", &[GET, PATCH, DELETE]),
    ("/volumecontent/{volumeID}/dir", &[GET, POST]),
    ("/volumecontent/{volumeID}/file", &[GET, PUT]),
    ("/secrets", &[GET, POST]),
    ("/secrets/{secretID}", &[GET, POST, DELETE]),
    ("/teams", &[GET]),
    ("/teams/{teamID}/metrics", &[GET]),
    ("/teams/{teamID}/metrics/max", &[GET]),
    ("/api-keys", &[GET, POST]),
    ("/api-keys/{apiKeyID}", &[PATCH, DELETE]),
    ("/access-tokens", &[POST]),
    ("/access-tokens/{id}", &[DELETE]),
    ("/nodes", &[GET]),
    ("/nodes/{nodeID}", &[GET, POST]),
    ("/admin/teams/{teamID}/sandboxes/kill", &[POST]),
    ("/admin/sandboxes/running-counts", &[GET]),
    ("/admin/teams/{teamID}/builds/cancel", &[POST]),
    ("/admin/teams/{teamID}/api-keys", &[POST]),
    ("/admin/teams/{teamID}/api-keys/{apiKeyID}", &[DELETE]),
];

/// The longest path that an error repeats.
const MAX_NAMED: usize = 200;

/// Adds every route that is known but not built.
pub(super) fn add_to(router: Router<SharedApi>) -> Router<SharedApi> {
    ROUTES.iter().fold(router, |router, (path, methods)| {
        methods.iter().fold(router, |router, method| router.route(path, on(*method, known)))
    })
}

/// A route of the contract: refused like every other to those without a key.
async fn known(_: Caller, method: Method, route: MatchedPath) -> ApiError {
    ApiError::not_built(&format!("the route {method} {}", route.as_str()))
}

/// Any other path or method. Says nothing that a caller without a key may not know.
pub(super) async fn unknown(method: Method, uri: Uri) -> ApiError {
    let path: String = uri.path().chars().take(MAX_NAMED).collect();
    let segment = path.split('/').nth(1).unwrap_or_default();
    if matches!(segment, "envs" | "instances") {
        return ApiError::not_built(&format!(
            "the route {method} {path}, which only outdated clients call (update the E2B SDK or CLI),"
        ));
    }
    ApiError::not_built(&format!("the route {method} {path}"))
}
