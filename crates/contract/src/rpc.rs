//! Messages of the in-sandbox API (executor 1), generated from `proto/` with both encodings: binary
//! through `prost`, canonical proto3 JSON through serde (executor 2.3).

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use time::format_description::well_known::Rfc3339;
use time::{OffsetDateTime, UtcOffset};

/// `process.Process` (executor 1.1).
#[allow(missing_docs, clippy::all, clippy::pedantic, unreachable_pub)]
pub mod process {
    include!(concat!(env!("OUT_DIR"), "/process.rs"));
    include!(concat!(env!("OUT_DIR"), "/process.serde.rs"));
}

/// `filesystem.Filesystem` (executor 1.2).
#[allow(missing_docs, clippy::all, clippy::pedantic, unreachable_pub)]
pub mod filesystem {
    include!(concat!(env!("OUT_DIR"), "/filesystem.rs"));
    include!(concat!(env!("OUT_DIR"), "/filesystem.serde.rs"));
}

/// `google.protobuf.Timestamp`: in JSON an RFC 3339 text in UTC, ending in `Z` (executor 2.3).
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct Timestamp {
    /// Seconds since the epoch; negative before it.
    #[prost(int64, tag = "1")]
    pub seconds: i64,
    /// Nanoseconds to add, 0 to 999 999 999.
    #[prost(int32, tag = "2")]
    pub nanos: i32,
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let nanos = i128::from(self.seconds) * 1_000_000_000 + i128::from(self.nanos);
        let text = OffsetDateTime::from_unix_timestamp_nanos(nanos)
            .map_err(serde::ser::Error::custom)?
            .format(&Rfc3339)
            .map_err(serde::ser::Error::custom)?;
        serializer.serialize_str(&text)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl serde::de::Visitor<'_> for Text {
            type Value = Timestamp;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an RFC 3339 time")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Timestamp, E> {
                let time = OffsetDateTime::parse(text, &Rfc3339).map_err(E::custom)?;
                let time = time.to_offset(UtcOffset::UTC);
                // Nanoseconds of a second fit 31 bits.
                Ok(Timestamp { seconds: time.unix_timestamp(), nanos: time.nanosecond() as i32 })
            }
        }
        deserializer.deserialize_str(Text)
    }
}

#[cfg(test)]
mod tests {
    use super::filesystem::{EntryInfo, FileType, ListDirResponse};
    use super::process::{
        ProcessEvent, SendInputRequest, SendSignalRequest, Signal, StartRequest, StartResponse,
        process_event, process_input,
    };
    use super::*;

    #[test]
    fn a_clean_exit_has_neither_code_nor_error() {
        let end = process_event::EndEvent {
            exit_code: 0,
            exited: true,
            status: "exit status 0".into(),
            error: None,
        };
        let event = ProcessEvent { event: Some(process_event::Event::End(end)) };
        let json = serde_json::to_string(&StartResponse { event: Some(event) }).unwrap();
        assert_eq!(json, r#"{"event":{"end":{"exited":true,"status":"exit status 0"}}}"#);
        assert_eq!(serde_json::to_string(&ListDirResponse::default()).unwrap(), "{}");
    }

    #[test]
    fn requests_of_newer_clients_are_read() {
        let request: StartRequest = serde_json::from_str(
            r#"{"process":{"cmd":"x","newField":[1]},"stdin":false,"other":{"a":1}}"#,
        )
        .unwrap();
        assert_eq!(request.stdin, Some(false));
        assert_eq!(request.tag, None);
        let signal = |text: &str| {
            serde_json::from_str::<SendSignalRequest>(&format!(r#"{{"signal":{text}}}"#))
                .unwrap()
                .signal
        };
        assert_eq!(signal("\"SIGNAL_SIGKILL\""), Signal::Sigkill as i32);
        assert_eq!(signal("15"), 15);
        assert_eq!(signal("\"SIGNAL_SIGQUIT\""), 0);
        assert_eq!(signal("2"), 0, "a number that is no signal of ours");
    }

    #[test]
    fn bytes_are_read_in_every_base64_form() {
        for text in ["+/8=", "-_8=", "+/8", "-_8"] {
            let json = format!(r#"{{"input":{{"stdin":"{text}"}}}}"#);
            let request: SendInputRequest = serde_json::from_str(&json).unwrap();
            let Some(process_input::Input::Stdin(bytes)) = request.input.unwrap().input else {
                panic!("{text} is not stdin");
            };
            assert_eq!(&bytes[..], [0xfb, 0xff], "{text}");
        }
    }

    #[test]
    fn an_entry_carries_size_as_text_and_time_in_utc() {
        let entry = EntryInfo {
            r#type: FileType::File as i32,
            size: 5,
            modified_time: Some(Timestamp { seconds: 1_700_000_000, nanos: 120_000_000 }),
            ..EntryInfo::default()
        };
        let json = serde_json::to_string(&entry).unwrap();
        assert_eq!(
            json,
            r#"{"type":"FILE_TYPE_FILE","size":"5","modifiedTime":"2023-11-14T22:13:20.12Z"}"#
        );
        assert_eq!(serde_json::from_str::<EntryInfo>(&json).unwrap(), entry);
    }

    #[test]
    fn both_spellings_of_a_field_are_read() {
        for json in [r#"{"exitCode":3}"#, r#"{"exit_code":3}"#] {
            let end: process_event::EndEvent = serde_json::from_str(json).unwrap();
            assert_eq!(end.exit_code, 3);
        }
    }
}
