//! Parts of files: the `Range` header (executor 6.4).

/// A part of a file: first byte and length, which is not 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ByteRange {
    pub start: u64,
    pub length: u64,
}

impl ByteRange {
    /// The value of `Content-Range`.
    pub(super) fn content_range(self, size: u64) -> String {
        format!("bytes {}-{}/{size}", self.start, self.start + self.length - 1)
    }
}

/// No part of the file, or not the form of a range.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid range")]
pub(super) struct Unsatisfiable;

/// Reads a range header for a file of `size` bytes. No parts: the whole file is the answer.
pub(super) fn parse(header: &str, size: u64) -> Result<Vec<ByteRange>, Unsatisfiable> {
    let list = header.strip_prefix("bytes=").ok_or(Unsatisfiable)?;
    let mut parts = Vec::new();
    let mut beyond = false;
    for item in list.split(',').map(str::trim).filter(|item| !item.is_empty()) {
        let (first, last) = item.split_once('-').ok_or(Unsatisfiable)?;
        let (first, last) = (first.trim(), last.trim());
        let part = if first.is_empty() {
            // The last so many bytes.
            let length = number(last)?.min(size);
            ByteRange { start: size - length, length }
        } else {
            let start = number(first)?;
            if start >= size {
                beyond = true;
                continue;
            }
            let end = match last {
                "" => size - 1,
                last => number(last)?.min(size - 1),
            };
            let length = (end + 1).checked_sub(start).ok_or(Unsatisfiable)?;
            if length == 0 {
                return Err(Unsatisfiable);
            }
            ByteRange { start, length }
        };
        if part.length == 0 {
            beyond = true;
            continue;
        }
        parts.push(part);
    }
    if parts.is_empty() && beyond && size > 0 {
        return Err(Unsatisfiable);
    }
    // More than the whole is a mistake or an attack: the whole is the answer.
    let total = parts.iter().fold(0u64, |sum, part| sum.saturating_add(part.length));
    Ok(if total > size { Vec::new() } else { parts })
}

fn number(text: &str) -> Result<u64, Unsatisfiable> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| digits).ok_or(Unsatisfiable)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parsed(header: &str, size: u64) -> Option<Vec<(u64, u64)>> {
        let parts = parse(header, size).ok()?;
        Some(parts.iter().map(|part| (part.start, part.length)).collect())
    }

    #[test]
    fn the_forms_of_a_range() {
        for (header, expected) in [
            ("bytes=0-4", Some(vec![(0, 5)])),
            ("bytes=2-", Some(vec![(2, 8)])),
            ("bytes=-3", Some(vec![(7, 3)])),
            ("bytes=-30", Some(vec![(0, 10)])),
            ("bytes=5-100", Some(vec![(5, 5)])),
            ("bytes=0-1, 8-9", Some(vec![(0, 2), (8, 2)])),
            ("bytes=0-1,20-30", Some(vec![(0, 2)])),
            ("bytes=0-9,0-9", Some(vec![])),
            ("bytes=10-", None),
            ("bytes=4-2", None),
            ("bytes=-0", None),
            ("bytes=x-1", None),
            ("bytes=1", None),
            ("lines=1-2", None),
        ] {
            assert_eq!(parsed(header, 10), expected, "{header}");
        }
        assert_eq!(parsed("bytes=0-", 0), Some(vec![]));
    }

    proptest! {
        #[test]
        fn parts_lie_in_the_file(header in "bytes=[0-9,\\- ]{0,20}", size in 0u64..100) {
            for part in parse(&header, size).unwrap_or_default() {
                prop_assert!(part.length > 0 && part.start + part.length <= size);
            }
        }
    }
}
