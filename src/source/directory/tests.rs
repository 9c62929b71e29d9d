use std::{fs, os::unix::fs::symlink};

use tempfile::TempDir;

use super::*;
use crate::{
    live::Status,
    route::settings::Balance,
    source::{publish::Publisher, resolve::Names},
    telemetry::metrics::Metrics,
};

/// A directory that is followed by a running publisher.
struct Followed {
    dir: PathBuf,
    live: Arc<Live>,
    _parent: TempDir,
}

impl Followed {
    /// Of the first table of a directory with these files.
    async fn start(files: &[(&str, &str)]) -> Self {
        let parent = tempfile::tempdir().expect("a temporary directory");
        let dir = parent.path().join("hosts");
        fs::create_dir(&dir).expect("a directory");
        for (file, value) in files {
            write(&dir, file, value);
        }
        Self::follow(parent, dir).await
    }

    async fn follow(parent: TempDir, dir: PathBuf) -> Self {
        let directory = Directory::open(dir.clone(), "/hosts/").expect("it is there");
        let live = Live::new(Status::before("directory", dir.display().to_string()));
        let (updates, receiver) = mpsc::channel(4);
        let (names, _, _) = Names::channels();
        let publisher = Publisher::new(
            live.clone(),
            Metrics::new(),
            "/hosts/".to_owned(),
            Balance::RoundRobin,
            names,
        );
        tokio::spawn(publisher.run(receiver));
        tokio::spawn(directory.run(live.clone(), updates));
        let followed = Self {
            dir,
            live,
            _parent: parent,
        };
        let mut applied = followed.live.applied.subscribe();
        let first = applied.wait_for(Option::is_some);
        timeout(Duration::from_secs(5), first)
            .await
            .expect("a first table in time")
            .expect("it runs");
        followed
    }

    /// Waits until `host` has these upstreams; far below the safety net.
    async fn expect(&self, host: &str, upstreams: &[&str]) {
        let mut applied = self.live.applied.subscribe();
        let are_so = applied.wait_for(|_| self.upstreams(host) == upstreams);
        if timeout(Duration::from_secs(5), are_so).await.is_err() {
            panic!("{host} has {:?}, not {upstreams:?}", self.upstreams(host));
        }
    }

    fn upstreams(&self, host: &str) -> Vec<String> {
        let table = self.live.table.load();
        let Ok(route) = table.find(host, "/") else {
            return Vec::new();
        };
        let names = route.members.iter().map(|member| &member.upstream.name);
        names.map(|name| name.to_string()).collect()
    }
}

fn write(dir: &Path, file: &str, value: &str) {
    let path = dir.join(file);
    fs::create_dir_all(path.parent().expect("a file has a parent")).expect("a directory");
    fs::write(path, value).expect("a file");
}

#[tokio::test]
async fn files_are_routes_and_changes_apply_while_running() {
    let hosts =
        Followed::start(&[("a.example/10.0.0.1:80", ""), ("a.example/@settings", "{}")]).await;
    hosts.expect("a.example", &["10.0.0.1:80"]).await;

    write(&hosts.dir, "a.example/10.0.0.2:80", "{\"weight\": 5}");
    hosts
        .expect("a.example", &["10.0.0.1:80", "10.0.0.2:80"])
        .await;

    write(&hosts.dir, "new.example/10.0.0.3:80", "");
    hosts.expect("new.example", &["10.0.0.3:80"]).await;

    fs::remove_file(hosts.dir.join("a.example/10.0.0.1:80")).expect("it is there");
    hosts.expect("a.example", &["10.0.0.2:80"]).await;

    fs::rename(hosts.dir.join("new.example"), hosts.dir.join("b.example")).expect("it is there");
    hosts.expect("b.example", &["10.0.0.3:80"]).await;
    hosts.expect("new.example", &[]).await;

    write(&hosts.dir, "a.example/10.0.0.2:80", "{\"weight\": -5}");
    let mut applied = hosts.live.applied.subscribe();
    let is_rejected = applied.wait_for(|_| hosts.live.rejected.load().total > 0);
    timeout(Duration::from_secs(5), is_rejected)
        .await
        .expect("in time")
        .expect("it runs");
    hosts.expect("a.example", &["10.0.0.2:80"]).await;
    assert!(hosts.live.rejected.load().shown[0].last_good_in_force);
}

#[tokio::test]
async fn a_content_of_the_same_length_is_a_change() {
    let hosts = Followed::start(&[("a.example/10.0.0.1:80", "{\"weight\": 1}")]).await;
    let weight = || {
        let table = hosts.live.table.load();
        table
            .find("a.example", "/")
            .map(|route| route.members[0].weight)
    };
    for expected in 2..9 {
        write(
            &hosts.dir,
            "a.example/10.0.0.1:80",
            &format!("{{\"weight\": {expected}}}"),
        );
        let mut applied = hosts.live.applied.subscribe();
        let is_so = applied.wait_for(|_| weight() == Ok(expected));
        timeout(Duration::from_secs(5), is_so)
            .await
            .expect("in time")
            .expect("it runs");
    }
}

#[tokio::test]
async fn a_link_swapped_below_or_above_is_followed() {
    let parent = tempfile::tempdir().expect("a temporary directory");
    let at = |name: &str| parent.path().join(name);
    // A host that is a mounted ConfigMap, in a checkout that a link leads to.
    write(&at("one/a.example/..1"), "10.0.0.1:80", "");
    write(&at("one/a.example/..2"), "10.0.0.1:80", "{\"weight\": 2}");
    symlink("..1", at("one/a.example/..data")).expect("a link");
    symlink("..data/10.0.0.1:80", at("one/a.example/10.0.0.1:80")).expect("a link");
    write(&at("two"), "a.example/10.0.0.2:80", "");
    symlink("one", at("current")).expect("a link");
    let swap = |link: &str, target: &str| {
        symlink(target, at("next")).expect("a link");
        fs::rename(at("next"), at(link)).expect("a rename");
    };
    let dir = at("current");
    let (one, two) = (at("one"), at("two"));
    let renamed = one.join("a.example/..data");

    let hosts = Followed::follow(tempfile::tempdir().expect("unused"), dir).await;
    hosts.expect("a.example", &["10.0.0.1:80"]).await;
    swap(
        renamed
            .strip_prefix(parent.path())
            .expect("below")
            .to_str()
            .expect("UTF-8"),
        "..2",
    );
    let mut applied = hosts.live.applied.subscribe();
    let is_swapped = applied.wait_for(|_| {
        let table = hosts.live.table.load();
        table
            .find("a.example", "/")
            .is_ok_and(|route| route.members[0].weight == 2)
    });
    timeout(Duration::from_secs(5), is_swapped)
        .await
        .expect("in time")
        .expect("it runs");

    swap("current", "two");
    hosts.expect("a.example", &["10.0.0.2:80"]).await;
    write(&two, "a.example/10.0.0.3:80", "");
    hosts
        .expect("a.example", &["10.0.0.2:80", "10.0.0.3:80"])
        .await;
}

#[tokio::test]
async fn a_vanished_directory_leaves_its_routes_and_is_followed_again() {
    let hosts = Followed::start(&[("a.example/10.0.0.1:80", "")]).await;
    let mut status = hosts.live.status.subscribe();
    let away = hosts.dir.with_file_name("away");
    fs::rename(&hosts.dir, &away).expect("it is there");
    let is_lost = status.wait_for(|status| !status.connected && status.stale_since.is_some());
    let lost = timeout(Duration::from_secs(5), is_lost)
        .await
        .expect("in time")
        .expect("it runs")
        .clone();
    assert!(lost.error.is_some_and(|error| error.contains("hosts")));
    assert_eq!(hosts.upstreams("a.example"), ["10.0.0.1:80"]);

    write(&hosts.dir, "a.example/10.0.0.2:80", "");
    hosts.expect("a.example", &["10.0.0.2:80"]).await;
    let is_back = status.wait_for(|status| status.connected && status.stale_since.is_none());
    timeout(Duration::from_secs(5), is_back)
        .await
        .expect("in time")
        .expect("it runs");
    write(&hosts.dir, "a.example/10.0.0.3:80", "");
    hosts
        .expect("a.example", &["10.0.0.2:80", "10.0.0.3:80"])
        .await;
}

#[test]
fn what_is_no_host_file_is_passed_over_and_loops_end() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    write(dir.path(), "a.example/10.0.0.1:80", "x");
    for file in [
        "a.example/.10.0.0.1:80.swp",
        "a.example/10.0.0.1:80~",
        ".git/config",
        "a.example/4913.tmp",
    ] {
        write(dir.path(), file, "");
    }
    write(dir.path(), "a.example/10.0.0.2:80", &"x".repeat(200_000));
    symlink(".", dir.path().join("a.example/loop")).expect("a link");
    symlink("..", dir.path().join("a.example/up")).expect("a link");
    symlink("nowhere", dir.path().join("a.example/10.0.0.3:80")).expect("a link");
    let directory = Directory::open(dir.path().to_owned(), "/hosts/").expect("it is there");
    let (entries, unreadable) = directory.read().expect("readable");
    let sizes: Vec<_> = entries
        .iter()
        .map(|entry| {
            (
                String::from_utf8_lossy(&entry.key).into_owned(),
                entry.value.len(),
            )
        })
        .collect();
    assert_eq!(
        sizes,
        [
            ("/hosts/a.example/10.0.0.1:80".to_owned(), 1),
            ("/hosts/a.example/10.0.0.2:80".to_owned(), 65_537),
        ]
    );
    assert_eq!(unreadable, Vec::<String>::new());
}

/// A link to itself can't be followed, whoever asks; a directory without rights can, by root.
#[tokio::test]
async fn what_cannot_be_read_keeps_its_routes_and_stops_no_others() {
    let hosts = Followed::start(&[
        (".real/10.0.0.1:80", ""),
        (".real/api/10.0.0.2:80", ""),
        ("b.example/10.0.0.1:80", ""),
    ])
    .await;
    symlink(".real", hosts.dir.join("a.example")).expect("a link");
    hosts.expect("a.example", &["10.0.0.1:80"]).await;
    symlink("a.example", hosts.dir.join(".new")).expect("a link");
    fs::rename(hosts.dir.join(".new"), hosts.dir.join("a.example")).expect("a rename");
    write(&hosts.dir, "b.example/10.0.0.2:80", "");
    hosts
        .expect("b.example", &["10.0.0.1:80", "10.0.0.2:80"])
        .await;
    assert_eq!(hosts.upstreams("a.example"), ["10.0.0.1:80"]);
    assert_eq!(hosts.live.table.load().counts().members, 4);
    assert!(hosts.live.status.borrow().connected);
    let directory = Directory::open(hosts.dir.clone(), "/hosts/").expect("it is there");
    let (entries, unreadable) = directory.read().expect("readable");
    assert_eq!((entries.len(), unreadable.len()), (2, 1));
    assert!(unreadable[0].contains("a.example"), "{unreadable:?}");
}

#[test]
fn a_missing_directory_or_a_file_is_refused_by_name() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    fs::write(dir.path().join("file"), "").expect("a file");
    for (name, expected) in [("missing", "create it"), ("file", "is not a directory")] {
        let path = dir.path().join(name);
        let error = Directory::open(path.clone(), "/hosts/")
            .err()
            .expect(name)
            .to_string();
        assert!(
            error.contains(expected) && error.contains(&path.display().to_string()),
            "{error}"
        );
    }
}
