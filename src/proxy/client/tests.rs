//! When a connection is busy, and what its limits lead to.

use super::*;
use crate::sweep::TICK;

fn client(protocol: Protocol) -> (Rc<Sweep>, Rc<Client>) {
    let sweep = Rc::new(Sweep::default());
    let client = Client::new(([127, 0, 0, 1], 1).into(), false, sweep.clone());
    client.opened(protocol);
    (sweep, client)
}

fn after(duration: Duration) -> Tick {
    Sweep::ticks(duration + TICK)
}

#[test]
fn only_http1_bytes_between_requests_begin_a_head() {
    for (protocol, phase) in [
        (Protocol::Http1, Phase::Head),
        (Protocol::Http2, Phase::Idle),
    ] {
        let (_, client) = client(protocol);
        client.received();
        assert_eq!(client.phase(), phase, "{protocol:?}");
    }
}

#[test]
fn a_connection_is_busy_while_its_end_would_cost_a_request() {
    let (sweep, client) = client(Protocol::Http1);
    assert!(client.is_busy(), "the first request may be under way");
    sweep.advance(after(FIRST_REQUEST));
    assert!(!client.is_busy());
    client.received();
    assert!(client.is_busy(), "a head is coming in");
    let running = client.begin_request();
    client.writes();
    assert_eq!(client.unfinished(), 1);
    drop(running);
    assert!(client.is_busy(), "the answer is not all written");
    assert_eq!(client.unfinished(), 1);
    client.flushed();
    assert!(!client.is_busy());
    assert_eq!(client.unfinished(), 0);
}

#[test]
fn a_reason_to_end_gives_way_to_a_stronger_one_alone() {
    use Expiry::{Abort, Drain, Head, Idle, Leave, Removed, Write};
    for (first, then, expected) in [
        (Idle, Drain, Drain),
        (Write, Drain, Write),
        (Head, Drain, Head),
        (Write, Abort, Abort),
        (Abort, Drain, Abort),
        (Drain, Idle, Drain),
        (Removed, Drain, Removed),
        (Removed, Leave, Leave),
        (Leave, Removed, Leave),
        (Leave, Write, Write),
        (Write, Leave, Write),
        (Write, Head, Write),
    ] {
        let (_, client) = client(Protocol::Http1);
        client.expire(first);
        client.expire(then);
        assert_eq!(client.expired(), Some(expected), "{first:?} {then:?}");
    }
}

#[test]
fn who_does_not_read_is_cut_even_on_the_way_out() {
    let limits = ClientLimits::default();
    for leaving in [None, Some(Expiry::Idle), Some(Expiry::Drain)] {
        let (sweep, client) = client(Protocol::Http1);
        let _running = client.begin_request();
        client.write_blocked(true);
        if let Some(leaving) = leaving {
            client.expire(leaving);
        }
        client.check(&limits);
        assert_eq!(client.expired(), leaving);
        sweep.advance(after(limits.body));
        client.check(&limits);
        assert_eq!(client.expired(), Some(Expiry::Write), "{leaving:?}");
    }
}
