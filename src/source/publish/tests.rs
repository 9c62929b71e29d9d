mod by_name;
mod holding;
mod rejected;
mod restored;
mod settings;
mod torn;
mod waiting;

use super::*;
use crate::{
    live::Status,
    route::{pick::Ask, settings::HostHeader},
    source::resolve::Question,
    upstream::{Endpoint, load::Loads},
};

/// A running publisher, without etcd and without DNS.
struct Bench {
    live: Arc<Live>,
    metrics: Arc<Metrics>,
    updates: mpsc::Sender<Update>,
    questions: mpsc::UnboundedReceiver<Question>,
    answers: mpsc::UnboundedSender<Answer>,
    acceptance: Acceptance,
}

impl Bench {
    fn start() -> Self {
        Self::of(|publisher| publisher)
    }

    /// A publisher that is told more before it runs.
    fn of(prepare: impl FnOnce(Publisher) -> Publisher) -> Self {
        let live = Live::new(Status {
            connected: true,
            ..Status::before("etcd", "")
        });
        let metrics = Metrics::new();
        let (names, questions, answers) = Names::channels();
        let publisher = Publisher::new(
            live.clone(),
            metrics.clone(),
            "/hosts/".to_owned(),
            Balance::RoundRobin,
            names,
        );
        let (updates, receiver) = mpsc::channel(64);
        let acceptance = publisher.acceptance();
        tokio::spawn(prepare(publisher).run(receiver));
        Self {
            live,
            metrics,
            updates,
            questions,
            answers,
            acceptance,
        }
    }

    async fn snapshot(&self, revision: Revision, entries: &[(&str, &str, Revision)]) {
        let entries = entries
            .iter()
            .map(|&(key, value, mod_revision)| entry(key, value, mod_revision))
            .collect();
        let update = Update::Snapshot {
            entries,
            revision,
            history: History::Continued,
            cluster_id: Some(1),
            last_good: Vec::new(),
        };
        self.apply(update, revision).await;
    }

    /// What a cluster with another history has: no key is newer than its revision.
    async fn another(&self, revision: Revision, entries: &[(&str, &str, Revision)]) {
        let entries = entries
            .iter()
            .map(|&(key, value, mod_revision)| entry(key, value, mod_revision.min(revision)))
            .collect();
        let update = Update::Snapshot {
            entries,
            revision,
            history: History::Another,
            cluster_id: Some(2),
            last_good: Vec::new(),
        };
        self.apply(update, revision).await;
    }

    fn held(&self) -> Vec<String> {
        let held = self.live.held.load();
        let gauge = self.metrics.control_plane.held_deletes.get();
        assert_eq!(usize::try_from(gauge), Ok(held.len()));
        held.iter().map(ToString::to_string).collect()
    }

    fn hosts(&self) -> usize {
        self.live.table.load().counts().hosts
    }

    async fn put(&self, key: &str, value: &str, revision: Revision) {
        let changes = vec![Change::Put(entry(key, value, revision))];
        self.apply(Update::Changes { changes, revision }, revision)
            .await;
    }

    async fn delete(&self, key: &str, revision: Revision) {
        let changes = vec![Change::Delete {
            key: full(key),
            mod_revision: revision,
        }];
        self.apply(Update::Changes { changes, revision }, revision)
            .await;
    }

    async fn apply(&self, update: Update, revision: Revision) {
        self.updates.send(update).await.expect("it runs");
        let mut applied = self.live.applied.subscribe();
        applied
            .wait_for(|applied| *applied == Some(revision))
            .await
            .expect("it runs");
    }

    fn route(&self, host: &str, path: &str) -> Option<Arc<Route>> {
        self.live.table.load().find(host, path).ok().cloned()
    }

    fn upstreams(&self, host: &str) -> Vec<String> {
        let route = self.route(host, "/");
        let members = route.iter().flat_map(|route| &route.members);
        members
            .map(|member| member.upstream.name.to_string())
            .collect()
    }

    fn rejected(&self) -> Vec<(String, bool)> {
        let rejected = self.live.rejected.load();
        rejected
            .shown
            .iter()
            .map(|rejected| (rejected.key.clone(), rejected.last_good_in_force))
            .collect()
    }
}

fn full(key: &str) -> Bytes {
    format!("/hosts/{key}").into()
}

fn entry(key: &str, value: &str, mod_revision: Revision) -> Entry {
    Entry {
        key: full(key),
        value: Bytes::copy_from_slice(value.as_bytes()),
        mod_revision,
        lease: 7,
    }
}

#[tokio::test]
async fn a_snapshot_is_applied_as_a_difference() {
    let bench = Bench::start();
    let keep = ("keep.example/10.0.0.1:80", "", 1);
    let other = ("other.example/10.0.0.1:80", "", 1);
    bench
        .snapshot(5, &[keep, other, ("gone.example/10.0.0.2:80", "", 2)])
        .await;
    let (kept, changed) = (
        bench.route("keep.example", "/"),
        bench.route("other.example", "/"),
    );
    bench
        .snapshot(
            9,
            &[
                keep,
                other,
                ("other.example/10.0.0.3:80", "{\"weight\": 2}", 8),
            ],
        )
        .await;
    let (kept, changed) = (kept.expect("served"), changed.expect("served"));
    let now = bench.route("other.example", "/").expect("served");
    assert!(Arc::ptr_eq(
        &kept,
        &bench.route("keep.example", "/").expect("served")
    ));
    assert!(!Arc::ptr_eq(&changed, &now));
    assert!(Arc::ptr_eq(
        &changed.members[0].upstream,
        &now.members[0].upstream
    ));
    assert_eq!(now.members[1].weight, 2);
    assert!(bench.route("gone.example", "/").is_none());
    assert_eq!(bench.live.table.load().counts().hosts, 2);
    assert_eq!(bench.live.table.load().revision, 9);
}

#[tokio::test]
async fn an_empty_snapshot_is_a_first_table() {
    let bench = Bench::start();
    bench.snapshot(1, &[]).await;
    assert_eq!(*bench.live.applied.borrow(), Some(1));
    assert_eq!(bench.live.table.load().revision, 1);
}

#[tokio::test]
async fn aliases_do_not_delete_each_other() {
    let bench = Bench::start();
    bench.snapshot(1, &[("Blog.x/10.0.0.1:80", "", 1)]).await;
    bench.put("blog.x/10.0.0.1:80", "", 2).await;
    bench.put("blog.x/10.0.0.2:80", "", 3).await;
    let route = bench.route("blog.x", "/").expect("served");
    let aliases: Vec<bool> = route.members.iter().map(|member| member.is_alias).collect();
    assert_eq!(aliases, [false, true, false]);
    let picks: Vec<_> = (0..4).filter_map(|_| pick(&route, &[])).collect();
    assert_eq!(picks, [0, 2, 0, 2], "an alias gets no second share");
    bench.delete("Blog.x/10.0.0.1:80", 4).await;
    assert_eq!(bench.upstreams("blog.x"), ["10.0.0.1:80", "10.0.0.2:80"]);
    bench.delete("blog.x/10.0.0.1:80", 5).await;
    assert_eq!(bench.upstreams("blog.x"), ["10.0.0.2:80"]);
    bench.delete("blog.x/10.0.0.2:80", 6).await;
    assert!(bench.route("blog.x", "/").is_none());
    assert_eq!(bench.live.table.load().counts(), Default::default());
}

#[tokio::test]
async fn what_a_resumed_stream_repeats_changes_nothing() {
    let bench = Bench::start();
    let key = "a.example/10.0.0.1:80";
    bench.snapshot(10, &[(key, "{\"weight\": 2}", 8)]).await;
    let before = bench.route("a.example", "/").expect("served");
    let swaps = bench.metrics.control_plane.table_swaps.get();
    let replay = vec![
        Change::Put(entry(key, "", 6)),
        Change::Delete {
            key: full(key),
            mod_revision: 7,
        },
        Change::Put(entry(key, "{\"weight\": 2}", 8)),
    ];
    bench
        .apply(
            Update::Changes {
                changes: replay,
                revision: 11,
            },
            11,
        )
        .await;
    assert!(Arc::ptr_eq(
        &before,
        &bench.route("a.example", "/").expect("served")
    ));
    assert_eq!(bench.metrics.control_plane.table_swaps.get(), swaps);
    // Of another history, though, an older revision counts.
    bench.snapshot(4, &[(key, "", 3)]).await;
    assert_eq!(
        bench.route("a.example", "/").expect("served").members[0].weight,
        1
    );
}

/// The cluster was wiped, so its revisions are lower than that of the last good version.
#[tokio::test]
async fn progress_and_the_fleets_keys_move_the_revision_without_a_swap() {
    let bench = Bench::start();
    bench.snapshot(1, &[("a.example/10.0.0.1:80", "", 1)]).await;
    let table = bench.live.table.load_full();
    bench.apply(Update::Progress { revision: 5 }, 5).await;
    bench.put("@waypost/pulse", "x", 6).await;
    assert!(Arc::ptr_eq(&table, &bench.live.table.load_full()));
}

#[tokio::test]
async fn round_robin_goes_on_over_a_change() {
    let bench = Bench::start();
    bench
        .snapshot(
            1,
            &[
                ("a.example/10.0.0.1:80", "", 1),
                ("a.example/10.0.0.2:80", "", 1),
            ],
        )
        .await;
    let before = bench.route("a.example", "/").expect("served");
    assert_eq!(pick(&before, &[]), Some(0));
    bench.put("a.example/10.0.0.2:80", "again", 2).await;
    let after = bench.route("a.example", "/").expect("served");
    assert!(!Arc::ptr_eq(&before, &after));
    assert_eq!(pick(&after, &[]), Some(1));
    assert_eq!(pick(&after, &[0]), Some(1));
    assert_eq!(pick(&after, &[0, 1]), None);
}

#[tokio::test]
async fn a_route_keeps_its_members_when_more_routes_change_than_are_edited_at_once() {
    let bench = Bench::start();
    let keys: Vec<String> = (0..3 * MOST_DRAFTS)
        .map(|index| {
            format!(
                "host-{:05}.example/10.0.0.{}:80",
                index % (MOST_DRAFTS + 7),
                index % 250
            )
        })
        .collect();
    let entries: Vec<_> = keys.iter().map(|key| (&**key, "", 1)).collect();
    bench.snapshot(1, &entries).await;
    let counts = bench.live.table.load().counts();
    let distinct: HashSet<_> = keys.iter().collect();
    assert_eq!(
        (counts.hosts, counts.members),
        (MOST_DRAFTS + 7, distinct.len())
    );
}

fn pick(route: &Route, tried: &[usize]) -> Option<usize> {
    let loads = &Loads::over(1).0;
    let ask = Ask {
        tried,
        loads,
        key: None,
        sticks_to: None,
        yields: false,
    };
    route.pick(ask).ok()
}
