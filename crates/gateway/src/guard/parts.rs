//! A list that asks above what is granted: made up of the granted parts, so that it names nothing
//! else.

use s3s::S3Result;
use sandyard_types::KeyPrefix;

use crate::backend::ObjectStore;
use crate::listing::{ListQuery, ListingEntry, ListingPage, PageRequest};

/// One page over all `parts`, which are sorted, do not overlap and begin with the query's prefix.
pub(super) async fn page(
    store: &dyn ObjectStore,
    bucket: &str,
    query: &ListQuery,
    parts: &[KeyPrefix],
) -> S3Result<ListingPage> {
    let mut page = ListingPage::default();
    if query.limit == 0 {
        return Ok(page);
    }
    for part in parts {
        let missing = query.limit - page.entries.len();
        if let Some(leading) = leading_to(part, query) {
            if page.entries.last().map(ListingEntry::name) == Some(&leading)
                || query.after.as_ref().is_some_and(|after| *after >= leading)
            {
                continue;
            }
            if missing == 0 {
                page.more = true;
                break;
            }
            page.entries.push(ListingEntry::Prefix(leading));
            continue;
        }
        let request = PageRequest {
            bucket,
            prefix: part.as_str(),
            delimiter: query.delimiter.as_deref(),
            after: query.after.as_deref(),
            limit: missing.max(1),
        };
        let found = store.page(&request).await?;
        if missing == 0 {
            page.more = !found.entries.is_empty();
        } else {
            page.entries.extend(found.entries);
            page.more = found.more;
        }
        if page.more {
            break;
        }
    }
    Ok(page)
}

/// The common prefix under which a list with a delimiter shows a part that lies deeper.
fn leading_to(part: &KeyPrefix, query: &ListQuery) -> Option<String> {
    let delimiter = query.delimiter.as_deref()?;
    let below = part.as_str().strip_prefix(&query.prefix)?;
    let at = below.find(delimiter)?;
    Some(format!("{}{}", query.prefix, &below[..at + delimiter.len()]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delimiter_list_shows_the_one_step_that_leads_to_the_part() {
        let part: KeyPrefix = "sessions/s1/".parse().expect("valid");
        let query = |prefix: &str, delimiter: Option<&str>| ListQuery {
            prefix: prefix.to_owned(),
            delimiter: delimiter.map(str::to_owned),
            after: None,
            limit: 10,
        };
        let leading = |prefix, delimiter| leading_to(&part, &query(prefix, delimiter));
        assert_eq!(leading("", Some("/")).as_deref(), Some("sessions/"));
        assert_eq!(leading("sess", Some("/")).as_deref(), Some("sessions/"));
        assert_eq!(leading("sessions/", Some("/")).as_deref(), Some("sessions/s1/"));
        assert_eq!(leading("sessions/s1", Some("/")).as_deref(), Some("sessions/s1/"));
        assert_eq!(leading("", Some("|")), None);
        assert_eq!(leading("", None), None);
    }
}
