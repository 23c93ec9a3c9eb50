//! What kernels send as JSON and is none: texts that are no Unicode, and numbers that JSON does not have.

/// The nearest thing to `bytes` that can be read: halves of surrogate pairs and bytes that are no UTF-8 become
/// replacement characters, numbers that are none become null.
pub(super) fn repaired(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut out = String::with_capacity(text.len());
    let mut rest = text.as_ref();
    while let Some(at) = rest.find('"') {
        put_outside(&mut out, &rest[..at]);
        rest = put_text(&mut out, &rest[at..]);
    }
    put_outside(&mut out, rest);
    out
}

/// Appends what is not in a text.
fn put_outside(out: &mut String, part: &str) {
    if part.contains(['N', 'I']) {
        let part = part.replace("-Infinity", "null").replace("Infinity", "null");
        out.push_str(&part.replace("NaN", "null"));
    } else {
        out.push_str(part);
    }
}

/// Appends the text at the beginning of `rest`, quotes included; returns what comes after it.
fn put_text<'a>(out: &mut String, rest: &'a str) -> &'a str {
    let bytes = rest.as_bytes();
    let (mut at, mut copied) = (1, 0);
    while at < bytes.len() {
        match bytes[at] {
            b'"' => {
                out.push_str(&rest[copied..=at]);
                return &rest[at + 1..];
            }
            b'\\' => match unit(&bytes[at..]) {
                Some(0xd800..=0xdbff)
                    if matches!(
                        unit(bytes.get(at + 6..).unwrap_or_default()),
                        Some(0xdc00..=0xdfff)
                    ) =>
                {
                    at += 12;
                }
                Some(0xd800..=0xdfff) => {
                    out.push_str(&rest[copied..at]);
                    out.push_str("\\ufffd");
                    at += 6;
                    copied = at;
                }
                Some(_) => at += 6,
                None => at += 2,
            },
            _ => at += 1,
        }
    }
    out.push_str(&rest[copied..]);
    ""
}

/// The UTF-16 unit that an escape stands for.
fn unit(escape: &[u8]) -> Option<u16> {
    let digits = std::str::from_utf8(escape.strip_prefix(b"\\u")?.get(..4)?).ok()?;
    u16::from_str_radix(digits, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_are_none_become_null_but_not_in_texts() {
        let given = br#"{"a":NaN,"b":[-Infinity,Infinity],"c":"NaN \" Infinity","d":1}"#;
        let expected = r#"{"a":null,"b":[null,null],"c":"NaN \" Infinity","d":1}"#;
        assert_eq!(repaired(given), expected);
    }

    #[test]
    fn halves_of_pairs_are_replaced_and_pairs_stay() {
        let given = br#"["\ud83d\ude00 \ud83d x \ude00 \\ud83d \n"]"#;
        let expected = r#"["\ud83d\ude00 \ufffd x \ufffd \\ud83d \n"]"#;
        assert_eq!(repaired(given), expected);
        assert!(serde_json::from_str::<Vec<String>>(&repaired(given)).is_ok());
        assert_eq!(repaired(b"\"a\xffb\""), "\"a\u{fffd}b\"");
        assert_eq!(repaired(b"\"cut\\"), "\"cut\\");
    }
}
