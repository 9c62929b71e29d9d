//! One attempt at one upstream: a connection, the request, the head of the answer.

use std::{cell::Cell, sync::Arc, time::Instant};

use http::{StatusCode, Version};

use super::{
    answer::Rest,
    error::Failure,
    headers::{self, UpstreamHead},
    journey::Journey,
    outcome,
    record::RequestRecord,
    retry::{self, Attempt, Cause},
};
use crate::{
    sweep::{Deadline, Sweep, Tick},
    upstream::{
        Protocol, Upstream,
        http1::{ExchangeError, ExchangeLimits, head::ResponseHead, upload::Upload},
        http2,
        request_body::RequestBody,
    },
};

/// Where an attempt takes its connection from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum From {
    /// An idle one, if there is one.
    Pool,
    /// A new one: what broke a pooled connection broke its siblings too.
    Dial,
}

/// Whether a connection has carried a request before.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Age {
    Pooled,
    Fresh,
}

/// An attempt with a response head.
pub(super) struct Answered {
    pub(super) head: ResponseHead,
    pub(super) rest: Rest,
}

/// How much of the request was sent when the response head came.
pub enum Sent {
    /// All of it; this is the body it was.
    All(RequestBody),
    /// Not all.
    Partly(Upload),
}

impl Answered {
    /// Whether the request's body can be sent from its beginning.
    pub(super) fn is_body_repeatable(&self) -> bool {
        let body = match &self.rest {
            Rest::Http1 { sent, .. } => match sent {
                Sent::All(body) => body,
                Sent::Partly(upload) => upload.body(),
            },
            Rest::Http2(exchange) => exchange.body(),
        };
        body.is_repeatable()
    }
}

/// An attempt without a response the client should get.
pub(super) struct Failed {
    pub(super) failure: Failure,
    /// Why the request may go out again, if it may.
    pub(super) cause: Option<Cause>,
    pub(super) body: RequestBody,
}

impl Journey<'_> {
    /// One attempt at one upstream: the head of its answer, or what may be done about its absence.
    pub(super) async fn attempt(
        &self,
        upstream: &Arc<Upstream>,
        from: From,
        body: RequestBody,
        deadline: &Deadline,
        record: &mut RequestRecord,
    ) -> Result<Answered, Failed> {
        match upstream.identity.protocol {
            Protocol::Http1 => {
                self.attempt_http1(upstream, from, body, deadline, record)
                    .await
            }
            // Boxed: requests of HTTP/1.1 would carry the room for it in vain.
            Protocol::H2 => {
                Box::pin(self.attempt_http2(upstream, from, body, deadline, record)).await
            }
        }
    }

    async fn attempt_http1(
        &self,
        upstream: &Arc<Upstream>,
        from: From,
        body: RequestBody,
        deadline: &Deadline,
        record: &mut RequestRecord,
    ) -> Result<Answered, Failed> {
        let proxy = self.proxy;
        let (method, on) = (&self.request.method, &self.route.settings.retries.on);
        let pooled = match from {
            From::Pool => self.pooled(upstream),
            From::Dial => None,
        };
        let (connection, age) = match pooled {
            Some(connection) => (connection, Age::Pooled),
            // Boxed: a connect with its TLS handshake is large, and most requests carry the room for it in vain.
            None => match Box::pin(self.connect(upstream, from, deadline, record)).await {
                Ok(connected) => connected,
                Err((failure, attempt)) => {
                    return Err(Failed {
                        failure,
                        cause: retry::cause(method, attempt, on),
                        body,
                    });
                }
            },
        };
        let taken = proxy.sweep.now();

        upstream.metrics.requests.inc();
        let mut buffer = proxy.take_buffer();
        let framing = self.head(upstream, body.length()).write(&mut buffer);
        let mut upload = Upload::new(
            buffer,
            body,
            framing,
            headers::expects_continue(self.request),
        );
        let limits = self.limits();
        let is_answering = Cell::new(false);
        let relay = |head: &ResponseHead| {
            is_answering.set(true);
            self.relay(head);
        };
        match connection
            .exchange(&mut upload, method, &limits, deadline, relay)
            .await
        {
            Ok(head) => {
                record.upstream_answered(head.status, self.upgrade.is_some());
                let sent = match upload.is_done() {
                    true => {
                        let (buffer, body) = upload.into_parts();
                        proxy.give_buffer(buffer);
                        Sent::All(body)
                    }
                    false => Sent::Partly(upload),
                };
                Ok(Answered {
                    head,
                    rest: Rest::Http1 { connection, sent },
                })
            }
            Err(error) => {
                let attempt = Attempt::Exchange {
                    error: &error,
                    written: upload.written(),
                    body_repeatable: upload.body().is_repeatable(),
                    is_stale: age == Age::Pooled
                        && !is_answering.get()
                        && self.is_just_taken(taken),
                };
                let cause = retry::cause(method, attempt, on);
                // Closed while it was idle, as any upstream does: a fresh one will tell.
                if cause != Some(Cause::Stale)
                    && let Some(fault) = outcome::of_exchange(&error)
                {
                    record.upstream_failed(fault);
                }
                let (buffer, body) = upload.into_parts();
                proxy.give_buffer(buffer);
                Err(Failed {
                    failure: Failure::exchange(&error, &upstream.name),
                    cause,
                    body,
                })
            }
        }
    }

    async fn attempt_http2(
        &self,
        upstream: &Arc<Upstream>,
        from: From,
        body: RequestBody,
        deadline: &Deadline,
        record: &mut RequestRecord,
    ) -> Result<Answered, Failed> {
        let (method, on) = (&self.request.method, &self.route.settings.retries.on);
        let failed = |failure, cause, body| Failed {
            failure,
            cause,
            body,
        };
        if self.upgrade.is_some_and(|upgrade| !upgrade.is_complete()) {
            // Nothing would be missing in an extended CONNECT, and a 101 without a proof is none (RFC 6455 section 4.2.1).
            let failure = Failure::malformed("WebSocket handshake without a valid key or version");
            return Err(failed(failure, None, body));
        }
        let request = match self.head(upstream, body.length()).http2() {
            Ok(request) => request,
            Err(failure) => return Err(failed(failure, None, body)),
        };
        let begun = Instant::now();
        let patience = self.route.settings.timeouts.connect;
        let acquired = self.proxy.http2.acquire(upstream, patience, deadline);
        let lease = match acquired.await {
            Ok(lease) => lease,
            Err(error) => {
                if let Some(fault) = outcome::of_no_stream(&error) {
                    record.upstream_failed(fault);
                }
                let failure = Failure::no_stream(&error, &upstream.name);
                let attempt = match &error {
                    http2::NoStream::Dial(error) => retry::of_dial(error),
                    http2::NoStream::Slow | http2::NoStream::Full => Attempt::Dial,
                };
                let cause = retry::cause(method, attempt, on);
                return Err(failed(failure, cause, body));
            }
        };
        if !lease.is_proven() {
            record.connected(begun);
        }
        if self.upgrade.is_some() && !lease.takes_websockets() {
            let failure = Failure::no_upgrade(&upstream.name);
            return Err(failed(failure, Some(Cause::Unsuited), body));
        }
        upstream.metrics.requests.inc();
        let terms = http2::Terms {
            limits: &self.limits(),
            deadline,
            expects_continue: headers::expects_continue(self.request),
        };
        let opened = self.proxy.sweep.now();
        let is_answering = Cell::new(false);
        let relay = |head: &ResponseHead| {
            is_answering.set(true);
            self.relay(head);
        };
        let aborted = match http2::exchange(lease, request, body, &terms, relay).await {
            Ok((head, exchange)) => {
                record.upstream_answered(head.status, self.upgrade.is_some());
                return Ok(Answered {
                    head,
                    rest: Rest::Http2(exchange),
                });
            }
            Err(aborted) => aborted,
        };
        let body_repeatable = aborted.body.is_repeatable();
        let attempt = match &aborted.error {
            ExchangeError::Refused if aborted.is_closing => Attempt::GoneAway { body_repeatable },
            ExchangeError::Refused => Attempt::RefusedStream { body_repeatable },
            error => Attempt::Exchange {
                error,
                written: 1,
                body_repeatable,
                // A connection that ends under a stream just opened is like an idle one that is closed as it is taken.
                is_stale: aborted.is_proven
                    && aborted.is_closing
                    && from == From::Pool
                    && !is_answering.get()
                    && self.is_just_taken(opened),
            },
        };
        let cause = retry::cause(method, attempt, on);
        if cause != Some(Cause::Stale)
            && let Some(fault) = outcome::of_exchange(&aborted.error)
        {
            record.upstream_failed(fault);
        }
        let failure = Failure::exchange(&aborted.error, &upstream.name);
        Err(failed(failure, cause, aborted.body))
    }

    fn limits(&self) -> ExchangeLimits {
        let timeouts = &self.route.settings.timeouts;
        ExchangeLimits {
            response: timeouts.response,
            idle: timeouts.idle,
            client_body: self.proxy.patience(self.request, self.route),
        }
    }

    /// Whether the connection taken then may have been at its end already.
    fn is_just_taken(&self, taken: Tick) -> bool {
        let since = self.proxy.sweep.now().saturating_sub(taken);
        since < Sweep::ticks(retry::STALE_WITHIN)
    }

    /// Interim responses go to the client, unless it speaks HTTP/1.0. Over HTTP/1.1 hyper sends a 100 of its own as soon
    /// as the body is asked for; over HTTP/2 there is the upstream's, for who has asked for it.
    fn relay(&self, head: &ResponseHead) {
        let is_continue = head.status == StatusCode::CONTINUE;
        match self.stream {
            Some(stream) if !is_continue || headers::expects_continue(self.request) => {
                stream.send_interim(self.client, head.status, &head.headers);
            }
            Some(_) => {}
            None if self.request.version == Version::HTTP_11 && !is_continue => self
                .client
                .send_interim(&headers::interim_head(head.status, &head.headers)),
            None => {}
        }
    }

    fn head<'u>(&'u self, upstream: &'u Upstream, length: Option<u64>) -> UpstreamHead<'u> {
        UpstreamHead {
            request: self.request,
            target: self.target,
            path: &self.path,
            settings: &self.route.settings,
            upstream,
            client: self.client.address_text(),
            certificate: self.client.certificate(),
            certificate_fields: &self.proxy.certificate_fields,
            sender: self.sender,
            forwarded: self.proxy.forwarded,
            connection: self.client.address().ip(),
            scheme: self.scheme,
            length,
            upgrade: self.upgrade,
        }
    }
}
