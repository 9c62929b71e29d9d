//! The response body: ours or the upstream's, with the request's record, which ends with it.

use std::{
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::{Proxy, client::Protocol, outcome, record::RequestRecord};
use crate::{
    sweep::Deadline,
    upstream::{
        Upstream,
        http1::{
            self, Connection,
            body::{ResponseBodyError, ResponseFrame},
            forbidden_in_trailers,
        },
        http2,
    },
};

/// The body of a response to a client.
pub struct ResponseBody {
    kind: Kind,
    record: Option<Box<RequestRecord>>,
}

enum Kind {
    /// Nothing (more).
    Empty,
    /// All of it, at once.
    Full(Bytes),
    /// From an upstream, as it comes.
    Upstream(Box<UpstreamBody>),
}

/// A body on its way from an upstream, and what its end leads to.
pub struct UpstreamBody {
    /// The body itself.
    pub body: StreamingBody,
    /// Who sends it.
    pub upstream: Arc<Upstream>,
    /// Whose pools get the connection back.
    pub proxy: Rc<Proxy>,
    /// What the upstream said of its patience with idle connections.
    pub keep_alive: Option<Duration>,
    /// `timeouts.request`, running since the request came.
    pub request_deadline: Option<Deadline>,
    /// It has passed. Whether by the upstream's fault or by a client that reads slowly, nobody knows.
    pub is_out_of_time: bool,
    /// The client's connection must be reset when this body is cut, as nothing else would show it.
    pub cut_needs_reset: bool,
    /// The connection it came over, told of such a cut.
    pub client: Rc<super::client::Client>,
    /// Why it breaks off, as soon as what came before is with the client.
    pub broken: Option<ResponseBodyError>,
}

/// A body being read, in whichever protocol its upstream speaks.
pub enum StreamingBody {
    /// Over a connection of its own.
    Http1(http1::StreamingBody),
    /// Over a stream of a shared one.
    Http2(http2::StreamingBody),
    /// It broke off, and its connection is given up.
    Broken,
}

impl StreamingBody {
    fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<ResponseFrame, ResponseBodyError>>> {
        match self {
            Self::Http1(body) => body.poll_frame(cx),
            Self::Http2(body) => body.poll_frame(cx),
            Self::Broken => Poll::Ready(Some(Err(ResponseBodyError::Truncated))),
        }
    }

    fn is_done(&self) -> bool {
        match self {
            Self::Http1(body) => body.is_done(),
            Self::Http2(body) => body.is_done(),
            Self::Broken => false,
        }
    }

    fn remaining(&self) -> Option<u64> {
        match self {
            Self::Http1(body) => body.remaining(),
            Self::Http2(body) => body.remaining(),
            Self::Broken => None,
        }
    }

    /// The connection, if it can carry another request and nobody else has it.
    fn reclaim(&mut self) -> Option<Connection> {
        match self {
            Self::Http1(body) => body.reclaim(),
            Self::Http2(_) | Self::Broken => None,
        }
    }
}

impl ResponseBody {
    /// No body.
    pub fn empty() -> Self {
        Self {
            kind: Kind::Empty,
            record: None,
        }
    }

    /// These bytes.
    pub fn full(bytes: Bytes) -> Self {
        Self {
            kind: if bytes.is_empty() {
                Kind::Empty
            } else {
                Kind::Full(bytes)
            },
            record: None,
        }
    }

    /// What an upstream sends.
    pub fn upstream(body: UpstreamBody) -> Self {
        Self {
            kind: Kind::Upstream(Box::new(body)),
            record: None,
        }
    }

    /// The request's record ends with this body.
    pub fn with_record(mut self, record: Box<RequestRecord>) -> Self {
        self.record = Some(record);
        self
    }

    /// Notes that the client took nothing of it for too long.
    pub fn stalled(&mut self) {
        if let Some(record) = &mut self.record {
            record.reason = Some("write_timeout");
        }
    }

    fn count(&mut self, data: &Bytes) {
        if let Some(record) = &mut self.record {
            record.response_bytes += data.len() as u64;
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = ResponseBodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ResponseBodyError>>> {
        let this = &mut *self;
        match &mut this.kind {
            Kind::Empty => Poll::Ready(None),
            Kind::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                this.kind = Kind::Empty;
                this.count(&bytes);
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Kind::Upstream(upstream) => {
                let was_whole = upstream.broken.is_none();
                let frame = upstream.poll_frame(cx);
                if let (true, Some(error), Some(record)) =
                    (was_whole, upstream.broken, &mut this.record)
                {
                    // At once: the client may leave before it has what came before.
                    upstream.blame(error, record);
                }
                let frame = ready!(frame);
                match &frame {
                    Some(Ok(frame)) => {
                        if let Some(data) = frame.data_ref()
                            && let Some(record) = &mut this.record
                        {
                            record.response_bytes += data.len() as u64;
                        }
                        if upstream.body.is_done()
                            && let Some(record) = &this.record
                        {
                            record.upstream_finished();
                        }
                    }
                    Some(Err(_)) => this.kind = Kind::Empty,
                    // Chunks, and a body up to the close, show their end only here.
                    None => {
                        if let Some(record) = &this.record {
                            record.upstream_finished();
                        }
                        this.kind = Kind::Empty;
                    }
                }
                Poll::Ready(frame)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Empty => true,
            Kind::Full(_) => false,
            Kind::Upstream(upstream) => upstream.body.is_done(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Empty => SizeHint::with_exact(0),
            Kind::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Kind::Upstream(upstream) => upstream
                .body
                .remaining()
                .map_or_else(SizeHint::default, SizeHint::with_exact),
        }
    }
}

/// Dropped before its end, the body broke off on our side or the client's; unless all of its bytes are there: a client
/// of HTTP/1.1 needs no more, though the frame that ends the stream may be still to come.
impl Drop for ResponseBody {
    fn drop(&mut self) {
        if let Kind::Upstream(upstream) = &self.kind
            && !upstream.body.is_done()
            && upstream.broken.is_none()
            && let Some(record) = &mut self.record
        {
            match upstream.body.remaining() {
                Some(0) => record.upstream_finished(),
                _ => record.given_up(),
            }
        }
    }
}

impl UpstreamBody {
    fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ResponseBodyError>>> {
        if let Some(error) = self.broken {
            return self.poll_cut(error, cx);
        }
        if let Some(deadline) = &self.request_deadline
            && deadline.poll(cx).is_ready()
        {
            self.is_out_of_time = true;
            return self.poll_cut(ResponseBodyError::Timeout, cx);
        }
        let frame = match ready!(self.body.poll_frame(cx)) {
            Some(Ok(ResponseFrame::Data(data))) => Some(Ok(Frame::data(data))),
            Some(Ok(ResponseFrame::Trailers(mut trailers))) => {
                let forbidden: Vec<_> = trailers
                    .keys()
                    .filter(|name| forbidden_in_trailers(name))
                    .cloned()
                    .collect();
                for name in forbidden {
                    trailers.remove(name);
                }
                Some(Ok(Frame::trailers(trailers)))
            }
            Some(Err(error)) => return self.poll_cut(error, cx),
            None => None,
        };
        self.give_back();
        Poll::Ready(frame)
    }

    /// Why it breaks off, for the access log and the upstream's standing.
    fn blame(&self, error: ResponseBodyError, record: &mut RequestRecord) {
        if !self.is_out_of_time {
            record.upstream_failed(outcome::of_body(error));
        }
        record.reason = Some(match error {
            ResponseBodyError::Truncated => "http_response_incomplete",
            ResponseBodyError::Malformed(_) => "http_protocol_error",
            ResponseBodyError::Timeout => "connection_read_timeout",
        });
    }

    /// Breaks off. Over HTTP/1.1 what came before is flushed first: hyper drops what it still holds, and a client that
    /// gets nothing at all takes that for an idle connection's end, and asks again.
    fn poll_cut(
        &mut self,
        error: ResponseBodyError,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ResponseBodyError>>> {
        let is_new = self.broken.replace(error).is_none();
        // However long the client takes: nothing more comes from there.
        self.body = StreamingBody::Broken;
        if self.client.protocol() == Protocol::Http1 {
            if is_new {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            if !self.client.is_at_message_start() {
                self.client.wake_when_flushed();
                return Poll::Pending;
            }
        }
        if self.cut_needs_reset {
            self.client.reset_on_close();
        }
        Poll::Ready(Some(Err(error)))
    }

    /// As soon as the last byte is read the connection can serve the next request.
    fn give_back(&mut self) {
        if self.body.is_done()
            && let Some(connection) = self.body.reclaim()
        {
            self.proxy
                .pools
                .put(&self.upstream, connection, self.keep_alive);
        }
    }
}
