//! The body of every error (control-plane 2.1).

use serde::{Deserialize, Serialize};

/// The body of every error of the REST API.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// Equal to the HTTP status (control-plane G1).
    pub code: u16,
    /// What was tried, on what, and what to do.
    pub message: String,
    /// One of the open set of machine-readable reasons.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_code: Option<String>,
}
