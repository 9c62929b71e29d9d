//! An upgraded connection, or a stream in its place: bytes both ways until both sides have ended, nothing has moved for too long, or it is to
//! end: then both sides are told, as RFC 6455 has it, between two frames.

mod direction;
mod far_end;
mod frames;
mod handshake;
mod ties;

use std::{
    future::poll_fn,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tracing::debug;

use self::direction::Direction;
pub use self::{far_end::FarEnd, handshake::Handshake, ties::Ties};
use super::{
    Proxy,
    client::{Client, Expiry},
    record::RequestRecord,
};
use crate::sweep::Deadline;

/// An upstream that said 101, waiting for the client's connection to be taken out of HTTP.
pub struct Upgraded {
    /// The upstream's end.
    pub far_end: FarEnd,
    /// What it sent behind its 101.
    pub read: Bytes,
    /// `timeouts.idle`.
    pub idle: Duration,
    /// Watches over it.
    pub deadline: Deadline,
    /// The request that asked for it; ends with the connection.
    pub record: Option<Box<RequestRecord>>,
}

/// How long both sides may take, once the connection is to end, to finish the frames they are in and to answer a Close.
pub const CLOSING: Duration = Duration::from_secs(2);

/// One side of an upgraded connection.
pub trait Side: AsyncRead + AsyncWrite + Unpin {
    /// Ready once it is gone, where that shows to who neither reads nor writes.
    fn poll_gone(&mut self, _: &mut Context<'_>) -> Poll<()> {
        Poll::Pending
    }
}

/// Copies both ways, half-closing as the sides do, until both have ended, `idle` passes without a byte, or `client` is
/// expired.
pub async fn splice<C>(mut io: C, upgraded: Upgraded, proxy: &Proxy, client: &Rc<Client>)
where
    C: Side,
{
    let Upgraded {
        mut far_end,
        read,
        idle,
        deadline,
        mut record,
    } = upgraded;
    let _tie = record
        .as_ref()
        .and_then(|record| record.sent_to())
        .map(|(route, member)| proxy.ties.tie(client.clone(), route, member));
    let mut flow = Flow {
        down: Direction::new(read),
        up: Direction::new(Bytes::new()),
        closing: None,
    };
    deadline.arm(idle);
    let mut moved = 0;
    let end = poll_fn(|cx| {
        client.watch(cx);
        match client.expired() {
            Some(Expiry::Abort) => return Poll::Ready(End::Cut),
            Some(expiry @ (Expiry::Removed | Expiry::Leave)) if flow.closing.is_none() => {
                flow.closing = Some(Closing::because_of(expiry));
                deadline.arm(CLOSING);
            }
            _ => {}
        }
        if let Poll::Ready(end) = flow.poll(cx, &mut io, &mut far_end) {
            return Poll::Ready(end);
        }
        if flow.closing.is_none() && flow.moved() != moved {
            moved = flow.moved();
            deadline.arm(idle);
        }
        deadline.poll(cx).map(|()| End::Cut)
    })
    .await;
    if let Some(closing) = &flow.closing {
        debug!(client = %client.address(), why = closing.why, ?end, "WebSocket ended");
    }
    if let Some(record) = &mut record {
        record.response_bytes += flow.down.moved();
        record.reason = flow.closing.map(|closing| closing.reason);
    }
    if end == End::Cut && client.expired() == Some(Expiry::Leave) {
        proxy.cut.set(proxy.cut.get() + 1);
    }
}

/// How an upgraded connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// As both sides wanted it, or knew it.
    Closed,
    /// Without their agreement.
    Cut,
}

/// Both directions, and what ends them.
struct Flow {
    /// From the upstream to the client.
    down: Direction,
    up: Direction,
    closing: Option<Closing>,
}

/// Why the connection is to end, and the frames that say so.
struct Closing {
    why: &'static str,
    /// The same for the access log.
    reason: &'static str,
    to_client: Vec<u8>,
    to_upstream: Vec<u8>,
}

impl Closing {
    fn because_of(expiry: Expiry) -> Self {
        let (why, reason) = match expiry {
            Expiry::Removed => ("upstream removed", "upstream_removed"),
            _ => ("shutting down", "shut_down"),
        };
        Self {
            why,
            reason,
            to_client: frames::going_away(why, None),
            // Unpredictable (RFC 6455 section 5.3), so that nobody can make the bytes on the wire look like HTTP.
            to_upstream: frames::going_away(why, Some(rand::random())),
        }
    }
}

impl Flow {
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        client: &mut impl Side,
        upstream: &mut impl Side,
    ) -> Poll<End> {
        let closing = self.closing.as_ref();
        let to_client = closing.map(|closing| &*closing.to_client);
        let down = self.down.poll(cx, &mut *upstream, &mut *client, to_client);
        let to_upstream = closing.map(|closing| &*closing.to_upstream);
        let up = self.up.poll(cx, &mut *client, &mut *upstream, to_upstream);
        if matches!(down, Poll::Ready(Err(_))) || matches!(up, Poll::Ready(Err(_))) {
            return Poll::Ready(End::Cut);
        }
        if closing.is_some() && self.down.is_closed() && self.up.is_closed() {
            // The word is out and answered; an end that can't be written now is written by the close itself.
            let _ = Pin::new(client).poll_shutdown(cx);
            let _ = Pin::new(upstream).poll_shutdown(cx);
            return Poll::Ready(End::Closed);
        }
        if self.down.is_over() && self.up.is_over() {
            return Poll::Ready(End::Closed);
        }
        // Half of it may have ended, and nothing be there to write. What an upstream said before its reset is read first;
        // who is to close has little time anyway, and may well reset what it has ended.
        let is_gone = self.closing.is_none()
            && (client.poll_gone(cx).is_ready()
                || (self.down.is_over() && upstream.poll_gone(cx).is_ready()));
        if is_gone {
            return Poll::Ready(End::Cut);
        }
        Poll::Pending
    }

    fn moved(&self) -> u64 {
        self.down.moved() + self.up.moved()
    }
}
