//! Pages of object lists, and how they become the answers of ListObjects, version 1 and 2.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use s3s::dto::{
    CommonPrefix, EncodingType, ListObjectsInput, ListObjectsOutput, ListObjectsV2Input,
    ListObjectsV2Output, Object,
};
use s3s::{S3Result, s3_error};

/// The most names one answer carries (S3's own limit).
pub(crate) const MAX_KEYS: usize = 1000;

/// What `encoding-type=url` leaves as it is.
const PLAIN: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~').remove(b'/');

pub(crate) struct PageRequest<'a> {
    pub(crate) bucket: &'a str,
    pub(crate) prefix: &'a str,
    pub(crate) delimiter: Option<&'a str>,
    /// Only names after this one.
    pub(crate) after: Option<&'a str>,
    /// 1 to [`MAX_KEYS`].
    pub(crate) limit: usize,
}

#[derive(Debug)]
pub(crate) enum ListingEntry {
    Object(Box<Object>),
    Prefix(String),
}

impl ListingEntry {
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Object(object) => object.key.as_deref().unwrap_or_default(),
            Self::Prefix(prefix) => prefix,
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct ListingPage {
    /// In order of their names.
    pub(crate) entries: Vec<ListingEntry>,
    /// Whether names follow after the last.
    pub(crate) more: bool,
}

impl ListingPage {
    fn next(&self) -> Option<&str> {
        self.entries.last().filter(|_| self.more).map(ListingEntry::name)
    }

    fn split(self, encode: impl Fn(&str) -> String) -> (Vec<Object>, Vec<CommonPrefix>) {
        let mut objects = Vec::new();
        let mut prefixes = Vec::new();
        for entry in self.entries {
            match entry {
                ListingEntry::Object(mut object) => {
                    object.key = object.key.as_deref().map(&encode);
                    objects.push(*object);
                }
                ListingEntry::Prefix(prefix) => {
                    prefixes.push(CommonPrefix { prefix: Some(encode(&prefix)) });
                }
            }
        }
        (objects, prefixes)
    }
}

/// What a client asked for, whichever version it speaks.
pub(crate) struct ListQuery {
    pub(crate) prefix: String,
    pub(crate) delimiter: Option<String>,
    pub(crate) after: Option<String>,
    pub(crate) limit: usize,
}

impl ListQuery {
    pub(crate) fn v1(input: &ListObjectsInput) -> S3Result<Self> {
        Ok(Self {
            prefix: input.prefix.clone().unwrap_or_default(),
            delimiter: input.delimiter.clone().filter(|d| !d.is_empty()),
            after: input.marker.clone().filter(|m| !m.is_empty()),
            limit: limit(input.max_keys)?,
        })
    }

    pub(crate) fn v2(input: &ListObjectsV2Input) -> S3Result<Self> {
        let after = match input.continuation_token.as_deref().filter(|t| !t.is_empty()) {
            Some(token) => Some(name_of_token(token)?),
            None => input.start_after.clone().filter(|s| !s.is_empty()),
        };
        Ok(Self {
            prefix: input.prefix.clone().unwrap_or_default(),
            delimiter: input.delimiter.clone().filter(|d| !d.is_empty()),
            after,
            limit: limit(input.max_keys)?,
        })
    }

    pub(crate) fn page<'a>(&'a self, bucket: &'a str) -> PageRequest<'a> {
        PageRequest {
            bucket,
            prefix: &self.prefix,
            delimiter: self.delimiter.as_deref(),
            after: self.after.as_deref(),
            limit: self.limit,
        }
    }
}

fn limit(max_keys: Option<i32>) -> S3Result<usize> {
    match max_keys {
        None => Ok(MAX_KEYS),
        Some(number) => match usize::try_from(number) {
            Ok(number) => Ok(number.min(MAX_KEYS)),
            Err(_) => Err(s3_error!(InvalidArgument, "max-keys must not be negative")),
        },
    }
}

/// Continuation tokens are the last name of the page before, in hex so that nobody takes them for a
/// key.
fn name_of_token(token: &str) -> S3Result<String> {
    let bytes = hex::decode(token).ok();
    bytes
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .ok_or_else(|| s3_error!(InvalidArgument, "the continuation token is not one of ours"))
}

fn encoder(encoding: Option<&EncodingType>) -> impl Fn(&str) -> String + Copy + use<> {
    let url = encoding.is_some_and(|encoding| encoding.as_str() == EncodingType::URL);
    move |text| {
        if url { utf8_percent_encode(text, PLAIN).to_string() } else { text.to_owned() }
    }
}

pub(crate) fn v1_output(input: ListObjectsInput, page: ListingPage) -> ListObjectsOutput {
    let encode = encoder(input.encoding_type.as_ref());
    let (more, next) = (page.more, page.next().map(encode));
    let (objects, prefixes) = page.split(encode);
    ListObjectsOutput {
        name: Some(input.bucket),
        prefix: Some(encode(&input.prefix.unwrap_or_default())),
        marker: Some(encode(&input.marker.unwrap_or_default())),
        max_keys: Some(input.max_keys.unwrap_or(MAX_KEYS as i32)),
        is_truncated: Some(more),
        contents: Some(objects),
        common_prefixes: Some(prefixes),
        delimiter: input.delimiter.as_deref().map(encode),
        next_marker: next,
        encoding_type: input.encoding_type,
        ..ListObjectsOutput::default()
    }
}

pub(crate) fn v2_output(input: ListObjectsV2Input, page: ListingPage) -> ListObjectsV2Output {
    let encode = encoder(input.encoding_type.as_ref());
    let (more, count) = (page.more, page.entries.len());
    let next = page.next().map(hex::encode);
    let (objects, prefixes) = page.split(encode);
    ListObjectsV2Output {
        name: Some(input.bucket),
        prefix: Some(encode(&input.prefix.unwrap_or_default())),
        max_keys: Some(input.max_keys.unwrap_or(MAX_KEYS as i32)),
        key_count: Some(count as i32),
        continuation_token: input.continuation_token,
        is_truncated: Some(more),
        next_continuation_token: next,
        contents: Some(objects),
        common_prefixes: Some(prefixes),
        delimiter: input.delimiter.as_deref().map(encode),
        encoding_type: input.encoding_type,
        start_after: input.start_after.as_deref().map(encode),
        ..ListObjectsV2Output::default()
    }
}
