//! A route of ten upstreams in virtual time, balanced by Waypost's own code.
//!
//! Seven upstreams are ordinary: four requests at a time, 40 ms each on average, the others queue. One is slow, five times
//! as slow. One flaps: it refuses connections for 3 s, or takes requests and says nothing for 3 s. One is new: it
//! joins after 30 s, and is as slow as the slow one until it has warmed up over its first 1,000 requests.
//!
//! As in Waypost by default, a refused connection is tried elsewhere, an answer that takes over a second (a route's
//! `timeouts.response`, here) is an error, and five failures in a row eject an upstream, for 30 s the first time and 30 s more each
//! further time, never over half of them. Ejection and slow start are modelled, picks are real.
//!
//! Whole numbers throughout, and no clock: every run and every machine gets the same figures.

use std::{cmp::Reverse, collections::BinaryHeap, collections::VecDeque};

use waypost::upstream::balancer::{Balancer, random};

use super::{chance::Chance, policy::Policy};

/// Nanoseconds.
type Time = u64;

const MILLISECOND: Time = 1_000_000;
const SECOND: Time = 1000 * MILLISECOND;

/// How long requests come in.
const END: Time = 120 * SECOND;
const UPSTREAMS: usize = 10;
pub const SLOW: usize = 7;
const FLAPPING: usize = 8;
const NEW: usize = 9;
/// Those without a name above.
pub const ORDINARY: std::ops::Range<usize> = 0..7;

const SLOTS: usize = 4;
const SERVICE: Time = 40 * MILLISECOND;
const SLOWNESS: Time = 5;
const TIMEOUT: Time = SECOND;
const JOINS: Time = 30 * SECOND;
/// Of the new one, until it is warm.
const COLD_REQUESTS: u64 = 1000;
/// When the flapping one refuses, and when it says nothing.
const REFUSES: [Time; 2] = [20 * SECOND, 100 * SECOND];
const HANGS: [Time; 1] = [60 * SECOND];
const BAD_FOR: Time = 3 * SECOND;

const FAILURES_TO_EJECT: u32 = 5;
const EJECTION: Time = 30 * SECOND;
const MOST_EJECTED: usize = UPSTREAMS / 2;
const MOST_TRIED: usize = 8;
const SLOW_START: Time = 30 * SECOND;

/// Clients, whose requests the hash keeps together. The first sends 5 % of all requests, the last hardly any.
const CLIENTS: u64 = 2000;

/// One run.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    pub policy: Policy,
    /// Requests, of what ten ordinary upstreams could serve, in percent.
    pub load_percent: u64,
    pub slow_start: bool,
}

/// What came of it.
#[derive(Default)]
pub struct Outcome {
    /// How long each request took, errors too, in ascending order.
    pub took: Vec<Time>,
    /// Requests answered with an error.
    pub errors: usize,
    /// Attempts at each upstream.
    pub attempts: [usize; UPSTREAMS],
    /// How long those took that the new upstream got in its first 10 s, in ascending order.
    pub took_at_new: Vec<Time>,
}

/// So much of a sorted list is below the answer, in ten-thousandths, as milliseconds.
pub fn percentile(sorted: &[Time], ten_thousandths: usize) -> u64 {
    let rank = (sorted.len() * ten_thousandths / 10_000).min(sorted.len().saturating_sub(1));
    sorted
        .get(rank)
        .map_or(0, |took| took.div_ceil(MILLISECOND))
}

impl Setup {
    pub fn run(self) -> Outcome {
        random::reseed(1);
        World::new(self).run()
    }
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrives,
    Joins,
    /// This attempt is answered.
    Ends(usize),
    /// This attempt took too long.
    TimesOut(usize),
}

struct Attempt {
    upstream: usize,
    request: usize,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Queued,
    Served,
    Over,
}

struct Request {
    begun: Time,
    key: u64,
    tried: Vec<usize>,
}

#[derive(Default)]
struct Upstream {
    queue: VecDeque<usize>,
    busy: usize,
    in_flight: u32,
    served: u64,
    failures: u32,
    ejections: u64,
    ejected_until: Time,
}

struct World {
    setup: Setup,
    balancer: Balancer,
    upstreams: [Upstream; UPSTREAMS],
    requests: Vec<Request>,
    attempts: Vec<Attempt>,
    /// By time, then in the order they were planned.
    events: BinaryHeap<Reverse<(Time, u64, Event)>>,
    planned: u64,
    now: Time,
    chance: Chance,
    /// The sums of the clients' shares up to each.
    clients: Vec<u64>,
    outcome: Outcome,
}

fn balancer(setup: Setup, members: usize, previous: Option<&Balancer>) -> Balancer {
    const ADDRESSES: [&str; UPSTREAMS] = [
        "10.0.0.1:80",
        "10.0.0.2:80",
        "10.0.0.3:80",
        "10.0.0.4:80",
        "10.0.0.5:80",
        "10.0.0.6:80",
        "10.0.0.7:80",
        "10.0.0.8:80",
        "10.0.0.9:80",
        "10.0.0.10:80",
    ];
    let weights = &[1; UPSTREAMS][..members];
    Balancer::new(
        setup.policy.balance(),
        weights,
        |member| ADDRESSES[member],
        previous,
    )
}

impl World {
    fn new(setup: Setup) -> Self {
        let mut sum = 0;
        let share = |rank| {
            sum += 1_000_000_000 / (rank + 3);
            sum
        };
        Self {
            setup,
            balancer: balancer(setup, UPSTREAMS - 1, None),
            upstreams: Default::default(),
            requests: Vec::new(),
            attempts: Vec::new(),
            events: BinaryHeap::new(),
            planned: 0,
            now: 0,
            chance: Chance::new(1),
            clients: (0..CLIENTS).map(share).collect(),
            outcome: Outcome::default(),
        }
    }

    fn run(mut self) -> Outcome {
        self.plan(0, Event::Arrives);
        self.plan(JOINS, Event::Joins);
        while let Some(Reverse((time, _, event))) = self.events.pop() {
            self.now = time;
            match event {
                Event::Arrives => self.arrive(),
                Event::Joins => {
                    self.balancer = balancer(self.setup, UPSTREAMS, Some(&self.balancer))
                }
                Event::Ends(attempt) => self.end(attempt),
                Event::TimesOut(attempt) => self.time_out(attempt),
            }
        }
        self.outcome.took.sort_unstable();
        self.outcome.took_at_new.sort_unstable();
        self.outcome
    }

    fn plan(&mut self, at: Time, event: Event) {
        self.planned += 1;
        self.events.push(Reverse((at, self.planned, event)));
    }

    fn arrive(&mut self) {
        let capacity = (UPSTREAMS * SLOTS) as u64 * self.setup.load_percent;
        let next = self.now + self.chance.exponential(SERVICE * 100 / capacity);
        if next < END {
            self.plan(next, Event::Arrives);
        }
        let everybody = self.clients[self.clients.len() - 1];
        let drawn = self.chance.below(everybody);
        let client = self.clients.partition_point(|&sum| sum <= drawn) as u64;
        self.requests.push(Request {
            begun: self.now,
            // Spread over all keys, as a hash is.
            key: (client + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15),
            tried: Vec::new(),
        });
        self.send(self.requests.len() - 1);
    }

    /// To an upstream; to another at once while connections are refused.
    fn send(&mut self, request: usize) {
        while self.requests[request].tried.len() < MOST_TRIED {
            let Some(upstream) = self.pick(request) else {
                break;
            };
            self.outcome.attempts[upstream] += 1;
            self.requests[request].tried.push(upstream);
            if upstream == FLAPPING && self.is_bad(&REFUSES) {
                self.fail(upstream);
                continue;
            }
            let attempt = self.attempts.len();
            self.attempts.push(Attempt {
                upstream,
                request,
                state: State::Queued,
            });
            self.upstreams[upstream].in_flight += 1;
            self.upstreams[upstream].queue.push_back(attempt);
            self.plan(self.now + TIMEOUT, Event::TimesOut(attempt));
            return self.serve(upstream);
        }
        self.outcome.errors += 1;
        self.outcome
            .took
            .push(self.now - self.requests[request].begun);
    }

    fn pick(&mut self, request: usize) -> Option<usize> {
        let ramp = self.ramp();
        let is_new_taken = ramp == 100 || self.chance.below(100) < ramp;
        let Request { key, ref tried, .. } = self.requests[request];
        let is_in = |member: usize| self.upstreams[member].ejected_until <= self.now;
        let is_usable = |member: usize| {
            !tried.contains(&member) && is_in(member) && (member != NEW || is_new_taken)
        };
        let in_flight = |member: usize| match self.setup.policy {
            Policy::HashUnbounded => 0,
            _ => self.upstreams[member].in_flight,
        };
        match tried.is_empty() {
            true => self.balancer.pick(Some(key), is_usable, in_flight),
            false => self.balancer.pick_again(Some(key), is_usable, in_flight),
        }
    }

    /// Of its share, what the new upstream gets by now, in percent.
    fn ramp(&self) -> u64 {
        let age = self.now.saturating_sub(JOINS);
        match self.setup.slow_start && age < SLOW_START {
            true => (100 * age / SLOW_START).max(10),
            false => 100,
        }
    }

    /// Begins what this upstream has room for.
    fn serve(&mut self, upstream: usize) {
        while self.upstreams[upstream].busy < SLOTS {
            let Some(attempt) = self.upstreams[upstream].queue.pop_front() else {
                return;
            };
            if self.attempts[attempt].state == State::Over {
                continue;
            }
            self.attempts[attempt].state = State::Served;
            self.upstreams[upstream].busy += 1;
            if upstream == FLAPPING && self.is_bad(&HANGS) {
                continue;
            }
            self.upstreams[upstream].served += 1;
            let cold = COLD_REQUESTS.saturating_sub(self.upstreams[upstream].served);
            let mean = match upstream {
                SLOW => SERVICE * SLOWNESS,
                NEW => SERVICE + SERVICE * (SLOWNESS - 1) * cold / COLD_REQUESTS,
                _ => SERVICE,
            };
            let ends = self.now + self.chance.exponential(mean);
            self.plan(ends, Event::Ends(attempt));
        }
    }

    fn end(&mut self, attempt: usize) {
        if self.attempts[attempt].state == State::Over {
            return;
        }
        let upstream = self.close(attempt);
        self.upstreams[upstream].failures = 0;
        self.serve(upstream);
    }

    fn time_out(&mut self, attempt: usize) {
        if self.attempts[attempt].state == State::Over {
            return;
        }
        self.outcome.errors += 1;
        let upstream = self.close(attempt);
        self.fail(upstream);
        self.serve(upstream);
    }

    /// The client has its answer, the upstream its slot back.
    fn close(&mut self, attempt: usize) -> usize {
        let Attempt {
            upstream,
            request,
            state,
        } = self.attempts[attempt];
        self.attempts[attempt].state = State::Over;
        self.upstreams[upstream].in_flight -= 1;
        if state == State::Served {
            self.upstreams[upstream].busy -= 1;
        }
        let begun = self.requests[request].begun;
        self.outcome.took.push(self.now - begun);
        if upstream == NEW && begun < JOINS + 10 * SECOND {
            self.outcome.took_at_new.push(self.now - begun);
        }
        upstream
    }

    fn fail(&mut self, upstream: usize) {
        let is_out = |upstream: &&Upstream| upstream.ejected_until > self.now;
        let out = self.upstreams.iter().filter(is_out).count();
        let failed = &mut self.upstreams[upstream];
        failed.failures += 1;
        let is_in = failed.ejected_until <= self.now;
        if failed.failures >= FAILURES_TO_EJECT && is_in && out < MOST_EJECTED {
            failed.failures = 0;
            failed.ejections += 1;
            failed.ejected_until = self.now + EJECTION * failed.ejections;
        }
    }

    fn is_bad(&self, since: &[Time]) -> bool {
        since
            .iter()
            .any(|since| (*since..since + BAD_FOR).contains(&self.now))
    }
}
