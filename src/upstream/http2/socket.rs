//! An upstream's end of a WebSocket on a stream of a shared connection, as the stream of bytes that it is (RFC 8441
//! section 5).

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{
    exchange::{Exchange, SETTLE},
    upload::poll_write,
};

/// Both halves of a stream. Dropped before ours has ended, it resets the stream; dropped before the upstream's has, it
/// gives that a moment to end.
pub struct Socket {
    /// Taken by the drop alone.
    exchange: Option<Exchange>,
    /// Of a DATA frame that was read in part.
    read: Bytes,
    has_ended: bool,
    is_shut: bool,
}

impl Socket {
    pub(super) fn new(exchange: Exchange) -> Self {
        Self {
            exchange: Some(exchange),
            read: Bytes::new(),
            has_ended: false,
            is_shut: false,
        }
    }

    fn exchange(&mut self) -> &mut Exchange {
        self.exchange.as_mut().expect("not dropped yet")
    }

    /// Ready once the upstream has reset the stream, or the connection has ended, which neither half may be asked for.
    pub fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let stream = self.exchange().upload.stream();
        stream.poll_reset(cx).map(|_| ())
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.read.is_empty() {
            match ready!(self.exchange().incoming.poll_data(cx)) {
                Some(data) => self.read = data.map_err(io::Error::other)?,
                None => {
                    self.has_ended = true;
                    return Poll::Ready(Ok(()));
                }
            }
        }
        let taken = self.read.len().min(buf.remaining());
        buf.put_slice(&self.read[..taken]);
        self.read.advance(taken);
        self.exchange().incoming.release(taken);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        poll_write(self.exchange().upload.stream(), cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.is_shut {
            self.is_shut = true;
            if !self.exchange().upload.end() {
                return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let exchange = self.exchange.take().filter(|_| self.is_shut);
        let Some(mut exchange) = exchange else {
            return;
        };
        if self.has_ended {
            return exchange.upload.closed();
        }
        // A reset would take along what still waits to be sent, of which the last is a Close.
        let deadline = exchange.lease.deadline();
        deadline.arm(SETTLE);
        tokio::task::spawn_local(async move {
            let incoming = &exchange.incoming;
            if deadline.limit(poll_fn(|cx| incoming.poll_rest(cx))).await == Some(true) {
                exchange.upload.closed();
            }
        });
    }
}
