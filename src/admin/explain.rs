//! Why a request goes where it goes. Pure: a table and a URL in, an explanation out.

use std::sync::Arc;

use http::Uri;
use serde::Serialize;

use super::{
    choice::{Choice, Out},
    view::{Context, RouteView},
};
use crate::{
    route::{
        Revision, Route, Table, host, settings::HostHeader, table::Miss, upstream_target::BadPath,
    },
    upstream::balancer::Balance,
};

/// The request to explain.
#[derive(Debug)]
pub(super) struct Request {
    is_https: bool,
    /// As in `Host`.
    authority: String,
    path: String,
    query: Option<String>,
}

impl Request {
    /// `http://HOST/PATH?QUERY`; without a scheme, http is meant.
    pub(super) fn parse(url: &str) -> Result<Self, String> {
        let with_scheme = match url.contains("://") {
            true => url.to_owned(),
            false => format!("http://{url}"),
        };
        let uri: Uri = with_scheme
            .parse()
            .map_err(|error| format!("{url:?} is not a URL: {error}"))?;
        let is_https = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(format!("{url:?} is neither http:// nor https://")),
        };
        let authority = uri.authority().map(ToString::to_string);
        Ok(Self {
            is_https,
            authority: authority.ok_or_else(|| format!("{url:?} has no host"))?,
            path: uri.path().to_owned(),
            query: uri.query().map(str::to_owned),
        })
    }
}

/// What of a request decides which of the candidates gets it.
fn ties(route: &Route, candidates: usize, context: &Context) -> String {
    let mut words = String::new();
    let settings = &route.settings;
    if candidates > 1 && context.balance(route) == Balance::Hash {
        words += &format!("; by the hash of {}", settings.hash_on);
    }
    if let Some(sticky) = &settings.sticky {
        words += &format!(
            "; who has its cookie {} stays where that says",
            sticky.cookie
        );
    }
    words
}

/// What becomes of it.
#[derive(Serialize)]
pub(super) struct Explanation {
    outcome: Outcome,
    /// The status Waypost itself answers with; absent when the request is forwarded.
    status: Option<u16>,
    /// In words.
    reason: String,
    /// The host the table is searched for.
    host: Option<String>,
    path: String,
    revision: Option<Revision>,
    route: Option<RouteView>,
    forward: Option<Forward>,
    /// The `Location` of a redirect.
    location: Option<String>,
    /// The upstreams that one is picked of.
    candidates: Vec<Arc<str>>,
    /// Those that are not among them, and why.
    out: Vec<Out>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Outcome {
    Forward,
    Redirect,
    BadRequest,
    NoTable,
    NoHost,
    NoPath,
    NoUpstream,
    Full,
}

/// What the upstream would get.
#[derive(Serialize)]
pub(super) struct Forward {
    /// Path and query.
    target: String,
    host: String,
}

/// Follows the request through the table; `None` stands for no table yet.
pub(super) fn explain(request: &Request, table: Option<&Table>, context: &Context) -> Explanation {
    let mut explanation = Explanation {
        outcome: Outcome::NoTable,
        status: Some(503),
        reason: "no routes were read yet".into(),
        host: None,
        path: request.path.clone(),
        revision: table.map(|table| table.revision),
        route: None,
        forward: None,
        location: None,
        candidates: Vec::new(),
        out: Vec::new(),
    };
    let Ok(host) = host::canonical(request.authority.as_bytes()) else {
        let reason = format!("{:?} is not a valid host", request.authority);
        return explanation.answered(Outcome::BadRequest, 400, reason);
    };
    explanation.host = Some(host.clone().into_owned());
    let Some(table) = table else {
        return explanation;
    };
    let route = match table.find(&host, &request.path) {
        Ok(route) => route,
        Err(Miss::Host) => {
            let reason = format!("no key is for {host}, for a wildcard above it, or for *");
            return explanation.answered(Outcome::NoHost, 404, reason);
        }
        Err(Miss::Path) => {
            let reason = format!(
                "the host is known, but no path prefix covers {}",
                request.path
            );
            return explanation.answered(Outcome::NoPath, 404, reason);
        }
        Err(Miss::Spelling) => {
            let reason = format!(
                "{} belongs to one route as it is spelled, to another or none when it is normalised, and one of the two \
                 has \"normalize_path\": \"off\"",
                request.path
            );
            return explanation.answered(Outcome::BadRequest, 400, reason);
        }
    };
    explanation.route = Some(RouteView::of(route, context));
    if route.settings.redirect_https && !request.is_https {
        explanation.location = Some(https_location(&host, request));
        let reason = "redirect_https is set".to_owned();
        return explanation.answered(Outcome::Redirect, 308, reason);
    }
    let query = query(request);
    let target = match route.upstream_target(&request.path, &query) {
        Ok(target) => target.pieces().concat(),
        Err(bad) => {
            let reason = match bad {
                BadPath::Prefix => format!(
                    "strip_prefix is set, but {} lacks the prefix as it is written",
                    request.path
                ),
                BadPath::Percent | BadPath::Climbs => format!("{}: {bad}", request.path),
            };
            return explanation.answered(Outcome::BadRequest, 400, reason);
        }
    };
    let choice = Choice::of(route, context);
    let Some(first) = choice.candidates.first() else {
        let (status, reason) = choice.nobody();
        explanation.out = choice.out;
        return explanation.answered(Outcome::NoUpstream, status, reason);
    };
    if let Some(reason) = choice.refusal() {
        explanation.out = choice.out;
        return explanation.answered(Outcome::Full, 503, reason);
    }
    explanation.forward = Some(Forward {
        target,
        host: match &route.settings.host_header {
            HostHeader::Preserve => request.authority.clone(),
            HostHeader::Upstream => first.upstream.identity.endpoint.written().to_string(),
            HostHeader::Literal(value) => String::from_utf8_lossy(value.as_bytes()).into_owned(),
        },
    });
    explanation.outcome = Outcome::Forward;
    explanation.status = None;
    explanation.reason = choice.in_words() + &ties(route, choice.candidates.len(), context);
    let candidates = choice.candidates.iter();
    explanation.candidates = candidates
        .map(|member| member.upstream.name.clone())
        .collect();
    explanation.out = choice.out;
    explanation
}

impl Explanation {
    fn answered(mut self, outcome: Outcome, status: u16, reason: String) -> Self {
        self.outcome = outcome;
        self.status = Some(status);
        self.reason = reason;
        self
    }
}

fn https_location(host: &str, request: &Request) -> String {
    format!("https://{host}{}{}", request.path, query(request))
}

fn query(request: &Request) -> String {
    let query = request.query.as_ref();
    query.map(|query| format!("?{query}")).unwrap_or_default()
}
