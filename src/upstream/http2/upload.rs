//! Sending a request's body as the upstream's windows allow.

use std::{
    cell::RefCell,
    io,
    rc::Rc,
    task::{Context, Poll, Waker, ready},
};

use bytes::Bytes;
use h2::{Reason, SendStream};

use super::connection::Connection;
use crate::upstream::{
    http1::{forbidden_in_trailers, upload::WaitsFor},
    request_body::{RequestBody, RequestBodyError, RequestFrame},
};

/// The sending half of a stream.
///
/// Dropped or [cancelled](Self::cancel) before both halves have ended, it resets the stream.
pub(super) struct Upload {
    stream: SendStream<Bytes>,
    connection: Rc<Connection>,
    body: RequestBody,
    data: Bytes,
    /// All of it was handed over.
    is_done: bool,
    /// Bytes handed over so far.
    sent: u64,
    /// `Expect: 100-continue`: the body waits until the upstream (or the clock) allows it.
    holds_body: bool,
    is_over: bool,
    /// The task that goes on with it after the response head.
    pub(super) waker: Option<Waker>,
}

/// Why an upload cannot go on.
#[derive(Debug)]
pub(super) enum UploadError {
    /// The upstream takes no more; it may still have answered.
    Upstream,
    /// The client's body broke off or is too large.
    Client(RequestBodyError),
}

impl Upload {
    /// For a stream opened with the head of a request, ended already if `body` is.
    pub(super) fn new(
        stream: SendStream<Bytes>,
        connection: Rc<Connection>,
        body: RequestBody,
        holds_body: bool,
    ) -> Self {
        let is_done = body.is_end();
        Self {
            stream,
            connection,
            body,
            data: Bytes::new(),
            is_done,
            sent: 0,
            holds_body: holds_body && !is_done,
            is_over: false,
            waker: None,
        }
    }

    /// The stream's number.
    pub(super) fn stream_id(&self) -> u32 {
        self.stream.stream_id().as_u32()
    }

    pub(super) fn is_done(&self) -> bool {
        self.is_done
    }

    /// Bytes of the body handed over so far.
    pub(super) fn sent(&self) -> u64 {
        self.sent
    }

    /// Whether the body waits for `100 Continue`.
    pub(super) fn holds_body(&self) -> bool {
        self.holds_body
    }

    /// The body may be sent now.
    pub(super) fn release_body(&mut self) {
        self.holds_body = false;
    }

    /// Whom it waits for, given that the last poll was pending.
    pub(super) fn waits_for(&self) -> WaitsFor {
        if !self.data.is_empty() {
            WaitsFor::Upstream
        } else if self.holds_body {
            WaitsFor::Continue
        } else {
            WaitsFor::Client
        }
    }

    /// Hands over what the windows have room for; ready when that was all.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), UploadError>> {
        while !self.is_done {
            if !self.data.is_empty() {
                ready!(self.poll_data(cx))?;
                continue;
            }
            if self.holds_body {
                return Poll::Pending;
            }
            let frame = ready!(self.body.poll_frame(cx));
            match frame.transpose().map_err(UploadError::Client)? {
                Some(RequestFrame::Data(data)) => self.data = data,
                Some(RequestFrame::Trailers(mut trailers)) => {
                    let forbidden: Vec<_> = trailers
                        .keys()
                        .filter(|name| forbidden_in_trailers(name))
                        .cloned()
                        .collect();
                    for name in forbidden {
                        trailers.remove(name);
                    }
                    self.is_done = true;
                    let sent = self.stream.send_trailers(trailers);
                    sent.map_err(|_| UploadError::Upstream)?;
                }
                None => {
                    self.is_done = true;
                    let sent = self.stream.send_data(Bytes::new(), true);
                    sent.map_err(|_| UploadError::Upstream)?;
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), UploadError>> {
        let room = ready!(poll_room(&mut self.stream, self.data.len(), cx));
        let room = room.ok_or(UploadError::Upstream)?;
        let piece = self.data.split_to(room);
        self.sent += piece.len() as u64;
        let sent = self.stream.send_data(piece, false);
        Poll::Ready(sent.map_err(|_| UploadError::Upstream))
    }

    /// Ends our half, for which nothing more comes.
    pub(super) fn end(&mut self) -> bool {
        self.stream.send_data(Bytes::new(), true).is_ok()
    }

    /// The sending half, of a stream that carries a WebSocket.
    pub(super) fn stream(&mut self) -> &mut SendStream<Bytes> {
        &mut self.stream
    }

    /// Both halves have ended: it needs no reset.
    pub(super) fn closed(&mut self) {
        self.is_over = true;
    }

    /// The response was read to its end: an upload that is done needs no reset any more.
    pub(super) fn response_over(&mut self) {
        match self.is_done {
            true => self.is_over = true,
            false => self.cancel(),
        }
    }

    /// Tells the upstream that nobody wants the rest, of either half. Nothing that still waits to be sent delays it.
    pub(super) fn cancel(&mut self) {
        if !self.is_over {
            self.is_over = true;
            self.stream.send_reset(Reason::CANCEL);
            self.connection.cancelled();
        }
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Whether it was cancelled, or needs nothing any more.
    pub(super) fn is_over(&self) -> bool {
        self.is_over
    }

    /// The body, as far as it was not taken.
    pub(super) fn body(&self) -> &RequestBody {
        &self.body
    }

    /// It won't be sent again: what was kept for that can go.
    pub(super) fn forget(&mut self) {
        self.body.forget();
    }

    /// The body, to try again with.
    pub(super) fn into_body(mut self) -> RequestBody {
        self.cancel();
        std::mem::replace(&mut self.body, RequestBody::empty())
    }
}

/// How much of `wanted` bytes, which are some, a stream takes now; `None` if it takes none any more.
pub fn poll_room(
    stream: &mut SendStream<Bytes>,
    wanted: usize,
    cx: &mut Context<'_>,
) -> Poll<Option<usize>> {
    stream.reserve_capacity(wanted);
    let mut room = stream.capacity();
    // What was granted before is not told again, and what is told may have been taken back.
    while room == 0 {
        match ready!(stream.poll_capacity(cx)) {
            Some(Ok(granted)) => room = granted,
            Some(Err(_)) | None => return Poll::Ready(None),
        }
    }
    Poll::Ready(Some(room.min(wanted)))
}

/// Writes of these bytes what the windows have room for, and says how many that are.
///
/// # Errors
/// The stream was reset, or the connection has ended.
pub fn poll_write(
    stream: &mut SendStream<Bytes>,
    cx: &mut Context<'_>,
    bytes: &[u8],
) -> Poll<io::Result<usize>> {
    if bytes.is_empty() {
        return Poll::Ready(Ok(0));
    }
    let Some(room) = ready!(poll_room(stream, bytes.len(), cx)) else {
        return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
    };
    let sent = stream.send_data(Bytes::copy_from_slice(&bytes[..room]), false);
    Poll::Ready(sent.map(|()| room).map_err(io::Error::other))
}

/// Who sends the rest of a request beside its response.
pub(super) enum Sending {
    /// Nobody: all was sent.
    Done(Box<Upload>),
    /// A task of its own.
    Ongoing(Rc<RefCell<Upload>>),
}

impl Sending {
    pub(super) fn is_done(&self) -> bool {
        match self {
            Self::Done(upload) => upload.is_done(),
            Self::Ongoing(upload) => upload.borrow().is_done(),
        }
    }

    /// See [`Upload::response_over`].
    pub(super) fn response_over(&mut self) {
        match self {
            Self::Done(upload) => upload.response_over(),
            Self::Ongoing(upload) => upload.borrow_mut().response_over(),
        }
    }

    /// See [`Upload::cancel`].
    pub(super) fn cancel(&mut self) {
        match self {
            Self::Done(upload) => upload.cancel(),
            Self::Ongoing(upload) => upload.borrow_mut().cancel(),
        }
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        self.cancel();
    }
}
