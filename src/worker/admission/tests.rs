//! Who is let in, and that whoever leaves takes nothing along.

use super::*;

fn admission(process: usize, per_client: PerClient, exempt: &str) -> Arc<Admission> {
    let limits = ConnectionLimits {
        process: Some(process),
        per_client,
    };
    let exempt = [exempt.parse().unwrap()].into_iter().collect();
    Admission::new(&limits, 1, Arc::new(exempt), Metrics::new())
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn no_more_than_the_limit_unless_there_is_room() {
    let admission = admission(2, PerClient::Unlimited, "::/128");
    let admit = |room| admission.admit(address("192.0.2.1"), || room);
    let held: Vec<_> = (0..2).map(|_| admit(false).unwrap()).collect();
    assert!(admit(false).is_none());
    let over = admit(true).expect("somebody gives way");
    let lingering: Vec<_> = std::iter::from_fn(|| admit(true)).collect();
    assert_eq!(lingering.len(), LEAST_OVERLAP - 1);
    drop((held, lingering));
    assert_eq!(admission.open.load(Relaxed), 1);
    assert!(admit(false).is_some());
    drop(over);
    assert_eq!(admission.open.load(Relaxed), 0);
}

#[test]
fn an_address_has_half_of_all_unless_told_otherwise() {
    for (process, per_client, most) in [
        (10, PerClient::Half, 5),
        (1, PerClient::Half, 1),
        (10, PerClient::AtMost(3), 3),
        (10, PerClient::Unlimited, 10),
    ] {
        let admission = admission(process, per_client, "::/128");
        let one = address("192.0.2.1");
        let held: Vec<_> = std::iter::from_fn(|| admission.admit(one, || false)).collect();
        assert_eq!(held.len(), most, "{process} {per_client:?}");
        let other = admission.admit(address("192.0.2.2"), || false);
        assert_eq!(other.is_some(), most < process, "{process} {per_client:?}");
        drop(other);
        drop(held);
        let left: usize = admission
            .clients
            .iter()
            .map(|shard| shard.lock().unwrap().len())
            .sum();
        assert_eq!((left, admission.open.load(Relaxed)), (0, 0));
    }
}

#[test]
fn as_many_places_are_given_as_are_wanted() {
    let admission = admission(2, PerClient::Unlimited, "::/128");
    let admit = || admission.admit(address("192.0.2.1"), || false);
    let held = [admit(), admit()];
    admission.ask_for_room();
    admission.ask_for_room();
    let gives = |gives: bool| admission.give(|| gives);
    assert_eq!([gives(true), gives(false)], [true, false]);
    assert_eq!([gives(true), gives(true)], [true, false]);

    admission.ask_for_room();
    drop(held);
    assert!(!gives(true), "there is room");
    let _held = [admit(), admit()];
    assert!(!gives(true), "what was wanted is had");
}

#[test]
fn a_network_of_ipv6_is_one_client_and_a_trusted_proxy_is_many() {
    let admission = admission(100, PerClient::AtMost(1), "10.0.0.0/8");
    let mut held = Vec::new();
    for (text, is_let_in) in [
        ("2001:db8:0:1::1", true),
        ("2001:db8:0:1:ffff::2", false),
        ("2001:db8:0:2::1", true),
        ("192.0.2.1", true),
        ("::ffff:192.0.2.1", false),
        ("192.0.2.2", true),
        ("10.1.1.1", true),
        ("10.1.1.1", true),
        ("::ffff:10.1.1.1", true),
    ] {
        let admitted = admission.admit(address(text), || false);
        assert_eq!(admitted.is_some(), is_let_in, "{text}");
        held.extend(admitted);
    }
}

#[test]
fn a_client_behind_a_proxy_is_counted_by_its_own_address() {
    let admission = admission(100, PerClient::AtMost(1), "10.0.0.0/8");
    let behind = || {
        admission
            .admit(address("10.1.1.1"), || false)
            .expect("exempt")
    };
    let (first, second, third) = (behind(), behind(), behind());
    assert!(first.counts_for(address("192.0.2.1")));
    assert!(second.counts_for(address("192.0.2.2")));
    assert!(!third.counts_for(address("192.0.2.1")));
    drop(first);
    assert!(third.counts_for(address("192.0.2.1")));
}

#[test]
fn the_answer_is_as_long_as_it_says() {
    let text = std::str::from_utf8(BUSY).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    assert!(
        head.contains(&format!("content-length: {}\r\n", body.len())),
        "{text}"
    );
}
