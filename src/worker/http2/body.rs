//! Sending a response's body as the client's windows allow.

use std::{
    future::poll_fn,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use h2::{Reason, SendStream};
use http_body::Body;

use crate::{
    proxy::{Proxy, body::ResponseBody, client::Client},
    sweep::Deadline,
    telemetry::metrics::Limit,
    upstream::http2::poll_room,
};

/// How far an answer came.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Sent {
    /// To its end.
    Whole,
    /// Until the upstream broke it off, or the client took nothing for too long.
    InPart,
    /// Until the stream was reset.
    GivenUp,
}

/// What the siblings of a stream must have taken for it to wait on, in bytes: a frame as large as clients take.
const A_TURN: u64 = 16 * 1024;

/// Sends all of it, unless the client resets the stream, or takes nothing for longer than `patience`.
pub(super) async fn send(
    proxy: &Rc<Proxy>,
    client: &Client,
    patience: Duration,
    body: ResponseBody,
    stream: SendStream<Bytes>,
) -> Sent {
    let mut sending = Sending {
        proxy,
        client,
        patience,
        body,
        stream,
        data: Bytes::new(),
        is_last: false,
        stalled: None,
    };
    poll_fn(|cx| sending.poll(cx)).await
}

struct Sending<'p> {
    proxy: &'p Rc<Proxy>,
    client: &'p Client,
    patience: Duration,
    body: ResponseBody,
    stream: SendStream<Bytes>,
    /// What the windows had no room for yet.
    data: Bytes,
    /// Nothing comes behind `data`.
    is_last: bool,
    /// While there is no room for it.
    stalled: Option<Stall>,
}

/// A stream that gets no room.
struct Stall {
    /// When to look whose fault that is.
    deadline: Deadline,
    /// What the connection had moved when it was armed last.
    moved: u64,
    /// How often it may be armed again.
    turns: u32,
}

impl Sending<'_> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Sent> {
        loop {
            if !self.data.is_empty() {
                if let Way::Over(sent) = ready!(self.poll_data(cx)) {
                    return Poll::Ready(sent);
                }
                continue;
            }
            let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) else {
                return self.stream.poll_reset(cx).map(|_| Sent::GivenUp);
            };
            match frame.map(|frame| frame.map(http_body::Frame::into_data)) {
                Some(Ok(Ok(data))) => {
                    self.is_last = self.body.is_end_stream();
                    if self.is_last && data.is_empty() {
                        return Poll::Ready(self.end());
                    }
                    self.data = data;
                }
                Some(Ok(Err(frame))) => {
                    if let Ok(trailers) = frame.into_trailers() {
                        return Poll::Ready(sent(self.stream.send_trailers(trailers)));
                    }
                }
                // Cut: the client must not take what it has for all of it.
                Some(Err(_)) => {
                    self.stream.send_reset(Reason::INTERNAL_ERROR);
                    return Poll::Ready(Sent::InPart);
                }
                None => return Poll::Ready(self.end()),
            }
        }
    }

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Way> {
        let room = match poll_room(&mut self.stream, self.data.len(), cx) {
            Poll::Ready(Some(room)) => room,
            Poll::Ready(None) => return Poll::Ready(Way::Over(Sent::GivenUp)),
            Poll::Pending => return self.poll_stall(cx),
        };
        self.stalled = None;
        self.client.moves(room);
        let piece = self.data.split_to(room);
        let ends = self.is_last && self.data.is_empty();
        let sent = sent(self.stream.send_data(piece, ends));
        Poll::Ready(match ends || sent != Sent::Whole {
            true => Way::Over(sent),
            false => Way::On,
        })
    }

    /// The window is the client's to open, and it has as long as one that does not read from its socket. What the client
    /// does take may be its siblings' data, though, whose turn it is: then it waits, once for each of them at most, and
    /// only if that is more than a pretence.
    fn poll_stall(&mut self, cx: &mut Context<'_>) -> Poll<Way> {
        let (proxy, client, patience) = (self.proxy, self.client, self.patience);
        let stalled = self.stalled.get_or_insert_with(|| {
            let deadline = proxy.sweep.deadline();
            deadline.arm(patience);
            Stall {
                deadline,
                moved: client.moved(),
                turns: client.running(),
            }
        });
        loop {
            ready!(stalled.deadline.poll(cx));
            // A socket that takes nothing has a limit of its own, which ends the connection.
            if !client.is_write_blocked() {
                let moved = client.moved() - stalled.moved;
                if stalled.turns == 0 || moved < A_TURN {
                    break;
                }
                stalled.turns -= 1;
            }
            stalled.moved = client.moved();
            stalled.deadline.arm(patience);
        }
        if client.stalls() {
            proxy.metrics.data_plane.limit_hits.count(Limit::Write);
        }
        self.body.stalled();
        self.stream.send_reset(Reason::CANCEL);
        Poll::Ready(Way::Over(Sent::InPart))
    }

    fn end(&mut self) -> Sent {
        sent(self.stream.send_data(Bytes::new(), true))
    }
}

/// `h2` takes whatever an open stream is given.
fn sent(taken: Result<(), h2::Error>) -> Sent {
    match taken {
        Ok(()) => Sent::Whole,
        Err(_) => Sent::GivenUp,
    }
}

/// Whether there is more to do.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    On,
    Over(Sent),
}
