//! One HTTP/2 connection: made, driven by a task of its own, and shared by the requests on it.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use h2::{
    Ping, PingPong,
    client::{Builder, ResponseFuture, SendRequest},
};
use http::Request;
use tokio::task::AbortHandle;

use super::{
    MAX_STREAMS, STREAM_WINDOW,
    incoming::Responses,
    keepalive::{Keepalive, Verdict},
    watch::{Watch, Watched},
};
use crate::{
    sweep::{Sweep, Tick},
    upstream::{
        PoolOptions, Upstream,
        dial::{DialError, Dialler},
        http1::head::MAX_HEAD,
        proxy_protocol::Origin,
    },
};

/// What small DATA frames that were not gathered yet may cost, in bytes as `h2` counts them: more than twice what one turn
/// of reading can bring (see `sips`), all of it in frames of a byte.
const CRUMBS: usize = 8 * 1024 * 1024;

/// How long what comes for a stream that was given up is passed over. Later it is an error, answered by a reset.
const LATE: Duration = Duration::from_secs(30);
/// After so many streams that were given up a connection gets no further ones.
const MAX_CANCELLED: usize = 4096;
/// So many errors of streams end a connection with all that is on it: `h2` counts them over its whole life. An upstream that
/// does what it should stays below, as the connection makes way for another before.
const MAX_ERRORS: usize = 4 * MAX_CANCELLED;

/// A connection to an upstream that speaks HTTP/2.
pub(super) struct Connection {
    /// `None`: no further streams; `h2` closes it when the last one has ended.
    sender: RefCell<Option<SendRequest<Bytes>>>,
    watch: Rc<Watch>,
    /// Those that are read from it.
    pub(super) responses: Rc<Responses>,
    streams: Cell<usize>,
    /// It has served a request.
    pub(super) is_proven: Cell<bool>,
    /// How many streams were given up.
    cancelled: Cell<usize>,
    /// Since when it has no streams.
    idle_since: Cell<Tick>,
    /// From this tick on it gets no further stream.
    ends: Tick,
    pings: RefCell<PingPong>,
    keepalive: RefCell<Keepalive>,
    driver: RefCell<Option<AbortHandle>>,
}

/// A connection just made, and what has to be polled for anything to happen on it.
pub(super) struct Made {
    pub(super) connection: Rc<Connection>,
    pub(super) driver: Driver,
}

/// A connection's own work: it reads and writes for all of its streams.
pub(super) struct Driver {
    connection: h2::client::Connection<Watched, Bytes>,
    watch: Rc<Watch>,
    responses: Rc<Responses>,
}

impl Driver {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), h2::Error>> {
        let polled = Pin::new(&mut self.connection).poll(cx);
        if self.watch.take_crumbs() {
            self.responses.gather();
        }
        polled
    }

    /// Runs to the connection's end.
    pub(super) async fn run(mut self) -> Result<(), h2::Error> {
        poll_fn(|cx| self.poll(cx)).await
    }
}

impl Connection {
    /// Dials, and waits for the upstream's settings: before them nobody knows how many streams it takes, nor whether
    /// it speaks HTTP/2 at all.
    pub(super) async fn make(
        dialler: &Dialler,
        upstream: &Upstream,
        sweep: &Sweep,
    ) -> Result<Made, DialError> {
        upstream.metrics.connects.inc();
        // Shared by clients, it speaks for none: no value asks for both this protocol and a PROXY header.
        let transport = dialler.connect(upstream, Origin::Local).await?;
        let (watched, watch) = Watched::new(transport);
        let handshake = builder().handshake(watched).await;
        let (sender, mut connection) = handshake.map_err(not_http2)?;
        let pings = connection.ping_pong().expect("taken once");
        let mut driver = Driver {
            connection,
            watch: watch.clone(),
            responses: Rc::default(),
        };
        poll_fn(|cx| match driver.poll(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(not_http2(error))),
            Poll::Ready(Ok(())) => {
                let closed = io::Error::other("it closed the connection");
                Poll::Ready(Err(DialError::Http2(closed)))
            }
            Poll::Pending if watch.is_greeted() => Poll::Ready(Ok(())),
            Poll::Pending => Poll::Pending,
        })
        .await?;
        let connection = Rc::new(Self {
            sender: RefCell::new(Some(sender)),
            watch,
            responses: driver.responses.clone(),
            streams: Cell::new(0),
            is_proven: Cell::new(false),
            cancelled: Cell::new(0),
            idle_since: Cell::new(sweep.now()),
            ends: upstream.pool_options().end_of_life(sweep.now()),
            pings: RefCell::new(pings),
            keepalive: RefCell::default(),
            driver: RefCell::new(None),
        });
        Ok(Made { connection, driver })
    }

    /// Who can end it.
    pub(super) fn driven_by(&self, driver: AbortHandle) {
        *self.driver.borrow_mut() = Some(driver);
    }

    /// How many streams it may have at once; 0 if it takes no further ones.
    pub(super) fn limit(&self) -> usize {
        if self.watch.is_going_away() {
            return 0;
        }
        let sender = self.sender.borrow();
        sender.as_ref().map_or(0, |sender| {
            sender.current_max_send_streams().min(MAX_STREAMS)
        })
    }

    pub(super) fn has_room(&self) -> bool {
        self.streams.get() < self.limit()
    }

    /// Whether it takes no further streams, ever.
    pub(super) fn is_closing(&self) -> bool {
        self.watch.is_going_away() || self.sender.borrow().is_none()
    }

    /// Whether the upstream vouches that it did nothing about this stream.
    pub(super) fn is_unprocessed(&self, stream: u32) -> bool {
        self.watch.is_unprocessed(stream)
    }

    pub(super) fn enter(&self) {
        self.streams.set(self.streams.get() + 1);
    }

    pub(super) fn leave(&self, now: Tick) {
        self.streams.set(self.streams.get() - 1);
        self.idle_since.set(now);
    }

    /// Since when it has no streams; `None` while it has some.
    pub(super) fn idle_since(&self) -> Option<Tick> {
        (self.streams.get() == 0).then(|| self.idle_since.get())
    }

    /// A stream of its was given up.
    pub(super) fn cancelled(&self) {
        self.cancelled.set(self.cancelled.get() + 1);
    }

    /// Whether it was idle for too long, has become too old, or had too many streams that were given up.
    pub(super) fn is_spent(&self, options: &PoolOptions, now: Tick) -> bool {
        let idle = self.idle_since().map(|since| now.saturating_sub(since));
        now >= self.ends
            || self.cancelled.get() >= MAX_CANCELLED
            || idle.is_some_and(|idle| idle > Sweep::ticks(options.idle_timeout))
    }

    /// Opens a stream. An error means that nothing was sent.
    pub(super) fn open(
        &self,
        request: Request<()>,
        ends: bool,
    ) -> Option<(ResponseFuture, h2::SendStream<Bytes>)> {
        // A clone: the original would wait, on behalf of all, for a stream that the upstream has not let in yet.
        let mut sender = self.sender.borrow().clone()?;
        let opened = sender.send_request(request, ends);
        if opened.is_err() {
            self.close();
        }
        opened.ok()
    }

    /// Whether the upstream takes extended CONNECT.
    pub(super) fn takes_websockets(&self) -> bool {
        let sender = self.sender.borrow();
        (sender.as_ref()).is_some_and(|sender| sender.is_extended_connect_protocol_enabled())
    }

    /// Takes no further streams; ends when the last one has.
    pub(super) fn close(&self) {
        self.sender.take();
    }

    /// The same, counting from now how long it takes.
    pub(super) fn retire(&self, now: Tick) {
        self.close();
        self.idle_since.set(now);
    }

    /// Ends it at once.
    pub(super) fn abort(&self) {
        self.close();
        if let Some(driver) = self.driver.take() {
            driver.abort();
        }
    }

    /// Pings a silent upstream, and tells whether it is gone. To be called once a second.
    pub(super) fn is_dead(&self) -> bool {
        let mut keepalive = self.keepalive.borrow_mut();
        if self.streams.get() == 0 {
            keepalive.rest();
            return false;
        }
        match keepalive.check(self.watch.frames(), self.watch.reads()) {
            Verdict::Wait => false,
            Verdict::Ping => {
                let mut pings = self.pings.borrow_mut();
                // The pong before is taken, so that the next ping may go out. What answers it is seen by its bytes.
                let _ = pings.poll_pong(&mut Context::from_waker(Waker::noop()));
                let _ = pings.send_ping(Ping::opaque());
                false
            }
            Verdict::Dead => true,
        }
    }
}

fn not_http2(error: h2::Error) -> DialError {
    DialError::Http2(if error.is_io() {
        error.into_io().expect("it is one")
    } else {
        io::Error::other(error)
    })
}

fn builder() -> Builder {
    let mut builder = Builder::new();
    builder
        .enable_push(false)
        .initial_window_size(STREAM_WINDOW)
        // Room for every stream's window: a client that does not read holds up its own stream and no other.
        .initial_connection_window_size(STREAM_WINDOW * MAX_STREAMS as u32)
        // The same for small frames: more than can come before they are gathered.
        .data_frame_budget(CRUMBS)
        .max_send_buffer_size(STREAM_WINDOW as usize)
        .max_header_list_size(MAX_HEAD as u32)
        // Streams that were given up: what still comes for them is no fault of the upstream's.
        .reset_stream_duration(LATE)
        .max_concurrent_reset_streams(MAX_CANCELLED)
        .max_local_error_reset_streams(Some(MAX_ERRORS));
    builder
}
