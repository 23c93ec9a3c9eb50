//! Both lists (control-plane 3.3).

use std::borrow::Cow;
use std::sync::Arc;

use axum::Json;
use axum::extract::{RawQuery, State};
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderName, HeaderValue};
use sandyard_contract::rest::{ListedSandboxBody, VisibleState};
use sandyard_core::{Sandbox, TemplateReference};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::SharedApi;
use super::auth::Caller;
use super::convert::{listed_body, visible};
use super::error::ApiError;
use super::metadata_filter::MetadataFilter;
use super::page_token::{Position, SortOrder};

pub(super) const NEXT_TOKEN: HeaderName = HeaderName::from_static("x-next-token");
const TOTAL_RUNNING: HeaderName = HeaderName::from_static("x-total-running");
pub(super) const MAX_LIMIT: usize = 100;

/// The decoded pairs of a query.
pub(super) struct QueryPairs<'a>(Vec<(Cow<'a, str>, Cow<'a, str>)>);

impl<'a> QueryPairs<'a> {
    pub(super) fn parse(query: Option<&'a str>) -> Self {
        let bytes = query.unwrap_or_default().as_bytes();
        Self(form_urlencoded::parse(bytes).collect())
    }

    /// The first value of a parameter.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_ref())
    }

    /// All items of a list, separated by commas or given repeatedly; `None` if there is none.
    fn items(&self, name: &str) -> Option<Vec<&str>> {
        let values = self.0.iter().filter(|(key, _)| key == name);
        let items: Vec<&str> = values
            .flat_map(|(_, value)| value.split(','))
            .filter(|item| !item.is_empty())
            .collect();
        (!items.is_empty()).then_some(items)
    }
}

/// What `GET /v2/sandboxes` was asked for.
#[derive(Debug)]
struct Filter {
    metadata: MetadataFilter,
    states: Vec<VisibleState>,
    started_after: Option<OffsetDateTime>,
    template: Option<TemplateReference>,
    order: SortOrder,
    limit: usize,
    after: Option<Position>,
}

impl Filter {
    fn parse(query: Option<&str>) -> Result<Self, ApiError> {
        let query = QueryPairs::parse(query);
        let order = match query.get("order") {
            None | Some("desc") => SortOrder::Descending,
            Some("asc") => SortOrder::Ascending,
            Some(_) => return Err(ApiError::validation("order", "it is 'asc' or 'desc'")),
        };
        let after = query.get("nextToken").filter(|token| !token.is_empty());
        Ok(Self {
            metadata: MetadataFilter::parse(query.get("metadata").unwrap_or_default())?,
            states: states(query.items("state"))?,
            started_after: query.get("startedAfter").map(instant).transpose()?,
            template: query.get("template").map(template).transpose()?,
            order,
            limit: query.get("limit").map_or(Ok(MAX_LIMIT), limit)?,
            after: after.map(|token| Position::from_token(token, order)).transpose()?,
        })
    }

    fn matches(&self, sandbox: &Sandbox) -> bool {
        visible(sandbox.state).is_some_and(|state| self.states.contains(&state))
            && self.metadata.matches(&sandbox.metadata)
            && self.started_after.is_none_or(|at| sandbox.started_at >= at)
    }
}

fn states(items: Option<Vec<&str>>) -> Result<Vec<VisibleState>, ApiError> {
    let Some(items) = items else {
        return Ok(vec![VisibleState::Running, VisibleState::Paused]);
    };
    let state = |item| match item {
        "running" => Ok(VisibleState::Running),
        "paused" => Ok(VisibleState::Paused),
        _ => Err(ApiError::validation("state", "it is a list of 'running' and 'paused'")),
    };
    items.into_iter().map(state).collect()
}

/// An instant, cut to what everything here is kept at: microseconds.
fn instant(text: &str) -> Result<OffsetDateTime, ApiError> {
    // A `+` that was not encoded has become a space.
    let at = OffsetDateTime::parse(&text.replace(' ', "+"), &Rfc3339)
        .map_err(|error| ApiError::validation("startedAfter", error))?;
    let cut = at.replace_nanosecond(at.nanosecond() / 1000 * 1000);
    cut.map_err(|error| ApiError::validation("startedAfter", error))
}

fn template(text: &str) -> Result<TemplateReference, ApiError> {
    if text.contains(':') {
        let rule = "it is a template's name or id, without a tag";
        return Err(ApiError::validation("template", rule));
    }
    text.parse().map_err(|error| ApiError::validation("template", error))
}

pub(super) fn limit(text: &str) -> Result<usize, ApiError> {
    let limit = text.parse().ok();
    limit
        .filter(|limit| (1..=MAX_LIMIT).contains(limit))
        .ok_or_else(|| ApiError::validation("limit", "it is a number from 1 to 100"))
}

/// `GET /v2/sandboxes`.
pub(super) async fn page(
    caller: Caller,
    State(api): State<SharedApi>,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    let filter = Filter::parse(query.as_deref())?;
    let scheduler = &api.app.scheduler;
    // A template that is not there has no sandboxes.
    let template = filter
        .template
        .as_ref()
        .map(|reference| scheduler.catalogue().id_of(caller.team, reference));
    let mut sandboxes = match template {
        Some(None) => Vec::new(),
        Some(Some(_)) | None => scheduler.list(caller.team),
    };
    sandboxes.retain(|sandbox| {
        let of_template = template.iter().flatten().all(|id| *id == sandbox.template.id);
        of_template && filter.matches(sandbox)
    });
    let page = cut(sandboxes, &filter);

    let mut headers = HeaderMap::new();
    if let Some(running) = page.running {
        headers.insert(TOTAL_RUNNING, HeaderValue::from(running));
    }
    if let Some(next) = page.next {
        // A token is made of what may stand in a header.
        let token = HeaderValue::from_str(&next.to_token(filter.order));
        headers.extend(token.ok().map(|token| (NEXT_TOKEN, token)));
    }
    Ok((headers, Json(page.entries)).into_response())
}

struct SandboxPage {
    entries: Vec<ListedSandboxBody>,
    /// How many of all that match are running, if running ones were asked for.
    running: Option<usize>,
    /// The last entry's place, if more follow.
    next: Option<Position>,
}

fn cut(sandboxes: Vec<Arc<Sandbox>>, filter: &Filter) -> SandboxPage {
    let is_running = |s: &&Arc<Sandbox>| visible(s.state) == Some(VisibleState::Running);
    let running = filter
        .states
        .contains(&VisibleState::Running)
        .then(|| sandboxes.iter().filter(is_running).count());
    let mut placed: Vec<(Position, Arc<Sandbox>)> = sandboxes
        .into_iter()
        .map(|sandbox| (Position::new(sandbox.started_at, &sandbox.id), sandbox))
        .collect();
    if let Some(after) = &filter.after {
        placed.retain(|(place, _)| place.compare(after, filter.order).is_gt());
    }
    placed.sort_by(|(a, _), (b, _)| a.compare(b, filter.order));
    let more = placed.len() > filter.limit;
    placed.truncate(filter.limit);
    let next = placed.last().filter(|_| more).map(|(place, _)| place.clone());
    SandboxPage {
        entries: placed.iter().filter_map(|(_, s)| listed_body(s)).collect(),
        running,
        next,
    }
}

/// `GET /sandboxes`: running ones, all of them, newest first.
pub(super) async fn running(
    caller: Caller,
    State(api): State<SharedApi>,
    RawQuery(query): RawQuery,
) -> Result<Json<Vec<ListedSandboxBody>>, ApiError> {
    let query = QueryPairs::parse(query.as_deref());
    let metadata = MetadataFilter::parse(query.get("metadata").unwrap_or_default())?;
    let mut sandboxes = api.app.scheduler.list(caller.team);
    sandboxes.retain(|sandbox| {
        visible(sandbox.state) == Some(VisibleState::Running) && metadata.matches(&sandbox.metadata)
    });
    sandboxes.sort_by(|a, b| {
        let place = |s: &Sandbox| Position::new(s.started_at, &s.id);
        place(a).compare(&place(b), SortOrder::Descending)
    });
    let entries = sandboxes.iter().filter_map(|s| listed_body(s)).collect();
    Ok(Json(entries))
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    #[test]
    fn defaults_are_the_contracts() {
        let filter = Filter::parse(None).expect("valid");
        assert_eq!(filter.order, SortOrder::Descending);
        assert_eq!(filter.limit, 100);
        assert_eq!(filter.states.len(), 2);
        assert_eq!(filter.metadata, MetadataFilter::default());
    }

    #[test]
    fn lists_are_read_from_both_clients() {
        for query in [
            "state=running,paused",
            "state=running%2Cpaused",
            "state=running&state=paused",
            "state=",
        ] {
            let filter = Filter::parse(Some(query)).expect(query);
            assert_eq!(filter.states, [VisibleState::Running, VisibleState::Paused]);
        }
    }

    #[test]
    fn an_instant_is_read_with_any_offset_and_cut_to_microseconds() {
        let at = datetime!(2026-08-01 10:00:00.123456 UTC);
        for text in [
            "2026-08-01T10:00:00.123456Z",
            "2026-08-01T10:00:00.123456999Z",
            "2026-08-01T12:00:00.123456%2B02:00",
            "2026-08-01T12:00:00.123456+02:00",
        ] {
            let filter = Filter::parse(Some(&format!("startedAfter={text}"))).expect(text);
            assert_eq!(filter.started_after, Some(at));
        }
    }

    #[test]
    fn bad_parameters_are_refused_by_name() {
        for (member, query) in [
            ("order", "order=up"),
            ("state", "state=running,gone"),
            ("startedAfter", "startedAfter=yesterday"),
            ("template", "template=base:v1"),
            ("template", "template=a%20b"),
            ("limit", "limit=0"),
            ("limit", "limit=101"),
            ("limit", "limit=x"),
            ("limit", "limit="),
            ("nextToken", "nextToken=garbage"),
            ("metadata", "metadata=k"),
        ] {
            let refused = Filter::parse(Some(query)).expect_err(query);
            let start = format!("validation error at '{member}'");
            assert!(refused.message().starts_with(&start), "{refused:?}");
        }
    }
}
