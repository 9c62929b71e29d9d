//! One request on a shared connection: its head and body sent, the head of its answer read.

use std::{
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use h2::{Reason, RecvStream, client::ResponseFuture};
use http::{HeaderMap, Method, Request, Response, StatusCode, header::CONTENT_LENGTH};

use super::{
    incoming::Incoming,
    pool::Lease,
    socket::Socket,
    upload::{Sending, Upload, UploadError},
};
use crate::{
    sweep::Deadline,
    upstream::{
        http1::{
            CONTINUE_WAIT, ExchangeError, ExchangeLimits, MAX_INTERIM,
            head::{Framing, MAX_FIELDS, MalformedHead, ResponseHead},
            upload::WaitsFor,
        },
        request_body::RequestBody,
    },
};

/// How long a response that is whole may take to end.
pub(super) const SETTLE: Duration = Duration::from_secs(1);

/// A stream whose response head has come.
pub struct Exchange {
    pub(super) incoming: Incoming,
    pub(super) upload: Upload,
    pub(super) lease: Lease,
}

/// How a request is to be sent.
pub struct Terms<'r> {
    /// What each side may take its time for.
    pub limits: &'r ExchangeLimits,
    /// Watches over it.
    pub deadline: &'r Deadline,
    /// The body waits for `100 Continue`.
    pub expects_continue: bool,
}

/// An exchange without a response head.
pub struct Aborted {
    /// Why.
    pub error: ExchangeError,
    /// The body, as far as it was not sent.
    pub body: RequestBody,
    /// The connection has served requests before.
    pub is_proven: bool,
    /// It serves no further one: it ended, or is about to.
    pub is_closing: bool,
}

impl Exchange {
    /// Whether neither side has anything more to send.
    pub fn is_over(&self) -> bool {
        self.incoming.is_end() && self.upload.is_done()
    }

    /// Reads the end of a response that has no body.
    pub fn settle(self, deadline: Deadline) {
        if !self.is_over() {
            let sending = Sending::Done(Box::new(self.upload));
            settle(self.incoming, sending, self.lease, deadline);
        }
    }

    /// The request's body, as far as it was not sent.
    pub fn body(&self) -> &RequestBody {
        self.upload.body()
    }

    /// It won't be sent again: what was kept for that can go.
    pub fn forget(&mut self) {
        self.upload.forget();
    }

    /// The request's body, to be sent again; the answer is not read.
    pub fn into_body(self) -> RequestBody {
        self.upload.into_body()
    }

    /// Both halves of a stream that carries a WebSocket.
    pub fn into_socket(self) -> Socket {
        Socket::new(self)
    }

    /// Whether some of the request is still to be sent.
    pub fn is_sending(&self) -> bool {
        !self.upload.is_done()
    }
}

/// Reads the end of a stream whose response is whole, for which the upstream may need another frame: a reset would look
/// as if its answer were not wanted.
pub(super) fn settle(incoming: Incoming, mut sending: Sending, lease: Lease, deadline: Deadline) {
    // Nobody needs the rest of the request.
    if !sending.is_done() {
        return sending.cancel();
    }
    deadline.arm(SETTLE);
    tokio::task::spawn_local(async move {
        match deadline.limit(poll_fn(|cx| incoming.poll_end(cx))).await {
            Some(true) => sending.response_over(),
            Some(false) | None => sending.cancel(),
        }
        drop(lease);
    });
}

/// Sends a request and reads the response head. Interim responses go to `interim` on the way. The upload may be
/// unfinished when the head comes; [`super::StreamingBody`] takes it on.
///
/// Dropped before it is ready, it resets the stream.
pub async fn exchange(
    lease: Lease,
    request: Request<()>,
    body: RequestBody,
    terms: &Terms<'_>,
    interim: impl FnMut(&ResponseHead),
) -> Result<(ResponseHead, Exchange), Aborted> {
    let is_proven = lease.connection.is_proven.get();
    let method = request.method().clone();
    // What a WebSocket's client has to say comes behind the answer.
    let ends = body.is_end() && method != Method::CONNECT;
    let Some((response, stream)) = lease.connection.open(request, ends) else {
        return Err(Aborted {
            error: ExchangeError::Refused,
            body,
            is_proven,
            is_closing: true,
        });
    };
    let mut running = Running {
        upload: Upload::new(
            stream,
            lease.connection.clone(),
            body,
            terms.expects_continue,
        ),
        response,
        method,
        interims: 0,
        interim,
        lease,
        stage: Stage::Sending {
            waits_for: WaitsFor::Upstream,
            sent: u64::MAX,
        },
    };
    let head = poll_fn(|cx| running.poll(terms, cx)).await;
    let Running {
        upload,
        lease,
        method,
        ..
    } = running;
    match head {
        Ok((head, received)) => {
            lease.connection.is_proven.set(true);
            let mut exchange = Exchange {
                incoming: lease.connection.responses.begin(received),
                upload,
                lease,
            };
            if method == Method::CONNECT && !head.status.is_success() {
                exchange.upload.end();
            }
            if exchange.is_over() {
                exchange.upload.response_over();
            }
            Ok((head, exchange))
        }
        Err(error) => Err(Aborted {
            error,
            is_proven,
            is_closing: lease.connection.is_closing(),
            body: upload.into_body(),
        }),
    }
}

struct Running<I> {
    upload: Upload,
    response: ResponseFuture,
    method: Method,
    interims: usize,
    interim: I,
    lease: Lease,
    stage: Stage,
}

enum Stage {
    Sending { waits_for: WaitsFor, sent: u64 },
    Awaiting,
}

type Head = (ResponseHead, RecvStream);

impl<I: FnMut(&ResponseHead)> Running<I> {
    fn poll(
        &mut self,
        terms: &Terms<'_>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Head, ExchangeError>> {
        self.send(terms, cx)?;
        if let Poll::Ready(head) = self.poll_head(cx) {
            return Poll::Ready(head);
        }
        ready!(terms.deadline.poll(cx));
        let Stage::Sending { waits_for, .. } = self.stage else {
            return Poll::Ready(Err(ExchangeError::Timeout));
        };
        match waits_for {
            WaitsFor::Upstream => Poll::Ready(Err(ExchangeError::Timeout)),
            WaitsFor::Client => Poll::Ready(Err(ExchangeError::ClientTimeout)),
            WaitsFor::Continue => {
                terms.deadline.disarm();
                (self.interim)(&ResponseHead::go_on());
                self.upload.release_body();
                cx.waker().wake_by_ref();
                Poll::Pending
            }
        }
    }

    fn send(&mut self, terms: &Terms<'_>, cx: &mut Context<'_>) -> Result<(), ExchangeError> {
        let Stage::Sending { waits_for, sent } = &mut self.stage else {
            return Ok(());
        };
        match self.upload.poll(cx) {
            Poll::Pending => {
                let now = (self.upload.waits_for(), self.upload.sent());
                if now != (*waits_for, *sent) {
                    (*waits_for, *sent) = now;
                    terms.deadline.arm(match *waits_for {
                        WaitsFor::Upstream => terms.limits.idle,
                        WaitsFor::Client => terms.limits.client_body,
                        WaitsFor::Continue => CONTINUE_WAIT,
                    });
                }
            }
            Poll::Ready(Err(UploadError::Client(error))) => return Err(error.into()),
            // What the upstream does not take it may have answered: read on.
            Poll::Ready(Ok(()) | Err(UploadError::Upstream)) => {
                self.stage = Stage::Awaiting;
                terms.deadline.arm(terms.limits.response);
            }
        }
        Ok(())
    }

    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<Head, ExchangeError>> {
        while let Some(interim) = ready!(self.response.poll_informational(cx)) {
            let interim = interim.map_err(|error| self.explain(error))?;
            self.relay(interim, cx)?;
        }
        let response = ready!(Pin::new(&mut self.response).poll(cx));
        let response = response.map_err(|error| self.explain(error))?;
        let (parts, received) = response.into_parts();
        let ends = received.is_end_stream();
        let head = response_head(parts.status, parts.headers, &self.method, ends)?;
        Poll::Ready(Ok((head, received)))
    }

    fn relay(&mut self, response: Response<()>, cx: &mut Context<'_>) -> Result<(), ExchangeError> {
        self.interims += 1;
        if self.interims > MAX_INTERIM {
            return Err(MalformedHead::TooLarge.into());
        }
        let (parts, ()) = response.into_parts();
        match parts.status {
            // HTTP/2 has no such thing (RFC 9113 section 8.6).
            StatusCode::SWITCHING_PROTOCOLS => return Err(MalformedHead::Syntax.into()),
            status => {
                let head = response_head(status, parts.headers, &self.method, false)?;
                (self.interim)(&head);
                if status == StatusCode::CONTINUE && self.upload.holds_body() {
                    self.upload.release_body();
                    cx.waker().wake_by_ref();
                }
            }
        }
        Ok(())
    }

    /// What an error of the stream says about the request.
    fn explain(&self, error: h2::Error) -> ExchangeError {
        let is_remote_reset = error.is_reset() && error.is_remote();
        match error.reason() {
            Some(Reason::REFUSED_STREAM) if is_remote_reset => return ExchangeError::Refused,
            Some(reason) if is_remote_reset => return ExchangeError::Reset(reason),
            // What came was malformed, and `h2` reset the stream.
            Some(_) if error.is_reset() => return MalformedHead::Syntax.into(),
            _ => {}
        }
        // The connection has ended, or is about to; `h2` tells streams that were worked on no other than the rest.
        if self
            .lease
            .connection
            .is_unprocessed(self.upload.stream_id())
        {
            return ExchangeError::Refused;
        }
        ExchangeError::Terminated(match error.is_io() {
            true => error.into_io(),
            false => Some(std::io::Error::other(error)),
        })
    }
}

/// The head as the proxy knows it. `h2` has checked that no field is of a connection, and checks the body against its
/// length.
fn response_head(
    status: StatusCode,
    mut headers: HeaderMap,
    request: &Method,
    ends: bool,
) -> Result<ResponseHead, MalformedHead> {
    if headers.len() > MAX_FIELDS {
        return Err(MalformedHead::TooLarge);
    }
    let declared = headers.remove(CONTENT_LENGTH);
    let length = match &declared {
        None => None,
        Some(declared) => {
            let text = declared.to_str().ok();
            let number = text.filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
            let number = number.and_then(|text| text.parse().ok());
            Some(number.ok_or(MalformedHead::Length)?)
        }
    };
    let bodiless = request == Method::HEAD
        || status.is_informational()
        || status == StatusCode::NO_CONTENT
        || status == StatusCode::NOT_MODIFIED;
    // The length such a head declares is that of another response (RFC 9110 section 8.6); for a 204 there is none.
    let of_another = bodiless && !status.is_informational() && status != StatusCode::NO_CONTENT;
    if let Some(declared) = declared.filter(|_| of_another) {
        headers.insert(CONTENT_LENGTH, declared);
    }
    Ok(ResponseHead {
        status,
        headers,
        framing: match length {
            _ if bodiless || ends => Framing::Length(0),
            Some(length) => Framing::Length(length),
            None => Framing::Chunked,
        },
        reusable: false,
        keep_alive: None,
        upgrade: None,
    })
}
