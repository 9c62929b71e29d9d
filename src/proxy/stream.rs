//! One stream of a client's HTTP/2 connection, as its request sees it beside head and body: where interim responses go,
//! whether the client has reset it, and what becomes of it when it carries a WebSocket.

use std::{
    cell::{Cell, RefCell},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use h2::{RecvStream, SendStream, server::SendResponse};
use http::{HeaderMap, Response, StatusCode};

use super::{
    client::{Client, INTERIM_ROOM},
    record::RequestRecord,
    upgrade::Upgraded,
};

/// A stream that waits for its response.
pub struct Stream {
    respond: RefCell<SendResponse<Bytes>>,
    /// The client's half, where it is not a request's body but a WebSocket's.
    incoming: RefCell<Option<RecvStream>>,
    upgraded: RefCell<Option<Box<Upgraded>>>,
    patience: Cell<Option<Duration>>,
    /// Bytes of interim heads that the client may not have read.
    interim: Cell<usize>,
    /// The client's turn in which the latest of them was sent.
    turn: Cell<u32>,
}

impl Stream {
    /// With the client's half if that is to carry a WebSocket.
    pub fn new(respond: SendResponse<Bytes>, incoming: Option<RecvStream>) -> Self {
        Self {
            respond: RefCell::new(respond),
            incoming: RefCell::new(incoming),
            upgraded: RefCell::default(),
            patience: Cell::default(),
            interim: Cell::default(),
            turn: Cell::default(),
        }
    }

    /// The client may leave the stream's window shut for so long, whatever others may.
    pub fn be_patient(&self, patience: Duration) {
        self.patience.set(Some(patience));
    }

    /// For how long the client may leave the window shut, if that was said.
    pub fn patience(&self) -> Option<Duration> {
        self.patience.get()
    }

    /// Ready once the client has reset it, or the connection has ended.
    pub fn poll_reset(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.respond.borrow_mut().poll_reset(cx).map(|_| ())
    }

    /// Sends an interim response head at once. Until the client had a turn to read them, those beyond [`INTERIM_ROOM`] are
    /// dropped: no window bounds them, and `h2` would keep them all.
    pub fn send_interim(&self, client: &Client, status: StatusCode, fields: &HeaderMap) {
        let turn = client.turns();
        if self.turn.replace(turn) != turn && !client.is_write_blocked() {
            self.interim.set(0);
        }
        // As HPACK counts them (RFC 7541 section 4.1).
        let sizes = fields
            .iter()
            .map(|(name, value)| name.as_str().len() + value.len() + 32);
        let (kept, size) = (self.interim.get(), sizes.sum::<usize>());
        if kept > 0 && kept + size > INTERIM_ROOM {
            return;
        }
        self.interim.set(kept + size);
        let mut response = Response::new(());
        *response.status_mut() = status;
        *response.headers_mut() = fields.clone();
        // What cannot be sent nobody waits for.
        let _ = self.respond.borrow_mut().send_informational(response);
    }

    /// Sends the head of the response, which may be all of it.
    ///
    /// # Errors
    /// Those of `h2`, by which the stream is reset: it is gone, or the head has fields that HTTP/2 does not know.
    pub fn respond(&self, head: Response<()>, ends: bool) -> Result<SendStream<Bytes>, h2::Error> {
        let mut respond = self.respond.borrow_mut();
        let sent = respond.send_response(head, ends);
        if sent.is_err() {
            respond.send_reset(h2::Reason::INTERNAL_ERROR);
        }
        sent
    }

    /// After the 200 now being answered, the stream belongs to this upgrade.
    pub fn upgrade(&self, upgraded: Upgraded) {
        *self.upgraded.borrow_mut() = Some(Box::new(upgraded));
    }

    /// The request's record ends with the upgrade it led to; given back if it led to none.
    pub fn end_with_upgrade(&self, record: Box<RequestRecord>) -> Option<Box<RequestRecord>> {
        match &mut *self.upgraded.borrow_mut() {
            Some(upgraded) => {
                upgraded.record = Some(record);
                None
            }
            None => Some(record),
        }
    }

    /// The upgrade that takes the stream over, and the client's half.
    pub fn take_upgrade(&self) -> Option<(Box<Upgraded>, RecvStream)> {
        self.upgraded.take().zip(self.incoming.take())
    }
}
