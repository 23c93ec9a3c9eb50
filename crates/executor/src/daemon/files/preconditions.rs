//! Conditional downloads (executor 6.4). Files have a time of change and no tag.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hyper::header::{
    HeaderMap, HeaderName, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE,
    IF_UNMODIFIED_SINCE,
};

/// What conditions make of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PreconditionOutcome {
    /// Answer it; parts may be asked for if `ranges`.
    Send {
        ranges: bool,
    },
    NotModified,
    Failed,
}

/// The time of change in whole seconds, as headers carry it; none at the epoch.
pub(super) fn last_modified(seconds: i64) -> Option<SystemTime> {
    let seconds = u64::try_from(seconds).ok().filter(|seconds| *seconds > 0)?;
    UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

pub(super) fn check(headers: &HeaderMap, modified: Option<SystemTime>) -> PreconditionOutcome {
    let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let date = |name| text(name).and_then(|text| httpdate::parse_http_date(text).ok());
    if let Some(tags) = text(IF_MATCH) {
        if !tags.split(',').any(|tag| tag.trim() == "*") {
            return PreconditionOutcome::Failed;
        }
    } else if let (Some(limit), Some(modified)) = (date(IF_UNMODIFIED_SINCE), modified)
        && modified > limit
    {
        return PreconditionOutcome::Failed;
    }
    if let Some(tags) = text(IF_NONE_MATCH) {
        if tags.split(',').any(|tag| tag.trim() == "*") {
            return PreconditionOutcome::NotModified;
        }
    } else if let (Some(known), Some(modified)) = (date(IF_MODIFIED_SINCE), modified)
        && modified <= known
    {
        return PreconditionOutcome::NotModified;
    }
    // A tag there matches nothing of ours; a date must be exactly the file's.
    let ranges = text(IF_RANGE).is_none() || (modified.is_some() && date(IF_RANGE) == modified);
    PreconditionOutcome::Send { ranges }
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    const THEN: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
    const BEFORE: &str = "Sun, 06 Nov 1994 08:49:36 GMT";

    #[test]
    fn the_time_decides_unless_a_tag_does() {
        let send = |ranges| PreconditionOutcome::Send { ranges };
        for (name, value, expected) in [
            (IF_MODIFIED_SINCE, THEN, PreconditionOutcome::NotModified),
            (IF_MODIFIED_SINCE, BEFORE, send(true)),
            (IF_MODIFIED_SINCE, "nonsense", send(true)),
            (IF_UNMODIFIED_SINCE, BEFORE, PreconditionOutcome::Failed),
            (IF_UNMODIFIED_SINCE, THEN, send(true)),
            (IF_NONE_MATCH, "*", PreconditionOutcome::NotModified),
            (IF_NONE_MATCH, "\"x\"", send(true)),
            (IF_MATCH, "\"x\"", PreconditionOutcome::Failed),
            (IF_MATCH, "*", send(true)),
            (IF_RANGE, THEN, send(true)),
            (IF_RANGE, BEFORE, send(false)),
            (IF_RANGE, "\"x\"", send(false)),
        ] {
            let headers = HeaderMap::from_iter([(name.clone(), HeaderValue::from_static(value))]);
            let outcome = check(&headers, last_modified(784_111_777));
            assert_eq!(outcome, expected, "{name}: {value}");
        }
    }
}
