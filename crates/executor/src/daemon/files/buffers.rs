//! Memory that the chunks of one download take in turns: fresh memory for each costs more than to read
//! them (measured: half of the daemon's time).

use std::io;
use std::sync::{Arc, Mutex};

use hyper::body::Bytes;

use super::super::tasks::lock;

/// Memory that is not on its way to a client.
#[derive(Default)]
pub(super) struct Buffers(Mutex<Vec<Vec<u8>>>);

impl Buffers {
    /// Bytes that `read` fills, up to `length` of them; it tells how many.
    pub(super) fn fill(
        self: &Arc<Self>,
        length: usize,
        read: impl FnOnce(&mut [u8]) -> io::Result<usize>,
    ) -> io::Result<Bytes> {
        let mut bytes = lock(&self.0).pop().unwrap_or_default();
        bytes.resize(length, 0);
        let filled = read(&mut bytes)?;
        bytes.truncate(filled);
        Ok(Bytes::from_owner(Lent { bytes, home: Arc::clone(self) }))
    }
}

/// Memory that comes back when its bytes were sent, or given up.
struct Lent {
    bytes: Vec<u8>,
    home: Arc<Buffers>,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        lock(&self.home.0).push(std::mem::take(&mut self.bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_comes_back_and_is_filled_again() {
        let buffers = Arc::new(Buffers::default());
        let fill = |length, byte| {
            buffers.fill(length, |memory| {
                memory.fill(byte);
                Ok(memory.len() - 1)
            })
        };
        let first = fill(100, 1).unwrap();
        let place = first.as_ptr();
        let second = fill(100, 2).unwrap();
        assert_ne!(second.as_ptr(), place);
        let part = first.slice(10..20);
        drop(first);
        assert_eq!(lock(&buffers.0).len(), 0, "a part is still on its way");
        drop(part);
        let third = fill(50, 3).unwrap();
        assert_eq!((third.as_ptr(), &third[..]), (place, &[3; 49][..]));
        assert_eq!(&second[..], [2; 99]);
    }
}
