//! Streaming a response body, and whatever of the upload is still going on beside it.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use bytes::Bytes;
use http::HeaderMap;
use thiserror::Error;

use super::{
    Connection,
    decoder::{Decoder, MalformedBody, Piece},
    upload::{Upload, WaitsFor},
};
use crate::sweep::Deadline;

/// A response body being read from its upstream.
pub struct StreamingBody {
    connection: Option<Connection>,
    decoder: Decoder,
    reusable: bool,
    idle: Duration,
    deadline: Deadline,
    waiting: bool,
    upload: Option<Rc<OngoingUpload>>,
}

/// A piece of a response body.
#[derive(Debug)]
pub enum ResponseFrame {
    /// Bytes of it.
    Data(Bytes),
    /// Its trailer section; the last piece.
    Trailers(HeaderMap),
}

/// Why a response body broke off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ResponseBodyError {
    /// The upstream closed or reset in the middle.
    #[error("response body cut short")]
    Truncated,
    /// Its chunks are broken.
    #[error(transparent)]
    Malformed(#[from] MalformedBody),
    /// The upstream fell silent.
    #[error("response body stalled")]
    Timeout,
}

/// An upload that goes on in a task of its own after the response head came.
#[derive(Default)]
struct OngoingUpload {
    done: Cell<bool>,
    stop: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl StreamingBody {
    /// The body behind a response head on `connection`. `idle` bounds the upstream's silence; `upload` is what
    /// [`Connection::exchange`] left unsent, and goes on beside the response.
    pub fn new(
        connection: Connection,
        decoder: Decoder,
        reusable: bool,
        idle: Duration,
        deadline: Deadline,
        upload: Option<(Upload, UploadLimits)>,
    ) -> Self {
        deadline.disarm();
        let upload = upload.map(|(upload, limits)| {
            let ongoing = Rc::new(OngoingUpload::default());
            tokio::task::spawn_local(finish_upload(
                connection.clone(),
                upload,
                limits,
                ongoing.clone(),
            ));
            ongoing
        });
        Self {
            connection: Some(connection),
            decoder,
            reusable,
            idle,
            deadline,
            waiting: false,
            upload,
        }
    }

    /// The bytes still to come, if the framing tells.
    pub fn remaining(&self) -> Option<u64> {
        match self.decoder {
            Decoder::Done => Some(0),
            Decoder::Length(left) => Some(left),
            _ => None,
        }
    }

    /// Whether the whole body was read.
    pub fn is_done(&self) -> bool {
        self.decoder.is_done()
    }

    /// The next piece; `None` at the end.
    pub fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<ResponseFrame, ResponseBodyError>>> {
        let result = ready!(self.poll_piece(cx));
        if result.is_err() {
            self.connection = None;
            self.decoder = Decoder::Done;
            self.reusable = false;
        }
        Poll::Ready(result.transpose())
    }

    fn poll_piece(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<ResponseFrame>, ResponseBodyError>> {
        let Some(connection) = &self.connection else {
            return Poll::Ready(Ok(None));
        };
        let mut wire = connection.0.borrow_mut();
        loop {
            match self.decoder.decode(&mut wire.read)? {
                Piece::Data(data) => return Poll::Ready(Ok(Some(ResponseFrame::Data(data)))),
                Piece::Trailers(trailers) => {
                    return Poll::Ready(Ok(Some(ResponseFrame::Trailers(trailers))));
                }
                Piece::End => return Poll::Ready(Ok(None)),
                Piece::NeedMore => {}
            }
            match wire.poll_fill_body(cx) {
                Poll::Ready(Ok(n)) if n > 0 => self.waiting = false,
                Poll::Ready(Ok(_)) if self.decoder == Decoder::Close => {
                    self.decoder = Decoder::Done;
                    return Poll::Ready(Ok(None));
                }
                Poll::Ready(_) => return Poll::Ready(Err(ResponseBodyError::Truncated)),
                Poll::Pending => {
                    // Armed only while the upstream is asked for more: a client that does not read is no silence of its.
                    if !self.waiting {
                        self.waiting = true;
                        self.deadline.arm(self.idle);
                    }
                    return self
                        .deadline
                        .poll(cx)
                        .map(|()| Err(ResponseBodyError::Timeout));
                }
            }
        }
    }

    /// The connection, if it can carry another request: the response was read to its end, and the upload sent.
    pub fn reclaim(&mut self) -> Option<Connection> {
        let upload_done = self.upload.as_ref().is_none_or(|upload| upload.done.get());
        if !(self.decoder.is_done() && self.reusable && upload_done) {
            return None;
        }
        let connection = self.connection.take()?;
        let clean = connection.0.borrow().read.is_empty();
        clean.then_some(connection)
    }
}

impl Drop for StreamingBody {
    fn drop(&mut self) {
        // The response is over or given up: an upload still going on ends with it, and so does the connection.
        if let Some(upload) = &self.upload {
            upload.stop.set(true);
            if let Some(waker) = upload.waker.take() {
                waker.wake();
            }
        }
    }
}

/// How long an upload that outlasts the response head may stall.
#[derive(Clone, Debug)]
pub struct UploadStall {
    /// The upstream taking no byte.
    pub upstream: Duration,
    /// The client sending no byte.
    pub client: Duration,
}

/// [`UploadStall`], and the deadline that watches over it.
pub struct UploadLimits {
    /// The bounds.
    pub stall: UploadStall,
    /// A deadline of the upload's own.
    pub deadline: Deadline,
}

async fn finish_upload(
    connection: Connection,
    mut upload: Upload,
    limits: UploadLimits,
    ongoing: Rc<OngoingUpload>,
) {
    let mut known = None;
    std::future::poll_fn(|cx| {
        if ongoing.stop.get() {
            return Poll::Ready(());
        }
        match upload.poll(&mut connection.0.borrow_mut().transport, cx) {
            Poll::Ready(Ok(())) => {
                ongoing.done.set(true);
                Poll::Ready(())
            }
            Poll::Ready(Err(_)) => Poll::Ready(()),
            Poll::Pending => {
                let state = (upload.written(), upload.waits_for());
                if known != Some(state) {
                    known = Some(state);
                    limits.deadline.arm(match state.1 {
                        WaitsFor::Upstream => limits.stall.upstream,
                        WaitsFor::Client | WaitsFor::Continue => limits.stall.client,
                    });
                }
                *ongoing.waker.borrow_mut() = Some(cx.waker().clone());
                limits.deadline.poll(cx)
            }
        }
    })
    .await;
}
