//! `/api/held` and `/api/accept`: the deletions that are held, and an operator's word that they are right.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Query, State},
    http::{HeaderMap, StatusCode, header::ORIGIN},
};
use serde::Serialize;

use super::{
    Admin,
    api::{Error, LARGEST_PAGE, LimitQuery, Parameters},
};

#[derive(Serialize)]
pub(super) struct HeldPage {
    /// How many there are, shown here or not.
    total: usize,
    /// The first of them, by key.
    held: Vec<Arc<str>>,
}

pub(super) async fn held(
    State(admin): State<Arc<Admin>>,
    parameters: Parameters<LimitQuery>,
) -> Result<Json<HeldPage>, Error> {
    let Query(query) = parameters?;
    let limit = query.limit.unwrap_or(LARGEST_PAGE).min(LARGEST_PAGE);
    let held = admin.live.held.load_full();
    Ok(Json(HeldPage {
        total: held.len(),
        held: held.iter().take(limit).cloned().collect(),
    }))
}

#[derive(Serialize)]
pub(super) struct Accepted {
    /// How many deletions were applied.
    accepted: usize,
}

pub(super) async fn accept(
    State(admin): State<Arc<Admin>>,
    headers: HeaderMap,
) -> Result<Json<Accepted>, Error> {
    // Any page that an operator's browser shows may post to a loopback address; browsers say so.
    if headers.contains_key(ORIGIN) {
        return Err(Error::new(
            StatusCode::FORBIDDEN,
            "no web page may do this; use `waypost accept`, or curl -X POST",
        ));
    }
    let ended = || Error::new(StatusCode::SERVICE_UNAVAILABLE, "this instance is ending");
    let accepted = admin.acceptance.accept().await.ok_or_else(ended)?;
    Ok(Json(Accepted { accepted }))
}
