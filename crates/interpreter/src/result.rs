//! From a kernel's MIME types to the fields of a result (code-interpreter 7).

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// An object's members in their order, their values as they came.
pub(crate) struct InOrder(pub(crate) Vec<(String, Box<RawValue>)>);

impl<'de> Deserialize<'de> for InOrder {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = InOrder;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<InOrder, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(InOrder(members))
            }
        }
        deserializer.deserialize_map(Members)
    }
}

/// The field of a MIME type; all others go into `extra`.
fn field(mime: &str) -> Option<&'static str> {
    Some(match mime {
        "text/plain" => "text",
        "text/html" => "html",
        "text/markdown" => "markdown",
        "image/svg+xml" => "svg",
        "image/png" => "png",
        "image/jpeg" => "jpeg",
        "application/pdf" => "pdf",
        "text/latex" => "latex",
        "application/json" => "json",
        "application/javascript" => "javascript",
        "e2b/data" => "data",
        "e2b/chart" => "chart",
        _ => return None,
    })
}

/// The order of fields, which is that of the clients' `formats()`.
const FIELDS: [&str; 12] = [
    "text",
    "html",
    "markdown",
    "svg",
    "png",
    "jpeg",
    "pdf",
    "latex",
    "json",
    "javascript",
    "data",
    "chart",
];

/// Appends a result's line.
pub(crate) fn write_line(line: &mut Vec<u8>, data: &[(String, Box<RawValue>)], is_main: bool) {
    line.extend_from_slice(br#"{"type":"result""#);
    for wanted in FIELDS {
        let found = data.iter().find(|(mime, _)| field(mime) == Some(wanted));
        let Some((_, value)) = found.filter(|(_, value)| value.get() != "null") else { continue };
        line.extend_from_slice(format!(",\"{wanted}\":").as_bytes());
        match wanted {
            "text" => write_text(line, value),
            _ => write_value(line, value.get()),
        }
    }
    line.extend_from_slice(format!(",\"is_main_result\":{is_main},\"extra\":{{").as_bytes());
    let others = data.iter().filter(|(mime, value)| field(mime).is_none() && value.get() != "null");
    for (index, (mime, value)) in others.enumerate() {
        if index > 0 {
            line.push(b',');
        }
        line.extend_from_slice(serde_json::Value::from(mime.as_str()).to_string().as_bytes());
        line.push(b':');
        write_value(line, value.get());
    }
    line.extend_from_slice(b"}}\n");
}

/// JSON without line breaks: outside of texts they mean nothing, and in texts they are escaped.
fn write_value(line: &mut Vec<u8>, json: &str) {
    if memchr::memchr2(b'\n', b'\r', json.as_bytes()).is_some() {
        line.extend(json.bytes().filter(|byte| !matches!(byte, b'\n' | b'\r')));
    } else {
        line.extend_from_slice(json.as_bytes());
    }
}

/// A text without the one pair of quotes around it that the representation of a text has.
fn write_text(line: &mut Vec<u8>, value: &RawValue) {
    match serde_json::from_str::<String>(value.get()) {
        Ok(text) => {
            let text = unquoted(&text);
            line.extend_from_slice(serde_json::Value::from(text).to_string().as_bytes());
        }
        // Not a text, whatever its MIME type says: as it is.
        Err(_) => write_value(line, value.get()),
    }
}

fn unquoted(text: &str) -> &str {
    ['\'', '"']
        .into_iter()
        .find_map(|quote| text.strip_prefix(quote)?.strip_suffix(quote))
        .unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(data: &str, is_main: bool) -> String {
        let data: InOrder = serde_json::from_str(data).expect("valid");
        let mut line = Vec::new();
        write_line(&mut line, &data.0, is_main);
        String::from_utf8(line).expect("UTF-8")
    }

    #[test]
    fn fields_in_their_order_nulls_left_out_and_others_extra() {
        assert_eq!(
            line(
                r#"{"x/y":{"a":1},"image/png":"AA==","text/html":null,"text/plain":"'it'","e2b/chart":{}, "z":null}"#,
                true
            ),
            "{\"type\":\"result\",\"text\":\"it\",\"png\":\"AA==\",\"chart\":{},\
             \"is_main_result\":true,\"extra\":{\"x/y\":{\"a\":1}}}\n"
        );
        assert_eq!(
            line("{}", false),
            "{\"type\":\"result\",\"is_main_result\":false,\"extra\":{}}\n"
        );
    }

    #[test]
    fn one_pair_of_quotes_goes() {
        for (given, expected) in [
            ("'a'", "a"),
            ("\"a\"", "a"),
            ("''", ""),
            ("'", "'"),
            ("'a\"", "'a\""),
            ("''a''", "'a'"),
        ] {
            assert_eq!(unquoted(given), expected);
        }
    }

    #[test]
    fn a_value_over_several_lines_is_one_line() {
        let text = line("{\"application/json\": {\n \"a\":\r\n \"b\\nc\"}}", false);
        assert_eq!(text.matches('\n').count(), 1);
        assert!(text.contains(r#"{ "a": "b\nc"}"#), "{text}");
    }
}
