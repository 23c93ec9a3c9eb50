//! One span a request, and one line when it is answered. Neither query nor headers are in it: both may
//! hold secrets.

use std::time::Instant;

use axum::extract::{MatchedPath, Request};
use axum::middleware::Next;
use axum::response::Response;
use tracing::{Instrument as _, field, info, info_span};

pub(super) async fn trace(request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().map_or("unknown", MatchedPath::as_str);
    let span = info_span!(
        "request",
        method = %request.method(),
        route,
        sandbox.id = field::Empty,
    );
    async {
        let start = Instant::now();
        let response = next.run(request).await;
        info!(
            status = response.status().as_u16(),
            duration_ms = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX),
            "answered"
        );
        response
    }
    .instrument(span)
    .await
}
