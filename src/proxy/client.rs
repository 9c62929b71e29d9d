//! One client connection as its requests see it: who it is, what it is doing, and what limits apply.

mod upstreams;

use std::{
    cell::{Cell, OnceCell, RefCell},
    net::SocketAddr,
    rc::Rc,
    task::{Context, Waker},
    time::Duration,
};

use bytes::BytesMut;
use http::{HeaderName, HeaderValue};
use slab::Slab;
use socket2::Socket;

use super::{
    forwarded::{Sender, TrustedProxies, address_text},
    record::RequestRecord,
    upgrade::Upgraded,
};
use crate::{
    config::ClientLimits,
    sweep::{Sweep, Tick},
    telemetry::metrics::Limit,
    upstream::pool::Owner,
};

/// The field that tells upstreams of a client's certificate.
#[derive(Clone, Debug)]
pub struct ClientCertificate {
    /// Its name.
    pub name: HeaderName,
    /// The certificate.
    pub value: HeaderValue,
}

/// What a connection is doing, for the limits that apply to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The TLS handshake, or the first bytes that tell HTTP/1.1 from HTTP/2.
    Opening,
    /// Between requests: no byte of the next one has come.
    Idle,
    /// A request's head is coming in (HTTP/1.1 only).
    Head,
    /// At least one request is running.
    Exchange,
}

/// What is spoken on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1, or 1.0.
    Http1,
    /// HTTP/2, whose frames between requests begin no request head.
    Http2,
}

/// Why a connection is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expiry {
    /// The handshake took too long.
    Opening,
    /// Nothing was asked for too long.
    Idle,
    /// Another client needs the room, and no request runs: to be closed as if idle for too long.
    Room,
    /// Another client needs the room, and a request head has been coming in for long: 408.
    RoomOfHead,
    /// The process drains, and no request runs: to be closed as if idle for too long.
    Drain,
    /// The request head took too long: 408.
    Head,
    /// The client does not read what we write.
    Write,
    /// The client gave up too many streams: cut, behind a GOAWAY (ENHANCE_YOUR_CALM).
    Resets,
    /// The upstream it was upgraded to is out of the table, and was for long enough.
    Removed,
    /// The time to drain is over: a WebSocket is told so, and ends.
    Leave,
    /// The process ends: whatever runs is cut.
    Abort,
}

impl Expiry {
    /// The weaker ones wait for what runs; of those that don't the first is the reason, unless the process ends.
    fn rank(self) -> u8 {
        match self {
            Self::Idle | Self::Room => 0,
            Self::Drain => 1,
            Self::Removed => 2,
            Self::Leave => 3,
            Self::Resets => 4,
            Self::Opening | Self::Head | Self::RoomOfHead | Self::Write => 5,
            Self::Abort => 6,
        }
    }
}

/// How long a connection that has asked for nothing yet is spared when the process ends.
const FIRST_REQUEST: Duration = Duration::from_secs(1);
/// A request head that has not come in for so long gives way where there is no room.
const SLOW_HEAD: Duration = Duration::from_secs(1);

/// How many bytes of interim heads wait for a client that does not read them, on each stream of HTTP/2.
pub const INTERIM_ROOM: usize = 16 * 1024;

/// What would be lost with a connection that may give way; more of it first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Loss {
    /// It asked before, and may do so again.
    Habit,
    /// It never asked for anything.
    Nothing,
    /// The head of a request comes in so slowly that it may be no request at all.
    SlowHead,
}

/// What the stream, the requests on it, the sweep and the driver of one connection share.
pub struct Client {
    address: Cell<SocketAddr>,
    destination: Cell<Option<SocketAddr>>,
    owner: OnceCell<Owner>,
    address_text: OnceCell<Box<str>>,
    is_somebody: Cell<bool>,
    sender: OnceCell<Sender>,
    certificate: OnceCell<Box<ClientCertificate>>,
    /// Whether it speaks TLS.
    pub tls: bool,
    sweep: Rc<Sweep>,
    protocol: Cell<Protocol>,
    phase: Cell<Phase>,
    since: Cell<Tick>,
    running: Cell<u32>,
    write_blocked_since: Cell<Option<Tick>>,
    turn: Cell<usize>,
    turns: Cell<u32>,
    moved: Cell<u64>,
    has_stalled: Cell<bool>,
    expired: Cell<Option<Expiry>>,
    waker: RefCell<Option<Waker>>,
    interim: RefCell<BytesMut>,
    reset_on_close: Cell<bool>,
    unread_body: Cell<bool>,
    answered: Cell<bool>,
    accepted: Tick,
    asked: Cell<bool>,
    at_message_start: Cell<bool>,
    wakes_when_flushed: Cell<bool>,
    refused: RefCell<Option<Refused>>,
    draining: Cell<bool>,
    upgraded: RefCell<Option<Box<Upgraded>>>,
    is_upgraded: Cell<bool>,
    reading_paused: Cell<bool>,
    /// Those of its streams that carry WebSockets.
    carried: RefCell<Slab<Rc<Client>>>,
}

impl Client {
    /// The state of a connection just accepted.
    pub fn new(address: SocketAddr, tls: bool, sweep: Rc<Sweep>) -> Rc<Self> {
        Rc::new(Self {
            address: Cell::new(address),
            destination: Cell::new(None),
            owner: OnceCell::new(),
            address_text: OnceCell::new(),
            is_somebody: Cell::new(false),
            sender: OnceCell::new(),
            certificate: OnceCell::new(),
            tls,
            since: Cell::new(sweep.now()),
            accepted: sweep.now(),
            asked: Cell::new(false),
            sweep,
            protocol: Cell::new(Protocol::Http1),
            phase: Cell::new(Phase::Opening),
            running: Cell::new(0),
            write_blocked_since: Cell::new(None),
            turn: Cell::new(usize::MAX),
            turns: Cell::new(0),
            moved: Cell::new(0),
            has_stalled: Cell::new(false),
            expired: Cell::new(None),
            waker: RefCell::new(None),
            interim: RefCell::new(BytesMut::new()),
            reset_on_close: Cell::new(false),
            unread_body: Cell::new(false),
            answered: Cell::new(false),
            at_message_start: Cell::new(true),
            wakes_when_flushed: Cell::new(false),
            refused: RefCell::new(None),
            draining: Cell::new(false),
            upgraded: RefCell::new(None),
            is_upgraded: Cell::new(false),
            reading_paused: Cell::new(false),
            carried: RefCell::default(),
        })
    }

    /// Who connected: to us or, as a PROXY header says, to the load balancer in front.
    pub fn address(&self) -> SocketAddr {
        self.address.get()
    }

    /// Its address without the port, as `X-Forwarded-For` says it.
    pub fn address_text(&self) -> &str {
        let text = || address_text(self.address().ip());
        self.address_text.get_or_init(text)
    }

    /// Who connected did so for a client that is here, and came to that address. To be said before its first request.
    pub fn is_at(&self, address: SocketAddr, destination: SocketAddr) {
        self.address.set(address);
        self.came_to(destination);
    }

    /// Who connected did so for a client that it can't name.
    pub fn is_somebody(&self) {
        self.is_somebody.set(true);
    }

    /// Its certificate was verified.
    pub fn is_certified(&self, certificate: ClientCertificate) {
        let _ = self.certificate.set(Box::new(certificate));
    }

    /// What upstreams are told of its certificate.
    pub fn certificate(&self) -> Option<&ClientCertificate> {
        self.certificate.get().map(|certificate| &**certificate)
    }

    /// Whether what its requests say of earlier hops counts. It is the client's word, whoever is in between.
    pub fn sender(&self, trusted: &TrustedProxies) -> Sender {
        let is_trusted = || !self.is_somebody.get() && trusted.contains(self.address().ip());
        *self.sender.get_or_init(|| match is_trusted() {
            true => Sender::Trusted,
            false => Sender::Unknown,
        })
    }

    /// The handshake is over; requests may come.
    pub fn opened(&self, protocol: Protocol) {
        self.protocol.set(protocol);
        self.enter(Phase::Idle);
    }

    /// The worker's coarse clock.
    pub fn now(&self) -> Tick {
        self.sweep.now()
    }

    /// What is spoken on it.
    pub fn protocol(&self) -> Protocol {
        self.protocol.get()
    }

    fn enter(&self, phase: Phase) {
        self.phase.set(phase);
        self.since.set(self.sweep.now());
    }

    /// Counts one request as running until the guard is dropped.
    pub fn begin_request(self: &Rc<Self>) -> RunningRequest {
        self.running.set(self.running.get() + 1);
        self.answered.set(true);
        self.asked.set(true);
        self.enter(Phase::Exchange);
        RunningRequest(self.clone())
    }

    /// Requests running now.
    pub fn running(&self) -> u32 {
        self.running.get()
    }

    /// Requests that an end now would cut: those running, else the one whose answer is not all written.
    pub fn unfinished(&self) -> usize {
        match self.running.get() {
            0 => usize::from(!self.at_message_start.get()),
            running => running as usize,
        }
    }

    /// Whether an end now would cost a request: one is unfinished, or its head is coming in, or the connection is so
    /// new that the first one may be under way.
    pub fn is_busy(&self) -> bool {
        let is_new = || {
            let age = self.sweep.now().saturating_sub(self.accepted);
            !self.asked.get() && age < Sweep::ticks(FIRST_REQUEST)
        };
        self.unfinished() > 0 || self.phase.get() == Phase::Head || is_new()
    }

    /// What would be lost if the connection ended now, and for how long that has been so; `None` if it would be a
    /// request.
    pub fn loss(&self) -> Option<(Loss, Tick)> {
        if self.expired.get().is_some() || self.is_upgraded() || self.unfinished() > 0 {
            return None;
        }
        let loss = match self.phase.get() {
            Phase::Head if self.is_over(self.since.get(), SLOW_HEAD) => Loss::SlowHead,
            _ if self.is_busy() => return None,
            _ if self.asked.get() => Loss::Habit,
            _ => Loss::Nothing,
        };
        Some((loss, self.sweep.now().saturating_sub(self.since.get())))
    }

    /// Ends the connection for the sake of another, unless that would cost a request.
    pub fn gives_way(&self) -> bool {
        let Some((loss, _)) = self.loss() else {
            return false;
        };
        self.expire(match loss {
            Loss::SlowHead => Expiry::RoomOfHead,
            Loss::Nothing | Loss::Habit => Expiry::Room,
        });
        true
    }

    /// Whether what is written is an answer of ours: a request came since all before it was flushed.
    pub fn is_answering(&self) -> bool {
        self.answered.get()
    }

    /// Whether all that was written is flushed: what is written next starts a message.
    pub fn is_at_message_start(&self) -> bool {
        self.at_message_start.get()
    }

    /// Wakes the connection's task once all that was written is flushed.
    pub fn wake_when_flushed(&self) {
        self.wakes_when_flushed.set(true);
    }

    /// Something is being written.
    pub fn writes(&self) {
        self.at_message_start.set(false);
    }

    /// All that was written is flushed; unless a request runs, what is written next is not ours.
    pub fn flushed(&self) {
        self.at_message_start.set(true);
        if self.wakes_when_flushed.take()
            && let Some(waker) = self.waker.borrow_mut().take()
        {
            waker.wake();
        }
        if self.running.get() == 0 {
            self.answered.set(false);
        }
    }

    /// Which limit has passed by now, if any; the driver and the stream act on it.
    pub fn check(&self, limits: &ClientLimits) {
        let over = |since, limit| self.is_over(since, limit);
        let expired = match self.phase.get() {
            // To be closed when nothing runs; what runs, and who reads its answer, still has limits.
            _ if self.expired.get().is_some() => self.write_expired(limits),
            Phase::Opening if over(self.since.get(), limits.opening) => Some(Expiry::Opening),
            Phase::Idle if over(self.since.get(), limits.idle) => Some(Expiry::Idle),
            Phase::Head if over(self.since.get(), limits.head) => Some(Expiry::Head),
            _ => self.write_expired(limits),
        };
        if let Some(expired) = expired {
            self.expire(expired);
        }
    }

    fn write_expired(&self, limits: &ClientLimits) -> Option<Expiry> {
        self.write_blocked_since
            .get()
            .filter(|since| self.is_over(*since, limits.body))
            .map(|_| Expiry::Write)
    }

    fn is_over(&self, since: Tick, limit: Duration) -> bool {
        self.sweep.now().saturating_sub(since) >= Sweep::ticks(limit)
    }

    /// Ends the connection for this reason: its task is woken to do so. A reason as strong, or stronger, stays in force.
    pub fn expire(&self, expiry: Expiry) {
        let current = self.expired.get();
        if current.is_some_and(|current| current.rank() >= expiry.rank()) {
            return;
        }
        self.expired.set(Some(expiry));
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
        for (_, carried) in self.carried.borrow().iter() {
            carried.expire(expiry);
        }
    }

    /// Why the connection is to end, if it is.
    pub fn expired(&self) -> Option<Expiry> {
        self.expired.get()
    }

    /// The process drains from now on: HTTP/2 connections say so at once, HTTP/1 ones with their next answer.
    pub fn drain(&self) {
        self.draining.set(true);
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }

    /// Whether the process drains.
    pub fn is_draining(&self) -> bool {
        self.draining.get()
    }

    /// Remembers whom to wake when a limit has passed.
    pub fn watch(&self, cx: &Context<'_>) {
        let mut waker = self.waker.borrow_mut();
        match &*waker {
            Some(known) if known.will_wake(cx.waker()) => {}
            _ => *waker = Some(cx.waker().clone()),
        }
    }

    /// What it is doing.
    pub fn phase(&self) -> Phase {
        self.phase.get()
    }

    /// Bytes came: between requests, the first ones of a request head.
    pub fn received(&self) {
        if self.phase.get() == Phase::Idle && self.protocol.get() == Protocol::Http1 {
            self.enter(Phase::Head);
        }
    }

    /// The client does not take what we write now, or does again.
    pub fn write_blocked(&self, blocked: bool) {
        let since = match (blocked, self.write_blocked_since.get()) {
            (true, None) => Some(self.sweep.now()),
            (true, since) => since,
            (false, _) => None,
        };
        self.write_blocked_since.set(since);
    }

    /// Whether it does not take what we write.
    pub fn is_write_blocked(&self) -> bool {
        self.write_blocked_since.get().is_some()
    }

    /// So many bytes may be read of it before others have their turn. Without this it is any number.
    pub fn begin_turn(&self, bytes: usize) {
        self.turn.set(bytes);
        self.turns.set(self.turns.get().wrapping_add(1));
    }

    /// How many turns it had: with each, what waits for the client is written as far as that takes it.
    pub fn turns(&self) -> u32 {
        self.turns.get()
    }

    /// So many bytes were read of it.
    pub fn uses_turn(&self, bytes: usize) {
        self.turn.set(self.turn.get().saturating_sub(bytes));
    }

    /// Whether it is the turn of others.
    pub fn turn_is_over(&self) -> bool {
        self.turn.get() == 0
    }

    /// One of its streams had room for so many bytes of a response.
    pub fn moves(&self, bytes: usize) {
        self.moved.set(self.moved.get() + bytes as u64);
    }

    /// What all of its streams had room for so far, in bytes.
    pub fn moved(&self) -> u64 {
        self.moved.get()
    }

    /// One of its streams got no room for too long; whether it is the first.
    pub fn stalls(&self) -> bool {
        !self.has_stalled.replace(true)
    }

    /// The interim heads to be written now.
    pub fn take_interim(&self) -> BytesMut {
        self.interim.take()
    }

    /// Whether the connection is to end by a reset.
    pub fn ends_by_reset(&self) -> bool {
        self.reset_on_close.get()
    }

    /// Queues an interim response head. It goes out once all before it is flushed, in front of the final response. Beyond
    /// [`INTERIM_ROOM`] it is dropped, as the client does not read them.
    pub fn send_interim(&self, head: &[u8]) {
        let mut interim = self.interim.borrow_mut();
        if interim.is_empty() || interim.len() + head.len() <= INTERIM_ROOM {
            interim.extend_from_slice(head);
        }
    }

    /// The final response comes next. If the one before it is not flushed yet, nobody can tell where this one will
    /// begin, and interim heads are dropped: they must never touch another response.
    pub fn settle_interim(&self) {
        let mut interim = self.interim.borrow_mut();
        if !interim.is_empty() && !self.at_message_start.get() {
            interim.clear();
        }
    }

    /// Whether what comes next is HTTP depends on the answer to the request before it, which asks for an upgrade.
    pub fn pause_reading(&self) {
        self.reading_paused.set(true);
    }

    /// Whether it waits for that answer.
    pub fn is_reading_paused(&self) -> bool {
        self.reading_paused.get()
    }

    /// The answer is known.
    pub fn resume_reading(&self) {
        if self.reading_paused.replace(false)
            && let Some(waker) = self.waker.borrow_mut().take()
        {
            waker.wake();
        }
    }

    /// The response is cut and its framing cannot show it: end the connection by a reset.
    pub fn reset_on_close(&self) {
        self.reset_on_close.set(true);
    }

    /// An answer was given before the whole request was read: close with linger, lest a reset overtakes it.
    pub fn leave_body_unread(&self) {
        self.unread_body.set(true);
    }

    /// hyper answers a head that is no request, and fails.
    pub fn refused(&self, refused: Refused) {
        *self.refused.borrow_mut() = Some(refused);
    }

    /// What is left of a connection that hyper refused.
    pub fn take_refused(&self) -> Option<Refused> {
        self.refused.take()
    }

    /// After the 101 now being answered, the connection belongs to this upgrade.
    pub fn upgrade(&self, upgraded: Upgraded) {
        *self.upgraded.borrow_mut() = Some(Box::new(upgraded));
        self.is_upgraded.set(true);
    }

    /// The request's record ends with the upgrade it led to.
    pub fn end_with_upgrade(&self, record: Box<RequestRecord>) {
        if let Some(upgraded) = &mut *self.upgraded.borrow_mut() {
            upgraded.record = Some(record);
        }
    }

    /// The upgrade that takes the connection over, once HTTP is done with it.
    pub fn take_upgrade(&self) -> Option<Box<Upgraded>> {
        self.upgraded.take()
    }

    /// Whether an upgrade has the connection, or is about to.
    pub fn is_upgraded(&self) -> bool {
        self.is_upgraded.get()
    }

    /// A WebSocket on one of its streams is as a connection of its own, but ends when this one does.
    pub fn carry(self: &Rc<Self>) -> Carried {
        let client = Self::new(self.address.get(), self.tls, self.sweep.clone());
        client.phase.set(Phase::Exchange);
        client.asked.set(true);
        client.is_upgraded.set(true);
        client.expired.set(self.expired.get());
        let key = self.carried.borrow_mut().insert(client.clone());
        Carried {
            client,
            key,
            by: self.clone(),
        }
    }

    /// Whether one of its streams carries a WebSocket.
    pub fn carries(&self) -> bool {
        !self.carried.borrow().is_empty()
    }

    /// Whether the close must linger.
    pub fn has_unread_body(&self) -> bool {
        self.unread_body.get()
    }
}

/// A connection whose latest head hyper refused.
pub struct Refused {
    /// What it can be closed by: hyper keeps the stream.
    pub socket: Option<Socket>,
    /// The limit that the head went beyond, unless it was malformed.
    pub limit: Option<Limit>,
}

/// A WebSocket on a stream; leaves its connection when dropped.
pub struct Carried {
    client: Rc<Client>,
    key: usize,
    by: Rc<Client>,
}

impl Carried {
    /// As a connection of its own.
    pub fn client(&self) -> &Rc<Client> {
        &self.client
    }
}

impl Drop for Carried {
    fn drop(&mut self) {
        self.by.carried.borrow_mut().remove(self.key);
    }
}

/// A running request; the connection is idle again when the last one is dropped.
pub struct RunningRequest(Rc<Client>);

impl Drop for RunningRequest {
    fn drop(&mut self) {
        let left = self.0.running.get() - 1;
        self.0.running.set(left);
        if left == 0 {
            self.0.enter(Phase::Idle);
        }
    }
}

#[cfg(test)]
mod tests;
