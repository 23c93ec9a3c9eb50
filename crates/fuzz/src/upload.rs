//! Uploads in parts (executor 6.5): the reader of parts with the rules that say which file a part is for.

use bytes::Bytes;
use futures::executor::block_on;
use futures::stream;
use multer::Multipart;
use sandyard_contract::upload::{Nameless, boundary, path_of_part};

use crate::pieces;

/// Takes a way to cut, the query's path, a content type and a body, or a name and a content to wrap as the
/// SDKs do. However the body is cut, the same parts come out of it, with no byte more than went in; and
/// what an SDK would send comes out as it went in.
pub fn fuzz_upload(data: &[u8]) {
    let [kind, seed, rest @ ..] = data else {
        return;
    };
    let mut fields = rest.splitn(3, |byte| *byte == b'\n');
    let (Some(first), Some(second)) = (fields.next(), fields.next()) else {
        return;
    };
    let body = fields.next().unwrap_or_default();
    let (Ok(first), Ok(second)) = (str::from_utf8(first), str::from_utf8(second)) else {
        return;
    };
    if kind % 2 == 0 {
        any_body(*seed, first, second, body);
    } else {
        what_an_sdk_sends(*seed, first, body);
    }
}

/// A part as far as it was read.
#[derive(Debug, PartialEq)]
struct UploadPart {
    path: Result<Option<String>, Nameless>,
    content: Vec<u8>,
}

fn any_body(seed: u8, query_path: &str, content_type: &str, body: &[u8]) {
    let Some(boundary) = boundary(content_type) else {
        return;
    };
    assert!(!boundary.is_empty() && content_type.contains(boundary), "{content_type:?}");
    let whole = read(&[body], boundary, query_path);
    let cut = read(&pieces(body, seed), boundary, query_path);
    // Of a broken body, more or less may have been read of the part that it broke in.
    assert_eq!(whole.1, cut.1, "broken in one way only: {whole:?}, {cut:?}");
    if !whole.1 {
        assert_eq!(whole.0, cut.0);
    }
    let read: usize = whole.0.iter().map(|part| part.content.len()).sum();
    assert!(read <= body.len(), "{read} bytes of {}", body.len());
    for part in &whole.0 {
        if let Ok(Some(path)) = &part.path {
            assert!(!path.is_empty(), "a file without a path");
            assert!(query_path.is_empty() || path == query_path, "the query goes first");
        }
    }
}

fn what_an_sdk_sends(seed: u8, name: &str, content: &[u8]) {
    // No client can send these inside of quotes; a quote itself arrives as %22, and stays that.
    let unsendable = |letter: char| letter.is_control() || letter == '\\';
    if name.is_empty() || name.contains(unsendable) {
        return;
    }
    let name = name.replace('"', "%22");
    let mut boundary = "sdk".to_owned();
    while content.windows(boundary.len()).any(|window| window == boundary.as_bytes()) {
        boundary.push('x');
    }
    let head = format!(
        "--{boundary}\r\nContent-Disposition: form-data; name=\"file\"; filename=\"{name}\"\r\n\
         Content-Type: application/octet-stream\r\n\r\n"
    );
    let tail = format!("\r\n--{boundary}--\r\n");
    let body = [head.as_bytes(), content, tail.as_bytes()].concat();
    let expected = UploadPart { path: Ok(Some(name)), content: content.to_vec() };
    assert_eq!(read(&pieces(&body, seed), &boundary, ""), (vec![expected], false));
}

/// The parts, and whether the body was broken.
fn read(pieces: &[&[u8]], boundary: &str, query_path: &str) -> (Vec<UploadPart>, bool) {
    let pieces: Vec<_> = pieces.iter().map(|piece| Bytes::copy_from_slice(piece)).collect();
    let pieces = stream::iter(pieces.into_iter().map(Ok::<_, std::convert::Infallible>));
    let mut multipart = Multipart::new(pieces, boundary);
    let mut parts = Vec::new();
    block_on(async {
        loop {
            let mut field = match multipart.next_field().await {
                Ok(Some(field)) => field,
                Ok(None) => return (parts, false),
                Err(_) => return (parts, true),
            };
            let path = path_of_part(Some(query_path), field.name(), field.file_name());
            let path = path.map(|path| path.map(str::to_owned));
            let mut content = Vec::new();
            let broken = loop {
                match field.chunk().await {
                    Ok(Some(chunk)) => content.extend_from_slice(&chunk),
                    Ok(None) => break false,
                    Err(_) => break true,
                }
            };
            parts.push(UploadPart { path, content });
            if broken {
                return (parts, true);
            }
        }
    })
}
