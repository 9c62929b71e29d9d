//! An upstream's end of an upgraded connection.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Side;
use crate::upstream::{http2::Socket, transport::Transport};

/// Where its bytes come from and go to.
pub enum FarEnd {
    /// A connection of its own, which was upgraded.
    Http1(Transport),
    /// A stream of a shared one.
    Http2(Box<Socket>),
}

impl Side for FarEnd {
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::Http1(_) => Poll::Pending,
            Self::Http2(socket) => socket.poll_gone(cx),
        }
    }
}

impl AsyncRead for FarEnd {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Http1(transport) => Pin::new(transport).poll_read(cx, buf),
            Self::Http2(socket) => Pin::new(socket).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for FarEnd {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Http1(transport) => Pin::new(transport).poll_write(cx, buf),
            Self::Http2(socket) => Pin::new(socket).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Http1(transport) => Pin::new(transport).poll_flush(cx),
            Self::Http2(socket) => Pin::new(socket).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Http1(transport) => Pin::new(transport).poll_shutdown(cx),
            Self::Http2(socket) => Pin::new(socket).poll_shutdown(cx),
        }
    }
}
