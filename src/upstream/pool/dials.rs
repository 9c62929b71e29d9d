//! How many connections a worker opens to one upstream at a time, and who waits meanwhile.
//!
//! An upstream that stalls (packets dropped, accept queue full) would cost a socket for every request that comes
//! until the first connect times out. So the dials in progress are counted, and further requests wait in the order
//! they came, for a place to dial or for a connection that is free again, whichever comes first.

use std::{collections::VecDeque, sync::Arc};

use tokio::sync::oneshot;

use super::{Idle, Pools};
use crate::upstream::{Upstream, http1::Connection};

/// The most dials in progress, per upstream and worker. Half of the smallest accept queue in wide use (128): what does
/// not fit there is sent again a second later, by which time a connect has timed out. And at 1 ms each, handshakes
/// included, it still opens 64,000 connections a second.
pub(super) const MOST_DIALS: usize = 64;

/// What a request can go on with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wants {
    /// Any connection: one that another request is done with, or a new one.
    Any,
    /// A new one alone.
    New,
}

/// What a request goes on with.
pub enum Granted<'p> {
    /// A connection that was free just now.
    Connection(Connection),
    /// A new one is to be dialled.
    Dial(DialPlace<'p>),
}

/// The right to dial. Dropped, however the dial ends, it goes to the next request that waits.
pub struct DialPlace<'p> {
    pools: &'p Pools,
    upstream: &'p Upstream,
}

/// The dials in progress to one upstream. Places are handed on, so somebody waits only while all are taken.
#[derive(Default)]
pub(super) struct Dials {
    running: usize,
    waiting: VecDeque<Waiter>,
}

struct Waiter {
    wants: Wants,
    give: oneshot::Sender<Given>,
}

enum Given {
    Connection(Idle),
    Place,
}

impl Pools {
    /// For a request that [found no idle connection](Pools::take): the right to dial one, or after a wait in turn what
    /// comes first of that and a connection given back. Takes as long as it takes: the caller bounds it.
    pub async fn grant<'p>(&'p self, upstream: &'p Arc<Upstream>, wants: Wants) -> Granted<'p> {
        loop {
            let waiting = self.slots.borrow_mut().pool(upstream).dials.ask(wants);
            let given = match waiting {
                None => Given::Place,
                Some(receiver) => {
                    let mut waiting = Waiting {
                        pools: self,
                        upstream,
                        receiver,
                    };
                    match (&mut waiting.receiver).await {
                        Ok(given) => given,
                        // The pool is gone, which it isn't while its upstream is there.
                        Err(_) => continue,
                    }
                }
            };
            match given {
                Given::Place => {
                    return Granted::Dial(DialPlace {
                        pools: self,
                        upstream,
                    });
                }
                Given::Connection(idle) if idle.connection.is_usable() => {
                    return Granted::Connection(idle.connection);
                }
                // It ended on its way here.
                Given::Connection(_) => {}
            }
        }
    }
}

impl Drop for DialPlace<'_> {
    fn drop(&mut self) {
        if let Some(pool) = self.pools.slots.borrow_mut().find(self.upstream.slot) {
            pool.dials.free();
        }
    }
}

/// A request in the queue. Given up, it passes on what it was given in the same moment.
struct Waiting<'p> {
    pools: &'p Pools,
    upstream: &'p Arc<Upstream>,
    receiver: oneshot::Receiver<Given>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.receiver.close();
        let Ok(given) = self.receiver.try_recv() else {
            return;
        };
        let mut slots = self.pools.slots.borrow_mut();
        match given {
            Given::Place => slots.pool(self.upstream).dials.free(),
            Given::Connection(idle) => slots.keep(self.upstream, idle),
        }
    }
}

impl Dials {
    /// A place to dial is taken (`None`), or its turn is to be waited for.
    fn ask(&mut self, wants: Wants) -> Option<oneshot::Receiver<Given>> {
        if self.running < MOST_DIALS {
            self.running += 1;
            return None;
        }
        let (give, receiver) = oneshot::channel();
        self.waiting.push_back(Waiter { wants, give });
        Some(receiver)
    }

    /// A dial has ended: its place goes to who waits longest.
    fn free(&mut self) {
        while let Some(waiter) = self.waiting.pop_front() {
            if waiter.give.send(Given::Place).is_ok() {
                return;
            }
        }
        self.running -= 1;
    }

    /// A free connection goes to who waits longest for any; back if nobody does.
    pub(super) fn offer(&mut self, mut idle: Idle) -> Option<Idle> {
        let mut next = 0;
        while let Some(waiter) = self.waiting.get(next) {
            if waiter.wants == Wants::New {
                next += 1;
                continue;
            }
            let waiter = self.waiting.remove(next)?;
            let Err(Given::Connection(refused)) = waiter.give.send(Given::Connection(idle)) else {
                return None;
            };
            idle = refused;
        }
        Some(idle)
    }

    pub(super) fn are_running(&self) -> bool {
        self.running > 0
    }

    /// Forgets who has given up waiting.
    pub(super) fn sweep(&mut self) {
        self.waiting.retain(|waiter| !waiter.give.is_closed());
    }
}

#[cfg(test)]
mod tests {
    use std::{
        pin::Pin,
        rc::Rc,
        task::{Context, Poll, Waker},
    };

    use tokio::net::UnixStream;

    use super::*;
    use crate::{
        sweep::Sweep,
        upstream::{Endpoint, testing, transport::Transport},
    };

    fn upstream() -> Arc<Upstream> {
        testing::alone(&testing::plain(Endpoint::Unix("/nowhere".into())))
    }

    fn connection() -> (Connection, UnixStream) {
        let (near, far) = UnixStream::pair().unwrap();
        (Connection::new(Transport::Unix(near)), far)
    }

    /// A request that may wait.
    struct Request<'p>(Pin<Box<dyn Future<Output = Granted<'p>> + 'p>>);

    impl<'p> Request<'p> {
        fn of(pools: &'p Pools, upstream: &'p Arc<Upstream>, wants: Wants) -> Self {
            let mut request = Self(Box::pin(pools.grant(upstream, wants)));
            assert!(request.poll().is_none(), "every place is taken");
            request
        }

        fn poll(&mut self) -> Option<Granted<'p>> {
            let cx = &mut Context::from_waker(Waker::noop());
            match self.0.as_mut().poll(cx) {
                Poll::Ready(granted) => Some(granted),
                Poll::Pending => None,
            }
        }

        fn may_dial(&mut self) -> Option<DialPlace<'p>> {
            self.poll().map(|granted| match granted {
                Granted::Dial(place) => place,
                Granted::Connection(_) => panic!("a connection"),
            })
        }

        fn has_connection(&mut self) -> bool {
            matches!(self.poll(), Some(Granted::Connection(_)))
        }
    }

    async fn dialling<'p>(pools: &'p Pools, upstream: &'p Arc<Upstream>) -> Vec<DialPlace<'p>> {
        let mut places = Vec::new();
        for _ in 0..MOST_DIALS {
            match pools.grant(upstream, Wants::Any).await {
                Granted::Dial(place) => places.push(place),
                Granted::Connection(_) => panic!("nobody gave one"),
            }
        }
        places
    }

    #[tokio::test]
    async fn places_are_few_and_go_to_who_waits_longest() {
        let (pools, upstream) = (Pools::new(Rc::new(Sweep::default())), upstream());
        let mut places = dialling(&pools, &upstream).await;
        let mut waiting = [0; 4].map(|_| Request::of(&pools, &upstream, Wants::Any));
        places.pop();
        assert!(waiting[1].poll().is_none());
        let first = waiting[0].may_dial().expect("its turn");
        let [_, mut second, third, mut fourth] = waiting;
        // Given up while it waits, and given up with the place already given.
        drop(third);
        drop(first);
        drop(second.may_dial().expect("its turn"));
        places.push(fourth.may_dial().expect("its turn"));
        let mut last = Request::of(&pools, &upstream, Wants::Any);
        let unpolled = Request::of(&pools, &upstream, Wants::Any);
        places.truncate(MOST_DIALS - 3);
        drop((last.may_dial(), unpolled));
        // Not one place was lost: they are all free again.
        places.clear();
        pools.sweep();
        assert!(pools.slots.borrow_mut().find(upstream.slot).is_none());
        assert_eq!(dialling(&pools, &upstream).await.len(), MOST_DIALS);
    }

    #[tokio::test]
    async fn a_connection_given_back_goes_to_who_waits_for_any() {
        let (pools, upstream) = (Pools::new(Rc::new(Sweep::default())), upstream());
        let _places = dialling(&pools, &upstream).await;
        let mut new = Request::of(&pools, &upstream, Wants::New);
        let gone = Request::of(&pools, &upstream, Wants::Any);
        let mut first = Request::of(&pools, &upstream, Wants::Any);
        let mut second = Request::of(&pools, &upstream, Wants::Any);
        drop(gone);
        let (connection, _far) = connection();
        pools.put(&upstream, connection, None);
        assert!(
            pools.take(&upstream).is_none(),
            "whoever comes now is later"
        );
        assert!(new.poll().is_none() && second.poll().is_none());
        // Given up in the very moment it was given one: the next in turn has it.
        drop(first);
        assert!(second.has_connection());

        let (connection, _far) = self::connection();
        first = Request::of(&pools, &upstream, Wants::Any);
        pools.put(&upstream, connection, None);
        drop(first);
        assert!(pools.take(&upstream).is_some(), "nobody waits: it is idle");

        // One that has ended meanwhile is none.
        let mut third = Request::of(&pools, &upstream, Wants::Any);
        let (connection, far) = self::connection();
        pools.put(&upstream, connection, None);
        drop(far);
        tokio::task::yield_now().await;
        assert!(third.poll().is_none(), "it waits on");
        let (connection, _far) = self::connection();
        pools.put(&upstream, connection, None);
        assert!(third.has_connection());
    }

    #[tokio::test]
    async fn who_gave_up_waiting_is_forgotten() {
        let (pools, upstream) = (Pools::new(Rc::new(Sweep::default())), upstream());
        let _places = dialling(&pools, &upstream).await;
        for _ in 0..1000 {
            drop(Request::of(&pools, &upstream, Wants::Any));
        }
        let kept = Request::of(&pools, &upstream, Wants::Any);
        pools.sweep();
        let mut slots = pools.slots.borrow_mut();
        let waiting = slots.find(upstream.slot).unwrap().dials.waiting.len();
        drop(slots);
        drop(kept);
        assert_eq!(waiting, 1);
    }
}
