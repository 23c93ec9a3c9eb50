//! Envelopes: how the messages of a Connect stream lie in its bytes (executor 2.2). Nothing here waits
//! or allocates more than it was given, so that anything may be thrown at it.

use bytes::{Buf as _, Bytes, BytesMut};

use crate::connect::{ENVELOPE_HEAD, FLAG_COMPRESSED, FLAG_END_STREAM};

/// One envelope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// [`FLAG_COMPRESSED`], [`FLAG_END_STREAM`], and bits that mean nothing yet.
    pub flags: u8,
    /// The message, possibly compressed, or how the stream ended.
    pub payload: Bytes,
}

impl Envelope {
    /// Whether the payload is compressed.
    pub fn is_compressed(&self) -> bool {
        self.flags & FLAG_COMPRESSED != 0
    }

    /// Whether it is no message, but the end of the stream.
    pub fn ends_stream(&self) -> bool {
        self.flags & FLAG_END_STREAM != 0
    }
}

/// Why bytes are no envelopes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// More bytes of one envelope came than its reader wants to hold.
    #[error("a message is longer than {0} bytes")]
    TooLong(usize),
    /// The stream ended in the middle of an envelope.
    #[error("protocol error: incomplete envelope")]
    Incomplete,
}

/// Cuts bytes into envelopes, wherever the transport has split them.
#[derive(Debug)]
pub struct Envelopes {
    limit: usize,
    buffered: BytesMut,
}

impl Envelopes {
    /// A reader of envelopes with payloads of up to `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self { limit, buffered: BytesMut::new() }
    }

    /// Adds what came next.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffered.extend_from_slice(bytes);
    }

    /// Takes the next envelope; `None` until all of it was pushed.
    ///
    /// # Errors
    /// [`EnvelopeError::TooLong`]. A length alone is no reason: what was only announced takes no room.
    pub fn take(&mut self) -> Result<Option<Envelope>, EnvelopeError> {
        let Some(head) = self.buffered.first_chunk::<ENVELOPE_HEAD>() else {
            return Ok(None);
        };
        let [flags, length @ ..] = *head;
        // No address space of ours is smaller than this number.
        let length = u32::from_be_bytes(length) as usize;
        let here = self.buffered.len() - ENVELOPE_HEAD;
        if here.min(length) > self.limit {
            return Err(EnvelopeError::TooLong(self.limit));
        }
        if here < length {
            return Ok(None);
        }
        self.buffered.advance(ENVELOPE_HEAD);
        Ok(Some(Envelope { flags, payload: self.buffered.split_to(length).freeze() }))
    }

    /// Says that nothing more comes.
    ///
    /// # Errors
    /// [`EnvelopeError::Incomplete`] if a part of an envelope is left.
    pub fn finish(&self) -> Result<(), EnvelopeError> {
        if self.buffered.is_empty() { Ok(()) } else { Err(EnvelopeError::Incomplete) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8], limit: usize) -> Result<Vec<(u8, Bytes)>, EnvelopeError> {
        let mut envelopes = Envelopes::new(limit);
        envelopes.push(bytes);
        let mut all = Vec::new();
        while let Some(envelope) = envelopes.take()? {
            all.push((envelope.flags, envelope.payload));
        }
        envelopes.finish().map(|()| all)
    }

    #[test]
    fn envelopes_follow_one_another() {
        let two = b"\x01\0\0\0\x01a\x02\0\0\0\0";
        let expected = vec![(1, Bytes::from_static(b"a")), (2, Bytes::new())];
        assert_eq!(read(two, 1), Ok(expected));
        assert_eq!(read(b"", 0), Ok(vec![]));
    }

    #[test]
    fn what_is_cut_short_is_incomplete_whatever_it_announces() {
        for bytes in [&b"\0"[..], b"\0\0\0\0\x03{}", b"\0\xff\xff\xff\xff{}"] {
            assert_eq!(read(bytes, 8), Err(EnvelopeError::Incomplete), "{bytes:?}");
        }
    }

    #[test]
    fn what_is_too_long_is_refused_before_all_of_it_is_held() {
        assert_eq!(read(b"\0\0\0\0\x03abc", 2), Err(EnvelopeError::TooLong(2)));
        assert_eq!(read(b"\0\xff\xff\xff\xffabc", 2), Err(EnvelopeError::TooLong(2)));
        // What follows a short one is not counted to it.
        assert_eq!(read(b"\0\0\0\0\x01a\0\0\0\0\x01b", 1).map(|all| all.len()), Ok(2));
    }
}
