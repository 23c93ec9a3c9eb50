//! Which files an upload in parts is for (executor 6.5).
//!
//! Whoever has the access token or a signed URL chooses what is read here.

/// The boundary parameter of a multipart content type, quoted or not; `None` if there is none to part by.
pub fn boundary(content_type: &str) -> Option<&str> {
    content_type.split(';').skip(1).find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        let value = value.trim().trim_matches('"');
        (name.trim().eq_ignore_ascii_case("boundary") && !value.is_empty()).then_some(value)
    })
}

/// A file's part says nowhere where it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nameless;

/// The path that a part is for, unresolved: the query's if there is one, else the part's own file name with
/// its directories. `None`: the part is no file, and is skipped.
///
/// # Errors
/// [`Nameless`] for a file with neither.
pub fn path_of_part<'a>(
    query_path: Option<&'a str>,
    name: Option<&str>,
    file_name: Option<&'a str>,
) -> Result<Option<&'a str>, Nameless> {
    if name != Some("file") {
        return Ok(None);
    }
    let given = |path: &&str| !path.is_empty();
    query_path.filter(given).or(file_name).filter(given).map(Some).ok_or(Nameless)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boundaries_are_read_quoted_or_not() {
        assert_eq!(boundary("multipart/form-data; boundary=x1"), Some("x1"));
        assert_eq!(boundary("multipart/mixed; charset=u; Boundary=\"a b\""), Some("a b"));
        assert_eq!(boundary("multipart/form-data"), None);
        assert_eq!(boundary("multipart/form-data; boundary="), None);
    }

    #[test]
    fn the_query_goes_before_the_part_and_other_parts_are_skipped() {
        let file = Some("file");
        assert_eq!(path_of_part(Some("q"), file, Some("a/b")), Ok(Some("q")));
        assert_eq!(path_of_part(Some("q"), file, None), Ok(Some("q")));
        assert_eq!(path_of_part(Some(""), file, Some("a/b")), Ok(Some("a/b")));
        assert_eq!(path_of_part(None, file, Some("")), Err(Nameless));
        assert_eq!(path_of_part(None, file, None), Err(Nameless));
        assert_eq!(path_of_part(Some("q"), Some("other"), Some("a")), Ok(None));
        assert_eq!(path_of_part(Some("q"), None, Some("a")), Ok(None));
    }
}
