//! Times as text: ISO 8601 with zone (code-interpreter 4).

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Now, in UTC.
pub(crate) fn now() -> String {
    // Years beyond 9999 cannot be written; a clock that says so is no clock.
    OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_else(|_| "1970-01-01T00:00:00Z".to_owned())
}
