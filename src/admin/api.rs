//! `/api/*`: JSON with snake_case names; errors are `{"error": "..."}` with a proper status.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use axum::{
    Json,
    extract::{Query, State, rejection::QueryRejection},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use tokio::{task, time};

use super::{
    Admin,
    explain::{self, Explanation},
    stale_for,
    view::RouteView,
};
use crate::{
    config::values,
    live::Rejected,
    route::{HostPattern, Revision, Route, Table},
};

/// Most routes, or rejected or held keys, in one page.
pub(super) const LARGEST_PAGE: usize = 10_000;

/// How many rejected keys unless `limit` says otherwise.
const REJECTED_PAGE: usize = 1000;

/// Longest wait in one request.
const LONGEST_WAIT: Duration = Duration::from_secs(600);

/// What a request gets when it asks wrongly or too early.
#[derive(Debug)]
pub(super) struct Error {
    status: StatusCode,
    message: String,
}

impl Error {
    pub(super) fn new(status: StatusCode, message: &str) -> Self {
        let message = message.to_owned();
        Self { status, message }
    }

    pub(super) fn bad_request(message: impl ToString) -> Self {
        Self::new(StatusCode::BAD_REQUEST, &message.to_string())
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let body = serde_json::json!({ "error": self.message });
        (self.status, Json(body)).into_response()
    }
}

impl From<QueryRejection> for Error {
    fn from(rejection: QueryRejection) -> Self {
        // Without the framework's words in front.
        let text = rejection.body_text();
        let (_, problem) = text.split_once("query string: ").unwrap_or(("", &text));
        Self::bad_request(problem)
    }
}

pub(super) type Parameters<T> = Result<Query<T>, QueryRejection>;

#[derive(Serialize)]
pub(super) struct StatusView {
    version: &'static str,
    ready: bool,
    draining: bool,
    uptime_seconds: f64,
    applied_revision: Option<Revision>,
    observed_revision: Option<Revision>,
    source: &'static str,
    location: String,
    connected: bool,
    stale_seconds: Option<f64>,
    error: Option<String>,
    /// The id the fleet knows this instance by; null with a hosts directory.
    instance: Option<Arc<str>>,
    registered: bool,
    registration_error: Option<String>,
    hosts: usize,
    routes: usize,
    members: usize,
    rejected_keys: usize,
    held_deletes: usize,
    connections: ConnectionsView,
    /// What clients were refused, or cut off for, since the start, by limit.
    limit_hits: BTreeMap<&'static str, u64>,
}

/// Those of clients.
#[derive(Serialize)]
struct ConnectionsView {
    open: i64,
    max: i64,
    accepted: u64,
}

pub(super) async fn status(State(admin): State<Arc<Admin>>) -> Json<StatusView> {
    let readiness = admin.readiness();
    let status = admin.live.status.borrow().clone();
    let registration = admin.live.registration.borrow().clone();
    let counts = admin.live.table.load().counts();
    let data_plane = &admin.metrics.data_plane;
    Json(StatusView {
        version: env!("CARGO_PKG_VERSION"),
        ready: readiness.is_ready(),
        draining: matches!(readiness, super::Readiness::Draining),
        uptime_seconds: admin.started.elapsed().as_secs_f64(),
        applied_revision: admin.applied(),
        observed_revision: status.observed,
        source: status.kind,
        connected: status.connected,
        stale_seconds: stale_for(&status).map(|age| age.as_secs_f64()),
        location: status.location,
        error: status.error,
        instance: registration.instance,
        registered: registration.is_registered,
        registration_error: registration.error,
        hosts: counts.hosts,
        routes: counts.routes,
        members: counts.members,
        rejected_keys: admin.live.rejected.load().total,
        held_deletes: admin.live.held.load().len(),
        connections: ConnectionsView {
            open: data_plane.connections.get(),
            max: data_plane.max_connections.get(),
            accepted: data_plane.accepted.get(),
        },
        limit_hits: data_plane.limit_hits.counts().collect(),
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RoutesQuery {
    limit: Option<usize>,
    #[serde(default)]
    after: String,
    host: Option<String>,
}

#[derive(Serialize)]
pub(super) struct RoutesPage {
    revision: Option<Revision>,
    routes: Vec<RouteView>,
    /// What `after` must be for the next page; absent on the last.
    next: Option<Arc<str>>,
}

pub(super) async fn routes(
    State(admin): State<Arc<Admin>>,
    parameters: Parameters<RoutesQuery>,
) -> Result<Json<RoutesPage>, Error> {
    let Query(query) = parameters?;
    let limit = query.limit.unwrap_or(100);
    if !(1..=LARGEST_PAGE).contains(&limit) {
        return Err(Error::bad_request(format!(
            "limit must be from 1 to {LARGEST_PAGE}"
        )));
    }
    let host: Option<HostPattern> = match query.host.as_deref() {
        Some(host) => Some(host.parse().map_err(Error::bad_request)?),
        None => None,
    };
    let revision = admin.applied();
    let table = admin.live.table.load_full();
    // A page of a large table takes a while to find: not on a thread that others wait for.
    let page = task::spawn_blocking(move || {
        let page = page(&table, host.as_ref(), &query.after, limit);
        let view = |route: &Arc<Route>| RouteView::of(route, &admin.view);
        RoutesPage {
            revision,
            routes: page.routes.iter().map(view).collect(),
            next: page.next,
        }
    });
    let ended = |_| Error::new(StatusCode::SERVICE_UNAVAILABLE, "this instance is ending");
    page.await.map(Json).map_err(ended)
}

struct Page {
    routes: Vec<Arc<Route>>,
    next: Option<Arc<str>>,
}

fn page(table: &Table, host: Option<&HostPattern>, after: &str, limit: usize) -> Page {
    // One more than asked for tells whether there is a next page.
    let mut routes: Vec<Arc<Route>> = match host {
        None => table.page(after, limit + 1),
        Some(host) => {
            let of_host = table.routes_of(host).iter();
            let further = of_host.filter(|route| &*route.name > after);
            further.take(limit + 1).cloned().collect()
        }
    };
    let has_more = routes.len() > limit;
    routes.truncate(limit);
    let last = routes.last().filter(|_| has_more);
    let next = last.map(|last| last.name.clone());
    Page { routes, next }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LimitQuery {
    pub(super) limit: Option<usize>,
}

#[derive(Serialize)]
pub(super) struct RejectedPage {
    /// How many there are, shown here or not.
    total: usize,
    rejected: Vec<Arc<Rejected>>,
}

pub(super) async fn rejected(
    State(admin): State<Arc<Admin>>,
    parameters: Parameters<LimitQuery>,
) -> Result<Json<RejectedPage>, Error> {
    let Query(query) = parameters?;
    let limit = query.limit.unwrap_or(REJECTED_PAGE);
    let rejected = admin.live.rejected.load_full();
    Ok(Json(RejectedPage {
        total: rejected.total,
        rejected: rejected.shown.iter().take(limit).cloned().collect(),
    }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ExplainQuery {
    url: Option<String>,
}

pub(super) async fn explain(
    State(admin): State<Arc<Admin>>,
    parameters: Parameters<ExplainQuery>,
) -> Result<Json<Explanation>, Error> {
    let Query(query) = parameters?;
    let url = query.url.ok_or_else(|| {
        Error::bad_request("say which URL: /api/explain?url=http://blog.example.com/path")
    })?;
    let request = explain::Request::parse(&url).map_err(Error::bad_request)?;
    let revision = admin.applied();
    let table = admin.live.table.load_full();
    let explanation = explain::explain(&request, revision.map(|_| &*table), &admin.view);
    Ok(Json(explanation))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WaitQuery {
    revision: Revision,
    #[serde(default = "five_seconds")]
    timeout: String,
}

fn five_seconds() -> String {
    "5s".to_owned()
}

#[derive(Serialize)]
pub(super) struct Waited {
    applied: Revision,
}

pub(super) async fn wait(
    State(admin): State<Arc<Admin>>,
    parameters: Parameters<WaitQuery>,
) -> Result<Json<Waited>, Error> {
    let Query(query) = parameters?;
    let timeout = values::duration(&query.timeout)
        .map_err(|error| Error::bad_request(format!("timeout: {error}")))?
        .min(LONGEST_WAIT);
    let mut news = admin.live.applied.subscribe();
    // Of a file whose history may not be etcd's any more, a revision says nothing.
    let is_unvouched = || admin.live.is_unvouched.load(Ordering::Relaxed);
    let reached = news.wait_for(|applied| {
        applied.is_some_and(|applied| applied >= query.revision) && !is_unvouched()
    });
    if let Ok(Ok(applied)) = time::timeout(timeout, reached).await
        && let Some(applied) = *applied
    {
        return Ok(Json(Waited { applied }));
    }
    let state = match admin.applied() {
        Some(applied) if is_unvouched() => format!(
            "revision {applied} of the snapshot file is applied, but etcd was not heard of yet"
        ),
        Some(applied) => format!("revision {applied} is applied"),
        None => "no routes were read yet".to_owned(),
    };
    Err(Error::new(
        StatusCode::GATEWAY_TIMEOUT,
        &format!(
            "revision {} was not reached within {}: {state}",
            query.revision, query.timeout
        ),
    ))
}
