//! Templates of the configuration (design 3.1).

use std::collections::BTreeMap;

use sandyard_types::{
    DEFAULT_DISK_MIB, TargetPath, Template, TemplateId, TemplateKind, TemplateName,
};
use sha2::{Digest as _, Sha256};

use super::reader::{ConfigReader, boolean, parsed, text, within};

/// What `base` is unless `base.*` says otherwise, and what an entry leaves out.
const CPU_COUNT: u32 = 2;
const MEMORY_MIB: u32 = 1024;
const PIDS: u32 = 1024;
/// Containers of `base` that wait in the pool, without and with a workspace each.
const BASE_POOL: u32 = 2;
/// And of the interpreter's usual template, where its image is on the engine: its kernels take a second to start.
const INTERPRETER_POOL: u32 = 1;

/// Templates that are part of sandyard: their key in the configuration, their name, their image, and whether a code
/// interpreter runs in them.
const BUILT_IN: [(&str, &str, &str, bool); 3] = [
    ("base", "base", "sandyard/base:latest", false),
    ("code_interpreter", "code-interpreter-v1", "sandyard/code-interpreter:latest", true),
    (
        "code_interpreter_full",
        "code-interpreter-full",
        "sandyard/code-interpreter-full:latest",
        true,
    ),
];

/// Those that are built in, and every entry of `[[templates]]`.
pub(super) fn read_all(r: &mut ConfigReader) -> Option<Vec<Template>> {
    let mut templates = Vec::new();
    for built_in @ (key, ..) in BUILT_IN {
        templates.push(read(r, key, TemplateKind::BuiltIn, Some(built_in)));
    }
    for index in 0..r.list_len("templates") {
        let key = format!("templates[{index}]");
        let template = read(r, &key, TemplateKind::Configured, None);
        let taken = |t: &Template| templates.iter().flatten().any(|other| other.name == t.name);
        if let Some(template) = template.as_ref().filter(|t| taken(t)) {
            r.fail(format!("{key}.name: there is another template '{}'", template.name));
        }
        let taken = |t: &Template| templates.iter().flatten().any(|other| other.id == t.id);
        if let Some(template) = template.as_ref().filter(|t| taken(t)) {
            r.fail(format!("{key}.id: there is another template with the id '{}'", template.id));
        }
        templates.push(template);
    }
    templates.into_iter().collect()
}

fn read(
    r: &mut ConfigReader,
    key: &str,
    kind: TemplateKind,
    built_in: Option<(&str, &str, &str, bool)>,
) -> Option<Template> {
    let at = |member: &str| format!("{key}.{member}");
    let name = match built_in {
        Some((_, name, ..)) => name.parse().ok(),
        None => needed(r, &at("name"), parsed),
    };
    let image = match built_in {
        Some((_, _, image, _)) => r.value(&at("image"), image.to_owned(), text),
        None => needed(r, &at("image"), text),
    };
    let has_interpreter = built_in.is_some_and(|(.., interpreter)| interpreter);
    let interpreter = r.value(&at("interpreter"), has_interpreter, boolean);
    let pool = match key {
        "base" => BASE_POOL,
        "code_interpreter" => INTERPRETER_POOL,
        _ => 0,
    };
    let pool = r.value(&at("pool"), pool, |v| within(v, 0, 1000));
    let id = r.optional(&at("id"), parsed::<TemplateId>);
    let cpu_count = r.value(&at("cpu_count"), CPU_COUNT, |v| within(v, 1, 1024));
    let memory_mib = r.value(&at("memory_mib"), MEMORY_MIB, |v| within(v, 128, 1 << 22));
    let pids = r.value(&at("pids"), PIDS, |v| within(v, 128, 1 << 20));
    let disk_mib = r.value(&at("disk_mib"), DEFAULT_DISK_MIB, |v| within(v, 16, 1 << 24));
    let user = r.value(&at("user"), "user".to_owned(), text);
    let workdir = r.optional(&at("workdir"), text);
    let sudo = r.value(&at("sudo"), true, boolean);
    let target = r.value(&at("workspace_target"), "/workspace".to_owned(), text);
    let target = r.check(&at("workspace_target"), target.map(|t| t.parse::<TargetPath>()));
    let mut env = BTreeMap::new();
    for variable in r.names_below(&at("env")) {
        if let Some(value) = r.optional(&format!("{key}.env.{variable}"), |value| {
            value.into_string().map_err(|_| "it must be a text".to_owned())
        }) {
            env.insert(variable, value);
        }
    }
    let name = name?;
    Some(Template {
        id: id.or_else(|| derived_id(&name))?,
        name,
        kind,
        image: image?,
        cpu_count: cpu_count?,
        memory_mib: memory_mib?,
        pids: pids?,
        disk_mib: disk_mib?,
        user: user?,
        workdir,
        env,
        sudo: sudo?,
        interpreter: interpreter?,
        workspace_target: target?,
        pool: pool?,
    })
}

fn needed<T>(
    r: &mut ConfigReader,
    key: &str,
    parse: impl FnOnce(config::Value) -> Result<T, String>,
) -> Option<T> {
    let mut seen = false;
    let value = r.optional(key, |value| {
        seen = true;
        parse(value)
    });
    if !seen {
        r.fail(format!("{key}: not set"));
    }
    value
}

/// An id of the contract's form that stays the same as long as the name does.
fn derived_id(name: &TemplateName) -> Option<TemplateId> {
    const ALPHABET: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
    let digest = Sha256::digest(name.as_str().as_bytes());
    let letters = digest.iter().take(20).map(|b| char::from(ALPHABET[usize::from(b % 36)]));
    letters.collect::<String>().parse().ok()
}
