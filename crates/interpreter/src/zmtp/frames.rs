//! Frames: from bytes and to bytes (rfc 23, "Framing").

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

use super::MAX_MESSAGE;

/// The first thing both sides send: a signature, version 3.0, mechanism NULL, "not a server", zeros.
pub(super) const GREETING_LENGTH: usize = 64;

const MORE: u8 = 1;
const LONG: u8 = 2;
const COMMAND: u8 = 4;

pub(super) fn greeting() -> [u8; GREETING_LENGTH] {
    let mut greeting = [0; GREETING_LENGTH];
    greeting[0] = 0xff;
    greeting[9] = 0x7f;
    greeting[10] = 3;
    greeting[12..16].copy_from_slice(b"NULL");
    greeting
}

/// Whether the other side speaks version 3 without security.
pub(super) fn greeting_fits(greeting: &[u8]) -> bool {
    greeting.len() == GREETING_LENGTH
        && greeting[0] == 0xff
        && greeting[9] & 1 == 1
        && greeting[10] >= 3
        && greeting[12..32] == *b"NULL\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"
}

/// The command that ends the handshake.
pub(super) fn ready(socket_type: &str, identity: &[u8]) -> BytesMut {
    let mut body = BytesMut::from(&b"\x05READY"[..]);
    for (name, value) in [("Socket-Type", socket_type.as_bytes()), ("Identity", identity)] {
        // Both are ours and short.
        body.put_u8(name.len() as u8);
        body.put_slice(name.as_bytes());
        body.put_u32(value.len() as u32);
        body.put_slice(value);
    }
    let mut frame = BytesMut::new();
    put(&mut frame, COMMAND, &body);
    frame
}

/// A message of several parts.
pub(super) fn message<'a>(parts: impl ExactSizeIterator<Item = &'a [u8]>) -> BytesMut {
    let last = parts.len().saturating_sub(1);
    let mut frames = BytesMut::new();
    for (index, part) in parts.enumerate() {
        put(&mut frames, if index < last { MORE } else { 0 }, part);
    }
    frames
}

fn put(frames: &mut BytesMut, flags: u8, body: &[u8]) {
    match u8::try_from(body.len()) {
        Ok(length) => {
            frames.put_u8(flags);
            frames.put_u8(length);
        }
        Err(_) => {
            frames.put_u8(flags | LONG);
            frames.put_u64(body.len() as u64);
        }
    }
    frames.put_slice(body);
}

/// One frame.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) more: bool,
    pub(super) command: bool,
    pub(super) body: Bytes,
}

/// Takes the frame at the beginning of `buffer`; none if it is not whole yet, with room for the rest.
///
/// # Errors
/// If it can be no frame.
pub(super) fn take(buffer: &mut BytesMut) -> Result<Option<Frame>, &'static str> {
    let Some(flags) = buffer.first().copied() else { return Ok(None) };
    if flags & !(MORE | LONG | COMMAND) != 0 {
        return Err("a frame with unknown flags");
    }
    let (head, length) = if flags & LONG == 0 {
        let Some(length) = buffer.get(1) else { return Ok(None) };
        (2, usize::from(*length))
    } else {
        let Some(length) = buffer.get(1..9) else { return Ok(None) };
        let length = length.iter().fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte));
        (9, usize::try_from(length).unwrap_or(usize::MAX))
    };
    if length > MAX_MESSAGE {
        return Err("a frame beyond all bounds");
    }
    if buffer.len() < head + length {
        buffer.reserve(head + length - buffer.len());
        return Ok(None);
    }
    buffer.advance(head);
    let body = buffer.split_to(length).freeze();
    Ok(Some(Frame { more: flags & MORE != 0, command: flags & COMMAND != 0, body }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_comes_back_part_by_part() {
        let long = vec![7; 300];
        let parts: [&[u8]; 3] = [b"a", b"", &long];
        let mut bytes = message(parts.into_iter());
        for (index, part) in parts.into_iter().enumerate() {
            let frame = take(&mut bytes).expect("valid").expect("whole");
            assert_eq!((frame.more, frame.command), (index < 2, false));
            assert_eq!(frame.body, part);
        }
        assert_eq!(take(&mut bytes), Ok(None));
    }

    #[test]
    fn a_frame_that_is_not_whole_stays() {
        let whole = message([&[1_u8; 300][..]].into_iter());
        for length in 0..whole.len() {
            let mut part = BytesMut::from(&whole[..length]);
            assert_eq!(take(&mut part), Ok(None), "{length}");
            assert_eq!(part, whole[..length]);
        }
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(take(&mut BytesMut::from(&b"GET / HTTP/1.1"[..])).is_err());
        let mut huge = BytesMut::from(&[LONG, 0xff, 0, 0, 0, 0, 0, 0, 0][..]);
        assert!(take(&mut huge).is_err());
    }

    #[test]
    fn the_greeting_is_read_as_it_is_written() {
        assert!(greeting_fits(&greeting()));
        let mut curve = greeting();
        curve[12..17].copy_from_slice(b"CURVE");
        assert!(!greeting_fits(&curve));
    }
}
