//! Which templates exist, and what a client's reference to one means (control-plane 4.2).

use std::str::FromStr;
use std::sync::Arc;

use sandyard_types::{Template, TemplateId, TemplateName};

/// The tag a reference without one means.
const DEFAULT_TAG: &str = "default";

/// A reference that no template could have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "invalid template reference '{0}': write '[namespace/]name[:tag]' with characters of [a-z0-9-_] ('.' too in a tag)"
)]
pub struct InvalidReference(String);

/// A reference to a template that is not there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnknownTemplate {
    /// No template of that name or id.
    #[error("template '{0}' not found")]
    Name(String),
    /// The template has no such tag.
    #[error("tag '{tag}' does not exist for template '{name}'")]
    Tag {
        /// The template.
        name: String,
        /// The tag.
        tag: String,
    },
}

/// `[namespace/]name[:tag]`, trimmed and in lower case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TemplateReference {
    namespace: Option<String>,
    name: String,
    tag: String,
}

impl TemplateReference {
    /// Whether a tag other than the default one was named.
    pub fn names_a_tag(&self) -> bool {
        self.tag != DEFAULT_TAG
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
        let (name, tag) = rest.split_once(':').unwrap_or((rest, DEFAULT_TAG));
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_".contains(&b);
        let word = |w: &str| !w.is_empty() && w.len() <= 128 && w.bytes().all(plain);
        let tag_ok =
            !tag.is_empty() && tag.len() <= 128 && tag.bytes().all(|b| plain(b) || b == b'.');
        if !word(name) || !tag_ok || !namespace.is_none_or(word) {
            return Err(refused());
        }
        Ok(Self {
            namespace: namespace.map(str::to_owned),
            name: name.to_owned(),
            tag: tag.to_owned(),
        })
    }
}

/// All templates of the server. They come from its configuration and belong to no team, so a reference
/// with a namespace names none of them.
#[derive(Clone, Debug, Default)]
pub struct Templates {
    all: Vec<Arc<Template>>,
}

impl Templates {
    /// Keeps the templates; the configuration has made sure that ids and names are unique.
    pub fn new(templates: Vec<Template>) -> Self {
        Self { all: templates.into_iter().map(Arc::new).collect() }
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Template>> {
        self.all.iter()
    }

    /// The template a reference means: a name first, then an id.
    ///
    /// # Errors
    /// [`UnknownTemplate`], naming what is not there.
    pub fn resolve(&self, reference: &TemplateReference) -> Result<Arc<Template>, UnknownTemplate> {
        let unknown = || {
            let namespace = reference.namespace.as_ref().map(|n| format!("{n}/"));
            UnknownTemplate::Name(format!("{}{}", namespace.unwrap_or_default(), reference.name))
        };
        if reference.namespace.is_some() {
            return Err(unknown());
        }
        let by_name = |t: &&Arc<Template>| TemplateName::as_str(&t.name) == reference.name;
        let by_id = |t: &&Arc<Template>| TemplateId::as_str(&t.id) == reference.name;
        let found = self.all.iter().find(by_name).or_else(|| self.all.iter().find(by_id));
        let template = found.ok_or_else(unknown)?;
        if reference.names_a_tag() {
            let (name, tag) = (reference.name.clone(), reference.tag.clone());
            return Err(UnknownTemplate::Tag { name, tag });
        }
        Ok(template.clone())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use sandyard_types::TemplateKind;

    use super::*;

    fn templates() -> Templates {
        Templates::new(vec![Template {
            id: "abcdefghij0123456789".parse().expect("valid"),
            name: "base".parse().expect("valid"),
            kind: TemplateKind::BuiltIn,
            image: "image".to_owned(),
            cpu_count: 2,
            memory_mib: 512,
            pids: 1024,
            disk_mib: 1024,
            user: "user".to_owned(),
            workdir: None,
            env: BTreeMap::new(),
            sudo: true,
            interpreter: false,
            workspace_target: "/workspace".parse().expect("valid"),
        }])
    }

    fn resolve(text: &str) -> Result<String, String> {
        let reference: TemplateReference =
            text.parse().map_err(|e: InvalidReference| e.to_string())?;
        templates().resolve(&reference).map(|t| t.name.to_string()).map_err(|e| e.to_string())
    }

    #[test]
    fn names_ids_case_space_and_the_default_tag_resolve() {
        for good in ["base", " Base ", "base:default", "abcdefghij0123456789"] {
            assert_eq!(resolve(good), Ok("base".to_owned()), "{good}");
        }
    }

    #[test]
    fn what_is_not_there_is_named() {
        assert_eq!(resolve("nope"), Err("template 'nope' not found".to_owned()));
        assert_eq!(resolve("team/base"), Err("template 'team/base' not found".to_owned()));
        let tag = "tag 'v1.2' does not exist for template 'base'";
        assert_eq!(resolve("base:v1.2"), Err(tag.to_owned()));
    }

    #[test]
    fn what_no_template_could_be_called_is_invalid() {
        for bad in ["", " ", "a b", "a/b/c", "a:", ":a", "/a", "ä", "a:b:c"] {
            assert!(bad.parse::<TemplateReference>().is_err(), "{bad:?}");
        }
    }
}
