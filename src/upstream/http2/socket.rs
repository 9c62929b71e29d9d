//! An upstream's end of a WebSocket on a stream of a shared connection, as the stream of bytes that it is (RFC 8441
//! section 5).

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{
    incoming::Incoming,
    pool::Lease,
    upload::{Upload, poll_write},
};

/// Both halves of a stream. Dropped before both have ended, it resets the stream.
pub struct Socket {
    incoming: Incoming,
    upload: Upload,
    /// Of a DATA frame that was read in part.
    read: Bytes,
    has_ended: bool,
    is_shut: bool,
    /// Left after the reset.
    _lease: Lease,
}

impl Socket {
    pub(super) fn new(incoming: Incoming, upload: Upload, lease: Lease) -> Self {
        Self {
            incoming,
            upload,
            read: Bytes::new(),
            has_ended: false,
            is_shut: false,
            _lease: lease,
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.read.is_empty() {
            match ready!(self.incoming.poll_data(cx)) {
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
        self.incoming.release(taken);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        poll_write(self.upload.stream(), cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.is_shut {
            self.is_shut = true;
            if !self.upload.end() {
                return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if self.has_ended && self.is_shut {
            self.upload.closed();
        }
    }
}
