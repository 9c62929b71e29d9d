//! `waypost rollback`: what it puts back in a real etcd, in how many transactions, and when it does not.

use std::{collections::BTreeMap, process::Stdio, time::Duration};

use etcd_client::{GetOptions, PutOptions, TxnOp};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::{Child, Command},
    time::timeout,
};

use crate::support::{
    etcd::EtcdCluster,
    link::Link,
    waypost::{BINARY, Ended, eventually, waypost},
};

#[tokio::test]
async fn a_host_is_put_back_at_one_revision_and_on_record() {
    let etcd = EtcdCluster::start(1).await;
    etcd.put("/hosts/a.test/10.0.0.1:80", "").await;
    etcd.put("/hosts/A.test/api/10.0.0.2:80", "{}").await;
    etcd.put("/hosts/b.test/10.0.0.1:80", "").await;
    let good = etcd.put("/hosts/@waypost/pulse", "1").await;
    etcd.txn([
        TxnOp::put("/hosts/a.test/10.0.0.1:80", r#"{"weight": 0}"#, None),
        TxnOp::delete("/hosts/A.test/api/10.0.0.2:80", None),
        TxnOp::put("/hosts/a.test/10.0.0.3:80", "", None),
        TxnOp::delete("/hosts/b.test/10.0.0.1:80", None),
        TxnOp::put("/hosts/@waypost/pulse", "2", None),
    ])
    .await;
    let before = keys(&etcd).await;

    let shown = rollback(&etcd, good, &["a.test"]).await;
    assert_eq!(shown.code, Some(2), "{shown:?}");
    assert!(
        shown.stderr.contains("no terminal") && shown.stderr.contains("--yes"),
        "{shown:?}"
    );
    assert_eq!(keys(&etcd).await, before);

    let done = rollback(&etcd, good, &["a.test", "--yes"]).await;
    assert_eq!((done.code, &*done.stderr), (Some(0), ""), "{done:?}");
    let now = keys(&etcd).await;
    let revision = now["/waypost/hosts/change"].1;
    let difference = "+ /hosts/A.test/api/10.0.0.2:80 {}\n\
                      ~ /hosts/a.test/10.0.0.1:80 {\"weight\": 0} -> ''\n\
                      - /hosts/a.test/10.0.0.3:80\n";
    assert_eq!(shown.stdout, difference);
    assert_eq!(
        done.stdout,
        format!("{difference}revision {revision}: 2 put, 1 deleted\n")
    );
    let routes: Vec<_> = now
        .iter()
        .map(|(key, (value, _))| (&**key, &**value))
        .collect();
    assert_eq!(
        routes[..3],
        [
            ("/hosts/@waypost/pulse", "2"),
            ("/hosts/A.test/api/10.0.0.2:80", "{}"),
            ("/hosts/a.test/10.0.0.1:80", ""),
        ]
    );
    assert_eq!(routes.len(), 4, "and the record: {routes:?}");
    for key in ["/hosts/A.test/api/10.0.0.2:80", "/hosts/a.test/10.0.0.1:80"] {
        assert_eq!(now[key].1, revision, "{key}");
    }
    let told = waypost(&["history", "a.test", "--etcd", &etcd.endpoints()[0]]).await;
    let command = format!("waypost rollback --to {good} a.test");
    assert!(told.stdout.contains(&command), "{told:?}");

    let again = rollback(&etcd, good, &["a.test"]).await;
    assert_eq!((again.code, &*again.stdout), (Some(0), ""), "{again:?}");
    assert!(again.stderr.starts_with("nothing to do"), "{again:?}");
    assert_eq!(keys(&etcd).await, now);
}

#[tokio::test]
async fn as_many_keys_as_fit_change_at_once_and_more_host_by_host() {
    let large = "x".repeat(500 << 10);
    for (hosts, per_host, value, expected) in [
        (1, 127, "", &[127][..]),
        (100, 3, "", &[126, 126, 48]),
        (1, 300, "", &[127, 127, 46]),
        (1, 3, &large, &[2, 1]),
    ] {
        let etcd = EtcdCluster::start(1).await;
        let names: Vec<_> = (0..hosts * per_host)
            .map(|key| format!("/hosts/h{:03}.test/u{key:03}:80", key / per_host))
            .collect();
        let puts: Vec<_> = names
            .iter()
            .map(|key| TxnOp::put(&**key, value, None))
            .collect();
        let mut good = 0;
        for puts in puts.chunks(if value.is_empty() { 128 } else { 2 }) {
            good = etcd.txn(puts).await;
        }
        let before = keys(&etcd).await;
        // One of each host changes, the others go.
        for names in names.chunks(128) {
            let change = |(index, key): (usize, &String)| match index % per_host {
                0 => TxnOp::put(&**key, "changed", None),
                _ => TxnOp::delete(&**key, None),
            };
            etcd.txn(names.iter().enumerate().map(change).collect::<Vec<_>>())
                .await;
        }
        let added = etcd.put("/hosts/h000.test/z:80", "").await;
        etcd.delete("/hosts/h000.test/z:80").await;
        let done = rollback(&etcd, good, &["--yes"]).await;
        assert_eq!(done.code, Some(0), "{done:?}");
        let sizes: Vec<_> = done
            .stdout
            .lines()
            .filter_map(|line| line.strip_prefix("revision ")?.split(' ').nth(1))
            .map(|count| count.parse::<usize>().unwrap())
            .collect();
        assert_eq!(sizes, expected, "{}", done.stdout);
        let says_so = done.stdout.contains("too much for one transaction");
        assert_eq!(says_so, expected.len() > 1, "{}", done.stdout);
        let mut now = keys(&etcd).await;
        let (_, revision) = now.remove("/waypost/hosts/change").unwrap();
        assert_eq!(revision, added + 1 + i64::try_from(expected.len()).unwrap());
        let values = |keys: BTreeMap<String, (String, i64)>| {
            let values = keys.into_iter().map(|(key, (value, _))| (key, value));
            values.collect::<Vec<_>>()
        };
        assert!(
            values(now) == values(before),
            "not as it was: {hosts} hosts"
        );
    }
}

#[tokio::test]
async fn a_change_made_meanwhile_is_not_overwritten() {
    let etcd = EtcdCluster::start(1).await;
    etcd.put("/hosts/a.test/b:80", "old").await;
    let good = etcd.put("/hosts/a.test/c:80", "old").await;
    etcd.put("/hosts/a.test/b:80", "new").await;
    etcd.delete("/hosts/a.test/c:80").await;
    let mut terminal = Terminal::of(&etcd, good, "").await;
    terminal
        .until("change these 2 keys to the state of revision ")
        .await;
    let newer = etcd.put("/hosts/a.test/c:80", "of a colleague").await;
    let before = keys(&etcd).await;
    let (code, text) = terminal.answer("y").await;
    assert_eq!(code, Some(1), "{text}");
    let said = format!(
        "/hosts/a.test/c:80 was changed meanwhile, at revision {newer}; nothing is changed"
    );
    assert!(text.contains(&said), "{text}");
    assert_eq!(keys(&etcd).await, before);
}

#[tokio::test]
async fn a_rollback_that_fails_midway_says_what_was_done() {
    let etcd = EtcdCluster::start(1).await;
    let names: Vec<_> = (0..300)
        .map(|key| format!("/hosts/h{key:03}.test/u:80"))
        .collect();
    let mut good = 0;
    for names in names.chunks(100) {
        let put = |key: &String| TxnOp::put(&**key, "old", None);
        good = etcd.txn(names.iter().map(put).collect::<Vec<_>>()).await;
    }
    for names in names.chunks(100) {
        let put = |key: &String| TxnOp::put(&**key, "new", None);
        etcd.txn(names.iter().map(put).collect::<Vec<_>>()).await;
    }
    let mut terminal = Terminal::of(&etcd, good, "").await;
    terminal.until("[y/N]").await;
    etcd.delete(&names[299]).await;
    let (code, text) = terminal.answer("yes").await;
    assert_eq!(code, Some(1), "{text}");
    for said in [
        "in 3 of them, puts before deletes",
        "127 put, 0 deleted (1 of 3)",
        "127 put, 0 deleted (2 of 3)",
        "/hosts/h299.test/u:80 was deleted meanwhile; the first 254 of the 300 changes shown are made and the others are not",
    ] {
        assert!(text.contains(said), "{said}: {text}");
    }
    let now = keys(&etcd).await;
    for (index, key) in names[..299].iter().enumerate() {
        let expected = if index < 254 { "old" } else { "new" };
        assert_eq!(now[key].0, expected, "{key}");
    }
    assert!(!now.contains_key(&names[299]));
}

/// The connection breaks when etcd has made the first of two transactions, and before it can say so.
#[tokio::test]
async fn a_rollback_whose_answer_is_lost_says_so() {
    let etcd = EtcdCluster::start(1).await;
    for (hosts, said) in [
        (1, "whether the changes shown are made is not known"),
        (
            130,
            "the first 0 of the 130 changes shown are made; whether the next 127 are is not known",
        ),
    ] {
        let names = (0..hosts).map(|host| format!("/hosts/h{host:03}.test/u:80"));
        let names: Vec<_> = names.collect();
        let mut revision = 0;
        for value in ["old", "new"] {
            for names in names.chunks(100) {
                let put = |key: &String| TxnOp::put(&**key, value, None);
                let puts: Vec<_> = names.iter().map(put).collect();
                let last = etcd.txn(puts).await;
                revision = if value == "old" { last } else { revision };
            }
        }
        let link = Link::to(&etcd.endpoints()[0]).await;
        let mut terminal = Terminal::at(&link.url(), revision, "").await;
        terminal.until("[y/N]").await;
        link.hold_answers_to(&names[0]);
        let cut = async {
            eventually("it is back", async || {
                keys(&etcd).await[&names[0]].0 == "old"
            })
            .await;
            link.cut();
        };
        let ((code, text), ()) = tokio::join!(terminal.answer("y"), cut);
        assert_eq!(code, Some(1), "{text}");
        assert!(text.contains(said), "{text}");
        assert!(!text.contains("nothing is changed"), "{text}");
    }
}

#[tokio::test]
async fn the_answer_decides() {
    let etcd = EtcdCluster::start(1).await;
    let good = etcd.put("/hosts/a.test/b:80", "old").await;
    etcd.put("/hosts/a.test/b:80", "new").await;
    for answer in ["", "n", "what?"] {
        let mut terminal = Terminal::of(&etcd, good, "a.test").await;
        terminal.until("[y/N]").await;
        let (code, text) = terminal.answer(answer).await;
        assert_eq!(code, Some(1), "{answer}: {text}");
        assert!(text.contains("nothing is changed"), "{answer}: {text}");
        assert_eq!(keys(&etcd).await["/hosts/a.test/b:80"].0, "new");
    }
    let mut terminal = Terminal::of(&etcd, good, "a.test").await;
    terminal.until("[y/N]").await;
    let (code, text) = terminal.answer("Y").await;
    assert_eq!(code, Some(0), "{text}");
    assert_eq!(keys(&etcd).await["/hosts/a.test/b:80"].0, "old");
}

#[tokio::test]
async fn what_is_bound_to_a_lease_is_left_alone() {
    let etcd = EtcdCluster::start(1).await;
    let lease = etcd.client().lease_grant(600, None).await.unwrap().id();
    let bound = || Some(PutOptions::new().with_lease(lease));
    etcd.put("/hosts/a.test/b:80", "").await;
    let good = etcd
        .txn([TxnOp::put("/hosts/a.test/gone:80", "", bound())])
        .await;
    etcd.txn([
        TxnOp::delete("/hosts/a.test/b:80", None),
        TxnOp::delete("/hosts/a.test/gone:80", None),
        TxnOp::put("/hosts/a.test/come:80", "", bound()),
    ])
    .await;
    let done = rollback(&etcd, good, &["--yes"]).await;
    assert_eq!(done.code, Some(0), "{done:?}");
    for key in ["come", "gone"] {
        let line = format!(
            "left alone, as it is or was bound to lease {lease:x}: /hosts/a.test/{key}:80\n"
        );
        assert!(done.stdout.contains(&line), "{done:?}");
    }
    let now = keys(&etcd).await;
    let routes: Vec<_> = now.keys().map(String::as_str).collect();
    assert_eq!(
        routes,
        [
            "/hosts/a.test/b:80",
            "/hosts/a.test/come:80",
            "/waypost/hosts/change"
        ]
    );
    // Nothing else differs.
    let again = rollback(&etcd, good, &[]).await;
    assert_eq!(again.code, Some(0), "{again:?}");
    assert!(again.stderr.starts_with("nothing to do"), "{again:?}");
}

#[tokio::test]
async fn revisions_that_are_not_there_are_refused() {
    let etcd = EtcdCluster::start(1).await;
    let first = etcd.put("/hosts/a.test/b:80", "1").await;
    let second = etcd.put("/hosts/a.test/b:80", "2").await;
    let third = etcd.put("/hosts/a.test/b:80", "3").await;
    etcd.compact(second).await;
    let compacted = rollback(&etcd, first, &["--yes"]).await;
    assert_eq!(compacted.code, Some(1), "{compacted:?}");
    let said =
        format!("revision {first} is compacted away; the oldest that etcd still has is {second}");
    assert!(compacted.stderr.contains(&said), "{compacted:?}");
    let future = rollback(&etcd, third + 1, &["--yes"]).await;
    assert_eq!(future.code, Some(1), "{future:?}");
    let said = format!(
        "revision {} is still to come: etcd is at revision {third}",
        third + 1
    );
    assert!(future.stderr.contains(&said), "{future:?}");
    for wrong in [0, -5] {
        let ended = rollback(&etcd, wrong, &["--yes"]).await;
        assert_eq!(ended.code, Some(2), "{ended:?}");
        assert!(ended.stderr.contains("--to"), "{ended:?}");
    }
    let oldest = rollback(&etcd, second, &["--yes"]).await;
    assert_eq!(oldest.code, Some(0), "{oldest:?}");
    assert_eq!(keys(&etcd).await["/hosts/a.test/b:80"].0, "2");
}

async fn rollback(etcd: &EtcdCluster, to: i64, arguments: &[&str]) -> Ended {
    let (to, endpoint) = (format!("--to={to}"), etcd.endpoints()[0].clone());
    waypost(&[&["rollback", &to, "--etcd", &endpoint], arguments].concat()).await
}

/// Every key, with its value and mod_revision.
async fn keys(etcd: &EtcdCluster) -> BTreeMap<String, (String, i64)> {
    let all = GetOptions::new().with_all_keys();
    let answer = etcd.client().get("", Some(all)).await.expect("an answer");
    let pair = |pair: &etcd_client::KeyValue| {
        let value = pair.value_str().expect("text").to_owned();
        (
            pair.key_str().expect("text").to_owned(),
            (value, pair.mod_revision()),
        )
    };
    answer.kvs().iter().map(pair).collect()
}

/// `waypost rollback` on a terminal, which `script` makes.
struct Terminal {
    child: Child,
    text: String,
}

impl Terminal {
    async fn of(etcd: &EtcdCluster, to: i64, route: &str) -> Self {
        Self::at(&etcd.endpoints()[0], to, route).await
    }

    async fn at(url: &str, to: i64, route: &str) -> Self {
        let command = format!("{BINARY} rollback --to {to} --etcd {url} {route}");
        let child = Command::new("script")
            .args(["--quiet", "--return", "--command", &command, "/dev/null"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn();
        Self {
            child: child.expect("script, of bsdutils or util-linux"),
            text: String::new(),
        }
    }

    /// Waits until this was printed.
    async fn until(&mut self, text: &str) {
        let mut bytes = [0; 4096];
        while !self.text.contains(text) {
            let output = self.child.stdout.as_mut().expect("it is piped");
            let read = timeout(Duration::from_secs(20), output.read(&mut bytes)).await;
            match read.expect("it is printed in time") {
                Ok(count @ 1..) => self.text += &String::from_utf8_lossy(&bytes[..count]),
                _ => panic!("{text:?} was not printed: {}", self.text),
            }
        }
    }

    /// Types a line, and waits for the end: the exit code and all that was printed.
    async fn answer(mut self, line: &str) -> (Option<i32>, String) {
        let mut input = self.child.stdin.take().expect("it is piped");
        input
            .write_all(format!("{line}\n").as_bytes())
            .await
            .expect("it reads");
        let rest = timeout(Duration::from_secs(20), self.child.wait_with_output()).await;
        let rest = rest.expect("it ends in time").expect("its output");
        drop(input);
        (
            rest.status.code(),
            self.text + &String::from_utf8_lossy(&rest.stdout),
        )
    }
}
