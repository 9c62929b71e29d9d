//! Torn reads: whatever one transaction changed is seen together, however fast transactions come.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    thread::JoinHandle,
};

use super::*;

const FLIPS: i64 = 10_000;
const LOOKS: u64 = 1_000_000;
const READERS: u64 = 3;
/// Hosts that move together, from one upstream to the other and back.
const HOSTS: [&str; 2] = ["a.example", "b.example"];
const SIDES: [&str; 2] = ["10.0.0.1:80", "10.0.0.2:80"];

/// Every transaction moves both hosts to the other upstream and changes the settings of both, and a third route that
/// only has settings. Of all this a reader must never see a part, nor go back to what was before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_is_seen_whole_or_not_at_all() {
    let bench = Bench::start();
    bench.snapshot(1, &[]).await;
    bench.apply(flip(2), 2).await;
    let readers = Readers::start(&bench.live);
    let mut revision = 2;
    while revision < FLIPS || readers.are_busy() {
        revision += 1;
        // Some are published one by one, some share a swap.
        if revision % 64 < 48 {
            bench.apply(flip(revision), revision).await;
        } else {
            bench.updates.send(flip(revision)).await.expect("it runs");
        }
    }
    let (looks, tables) = readers.finish();
    assert!(looks >= LOOKS, "{looks} looks");
    assert!(
        tables > 1_000,
        "{looks} looks saw only {tables} tables of {revision}"
    );
}

/// The transaction that makes this revision: every value in it tells which one it is.
fn flip(revision: Revision) -> Update {
    let side = SIDES[revision as usize % 2];
    let other = SIDES[(revision + 1) as usize % 2];
    let settings = format!("{{\"add_prefix\": \"/{revision}\"}}");
    let weight = format!("{{\"weight\": {}}}", weight_at(revision));
    let mut changes = vec![Change::Put(entry(
        "c.example/@settings",
        &settings,
        revision,
    ))];
    for host in HOSTS {
        changes.push(Change::Delete {
            key: full(&format!("{host}/{other}")),
            mod_revision: revision,
        });
        changes.push(Change::Put(entry(
            &format!("{host}/@settings"),
            &settings,
            revision,
        )));
        changes.push(Change::Put(entry(
            &format!("{host}/{side}"),
            &weight,
            revision,
        )));
    }
    Update::Changes { changes, revision }
}

fn weight_at(revision: Revision) -> u32 {
    u32::try_from(revision % 60_000).expect("below 60,000")
}

struct Readers {
    stop: Arc<AtomicBool>,
    looks: Arc<AtomicU64>,
    threads: Vec<JoinHandle<u64>>,
}

impl Readers {
    fn start(live: &Arc<Live>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let looks = Arc::new(AtomicU64::new(0));
        let threads = (0..READERS).map(|_| {
            let (live, stop, looks) = (live.clone(), stop.clone(), looks.clone());
            thread::spawn(move || look(&live, &stop, &looks))
        });
        Self {
            threads: threads.collect(),
            stop,
            looks,
        }
    }

    fn are_busy(&self) -> bool {
        let is_over = self.threads.iter().any(JoinHandle::is_finished);
        !is_over && self.looks.load(Ordering::Relaxed) < LOOKS
    }

    /// How often they looked, and how many tables the one that saw fewest saw.
    fn finish(self) -> (u64, u64) {
        self.stop.store(true, Ordering::Relaxed);
        let seen = self.threads.into_iter().map(|thread| match thread.join() {
            Ok(seen) => seen,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        let fewest = seen.min().expect("there are readers");
        (self.looks.load(Ordering::Relaxed), fewest)
    }
}

/// Looks until told to stop; how many tables it saw.
fn look(live: &Live, stop: &AtomicBool, looks: &AtomicU64) -> u64 {
    let mut tables = 0;
    let mut last = 0;
    while !stop.load(Ordering::Relaxed) {
        for _ in 0..100 {
            let table = live.table.load();
            let shown = table.revision;
            assert!(shown >= last, "the table of {last}, then that of {shown}");
            tables += u64::from(shown > last);
            last = shown;
            for host in HOSTS {
                let route = table.find(host, "/").expect("it is never without a route");
                assert_eq!(route.members.len(), 1, "{host} at {shown}");
                let member = &route.members[0];
                let side = SIDES[shown as usize % 2];
                assert_eq!(
                    (&*member.upstream.name, member.weight),
                    (side, weight_at(shown)),
                    "{host} at {shown}"
                );
                assert_eq!(settings_of(route), shown, "{host} at {shown}");
            }
            let third = table.find("c.example", "/").expect("it has settings");
            assert_eq!(settings_of(third), shown, "c.example at {shown}");
        }
        looks.fetch_add(100, Ordering::Relaxed);
    }
    tables
}

fn settings_of(route: &Route) -> Revision {
    let text = route.settings.add_prefix.trim_start_matches('/');
    text.parse().expect("a revision")
}
