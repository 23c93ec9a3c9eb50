//! Whether a download is compressed (executor 6.4). Much of what is large is compressed already, and to do
//! it again costs far more time than its bytes would, on any network.

use std::io::{self, Write as _};

use flate2::write::GzEncoder;

/// Up to here a file fits into one packet with its headers, and to compress it gains nothing.
const PACKET_BYTES: usize = 1300;

/// A large file is judged by samples from all over it.
const SAMPLES: u64 = 3;
const SAMPLE_BYTES: usize = 16 << 10;

/// What must be left, in percent, for compressing to be worth the work of both sides.
const WORTH_PERCENT: usize = 66;

pub(super) type Encoder = GzEncoder<Vec<u8>>;

/// At the fastest level: it packs text to a third, nearly as others do, and several times as fast.
pub(super) fn encoder() -> Encoder {
    GzEncoder::new(Vec::new(), flate2::Compression::fast())
}

/// What is known of a file's compressed form.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Gzip {
    /// Nobody asked for it, or it is not worth it.
    NotWorth,
    Worth,
    /// All of it.
    Done(Vec<u8>),
}

impl Gzip {
    /// Of a file that is in memory.
    pub(super) fn of_all(content: &[u8]) -> io::Result<Self> {
        if content.len() <= PACKET_BYTES {
            return Ok(Self::NotWorth);
        }
        let mut encoder = encoder();
        encoder.write_all(content)?;
        let packed = encoder.finish()?;
        Ok(if is_worth(content.len(), &packed) { Self::Done(packed) } else { Self::NotWorth })
    }

    /// Of a file of which `read` reads some at an offset, and tells how much.
    pub(super) fn of_samples(
        size: u64,
        read: impl Fn(&mut [u8], u64) -> io::Result<usize>,
    ) -> io::Result<Self> {
        let mut sample = vec![0; SAMPLE_BYTES];
        let (mut taken, mut encoder) = (0, encoder());
        for number in 0..SAMPLES {
            let length = read(&mut sample, size / SAMPLES * number)?;
            encoder.write_all(&sample[..length])?;
            taken += length;
        }
        Ok(if is_worth(taken, &encoder.finish()?) { Self::Worth } else { Self::NotWorth })
    }
}

fn is_worth(before: usize, packed: &[u8]) -> bool {
    packed.len() * 100 <= before * WORTH_PERCENT
}
