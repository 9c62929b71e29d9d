//! Where a request's body comes from: the client's connection, in either protocol.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use h2::RecvStream;
use http::{HeaderMap, header::CONTENT_LENGTH};
use hyper::body::Body;

use super::{RequestBodyError, RequestFrame};

/// What a client sends behind a request's head.
pub enum Incoming {
    /// Nothing.
    Nothing,
    /// In hyper's hands.
    Http1(hyper::body::Incoming),
    /// The data of a stream.
    Http2 {
        /// The stream.
        stream: RecvStream,
        /// As announced; `h2` resets a stream that breaks its word.
        length: Option<u64>,
    },
}

impl Incoming {
    /// What comes on a stream behind a head with these fields; `None` if they announce lengths in conflict.
    pub fn of_stream(stream: RecvStream, fields: &HeaderMap) -> Option<Self> {
        let mut length = None;
        for announced in fields.get_all(CONTENT_LENGTH) {
            let text = announced.to_str().ok()?;
            let digits = text.bytes().all(|byte| byte.is_ascii_digit());
            let number = text.parse::<u64>().ok().filter(|_| digits)?;
            if length.is_some_and(|length| length != number) {
                return None;
            }
            length = Some(number);
        }
        Some(match stream.is_end_stream() {
            true => Self::Nothing,
            false => Self::Http2 { stream, length },
        })
    }

    /// Whether nothing (more) comes.
    pub fn is_end(&self) -> bool {
        match self {
            Self::Nothing => true,
            Self::Http1(body) => body.is_end_stream(),
            Self::Http2 { stream, .. } => stream.is_end_stream(),
        }
    }

    /// Its length, if that was announced.
    pub fn length(&self) -> Option<u64> {
        match self {
            Self::Nothing => Some(0),
            Self::Http1(body) => body.size_hint().exact(),
            Self::Http2 { length, .. } => *length,
        }
    }

    /// The next piece, which may be empty; `None` at the end.
    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<RequestFrame, RequestBodyError>>> {
        match self {
            Self::Nothing => Poll::Ready(None),
            Self::Http1(body) => Poll::Ready(match ready!(Pin::new(body).poll_frame(cx)) {
                None => None,
                Some(Err(_)) => Some(Err(RequestBodyError::Broken)),
                Some(Ok(frame)) => Some(Ok(match frame.into_data() {
                    Ok(data) => RequestFrame::Data(data),
                    Err(frame) => RequestFrame::Trailers(frame.into_trailers().unwrap_or_default()),
                })),
            }),
            // A reset is no end, whatever its code says: the upstream would take half of a body for all of it.
            Self::Http2 { stream, .. } => match ready!(stream.poll_data(cx)) {
                Some(Err(_)) => Poll::Ready(Some(Err(RequestBodyError::Broken))),
                Some(Ok(data)) => {
                    // It is on its way to the upstream, whose own window holds back what comes next.
                    let _ = stream.flow_control().release_capacity(data.len());
                    Poll::Ready(Some(Ok(RequestFrame::Data(data))))
                }
                None => Poll::Ready(match ready!(stream.poll_trailers(cx)) {
                    Err(_) => Some(Err(RequestBodyError::Broken)),
                    Ok(trailers) => trailers.map(|trailers| Ok(RequestFrame::Trailers(trailers))),
                }),
            },
        }
    }
}
