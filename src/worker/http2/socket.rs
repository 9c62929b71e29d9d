//! A stream that carries a WebSocket, as the stream of bytes that it is (RFC 8441 section 5): DATA is what would pass over
//! a connection of its own, END_STREAM the end of one half, and a reset is a reset.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use h2::{RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{proxy::upgrade::Side, upstream::http2::poll_write};

/// The client's end. Dropped before both halves have ended, it resets the stream.
pub(super) struct Socket {
    receiving: RecvStream,
    /// Of a DATA frame that was read in part.
    read: Bytes,
    sending: SendStream<Bytes>,
    is_shut: bool,
}

impl Socket {
    pub(super) fn new(receiving: RecvStream, sending: SendStream<Bytes>) -> Self {
        Self {
            receiving,
            read: Bytes::new(),
            sending,
            is_shut: false,
        }
    }
}

impl Side for Socket {
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.sending.poll_reset(cx).map(|_| ())
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.read.is_empty() {
            match ready!(self.receiving.poll_data(cx)) {
                Some(data) => self.read = data.map_err(io::Error::other)?,
                None => return Poll::Ready(Ok(())),
            }
        }
        let taken = self.read.len().min(buf.remaining());
        buf.put_slice(&self.read[..taken]);
        self.read.advance(taken);
        let _ = self.receiving.flow_control().release_capacity(taken);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        poll_write(&mut self.sending, cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.is_shut {
            self.is_shut = true;
            let sent = self.sending.send_data(Bytes::new(), true);
            sent.map_err(io::Error::other)?;
        }
        Poll::Ready(Ok(()))
    }
}
