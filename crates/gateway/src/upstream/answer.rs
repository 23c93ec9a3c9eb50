//! The few answers of the upstream that the gateway reads itself.

use bytes::Bytes;
use http::StatusCode;
use http_body_util::{BodyExt, Limited};
use percent_encoding::percent_decode_str;
use s3s::dto::{ETag, Object, ObjectStorageClass, Timestamp, TimestampFormat};
use s3s::xml::{DeError, DeResult, Deserializer};
use s3s::{Body, S3Error, S3ErrorCode, S3Result, s3_error};

use crate::listing::{ListingEntry, ListingPage};

/// A list of 1000 keys of 1024 bytes, all of them encoded, is below this.
const LARGEST: usize = 8 * 1024 * 1024;

/// The whole of a body that is a document.
pub(super) async fn collect(body: Body) -> S3Result<Bytes> {
    match Limited::new(body, LARGEST).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) => {
            Err(s3_error!(ServiceUnavailable, "the object store's answer broke off: {error}"))
        }
    }
}

/// S3's error document.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct ErrorDocument {
    pub(super) code: String,
    pub(super) message: String,
}

impl ErrorDocument {
    /// What can be read of it; proxies answer with other documents.
    pub(super) fn read(body: &[u8]) -> Self {
        let mut document = Self::default();
        let mut xml = Deserializer::new(body);
        let read = xml.named_element("Error", |d| {
            d.for_each_element(|d, name| match name {
                b"Code" => text(d, &mut document.code),
                b"Message" => text(d, &mut document.message),
                _ => skip(d),
            })
        });
        if read.is_err() && document.message.is_empty() {
            let start = &body[..body.len().min(200)];
            document.message = String::from_utf8_lossy(start).trim().to_owned();
        }
        document
    }

    pub(super) fn into_s3(self, status: StatusCode) -> S3Error {
        let code = S3ErrorCode::from_bytes(self.code.as_bytes());
        let mut error =
            S3Error::with_message(code.unwrap_or(S3ErrorCode::InternalError), self.message);
        error.set_status_code(status);
        error
    }
}

fn text(d: &mut Deserializer<'_>, to: &mut String) -> DeResult<()> {
    *to = d.content::<String>()?;
    Ok(())
}

fn skip(d: &mut Deserializer<'_>) -> DeResult<()> {
    d.for_each_element(|d, _| skip(d))
}

/// The answer to a list that asked for `encoding-type=url`.
pub(super) fn list_page(body: &[u8]) -> S3Result<ListingPage> {
    let mut page = ListingPage::default();
    let mut url = false;
    let (mut objects, mut prefixes) = (Vec::new(), Vec::new());
    let read = Deserializer::new(body).named_element("ListBucketResult", |d| {
        d.for_each_element(|d, name| match name {
            b"IsTruncated" => {
                page.more = d.content::<String>()? == "true";
                Ok(())
            }
            b"EncodingType" => {
                url = d.content::<String>()? == "url";
                Ok(())
            }
            b"Contents" => {
                objects.push(object(d)?);
                Ok(())
            }
            b"CommonPrefixes" => d.for_each_element(|d, name| match name {
                b"Prefix" => {
                    prefixes.push(d.content::<String>()?);
                    Ok(())
                }
                _ => skip(d),
            }),
            _ => skip(d),
        })
    });
    read.map_err(|error| {
        s3_error!(InternalError, "the object store's list is unreadable: {error}")
    })?;
    let plain = |name: String| if url { decoded(&name) } else { name };
    for mut object in objects {
        object.key = object.key.map(plain);
        page.entries.push(ListingEntry::Object(Box::new(object)));
    }
    page.entries.extend(prefixes.into_iter().map(plain).map(ListingEntry::Prefix));
    page.entries.sort_by(|a, b| a.name().cmp(b.name()));
    Ok(page)
}

fn decoded(name: &str) -> String {
    percent_decode_str(&name.replace('+', " ")).decode_utf8_lossy().into_owned()
}

fn object(d: &mut Deserializer<'_>) -> DeResult<Object> {
    let mut object = Object::default();
    d.for_each_element(|d, name| {
        match name {
            b"Key" => object.key = Some(d.content()?),
            b"Size" => object.size = Some(d.content()?),
            b"ETag" => object.e_tag = Some(d.content::<ETag>()?),
            b"LastModified" => {
                let text: String = d.content()?;
                let date = Timestamp::parse(TimestampFormat::DateTime, &text);
                object.last_modified = Some(date.map_err(|_| DeError::InvalidContent)?);
            }
            b"StorageClass" => {
                object.storage_class = Some(ObjectStorageClass::from(d.content::<String>()?));
            }
            _ => skip(d)?,
        }
        Ok(())
    })?;
    Ok(object)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_read_in_order_and_decoded() {
        let xml = b"<?xml version=\"1.0\"?><ListBucketResult xmlns=\"x\"><Name>b</Name>\
            <IsTruncated>true</IsTruncated><EncodingType>url</EncodingType>\
            <Contents><Key>p/b%2Bc+d</Key><LastModified>2026-01-02T03:04:05.000Z</LastModified>\
            <ETag>&quot;e&quot;</ETag><Size>3</Size><Owner><ID>i</ID></Owner>\
            <StorageClass>STANDARD</StorageClass></Contents>\
            <CommonPrefixes><Prefix>p/a/</Prefix></CommonPrefixes></ListBucketResult>";
        let page = list_page(xml).expect("a list");
        let names: Vec<_> = page.entries.iter().map(ListingEntry::name).collect();
        assert_eq!(names, ["p/a/", "p/b+c d"]);
        assert!(page.more);
    }

    #[test]
    fn an_error_document_or_any_other_page_says_something() {
        let xml = b"<Error><Code>NoSuchBucket</Code><Message>no</Message><Resource/></Error>";
        let document = ErrorDocument::read(xml);
        assert_eq!((document.code.as_str(), document.message.as_str()), ("NoSuchBucket", "no"));
        let proxy = ErrorDocument::read(b"<html>502 Bad Gateway</html>");
        assert!(proxy.message.contains("502"), "{proxy:?}");
    }
}
