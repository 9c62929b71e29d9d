//! The stamped stream: what lies between a client's socket and hyper.
//!
//! It stamps progress for the sweep, sends interim (1xx) heads that hyper's server cannot, gives the bare errors
//! that hyper answers by itself a `Proxy-Status`, and ends connections so that the client sees what happened:
//! with linger after an early answer, by reset where a cut close-delimited reply would look whole.

use std::{
    cell::RefCell,
    io::{self, IoSlice},
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, Bytes, BytesMut};
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    task::yield_now,
};
use tokio_rustls::server::TlsStream;

use super::strict::{StrictFraming, Verdict};
use crate::{
    proxy::{
        client::{Client, Expiry, Phase, Refused},
        upgrade::Side,
    },
    telemetry::metrics::Limit,
};

/// Vectored writes up to this many bytes are copied together: below it one `write` is cheaper than a `writev`.
const FLATTEN: usize = 4096;

/// A status that hyper answers by itself, what we say of it, and the limit it is about.
type BareError = (&'static str, &'static str, Option<Limit>);

/// A client's socket, plain or TLS.
pub enum ClientStream {
    /// As it came.
    Plain(TcpStream),
    /// After the handshake.
    Tls(Box<TlsStream<TcpStream>>),
}

impl ClientStream {
    fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(stream) => stream,
            Self::Tls(stream) => stream.get_ref().0,
        }
    }
}

thread_local! {
    /// Where small vectored writes are copied together.
    static FLAT: RefCell<Vec<u8>> = RefCell::new(Vec::with_capacity(FLATTEN));
}

/// The stamped stream.
pub struct ClientIo {
    stream: ClientStream,
    /// Bytes read while sniffing, or before the answer to a request for an upgrade; read again first.
    replay: Bytes,
    /// Looks at what comes before hyper does; HTTP/1.1 only.
    strict: Option<StrictFraming>,
    state: Rc<Client>,
    /// An interim head that is partly written: nothing may come between its bytes.
    interim: BytesMut,
    pub(super) read_eof: bool,
}

impl ClientIo {
    /// Wraps a stream whose first bytes, `replay`, were read already. `strict` is for HTTP/1.1.
    pub fn new(
        stream: ClientStream,
        replay: Bytes,
        strict: Option<StrictFraming>,
        state: Rc<Client>,
    ) -> Self {
        Self {
            stream,
            replay,
            strict,
            state,
            interim: BytesMut::new(),
            read_eof: false,
        }
    }

    /// Puts bytes back that were read too much; they are read again before anything else.
    pub fn unread(&mut self, bytes: Bytes) {
        // An empty rest would still hold the whole buffer it was read into.
        self.replay = match (bytes.is_empty(), self.replay.is_empty()) {
            (true, true) => Bytes::new(),
            (true, false) => return,
            (false, true) => bytes,
            (false, false) => Bytes::from([bytes, std::mem::take(&mut self.replay)].concat()),
        };
    }

    /// Reads all that comes, as none of it is answered any more.
    pub(super) fn read_on(&mut self) {
        if let Some(strict) = &mut self.strict {
            strict.stop();
        }
        self.state.resume_reading();
    }

    /// Shows what was read, from `before` on, to the strict framing, and does as it says.
    fn judge(&mut self, before: usize, buf: &mut ReadBuf<'_>) {
        let Some(strict) = self.strict.as_mut().filter(|_| !self.state.is_upgraded()) else {
            return;
        };
        match strict.check(&buf.filled()[before..]) {
            Verdict::Pass => {}
            Verdict::Pause(count) => {
                let rest = Bytes::copy_from_slice(&buf.filled()[before + count..]);
                self.unread(rest);
                buf.set_filled(before + count);
                self.state.pause_reading();
            }
            Verdict::Refuse(count, spoils) => {
                buf.set_filled(before + count);
                // What there is no room for is read next, in the place of all that follows.
                let (now, then) = spoils.split_at(spoils.len().min(buf.remaining()));
                buf.put_slice(now);
                self.replay = Bytes::from_static(then);
            }
        }
    }

    /// Until an upgrade is answered, what comes is kept, as nobody knows what it is; only an end is told.
    fn poll_read_paused(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.replay.is_empty() {
            return Poll::Pending;
        }
        let before = buf.filled().len();
        ready!(self.poll_raw_read(cx, buf))?;
        if buf.filled().len() == before {
            self.read_eof = true;
            return Poll::Ready(Ok(()));
        }
        self.replay = Bytes::copy_from_slice(&buf.filled()[before..]);
        buf.set_filled(before);
        Poll::Pending
    }

    fn poll_raw_read(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.stream {
            ClientStream::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            ClientStream::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }

    fn poll_raw_write(&mut self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            ClientStream::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            ClientStream::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_raw_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            ClientStream::Plain(_) => Poll::Ready(Ok(())),
            ClientStream::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    /// Notes whether the client takes what we write.
    fn stamp_write<T>(&mut self, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        match &result {
            Poll::Pending => self.state.write_blocked(true),
            Poll::Ready(_) => self.state.write_blocked(false),
        }
        result
    }

    fn write_may_go_on(&self) -> io::Result<()> {
        match self.state.expired() {
            Some(Expiry::Write | Expiry::Abort) => Err(io::ErrorKind::TimedOut.into()),
            _ => Ok(()),
        }
    }

    /// Writes what is left of an interim head that was begun.
    fn poll_finish_interim(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.interim.is_empty() {
            let interim = std::mem::take(&mut self.interim);
            let result = self.poll_raw_write(cx, &interim);
            self.interim = interim;
            let written = ready!(self.stamp_write(result))?;
            self.interim.advance(written);
        }
        Poll::Ready(Ok(()))
    }

    /// Before a write: interim heads go in front of the final one.
    fn poll_begin_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_finish_interim(cx))?;
        if self.state.is_at_message_start() {
            self.interim = self.state.take_interim();
            ready!(self.poll_finish_interim(cx))?;
            self.state.writes();
        }
        Poll::Ready(Ok(()))
    }

    /// An error that hyper answers without asking us (a malformed or too large head) becomes one of ours: the
    /// same status, with `Proxy-Status` and a text. `None` for everything else.
    fn amended_error(&self, message: &[u8]) -> Option<(Vec<u8>, Option<Limit>)> {
        if !self.state.is_at_message_start() || self.state.is_answering() {
            return None;
        }
        const MALFORMED: BareError = ("400 Bad Request", "malformed request head", None);
        const TARGET: BareError = (
            "414 URI Too Long",
            "request target too long",
            Some(Limit::TargetSize),
        );
        const HEADER: BareError = (
            "431 Request Header Fields Too Large",
            "request header section too large",
            Some(Limit::HeaderSize),
        );
        let status_line = message
            .strip_prefix(b"HTTP/1.1 ")
            .filter(|_| message.ends_with(b"\r\n\r\n"))?;
        let mut all = [MALFORMED, TARGET, HEADER].into_iter();
        let said = all.find(|(status, ..)| {
            let rest = status_line.strip_prefix(status.as_bytes());
            rest.is_some_and(|rest| rest.starts_with(b"\r\n"))
        })?;
        // hyper only knows that all of it is too large.
        let (status, details, limit) = match said {
            HEADER
                if self
                    .strict
                    .as_ref()
                    .is_some_and(StrictFraming::has_long_target) =>
            {
                TARGET
            }
            said => said,
        };
        let text = format!("{status}: {details}\n");
        let length = text.len();
        let message = format!(
            "HTTP/1.1 {status}\r\ncontent-type: text/plain; charset=utf-8\r\n\
             proxy-status: waypost; error=http_request_error; details=\"{details}\"\r\n\
             content-length: {length}\r\nconnection: close\r\n\r\n{text}"
        );
        Some((message.into_bytes(), limit))
    }

    fn poll_message_write(&mut self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if let Some((ours, limit)) = self.amended_error(buf) {
            // It goes through `interim`, whose bytes are sure to leave first; hyper's own is taken as written.
            self.state.writes();
            self.state.refused(Refused {
                socket: SockRef::from(self.stream.tcp()).try_clone().ok(),
                limit,
            });
            self.interim.extend_from_slice(&ours);
            return match self.poll_finish_interim(cx) {
                Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
                Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(Ok(buf.len())),
            };
        }
        ready!(self.poll_begin_write(cx))?;
        let result = self.poll_raw_write(cx, buf);
        self.stamp_write(result)
    }
}

impl Side for ClientIo {}

impl AsyncRead for ClientIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.state.expired() == Some(Expiry::Abort) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        if this.state.is_reading_paused() {
            return this.poll_read_paused(cx, buf);
        }
        let before = buf.filled().len();
        if !this.replay.is_empty() {
            let n = this.replay.len().min(buf.remaining());
            buf.put_slice(&this.replay.split_to(n));
        } else {
            if this.state.turn_is_over() {
                // As a yield, and not by a wake at once: the runtime would look for what came to others only now and then.
                return pin!(yield_now()).poll(cx).map(Ok);
            }
            match this.poll_raw_read(cx, buf) {
                Poll::Ready(result) => result?,
                // Nothing is there to read, so a passed limit may end the connection now: what came before was served.
                Poll::Pending => match this.state.expired() {
                    Some(expiry @ (Expiry::Head | Expiry::RoomOfHead))
                        if this.state.phase() == Phase::Head =>
                    {
                        // Inside an answer that is not all written it would be taken for a part of that.
                        if !this.state.is_at_message_start() {
                            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
                        }
                        // Room is needed now: all that came is read, so that no reset overtakes the answer.
                        if expiry == Expiry::Head {
                            this.state.leave_body_unread();
                        }
                        let _ = this.poll_raw_write(cx, REQUEST_TIMEOUT);
                        let _ = this.poll_raw_flush(cx);
                        return Poll::Ready(Ok(()));
                    }
                    // HTTP/2 has its own way out, by GOAWAY, on which what comes meanwhile is served.
                    Some(Expiry::Idle | Expiry::Room | Expiry::Drain)
                        if this.state.running() == 0 && this.strict.is_some() =>
                    {
                        return Poll::Ready(Ok(()));
                    }
                    _ => return Poll::Pending,
                },
            }
        }
        if buf.filled().len() == before {
            this.read_eof = true;
        } else {
            if this.strict.is_none() {
                this.state.uses_turn(buf.filled().len() - before);
            }
            this.judge(before, buf);
            let strict = this.strict.as_ref();
            if !strict.is_some_and(StrictFraming::is_in_empty_lines) {
                this.state.received();
            }
        }
        Poll::Ready(Ok(()))
    }
}

const REQUEST_TIMEOUT: &[u8] = b"HTTP/1.1 408 Request Timeout\r\ncontent-type: text/plain; charset=utf-8\r\n\
    proxy-status: waypost; error=http_request_error; details=\"request head not complete in time\"\r\n\
    content-length: 35\r\nconnection: close\r\n\r\nrequest head not complete in time\r\n";

impl AsyncWrite for ClientIo {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.write_may_go_on()?;
        self.poll_message_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.write_may_go_on()?;
        if let [only] = bufs {
            return self.poll_message_write(cx, only);
        }
        let total: usize = bufs.iter().map(|buf| buf.len()).sum();
        if total <= FLATTEN {
            return FLAT.with_borrow_mut(|flat| {
                flat.clear();
                for buf in bufs {
                    flat.extend_from_slice(buf);
                }
                self.poll_message_write(cx, flat)
            });
        }
        ready!(self.poll_begin_write(cx))?;
        let result = match &mut self.stream {
            ClientStream::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            ClientStream::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        };
        self.stamp_write(result)
    }

    /// Always true, so that hyper queues what it writes instead of copying bodies together.
    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.write_may_go_on()?;
        ready!(self.poll_finish_interim(cx))?;
        // hyper flushes the stream only when it has nothing buffered: here an interim head is in order.
        self.interim = self.state.take_interim();
        ready!(self.poll_finish_interim(cx))?;
        let result = self.poll_raw_flush(cx);
        ready!(self.stamp_write(result))?;
        self.state.flushed();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.write_may_go_on()?;
        ready!(self.poll_finish_interim(cx))?;
        let result = match &mut self.stream {
            ClientStream::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            ClientStream::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        };
        self.stamp_write(result)
    }
}

impl Drop for ClientIo {
    fn drop(&mut self) {
        // What a client does not read would stay in the kernel for as long as it acknowledges probes.
        let is_not_reading = self.state.expired() == Some(Expiry::Write);
        if is_not_reading || self.state.ends_by_reset() {
            // Best effort: the socket may be gone already, and then there is no one left to mislead.
            let _ = SockRef::from(self.stream.tcp()).set_linger(Some(Duration::ZERO));
        }
    }
}
