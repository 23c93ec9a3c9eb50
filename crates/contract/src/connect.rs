//! The Connect protocol's forms that both sides of the in-sandbox API share: codes, error bodies, the
//! envelope's flags, content types (executor 2.2, 2.4).

use serde::{Deserialize, Serialize};

/// Envelope flag: the payload is compressed.
pub const FLAG_COMPRESSED: u8 = 1;

/// Envelope flag: the payload is the end of the stream, JSON whatever the codec.
pub const FLAG_END_STREAM: u8 = 2;

/// Bytes before an envelope's payload: the flags, then the length, big-endian.
pub const ENVELOPE_HEAD: usize = 5;

/// How a call failed (executor 2.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// The caller gave up.
    Canceled,
    /// Nobody knows what failed.
    Unknown,
    /// The request itself is wrong, whatever the state of the sandbox.
    InvalidArgument,
    /// The call's time is over.
    DeadlineExceeded,
    /// What the request names is not there.
    NotFound,
    /// What the request would make is there.
    AlreadyExists,
    /// The caller may not do this.
    PermissionDenied,
    /// A limit is reached.
    ResourceExhausted,
    /// The state does not allow it now.
    FailedPrecondition,
    /// Another call came between.
    Aborted,
    /// Beyond the end.
    OutOfRange,
    /// We do not do this.
    Unimplemented,
    /// A fault on our side.
    Internal,
    /// Try again later.
    Unavailable,
    /// Data is gone.
    DataLoss,
    /// The caller is nobody we know.
    Unauthenticated,
}

impl Code {
    /// The HTTP status of a unary answer with this code (executor 2.4).
    pub fn http_status(self) -> u16 {
        match self {
            Self::Canceled => 499,
            Self::InvalidArgument | Self::OutOfRange | Self::FailedPrecondition => 400,
            Self::DeadlineExceeded => 504,
            Self::NotFound => 404,
            Self::AlreadyExists | Self::Aborted => 409,
            Self::PermissionDenied => 403,
            Self::ResourceExhausted => 429,
            Self::Unimplemented => 501,
            Self::Unknown | Self::Internal | Self::DataLoss => 500,
            Self::Unavailable => 503,
            Self::Unauthenticated => 401,
        }
    }
}

/// A failed call: body of a unary answer, and `error` of [`EndStream`] (executor 2.2).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ConnectError {
    /// What kind of failure.
    pub code: Code,
    /// What was tried, on what.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

impl ConnectError {
    /// An error with a code and a text.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

/// Payload of the envelope that ends a stream: `{}` on success (executor 2.2).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndStream {
    /// Absent on success.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ConnectError>,
}

/// How messages are encoded: named by the request's content type, mirrored in the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    /// Canonical proto3 JSON.
    Json,
    /// Binary protobuf.
    Proto,
}

/// The two forms of a call on the wire (executor 2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// One bare message each way.
    Unary,
    /// Envelopes, at least on the way back.
    Stream,
}

impl Codec {
    /// The content type of this codec in this form, exactly as clients compare it.
    pub fn content_type(self, form: Form) -> &'static str {
        match (form, self) {
            (Form::Unary, Self::Json) => "application/json",
            (Form::Unary, Self::Proto) => "application/proto",
            (Form::Stream, Self::Json) => "application/connect+json",
            (Form::Stream, Self::Proto) => "application/connect+proto",
        }
    }

    /// Reads a content type; parameters and letter case do not matter. `None`: not one of ours.
    pub fn from_content_type(value: &str) -> Option<(Form, Self)> {
        let media_type = value.split(';').next().unwrap_or("").trim();
        [Form::Unary, Form::Stream]
            .into_iter()
            .flat_map(|form| [(form, Self::Json), (form, Self::Proto)])
            .find(|(form, codec)| media_type.eq_ignore_ascii_case(codec.content_type(*form)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_have_their_names_and_statuses() {
        // executor 2.4
        for (code, name, status) in [
            (Code::Canceled, "canceled", 499),
            (Code::Unknown, "unknown", 500),
            (Code::InvalidArgument, "invalid_argument", 400),
            (Code::DeadlineExceeded, "deadline_exceeded", 504),
            (Code::NotFound, "not_found", 404),
            (Code::AlreadyExists, "already_exists", 409),
            (Code::PermissionDenied, "permission_denied", 403),
            (Code::ResourceExhausted, "resource_exhausted", 429),
            (Code::Aborted, "aborted", 409),
            (Code::OutOfRange, "out_of_range", 400),
            (Code::Unimplemented, "unimplemented", 501),
            (Code::Internal, "internal", 500),
            (Code::Unavailable, "unavailable", 503),
            (Code::DataLoss, "data_loss", 500),
            (Code::Unauthenticated, "unauthenticated", 401),
            (Code::FailedPrecondition, "failed_precondition", 400),
        ] {
            assert_eq!(serde_json::to_value(code).unwrap(), name);
            assert_eq!(code.http_status(), status, "{name}");
        }
    }

    #[test]
    fn codes_are_snake_case_on_the_wire() {
        let error = ConnectError::new(Code::NotFound, "no");
        let end = EndStream { error: Some(error) };
        let json = serde_json::to_string(&end).unwrap();
        assert_eq!(json, r#"{"error":{"code":"not_found","message":"no"}}"#);
        assert_eq!(serde_json::to_string(&EndStream::default()).unwrap(), "{}");
        assert_eq!(serde_json::to_string(&Code::DataLoss).unwrap(), "\"data_loss\"");
    }

    #[test]
    fn content_types_are_read_with_parameters() {
        let read = Codec::from_content_type;
        assert_eq!(read("application/json; charset=utf-8"), Some((Form::Unary, Codec::Json)));
        assert_eq!(read("Application/Connect+Proto"), Some((Form::Stream, Codec::Proto)));
        assert_eq!(read("application/grpc"), None);
        assert_eq!(read(""), None);
    }
}
