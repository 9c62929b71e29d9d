//! One direction of an upgraded connection: bytes from its source to its sink, and a last frame of ours if it is to end.

use std::{
    cell::RefCell,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::io::poll_read_buf;

use super::frames::Frames;

/// How much is read at once. Nothing is held by a direction that is silent: a thousand idle WebSockets must not cost
/// more than they say.
const BUFFER: usize = 8 * 1024;
/// The most buffers a worker keeps for the next bytes that come.
const SPARE_BUFFERS: usize = 16;

thread_local! {
    static SPARE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// Carries bytes from a source to a sink, which are the same two at every call.
pub struct Direction {
    stage: Stage,
    buffer: Vec<u8>,
    /// Where in `buffer` begins what is still to be written.
    start: usize,
    /// Of what was written, and of what was dropped.
    frames: Frames,
    /// The sink may hold back what it took.
    is_unflushed: bool,
    moved: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Bytes pass. Next: `Finishing` when the source ends, `Closing` at a boundary once a Close is to be sent.
    Passing,
    /// The source has ended, its last bytes were written, and the sink's end is under way. Next: `Over`.
    Finishing,
    /// The buffer is a Close of ours. Next: `Closed`.
    Closing,
    /// The sink has a Close of ours: what still comes is dropped. Next: `Over` when the source ends.
    Closed,
    /// Nothing comes any more.
    Over,
}

impl Direction {
    /// These bytes have come from the source already.
    pub fn new(read: Bytes) -> Self {
        Self {
            stage: Stage::Passing,
            buffer: read.into(),
            start: 0,
            frames: Frames::default(),
            is_unflushed: false,
            moved: 0,
        }
    }

    /// Bytes of the source that were written.
    pub fn moved(&self) -> u64 {
        self.moved
    }

    /// Whether both ends are done: the source has ended.
    pub fn is_over(&self) -> bool {
        self.stage == Stage::Over
    }

    /// Whether no more is to be waited for once the connection is to end: the source has said its last word, and the
    /// sink has heard a Close.
    pub fn is_closed(&self) -> bool {
        match self.stage {
            Stage::Passing => self.frames.has_closed() && self.unwritten().is_empty(),
            Stage::Closed => self.frames.has_closed(),
            Stage::Over => true,
            Stage::Finishing | Stage::Closing => false,
        }
    }

    /// Carries what there is. With `close` it is to end: at the next boundary between two frames that frame is sent, and
    /// nothing of the source after it.
    ///
    /// # Errors
    /// Those of either stream; nothing more can pass then.
    pub fn poll(
        &mut self,
        cx: &mut Context<'_>,
        mut source: impl AsyncRead + Unpin,
        mut sink: impl AsyncWrite + Unpin,
        close: Option<&[u8]>,
    ) -> Poll<io::Result<()>> {
        loop {
            match self.stage {
                Stage::Passing => {
                    if let Some(close) = close.filter(|_| !self.frames.has_closed())
                        && let Some(rest) = self.frames.rest_of_frame(self.unwritten())
                    {
                        ready!(self.poll_write(cx, &mut sink, self.start + rest))?;
                        if !self.frames.has_closed() {
                            self.replace_by(close);
                        }
                        continue;
                    }
                    ready!(self.poll_write(cx, &mut sink, self.buffer.len()))?;
                    if !ready!(self.poll_fill(cx, &mut source, &mut sink))? {
                        self.stage = Stage::Finishing;
                    }
                }
                Stage::Finishing => {
                    ready!(Pin::new(&mut sink).poll_shutdown(cx))?;
                    self.stage = Stage::Over;
                }
                Stage::Closing => {
                    ready!(self.poll_write(cx, &mut sink, self.buffer.len()))?;
                    ready!(Pin::new(&mut sink).poll_flush(cx))?;
                    self.stage = Stage::Closed;
                }
                Stage::Closed => {
                    if !ready!(self.poll_fill(cx, &mut source, &mut sink))? {
                        self.stage = Stage::Over;
                    }
                    self.frames.pass(&self.buffer);
                    self.release();
                }
                Stage::Over => return Poll::Ready(Ok(())),
            }
        }
    }

    fn unwritten(&self) -> &[u8] {
        &self.buffer[self.start..]
    }

    /// What was not written yet is dropped for these bytes.
    fn replace_by(&mut self, bytes: &[u8]) {
        self.frames.pass(&self.buffer[self.start..]);
        self.buffer.clear();
        self.start = 0;
        self.buffer.extend_from_slice(bytes);
        self.stage = Stage::Closing;
    }

    /// Writes the buffer up to here.
    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        sink: &mut (impl AsyncWrite + Unpin),
        until: usize,
    ) -> Poll<io::Result<()>> {
        while self.start < until {
            let bytes = &self.buffer[self.start..until];
            let written = ready!(Pin::new(&mut *sink).poll_write(cx, bytes))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            if self.stage == Stage::Passing {
                self.frames.pass(&bytes[..written]);
                self.moved += written as u64;
            }
            self.start += written;
            self.is_unflushed = true;
        }
        Poll::Ready(Ok(()))
    }

    /// Reads into the empty buffer; `false` at the end of the source. Where nothing has come, the sink is flushed and
    /// the buffer given back.
    fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut (impl AsyncRead + Unpin),
        sink: &mut (impl AsyncWrite + Unpin),
    ) -> Poll<io::Result<bool>> {
        if self.buffer.capacity() < BUFFER {
            self.buffer = SPARE
                .with_borrow_mut(Vec::pop)
                .unwrap_or_else(|| Vec::with_capacity(BUFFER));
        }
        self.buffer.clear();
        self.start = 0;
        match poll_read_buf(Pin::new(source), cx, &mut self.buffer) {
            Poll::Ready(read) => Poll::Ready(Ok(read? > 0)),
            Poll::Pending => {
                self.release();
                if self.is_unflushed && Pin::new(sink).poll_flush(cx)?.is_ready() {
                    self.is_unflushed = false;
                }
                Poll::Pending
            }
        }
    }

    fn release(&mut self) {
        self.start = 0;
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        SPARE.with_borrow_mut(|spare| {
            if spare.len() < SPARE_BUFFERS && buffer.capacity() == BUFFER {
                spare.push(buffer);
            }
        });
    }
}
