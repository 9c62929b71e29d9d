//! HTTP/1.1 towards an upstream: our own codec, driven in the request's own task.
//!
//! No channel and no connection task stand between a request and its socket; that is what makes it cheaper than
//! a general client. The serialised head is the replay buffer, and the bytes that left are counted, so a retry
//! knows exactly what the upstream can have seen.

pub mod body;
pub mod decoder;
pub mod head;
pub mod upload;

use std::{
    cell::RefCell,
    future::poll_fn,
    io,
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::{HeaderName, Method, header};
use thiserror::Error;
use tokio::{io::AsyncRead, task::coop::unconstrained};
use tokio_util::io::poll_read_buf;

pub use body::StreamingBody;
use head::{Framing, MAX_HEAD, MalformedHead, ResponseHead};
use upload::{Upload, UploadError, WaitsFor};

use super::{
    client_fields::tells_of_a_client, pool::Owner, request_body::RequestBodyError,
    transport::Transport,
};
use crate::sweep::{Deadline, NEVER, Tick};

/// What a read asks for at least: a head and a small body.
const LEAST_READ: usize = 8 * 1024;
/// What a read asks for at most.
const MOST_READ: usize = 64 * 1024;
/// How many interim responses one request may get.
pub(super) const MAX_INTERIM: usize = 16;
/// How long a body announced with `Expect: 100-continue` waits for the upstream's word (RFC 9110 section 10.1.1).
pub(super) const CONTINUE_WAIT: Duration = Duration::from_secs(1);

/// A connection to an upstream that speaks HTTP/1.1.
///
/// Shared only between a response being read and an upload that outlasts its head.
#[derive(Clone)]
pub struct Connection(Rc<RefCell<Wire>>);

struct Wire {
    transport: Transport,
    read: BytesMut,
    /// What the next read asks for. Grows when a read fills its room and shrinks when it stays far below, so that a
    /// response which fits comes in one system call, head and body together.
    ask: usize,
    ends: Tick,
    owner: Option<Owner>,
}

/// How long the upstream, and the client's body, may take.
#[derive(Clone, Copy, Debug)]
pub struct ExchangeLimits {
    /// From the last request byte to the response head.
    pub response: Duration,
    /// The upstream taking no byte of the upload.
    pub idle: Duration,
    /// The client sending no byte of its body.
    pub client_body: Duration,
}

/// Why there is no response head.
#[derive(Debug, Error)]
pub enum ExchangeError {
    /// Reset or closed before a byte of the response.
    #[error("connection ended before the response")]
    Terminated(#[source] Option<io::Error>),
    /// HTTP/2: the upstream reset the stream before the response.
    #[error("stream reset before the response ({})", .0.description())]
    Reset(h2::Reason),
    /// HTTP/2: the upstream did nothing about the request, and says so, or it never left.
    #[error("the upstream refused the stream")]
    Refused,
    /// Ended in the middle of the head.
    #[error("connection ended in the response head")]
    Incomplete,
    /// The upstream spoke nonsense.
    #[error(transparent)]
    Malformed(#[from] MalformedHead),
    /// The upstream took too long.
    #[error("no response in time")]
    Timeout,
    /// The client's body was the trouble.
    #[error(transparent)]
    Client(#[from] RequestBodyError),
    /// The client stopped sending its body.
    #[error("request body stalled")]
    ClientTimeout,
}

impl Connection {
    /// Over a stream just connected.
    pub fn new(transport: Transport) -> Self {
        Self(Rc::new(RefCell::new(Wire {
            transport,
            read: BytesMut::new(),
            ask: LEAST_READ,
            ends: NEVER,
            owner: None,
        })))
    }

    /// It speaks for this owner's client alone.
    pub fn belongs_to(&self, owner: Owner) {
        self.0.borrow_mut().owner = Some(owner);
    }

    /// For whom it speaks, if not for anybody.
    pub fn owner(&self) -> Option<Owner> {
        self.0.borrow().owner.clone()
    }

    /// From this tick on it gets no further request.
    pub fn end_at(&self, tick: Tick) {
        self.0.borrow_mut().ends = tick;
    }

    /// The tick from which on it gets no further request.
    pub fn ends(&self) -> Tick {
        self.0.borrow().ends
    }

    /// Whether an idle connection can still be used: open, and silent as it must be between responses.
    pub fn is_usable(&self) -> bool {
        let mut wire = self.0.borrow_mut();
        if !wire.read.is_empty() {
            return false;
        }
        // Without readiness this costs no system call; whatever is ready (an end, an error, stray bytes) disqualifies.
        // Unconstrained: a task that has had its share of I/O is told that everything is pending, so a sweep over many
        // connections would take the rest for alive.
        let mut byte = [0];
        let mut probe = tokio::io::ReadBuf::new(&mut byte);
        let read = poll_fn(|cx| Pin::new(&mut wire.transport).poll_read(cx, &mut probe));
        pin!(unconstrained(read))
            .poll(&mut Context::from_waker(Waker::noop()))
            .is_pending()
    }

    /// Gives back the memory that an idle connection does not need.
    pub fn shrink(&self) {
        let mut wire = self.0.borrow_mut();
        if wire.read.is_empty() && wire.read.capacity() > 0 {
            wire.read = BytesMut::new();
        }
    }

    /// Sends `upload` and reads the response head. Interim responses (but 101) go to `interim` on the way.
    ///
    /// The upload may be unfinished when the head comes; [`StreamingBody`] takes it on. On an error it tells what
    /// left, see [`Upload::written`].
    pub async fn exchange(
        &self,
        upload: &mut Upload,
        request: &Method,
        limits: &ExchangeLimits,
        deadline: &Deadline,
        mut interim: impl FnMut(&ResponseHead),
    ) -> Result<ResponseHead, ExchangeError> {
        let mut interims = 0;
        let mut write_error = None;
        let mut stage = Stage::Sending {
            waits_for: WaitsFor::Upstream,
            written: u64::MAX,
        };
        poll_fn(|cx| {
            let wire = &mut *self.0.borrow_mut();
            if let Stage::Sending { waits_for, written } = &mut stage {
                match upload.poll(&mut wire.transport, cx) {
                    Poll::Pending => {
                        if *written != upload.written() || *waits_for != upload.waits_for() {
                            (*written, *waits_for) = (upload.written(), upload.waits_for());
                            deadline.arm(match *waits_for {
                                WaitsFor::Upstream => limits.idle,
                                WaitsFor::Client => limits.client_body,
                                WaitsFor::Continue => CONTINUE_WAIT,
                            });
                        }
                    }
                    Poll::Ready(sent) => {
                        write_error = match sent {
                            Ok(()) => None,
                            // What the upstream does not take it may have answered: read on.
                            Err(UploadError::Upstream(error)) => Some(error),
                            Err(UploadError::Client(error)) => {
                                return Poll::Ready(Err(error.into()));
                            }
                        };
                        stage = Stage::Awaiting;
                        deadline.arm(limits.response);
                    }
                }
            }
            loop {
                match wire.poll_head(request, cx, &mut write_error) {
                    Poll::Pending => break,
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Ready(Ok(head))
                        if head.status.is_informational() && head.status != 101 =>
                    {
                        interims += 1;
                        if interims > MAX_INTERIM {
                            return Poll::Ready(Err(MalformedHead::TooLarge.into()));
                        }
                        interim(&head);
                        if head.status == 100 && upload.holds_body() {
                            upload.release_body();
                            cx.waker().wake_by_ref();
                        }
                    }
                    Poll::Ready(Ok(head)) => return Poll::Ready(Ok(head)),
                }
            }
            ready!(deadline.poll(cx));
            match stage {
                Stage::Sending {
                    waits_for: WaitsFor::Continue,
                    ..
                } => {
                    deadline.disarm();
                    interim(&ResponseHead::go_on());
                    upload.release_body();
                    cx.waker().wake_by_ref();
                    Poll::Pending
                }
                Stage::Sending {
                    waits_for: WaitsFor::Client,
                    ..
                } => Poll::Ready(Err(ExchangeError::ClientTimeout)),
                _ => Poll::Ready(Err(ExchangeError::Timeout)),
            }
        })
        .await
    }

    /// The whole body, if it came in one piece with its head: then the connection is free again at once.
    pub fn whole_body(&self, framing: Framing) -> Option<Bytes> {
        let Framing::Length(length) = framing else {
            return None;
        };
        let mut wire = self.0.borrow_mut();
        (wire.read.len() as u64 == length).then(|| wire.read.split().freeze())
    }

    /// Takes the stream apart for an upgraded exchange: the stream, and what was read beyond the head.
    ///
    /// `None` if an upload still uses it, which a request for an upgrade does not have.
    pub fn into_stream(self) -> Option<(Transport, BytesMut)> {
        let wire = Rc::into_inner(self.0)?.into_inner();
        Some((wire.transport, wire.read))
    }
}

enum Stage {
    Sending { waits_for: WaitsFor, written: u64 },
    Awaiting,
}

impl Wire {
    fn poll_head(
        &mut self,
        request: &Method,
        cx: &mut Context<'_>,
        write_error: &mut Option<io::Error>,
    ) -> Poll<Result<ResponseHead, ExchangeError>> {
        loop {
            if !self.read.is_empty()
                && let Some(head) = head::parse(&mut self.read, request)?
            {
                return Poll::Ready(Ok(head));
            }
            debug_assert!(self.read.len() < MAX_HEAD);
            // Between responses nobody holds the buffer any more: it is taken back whole.
            match ready!(self.poll_fill(self.ask, cx)) {
                // However it ended: an answer was begun, so the request was acted on.
                Ok(0) | Err(_) if !self.read.is_empty() => {
                    return Poll::Ready(Err(ExchangeError::Incomplete));
                }
                Ok(0) => return Poll::Ready(Err(ExchangeError::Terminated(write_error.take()))),
                Err(error) => return Poll::Ready(Err(ExchangeError::Terminated(Some(error)))),
                Ok(_) => {}
            }
        }
    }

    /// Reads once, into at least `room` bytes.
    fn poll_fill(&mut self, room: usize, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.read.capacity() - self.read.len() < room {
            self.read.reserve(self.ask);
        }
        let n = ready!(poll_read_buf(
            Pin::new(&mut self.transport),
            cx,
            &mut self.read
        ))?;
        if n >= self.ask {
            self.ask = (self.ask * 2).min(MOST_READ);
        } else if n < self.ask / 8 {
            self.ask = (self.ask / 2).max(LEAST_READ);
        }
        Poll::Ready(Ok(n))
    }

    /// For the next piece of a body what is left of a buffer is used up first: pieces still being written to the
    /// client keep all of it.
    fn poll_fill_body(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.poll_fill((self.ask / 4).max(LEAST_READ), cx)
    }
}

/// Fields that must not stand in a trailer section (RFC 9110 section 6.5.1): they frame or route a message, or say
/// whose it is.
pub fn forbidden_in_trailers(name: &HeaderName) -> bool {
    const FORBIDDEN: [HeaderName; 9] = [
        header::CONTENT_LENGTH,
        header::TRANSFER_ENCODING,
        header::HOST,
        header::CONNECTION,
        header::TRAILER,
        header::UPGRADE,
        header::TE,
        header::AUTHORIZATION,
        header::CONTENT_ENCODING,
    ];
    FORBIDDEN.contains(name)
        || name == "keep-alive"
        || name == "proxy-connection"
        || name == "content_length"
        || name == "transfer_encoding"
        || tells_of_a_client(name.as_str())
}
