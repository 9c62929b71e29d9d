//! The HTTP/2 connections of one worker, by upstream: who shares which, and when another one is opened.

mod share;

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    rc::Rc,
    sync::{Arc, Weak},
    time::Duration,
};

use tokio::{sync::oneshot, task::spawn_local};
use tracing::debug;

use super::connection::{Connection, Made};
use crate::{
    sweep::{Deadline, Sweep},
    upstream::{
        Slot, Upstream,
        dial::{DialError, Dialler},
    },
};

/// The most connections to one upstream that one worker opens streams on.
const MAX_CONNECTIONS: usize = 64;
/// The same with those that take no further streams and end with their last one, which may be hours away.
const MAX_CLOSING_TOO: usize = 1024;
/// The most requests that wait for a stream of one upstream.
const MAX_WAITING: usize = 1024;
/// How long a connection that is being closed may take over it, without streams.
const CLOSING: Duration = Duration::from_secs(10);

/// All HTTP/2 connections of one worker: a look-up is an index into a vector (see [`Slot`]).
pub struct Pools {
    slots: RefCell<Vec<Option<Rc<Pool>>>>,
    /// All that have connections, those of upstreams that are gone included.
    all: RefCell<Vec<Rc<Pool>>>,
    dialler: Rc<Dialler>,
    sweep: Rc<Sweep>,
}

/// Why there is no stream.
#[derive(Debug)]
pub enum NoStream {
    /// The dial failed; for everybody who waited for it.
    Dial(Rc<DialError>),
    /// The dial took too long.
    Slow,
    /// Every stream of every connection is taken, and stayed so.
    Full,
}

/// A place for one stream on a connection; left when dropped.
pub struct Lease {
    pub(super) connection: Rc<Connection>,
    pool: Rc<Pool>,
}

impl Pools {
    /// No connections yet.
    pub fn new(sweep: Rc<Sweep>, dialler: Rc<Dialler>) -> Self {
        Self {
            slots: RefCell::default(),
            all: RefCell::default(),
            dialler,
            sweep,
        }
    }

    /// A place on a connection with room for one more stream. If there is none, it waits for one, at most for
    /// `patience`: on a new connection, or where another stream ends.
    pub async fn acquire(
        &self,
        upstream: &Arc<Upstream>,
        patience: Duration,
        deadline: &Deadline,
    ) -> Result<Lease, NoStream> {
        let pool = self.pool(upstream);
        if let Some(lease) = pool.lease() {
            return Ok(lease);
        }
        let granted = pool.wait(patience)?;
        deadline.arm(patience);
        let granted = deadline.limit(granted).await;
        deadline.disarm();
        match granted {
            Some(Ok(Ok(lease))) => Ok(lease),
            Some(Ok(Err(error))) => Err(NoStream::Dial(error)),
            // Nobody lets go of a waiter without a word, and if so it is as good as none.
            Some(Err(_)) => Err(NoStream::Slow),
            None if pool.open() == 0 => Err(NoStream::Slow),
            None => Err(NoStream::Full),
        }
    }

    /// Closes what is idle, dead, or has lost its upstream. Called about once a second.
    pub fn sweep(&self) {
        let mut all = self.all.take();
        all.retain(|pool| {
            pool.sweep();
            let in_use = pool.is_in_use();
            if !in_use {
                let slot = &mut self.slots.borrow_mut()[pool.slot.index as usize];
                if slot
                    .as_ref()
                    .is_some_and(|current| Rc::ptr_eq(current, pool))
                {
                    *slot = None;
                }
            }
            in_use
        });
        self.all.borrow_mut().append(&mut all);
    }

    fn pool(&self, upstream: &Arc<Upstream>) -> Rc<Pool> {
        let slots = &mut *self.slots.borrow_mut();
        let index = upstream.slot.index as usize;
        if slots.len() <= index {
            slots.resize_with(index + 1, || None);
        }
        match &slots[index] {
            Some(pool) if pool.slot == upstream.slot => pool.clone(),
            // The former owner's streams run to their ends, see `sweep`.
            _ => {
                let pool = Rc::new(Pool {
                    upstream: Arc::downgrade(upstream),
                    slot: upstream.slot,
                    connections: RefCell::default(),
                    waiting: RefCell::default(),
                    dialling: Cell::new(0),
                    expected: Cell::new(super::MAX_STREAMS),
                    dialler: self.dialler.clone(),
                    sweep: self.sweep.clone(),
                });
                self.all.borrow_mut().push(pool.clone());
                slots[index] = Some(pool.clone());
                pool
            }
        }
    }
}

struct Pool {
    upstream: Weak<Upstream>,
    slot: Slot,
    /// In the order they were made; the first with room is taken, so that what a burst opened falls idle again.
    connections: RefCell<Vec<Rc<Connection>>>,
    waiting: RefCell<VecDeque<Waiter>>,
    /// Dials in progress.
    dialling: Cell<usize>,
    /// The streams that the next connection is thought to take: as many as the last one did.
    expected: Cell<usize>,
    dialler: Rc<Dialler>,
    sweep: Rc<Sweep>,
}

type Grant = Result<Lease, Rc<DialError>>;

struct Waiter {
    grant: oneshot::Sender<Grant>,
    patience: Duration,
}

impl Pool {
    fn lease(self: &Rc<Self>) -> Option<Lease> {
        let connections = self.connections.borrow();
        let connection = connections
            .iter()
            .find(|connection| connection.has_room())?;
        connection.enter();
        Some(Lease {
            connection: connection.clone(),
            pool: self.clone(),
        })
    }

    fn wait(self: &Rc<Self>, patience: Duration) -> Result<oneshot::Receiver<Grant>, NoStream> {
        let (grant, granted) = oneshot::channel();
        {
            let mut waiting = self.waiting.borrow_mut();
            if waiting.len() >= MAX_WAITING {
                waiting.retain(|waiter| !waiter.grant.is_closed());
            }
            if waiting.len() >= MAX_WAITING {
                return Err(NoStream::Full);
            }
            waiting.push_back(Waiter { grant, patience });
        }
        self.grow();
        Ok(granted)
    }

    /// Gives those who wait what room there is, first come, first served.
    fn serve(self: &Rc<Self>) {
        while !self.waiting.borrow().is_empty() {
            let Some(lease) = self.lease() else {
                return;
            };
            // Nothing is borrowed here: a waiter that has left drops the lease, which comes back to this function.
            let waiter = self.waiting.borrow_mut().pop_front();
            if let Some(waiter) = waiter {
                let _ = waiter.grant.send(Ok(lease));
            }
        }
    }

    /// Opens as many connections as those who wait need.
    fn grow(self: &Rc<Self>) {
        while let Some(patience) = self.wants_connection() {
            let Some(upstream) = self.upstream.upgrade() else {
                return;
            };
            self.dialling.set(self.dialling.get() + 1);
            spawn_local(self.clone().dial(upstream, patience));
        }
    }

    /// How many connections may get further streams.
    fn open(&self) -> usize {
        let connections = self.connections.borrow();
        let open = connections
            .iter()
            .filter(|connection| !connection.is_closing());
        open.count()
    }

    /// How long whoever needs it waits for it.
    fn wants_connection(&self) -> Option<Duration> {
        let mut waiting = self.waiting.borrow_mut();
        waiting.retain(|waiter| !waiter.grant.is_closed());
        let patience = waiting.front()?.patience;
        let connections = self.connections.borrow();
        // An upstream that takes no streams now would take none on another connection.
        let takes_none =
            |connection: &Rc<Connection>| !connection.is_closing() && connection.limit() == 0;
        let wanted = waiting.len() > self.dialling.get() * self.expected.get()
            && self.open() + self.dialling.get() < MAX_CONNECTIONS
            && connections.len() + self.dialling.get() < MAX_CLOSING_TOO
            && !connections.iter().any(takes_none);
        wanted.then_some(patience)
    }

    /// One dial, for whoever waits when it is done. One that takes too long is given up, and those who have more
    /// patience get another.
    async fn dial(self: Rc<Self>, upstream: Arc<Upstream>, patience: Duration) {
        let deadline = self.sweep.deadline();
        deadline.arm(patience);
        let making = Connection::make(&self.dialler, &upstream, &self.sweep);
        let made = deadline.limit(making).await;
        self.dialling.set(self.dialling.get() - 1);
        match made {
            Some(Ok(made)) => self.add(made, &upstream),
            Some(Err(error)) => self.fail(error),
            None => self.grow(),
        }
    }

    fn add(self: &Rc<Self>, Made { connection, driver }: Made, upstream: &Arc<Upstream>) {
        self.expected.set(connection.limit().max(1));
        self.connections.borrow_mut().push(connection.clone());
        let ending = Ending {
            pool: Rc::downgrade(self),
            connection: connection.clone(),
        };
        let name = upstream.name.clone();
        let driver = spawn_local(async move {
            let ended = driver.run().await;
            match ended {
                Ok(()) => debug!(upstream = %name, "HTTP/2 connection ended"),
                Err(error) => debug!(upstream = %name, %error, "HTTP/2 connection ended"),
            }
            let pool = ending.pool.clone();
            drop(ending);
            if let Some(pool) = pool.upgrade() {
                pool.grow();
            }
        });
        connection.driven_by(driver.abort_handle());
        self.serve();
        self.grow();
    }

    /// Those who wait hear of it, unless there is still something to wait for.
    fn fail(self: &Rc<Self>, error: DialError) {
        let is_hopeless = self.dialling.get() == 0 && self.open() == 0;
        if !is_hopeless {
            return;
        }
        let error = Rc::new(error);
        for waiter in self.waiting.take() {
            let _ = waiter.grant.send(Err(error.clone()));
        }
    }

    fn sweep(self: &Rc<Self>) {
        let now = self.sweep.now();
        let upstream = self.upstream.upgrade();
        let upstream = upstream.filter(|upstream| upstream.is_listed());
        let options = upstream.as_ref().map(|upstream| upstream.pool_options());
        let connections = self.connections.borrow().clone();
        for connection in connections {
            let idle = connection
                .idle_since()
                .map(|since| now.saturating_sub(since));
            if connection.is_closing() {
                connection.close();
                if idle.is_some_and(|idle| idle > Sweep::ticks(CLOSING)) {
                    connection.abort();
                }
            } else if options.is_none_or(|options| connection.is_spent(options, now)) {
                connection.retire(now);
            }
            if connection.is_dead() {
                debug!("an HTTP/2 connection does not answer pings");
                connection.abort();
            }
        }
        // An upstream may allow more streams than before without any having ended.
        self.serve();
        self.grow();
    }

    fn is_in_use(&self) -> bool {
        self.dialling.get() > 0
            || !self.connections.borrow().is_empty()
            || !self.waiting.borrow().is_empty()
    }
}

/// Takes a connection out of its pool at its end, however that comes: it is dropped with the driver's task.
struct Ending {
    pool: std::rc::Weak<Pool>,
    connection: Rc<Connection>,
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.connection.close();
        let Some(pool) = self.pool.upgrade() else {
            return;
        };
        let is_other = |other: &Rc<Connection>| !Rc::ptr_eq(other, &self.connection);
        pool.connections.borrow_mut().retain(is_other);
    }
}

impl Lease {
    /// A deadline, not armed yet.
    pub(super) fn deadline(&self) -> Deadline {
        self.pool.sweep.deadline()
    }

    /// Whether the upstream takes WebSockets on it (RFC 8441 section 3).
    pub fn takes_websockets(&self) -> bool {
        self.connection.takes_websockets()
    }

    /// Whether its connection has served requests.
    pub fn is_proven(&self) -> bool {
        self.connection.is_proven.get()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.connection.leave(self.pool.sweep.now());
        self.pool.serve();
    }
}
