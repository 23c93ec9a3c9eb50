//! How a path of a request becomes a path of the sandbox (executor 5.1).

/// A path that names no place.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum InvalidPath {
    #[error("cannot expand '{0}': only '~' and '~/' for the request's own user are understood")]
    OtherHome(String),
    #[error("a path holds a NUL character")]
    Nul,
}

/// Resolves `path` for a user with this home; `workdir` is the default workdir, if one is set.
pub(super) fn resolve(
    path: &str,
    home: &str,
    workdir: Option<&str>,
) -> Result<String, InvalidPath> {
    let path = if path.is_empty() { workdir.unwrap_or("") } else { path };
    if path.contains('\0') {
        return Err(InvalidPath::Nul);
    }
    if path.starts_with('/') {
        return Ok(path.to_owned());
    }
    match path.strip_prefix('~') {
        Some("") => Ok(home.to_owned()),
        Some(rest) if rest.starts_with('/') => Ok(clean(&format!("{home}/{rest}"))),
        Some(_) => Err(InvalidPath::OtherHome(path.to_owned())),
        None => Ok(clean(&format!("{home}/{path}"))),
    }
}

/// The shortest form of an absolute path by its text alone, symbolic links or not.
pub(super) fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

/// The last component; `/` for the root.
pub(super) fn base_name(path: &str) -> &str {
    match path.trim_end_matches('/') {
        "" => "/",
        trimmed => trimmed.rsplit('/').next().unwrap_or(trimmed),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at_home(path: &str) -> String {
        resolve(path, "/home/user", None).unwrap()
    }

    #[test]
    fn the_rules_of_the_contract() {
        assert_eq!(at_home(""), "/home/user");
        assert_eq!(resolve("", "/home/user", Some("/work")).unwrap(), "/work");
        assert_eq!(resolve("", "/home/user", Some("~/w")).unwrap(), "/home/user/w");
        assert_eq!(at_home("~"), "/home/user");
        assert_eq!(at_home("~/a/../b"), "/home/user/b");
        assert_eq!(at_home("a/b"), "/home/user/a/b");
        assert_eq!(at_home("../../.."), "/");
        assert_eq!(at_home("/tmp/../x/"), "/tmp/../x/");
        assert_eq!(resolve("a", "/home/user", Some("/work")).unwrap(), "/home/user/a");
        assert!(matches!(resolve("~bob/x", "/h", None), Err(InvalidPath::OtherHome(_))));
        assert_eq!(resolve("a\0b", "/h", None), Err(InvalidPath::Nul));
    }

    #[test]
    fn base_names() {
        assert_eq!(base_name("/"), "/");
        assert_eq!(base_name("/a/b/"), "b");
        assert_eq!(base_name("/a"), "a");
    }

    proptest! {
        #[test]
        fn a_resolved_path_is_absolute_or_refused(path in "\\PC{0,40}", home in "/[a-z/]{0,10}") {
            if let Ok(resolved) = resolve(&path, &home, None) {
                prop_assert!(resolved.starts_with('/'));
                if path.starts_with('/') {
                    prop_assert_eq!(resolved, path);
                } else if path != "~" && !path.is_empty() {
                    prop_assert_eq!(clean(&resolved), resolved.clone());
                    prop_assert!(!resolved.split('/').any(|part| part == ".." || part == "."));
                }
            }
        }
    }
}
