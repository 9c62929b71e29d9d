//! A request's way to an upstream: pick, dial, exchange, and once more where that is safe.

use std::{rc::Rc, sync::Arc, time::Instant};

use http::{StatusCode, Version, request::Parts};
use smallvec::SmallVec;

use super::{
    Proxy,
    answer::Answer,
    client::Client,
    error::Failure,
    forwarded::{Scheme, Sender},
    headers::{self, UpstreamHead},
    record::RequestRecord,
    retry::{self, Attempt},
    target::Target,
};
use crate::{
    route::Route,
    sweep::Deadline,
    upstream::{
        Upstream,
        http1::{Connection, ExchangeLimits, head::ResponseHead, upload::Upload},
        request_body::RequestBody,
    },
};

/// Attempts beyond the first that a request may cost, refused connects apart.
const EXTRA_ATTEMPTS: u32 = 1;
/// How many members a request tries while each refuses the connection.
const MAX_REFUSALS: usize = 8;

/// One request on its way to some upstream of its route.
pub struct Journey<'r> {
    pub proxy: &'r Rc<Proxy>,
    pub client: &'r Rc<Client>,
    pub request: &'r Parts,
    pub target: &'r Target<'r>,
    pub route: &'r Route,
    pub path: headers::Path<'r>,
    pub sender: Sender,
    pub scheme: Scheme,
    pub wants_upgrade: bool,
}

impl Journey<'_> {
    /// Tries members until one answers, or trying on would not be safe or of use.
    pub async fn run(
        &self,
        mut body: RequestBody,
        record: &mut RequestRecord,
    ) -> Result<Answer, Failure> {
        let proxy = self.proxy;
        let deadline = proxy.sweep.deadline();
        let mut tried: SmallVec<[usize; 4]> = SmallVec::new();
        let mut extra = EXTRA_ATTEMPTS;
        let mut index = self.route.pick(&tried).ok_or_else(|| self.nobody())?;
        let mut from = From::Pool;
        loop {
            let upstream = &self.route.members[index].upstream;
            record.upstream = Some(upstream.clone());
            let failed = match self.attempt(upstream, from, body, &deadline, record).await {
                Ok((head, connection, unsent)) => {
                    return Ok(Answer {
                        head,
                        connection,
                        upstream: upstream.clone(),
                        deadline,
                        unsent,
                        may_switch: self.wants_upgrade,
                    });
                }
                Err(failed) => failed,
            };
            upstream.metrics.failures.inc();
            if !failed.may_repeat {
                return Err(failed.failure);
            }
            body = failed.body;
            (index, from) = match failed.at {
                // The upstream closed it as we took it: a fresh connection is as good as any, and costs no attempt.
                FailedAt::PooledConnection => (index, From::Dial),
                FailedAt::Connecting => {
                    tried.push(index);
                    match self.route.pick(&tried) {
                        Some(other) if tried.len() < MAX_REFUSALS => (other, From::Pool),
                        _ => return Err(failed.failure),
                    }
                }
                FailedAt::FreshConnection if extra > 0 => {
                    extra -= 1;
                    tried.push(index);
                    self.route
                        .pick(&tried)
                        .map_or((index, From::Dial), |other| (other, From::Pool))
                }
                FailedAt::FreshConnection => return Err(failed.failure),
            };
            record.retries += 1;
            proxy.metrics.data_plane.retries.inc();
        }
    }

    /// One attempt at one upstream: the head of its answer, or what may be done about its absence.
    async fn attempt(
        &self,
        upstream: &Arc<Upstream>,
        from: From,
        body: RequestBody,
        deadline: &Deadline,
        record: &mut RequestRecord,
    ) -> Result<(ResponseHead, Connection, Option<Upload>), Failed> {
        let proxy = self.proxy;
        let pooled = match from {
            From::Pool => proxy.pools.take(upstream),
            From::Dial => None,
        };
        let (connection, at) = match pooled {
            Some(connection) => (connection, FailedAt::PooledConnection),
            None => match self.dial(upstream, deadline, record).await {
                Ok(connection) => (connection, FailedAt::FreshConnection),
                Err(failure) => {
                    let may_repeat = retry::is_safe(&self.request.method, Attempt::Dial);
                    return Err(Failed {
                        failure,
                        may_repeat,
                        body,
                        at: FailedAt::Connecting,
                    });
                }
            },
        };

        upstream.metrics.requests.inc();
        let mut buffer = proxy.take_buffer();
        let framing = self.head(upstream, body.length()).write(&mut buffer);
        let mut upload = Upload::new(
            buffer,
            body,
            framing,
            headers::expects_continue(self.request),
        );
        let limits = ExchangeLimits {
            response: self.route.settings.timeouts.response,
            idle: self.route.settings.timeouts.idle,
            client_body: proxy.limits.body,
        };
        let relay = |head: &ResponseHead| {
            if self.request.version == Version::HTTP_11 {
                self.client
                    .send_interim(&headers::interim_head(head.status, &head.headers));
            }
        };
        match connection
            .exchange(&mut upload, &self.request.method, &limits, deadline, relay)
            .await
        {
            Ok(head) if upload.is_done() => {
                proxy.give_buffer(upload.into_parts().0);
                Ok((head, connection, None))
            }
            Ok(head) => Ok((head, connection, Some(upload))),
            Err(error) => {
                let attempt = Attempt::Exchange {
                    error: &error,
                    written: upload.written(),
                    body_untouched: upload.is_body_untouched(),
                };
                let may_repeat = retry::is_safe(&self.request.method, attempt);
                let (buffer, body) = upload.into_parts();
                proxy.give_buffer(buffer);
                Err(Failed {
                    failure: Failure::exchange(&error, &upstream.name),
                    may_repeat,
                    body,
                    at,
                })
            }
        }
    }

    fn nobody(&self) -> Failure {
        Failure::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "destination_unavailable",
            format!(
                "route {} has no upstream that takes requests",
                self.route.name
            ),
        )
    }

    async fn dial(
        &self,
        upstream: &Upstream,
        deadline: &Deadline,
        record: &mut RequestRecord,
    ) -> Result<Connection, Failure> {
        let begun = Instant::now();
        deadline.arm(self.route.settings.timeouts.connect);
        // Boxed: a connect with its TLS handshake is large, and most requests carry the room for it in vain.
        let dial = Box::pin(self.proxy.dialler.dial(upstream));
        let dialled = deadline.limit(dial).await;
        deadline.disarm();
        match dialled {
            Some(Ok(connection)) => {
                record.connected(begun);
                Ok(connection)
            }
            Some(Err(error)) => Err(Failure::dial(&error, &upstream.name)),
            None => Err(Failure::connect_timeout(&upstream.name)),
        }
    }

    fn head<'u>(&'u self, upstream: &'u Upstream, length: Option<u64>) -> UpstreamHead<'u> {
        UpstreamHead {
            request: self.request,
            target: self.target,
            path: self.path,
            settings: &self.route.settings,
            upstream,
            client: &self.client.address_text,
            sender: self.sender,
            scheme: self.scheme,
            length,
            upgrade: self.wants_upgrade,
        }
    }
}

/// Where an attempt takes its connection from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum From {
    /// An idle one, if there is one.
    Pool,
    /// A new one: what broke a pooled connection broke its siblings too.
    Dial,
}

/// An attempt without a response head.
struct Failed {
    failure: Failure,
    may_repeat: bool,
    body: RequestBody,
    at: FailedAt,
}

enum FailedAt {
    Connecting,
    PooledConnection,
    FreshConnection,
}
