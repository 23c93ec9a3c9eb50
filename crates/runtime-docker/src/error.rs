//! From the engine's answers to errors that say what to do.

use std::path::PathBuf;

use bollard::errors::Error;
use sandyard_core::RuntimeError;
use sandyard_types::error_chain;

/// Why the runtime could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum DockerError {
    /// The engine does not answer, or is not what we think.
    #[error(transparent)]
    Engine(#[from] RuntimeError),
    /// The executor bundle cannot be read.
    #[error(
        "cannot read the executor bundle {path} (scripts/ builds it, and executor.bundle names another place)"
    )]
    Bundle {
        /// Where it was looked for.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The engine is older than what we can work with.
    #[error("the engine speaks API {found}, but {needed} (Docker 20.10) or later is needed")]
    TooOld {
        /// What it speaks.
        found: String,
        /// What we need.
        needed: &'static str,
    },
}

/// Turns an error of the engine's client into ours; `call` says what was tried.
pub(crate) fn failed(endpoint: &str, call: &'static str, error: Error) -> RuntimeError {
    match error {
        Error::DockerResponseServerError { message, .. } if is_missing_fuse(&message) => {
            RuntimeError::NoFuse(message)
        }
        Error::DockerResponseServerError { status_code, message } => {
            RuntimeError::Failed { call, reason: format!("{message} (status {status_code})") }
        }
        Error::IOError { .. }
        | Error::HyperResponseError { .. }
        | Error::HyperLegacyError { .. }
        | Error::RequestTimeoutError
        | Error::SocketNotFoundError(_) => {
            RuntimeError::Unreachable { endpoint: endpoint.to_owned(), reason: error_chain(&error) }
        }
        other => RuntimeError::Failed { call, reason: error_chain(&other) },
    }
}

/// Whether the engine says that an object is not there.
pub(crate) fn is_not_found(error: &Error) -> bool {
    matches!(error, Error::DockerResponseServerError { status_code: 404, .. })
}

/// Whether the engine says that something else is being done to the object.
pub(crate) fn is_conflict(error: &Error) -> bool {
    matches!(error, Error::DockerResponseServerError { status_code: 409, .. })
}

fn is_missing_fuse(message: &str) -> bool {
    message.contains("/dev/fuse")
        && (message.contains("no such file or directory") || message.contains("not a device"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(message: &str) -> Error {
        Error::DockerResponseServerError { status_code: 500, message: message.to_owned() }
    }

    #[test]
    fn a_host_without_fuse_is_told_from_other_failures() {
        let missing = "error gathering device information while adding custom device \
                       \"/dev/fuse\": no such file or directory";
        assert!(matches!(failed("e", "create", answer(missing)), RuntimeError::NoFuse(_)));
        let other = failed("e", "create", answer("no space left on device"));
        assert_eq!(
            other.to_string(),
            "the engine failed to create: no space left on device (status 500)"
        );
    }

    #[test]
    fn an_engine_that_does_not_answer_is_named() {
        let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        let error = failed("unix:///run/x.sock", "create", Error::IOError { err: refused });
        assert!(matches!(&error, RuntimeError::Unreachable { .. }));
        assert!(error.to_string().contains("unix:///run/x.sock"), "{error}");
    }
}
