//! A stream of HTTP/2 as a stream of bytes: what a WebSocket over HTTP/2 is (RFC 8441 section 5).

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use h2::{RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Both halves.
pub struct H2Stream {
    receiving: RecvStream,
    read: Bytes,
    sending: SendStream<Bytes>,
}

impl H2Stream {
    pub fn new(receiving: RecvStream, sending: SendStream<Bytes>) -> Self {
        Self {
            receiving,
            read: Bytes::new(),
            sending,
        }
    }
}

impl AsyncRead for H2Stream {
    /// A reset is an error of a connection that was reset.
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.read.is_empty() {
            match ready!(self.receiving.poll_data(cx)) {
                Some(data) => {
                    self.read = data.map_err(|_| io::ErrorKind::ConnectionReset)?;
                    let length = self.read.len();
                    let _ = self.receiving.flow_control().release_capacity(length);
                }
                None => return Poll::Ready(Ok(())),
            }
        }
        let taken = self.read.len().min(buf.remaining());
        buf.put_slice(&self.read[..taken]);
        self.read.advance(taken);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for H2Stream {
    /// Unbounded: what is sent here is small, or read on the other side.
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let sent = self.sending.send_data(Bytes::copy_from_slice(buf), false);
        Poll::Ready(sent.map(|()| buf.len()).map_err(io::Error::other))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let _ = self.sending.send_data(Bytes::new(), true);
        Poll::Ready(Ok(()))
    }
}
