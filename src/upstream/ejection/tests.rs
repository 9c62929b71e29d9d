use std::thread;

use super::*;

const START: Moment = Moment::from_millis(1000);

fn settings(consecutive_failures: u32) -> Outlier {
    Outlier {
        consecutive_failures,
        ejection: Duration::from_secs(10),
        ..Outlier::default()
    }
}

fn at(seconds: u64) -> Moment {
    START.after(Duration::from_secs(seconds))
}

fn is_out(ejection: &Ejection, seconds: u64) -> bool {
    ejection.is_in_force_at(|| at(seconds))
}

/// Whether each of these faults was one too many.
fn verdicts(ejection: &Ejection, faults: &[Fault], settings: &Outlier) -> Vec<bool> {
    let failed = |&fault: &Fault| ejection.failed(fault, settings);
    faults.iter().map(failed).collect()
}

#[test]
fn so_many_failures_in_a_row_are_one_too_many() {
    use Fault::{Connect, Cut, Reset};
    const STATUS: Fault = Fault::Status(503);
    let three = settings(3);
    let ejection = Ejection::default();
    assert_eq!(
        verdicts(&ejection, &[Connect, STATUS, Reset, Connect], &three),
        [false, false, true, true]
    );
    ejection.succeeded();
    assert_eq!(
        verdicts(&ejection, &[Connect, STATUS], &three),
        [false, false]
    );
    ejection.succeeded();
    assert_eq!(verdicts(&ejection, &[Connect], &three), [false]);
    // A good head says nothing of the body behind it, and a body nothing of other heads.
    assert_eq!(verdicts(&ejection, &[Cut, Cut], &three), [false, false]);
    ejection.succeeded();
    assert_eq!(verdicts(&ejection, &[Cut], &three), [true]);
    ejection.came_whole();
    assert_eq!(verdicts(&ejection, &[Cut, Cut], &three), [false, false]);
    let never = settings(0);
    assert_eq!(verdicts(&ejection, &[Connect; 10], &never), [false; 10]);
}

#[test]
fn streaks_neither_overflow_nor_touch_each_other() {
    let (ejection, settings) = (Ejection::default(), settings(1000));
    for _ in 0..70_000 {
        ejection.failed(Fault::Connect, &settings);
    }
    assert!(ejection.failed(Fault::Connect, &settings));
    assert!(!ejection.failed(Fault::Cut, &settings));
}

#[test]
fn an_ejected_upstream_is_back_after_its_time() {
    let (ejection, settings) = (Ejection::default(), settings(5));
    assert!(!is_out(&ejection, 0));
    assert_eq!((ejection.latest(), ejection.count()), (None, 0));
    let term = Term {
        until: at(10),
        times: 1,
        fault: Fault::Status(500),
    };
    assert_eq!(
        ejection.eject(Fault::Status(500), &settings, START),
        Some(term),
        "the first time"
    );
    assert_eq!(
        ejection.eject(Fault::Connect, &settings, at(9)),
        None,
        "it is out already"
    );
    assert_eq!((ejection.latest(), ejection.count()), (Some(term), 1));
    assert_eq!(
        [0, 9, 10, 9].map(|seconds| is_out(&ejection, seconds)),
        [true, true, false, false],
        "once it was seen to be over, nobody asks the clock"
    );
    assert_eq!(ejection.latest(), Some(term));
}

#[test]
fn ejections_in_a_row_grow_and_are_forgotten_by_and_by() {
    let ten = settings(5);
    let mut before = None;
    // At these seconds: until when, and the how many-th.
    for (now, until, times) in [
        (0, 10, 1),
        (10, 30, 2),
        (35, 65, 3),
        // In for 25 s: two are forgotten.
        (90, 110, 2),
        (110, 140, 3),
        (1000, 1010, 1),
    ] {
        let term = Term::begin(before, Fault::Connect, ten.ejection, at(now));
        assert_eq!((term.until, term.times), (at(until), times), "at {now}");
        before = Some(term);
    }
    let length = |times, ejection| {
        let before = Term {
            until: START,
            times,
            fault: Fault::Connect,
        };
        let term = Term::begin(
            Some(before),
            Fault::Connect,
            Duration::from_secs(ejection),
            START,
        );
        (term.times, term.until.since(START).as_secs())
    };
    assert_eq!(length(10, 1), (10, 10));
    assert_eq!(length(9, 60), (10, 300));
    assert_eq!(length(5, 1000), (6, 1000));
}

#[test]
fn who_comes_back_proves_itself_with_its_first_answer() {
    let (ejection, settings) = (Ejection::default(), settings(5));
    ejection
        .eject(Fault::Reset, &settings, START)
        .expect("it is in");
    assert!(
        ejection.failed(Fault::Connect, &settings),
        "one is enough now"
    );
    ejection
        .eject(Fault::Connect, &settings, at(10))
        .expect("it was back");
    ejection.succeeded();
    assert_eq!(
        verdicts(&ejection, &[Fault::Connect; 5], &settings),
        [false, false, false, false, true]
    );
    ejection.spare();
    assert!(!ejection.failed(Fault::Connect, &settings));
}

#[test]
fn what_is_in_force_is_counted_once_however_often_it_begins_anew() {
    let gauge = prometheus::IntGauge::new("ejected", "in force").unwrap();
    let settings = settings(5);
    let ejection = Ejection::counted_by(gauge.clone());
    let eject = |seconds| ejection.eject(Fault::Status(500), &settings, at(seconds));
    assert!(eject(0).is_some() && eject(5).is_none());
    assert_eq!(gauge.get(), 1);
    assert!(eject(10).is_some(), "nobody saw that it was back");
    assert_eq!(gauge.get(), 1);
    assert!(is_out(&ejection, 29));
    assert_eq!(gauge.get(), 1);
    assert!(!is_out(&ejection, 30) && !is_out(&ejection, 31));
    assert_eq!(gauge.get(), 0);
    assert!(eject(40).is_some());
    let other = Ejection::counted_by(gauge.clone());
    other
        .eject(Fault::Status(500), &settings, at(40))
        .expect("in");
    assert_eq!(gauge.get(), 2);
    drop(other);
    assert_eq!(gauge.get(), 1, "it ends with its upstream");
}

#[test]
fn every_term_survives_its_packing() {
    for fault in [
        Fault::Connect,
        Fault::ConnectTimeout,
        Fault::Tls,
        Fault::Reset,
        Fault::Malformed,
        Fault::Timeout,
        Fault::Status(500),
        Fault::Status(503),
        Fault::Status(599),
        Fault::Cut,
        Fault::Share(0),
        Fault::Share(100),
    ] {
        let term = Term {
            until: at(7),
            times: 3,
            fault,
        };
        let bits = term::packed(&term);
        assert_eq!(term::unpacked(bits), Some(term));
        assert_eq!(term::unpacked(term::closed(bits)), Some(term));
        assert!(term::is_open(bits) && !term::is_open(term::closed(bits)));
    }
}

#[test]
fn of_many_threads_one_ejects() {
    let settings = settings(5);
    for _ in 0..200 {
        let ejection = Ejection::default();
        let ejected: usize = thread::scope(|scope| {
            let eject = || usize::from(ejection.eject(Fault::Connect, &settings, START).is_some());
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(eject)).collect();
            let ends = threads.into_iter().map(|thread| thread.join().unwrap());
            ends.sum()
        });
        assert_eq!((ejected, ejection.count()), (1, 1));
    }
}

/// A million upstreams have one each.
#[test]
fn an_ejection_is_small() {
    assert_eq!(size_of::<Ejection>(), 24);
}
