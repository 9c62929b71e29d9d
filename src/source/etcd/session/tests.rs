//! The source over an etcd whose watches fail silently; hours pass in no time.

mod fake;
mod resumed;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::{
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, timeout},
};

use self::fake::Fake;
use super::super::Etcd;
use crate::{
    live::{Live, Status},
    route::Revision,
    source::{
        Change, History, Update,
        etcd::{fault::Fault, transport::Responses},
    },
    telemetry::metrics::Metrics,
};

const PREFIX: &str = "/h/";
/// From the last that was heard until a pulse is put, at most.
const PATIENCE: Duration = Duration::from_secs(45);
/// Until a pulse must be heard.
const UNSEEN: Duration = Duration::from_secs(5);
/// To connect and resume.
const RESUME: Duration = Duration::from_secs(3);

/// A running source, and what it has told.
struct Bench {
    etcd: Fake,
    metrics: Arc<Metrics>,
    live: Arc<Live>,
    updates: mpsc::Receiver<Update>,
    keys: BTreeMap<String, Revision>,
    snapshots: usize,
    history: Option<History>,
    source: JoinHandle<()>,
}

impl Bench {
    /// With `/h/a` in etcd, and a watch that stands.
    async fn start() -> Self {
        let etcd = Fake::default();
        etcd.put("/h/a");
        Self::over(etcd).await
    }

    async fn over(etcd: Fake) -> Self {
        let metrics = Metrics::new();
        let live = Live::new(Status::before("etcd", ""));
        let (sender, updates) = mpsc::channel(64);
        let source = Etcd::over(etcd.clone(), PREFIX.to_owned(), 1).counted_in(metrics.clone());
        let mut bench = Self {
            etcd,
            metrics,
            live: live.clone(),
            updates,
            keys: BTreeMap::new(),
            snapshots: 0,
            history: None,
            source: tokio::spawn(source.run(live.clone(), sender)),
        };
        bench.pass(Duration::from_secs(1)).await;
        assert!(live.status.borrow().connected);
        assert_eq!(bench.snapshots, 1);
        bench
    }

    /// Lets time pass, and takes in what is told meanwhile.
    async fn pass(&mut self, time: Duration) {
        let until = Instant::now() + time;
        while let Ok(update) = timeout(until - Instant::now(), self.updates.recv()).await {
            self.take(update.expect("the source goes on"));
        }
    }

    /// Waits for a key at this revision; how long that took.
    async fn until(&mut self, key: &str, revision: Revision) -> Duration {
        let start = Instant::now();
        while self.keys.get(key) != Some(&revision) {
            let update = timeout(Duration::from_secs(2 * 3600), self.updates.recv()).await;
            self.take(update.expect("in time").expect("the source goes on"));
        }
        start.elapsed()
    }

    /// The watches end, and the read that follows does too, with its first page.
    async fn fail_the_next_read(&mut self, compact_revision: Revision) {
        self.etcd.store().page_faults = 1;
        self.etcd.end_watches_by(compact_revision);
        while self.etcd.store().page_faults > 0 {
            self.pass(Duration::from_millis(1)).await;
        }
    }

    fn take(&mut self, update: Update) {
        match update {
            Update::Snapshot {
                entries,
                revision,
                history,
                ..
            } => {
                let newest = entries.iter().map(|entry| entry.mod_revision).max();
                assert!(newest <= Some(revision), "torn: {newest:?} at {revision}");
                self.snapshots += 1;
                self.history = Some(history);
                self.keys = (entries.iter())
                    .map(|entry| (text(&entry.key), entry.mod_revision))
                    .collect();
            }
            Update::Changes { changes, .. } => {
                for change in changes {
                    let (key, revision) = (text(change.key()), change.mod_revision());
                    match change {
                        Change::Put(_) => self.keys.insert(key, revision),
                        Change::Delete { .. } => self.keys.remove(&key),
                    };
                }
            }
            Update::Progress { .. } | Update::Vouched { .. } => {}
        }
    }

    /// Snapshots, connections, watches so far.
    fn counts(&self) -> [usize; 3] {
        let store = self.etcd.store();
        [self.snapshots, store.connects, store.watched]
    }

    /// Watches found silent, comparisons, keys that differed so far.
    fn metrics(&self) -> [u64; 3] {
        let metrics = &self.metrics.control_plane;
        [
            metrics.silent_watches.get(),
            metrics.reconciles.get(),
            metrics.reconcile_differences.get(),
        ]
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.source.abort();
    }
}

fn minutes(count: u64) -> Duration {
    Duration::from_secs(60 * count)
}

#[tokio::test(start_paused = true)]
async fn a_quiet_store_is_pulsed_and_the_watch_lives_on() {
    let mut bench = Bench::start().await;
    bench.pass(minutes(10)).await;
    assert_eq!(bench.counts(), [1, 1, 1]);
    let puts = bench.etcd.store().puts;
    assert!((13..=20).contains(&puts), "{puts} puts in ten minutes");
    assert!(bench.keys.contains_key("/h/@waypost/pulse"));
}

#[tokio::test(start_paused = true)]
async fn a_busy_store_needs_no_pulse() {
    let mut bench = Bench::start().await;
    for _ in 0..60 {
        bench.etcd.put("/h/a");
        bench.pass(Duration::from_secs(10)).await;
    }
    assert_eq!(bench.etcd.store().puts, 0);
    assert_eq!(bench.counts(), [1, 1, 1]);
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_stopped_silently_is_replaced() {
    let mut bench = Bench::start().await;
    bench.etcd.silence_watches();
    let put = bench.etcd.put("/h/b");
    let took = bench.until("/h/b", put).await;
    assert!(took < PATIENCE + UNSEEN + RESUME, "{took:?}");
    assert_eq!(bench.counts(), [1, 2, 2]);
    assert_eq!(bench.metrics()[0], 1);
    bench.pass(minutes(10)).await;
    assert_eq!(bench.counts(), [1, 2, 2], "the new one lives");
}

#[tokio::test(start_paused = true)]
async fn everything_is_read_when_no_watch_brings_anything() {
    let mut bench = Bench::start().await;
    bench.etcd.silence_watches();
    bench.etcd.store().are_watches_deaf = true;
    for (round, key) in ["/h/b", "/h/c"].into_iter().enumerate() {
        let put = bench.etcd.put(key);
        let took = bench.until(key, put).await;
        assert!(took < PATIENCE + 2 * UNSEEN + RESUME, "{took:?}");
        assert_eq!(bench.snapshots, round + 2);
    }
    bench.etcd.store().are_watches_deaf = false;
    bench.pass(minutes(2)).await;
    let snapshots = bench.snapshots;
    bench.pass(minutes(10)).await;
    assert_eq!(bench.snapshots, snapshots);
    assert!(bench.live.status.borrow().connected);
}

#[tokio::test(start_paused = true)]
async fn a_refused_pulse_is_no_dead_watch() {
    let refusals = [
        Fault::Unreachable("etcdserver: mvcc: database space exceeded".to_owned()),
        Fault::Refused("etcdserver: permission denied".to_owned()),
    ];
    for (refusal, most_puts) in refusals.into_iter().zip([200, 1]) {
        let mut bench = Bench::start().await;
        bench.etcd.store().puts_end_in = Some(refusal.clone());
        // What others write is no reason to think that ours is lost.
        for _ in 0..30 {
            bench.etcd.put_elsewhere();
            bench.pass(minutes(2)).await;
        }
        assert_eq!(bench.counts(), [1, 1, 1], "{refusal:?}");
        let puts = bench.etcd.store().puts;
        assert!((1..=most_puts).contains(&puts), "{puts} puts: {refusal:?}");

        bench.etcd.silence_watches();
        let put = bench.etcd.put("/h/b");
        let took = bench.until("/h/b", put).await;
        assert!(took < PATIENCE + UNSEEN + RESUME, "{took:?}: {refusal:?}");
        assert_eq!(bench.counts(), [1, 2, 2]);
    }
}

#[tokio::test(start_paused = true)]
async fn calls_get_a_fresh_login_and_the_watch_lives_on() {
    let mut bench = Bench::start().await;
    bench.etcd.store().tokens_until = 2;
    bench.pass(minutes(10)).await;
    assert_eq!(bench.counts(), [1, 2, 1]);
    assert!(bench.etcd.store().puts >= 13);
}

#[tokio::test(start_paused = true)]
async fn an_etcd_that_does_not_answer_is_left() {
    let mut bench = Bench::start().await;
    bench.etcd.store().puts_end_in = Some(Fault::Silent("putting a key".to_owned()));
    bench.pass(PATIENCE + 2 * UNSEEN + RESUME).await;
    assert_eq!(bench.counts(), [1, 2, 2]);
    assert_eq!(bench.etcd.store().puts, 3, "not at the first time");
}

/// Other changes are heard, so nothing tells that one was lost but a comparison.
#[tokio::test(start_paused = true)]
async fn a_lost_event_is_noticed_within_the_hour() {
    let mut bench = Bench::start().await;
    let lost = bench.etcd.put_unheard("/h/a");
    let start = Instant::now();
    while bench.keys["/h/a"] != lost && start.elapsed() < minutes(80) {
        bench.etcd.put("/h/b");
        bench.pass(Duration::from_secs(20)).await;
    }
    assert_eq!(bench.keys["/h/a"], lost);
    assert_eq!(bench.counts(), [2, 1, 2]);
    assert_eq!(bench.metrics(), [0, 1, 1]);
    assert_eq!(bench.history, Some(History::Continued));
    bench.pass(minutes(180)).await;
    assert_eq!(bench.counts(), [2, 1, 2], "all is well again");
    assert_eq!(bench.metrics()[2], 1);
}

/// Behind the same address, and the client connected anew without a word.
#[tokio::test(start_paused = true)]
async fn a_difference_because_of_another_history_is_told_as_that() {
    let mut bench = Bench::start().await;
    // A pulse would be part of the other history, and vouch for it.
    let full = Fault::Unreachable("etcdserver: mvcc: database space exceeded".to_owned());
    bench.etcd.store().puts_end_in = Some(full);
    bench.etcd.lose_history();
    let start = Instant::now();
    while bench.snapshots == 1 && start.elapsed() < minutes(80) {
        bench.pass(minutes(1)).await;
    }
    assert_eq!(bench.history, Some(History::Another));
    assert_eq!(bench.counts(), [2, 1, 2]);
}

#[tokio::test(start_paused = true)]
async fn compaction_does_not_hide_another_history() {
    let mut bench = Bench::start().await;
    bench.etcd.lose_history();
    bench.etcd.put_unheard("/h/b");
    bench.etcd.compact();
    bench.etcd.end_watches();
    bench.pass(RESUME).await;
    assert_eq!(bench.history, Some(History::Another));
    assert_eq!(bench.counts(), [2, 2, 2]);
}

#[tokio::test(start_paused = true)]
async fn what_is_compacted_away_is_made_up_for_within_one_history() {
    let mut bench = Bench::start().await;
    let missed = bench.etcd.put_unheard("/h/b");
    bench.etcd.put_unheard("/h/c");
    bench.etcd.compact();
    bench.etcd.end_watches();
    bench.until("/h/b", missed).await;
    assert_eq!(bench.history, Some(History::Continued));
    assert_eq!(bench.counts()[0], 2);
}

/// Why it was begun is no reason any more to believe what answers then.
#[tokio::test(start_paused = true)]
async fn a_read_that_failed_half_way_is_judged_anew() {
    for is_watch_compacted in [false, true] {
        let mut bench = Bench::start().await;
        let missed = bench.etcd.put_unheard("/h/b");
        bench.etcd.compact();
        let by = if is_watch_compacted { missed } else { 0 };
        bench.fail_the_next_read(by).await;
        assert_eq!(bench.snapshots, 1);
        bench.etcd.store().compacted = 0;
        bench.etcd.lose_history();
        let other = bench.etcd.put_unheard("/h/c");
        bench.until("/h/c", other).await;
        assert_eq!(bench.history, Some(History::Another));
        assert_eq!(bench.snapshots, 2);
    }
}

/// As when one endpoint of several leads to another cluster.
#[tokio::test(start_paused = true)]
async fn a_read_of_another_history_is_not_needed_once_ours_is_back() {
    let mut bench = Bench::start().await;
    let ours = bench.etcd.lose_history();
    bench.fail_the_next_read(0).await;
    bench.etcd.store().history = ours;
    let put = bench.etcd.put_unheard("/h/b");
    bench.until("/h/b", put).await;
    assert_eq!(bench.snapshots, 1, "resumed");
}

#[tokio::test(start_paused = true)]
async fn a_difference_is_not_forgotten_when_the_connection_breaks() {
    let mut bench = Bench::start().await;
    let lost = bench.etcd.put_unheard("/h/a");
    bench.etcd.store().ask_faults = 1;
    let start = Instant::now();
    while bench.metrics()[2] == 0 && start.elapsed() < minutes(80) {
        bench.etcd.put("/h/b");
        bench.pass(Duration::from_secs(20)).await;
    }
    bench.pass(RESUME).await;
    assert_eq!(bench.etcd.store().ask_faults, 0);
    assert_eq!(bench.keys["/h/a"], lost);
    assert_eq!(bench.history, Some(History::Continued));
    assert_eq!(bench.metrics()[2], 1);
}

#[tokio::test(start_paused = true)]
async fn a_key_missed_before_a_resume_is_noticed_soon_after_it() {
    let mut bench = Bench::start().await;
    let lost = bench.etcd.put_unheard("/h/b");
    let heard = bench.etcd.put("/h/a");
    bench.until("/h/a", heard).await;
    bench.etcd.end_watches();
    let took = bench.until("/h/b", lost).await;
    assert!(took < 2 * RESUME, "{took:?}");
    assert_eq!(bench.counts(), [2, 2, 3]);
    assert_eq!(bench.metrics()[2], 1);
}

#[tokio::test(start_paused = true)]
async fn a_resume_that_missed_nothing_is_no_alarm() {
    let mut bench = Bench::start().await;
    bench.etcd.put("/h/@waypost/tunnels/x");
    for _ in 0..5 {
        bench.etcd.end_watches();
        bench.pass(minutes(1)).await;
    }
    assert_eq!(bench.counts(), [1, 6, 6]);
    let [silent, reconciles, differences] = bench.metrics();
    assert!(silent == 0 && reconciles >= 5 && differences == 0);
}

#[tokio::test(start_paused = true)]
async fn changes_during_a_comparison_are_no_difference() {
    let etcd = Fake::default();
    for index in 0..3_000 {
        etcd.put(&format!("/h/{index}"));
    }
    let mut bench = Bench::over(etcd).await;
    bench.etcd.store().changes_while_read = vec!["/h/7"];
    let pages = bench.etcd.store().pages;
    bench.pass(minutes(300)).await;
    assert!(
        bench.etcd.store().pages >= pages + 8,
        "several a comparison"
    );
    assert_eq!(bench.counts(), [1, 1, 1]);
    let [_, reconciles, differences] = bench.metrics();
    assert!((3..=7).contains(&reconciles) && differences == 0);
}

/// The first page shows the first revision, the last one what the watch brings last: until then they don't fit.
#[tokio::test(start_paused = true)]
async fn an_unpinned_read_waits_for_the_revision_of_its_last_page() {
    let etcd = Fake::default();
    for index in 0..4 {
        etcd.put(&format!("/h/{index}"));
    }
    {
        let mut store = etcd.store();
        store.page_limit = Some(2);
        store.changes_while_read = vec!["/h/0", "/h/3"];
        store.compacts_while_read = true;
        store.is_told_piecemeal = true;
    }
    let bench = Bench::over(etcd).await;
    let store = bench.etcd.store();
    let pages = 2 * (1 + 3);
    assert_eq!(store.pages, pages, "three times pinned, once not");
    let newest = bench.keys.values().max();
    assert_eq!((bench.keys.len(), newest), (4, Some(&(4 + 2 * 8))));
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_brings_too_much_at_once_goes_on_in_fragments() {
    let mut bench = Bench::start().await;
    bench.etcd.store().too_large = vec![Responses::Whole];
    let put = bench.etcd.put_unheard("/h/b");
    bench.etcd.end_watches();
    let took = bench.until("/h/b", put).await;
    assert!(took < RESUME, "{took:?}");
    bench.pass(Duration::from_secs(1)).await;
    assert_eq!(bench.counts(), [1, 2, 3], "nothing is read");
    assert!(bench.live.status.borrow().connected);
}

#[tokio::test(start_paused = true)]
async fn a_watch_whose_fragments_are_too_much_is_replaced_by_a_read() {
    let mut bench = Bench::start().await;
    bench.etcd.store().too_large = vec![Responses::Whole, Responses::InFragments];
    let put = bench.etcd.put_unheard("/h/b");
    bench.etcd.end_watches();
    let took = bench.until("/h/b", put).await;
    assert!(took < RESUME, "{took:?}");
    assert_eq!(bench.history, Some(History::Continued));
    let put = bench.etcd.put("/h/c");
    bench.until("/h/c", put).await;
    assert_eq!(bench.counts(), [2, 2, 4]);
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_is_late_is_stale_until_it_has_caught_up() {
    let mut bench = Bench::start().await;
    bench.etcd.store().is_busy = true;
    let put = bench.etcd.put_unheard("/h/b");
    bench.etcd.put_elsewhere();
    bench.etcd.end_watches();
    bench.pass(Duration::from_secs(10)).await;
    let status = bench.live.status.borrow().clone();
    assert!(!status.connected && status.stale_since.is_some());
    let error = status.error.expect("a reason");
    assert_eq!(error, "catching up with etcd: 1 of 3");
    assert!(bench.etcd.serve() > 0);
    bench.until("/h/b", put).await;
    // What happened last is none of ours: only answers tell that nothing more comes.
    bench.pass(Duration::from_millis(500)).await;
    let status = bench.live.status.borrow().clone();
    assert!(
        status.connected && status.stale_since.is_none(),
        "{status:?}"
    );
    assert_eq!(bench.snapshots, 1);
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_is_late_for_nothing_of_ours_is_not_stale_for_long() {
    let mut bench = Bench::start().await;
    bench.etcd.put_elsewhere();
    bench.etcd.end_watches();
    bench.pass(Duration::from_secs(1)).await;
    let status = bench.live.status.borrow().clone();
    assert!(
        status.connected && status.stale_since.is_none(),
        "{status:?}"
    );
    assert_eq!(bench.counts(), [1, 2, 2]);
}

/// Whatever is between us and etcd connected anew, and our connection to it stands.
#[tokio::test(start_paused = true)]
async fn a_watch_that_another_cluster_answers_is_over() {
    let mut bench = Bench::start().await;
    bench.etcd.store().watched_cluster = 2;
    bench.etcd.put("/h/b");
    bench.pass(Duration::from_secs(1)).await;
    assert!(bench.etcd.store().connects > 1);
    assert_eq!(bench.keys.get("/h/b"), Some(&2), "resumed");
}

/// Nothing below the prefix happened while it was read, so the watch has nothing to complete it with.
#[tokio::test(start_paused = true)]
async fn an_unpinned_read_that_nothing_completes_is_repeated_and_no_silence() {
    let mut bench = Bench::start().await;
    bench.etcd.put("/h/b");
    {
        let mut store = bench.etcd.store();
        store.page_limit = Some(1);
        store.moves_while_read = true;
        store.compacts_while_read = true;
    }
    let newest = bench.etcd.put_unheard("/h/c");
    bench.etcd.end_watches_by(newest);
    bench.pass(Duration::from_secs(10)).await;
    assert!(bench.etcd.store().watched > 3, "it tries");
    let status = bench.live.status.borrow().clone();
    let is_stale = !status.connected && status.stale_since.is_some();
    assert!(is_stale, "though the connection stands: {status:?}");
    bench.etcd.store().compacts_while_read = false;
    bench.until("/h/c", newest).await;
    assert_eq!(bench.snapshots, 2);
    assert_eq!(bench.metrics()[0], 0);
}

/// etcd never says that of what it has now; whoever does is not asked without a pause.
#[tokio::test(start_paused = true)]
async fn a_read_of_what_is_there_now_that_is_said_to_be_compacted_fails() {
    let mut bench = Bench::start().await;
    bench.etcd.compact();
    {
        let mut store = bench.etcd.store();
        store.page_faults = 1_000;
        store.are_pages_compacted = true;
    }
    let newest = bench.etcd.put_unheard("/h/b");
    bench.etcd.end_watches_by(newest);
    bench.pass(Duration::from_secs(10)).await;
    let pages = bench.etcd.store().pages;
    assert!((3..=15).contains(&pages), "{pages} pages in 10 s");
    bench.etcd.store().page_faults = 0;
    bench.until("/h/b", newest).await;
}

#[tokio::test(start_paused = true)]
async fn repeated_events_do_no_harm() {
    let mut bench = Bench::start().await;
    for _ in 0..100 {
        bench.etcd.put("/h/b");
        bench.etcd.put("/h/c");
        bench.etcd.repeat();
        bench.etcd.repeat();
        bench.pass(minutes(1)).await;
    }
    assert_eq!(bench.counts(), [1, 1, 1]);
    assert_eq!(bench.metrics()[2], 0);
}

fn text(key: &[u8]) -> String {
    String::from_utf8_lossy(key).into_owned()
}
