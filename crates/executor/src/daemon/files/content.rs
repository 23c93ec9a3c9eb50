//! Content type and disposition of a download (executor 6.4).

/// How many bytes are looked at.
pub(super) const SNIFF_BYTES: usize = 512;

const BINARY: &str = "application/octet-stream";
const TEXT: &str = "text/plain; charset=utf-8";

/// The content type that a file's name tells.
pub(super) fn by_extension(name: &str) -> Option<&'static str> {
    let (_, extension) = name.rsplit_once('.')?;
    Some(match extension.to_ascii_lowercase().as_str() {
        "avif" => "image/avif",
        "css" => "text/css; charset=utf-8",
        "csv" => "text/csv; charset=utf-8",
        "gif" => "image/gif",
        "gz" => "application/gzip",
        "htm" | "html" => "text/html; charset=utf-8",
        "jpeg" | "jpg" => "image/jpeg",
        "js" | "mjs" => "text/javascript; charset=utf-8",
        "json" => "application/json",
        "pdf" => "application/pdf",
        "png" => "image/png",
        "svg" => "image/svg+xml",
        "tar" => "application/x-tar",
        "txt" => TEXT,
        "wasm" => "application/wasm",
        "webp" => "image/webp",
        "xml" => "text/xml; charset=utf-8",
        "zip" => "application/zip",
        _ => return None,
    })
}

/// The content type of a compressed answer, whose bytes say nothing.
pub(super) fn without_sniffing(name: &str) -> &'static str {
    by_extension(name).unwrap_or(BINARY)
}

/// The content type that a file's first bytes tell: text holds no control characters but white space
/// and escapes.
pub(super) fn sniff(start: &[u8]) -> &'static str {
    const SIGNATURES: [(&[u8], &str); 10] = [
        (b"%PDF-", "application/pdf"),
        (b"\x89PNG\r\n\x1a\n", "image/png"),
        (b"\xff\xd8\xff", "image/jpeg"),
        (b"GIF87a", "image/gif"),
        (b"GIF89a", "image/gif"),
        (b"\x1f\x8b\x08", "application/x-gzip"),
        (b"PK\x03\x04", "application/zip"),
        (b"\0asm", "application/wasm"),
        (b"<?xml", "text/xml; charset=utf-8"),
        (b"\xef\xbb\xbf", TEXT),
    ];
    let start = &start[..start.len().min(SNIFF_BYTES)];
    if let Some((_, found)) = SIGNATURES.iter().find(|(signature, _)| start.starts_with(signature))
    {
        return found;
    }
    let first = start.trim_ascii_start();
    let is_html = ["<!doctype html", "<html", "<head", "<body", "<script"].iter().any(|tag| {
        first.get(..tag.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(tag.as_bytes()))
            && first.get(tag.len()).is_some_and(|next| matches!(next, b' ' | b'>'))
    });
    if is_html {
        return "text/html; charset=utf-8";
    }
    let binary = |byte: &u8| matches!(byte, 0..=8 | 11 | 14..=26 | 28..=31);
    if start.iter().any(binary) { BINARY } else { TEXT }
}

/// `inline` with the file's name: bare if it is a token, quoted if it is ASCII, encoded if not.
pub(super) fn disposition(name: &str) -> String {
    let special = |byte: u8| b"()<>@,;:\\\"/[]?=".contains(&byte);
    let token = |byte: u8| byte.is_ascii_graphic() && !special(byte);
    if name.bytes().all(token) && !name.is_empty() {
        return format!("inline; filename={name}");
    }
    let mut value = String::from("inline; filename");
    if name.bytes().all(|byte| matches!(byte, b' '..=b'~' | b'\t')) {
        value.push_str("=\"");
        for character in name.chars() {
            if matches!(character, '"' | '\\') {
                value.push('\\');
            }
            value.push(character);
        }
        value.push('"');
        return value;
    }
    value.push_str("*=utf-8''");
    for byte in name.bytes() {
        if token(byte) && !matches!(byte, b'*' | b'\'' | b'%') {
            value.push(char::from(byte));
        } else {
            value.push_str(&format!("%{byte:02X}"));
        }
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_quoted_only_where_needed() {
        assert_eq!(disposition("a.txt"), "inline; filename=a.txt");
        assert_eq!(disposition("a b.txt"), "inline; filename=\"a b.txt\"");
        assert_eq!(disposition("a\"\\b"), "inline; filename=\"a\\\"\\\\b\"");
        assert_eq!(disposition("文.txt"), "inline; filename*=utf-8''%E6%96%87.txt");
        assert_eq!(disposition("é x"), "inline; filename*=utf-8''%C3%A9%20x");
    }

    #[test]
    fn bytes_are_text_or_not() {
        assert_eq!(sniff(b""), TEXT);
        assert_eq!(sniff("grüße\n".as_bytes()), TEXT);
        assert_eq!(sniff(b"a\0b"), BINARY);
        assert_eq!(sniff(b"\x89PNG\r\n\x1a\n..."), "image/png");
        assert_eq!(sniff(b"  <!DOCTYPE html><p>"), "text/html; charset=utf-8");
    }

    #[test]
    fn extensions_are_read_in_any_case() {
        assert_eq!(by_extension("a.HTML"), Some("text/html; charset=utf-8"));
        assert_eq!(by_extension("html"), None);
        assert_eq!(without_sniffing("a.unknown"), BINARY);
    }
}
