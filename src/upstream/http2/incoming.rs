//! The data of responses between the connection and whoever reads it, kept small for those that nobody reads.
//!
//! `h2` keeps each frame by itself: a stream's window full of single bytes would take megabytes. When its small frames
//! that nobody has read become too many (its budget), it ends the connection with all of its streams, though one client
//! that does not read is enough for that. So once many have come they are taken from it and gathered, for each stream in
//! one piece. The windows stay as they are: what was gathered still counts as unread.

use std::{
    cell::RefCell,
    rc::{Rc, Weak},
    task::{Context, Poll, Waker},
};

use bytes::{Bytes, BytesMut};
use h2::RecvStream;
use http::HeaderMap;

use super::MAX_STREAMS;

/// The data of one response.
#[derive(Clone)]
pub(super) struct Incoming(Rc<RefCell<Received>>);

struct Received {
    stream: RecvStream,
    /// Comes before what the stream still has.
    gathered: BytesMut,
    /// Waits for more.
    reader: Option<Waker>,
}

/// All responses that are read from one connection.
#[derive(Default)]
pub(super) struct Responses {
    all: RefCell<Vec<Weak<RefCell<Received>>>>,
}

impl Responses {
    /// Takes on the response that has begun on this stream.
    pub(super) fn begin(&self, stream: RecvStream) -> Incoming {
        let received = Rc::new(RefCell::new(Received {
            stream,
            gathered: BytesMut::new(),
            reader: None,
        }));
        let mut all = self.all.borrow_mut();
        if all.len() >= 2 * MAX_STREAMS {
            all.retain(|response| response.strong_count() > 0);
        }
        all.push(Rc::downgrade(&received));
        Incoming(received)
    }

    /// Takes from `h2` what has come.
    pub(super) fn gather(&self) {
        self.all.borrow_mut().retain(|response| {
            let response = response.upgrade();
            response
                .map(|received| received.borrow_mut().gather())
                .is_some()
        });
    }
}

impl Received {
    fn gather(&mut self) {
        let mut cx = Context::from_waker(self.reader.as_ref().unwrap_or(Waker::noop()));
        // The end, or an error, is met again by whoever reads.
        while let Poll::Ready(Some(Ok(data))) = self.stream.poll_data(&mut cx) {
            self.gathered.extend_from_slice(&data);
        }
    }

    fn wait(&mut self, cx: &Context<'_>) {
        match &mut self.reader {
            Some(reader) => reader.clone_from(cx.waker()),
            None => self.reader = Some(cx.waker().clone()),
        }
    }
}

impl Incoming {
    /// Some of it; `None` when only trailers may come.
    pub(super) fn poll_data(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, h2::Error>>> {
        let mut received = self.0.borrow_mut();
        if !received.gathered.is_empty() {
            let gathered = std::mem::take(&mut received.gathered).freeze();
            return Poll::Ready(Some(Ok(gathered)));
        }
        let data = received.stream.poll_data(cx);
        if data.is_pending() {
            received.wait(cx);
        }
        data
    }

    /// What comes after the data.
    pub(super) fn poll_trailers(
        &self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<HeaderMap>, h2::Error>> {
        let mut received = self.0.borrow_mut();
        let trailers = received.stream.poll_trailers(cx);
        if trailers.is_pending() {
            received.wait(cx);
        }
        trailers
    }

    /// Waits for the end of a response whose data has come; false if it is not what comes.
    pub(super) fn poll_end(&self, cx: &mut Context<'_>) -> Poll<bool> {
        loop {
            match std::task::ready!(self.poll_data(cx)) {
                Some(Ok(data)) if data.is_empty() => {}
                Some(_) => return Poll::Ready(false),
                None => return self.poll_trailers(cx).map(|trailers| trailers.is_ok()),
            }
        }
    }

    /// Waits for the end of what nobody wants; false if it breaks off.
    pub(super) fn poll_rest(&self, cx: &mut Context<'_>) -> Poll<bool> {
        loop {
            match std::task::ready!(self.poll_data(cx)) {
                Some(Ok(data)) => self.release(data.len()),
                Some(Err(_)) => return Poll::Ready(false),
                None => return Poll::Ready(true),
            }
        }
    }

    /// Whether all of it was read.
    pub(super) fn is_end(&self) -> bool {
        let received = self.0.borrow();
        received.gathered.is_empty() && received.stream.is_end_stream()
    }

    /// The upstream may send as much again.
    pub(super) fn release(&self, bytes: usize) {
        let mut received = self.0.borrow_mut();
        let _ = received.stream.flow_control().release_capacity(bytes);
    }
}
