//! The client's request body, on its way to an upstream: counted, bounded, and repeatable as long as untouched, or as
//! all that was taken of it is kept.

pub mod incoming;
pub mod replay;

use std::{
    cell::Cell,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName};
use thiserror::Error;

use incoming::Incoming;
use replay::Replay;

use super::client_fields::is_spelling_of;

/// The request body as the client sends it.
pub struct RequestBody {
    /// What the client has still to send.
    incoming: Option<Incoming>,
    /// As announced.
    length: Option<u64>,
    limit: u64,
    begun: bool,
    /// The attempt that it is sent in has all of it.
    ended: bool,
    received: Option<Rc<Cell<u64>>>,
    replay: Option<Box<Replay>>,
    left_out: Option<Arc<[HeaderName]>>,
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
        let incoming = Some(incoming).filter(|incoming| !incoming.is_end());
        let received = incoming.is_some().then(Rc::default);
        let length = match &incoming {
            None => Some(0),
            Some(incoming) => incoming.length(),
        };
        Self {
            ended: incoming.is_none(),
            incoming,
            length,
            limit: limit.unwrap_or(u64::MAX),
            begun: false,
            received,
            replay: None,
            left_out: None,
        }
    }

    /// No body.
    pub fn empty() -> Self {
        Self {
            incoming: None,
            length: Some(0),
            limit: 0,
            begun: false,
            ended: true,
            received: None,
            replay: None,
            left_out: None,
        }
    }

    /// Its trailers must not have these fields.
    pub fn leave_out(&mut self, fields: Arc<[HeaderName]>) {
        self.left_out = Some(fields);
    }

    /// From now on what is taken of it is kept in `replay`.
    pub fn keep_in(&mut self, replay: Replay) {
        self.replay = Some(Box::new(replay));
    }

    /// Lets go of what was kept: it won't be sent again.
    pub fn forget(&mut self) {
        self.replay = None;
    }

    /// Whether there is nothing (more) to send.
    pub fn is_end(&self) -> bool {
        self.ended
    }

    /// Whether it can be sent from its beginning: none of it was taken yet, or all that was is kept.
    pub fn is_repeatable(&self) -> bool {
        !self.begun || self.replay.is_some()
    }

    /// Begins again, if it [can](Self::is_repeatable).
    pub fn rewind(&mut self) {
        self.ended = self.received.is_none();
        if let Some(replay) = &mut self.replay {
            replay.rewind();
        }
    }

    /// Its length, if the client announced one.
    pub fn length(&self) -> Option<u64> {
        self.length
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
        if self.ended {
            return Poll::Ready(None);
        }
        if let Some(frame) = self.replay.as_mut().and_then(|replay| replay.next()) {
            return Poll::Ready(Some(Ok(frame)));
        }
        let frame = ready!(self.poll_incoming(cx));
        match &frame {
            None => self.ended = true,
            Some(Ok(frame)) => {
                if let Some(replay) = &mut self.replay
                    && !replay.keep(frame)
                {
                    self.replay = None;
                }
            }
            Some(Err(_)) => {}
        }
        Poll::Ready(frame)
    }

    fn poll_incoming(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<RequestFrame, RequestBodyError>>> {
        let Some(incoming) = &mut self.incoming else {
            return Poll::Ready(None);
        };
        self.begun = true;
        loop {
            let mut frame = ready!(incoming.poll_frame(cx));
            match &frame {
                None => self.incoming = None,
                Some(Ok(RequestFrame::Data(data))) if data.is_empty() => continue,
                Some(Ok(RequestFrame::Data(data))) => {
                    let counter = self
                        .received
                        .as_ref()
                        .expect("made together with `incoming`");
                    let received = counter.get() + data.len() as u64;
                    counter.set(received);
                    if received > self.limit {
                        return Poll::Ready(Some(Err(RequestBodyError::TooLarge)));
                    }
                }
                Some(Ok(RequestFrame::Trailers(_)) | Err(_)) => {}
            }
            if let (Some(fields), Some(Ok(RequestFrame::Trailers(trailers)))) =
                (&self.left_out, &mut frame)
            {
                leave_out(fields, trailers);
            }
            return Poll::Ready(frame);
        }
    }
}

fn leave_out(fields: &[HeaderName], trailers: &mut HeaderMap) {
    let names = trailers.keys();
    let theirs = names.filter(|name| fields.iter().any(|field| is_spelling_of(name, field)));
    for name in theirs.cloned().collect::<Vec<_>>() {
        trailers.remove(name);
    }
}
