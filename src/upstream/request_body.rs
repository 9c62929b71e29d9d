//! The client's request body, on its way to an upstream: counted, bounded, and replayable as long as untouched.

use std::{
    cell::Cell,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::HeaderMap;
use hyper::body::{Body, Incoming};
use thiserror::Error;

/// The request body as the client sends it.
pub struct RequestBody {
    incoming: Option<Incoming>,
    limit: u64,
    begun: bool,
    received: Option<Rc<Cell<u64>>>,
}

/// A piece of a request body.
#[derive(Debug)]
pub enum RequestFrame {
    /// Bytes of it.
    Data(Bytes),
    /// Its trailer section; the last piece.
    Trailers(HeaderMap),
}

/// Why a request body broke off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RequestBodyError {
    /// The route's `max_body` is exceeded.
    #[error("request body too large")]
    TooLarge,
    /// The client left, or its framing is broken.
    #[error("request body broke off")]
    Broken,
}

impl RequestBody {
    /// The body of a request, of at most `limit` bytes.
    pub fn new(incoming: Incoming, limit: Option<u64>) -> Self {
        let incoming = Some(incoming).filter(|incoming| !incoming.is_end_stream());
        let received = incoming.is_some().then(Rc::default);
        Self {
            incoming,
            limit: limit.unwrap_or(u64::MAX),
            begun: false,
            received,
        }
    }

    /// Whether there is nothing (more) to come.
    pub fn is_end(&self) -> bool {
        self.incoming.is_none()
    }

    /// Whether none of it was taken yet, so that it can still go to another upstream.
    pub fn is_untouched(&self) -> bool {
        !self.begun
    }

    /// Its length, if the client announced one.
    pub fn length(&self) -> Option<u64> {
        match &self.incoming {
            None => Some(0),
            Some(incoming) => incoming.size_hint().exact(),
        }
    }

    /// The counter of its bytes received; `None` if it has no body.
    pub fn received(&self) -> Option<Rc<Cell<u64>>> {
        self.received.clone()
    }

    /// The next piece; `None` at the end.
    pub fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<RequestFrame, RequestBodyError>>> {
        let Some(incoming) = &mut self.incoming else {
            return Poll::Ready(None);
        };
        self.begun = true;
        loop {
            return Poll::Ready(match ready!(Pin::new(&mut *incoming).poll_frame(cx)) {
                None => {
                    self.incoming = None;
                    None
                }
                Some(Err(_)) => Some(Err(RequestBodyError::Broken)),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) if data.is_empty() => continue,
                    Ok(data) => {
                        let counter = self
                            .received
                            .as_ref()
                            .expect("made together with `incoming`");
                        let received = counter.get() + data.len() as u64;
                        counter.set(received);
                        if received > self.limit {
                            return Poll::Ready(Some(Err(RequestBodyError::TooLarge)));
                        }
                        Some(Ok(RequestFrame::Data(data)))
                    }
                    Err(frame) => match frame.into_trailers() {
                        Ok(trailers) => Some(Ok(RequestFrame::Trailers(trailers))),
                        Err(_) => continue,
                    },
                },
            });
        }
    }
}
