use bytes::Bytes;

use super::*;
use crate::source::Entry;

const PREFIX: &[u8] = b"/h/";
const SILENCE: Duration = Duration::from_secs(30);

fn known() -> Known {
    let entry = Entry {
        key: Bytes::from_static(b"/h/a"),
        value: Bytes::new(),
        mod_revision: 9,
        lease: 0,
    };
    Known::of(PREFIX, 1, 10, &[entry])
}

fn page(cluster_id: u64, revision: Revision) -> Page {
    Page {
        entries: Vec::new(),
        more: false,
        count: 0,
        cluster_id,
        revision,
    }
}

fn standing(pace: Pace, footing: Footing) -> (Vigil, Instant) {
    let mut vigil = Vigil::over(PREFIX, pace, 1);
    let now = Instant::now();
    vigil.standing(now, footing, &known());
    (vigil, now)
}

/// Rings when it wants to; that moment, and what is asked.
fn ring(vigil: &mut Vigil) -> (Instant, Task) {
    let at = vigil.wakes_at().expect("it has a moment");
    match vigil.ring(at, &known()) {
        Step::Ask(task) => (at, task),
        step => panic!("nothing is asked: {step:?}"),
    }
}

fn request(task: Task) -> PageRequest {
    match task {
        Task::Page { request, .. } => request,
        Task::Put { .. } => panic!("a put: {task:?}"),
    }
}

fn reconciling() -> Pace {
    Pace {
        patience: Patience {
            silence: 24 * PERIOD,
            ..Patience::default()
        },
        ..Pace::default()
    }
}

#[test]
fn what_is_compared_is_what_etcd_had_at_our_revision() {
    let (mut vigil, now) = standing(reconciling(), Footing::Read);
    let (at, task) = ring(&mut vigil);
    assert!(at - now >= PERIOD * 3 / 4 && at - now <= PERIOD * 5 / 4);
    assert_eq!(request(task).revision, Some(10));
    let differs = vigil.answered(at, Outcome::Page(Ok(page(1, 20))), &known());
    let gone = Differences {
        gone: 1,
        ..Differences::default()
    };
    assert_eq!(differs, Step::Differs(gone));
}

#[test]
fn a_count_after_a_resume_leaves_the_fleet_out() {
    for (all, fleet, is_right) in [(1, 0, true), (4, 3, true), (1, 1, false), (0, 0, false)] {
        let (mut vigil, _) = standing(reconciling(), Footing::Resumed);
        let (at, task) = ring(&mut vigil);
        let counted = request(task);
        assert_eq!((&counted.start[..], counted.revision), (PREFIX, Some(10)));
        let count = |count| {
            Outcome::Page(Ok(Page {
                count,
                ..page(1, 20)
            }))
        };
        let Step::Ask(task) = vigil.answered(at, count(all), &known()) else {
            panic!("nothing is asked");
        };
        let counted = request(task);
        assert_eq!(
            (&counted.start[..], counted.revision),
            (&b"/h/@"[..], Some(10))
        );
        assert_eq!(counted.content, Content::Count);
        let step = vigil.answered(at, count(fleet), &known());
        assert_eq!(step == Step::Reconciled, is_right, "{all} less {fleet}");
        assert_eq!(vigil.wakes_at() == Some(at), !is_right, "all is compared");
    }
}

#[test]
fn a_failed_page_leads_to_a_smaller_one_a_later_one_or_a_new_connection() {
    let silent = || Fault::Silent("no answer".to_owned());
    let refused = || Fault::Unreachable("no leader".to_owned());
    for fault in [Fault::TooLarge, silent()] {
        let (mut vigil, _) = standing(reconciling(), Footing::Read);
        let (at, task) = ring(&mut vigil);
        let mut limit = request(task).limit;
        while limit > 1 {
            let failed = Outcome::Page(Err(fault.clone()));
            let Step::Ask(task) = vigil.answered(at, failed, &known()) else {
                panic!("nothing is asked");
            };
            let smaller = request(task).limit;
            assert!(smaller < limit);
            limit = smaller;
        }
        let step = vigil.answered(at, Outcome::Page(Err(fault)), &known());
        assert_eq!(step, Step::Rest);
        assert!(vigil.wakes_at() > Some(at), "later");
    }
    for fault in [Fault::Compacted, refused()] {
        for footing in [Footing::Read, Footing::Resumed] {
            let (mut vigil, _) = standing(reconciling(), footing);
            let (at, _) = ring(&mut vigil);
            let step = vigil.answered(at, Outcome::Page(Err(fault.clone())), &known());
            assert_eq!(step, Step::Rest);
            let next = vigil.wakes_at().unwrap() - at;
            assert!(next >= SILENCE && next <= 3 * SILENCE, "{next:?}");
        }
    }
    let renewals = [Err(Fault::FutureRevision), Ok(page(2, 20))];
    for answer in renewals {
        let (mut vigil, _) = standing(reconciling(), Footing::Read);
        let (at, _) = ring(&mut vigil);
        let step = vigil.answered(at, Outcome::Page(answer), &known());
        assert!(matches!(step, Step::Renew(_)), "{step:?}");
    }
}

#[test]
fn an_answer_that_comes_after_what_it_asked_for_is_pointless() {
    let (mut vigil, _) = standing(Pace::default(), Footing::Read);
    let (at, task) = ring(&mut vigil);
    assert!(matches!(task, Task::Put { .. }), "{task:?}");
    assert_eq!(vigil.wakes_at(), None, "one thing at a time");
    vigil.heard(at);
    let step = vigil.answered(at, Outcome::Put(Ok(11)), &known());
    assert_eq!(step, Step::Rest);
    assert!(vigil.wakes_at() >= Some(at + SILENCE), "nothing is owed");
}

#[test]
fn a_store_that_is_behind_us_is_another() {
    let (mut vigil, _) = standing(Pace::default(), Footing::Read);
    let (at, _) = ring(&mut vigil);
    let denied = Fault::Refused("etcdserver: permission denied".to_owned());
    let Step::Ask(task) = vigil.answered(at, Outcome::Put(Err(denied)), &known()) else {
        panic!("nothing is asked");
    };
    assert_eq!(request(task).revision, None);
    let step = vigil.answered(at, Outcome::Page(Ok(page(1, 5))), &known());
    assert_eq!(step, Step::Renew(Fault::FutureRevision));
}
