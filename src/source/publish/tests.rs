mod restored;
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
async fn a_rejected_key_keeps_its_last_good_version() {
    let bench = Bench::start();
    let key = "a.example/10.0.0.1:80";
    bench.snapshot(1, &[(key, "{\"weight\": 7}", 1)]).await;
    bench.put(key, "{\"weight\": -1}", 2).await;
    bench.put("b.example/10.0.0.1:99999", "", 3).await;
    bench
        .put("c.example/10.0.0.1:80", "{\"wieght\": 1}", 4)
        .await;
    assert_eq!(
        bench.rejected(),
        [
            ("/hosts/a.example/10.0.0.1:80".to_owned(), true),
            ("/hosts/b.example/10.0.0.1:99999".to_owned(), false),
            ("/hosts/c.example/10.0.0.1:80".to_owned(), false),
        ]
    );
    assert_eq!(bench.metrics.control_plane.rejected_keys.get(), 3);
    let member = &bench.route("a.example", "/").expect("served").members[0];
    assert_eq!((member.weight, member.key.mod_revision), (7, 1));
    assert!(bench.route("c.example", "/").is_none());

    bench.delete("b.example/10.0.0.1:99999", 5).await;
    bench.put("c.example/10.0.0.1:80", "", 6).await;
    bench.delete(key, 7).await;
    assert_eq!(bench.rejected(), []);
    assert_eq!(bench.metrics.control_plane.rejected_keys.get(), 0);
    assert!(bench.route("a.example", "/").is_none());
    assert!(bench.route("c.example", "/").is_some());
}

#[tokio::test]
async fn of_very_many_rejected_keys_the_first_are_shown_and_all_are_counted() {
    let bench = Bench::start();
    let keys: Vec<_> = (0..rejections::SHOWN + 5)
        .map(|number| format!("h{number}/no-upstream"))
        .collect();
    let entries: Vec<_> = keys.iter().map(|key| (&**key, "", 1)).collect();
    bench.snapshot(1, &entries).await;
    let rejected = bench.live.rejected.load();
    assert_eq!(rejected.shown.len(), rejections::SHOWN);
    assert_eq!(rejected.total, rejections::SHOWN + 5);
}

/// Both are shown in logs, in JSON and in terminals.
#[tokio::test]
async fn a_hostile_key_makes_no_endless_reason_and_no_control_characters() {
    let bench = Bench::start();
    let value = format!("{{\"{}\": 1}}", "\\n\\u001b[2J".repeat(5_000));
    bench
        .snapshot(1, &[("a.example/10.0.0.1:80", &value, 1)])
        .await;
    let rejected = bench.live.rejected.load();
    let reason = &rejected.shown[0].reason;
    assert!(reason.len() < 2_000, "{} bytes", reason.len());
    assert!(!reason.contains(char::is_control), "{reason:?}");
}

#[tokio::test]
async fn settings_come_and_go_and_a_bad_one_keeps_the_last_good() {
    let bench = Bench::start();
    let settings = "a.example/api/@settings";
    bench
        .snapshot(
            1,
            &[
                ("a.example/api/10.0.0.1:80", "", 1),
                (settings, r#"{"strip_prefix": true}"#, 1),
            ],
        )
        .await;
    let strips = |bench: &Bench| {
        bench
            .route("a.example", "/api")
            .map(|route| route.settings.strip_prefix)
    };
    assert_eq!(strips(&bench), Some(true));
    bench.put(settings, r#"{"mirror": "b:80"}"#, 2).await;
    assert_eq!(strips(&bench), Some(true));
    assert_eq!(
        bench.rejected(),
        [("/hosts/a.example/api/@settings".to_owned(), true)]
    );
    bench
        .put(settings, r#"{"host_header": "upstream"}"#, 3)
        .await;
    assert_eq!(strips(&bench), Some(false));
    let route = bench.route("a.example", "/api/x").expect("served");
    assert_eq!(route.settings.host_header, HostHeader::Upstream);
    assert_eq!(
        (route.settings_key.as_ref()).map(|in_force| in_force.version.mod_revision),
        Some(3)
    );
    bench.delete(settings, 4).await;
    let route = bench.route("a.example", "/api").expect("served");
    assert!(Arc::ptr_eq(
        &route.settings,
        &crate::route::Settings::shared_default()
    ));
    assert_eq!(bench.rejected(), []);
}

#[tokio::test]
async fn settings_under_two_spellings_of_a_host_do_not_delete_each_other() {
    let bench = Bench::start();
    let in_force = |bench: &Bench| {
        let route = bench.route("blog.x", "/")?;
        let version = &route.settings_key.as_ref()?.version;
        Some((
            route.settings.add_prefix.to_string(),
            version.key.to_string(),
            version.mod_revision,
        ))
    };
    let expected = |prefix: &str, spelling: &str, revision| {
        Some((
            prefix.to_owned(),
            format!("/hosts/{spelling}/@settings"),
            revision,
        ))
    };
    let asking_for = |prefix: &str| format!("{{\"add_prefix\": \"{prefix}\"}}");
    bench
        .snapshot(
            3,
            &[
                ("blog.x/10.0.0.1:80", "", 1),
                ("Blog.x/@settings", &asking_for("/upper"), 2),
                ("blog.x/@settings", &asking_for("/lower"), 3),
            ],
        )
        .await;
    assert_eq!(in_force(&bench), expected("/upper", "Blog.x", 2));
    bench
        .put("blog.x/@settings", &asking_for("/waits"), 4)
        .await;
    assert_eq!(in_force(&bench), expected("/upper", "Blog.x", 2));
    bench.delete("Blog.x/@settings", 5).await;
    assert_eq!(in_force(&bench), expected("/waits", "blog.x", 4));
    bench
        .put("Blog.x/@settings", &asking_for("/again"), 6)
        .await;
    assert_eq!(in_force(&bench), expected("/again", "Blog.x", 6));
    // Gone while nobody watched, though it was not in force.
    bench
        .snapshot(
            9,
            &[
                ("blog.x/10.0.0.1:80", "", 1),
                ("Blog.x/@settings", &asking_for("/again"), 6),
            ],
        )
        .await;
    bench.delete("Blog.x/@settings", 10).await;
    assert_eq!(in_force(&bench), None);
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
async fn a_key_rejected_in_another_history_can_be_mended_and_deleted_there() {
    let bench = Bench::start();
    let (mended, deleted) = ("a.example/10.0.0.1:80", "b.example/10.0.0.1:80");
    bench
        .snapshot(100, &[(mended, "", 90), (deleted, "", 91)])
        .await;
    let bad = "{\"weight\": -1}";
    bench
        .snapshot(5, &[(mended, bad, 3), (deleted, bad, 4)])
        .await;
    assert_eq!(bench.rejected().len(), 2);
    bench.put(mended, "{\"weight\": 7}", 6).await;
    bench.delete(deleted, 7).await;
    let route = bench.route("a.example", "/").expect("served");
    assert_eq!(route.members[0].weight, 7);
    assert!(bench.route("b.example", "/").is_none());
    assert_eq!(bench.rejected(), []);
}

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
async fn a_name_becomes_one_member_per_address() {
    let mut bench = Bench::start();
    bench.snapshot(1, &[("z.example/10.0.0.9:80", "", 1)]).await;
    bench
        .put("a.example/app.internal:80", "{\"weight\": 3}", 2)
        .await;
    bench.put("a.example/10.0.0.1:80", "", 3).await;
    let Some(Question::Watch(name)) = bench.questions.recv().await else {
        panic!("the name is asked for");
    };
    let route = bench.route("a.example", "/").expect("served");
    assert!(matches!(
        route.members[1].upstream.identity.endpoint,
        Endpoint::Unresolved(..)
    ));
    assert_eq!(
        [pick(&route, &[]), pick(&route, &[])],
        [Some(0); 2],
        "an unresolved member waits"
    );
    assert_eq!(pick(&route, &[0]), Some(1), "unless there is no other");

    let mut tables = bench.live.applied.subscribe();
    let addresses = vec![
        "10.1.0.1".parse().expect("an address"),
        "10.1.0.2".parse().expect("an address"),
    ];
    bench
        .answers
        .send(Answer {
            name: name.clone(),
            addresses,
            fallbacks: Vec::new(),
        })
        .expect("it listens");
    tables.changed().await.expect("it runs");
    assert_eq!(
        bench.upstreams("a.example"),
        ["10.0.0.1:80", "10.1.0.1:80", "10.1.0.2:80"]
    );
    let route = bench.route("a.example", "/").expect("served");
    assert!(route.members[1..].iter().all(|member| member.weight == 3));

    bench.delete("a.example/app.internal:80", 4).await;
    assert_eq!(bench.upstreams("a.example"), ["10.0.0.1:80"]);
    let Some(Question::Forget(forgotten)) = bench.questions.recv().await else {
        panic!("the name is let go of");
    };
    assert_eq!(forgotten, name);
}

#[tokio::test]
async fn a_name_that_moves_to_another_route_keeps_its_addresses() {
    let mut bench = Bench::start();
    let move_to = |from: &str, to: &str, revision| Update::Changes {
        changes: vec![
            Change::Delete {
                key: full(&format!("{from}/app.internal:80")),
                mod_revision: revision,
            },
            Change::Put(entry(&format!("{to}/app.internal:80"), "", revision)),
        ],
        revision,
    };
    bench.snapshot(1, &[]).await;
    bench.put("a.example/app.internal:80", "", 2).await;
    let mut tables = bench.live.applied.subscribe();
    bench
        .answers
        .send(Answer {
            name: "app.internal".into(),
            addresses: vec!["10.1.0.1".parse().expect("an address")],
            fallbacks: Vec::new(),
        })
        .expect("it listens");
    tables.changed().await.expect("it runs");
    assert_eq!(bench.upstreams("a.example"), ["10.1.0.1:80"]);
    // Often, because drafts are built in no order.
    for revision in (3..40).step_by(2) {
        bench
            .apply(move_to("a.example", "b.example", revision), revision)
            .await;
        assert_eq!(bench.upstreams("b.example"), ["10.1.0.1:80"]);
        let next = revision + 1;
        bench
            .apply(move_to("b.example", "a.example", next), next)
            .await;
        assert_eq!(bench.upstreams("a.example"), ["10.1.0.1:80"]);
    }
    assert!(matches!(
        bench.questions.recv().await,
        Some(Question::Watch(_))
    ));
    assert!(bench.questions.try_recv().is_err(), "asked for once");
}

#[tokio::test]
async fn the_first_table_waits_for_its_names() {
    let mut bench = Bench::start();
    let mut questions = std::mem::replace(&mut bench.questions, mpsc::unbounded_channel().1);
    let answer = Answer {
        name: "app.internal".into(),
        addresses: vec!["10.1.0.1".parse().expect("an address")],
        fallbacks: Vec::new(),
    };
    let first = bench.snapshot(1, &[("a.example/app.internal:80", "", 1)]);
    let answers = bench.answers.clone();
    let replies = async {
        questions.recv().await.expect("the name is asked for");
        answers.send(answer).expect("it listens");
    };
    tokio::join!(first, replies);
    let table = bench.live.table.load();
    let route = table.find("a.example", "/").expect("served");
    assert_eq!(&*route.members[0].upstream.name, "10.1.0.1:80");
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

#[test]
fn checking_tells_what_publishing_would_reject() {
    let entries = [
        entry("a.example/10.0.0.1:80", "any text", 1),
        entry("a.example/10.0.0.1", "", 2),
        entry("a.example/@settings", "{}", 3),
        entry("b.example/@settings", "{\"balance\": 5}", 4),
        entry("@waypost/pulse", "", 5),
    ];
    let rejected = check("/hosts/", &entries);
    let keys: Vec<_> = rejected.iter().map(|rejected| &*rejected.key).collect();
    assert_eq!(
        keys,
        ["/hosts/a.example/10.0.0.1", "/hosts/b.example/@settings"]
    );
}

const FIVE: [(&str, &str, Revision); 5] = [
    ("a.example/10.0.0.1:80", "", 90),
    ("b.example/10.0.0.1:80", "", 91),
    ("c.example/10.0.0.1:80", "", 92),
    ("d.example/10.0.0.1:80", "", 93),
    ("e.example/10.0.0.1:80", "", 94),
];

#[tokio::test(start_paused = true)]
async fn few_deletions_of_another_history_are_held_until_they_are_still() {
    let bench = Bench::start();
    bench.snapshot(100, &FIVE).await;
    let mut restored = FIVE[..3].to_vec();
    restored.push(("new.example/10.0.0.1:80", "", 5));
    let started = tokio::time::Instant::now();
    bench.another(7, &restored).await;
    assert_eq!(bench.hosts(), 6, "additions apply at once");
    assert_eq!(
        bench.held(),
        [
            "/hosts/d.example/10.0.0.1:80",
            "/hosts/e.example/10.0.0.1:80"
        ]
    );

    tokio::time::sleep(held::STILL / 2).await;
    bench
        .put("e.example/10.0.0.1:80", "{\"weight\": 2}", 8)
        .await;
    assert_eq!(bench.held(), ["/hosts/d.example/10.0.0.1:80"]);
    let member = &bench.route("e.example", "/").expect("served").members[0];
    assert_eq!((member.weight, member.key.mod_revision), (2, 8));
    // Other changes don't count as motion.
    tokio::time::sleep(held::STILL / 2).await;
    bench.put("f.example/10.0.0.1:80", "", 9).await;
    assert_eq!(bench.hosts(), 7);
    let mut tables = bench.live.applied.subscribe();
    tables.changed().await.expect("it runs");
    assert_eq!(started.elapsed(), held::STILL + held::STILL / 2);
    assert_eq!(bench.held(), [""; 0]);
    assert!(bench.route("d.example", "/").is_none());
    assert_eq!(bench.hosts(), 6);
}

/// As at a start with etcd down, or where it is away for a while.
#[tokio::test(start_paused = true)]
async fn deletions_are_still_only_while_changes_would_be_heard_of() {
    let bench = Bench::start();
    let connect = |is_connected| {
        let set = |status: &mut Status| status.connected = is_connected;
        bench.live.status.send_modify(set);
    };
    let pass = async |time| {
        tokio::time::sleep(time).await;
        bench.held().len()
    };
    bench.snapshot(100, &FIVE).await;
    bench.another(7, &FIVE[..3]).await;
    assert_eq!(pass(held::STILL - Duration::from_secs(1)).await, 2);
    connect(false);
    assert_eq!(pass(10 * held::STILL).await, 2);
    connect(true);
    assert_eq!(pass(held::STILL - Duration::from_secs(1)).await, 2);
    assert_eq!(pass(Duration::from_secs(2)).await, 0);

    connect(false);
    bench.another(8, &FIVE[..2]).await;
    assert_eq!(pass(10 * held::STILL).await, 1);
    connect(true);
    assert_eq!(pass(held::STILL - Duration::from_secs(1)).await, 1);
    assert_eq!(pass(Duration::from_secs(2)).await, 0);
}

#[tokio::test(start_paused = true)]
async fn half_of_the_hosts_goes_only_by_an_operators_word() {
    let bench = Bench::start();
    bench.snapshot(100, &FIVE[..4]).await;
    bench.another(7, &FIVE[..2]).await;
    tokio::time::sleep(10 * held::STILL).await;
    assert_eq!((bench.held().len(), bench.hosts()), (2, 4));
    assert_eq!(bench.acceptance.accept().await, Some(2));
    assert_eq!((bench.held().len(), bench.hosts()), (0, 2));
    assert_eq!(bench.live.table.load().revision, 7);
    assert_eq!(bench.acceptance.accept().await, Some(0));
}

/// A host that keeps another upstream is not removed, so all five may lose one by themselves.
#[tokio::test(start_paused = true)]
async fn a_host_counts_as_removed_only_without_its_last_upstream() {
    let bench = Bench::start();
    let second = FIVE.map(|(key, ..)| key.replace("0.1:80", "0.2:80"));
    let second: Vec<_> = second.iter().map(|key| (&**key, "", 95)).collect();
    bench.snapshot(100, &[&FIVE[..], &second].concat()).await;
    bench.another(7, &FIVE).await;
    assert_eq!((bench.held().len(), bench.hosts()), (5, 5));
    tokio::time::sleep(2 * held::STILL).await;
    assert_eq!((bench.held().len(), bench.hosts()), (0, 5));
    assert_eq!(bench.upstreams("a.example"), ["10.0.0.1:80"]);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_applied_while_etcd_is_away() {
    let bench = Bench::start();
    bench.snapshot(100, &FIVE).await;
    bench.another(7, &FIVE[..4]).await;
    bench
        .live
        .status
        .send_modify(|status| status.connected = false);
    tokio::time::sleep(5 * held::STILL).await;
    assert_eq!(bench.held().len(), 1);
    bench
        .live
        .status
        .send_modify(|status| status.connected = true);
    tokio::time::sleep(2 * held::STILL).await;
    assert_eq!((bench.held().len(), bench.hosts()), (0, 4));
}

#[tokio::test(start_paused = true)]
async fn within_one_history_deletions_apply_at_once_and_held_ones_stay_held() {
    let bench = Bench::start();
    bench.snapshot(100, &FIVE).await;
    bench.another(7, &FIVE[..3]).await;
    let keys = bench.held();
    let two = [FIVE[0], FIVE[1]].map(|(key, value, _)| (key, value, 6));
    bench.snapshot(9, &two).await;
    assert_eq!(bench.held(), keys);
    assert_eq!(bench.hosts(), 4);
    for (key, revision) in [(FIVE[0].0, 10), (FIVE[1].0, 11)] {
        bench.delete(key, revision).await;
    }
    assert_eq!(
        bench.hosts(),
        2,
        "what etcd deletes is gone, the last key too"
    );
    // The set grows with the next wipe, and shrinks with what is there again.
    bench.put("new.example/10.0.0.1:80", "", 12).await;
    bench.another(1, &[FIVE[3]]).await;
    assert_eq!(
        bench.held(),
        [
            "/hosts/e.example/10.0.0.1:80",
            "/hosts/new.example/10.0.0.1:80"
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn a_held_key_that_comes_back_bad_is_rejected_and_its_last_good_version_stays() {
    let bench = Bench::start();
    let key = "a.example/10.0.0.1:80";
    bench
        .snapshot(
            100,
            &[(key, "{\"weight\": 7}", 90), ("b.example/x", "", 91)],
        )
        .await;
    bench.another(2, &[]).await;
    assert_eq!(bench.rejected(), [], "a rejected key that is gone is gone");
    bench.put(key, "{\"weight\": -1}", 3).await;
    assert_eq!(bench.held(), [""; 0]);
    assert_eq!(bench.rejected(), [(format!("/hosts/{key}"), true)]);
    assert_eq!(
        bench.route("a.example", "/").expect("served").members[0].weight,
        7
    );
    bench.delete(key, 4).await;
    assert_eq!((bench.hosts(), bench.rejected().len()), (0, 0));
}

/// The key is served on, so nobody may be told that it is gone, or that all of this revision is in force.
#[tokio::test]
async fn a_barrier_behind_a_held_deletion_is_not_passed() {
    let bench = Bench::start();
    let (lost, kept) = (
        ("lost.example/10.0.0.1:80", "", 8),
        ("kept.example/10.0.0.1:80", "", 9),
    );
    bench.snapshot(9, &[lost, kept]).await;
    let barriers = [
        ("@waypost/barriers/any", "{}", 4),
        (
            "@waypost/barriers/kept",
            r#"{"key": "/hosts/kept.example/10.0.0.1:80"}"#,
            4,
        ),
        (
            "@waypost/barriers/lost",
            r#"{"key": "/hosts/lost.example/10.0.0.1:80", "drain": true}"#,
            4,
        ),
    ];
    bench.another(4, &[&[kept], &barriers[..]].concat()).await;
    assert_eq!(bench.held(), ["/hosts/lost.example/10.0.0.1:80"]);
    let rejection = async |id: &str| {
        let mut open = bench.live.barriers.subscribe();
        let open = open.wait_for(|open| open.contains_key(id)).await.unwrap();
        open[id].rejection.clone()
    };
    for (id, expected) in [
        ("any", Some("deletions are held")),
        ("kept", None),
        ("lost", Some("its deletion is held")),
    ] {
        let rejection = rejection(id).await;
        let is_so = match expected {
            Some(text) => rejection
                .as_ref()
                .is_some_and(|said| said.starts_with(text)),
            None => rejection.is_none(),
        };
        assert!(is_so, "{id}: {rejection:?}");
    }

    assert_eq!(bench.acceptance.accept().await, Some(1));
    bench.put("@waypost/barriers/later", "{}", 5).await;
    assert_eq!(rejection("later").await, None);
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
