//! Identifiers. Each is its own type, so that one cannot be passed for another.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A value that does not have the form its identifier demands.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid {what} '{value}': {rule}")]
pub struct InvalidId {
    /// What was being read, in the user's words ("session", "template name").
    pub what: &'static str,
    /// The refused value, cut to 64 characters so that an error stays readable.
    pub value: String,
    /// The rule it breaks.
    pub rule: &'static str,
}

impl InvalidId {
    fn new(what: &'static str, value: &str, rule: &'static str) -> Self {
        Self { what, value: value.chars().take(64).collect(), rule }
    }
}

/// A sandbox id in a path or host name that cannot name any sandbox (control-plane 4.1).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Invalid sandbox ID")]
pub struct InvalidSandboxId;

/// Implements what all string identifiers share: display, access to the text, serde through
/// `FromStr` so that a deserialized value is as valid as a parsed one.
macro_rules! string_id {
    ($name:ident) => {
        impl $name {
            /// The identifier as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

fn random_lower_alphanumeric<const N: usize>() -> String {
    const ALPHABET: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
    // 252 is the largest multiple of 36 in a byte: values from there on would favour some letters.
    let mut out = String::with_capacity(N);
    let mut buffer = [0u8; 64];
    while out.len() < N {
        fill_random(&mut buffer);
        for byte in buffer.iter().filter(|b| **b < 252).take(N - out.len()) {
            out.push(char::from(ALPHABET[usize::from(byte % 36)]));
        }
    }
    out
}

fn fill_random(buffer: &mut [u8]) {
    // The kernel's generator fails only where the system cannot work at all; an id that is not
    // random would be a security hole, so there is no fallback.
    if let Err(error) = getrandom::fill(buffer) {
        panic!("the operating system gives no random numbers: {error}");
    }
}

fn is_lower_alphanumeric(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
}

/// Names one sandbox for its whole life. Any non-empty `[a-z0-9]` string parses: an id that was never
/// issued is "not found", not "invalid" (control-plane 4.1).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SandboxId(String);
string_id!(SandboxId);

impl SandboxId {
    /// A fresh id: `i` and 20 random characters (control-plane 4.1).
    pub fn random() -> Self {
        Self(format!("i{}", random_lower_alphanumeric::<20>()))
    }

    /// Reads an id as it stands in a path or host name, where one client suffix may follow a dash
    /// and is dropped (control-plane 4.1).
    ///
    /// # Errors
    /// [`InvalidSandboxId`] for more than one dash or a character outside `[a-z0-9]` in the id.
    pub fn from_path(text: &str) -> Result<Self, InvalidSandboxId> {
        let (id, suffix) = text.split_once('-').unwrap_or((text, ""));
        if suffix.contains('-') {
            return Err(InvalidSandboxId);
        }
        id.parse()
    }
}

impl FromStr for SandboxId {
    type Err = InvalidSandboxId;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // 63 characters is what a host name label can carry.
        if is_lower_alphanumeric(text) && text.len() <= 63 {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidSandboxId)
        }
    }
}

/// Names a template for good, whatever it is called: 20 characters of `[a-z0-9]` where we issue it;
/// other `[a-z0-9]` text parses and is simply unknown (control-plane 4.1).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TemplateId(String);
string_id!(TemplateId);

impl TemplateId {
    /// A fresh id of 20 random characters (control-plane 4.1).
    pub fn random() -> Self {
        Self(random_lower_alphanumeric::<20>())
    }
}

impl FromStr for TemplateId {
    type Err = InvalidId;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if is_lower_alphanumeric(text) && text.len() <= 128 {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidId::new("template id", text, "it must be 1 to 128 characters of [a-z0-9]"))
        }
    }
}

/// The name a template is created by: `[a-z0-9-_]`, 1 to 128 characters (control-plane 4.2).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TemplateName(String);
string_id!(TemplateName);

impl From<TemplateId> for TemplateName {
    /// What a template without a name of its own is called: its id is a valid name.
    fn from(id: TemplateId) -> Self {
        Self(id.0)
    }
}

impl FromStr for TemplateName {
    type Err = InvalidId;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_".contains(&b);
        if !text.is_empty() && text.len() <= 128 && text.bytes().all(allowed) {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidId::new(
                "template name",
                text,
                "it must be 1 to 128 characters of [a-z0-9-_]",
            ))
        }
    }
}

/// Names a session: one span of use with its workspace (design 6). 1 to 128 characters of
/// `[A-Za-z0-9._-]`, the first a letter or digit, and no `..`, so that it is one harmless segment of
/// an object key and of a path.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(String);
string_id!(SessionId);

impl FromStr for SessionId {
    type Err = InvalidId;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
        let ok = text.len() <= 128
            && text.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric)
            && text.bytes().all(allowed)
            && !text.contains("..");
        if ok {
            return Ok(Self(text.to_owned()));
        }
        Err(InvalidId::new(
            "session",
            text,
            "it must be 1 to 128 characters of [A-Za-z0-9._-], begin with a letter or digit and \
             contain no '..'",
        ))
    }
}

/// One container's name for itself, made when the container is created and known to `init` from its
/// command line. Signed control calls are bound to it, so that a call for one container means
/// nothing to another (design 6.1 (8)).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InstanceId(String);
string_id!(InstanceId);

impl InstanceId {
    /// A fresh id of 32 hex digits.
    pub fn random() -> Self {
        Self(Uuid::new_v4().simple().to_string())
    }
}

impl FromStr for InstanceId {
    type Err = InvalidId;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if text.len() == 32 && text.bytes().all(hex) {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidId::new("instance id", text, "it must be 32 lower-case hex digits"))
        }
    }
}

/// Tells one sandyard installation on an engine from another: a server touches only what carries its
/// own (design 5).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct InstallationId(String);
string_id!(InstallationId);

impl InstallationId {
    /// A fresh id of 12 random characters, short enough for the names of engine objects.
    pub fn random() -> Self {
        Self(random_lower_alphanumeric::<12>())
    }
}

impl FromStr for InstallationId {
    type Err = InvalidId;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if is_lower_alphanumeric(text) && text.len() <= 32 {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidId::new(
                "installation id",
                text,
                "it must be 1 to 32 characters of [a-z0-9]",
            ))
        }
    }
}

/// A team ("project" in the clients): who an API key belongs to (control-plane 1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TeamId(pub Uuid);

impl TeamId {
    /// A fresh team id.
    pub fn random() -> Self {
        Self(Uuid::new_v4())
    }
}

impl fmt::Display for TeamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Names one build of a template: one image (control-plane 4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BuildId(pub Uuid);

impl BuildId {
    /// A fresh build id.
    pub fn random() -> Self {
        Self(Uuid::new_v4())
    }
}

impl fmt::Display for BuildId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for BuildId {
    type Err = InvalidId;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let id = Uuid::parse_str(text);
        id.map(Self).map_err(|_| InvalidId::new("build id", text, "it must be a UUID"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_fresh_sandbox_id_has_the_contracts_form() {
        let id = SandboxId::random();
        assert_eq!(id.as_str().len(), 21);
        assert!(id.as_str().starts_with('i'));
        assert_eq!(id.as_str().parse::<SandboxId>(), Ok(id.clone()));
        assert_ne!(id, SandboxId::random());
    }

    #[test]
    fn one_client_suffix_is_dropped_and_two_dashes_are_invalid() {
        let plain: SandboxId = "iabc123".parse().expect("valid");
        assert_eq!(SandboxId::from_path("iabc123-6532622b"), Ok(plain.clone()));
        assert_eq!(SandboxId::from_path("iabc123"), Ok(plain));
        assert_eq!(SandboxId::from_path("not-found").expect("valid").as_str(), "not");
        for bad in ["a-b-c", "-x", "", "ABC", "a.b", "ä", "a/b"] {
            assert_eq!(SandboxId::from_path(bad), Err(InvalidSandboxId), "{bad}");
        }
    }

    #[test]
    fn session_ids_follow_the_design() {
        for good in ["a", "0", "Run-1.2_x", &"a".repeat(128)] {
            assert_eq!(good.parse::<SessionId>().expect("valid").as_str(), good);
        }
        for bad in
            ["", "../x", ".a", "-a", "_a", "a..b", "a/b", "ä", "a b", "a\0", &"a".repeat(129)]
        {
            assert!(bad.parse::<SessionId>().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn an_error_names_the_field_and_cuts_a_long_value() {
        let error = "/".repeat(500).parse::<SessionId>().expect_err("invalid").to_string();
        assert!(error.starts_with("invalid session '////"), "{error}");
        assert!(error.len() < 250, "{error}");
    }

    proptest! {
        #[test]
        fn an_accepted_session_is_one_plain_path_segment(text in "\\PC{0,140}") {
            if let Ok(id) = text.parse::<SessionId>() {
                let path = std::path::Path::new(id.as_str());
                prop_assert_eq!(path.components().count(), 1);
                prop_assert!(matches!(
                    path.components().next(), Some(std::path::Component::Normal(_))
                ));
            }
        }

        #[test]
        fn every_issued_looking_id_round_trips(text in "[a-z0-9]{1,63}") {
            prop_assert_eq!(SandboxId::from_path(&text).map(|id| id.to_string()), Ok(text));
        }
    }
}
