//! Messages as bytes: codecs, envelopes, compressed requests (executor 2.2).

use std::io::Read as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flate2::read::MultiGzDecoder;
use http_body_util::BodyExt as _;
use hyper::Request;
use hyper::body::Bytes;
use hyper::header::{CONTENT_ENCODING, HeaderName, HeaderValue};
use prost::Message;
use sandyard_contract::connect::{Code, Codec, ConnectError, ENVELOPE_HEAD};
use sandyard_contract::envelope::{Envelope, EnvelopeError, Envelopes};
use sandyard_contract::rpc::process::process_event::data_event::Output;
use sandyard_contract::rpc::process::{ProcessEvent, StartResponse, process_event};
use sandyard_http::Inbound;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The longest request message. The contract has no limit, but messages are held in memory, and files
/// have a route that streams them.
const MESSAGE_LIMIT: usize = 64 << 20;

const STREAM_ENCODING: HeaderName = HeaderName::from_static("connect-content-encoding");

/// How a request's messages are compressed, if they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Compression {
    Identity,
    Gzip,
}

impl Compression {
    fn read(header: Option<&HeaderValue>) -> Result<Self, ConnectError> {
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

    fn decode(self, bytes: Bytes) -> Result<Bytes, ConnectError> {
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

    fn decode_envelope(self, envelope: Envelope) -> Result<Bytes, ConnectError> {
        match (envelope.is_compressed(), self) {
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

fn unreadable(error: hyper::Error) -> ConnectError {
    invalid(format!("failed to read the request: {error}"))
}

fn refused(error: EnvelopeError) -> ConnectError {
    match error {
        EnvelopeError::TooLong(_) => too_long(),
        EnvelopeError::Incomplete => invalid(error.to_string()),
    }
}

/// Reads the message of a unary request.
pub(super) async fn unary_message(request: Request<Inbound>) -> Result<Bytes, ConnectError> {
    let compression = Compression::read(request.headers().get(CONTENT_ENCODING))?;
    compression.decode(collect(request.into_body()).await?)
}

/// Reads a request's body to its end.
async fn collect(mut body: Inbound) -> Result<Bytes, ConnectError> {
    // Nearly every request is one frame, which needs no copy.
    let mut whole = Bytes::new();
    let mut joined = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(unreadable)?;
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

/// The messages of a streaming request, each as soon as it is there.
pub(in super::super) struct Messages {
    codec: Codec,
    compression: Compression,
    body: Inbound,
    envelopes: Envelopes,
    over: bool,
}

impl Messages {
    pub(super) fn read(codec: Codec, request: Request<Inbound>) -> Result<Self, ConnectError> {
        let compression = Compression::read(request.headers().get(STREAM_ENCODING))?;
        let envelopes = Envelopes::new(MESSAGE_LIMIT);
        Ok(Self { codec, compression, body: request.into_body(), envelopes, over: false })
    }

    /// The next message; `None` after the last.
    pub(in super::super) async fn next<M>(&mut self) -> Result<Option<M>, ConnectError>
    where
        M: Message + Default + DeserializeOwned,
    {
        while !self.over {
            if let Some(envelope) = self.envelopes.take().map_err(refused)? {
                // A client may close its side of the stream with an envelope that says so.
                if !envelope.ends_stream() {
                    let payload = self.compression.decode_envelope(envelope)?;
                    return decode(self.codec, &payload).map(Some);
                }
                self.over = true;
            } else if let Some(frame) = self.body.frame().await {
                if let Ok(data) = frame.map_err(unreadable)?.into_data() {
                    self.envelopes.push(&data);
                }
            } else {
                self.envelopes.finish().map_err(refused)?;
                self.over = true;
            }
        }
        Ok(None)
    }

    /// The one message of a call whose request is not a stream.
    pub(super) async fn only<M>(mut self) -> Result<M, ConnectError>
    where
        M: Message + Default + DeserializeOwned,
    {
        let unimplemented = |text| ConnectError::new(Code::Unimplemented, text);
        let only = self.next().await?;
        let only = only.ok_or_else(|| unimplemented("the request has no message"))?;
        match self.next::<M>().await? {
            None => Ok(only),
            Some(_) => Err(unimplemented("the request has several messages")),
        }
    }
}

pub(super) fn decode<M>(codec: Codec, bytes: &Bytes) -> Result<M, ConnectError>
where
    M: Message + Default + DeserializeOwned,
{
    match codec {
        Codec::Json => serde_json::from_slice(bytes)
            .or_else(|error| without_nulls(bytes).ok_or(error))
            .map_err(|error| invalid(format!("failed to read the JSON message: {error}"))),
        Codec::Proto => M::decode(bytes.clone())
            .map_err(|error| invalid(format!("failed to read the binary message: {error}"))),
    }
}

/// Reads a message of which `null` members say that they are not set: proto3's JSON allows that, and the
/// generated readers do for some kinds of members only. `None` if there are none, or it is no message without.
fn without_nulls<M: DeserializeOwned>(bytes: &Bytes) -> Option<M> {
    fn remove(value: &mut serde_json::Value) -> bool {
        match value {
            serde_json::Value::Object(members) => {
                let before = members.len();
                members.retain(|_, member| !member.is_null());
                let mut removed = members.len() < before;
                for (name, member) in members {
                    // The one map among requests: its entries are no members, and need values.
                    removed |= name != "envs" && remove(member);
                }
                removed
            }
            // None of the requests has a list of messages.
            _ => false,
        }
    }
    let mut value = serde_json::from_slice(bytes).ok()?;
    if !remove(&mut value) {
        return None;
    }
    serde_json::from_value(value).ok()
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

/// The envelope of a `data` event. Long output is most of what a daemon ever encodes: in JSON it is
/// written once, straight into the envelope, where the general way makes a text of it first and looks
/// that through for characters to escape.
pub(super) fn output_envelope(codec: Codec, output: Output) -> Result<Bytes, ConnectError> {
    let (name, data) = match &output {
        Output::Stdout(data) => ("stdout", data),
        Output::Stderr(data) => ("stderr", data),
        Output::Pty(data) => ("pty", data),
    };
    if codec == Codec::Proto {
        let data = process_event::DataEvent { output: Some(output) };
        let event = ProcessEvent { event: Some(process_event::Event::Data(data)) };
        return message_envelope(codec, &StartResponse { event: Some(event) });
    }
    let (before, after) = (format!("{{\"event\":{{\"data\":{{\"{name}\":\""), "\"}}}");
    let text = data.len().div_ceil(3) * 4;
    let length = before.len() + text + after.len();
    let mut bytes = Vec::with_capacity(ENVELOPE_HEAD + length);
    bytes.push(0);
    bytes.extend_from_slice(&length_field(length));
    bytes.extend_from_slice(before.as_bytes());
    let begin = bytes.len();
    bytes.resize(begin + text, 0);
    STANDARD
        .encode_slice(data, &mut bytes[begin..])
        .map_err(|error| ConnectError::new(Code::Internal, error.to_string()))?;
    bytes.extend_from_slice(after.as_bytes());
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
    use sandyard_contract::connect::FLAG_COMPRESSED;
    use sandyard_contract::rpc::process::SendInputRequest;

    use super::*;

    #[test]
    fn gzip_is_read_where_it_is_announced() {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(b"{}").unwrap();
        let packed = Bytes::from(encoder.finish().unwrap());
        assert_eq!(&Compression::Gzip.decode(packed.clone()).unwrap()[..], b"{}");
        let compressed = || Envelope { flags: FLAG_COMPRESSED, payload: packed.clone() };
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

    #[test]
    fn null_members_of_json_are_not_set() {
        use sandyard_contract::rpc::process::StartRequest;
        let read = |text: &'static str| {
            decode::<StartRequest>(Codec::Json, &Bytes::from_static(text.as_bytes()))
        };
        let plain = read(r#"{"process":{"cmd":"x"}}"#).unwrap();
        for same in [
            r#"{"process":{"cmd":"x","args":null,"envs":null,"cwd":null},"pty":null,"tag":null}"#,
            r#"{"process":{"cmd":"x","args":null},"stdin":null}"#,
        ] {
            assert_eq!(read(same).unwrap(), plain, "{same}");
        }
        for bad in [
            r#"{"process":{"cmd":"x","args":[null]}}"#,
            r#"{"process":{"cmd":"x","envs":{"A":null}}}"#,
            r#"{"process":{"cmd":3,"args":null}}"#,
        ] {
            assert_eq!(read(bad).unwrap_err().code, Code::InvalidArgument, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_in_any_pieces_are_envelopes_or_an_error(
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..12), 0..12),
        ) {
            let mut envelopes = Envelopes::new(16);
            let (mut pushed, mut taken) = (0, 0);
            for piece in &pieces {
                envelopes.push(piece);
                pushed += piece.len();
                loop {
                    match envelopes.take() {
                        Ok(Some(envelope)) => {
                            taken += ENVELOPE_HEAD + envelope.payload.len();
                            prop_assert!(envelope.payload.len() <= 16 && taken <= pushed);
                        }
                        Ok(None) => break,
                        Err(error) => {
                            prop_assert_eq!(error, EnvelopeError::TooLong(16));
                            return Ok(());
                        }
                    }
                }
            }
            prop_assert_eq!(envelopes.finish().is_ok(), taken == pushed);
        }

        #[test]
        fn envelopes_are_read_as_they_were_written_wherever_they_are_cut(
            payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..64), 0..6),
            cut in 1..40usize,
        ) {
            let written: Vec<u8> = payloads.iter().flat_map(|p| envelope(0, p)).collect();
            let mut envelopes = Envelopes::new(64);
            let mut read = Vec::new();
            for piece in written.chunks(cut) {
                envelopes.push(piece);
                while let Some(envelope) = envelopes.take().unwrap() {
                    read.push(envelope.payload.to_vec());
                }
            }
            prop_assert_eq!(envelopes.finish(), Ok(()));
            prop_assert_eq!(read, payloads);
        }
    }

    #[test]
    fn output_is_written_as_any_other_message() {
        for codec in [Codec::Json, Codec::Proto] {
            for data in [&b""[..], b"a", b"ab", b"abc", b"\xff\xfe\xfd\xfc"] {
                let data = Bytes::from_static(data);
                for output in
                    [Output::Stdout(data.clone()), Output::Stderr(data.clone()), Output::Pty(data)]
                {
                    let event = process_event::DataEvent { output: Some(output.clone()) };
                    let event = Some(process_event::Event::Data(event));
                    let message = StartResponse { event: Some(ProcessEvent { event }) };
                    let expected = message_envelope(codec, &message).unwrap();
                    assert_eq!(output_envelope(codec, output).unwrap(), expected);
                }
            }
        }
    }

    #[test]
    fn a_message_envelope_tells_its_length() {
        let bytes = message_envelope(Codec::Json, &StartResponse::default()).unwrap();
        assert_eq!(&bytes[..], b"\0\0\0\0\x02{}");
    }
}
