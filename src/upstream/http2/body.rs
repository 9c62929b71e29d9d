//! Streaming a response body, and whatever of the upload is still going on beside it.

use std::{
    cell::RefCell,
    future::poll_fn,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::HeaderMap;

use super::{
    exchange::{Exchange, settle},
    incoming::Incoming,
    pool::Lease,
    upload::{Sending, Upload},
};
use crate::{
    sweep::Deadline,
    upstream::http1::{
        body::{ResponseBodyError, ResponseFrame, UploadLimits},
        decoder::MalformedBody,
        head::{Framing, MAX_FIELDS},
        upload::WaitsFor,
    },
};

/// A response body being read from its stream. Dropped before it is whole, it resets the stream.
pub struct StreamingBody {
    incoming: Incoming,
    /// Left as soon as the stream has ended.
    open: Option<(Lease, Sending)>,
    /// Bytes still to come, if the head told.
    remaining: Option<u64>,
    idle: Duration,
    deadline: Deadline,
    waiting: bool,
}

impl StreamingBody {
    /// The body behind a response head. `idle` bounds the upstream's silence, `upload` what is left of the request.
    pub fn new(
        exchange: Exchange,
        framing: Framing,
        idle: Duration,
        deadline: Deadline,
        upload: Option<UploadLimits>,
    ) -> Self {
        deadline.disarm();
        let sending = match upload {
            None => Sending::Done(Box::new(exchange.upload)),
            Some(limits) => {
                let upload = Rc::new(RefCell::new(exchange.upload));
                tokio::task::spawn_local(finish_upload(upload.clone(), limits));
                Sending::Ongoing(upload)
            }
        };
        Self {
            incoming: exchange.incoming,
            open: Some((exchange.lease, sending)),
            remaining: match framing {
                Framing::Length(length) => Some(length),
                Framing::Chunked | Framing::Close => None,
            },
            idle,
            deadline,
            waiting: false,
        }
    }

    /// The bytes still to come, if the head told.
    pub fn remaining(&self) -> Option<u64> {
        match self.is_done() {
            true => Some(0),
            false => self.remaining,
        }
    }

    /// Whether the whole body was read.
    pub fn is_done(&self) -> bool {
        self.open.is_none()
    }

    /// Whether nothing but its end is to come: the length that its head told is reached. A client that knows the length
    /// may ask no further.
    fn is_whole(&self) -> bool {
        self.remaining() == Some(0)
    }

    /// The next piece; `None` at the end.
    pub fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<ResponseFrame, ResponseBodyError>>> {
        if self.is_done() {
            return Poll::Ready(None);
        }
        let Poll::Ready(piece) = self.poll_piece(cx) else {
            // Armed only while the upstream is asked for more: a client that does not read is no silence of its.
            if !self.waiting {
                self.waiting = true;
                self.deadline.arm(self.idle);
            }
            ready!(self.deadline.poll(cx));
            self.give_up();
            return Poll::Ready(Some(Err(ResponseBodyError::Timeout)));
        };
        self.waiting = false;
        Poll::Ready(match piece {
            Ok(Some(ResponseFrame::Data(data))) => {
                // The client's own buffers bound what was handed on: the upstream may send as much again.
                self.incoming.release(data.len());
                self.remaining =
                    (self.remaining).map(|remaining| remaining.saturating_sub(data.len() as u64));
                if self.incoming.is_end() {
                    self.finish();
                }
                Some(Ok(ResponseFrame::Data(data)))
            }
            Ok(trailers) => {
                self.finish();
                trailers.map(Ok)
            }
            Err(error) => {
                self.give_up();
                Some(Err(error))
            }
        })
    }

    fn poll_piece(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<ResponseFrame>, ResponseBodyError>> {
        while let Some(data) = ready!(self.incoming.poll_data(cx)) {
            let data: Bytes = data.map_err(explain)?;
            if !data.is_empty() {
                return Poll::Ready(Ok(Some(ResponseFrame::Data(data))));
            }
        }
        let trailers: Option<HeaderMap> =
            ready!(self.incoming.poll_trailers(cx)).map_err(explain)?;
        if trailers
            .as_ref()
            .is_some_and(|trailers| trailers.len() > MAX_FIELDS)
        {
            return Poll::Ready(Err(MalformedBody.into()));
        }
        Poll::Ready(Ok(trailers.map(ResponseFrame::Trailers)))
    }

    fn finish(&mut self) {
        if let Some((_, mut sending)) = self.open.take() {
            sending.response_over();
        }
    }

    fn give_up(&mut self) {
        if let Some((_, mut sending)) = self.open.take() {
            sending.cancel();
        }
    }
}

impl Drop for StreamingBody {
    fn drop(&mut self) {
        if !self.is_whole() {
            self.give_up();
        } else if let Some((lease, sending)) = self.open.take() {
            let deadline = lease.deadline();
            settle(self.incoming.clone(), sending, lease, deadline);
        }
    }
}

/// `h2` resets a stream itself when the body differs from its length.
fn explain(error: h2::Error) -> ResponseBodyError {
    match error.is_reset() && error.is_library() {
        true => MalformedBody.into(),
        false => ResponseBodyError::Truncated,
    }
}

async fn finish_upload(upload: Rc<RefCell<Upload>>, limits: UploadLimits) {
    let mut known = None;
    poll_fn(|cx| {
        let mut upload = upload.borrow_mut();
        if upload.is_over() || upload.poll(cx).is_ready() {
            return Poll::Ready(());
        }
        let state = (upload.sent(), upload.waits_for());
        if known != Some(state) {
            known = Some(state);
            limits.deadline.arm(match state.1 {
                WaitsFor::Upstream => limits.stall.upstream,
                WaitsFor::Client | WaitsFor::Continue => limits.stall.client,
            });
        }
        upload.waker = Some(cx.waker().clone());
        limits.deadline.poll(cx)
    })
    .await;
}
