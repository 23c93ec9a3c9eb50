//! Reads values one by one and collects what is wrong with them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use config::{Value, ValueKind};
use sandyard_types::Secret;

/// Everything that is wrong with the configuration.
#[derive(Debug, thiserror::Error)]
pub struct BadConfig {
    problems: Vec<String>,
}

impl BadConfig {
    pub(super) fn one(problem: String) -> Self {
        Self { problems: vec![problem] }
    }
}

impl fmt::Display for BadConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let many = if self.problems.len() == 1 { "" } else { "s" };
        write!(f, "the configuration has {} problem{many}:", self.problems.len())?;
        self.problems.iter().try_for_each(|problem| write!(f, "\n  - {problem}"))
    }
}

/// All values by their full keys. What is left after everything was read does not exist.
pub(super) struct ConfigReader {
    values: BTreeMap<String, Value>,
    problems: Vec<String>,
}

impl ConfigReader {
    pub(super) fn new(layers: config::Config) -> Result<Self, BadConfig> {
        let root: BTreeMap<String, Value> =
            layers.try_deserialize().map_err(|e| BadConfig::one(e.to_string()))?;
        let mut values = BTreeMap::new();
        for (key, value) in root {
            flatten(key, value, &mut values);
        }
        Ok(Self { values, problems: Vec::new() })
    }

    /// Ends the reading: the result, if nothing was wrong.
    pub(super) fn finish<T>(mut self, result: Option<T>) -> Result<T, BadConfig> {
        for key in self.values.keys() {
            self.problems.push(format!("{key}: there is no such setting"));
        }
        match result {
            Some(result) if self.problems.is_empty() => Ok(result),
            _ => Err(BadConfig { problems: self.problems }),
        }
    }

    pub(super) fn fail(&mut self, problem: impl Into<String>) {
        self.problems.push(problem.into());
    }

    /// A value or, where none is set, its default; `None` if it is wrong.
    pub(super) fn value<T>(
        &mut self,
        key: &str,
        default: T,
        parse: impl FnOnce(Value) -> Result<T, String>,
    ) -> Option<T> {
        match self.values.remove(key) {
            Some(value) => self.parse(key, value, parse),
            None => Some(default),
        }
    }

    /// A value that need not be set; `None` too if it is wrong.
    pub(super) fn optional<T>(
        &mut self,
        key: &str,
        parse: impl FnOnce(Value) -> Result<T, String>,
    ) -> Option<T> {
        let value = self.values.remove(key)?;
        self.parse(key, value, parse)
    }

    /// A secret: from the value itself or from the file that `<key>_file` names. A message never shows
    /// it.
    pub(super) fn secret(
        &mut self,
        key: &str,
        parse: impl FnOnce(Value) -> Result<Secret, String>,
    ) -> Option<Secret> {
        let file_key = format!("{key}_file");
        let from_file = self.optional(&file_key, |value| {
            let path = text(value)?;
            std::fs::read_to_string(&path).map_err(|e| format!("cannot read '{path}': {e}"))
        });
        match (self.values.remove(key), from_file) {
            (Some(_), Some(_)) => {
                self.fail(format!("{key}: set both here and by {file_key}; keep one"));
                None
            }
            (Some(value), None) => self.parse(key, value, parse),
            (None, Some(content)) => {
                let value = Value::new(None, ValueKind::String(content.trim().to_owned()));
                self.parse(&file_key, value, parse)
            }
            (None, None) => None,
        }
    }

    /// Keeps a result, or its problem.
    pub(super) fn check<T, E: fmt::Display>(
        &mut self,
        key: &str,
        result: Option<Result<T, E>>,
    ) -> Option<T> {
        match result? {
            Ok(value) => Some(value),
            Err(error) => {
                self.fail(format!("{key}: {error}"));
                None
            }
        }
    }

    /// How many tables the list `key` has.
    pub(super) fn list_len(&self, key: &str) -> usize {
        let indexes = self.values.keys().filter_map(|full| {
            full.strip_prefix(key)?.strip_prefix('[')?.split_once(']')?.0.parse::<usize>().ok()
        });
        indexes.collect::<BTreeSet<_>>().len()
    }

    /// The names of all values below `key`.
    pub(super) fn names_below(&self, key: &str) -> Vec<String> {
        let prefix = format!("{key}.");
        let names = self.values.keys().filter_map(|full| full.strip_prefix(&prefix));
        names.map(str::to_owned).collect()
    }

    fn parse<T>(
        &mut self,
        key: &str,
        value: Value,
        parse: impl FnOnce(Value) -> Result<T, String>,
    ) -> Option<T> {
        let origin = value.origin().map(|origin| format!(" (from {origin})")).unwrap_or_default();
        match parse(value) {
            Ok(value) => Some(value),
            Err(problem) => {
                self.problems.push(format!("{key}: {problem}{origin}"));
                None
            }
        }
    }
}

fn flatten(key: String, value: Value, into: &mut BTreeMap<String, Value>) {
    match value.kind {
        ValueKind::Table(table) => {
            for (name, value) in table {
                flatten(format!("{key}.{name}"), value, into);
            }
        }
        ValueKind::Array(values) => {
            for (index, value) in values.into_iter().enumerate() {
                flatten(format!("{key}[{index}]"), value, into);
            }
        }
        _ => {
            into.insert(key, value);
        }
    }
}

/// A text that is not empty.
pub(super) fn text(value: Value) -> Result<String, String> {
    let text = value.into_string().map_err(|_| "it must be a text".to_owned())?;
    if text.is_empty() { Err("it is empty".to_owned()) } else { Ok(text) }
}

/// A secret that is not empty.
pub(super) fn secret(value: Value) -> Result<Secret, String> {
    text(value).map(Secret::new)
}

/// Whatever has a text form.
pub(super) fn parsed<T: FromStr<Err: fmt::Display>>(value: Value) -> Result<T, String> {
    let text = text(value)?;
    text.parse().map_err(|e| format!("'{text}': {e}"))
}

/// `true` or `false`.
pub(super) fn boolean(value: Value) -> Result<bool, String> {
    value.into_bool().map_err(|_| "it must be true or false".to_owned())
}

/// A whole number in a range.
pub(super) fn within(value: Value, least: u32, most: u32) -> Result<u32, String> {
    let range = || format!("it must be a whole number from {least} to {most}");
    let number = value.into_int().map_err(|_| range())?;
    let number = u32::try_from(number).ok().filter(|n| (least..=most).contains(n));
    number.ok_or_else(range)
}

/// A value that another one makes necessary.
pub(super) fn required<T>(
    reader: &mut ConfigReader,
    key: &str,
    value: Option<T>,
    why: &str,
) -> Option<T> {
    if value.is_none() {
        reader.fail(format!("{key}: not set, or wrong, but {why}"));
    }
    value
}
