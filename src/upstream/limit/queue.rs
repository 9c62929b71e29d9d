//! Requests of one route that wait for another one's end, of whichever worker: who came first has the first turn,
//! among those who can use what is free.

use std::{
    collections::VecDeque,
    future::poll_fn,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
};

use super::Limit;

/// A queue of requests, shared by all workers.
#[derive(Debug, Default)]
pub struct Queue {
    waiting: Mutex<Waiting>,
    /// How many wait: so that whoever finds nobody waiting needs no lock.
    length: AtomicUsize,
    /// How many of them go anywhere.
    unbound: AtomicUsize,
}

#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    /// In the order they came.
    places: VecDeque<Place>,
}

#[derive(Debug)]
struct Place {
    number: u64,
    seeks: Seeks,
    /// It may be its turn.
    is_called: bool,
    waker: Option<Waker>,
}

/// What a request waits for: room in the route, and at a member.
#[derive(Debug, Default)]
pub struct Seeks {
    /// The limit of the route; `None` if it has none, or the request its place in it.
    pub route: Option<Arc<Limit>>,
    /// Those of the members that it can use; `None`: any will do.
    pub members: Option<Box<[Arc<Limit>]>>,
}

/// A place in a queue; dropping it leaves the queue.
#[derive(Debug)]
pub struct Turn {
    queue: Arc<Queue>,
    number: u64,
}

impl Queue {
    /// How many wait.
    pub fn length(&self) -> usize {
        self.length.load(Ordering::SeqCst)
    }

    /// Whether somebody waits who goes to any member.
    pub fn has_unbound(&self) -> bool {
        self.unbound.load(Ordering::SeqCst) > 0
    }

    /// A place behind all others; `None` if there are `most` already. Who has the first is called at once; anybody else
    /// is to [`wake`](Self::wake) the queue if there is room by now.
    pub fn join(self: &Arc<Self>, most: usize, seeks: Seeks) -> Option<Turn> {
        let mut waiting = self.lock();
        if waiting.places.len() >= most {
            return None;
        }
        match &seeks.members {
            None => _ = self.unbound.fetch_add(1, Ordering::SeqCst),
            Some(members) => members.iter().for_each(|limit| limit.seek()),
        }
        let (number, is_called) = (waiting.next, waiting.places.is_empty());
        waiting.next += 1;
        waiting.places.push_back(Place {
            number,
            seeks,
            is_called,
            waker: None,
        });
        // Before whoever joins looks whether there is room: who makes room after that sees that somebody waits.
        self.length.store(waiting.places.len(), Ordering::SeqCst);
        Some(Turn {
            queue: self.clone(),
            number,
        })
    }

    /// There may be room: calls who waits longest of those that can use it.
    pub fn wake(&self) {
        if self.length() > 0 {
            self.lock().call_from(0);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting
            .lock()
            .expect("no code panics while holding this lock")
    }
}

impl Turn {
    /// Waits until it is called. It keeps its place; whoever finds no room is called again when there is.
    pub async fn called(&self) {
        poll_fn(|cx| self.poll_called(cx)).await;
    }

    fn poll_called(&self, cx: &Context<'_>) -> Poll<()> {
        let mut waiting = self.queue.lock();
        let Some(index) = waiting.index(self.number) else {
            return Poll::Ready(());
        };
        let place = &mut waiting.places[index];
        if std::mem::take(&mut place.is_called) {
            return Poll::Ready(());
        }
        match &mut place.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            waker => *waker = Some(cx.waker().clone()),
        }
        Poll::Pending
    }

    /// Whether nobody waits longer. Who comes to be first is called.
    pub fn is_first(&self) -> bool {
        self.queue.lock().index(self.number) == Some(0)
    }

    /// There is room that it has no use for: calls the next one that has.
    pub fn pass_on(&self) {
        let mut waiting = self.queue.lock();
        if let Some(index) = waiting.index(self.number) {
            waiting.call_from(index + 1);
        }
    }
}

impl Drop for Turn {
    /// Whatever it was called for, or left of it, is the next one's.
    fn drop(&mut self) {
        let mut waiting = self.queue.lock();
        let index = waiting.index(self.number);
        let Some((index, place)) =
            index.and_then(|index| Some((index, waiting.places.remove(index)?)))
        else {
            return;
        };
        match &place.seeks.members {
            None => _ = self.queue.unbound.fetch_sub(1, Ordering::SeqCst),
            Some(members) => members.iter().for_each(|limit| limit.give_up()),
        }
        let length = waiting.places.len();
        self.queue.length.store(length, Ordering::SeqCst);
        if index == 0 {
            call(waiting.places.front_mut());
        }
        waiting.call_from(index);
    }
}

impl Waiting {
    fn index(&self, number: u64) -> Option<usize> {
        let found = self
            .places
            .binary_search_by_key(&number, |place| place.number);
        found.ok()
    }

    /// Calls the first, from this place on, that can use what is free.
    fn call_from(&mut self, index: usize) {
        let mut places = self.places.iter_mut().skip(index);
        call(places.find(|place| place.seeks.may_be_there()));
    }
}

impl Seeks {
    /// Whether there may be what it waits for. (A member without a limit may be free at any time.)
    fn may_be_there(&self) -> bool {
        let is_free = |limit: &Arc<Limit>| !limit.is_full();
        let members = self.members.as_deref();
        self.route.as_ref().is_none_or(is_free)
            && members.is_none_or(|members| members.iter().any(is_free))
    }
}

fn call(place: Option<&mut Place>) {
    if let Some(place) = place {
        place.is_called = true;
        if let Some(waker) = place.waker.take() {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    fn is_called(turn: &Turn) -> bool {
        let cx = Context::from_waker(Waker::noop());
        turn.poll_called(&cx).is_ready()
    }

    /// One that takes any member.
    fn join(queue: &Arc<Queue>) -> Turn {
        queue.join(9, Seeks::default()).expect("room")
    }

    #[test]
    fn who_waits_longest_is_called_first_and_keeps_its_place() {
        let queue = Arc::<Queue>::default();
        let [first, second, third] = [(); 3].map(|()| join(&queue));
        assert!(queue.join(3, Seeks::default()).is_none(), "it is full");
        assert!(is_called(&first), "it may be its turn at once");
        assert!(!is_called(&first) && !is_called(&second));
        queue.wake();
        assert!(is_called(&first) && !is_called(&second));
        first.pass_on();
        assert!(is_called(&second) && !is_called(&third));
        queue.wake();
        assert!(is_called(&first), "still the first");
        assert!(first.is_first() && !second.is_first());
        drop(first);
        assert!(is_called(&second), "there may be more room");
        assert!(second.is_first() && !is_called(&third));
    }

    #[test]
    fn who_leaves_with_a_call_leaves_it_to_the_next() {
        let queue = Arc::<Queue>::default();
        let [first, second, third] = [(); 3].map(|()| join(&queue));
        assert!(is_called(&first));
        queue.wake();
        drop(first);
        assert!(is_called(&second));
        drop(third);
        assert_eq!(queue.length(), 1);
        drop(second);
        assert_eq!(queue.length(), 0);
        queue.wake();
    }

    #[test]
    fn only_who_can_use_what_is_free_is_called() {
        let queue = Arc::<Queue>::default();
        let [route, a, b] = [2, 1, 1].map(|most| {
            let most = NonZeroU32::new(most).expect("over 0");
            Limit::new(most, queue.clone())
        });
        let [at_a, at_b] = [a.take(), b.take()];
        let only = |limit: &Arc<Limit>| Seeks {
            route: Some(route.clone()),
            members: Some(Box::new([limit.clone()])),
        };
        let [for_a, for_b] = [&a, &b].map(|limit| queue.join(9, only(limit)).expect("room"));
        assert!(is_called(&for_a), "the first may look at once");
        assert!(a.is_sought() && b.is_sought() && !route.is_sought());
        drop(at_b);
        assert!(!is_called(&for_a) && is_called(&for_b));

        // Whoever goes anywhere seeks both; a full route is of no use to either.
        drop(for_b);
        assert!(!b.is_sought());
        let anybody = queue.join(
            9,
            Seeks {
                route: Some(route.clone()),
                members: None,
            },
        );
        let anybody = anybody.expect("room");
        assert!(b.is_sought());
        let in_route = [route.take(), route.take()];
        queue.wake();
        assert!(!is_called(&for_a) && !is_called(&anybody));
        drop(in_route);
        assert!(!is_called(&for_a) && is_called(&anybody));
        drop(at_a);
        assert!(is_called(&for_a) && !is_called(&anybody));
        drop((for_a, anybody));
        assert!(!a.is_sought() && !b.is_sought());
    }
}
