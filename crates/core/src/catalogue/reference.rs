//! References to templates (control-plane 4.2).

use std::fmt;
use std::str::FromStr;

use sandyard_types::{BuildId, TemplateName};

/// The tag that a reference without one means.
pub const DEFAULT_TAG: &str = "default";

/// A reference that no template could have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "invalid template reference '{0}': write '[namespace/]name[:tag]' with characters of [a-z0-9-_] ('.' too in a tag)"
)]
pub struct InvalidReference(String);

/// `[namespace/]name[:tag]`, trimmed and in lower case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TemplateReference {
    /// The slug of a team, if one is named.
    pub namespace: Option<String>,
    /// A template's name or id.
    pub name: TemplateName,
    /// The tag, if one is named.
    pub tag: Option<String>,
}

impl TemplateReference {
    /// Whether a tag other than the default one was named.
    pub fn names_a_tag(&self) -> bool {
        self.tag.as_deref().is_some_and(|tag| tag != DEFAULT_TAG)
    }

    /// The tag it means.
    pub fn tag(&self) -> &str {
        self.tag.as_deref().unwrap_or(DEFAULT_TAG)
    }

    /// The build whose id stands in the place of the tag.
    pub fn build(&self) -> Option<BuildId> {
        self.tag.as_deref()?.parse().ok()
    }

    /// The reference without its tag.
    pub fn without_tag(&self) -> String {
        match &self.namespace {
            Some(namespace) => format!("{namespace}/{}", self.name),
            None => self.name.to_string(),
        }
    }
}

impl fmt::Display for TemplateReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.without_tag())?;
        match &self.tag {
            Some(tag) => write!(f, ":{tag}"),
            None => Ok(()),
        }
    }
}

impl FromStr for TemplateReference {
    type Err = InvalidReference;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = || InvalidReference(text.chars().take(64).collect());
        let lower = text.trim().to_lowercase();
        let (namespace, rest) = match lower.split_once('/') {
            Some((namespace, rest)) => (Some(namespace), rest),
            None => (None, lower.as_str()),
        };
        let (name, tag) = match rest.split_once(':') {
            Some((name, tag)) => (name, Some(tag)),
            None => (rest, None),
        };
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_".contains(&b);
        let word = |w: &str| !w.is_empty() && w.len() <= 128 && w.bytes().all(plain);
        let tag_ok = |tag: &str| {
            !tag.is_empty() && tag.len() <= 128 && tag.bytes().all(|b| plain(b) || b == b'.')
        };
        if !tag.is_none_or(tag_ok) || !namespace.is_none_or(word) {
            return Err(refused());
        }
        Ok(Self {
            namespace: namespace.map(str::to_owned),
            name: name.parse().map_err(|_| refused())?,
            tag: tag.map(str::to_owned),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_template_could_be_called_is_invalid() {
        for bad in ["", " ", "a b", "a/b/c", "a:", ":a", "/a", "ä", "a:b:c", "a:b/c"] {
            assert!(bad.parse::<TemplateReference>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_parts_are_read_trimmed_and_in_lower_case() {
        let whole: TemplateReference = " Team/Name:V1.2 ".parse().expect("valid");
        assert_eq!(whole.to_string(), "team/name:v1.2");
        assert_eq!((whole.tag(), whole.names_a_tag()), ("v1.2", true));
        let bare: TemplateReference = "name".parse().expect("valid");
        assert_eq!((bare.tag(), bare.names_a_tag(), bare.build()), ("default", false, None));
        let build: TemplateReference =
            "name:0b3c1b6e-7f1a-4a4e-9d7e-0c9f3a1b2c3d".parse().expect("valid");
        assert!(build.build().is_some());
    }
}
