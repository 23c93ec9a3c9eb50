//! Messages as bytes: codecs, envelopes, compressed requests (executor 2.2).

use std::io::Read as _;

use flate2::read::MultiGzDecoder;
use http_body_util::BodyExt as _;
use hyper::body::{Bytes, Incoming};
use hyper::header::HeaderValue;
use prost::Message;
use sandyard_contract::connect::{
    Code, Codec, ConnectError, ENVELOPE_HEAD, FLAG_COMPRESSED, FLAG_END_STREAM,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The longest request message. The contract has no limit, but messages are held in memory, and files
/// have a route that streams them.
const MESSAGE_LIMIT: usize = 64 << 20;

/// One envelope of a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Envelope {
    compressed: bool,
    payload: Bytes,
}

/// How a request's messages are compressed, if they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compression {
    Identity,
    Gzip,
}

impl Compression {
    pub(super) fn read(header: Option<&HeaderValue>) -> Result<Self, ConnectError> {
        match header.map(HeaderValue::as_bytes) {
            None | Some(b"" | b"identity") => Ok(Self::Identity),
            Some(b"gzip") => Ok(Self::Gzip),
            Some(other) => {
                let other = String::from_utf8_lossy(other);
                let message = format!("unknown compression '{other}': gzip and identity are read");
                Err(ConnectError::new(Code::Unimplemented, message))
            }
        }
    }

    pub(super) fn decode(self, bytes: Bytes) -> Result<Bytes, ConnectError> {
        // Nothing compressed is nothing; a client need not wrap an empty message.
        if self == Self::Identity || bytes.is_empty() {
            return Ok(bytes);
        }
        let mut plain = Vec::new();
        let mut decoder = MultiGzDecoder::new(&bytes[..]).take(MESSAGE_LIMIT as u64 + 1);
        match decoder.read_to_end(&mut plain) {
            Ok(length) if length > MESSAGE_LIMIT => Err(too_long()),
            Ok(_) => Ok(plain.into()),
            Err(error) => Err(invalid(format!("failed to decompress the message: {error}"))),
        }
    }

    pub(super) fn decode_envelope(self, envelope: Envelope) -> Result<Bytes, ConnectError> {
        match (envelope.compressed, self) {
            (false, _) => Ok(envelope.payload),
            (true, Self::Gzip) => self.decode(envelope.payload),
            (true, Self::Identity) => {
                Err(invalid("a message is marked as compressed and the request names no encoding"))
            }
        }
    }
}

fn invalid(message: impl Into<String>) -> ConnectError {
    ConnectError::new(Code::InvalidArgument, message)
}

fn too_long() -> ConnectError {
    let message = format!("the message is longer than {MESSAGE_LIMIT} bytes: use /files");
    ConnectError::new(Code::ResourceExhausted, message)
}

/// Reads a request's body to its end.
pub(super) async fn collect(mut body: Incoming) -> Result<Bytes, ConnectError> {
    // Nearly every request is one frame, which needs no copy.
    let mut whole = Bytes::new();
    let mut joined = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame =
            frame.map_err(|error| invalid(format!("failed to read the request: {error}")))?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        if joined.len() + whole.len() + data.len() > MESSAGE_LIMIT {
            return Err(too_long());
        }
        if joined.is_empty() && whole.is_empty() {
            whole = data;
        } else {
            joined.extend_from_slice(&std::mem::take(&mut whole));
            joined.extend_from_slice(&data);
        }
    }
    Ok(if joined.is_empty() { whole } else { joined.into() })
}

/// The one envelope of a call whose request is not a stream.
pub(super) fn single_envelope(mut body: Bytes) -> Result<Envelope, ConnectError> {
    if body.is_empty() {
        return Err(ConnectError::new(Code::Unimplemented, "the request has no message"));
    }
    let incomplete = || invalid("protocol error: incomplete envelope");
    if body.len() < ENVELOPE_HEAD {
        return Err(incomplete());
    }
    let head = body.split_to(ENVELOPE_HEAD);
    let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
    let length = usize::try_from(length).map_err(|_| too_long())?;
    if body.len() < length {
        return Err(incomplete());
    }
    let payload = body.split_to(length);
    // A client may close its side of the stream with an envelope that says so.
    if !body.is_empty() && body[0] & FLAG_END_STREAM == 0 {
        return Err(ConnectError::new(Code::Unimplemented, "the request has several messages"));
    }
    Ok(Envelope { compressed: head[0] & FLAG_COMPRESSED != 0, payload })
}

pub(super) fn decode<M>(codec: Codec, bytes: &Bytes) -> Result<M, ConnectError>
where
    M: Message + Default + DeserializeOwned,
{
    match codec {
        Codec::Json => serde_json::from_slice(bytes)
            .map_err(|error| invalid(format!("failed to read the JSON message: {error}"))),
        Codec::Proto => M::decode(bytes.clone())
            .map_err(|error| invalid(format!("failed to read the binary message: {error}"))),
    }
}

pub(super) fn encode<M>(codec: Codec, message: &M) -> Result<Bytes, ConnectError>
where
    M: Message + Serialize,
{
    let mut bytes = Vec::new();
    write(codec, message, &mut bytes)?;
    Ok(bytes.into())
}

pub(super) fn message_envelope<M>(codec: Codec, message: &M) -> Result<Bytes, ConnectError>
where
    M: Message + Serialize,
{
    let length = message.encoded_len();
    // Most of a long message is base64 in JSON.
    let capacity = if codec == Codec::Json { length / 3 * 4 + 64 } else { length };
    let mut bytes = Vec::with_capacity(ENVELOPE_HEAD + capacity);
    bytes.extend_from_slice(&[0; ENVELOPE_HEAD]);
    write(codec, message, &mut bytes)?;
    let length = length_field(bytes.len() - ENVELOPE_HEAD);
    bytes[1..ENVELOPE_HEAD].copy_from_slice(&length);
    Ok(bytes.into())
}

fn write<M>(codec: Codec, message: &M, into: &mut Vec<u8>) -> Result<(), ConnectError>
where
    M: Message + Serialize,
{
    let result = match codec {
        Codec::Json => serde_json::to_writer(into, message).map_err(|error| error.to_string()),
        Codec::Proto => message.encode(into).map_err(|error| error.to_string()),
    };
    result.map_err(|error| {
        ConnectError::new(Code::Internal, format!("failed to write the answer: {error}"))
    })
}

/// An envelope around a payload.
pub(super) fn envelope(flags: u8, payload: &[u8]) -> Bytes {
    let mut bytes = Vec::with_capacity(ENVELOPE_HEAD + payload.len());
    bytes.push(flags);
    bytes.extend_from_slice(&length_field(payload.len()));
    bytes.extend_from_slice(payload);
    bytes.into()
}

/// Answers stay far below 4 GiB: a chunk of output or a directory's listing.
fn length_field(length: usize) -> [u8; 4] {
    u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use proptest::prelude::*;
    use sandyard_contract::rpc::process::{SendInputRequest, StartResponse};

    use super::*;

    fn code(result: Result<Envelope, ConnectError>) -> Code {
        result.unwrap_err().code
    }

    #[test]
    fn broken_envelopes_are_refused() {
        let read = |bytes: &'static [u8]| single_envelope(Bytes::from_static(bytes));
        assert_eq!(code(read(b"")), Code::Unimplemented);
        assert_eq!(code(read(b"\0\0\0")), Code::InvalidArgument);
        assert_eq!(code(read(b"\0\0\0\0\x03{}")), Code::InvalidArgument);
        assert_eq!(code(read(b"\0\xff\xff\xff\xff{}")), Code::InvalidArgument);
        assert_eq!(code(read(b"\0\0\0\0\x02{}\0\0\0\0\0")), Code::Unimplemented);
        let ended = read(b"\0\0\0\0\x02{}\x02\0\0\0\x02{}").unwrap();
        assert_eq!(&ended.payload[..], b"{}");
    }

    #[test]
    fn gzip_is_read_where_it_is_announced() {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(b"{}").unwrap();
        let packed = Bytes::from(encoder.finish().unwrap());
        assert_eq!(&Compression::Gzip.decode(packed.clone()).unwrap()[..], b"{}");
        let compressed = || Envelope { compressed: true, payload: packed.clone() };
        assert_eq!(&Compression::Gzip.decode_envelope(compressed()).unwrap()[..], b"{}");
        let error = Compression::Identity.decode_envelope(compressed()).unwrap_err();
        assert_eq!(error.code, Code::InvalidArgument);
        let unknown = Compression::read(Some(&HeaderValue::from_static("br"))).unwrap_err();
        assert_eq!(unknown.code, Code::Unimplemented);
    }

    #[test]
    fn malformed_json_is_an_invalid_argument() {
        for bad in ["", "{", "[]", r#"{"input":3}"#] {
            let bytes = Bytes::from_static(bad.as_bytes());
            let error = decode::<SendInputRequest>(Codec::Json, &bytes).unwrap_err();
            assert_eq!(error.code, Code::InvalidArgument, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_envelope_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let length = bytes.len();
            if let Ok(envelope) = single_envelope(bytes.into()) {
                prop_assert!(envelope.payload.len() + ENVELOPE_HEAD <= length);
            }
        }

        #[test]
        fn an_envelope_is_read_as_it_was_written(payload in prop::collection::vec(any::<u8>(), 0..64)) {
            let read = single_envelope(envelope(0, &payload)).unwrap();
            prop_assert_eq!(read, Envelope { compressed: false, payload: payload.into() });
        }
    }

    #[test]
    fn a_message_envelope_tells_its_length() {
        let bytes = message_envelope(Codec::Json, &StartResponse::default()).unwrap();
        assert_eq!(&bytes[..], b"\0\0\0\0\x02{}");
    }
}
