//! An upgraded connection: bytes both ways until both sides have ended, or nothing has moved for too long.

use std::{
    cell::Cell,
    io::{self, IoSlice},
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::record::RequestRecord;
use crate::{sweep::Deadline, upstream::transport::Transport};

/// An upstream that said 101, waiting for the client's connection to be taken out of HTTP.
pub struct Upgraded {
    /// The upstream's stream.
    pub transport: Transport,
    /// What it sent behind its 101.
    pub read: Bytes,
    /// `timeouts.idle`.
    pub idle: Duration,
    /// Watches over it.
    pub deadline: Deadline,
    /// The request that asked for it; ends with the connection.
    pub record: Option<Box<RequestRecord>>,
}

/// One direction's buffer: a thousand idle WebSockets must not cost more than they say.
const BUFFER: usize = 8 * 1024;

/// Copies both ways, half-closing as the sides do, until both have ended, `idle` passes without a byte, or
/// `ended` says that the process must end it.
pub async fn splice<C>(
    mut client: C,
    upgraded: Upgraded,
    mut ended: impl FnMut(&Context<'_>) -> bool,
) where
    C: AsyncRead + AsyncWrite + Unpin,
{
    let Upgraded {
        transport,
        read,
        idle,
        deadline,
        mut record,
    } = upgraded;
    let moved = Rc::new(Cell::new(Moved::default()));
    let mut upstream = Counted {
        transport,
        read,
        moved: moved.clone(),
    };
    {
        let mut copy = pin!(tokio::io::copy_bidirectional_with_sizes(
            &mut client,
            &mut upstream,
            BUFFER,
            BUFFER
        ));
        let mut known = None;
        std::future::poll_fn(|cx| {
            if ended(cx) {
                return Poll::Ready(());
            }
            if copy.as_mut().poll(cx).is_ready() {
                return Poll::Ready(());
            }
            if known != Some(moved.get()) {
                known = Some(moved.get());
                deadline.arm(idle);
            }
            deadline.poll(cx)
        })
        .await;
    }
    if let Some(record) = &mut record {
        record.response_bytes += moved.get().from_upstream;
    }
}

/// Bytes moved so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Moved {
    from_upstream: u64,
    to_upstream: u64,
}

/// The upstream's stream, with what it sent too early read first, counting what moves.
struct Counted {
    transport: Transport,
    read: Bytes,
    moved: Rc<Cell<Moved>>,
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = if self.read.is_empty() {
            Pin::new(&mut self.transport).poll_read(cx, buf)
        } else {
            let n = self.read.len().min(buf.remaining());
            buf.put_slice(&self.read[..n]);
            self.read.advance(n);
            Poll::Ready(Ok(()))
        };
        let mut moved = self.moved.get();
        moved.from_upstream += (buf.filled().len() - before) as u64;
        self.moved.set(moved);
        result
    }
}

impl Counted {
    fn count(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(n)) = written {
            let mut moved = self.moved.get();
            moved.to_upstream += n as u64;
            self.moved.set(moved);
        }
        written
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.transport).poll_write(cx, buf);
        self.count(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.transport).poll_write_vectored(cx, bufs);
        self.count(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.transport).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.transport).poll_shutdown(cx)
    }
}
