//! What has to be said in a language itself: the working directory and environment variables
//! (code-interpreter 5, 6). Values are escaped.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// The language of contexts for which none is named.
pub(crate) const DEFAULT_LANGUAGE: &str = "python";

/// A language's name as contexts carry it.
pub(crate) fn normalise(language: Option<&str>) -> String {
    let language = language.unwrap_or(DEFAULT_LANGUAGE).trim().to_lowercase();
    match language.as_str() {
        "js" => "javascript".to_owned(),
        "ts" => "typescript".to_owned(),
        _ => language,
    }
}

/// What a language's kernel can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    Python,
    /// JavaScript and TypeScript on Node.js.
    Node,
    R,
    Java,
    Bash,
}

/// A change of the environment: variables with their new values, `None` where they go.
pub(crate) type EnvironmentChange<'a> = BTreeMap<&'a str, Option<&'a str>>;

impl Dialect {
    /// The dialect of a language; none of one that only its kernel knows.
    pub(crate) fn of(language: &str) -> Option<Self> {
        match language {
            "python" => Some(Self::Python),
            "javascript" | "typescript" => Some(Self::Node),
            "r" => Some(Self::R),
            "java" => Some(Self::Java),
            "bash" => Some(Self::Bash),
            _ => None,
        }
    }

    /// Code that changes the working directory, or fails.
    pub(crate) fn change_directory(self, path: &str) -> String {
        match self {
            Self::Python => format!("__import__('os').chdir({})", json(path)),
            Self::Node => format!("process.chdir({})", json(path)),
            Self::R => format!("setwd({})", r(path)),
            // The process's own cannot be changed.
            Self::Java => format!("System.setProperty(\"user.dir\", {});", java(path)),
            Self::Bash => format!("cd -- {}", bash(path)),
        }
    }

    /// Code that sets and removes variables. A name that the language cannot have is left out.
    pub(crate) fn change_environment(self, change: &EnvironmentChange<'_>) -> String {
        let mut code = String::new();
        for (name, value) in change {
            // Writing to a String cannot fail.
            let _ = match (self, value) {
                (Self::Python, Some(value)) => {
                    writeln!(code, "__import__('os').environ[{}] = {}", json(name), json(value))
                }
                (Self::Python, None) => {
                    writeln!(code, "__import__('os').environ.pop({}, None)", json(name))
                }
                (Self::Node, Some(value)) => {
                    writeln!(code, "process.env[{}] = {};", json(name), json(value))
                }
                (Self::Node, None) => writeln!(code, "delete process.env[{}];", json(name)),
                (Self::R, Some(value)) => writeln!(
                    code,
                    "invisible(do.call(Sys.setenv, setNames(list({}), {})))",
                    r(value),
                    r(name)
                ),
                (Self::R, None) => writeln!(code, "invisible(Sys.unsetenv({}))", r(name)),
                (Self::Java, Some(value)) => {
                    writeln!(code, "System.setProperty({}, {});", java(name), java(value))
                }
                (Self::Java, None) => writeln!(code, "System.clearProperty({});", java(name)),
                (Self::Bash, Some(value)) if is_shell_name(name) => {
                    writeln!(code, "export {name}={}", bash(value))
                }
                (Self::Bash, None) if is_shell_name(name) => writeln!(code, "unset {name}"),
                (Self::Bash, _) => Ok(()),
            };
        }
        code
    }
}

/// Variables of bash that cannot be set.
const READ_ONLY: [&str; 6] = ["BASHOPTS", "BASH_VERSINFO", "EUID", "PPID", "SHELLOPTS", "UID"];

fn is_shell_name(name: &str) -> bool {
    if READ_ONLY.contains(&name) {
        return false;
    }
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|first| first.is_ascii_alphabetic() || first == b'_')
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// A text of JSON is one of Python and of JavaScript too.
fn json(text: &str) -> Cow<'_, str> {
    serde_json::Value::from(text).to_string().into()
}

/// R knows JSON's escapes but `\u0000`, which no variable can hold.
fn r(text: &str) -> Cow<'_, str> {
    json(text)
}

/// Java replaces escapes like `\u000a` before it reads texts, so that control characters have to be octal.
fn java(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            c if c.is_ascii_control() => {
                // Three digits, so that one that follows does not belong to it.
                let _ = write!(quoted, "\\{:03o}", u32::from(c));
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// One line, whatever is in it: the kernel sends code line by line.
fn bash(text: &str) -> String {
    let mut quoted = String::from("$'");
    for c in text.chars() {
        match c {
            '\'' | '\\' => quoted.extend(['\\', c]),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            // History expansion happens in quotes of this kind too.
            '!' => quoted.push_str("\\041"),
            c if c.is_ascii_control() => {
                let _ = write!(quoted, "\\{:03o}", u32::from(c));
            }
            c => quoted.push(c),
        }
    }
    quoted.push('\'');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    const NASTY: &str = "it's \"q\" $X `id` \\ \n\t\u{1b}7 ünï !";

    #[test]
    fn names_of_languages() {
        for (given, expected) in [
            (None, "python"),
            (Some(" JS "), "javascript"),
            (Some("TS"), "typescript"),
            (Some("R"), "r"),
            (Some("julia-1.9"), "julia-1.9"),
        ] {
            assert_eq!(normalise(given), expected);
        }
    }

    #[test]
    fn values_are_escaped() {
        let change = BTreeMap::from([("A", Some(NASTY)), ("B", None)]);
        let code = |dialect: Dialect| dialect.change_environment(&change);
        assert_eq!(
            code(Dialect::Python),
            "__import__('os').environ[\"A\"] = \"it's \\\"q\\\" $X `id` \\\\ \\n\\t\\u001b7 ünï !\"\n\
             __import__('os').environ.pop(\"B\", None)\n"
        );
        assert_eq!(
            code(Dialect::Java),
            "System.setProperty(\"A\", \"it's \\\"q\\\" $X `id` \\\\ \\n\\011\\0337 ünï !\");\n\
             System.clearProperty(\"B\");\n"
        );
        assert_eq!(
            code(Dialect::Bash),
            "export A=$'it\\'s \"q\" $X `id` \\\\ \\n\\t\\0337 ünï \\041'\nunset B\n"
        );
    }

    #[test]
    fn bash_takes_names_that_it_can_have() {
        let change = BTreeMap::from([
            ("A-B", Some("1")),
            ("A; id", None),
            ("UID", Some("1")),
            ("_a1", Some("2")),
        ]);
        assert_eq!(Dialect::Bash.change_environment(&change), "export _a1=$'2'\n");
    }

    #[test]
    fn bash_reads_what_was_meant() {
        let echoed = std::process::Command::new("bash")
            .args(["-c", &format!("printf %s {}", bash(NASTY))])
            .output()
            .expect("bash");
        assert_eq!(String::from_utf8_lossy(&echoed.stdout), NASTY);
    }
}
