//! Checksums that a client sends with a body, in headers or in a trailer behind it.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::HeaderMap;
use s3s::checksum::ChecksumHasher;
use s3s::crypto::Checksum as _;
use s3s::dto::Checksum;
use s3s::{S3Result, TrailingHeaders, s3_error};

const TRAILER: &str = "x-amz-trailer";

/// What a body must turn out to be, and the sums taken so far.
pub(crate) struct Expected {
    declared: Vec<(&'static str, String)>,
    trailers: Option<TrailingHeaders>,
    hasher: ChecksumHasher,
    md5: Option<[u8; 16]>,
}

impl Expected {
    /// Reads what the request's head declares.
    pub(crate) fn of(headers: &HeaderMap, trailers: Option<TrailingHeaders>) -> S3Result<Self> {
        let mut hasher = ChecksumHasher::default();
        let mut declared = Vec::new();
        let trailer =
            headers.get(TRAILER).and_then(|value| value.to_str().ok()).unwrap_or_default();
        for name in NAMES {
            let value = headers.get(name).and_then(|value| value.to_str().ok());
            if let Some(value) = value {
                declared.push((name, value.to_owned()));
            }
            let in_trailer = trailer.split(',').any(|t| t.trim().eq_ignore_ascii_case(name));
            if value.is_some() || in_trailer {
                enable(&mut hasher, name);
            }
        }
        let md5 = match headers.get("content-md5") {
            None => None,
            Some(value) => {
                let bytes = BASE64.decode(value.as_bytes()).ok();
                let digest = bytes.and_then(|bytes| <[u8; 16]>::try_from(bytes).ok());
                Some(digest.ok_or_else(|| s3_error!(InvalidDigest))?)
            }
        };
        Ok(Self { declared, trailers, hasher, md5 })
    }

    /// Whether there is a checksum to take; MD5 is not counted.
    pub(crate) fn is_any(&self) -> bool {
        let sums = &self.hasher;
        sums.crc32.is_some()
            || sums.crc32c.is_some()
            || sums.sha1.is_some()
            || sums.sha256.is_some()
            || sums.crc64nvme.is_some()
    }

    pub(crate) fn update(&mut self, data: &[u8]) {
        self.hasher.update(data);
    }

    /// Holds the whole body against what was declared; `md5` is the body's, if it was taken.
    pub(crate) fn finish(self, md5: Option<&[u8; 16]>) -> S3Result<()> {
        if let (Some(expected), Some(actual)) = (&self.md5, md5)
            && expected != actual
        {
            return Err(s3_error!(BadDigest, "the body does not match the Content-MD5 header"));
        }
        let mut declared = self.declared;
        if let Some(trailers) = self.trailers.as_ref().and_then(TrailingHeaders::take) {
            for name in NAMES {
                if let Some(value) = trailers.get(name).and_then(|value| value.to_str().ok()) {
                    declared.push((name, value.to_owned()));
                }
            }
        }
        let sums = self.hasher.finalize();
        for (name, expected) in declared {
            if value(&sums, name).is_some_and(|actual| *actual != expected) {
                return Err(s3_error!(BadDigest, "the body does not match '{name}'"));
            }
        }
        Ok(())
    }
}

const NAMES: [&str; 5] = [
    "x-amz-checksum-crc32",
    "x-amz-checksum-crc32c",
    "x-amz-checksum-sha1",
    "x-amz-checksum-sha256",
    "x-amz-checksum-crc64nvme",
];

fn enable(hasher: &mut ChecksumHasher, name: &str) {
    match name {
        "x-amz-checksum-crc32" => hasher.crc32 = Some(s3s::crypto::Crc32::new()),
        "x-amz-checksum-crc32c" => hasher.crc32c = Some(s3s::crypto::Crc32c::new()),
        "x-amz-checksum-sha1" => hasher.sha1 = Some(s3s::crypto::Sha1::new()),
        "x-amz-checksum-sha256" => hasher.sha256 = Some(s3s::crypto::Sha256::new()),
        _ => hasher.crc64nvme = Some(s3s::crypto::Crc64Nvme::new()),
    }
}

fn value<'a>(sums: &'a Checksum, name: &str) -> Option<&'a String> {
    match name {
        "x-amz-checksum-crc32" => sums.checksum_crc32.as_ref(),
        "x-amz-checksum-crc32c" => sums.checksum_crc32c.as_ref(),
        "x-amz-checksum-sha1" => sums.checksum_sha1.as_ref(),
        "x-amz-checksum-sha256" => sums.checksum_sha256.as_ref(),
        _ => sums.checksum_crc64nvme.as_ref(),
    }
}
