//! Sending a request: its head, then its body in a framing of ours, counting what left.

use std::{
    io::{self, IoSlice, Write},
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use http::HeaderMap;
use tokio::io::AsyncWrite;

use crate::upstream::{
    request_body::{RequestBody, RequestBodyError, RequestFrame},
    transport::Transport,
};

/// How the request body is framed upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestFraming {
    /// No body, or one whose length the head announces.
    Length,
    /// Chunked.
    Chunked,
}

/// A request being sent.
pub struct Upload {
    /// The serialised head; kept, so that it can be sent again.
    head: Vec<u8>,
    head_sent: usize,
    body: RequestBody,
    framing: RequestFraming,
    /// The chunk-size line and whatever else goes before `data`.
    prefix: Vec<u8>,
    prefix_sent: usize,
    data: Bytes,
    suffix: &'static [u8],
    body_over: bool,
    written: u64,
    /// `Expect: 100-continue`: the body waits until the upstream (or the clock) allows it.
    hold_body: bool,
}

/// Why an upload cannot go on.
#[derive(Debug)]
pub enum UploadError {
    /// The upstream took no more; it may still have answered.
    Upstream(io::Error),
    /// The client's body broke off or is too large.
    Client(RequestBodyError),
}

/// Whom an unfinished upload waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitsFor {
    /// The upstream to take bytes.
    Upstream,
    /// The client to send bytes.
    Client,
    /// The upstream to say `100 Continue`.
    Continue,
}

impl Upload {
    /// A request whose `head` is serialised already, with the framing it announces.
    pub fn new(head: Vec<u8>, body: RequestBody, framing: RequestFraming, hold_body: bool) -> Self {
        let body_over = body.is_end();
        Self {
            head,
            head_sent: 0,
            body_over,
            hold_body: hold_body && !body_over,
            body,
            framing,
            prefix: Vec::new(),
            prefix_sent: 0,
            data: Bytes::new(),
            suffix: b"",
            written: 0,
        }
    }

    /// Bytes that the kernel took from us, of head and body.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// The parts to try again with: the head's buffer (to be filled anew) and the body.
    pub fn into_parts(self) -> (Vec<u8>, RequestBody) {
        (self.head, self.body)
    }

    /// The body, as far as it was not taken.
    pub fn body(&self) -> &RequestBody {
        &self.body
    }

    /// It won't be sent again: what was kept for that can go.
    pub fn forget(&mut self) {
        self.body.forget();
    }

    /// The body may be sent now.
    pub fn release_body(&mut self) {
        self.hold_body = false;
    }

    /// Whether the body waits for `100 Continue`.
    pub fn holds_body(&self) -> bool {
        self.hold_body
    }

    /// Whether everything is sent.
    pub fn is_done(&self) -> bool {
        self.body_over && self.pending() == 0
    }

    /// Whom it waits for, given that the last poll was pending.
    pub fn waits_for(&self) -> WaitsFor {
        if self.pending() > 0 {
            WaitsFor::Upstream
        } else if self.hold_body {
            WaitsFor::Continue
        } else {
            WaitsFor::Client
        }
    }

    fn pending(&self) -> usize {
        self.head.len() - self.head_sent + self.prefix.len() - self.prefix_sent
            + self.data.len()
            + self.suffix.len()
    }

    /// Sends what can be sent; ready when all was.
    pub fn poll(
        &mut self,
        transport: &mut Transport,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), UploadError>> {
        loop {
            while self.pending() > 0 {
                let slices = [
                    IoSlice::new(&self.head[self.head_sent..]),
                    IoSlice::new(&self.prefix[self.prefix_sent..]),
                    IoSlice::new(&self.data),
                    IoSlice::new(self.suffix),
                ];
                let stream = Pin::new(&mut *transport);
                let head_only = self.pending() == slices[0].len();
                let result = if head_only {
                    stream.poll_write(cx, &slices[0])
                } else {
                    stream.poll_write_vectored(cx, &slices)
                };
                match ready!(result) {
                    Ok(0) => {
                        return Poll::Ready(Err(UploadError::Upstream(
                            io::ErrorKind::WriteZero.into(),
                        )));
                    }
                    Ok(n) => self.advance(n),
                    Err(error) => return Poll::Ready(Err(UploadError::Upstream(error))),
                }
            }
            if self.body_over {
                return Pin::new(&mut *transport)
                    .poll_flush(cx)
                    .map_err(UploadError::Upstream);
            }
            if self.hold_body {
                ready!(Pin::new(&mut *transport).poll_flush(cx)).map_err(UploadError::Upstream)?;
                return Poll::Pending;
            }
            match self.body.poll_frame(cx) {
                Poll::Pending => {
                    ready!(Pin::new(&mut *transport).poll_flush(cx))
                        .map_err(UploadError::Upstream)?;
                    return Poll::Pending;
                }
                Poll::Ready(frame) => self.queue(frame.transpose().map_err(UploadError::Client)?),
            }
        }
    }

    fn advance(&mut self, n: usize) {
        self.written += n as u64;
        let of_head = n.min(self.head.len() - self.head_sent);
        self.head_sent += of_head;
        let n = n - of_head;
        let of_prefix = n.min(self.prefix.len() - self.prefix_sent);
        self.prefix_sent += of_prefix;
        let n = n - of_prefix;
        let of_data = n.min(self.data.len());
        self.data.advance(of_data);
        self.suffix = &self.suffix[n - of_data..];
    }

    /// Frames the next piece (RFC 9112 section 7.1); everything before it was sent.
    fn queue(&mut self, frame: Option<RequestFrame>) {
        self.prefix.clear();
        self.prefix_sent = 0;
        match (self.framing, frame) {
            (RequestFraming::Length, Some(RequestFrame::Data(data))) => self.data = data,
            (RequestFraming::Chunked, Some(RequestFrame::Data(data))) => {
                write!(self.prefix, "{:x}\r\n", data.len())
                    .expect("writing to a Vec does not fail");
                self.data = data;
                self.suffix = b"\r\n";
            }
            // A body of announced length has no place for trailers; they are merged into nothing (section 7.1.2).
            (RequestFraming::Length, Some(RequestFrame::Trailers(_)) | None) => {
                self.body_over = true
            }
            (RequestFraming::Chunked, Some(RequestFrame::Trailers(trailers))) => {
                self.last_chunk(&trailers);
                self.body_over = true;
            }
            (RequestFraming::Chunked, None) => {
                self.suffix = b"0\r\n\r\n";
                self.body_over = true;
            }
        }
    }

    fn last_chunk(&mut self, trailers: &HeaderMap) {
        self.prefix.extend_from_slice(b"0\r\n");
        for (name, value) in trailers {
            if !crate::upstream::http1::forbidden_in_trailers(name) {
                self.prefix.extend_from_slice(name.as_str().as_bytes());
                self.prefix.extend_from_slice(b": ");
                self.prefix.extend_from_slice(value.as_bytes());
                self.prefix.extend_from_slice(b"\r\n");
            }
        }
        self.prefix.extend_from_slice(b"\r\n");
    }
}
