//! Who has answered a barrier and who has not, and what that means. Pure: no etcd needed to test it.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use super::records::{Acknowledgement, InstanceRecord};

/// The answers so far.
#[derive(Debug)]
pub struct Tally {
    instances: BTreeMap<Arc<str>, Awaited>,
}

#[derive(Debug)]
struct Awaited {
    record: InstanceRecord,
    answer: Acknowledgement,
    is_registered: bool,
}

/// How a barrier ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// How many instances were to answer.
    pub instances: usize,
    /// How many did, with all that was asked for being so.
    pub done: usize,
    /// Who can't take the key as it is written, and why.
    pub rejected: Vec<(InstanceRecord, String)>,
    /// Who vanished without an answer.
    pub lost: Vec<InstanceRecord>,
    /// Who is registered and has not answered, with the requests that were left when it was last heard of.
    pub missing: Vec<(InstanceRecord, usize)>,
    /// Other keys by which the same upstream is used: some of them.
    pub also: Vec<String>,
    /// How many of those there are in all, as far as one instance knows.
    pub also_total: usize,
    /// Set if time was over.
    pub late: Option<Late>,
}

/// That time was over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Late {
    /// How long was waited.
    pub after: Duration,
    /// Why etcd could not be asked at the end.
    pub fault: Option<String>,
}

/// What a report is about, in words.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'s> {
    /// What a lost instance may go on doing: `use 10.0.0.7:80`.
    pub lost_may: &'s str,
    /// What stays as it is when time is over: `the key stays deleted`.
    pub stays: &'s str,
    /// How many instances there should be, if that is known.
    pub expect: Option<usize>,
}

impl Tally {
    /// None of these has answered yet.
    pub fn of(instances: impl IntoIterator<Item = InstanceRecord>) -> Self {
        let awaited = |record: InstanceRecord| {
            let awaited = Awaited {
                answer: Acknowledgement::default(),
                is_registered: true,
                record,
            };
            (awaited.record.id.clone(), awaited)
        };
        Self {
            instances: instances.into_iter().map(awaited).collect(),
        }
    }

    /// Takes an answer in; one of an instance that joined later doesn't matter.
    pub fn answered(&mut self, id: &str, answer: Acknowledgement) {
        if let Some(awaited) = self.instances.get_mut(id) {
            awaited.answer = answer;
        }
    }

    /// These are registered now, and nobody else is.
    pub fn registered<'i>(&mut self, ids: impl Iterator<Item = &'i str>) {
        for awaited in self.instances.values_mut() {
            awaited.is_registered = false;
        }
        for id in ids {
            if let Some(awaited) = self.instances.get_mut(id) {
                awaited.is_registered = true;
            }
        }
    }

    /// Whether nobody is left to wait for.
    pub fn is_settled(&self) -> bool {
        let is_open = |awaited: &Awaited| awaited.is_registered && !awaited.answer.done;
        !self.instances.values().any(is_open)
    }

    /// How it ended.
    pub fn report(self, late: Option<Late>) -> Report {
        let mut report = Report {
            instances: self.instances.len(),
            late,
            ..Report::default()
        };
        for awaited in self.instances.into_values() {
            let Awaited {
                record,
                answer,
                is_registered,
            } = awaited;
            for key in answer.also {
                if !report.also.contains(&key) {
                    report.also.push(key);
                }
            }
            report.also_total = report.also_total.max(answer.also_total);
            match (answer.done, is_registered, answer.rejected) {
                (true, _, Some(reason)) => report.rejected.push((record, reason)),
                (true, _, None) => report.done += 1,
                (false, true, _) => report.missing.push((record, answer.requests)),
                (false, false, _) => report.lost.push(record),
            }
        }
        report.also_total = report.also_total.max(report.also.len());
        report
    }
}

impl Report {
    /// The other keys by which the same upstream is used, in words: `5 other keys: a, b, c and 2 more`.
    pub fn others(&self) -> Option<String> {
        let named = self.also.join(", ");
        let further = self.also_total.saturating_sub(self.also.len());
        Some(match (self.also_total, further) {
            (0, _) => return None,
            (1, _) => format!("another key: {named}"),
            (total, 0) => format!("{total} other keys: {named}"),
            (total, _) => format!("{total} other keys: {named} and {further} more"),
        })
    }

    /// All that keeps it from being a success, a line each.
    pub fn problems(&self, subject: &Subject<'_>) -> Vec<String> {
        let mut problems = Vec::new();
        match subject.expect {
            _ if self.instances == 0 => problems.push(format!(
                "no instance is registered, so nobody vouches for it (is `waypost serve` running with this etcd and --prefix?); {}",
                subject.stays
            )),
            Some(expect) if self.instances < expect => problems.push(format!(
                "{} registered, but --expect says {expect}: the others may {}",
                instances(self.instances),
                subject.lost_may
            )),
            _ => {}
        }
        for (instance, reason) in &self.rejected {
            problems.push(format!("{instance} rejects it: {reason}"));
        }
        for instance in &self.lost {
            problems.push(format!(
                "{instance} vanished without acknowledging: it may be cut off and still {}",
                subject.lost_may
            ));
        }
        if let Some(late) = &self.late {
            problems.push(self.lateness(late, subject));
        }
        problems
    }

    fn lateness(&self, late: &Late, subject: &Subject<'_>) -> String {
        let missing: Vec<String> = (self.missing.iter())
            .map(|(instance, requests)| match requests {
                0 => instance.to_string(),
                1 => format!("{instance} with 1 request left"),
                requests => format!("{instance} with {requests} requests left"),
            })
            .collect();
        let mut text = format!(
            "after {} {} of {} acknowledged; missing: {}; {}",
            humantime::format_duration(in_tenths(late.after)),
            self.done + self.rejected.len(),
            instances(self.instances),
            missing.join(", "),
            subject.stays
        );
        if let Some(fault) = &late.fault {
            text += &format!(" (etcd could not be asked: {fault})");
        }
        text
    }
}

/// So many instances, in words.
pub fn instances(count: usize) -> String {
    match count {
        1 => "1 instance".to_owned(),
        count => format!("{count} instances"),
    }
}

/// What is left of a time limit after the first calls reads like the limit itself.
fn in_tenths(time: Duration) -> Duration {
    let milliseconds = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    Duration::from_millis(milliseconds.saturating_add(99) / 100 * 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUBJECT: Subject<'static> = Subject {
        lost_may: "use b:80",
        stays: "the key stays deleted",
        expect: None,
    };

    fn record(id: &str) -> InstanceRecord {
        InstanceRecord {
            id: id.into(),
            ..InstanceRecord::default()
        }
    }

    fn done() -> Acknowledgement {
        Acknowledgement {
            done: true,
            ..Acknowledgement::default()
        }
    }

    fn running(requests: usize) -> Acknowledgement {
        Acknowledgement {
            requests,
            ..Acknowledgement::default()
        }
    }

    /// `a`, `b` and `c` are awaited.
    fn settled(answers: &[(&str, Acknowledgement)], registered: &[&str]) -> Option<Report> {
        let mut tally = Tally::of(["a", "b", "c"].map(record));
        for (id, answer) in answers {
            tally.answered(id, answer.clone());
        }
        tally.registered(registered.iter().copied());
        tally.is_settled().then(|| tally.report(None))
    }

    #[test]
    fn it_is_over_when_each_has_answered_or_is_lost() {
        let all = ["a", "b", "c"];
        assert_eq!(settled(&[("a", done()), ("b", done())], &all), None);
        assert_eq!(
            settled(&[("a", done()), ("b", done()), ("c", running(2))], &all),
            None
        );
        let answers = [("a", done()), ("b", done()), ("c", done())];
        let report = settled(&answers, &all).unwrap();
        assert_eq!((report.instances, report.done), (3, 3));
        assert!(report.problems(&SUBJECT).is_empty());

        // Who has answered may leave; who joins is not waited for.
        let report = settled(&answers, &["d"]).unwrap();
        assert!(report.problems(&SUBJECT).is_empty());
        let lost = [("a", done()), ("b", running(3)), ("d", done())];
        let report = settled(&lost, &["a", "c"]);
        assert_eq!(report, None, "c may answer yet");
        let report = settled(&lost, &["a"]).unwrap();
        assert_eq!(report.lost, [record("b"), record("c")]);
    }

    #[test]
    fn problems_name_the_instance_and_what_it_may_do() {
        let rejected = Acknowledgement {
            rejected: Some("no weight".to_owned()),
            ..done()
        };
        let mut tally = Tally::of(["a", "b", "c", "d", "e"].map(record));
        for (id, answer) in [("a", done()), ("b", rejected), ("c", running(2))] {
            tally.answered(id, answer);
        }
        tally.registered(["a", "b", "c", "d"].into_iter());
        let late = Late {
            after: Duration::from_millis(29_950),
            fault: Some("no leader".to_owned()),
        };
        let subject = Subject {
            expect: Some(6),
            ..SUBJECT
        };
        assert_eq!(
            tally.report(Some(late)).problems(&subject),
            [
                "5 instances registered, but --expect says 6: the others may use b:80",
                "instance b rejects it: no weight",
                "instance e vanished without acknowledging: it may be cut off and still use b:80",
                "after 30s 2 of 5 instances acknowledged; missing: instance c with 2 requests left, instance d; \
                 the key stays deleted (etcd could not be asked: no leader)",
            ]
        );
        let nobody = Tally::of([]).report(None);
        let problems = nobody.problems(&SUBJECT);
        assert!(problems[0].starts_with("no instance is registered"));
        assert!(problems[0].ends_with("; the key stays deleted"));
    }

    #[test]
    fn other_keys_of_the_upstream_are_named_once() {
        let also = |keys: &[&str]| Acknowledgement {
            also: keys.iter().map(|&key| key.to_owned()).collect(),
            ..done()
        };
        let answers = [("a", also(&["x", "y"])), ("b", also(&["y"])), ("c", done())];
        let report = settled(&answers, &[]).unwrap();
        assert_eq!(report.also, ["x", "y"]);
        assert_eq!(report.others().unwrap(), "2 other keys: x, y");
        let report = settled(&[("a", also(&["x"])), ("b", done()), ("c", done())], &[]);
        assert_eq!(report.unwrap().others().unwrap(), "another key: x");
        let report = settled(&[("a", done()), ("b", done()), ("c", done())], &[]);
        assert_eq!(report.unwrap().others(), None);
    }

    #[test]
    fn other_keys_that_are_not_named_are_counted() {
        let also = |keys: &str, total| Acknowledgement {
            also: keys.split(' ').map(str::to_owned).collect(),
            also_total: total,
            ..done()
        };
        // `b` is behind with its table, `c` counts none but those that it names.
        let answers = [
            ("a", also("w x y", 6)),
            ("b", also("w x z", 5)),
            ("c", also("w x", 0)),
        ];
        let report = settled(&answers, &[]).unwrap();
        assert_eq!(
            report.others().unwrap(),
            "6 other keys: w, x, y, z and 2 more"
        );
    }
}
