//! The Connect stream's envelopes (executor 2.2).

use sandyard_contract::connect::{ENVELOPE_HEAD, FLAG_COMPRESSED, FLAG_END_STREAM};
use sandyard_contract::envelope::{Envelope, EnvelopeError, Envelopes};

use crate::pieces;

/// Takes a limit, a way to cut, and a stream: however it is cut, the reader finds what a look at the whole
/// stream finds, and what it found stands in the stream byte for byte.
pub fn fuzz_envelopes(data: &[u8]) {
    let [limit, seed, stream @ ..] = data else {
        return;
    };
    let limit = usize::from(*limit);
    let expected = look(stream, limit);
    assert_eq!(read(&[stream], limit), expected, "in one piece");
    assert_eq!(read(&pieces(stream, *seed), limit), expected, "in pieces");

    let written: Vec<u8> = expected.0.iter().flat_map(write).collect();
    assert!(stream.starts_with(&written), "the envelopes are not the stream's");
    if expected.1.is_none() {
        assert_eq!(written.len(), stream.len(), "a stream without an error has no rest");
    }
    for envelope in &expected.0 {
        assert_eq!(envelope.is_compressed(), envelope.flags & FLAG_COMPRESSED != 0);
        assert_eq!(envelope.ends_stream(), envelope.flags & FLAG_END_STREAM != 0);
    }
}

type ReadEnvelopes = (Vec<Envelope>, Option<EnvelopeError>);

fn read(pieces: &[&[u8]], limit: usize) -> ReadEnvelopes {
    let mut envelopes = Envelopes::new(limit);
    let mut found = Vec::new();
    for piece in pieces {
        envelopes.push(piece);
        loop {
            match envelopes.take() {
                Ok(Some(envelope)) => found.push(envelope),
                Ok(None) => break,
                Err(error) => return (found, Some(error)),
            }
        }
    }
    let error = envelopes.finish().err();
    (found, error)
}

/// The same by looking at all of it at once.
fn look(mut stream: &[u8], limit: usize) -> ReadEnvelopes {
    let mut found = Vec::new();
    while !stream.is_empty() {
        let Some((&[flags, a, b, c, d], rest)) = stream.split_first_chunk::<ENVELOPE_HEAD>() else {
            return (found, Some(EnvelopeError::Incomplete));
        };
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        if length.min(rest.len()) > limit {
            return (found, Some(EnvelopeError::TooLong(limit)));
        }
        let Some((payload, rest)) = rest.split_at_checked(length) else {
            return (found, Some(EnvelopeError::Incomplete));
        };
        found.push(Envelope { flags, payload: payload.to_vec().into() });
        stream = rest;
    }
    (found, None)
}

fn write(envelope: &Envelope) -> Vec<u8> {
    let length = u32::try_from(envelope.payload.len()).expect("it came from a 32-bit length");
    [&[envelope.flags][..], &length.to_be_bytes(), &envelope.payload].concat()
}
