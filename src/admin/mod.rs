//! The admin API and the status page: what this instance serves, how its source is, and why a request goes where it
//! goes. All but `/api/accept` only read; nothing here is on a request's way.

mod api;
mod choice;
mod explain;
mod held;
mod state;
mod view;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context;
use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{Html, IntoResponse, Response},
    routing::{get, post},
};
use tokio::net::TcpListener;

use self::view::Context as ViewContext;
use crate::{
    config::Config,
    live::{Live, Status},
    route::Revision,
    source::publish::Acceptance,
    telemetry::metrics::Metrics,
    upstream::{dial::Deny, load::Loads},
};

/// What the admin API shows.
pub struct Admin {
    live: Arc<Live>,
    metrics: Arc<Metrics>,
    view: ViewContext,
    acceptance: Acceptance,
    started: Instant,
    draining: AtomicBool,
}

impl Admin {
    /// Not draining yet.
    pub fn new(
        config: &Config,
        live: Arc<Live>,
        metrics: Arc<Metrics>,
        loads: Arc<Loads>,
        acceptance: Acceptance,
    ) -> Arc<Self> {
        let listeners = config.listeners.iter().map(|listener| listener.address);
        let own = listeners.chain([config.admin]).collect();
        Arc::new(Self {
            live,
            metrics,
            view: ViewContext {
                balance: config.balance,
                deny: Deny::new(config.upstream_deny.clone(), own),
                loads,
            },
            acceptance,
            started: Instant::now(),
            draining: AtomicBool::new(false),
        })
    }

    /// From now on `/readyz` fails.
    pub fn begin_drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Whether [`Admin::begin_drain`] was called.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Answers on this listener until dropped.
    ///
    /// # Errors
    ///
    /// When the listener itself fails.
    pub async fn serve(self: Arc<Self>, listener: TcpListener) -> anyhow::Result<()> {
        axum::serve(listener, self.router())
            .await
            .context("the admin API ended")
    }

    /// Every path of DESIGN's admin API.
    fn router(self: Arc<Self>) -> Router {
        Router::new()
            .route("/", get(page))
            .route("/livez", get(async || "ok\n"))
            .route("/readyz", get(readyz))
            .route("/metrics", get(metrics))
            .route("/api/status", get(api::status))
            .route("/api/routes", get(api::routes))
            .route("/api/rejected", get(api::rejected))
            .route("/api/held", get(held::held))
            .route("/api/accept", post(held::accept))
            .route("/api/explain", get(api::explain))
            .route("/api/wait", get(api::wait))
            .fallback(async || {
                api::Error::new(StatusCode::NOT_FOUND, "there is nothing at this path")
            })
            .method_not_allowed_fallback(async || {
                api::Error::new(
                    StatusCode::METHOD_NOT_ALLOWED,
                    "this path does not serve this method",
                )
            })
            .with_state(self)
    }

    fn readiness(&self) -> Readiness {
        if self.is_draining() {
            return Readiness::Draining;
        }
        let status = self.live.status.borrow();
        match *self.live.applied.borrow() {
            None => Readiness::NoTable {
                location: status.location.clone(),
                error: status.error.clone(),
            },
            Some(_) => Readiness::Ready {
                held: self.live.held.load().len(),
                stale: stale_for(&status).map(|age| (age, status.error.clone())),
            },
        }
    }

    fn applied(&self) -> Option<Revision> {
        *self.live.applied.borrow()
    }

    /// What the control plane knows changes by itself (staleness does every moment): so it is read at each scrape.
    fn refresh_metrics(&self) {
        let metrics = &self.metrics.control_plane;
        let status = self.live.status.borrow().clone();
        let counts = self.live.table.load().counts();
        let count = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        metrics.revision.set(self.applied().unwrap_or_default());
        metrics
            .observed_revision
            .set(status.observed.unwrap_or_default());
        metrics.source_connected.set(i64::from(status.connected));
        let stale = stale_for(&status).unwrap_or_default();
        metrics.stale_seconds.set(stale.as_secs_f64());
        metrics.hosts.set(count(counts.hosts));
        metrics.routes.set(count(counts.routes));
    }
}

/// Whether requests should be sent here.
enum Readiness {
    /// Routes are served.
    Ready {
        /// So many deletions are held.
        held: usize,
        /// For so long changes have not reached us, and why.
        stale: Option<(Duration, Option<String>)>,
    },
    /// Nothing was read yet from there, and why.
    NoTable {
        location: String,
        error: Option<String>,
    },
    Draining,
}

impl Readiness {
    fn is_ready(&self) -> bool {
        matches!(self, Self::Ready { .. })
    }
}

impl IntoResponse for Readiness {
    fn into_response(self) -> Response {
        let because = |error: Option<String>| error.map(|e| format!(": {e}")).unwrap_or_default();
        let status = match self.is_ready() {
            true => StatusCode::OK,
            false => StatusCode::SERVICE_UNAVAILABLE,
        };
        let text = match self {
            Self::Ready { held, stale } => {
                let held = match held {
                    0 => String::new(),
                    held => format!(", {held} deletions held (`waypost accept --list` names them)"),
                };
                let stale = stale.map(|(age, error)| {
                    format!(", stale for {}s{}", age.as_secs(), because(error))
                });
                format!("ready{held}{}\n", stale.unwrap_or_default())
            }
            Self::NoTable { location, error } => {
                let because = because(error);
                format!("not ready, no routes were read yet from {location}{because}\n")
            }
            Self::Draining => "not ready, draining\n".to_owned(),
        };
        (status, text).into_response()
    }
}

fn stale_for(status: &Status) -> Option<Duration> {
    status.stale_since.map(|since| since.elapsed())
}

async fn readyz(State(admin): State<Arc<Admin>>) -> Readiness {
    admin.readiness()
}

async fn metrics(State(admin): State<Arc<Admin>>) -> impl IntoResponse {
    admin.refresh_metrics();
    let kind = "text/plain; version=0.0.4; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], admin.metrics.encode())
}

async fn page() -> impl IntoResponse {
    // Nothing from elsewhere, and nothing from a route's name, may run in it.
    let policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'";
    (
        [(header::CONTENT_SECURITY_POLICY, policy)],
        Html(include_str!("page.html")),
    )
}

#[cfg(test)]
mod tests;
