//! Messages of the Jupyter protocol 5.3 (jupyter-client documentation, "Messaging in Jupyter").

use bytes::Bytes;
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::Sha256;
use uuid::Uuid;

use super::repair::repaired;
use crate::result::InOrder;

const DELIMITER: &[u8] = b"<IDS|MSG>";
const VERSION: &str = "5.3";

/// Who sends: a key that both sides know, and an id for this side.
pub(crate) struct Session {
    /// Without one messages are not signed.
    key: Option<Hmac<Sha256>>,
    id: String,
}

/// A message as it goes to the kernel.
pub(crate) struct Outgoing {
    pub(crate) id: String,
    signature: String,
    header: Vec<u8>,
    content: Vec<u8>,
}

/// A message from the kernel.
#[derive(Debug)]
pub(crate) struct KernelMessage {
    pub(crate) kind: String,
    /// When the kernel made it, as it says.
    pub(crate) date: Option<String>,
    /// The request that it belongs to.
    pub(crate) parent: Option<String>,
    content: Bytes,
}

/// Why something that came is no message.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MessageError {
    #[error("a message without its {0}")]
    Missing(&'static str),
    #[error("a message with a wrong signature")]
    Signature,
    #[error("a message whose {part} is not as the protocol says")]
    Json { part: &'static str, source: serde_json::Error },
}

#[derive(Serialize)]
struct OutgoingHeader<'a> {
    msg_id: &'a str,
    session: &'a str,
    username: &'a str,
    date: String,
    msg_type: &'a str,
    version: &'a str,
}

#[derive(Deserialize)]
struct Header {
    msg_type: String,
    #[serde(default)]
    date: Option<String>,
}

#[derive(Deserialize)]
struct ParentHeader {
    #[serde(default)]
    msg_id: Option<String>,
}

impl Session {
    /// A session with a new key and a new id.
    pub(crate) fn signed() -> Result<(Self, String), hmac::digest::InvalidLength> {
        let key = Uuid::new_v4().simple().to_string() + &Uuid::new_v4().simple().to_string();
        let mac = Hmac::new_from_slice(key.as_bytes())?;
        Ok((Self { key: Some(mac), ..Self::unsigned() }, key))
    }

    /// A session whose connections only root can make, so that a signature would prove nothing: it takes a kernel a third
    /// of the time of a large picture.
    pub(crate) fn unsigned() -> Self {
        Self { key: None, id: Uuid::new_v4().simple().to_string() }
    }

    /// The id of this side.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// A request to the kernel.
    ///
    /// # Errors
    /// If the content cannot be written as JSON.
    pub(crate) fn request(
        &self,
        kind: &str,
        content: &impl Serialize,
    ) -> Result<Outgoing, serde_json::Error> {
        let id = Uuid::new_v4().to_string();
        let header = serde_json::to_vec(&OutgoingHeader {
            msg_id: &id,
            session: &self.id,
            username: "sandyard",
            date: crate::time_text::now(),
            msg_type: kind,
            version: VERSION,
        })?;
        let content = serde_json::to_vec(content)?;
        let mac = self.mac([&header, b"{}", b"{}", &content]);
        let signature = mac.map(|mac| hex::encode(mac.finalize().into_bytes())).unwrap_or_default();
        Ok(Outgoing { id, signature, header, content })
    }

    fn mac(&self, parts: [&[u8]; 4]) -> Option<Hmac<Sha256>> {
        let mut mac = self.key.clone()?;
        for part in parts {
            mac.update(part);
        }
        Some(mac)
    }

    /// Reads what a kernel sent.
    ///
    /// # Errors
    /// [`MessageError`]
    pub(crate) fn read(&self, parts: Vec<Bytes>) -> Result<KernelMessage, MessageError> {
        let mut parts = parts.into_iter().skip_while(|part| part != DELIMITER).skip(1);
        let mut next = |part| parts.next().ok_or(MessageError::Missing(part));
        let signature = next("signature")?;
        let (header, parent) = (next("header")?, next("parent header")?);
        let (metadata, content) = (next("metadata")?, next("content")?);
        if let Some(mac) = self.mac([&header, &parent, &metadata, &content]) {
            let mut given = [0; 32];
            hex::decode_to_slice(&signature, &mut given).map_err(|_| MessageError::Signature)?;
            mac.verify_slice(&given).map_err(|_| MessageError::Signature)?;
        }
        let header: Header = json("header", &header)?;
        let parent: ParentHeader = json("parent header", &parent)?;
        Ok(KernelMessage {
            kind: header.msg_type,
            date: header.date,
            parent: parent.msg_id,
            content,
        })
    }
}

impl Outgoing {
    /// The parts as they go over the connection.
    pub(crate) fn parts(&self) -> [&[u8]; 6] {
        [DELIMITER, self.signature.as_bytes(), &self.header, b"{}", b"{}", &self.content]
    }
}

impl KernelMessage {
    /// The content, in its own form.
    ///
    /// # Errors
    /// If it is not of that form.
    pub(crate) fn content<T: DeserializeOwned>(&self) -> Result<T, MessageError> {
        json("content", &self.content)
            .or_else(|error| json("content", repaired(&self.content).as_bytes()).map_err(|_| error))
    }

    /// The content's member `data`, in which values stay as they came.
    pub(crate) fn data(&self) -> Result<Vec<(String, Box<RawValue>)>, MessageError> {
        #[derive(Deserialize)]
        struct DataContent {
            data: InOrder,
        }
        Ok(self.content::<DataContent>()?.data.0)
    }
}

fn json<T: DeserializeOwned>(part: &'static str, bytes: &[u8]) -> Result<T, MessageError> {
    serde_json::from_slice(bytes).map_err(|source| MessageError::Json { part, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn over_the_wire(message: &Outgoing) -> Vec<Bytes> {
        let mut parts = vec![Bytes::from_static(b"topic")];
        parts.extend(message.parts().map(Bytes::copy_from_slice));
        parts
    }

    #[test]
    fn a_message_is_read_as_it_was_made_and_only_with_its_key() {
        let (session, _) = Session::signed().expect("a key");
        let (stranger, _) = Session::signed().expect("a key");
        let request = session.request("x_request", &serde_json::json!({"a": 1})).expect("JSON");
        let unsigned =
            Session::unsigned().request("x_request", &serde_json::json!({})).expect("JSON");
        let read = session.read(over_the_wire(&request)).expect("valid");
        assert_eq!((read.kind.as_str(), read.parent), ("x_request", None));
        assert_eq!(read.content, br#"{"a":1}"#[..]);
        let wrong = stranger.read(over_the_wire(&request));
        assert!(matches!(wrong, Err(MessageError::Signature)));
        assert!(matches!(session.read(over_the_wire(&unsigned)), Err(MessageError::Signature)));
        assert_eq!(
            Session::unsigned().read(over_the_wire(&unsigned)).expect("valid").kind,
            "x_request"
        );
        let mut short = over_the_wire(&request);
        short.truncate(5);
        assert!(matches!(session.read(short), Err(MessageError::Missing("metadata"))));
    }
}
