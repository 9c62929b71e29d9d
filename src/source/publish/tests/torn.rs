//! Torn reads: whatever one transaction changed is seen together, however fast transactions come.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    thread::JoinHandle,
};

use super::*;

const FLIPS: i64 = 10_000;
const LOOKS: u64 = 1_000_000;
const READERS: usize = 3;
/// Each reader sees more than so many, however slow the machine is.
const TABLES: u64 = 500;
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
    readers.finish();
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
    /// How many tables each saw.
    seen: [Arc<AtomicU64>; READERS],
    threads: Vec<JoinHandle<()>>,
}

impl Readers {
    fn start(live: &Arc<Live>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let looks = Arc::new(AtomicU64::new(0));
        let seen = [(); READERS].map(|()| Arc::default());
        let threads = seen.iter().cloned().map(|seen| {
            let (live, stop, looks) = (live.clone(), stop.clone(), looks.clone());
            thread::spawn(move || look(&live, &stop, &looks, &seen))
        });
        Self {
            threads: threads.collect(),
            seen,
            stop,
            looks,
        }
    }

    /// While one of them has not seen enough, unless another one has seen what must not be.
    fn are_busy(&self) -> bool {
        let is_over = self.threads.iter().any(JoinHandle::is_finished);
        let is_blind = |seen: &Arc<AtomicU64>| seen.load(Ordering::Relaxed) <= TABLES;
        let looks = self.looks.load(Ordering::Relaxed);
        !is_over && (looks < LOOKS || self.seen.iter().any(is_blind))
    }

    /// None of them saw what must not be.
    fn finish(self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            if let Err(panic) = thread.join() {
                std::panic::resume_unwind(panic);
            }
        }
    }
}

/// Looks until told to stop, and tells how many tables it saw.
fn look(live: &Live, stop: &AtomicBool, looks: &AtomicU64, seen: &AtomicU64) {
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
        seen.store(tables, Ordering::Relaxed);
    }
}

fn settings_of(route: &Route) -> Revision {
    let text = route.settings.add_prefix.trim_start_matches('/');
    text.parse().expect("a revision")
}
