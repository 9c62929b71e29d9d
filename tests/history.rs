//! `waypost history`: what it tells of real changes in a real etcd.

use std::net::TcpListener;

use etcd_client::{DeleteOptions, Permission, PermissionType, PutOptions, TxnOp};
use serde_json::{Value, json};
use waypost::source::etcd::{Connector, fault::Fault};

use crate::support::{
    etcd::EtcdCluster,
    process::Process,
    waypost::{Ended, eventually, waypost},
};

#[tokio::test]
async fn changes_by_waypost_say_who_and_when_and_others_what() {
    let etcd = EtcdCluster::start(1).await;
    let endpoint = etcd.endpoints()[0].clone();
    let run = async |words: &[&str]| {
        let ended = waypost(&[words, &["--etcd", &endpoint]].concat()).await;
        assert_eq!(ended.code, Some(0), "{ended:?}");
        let revision = ended.stdout.trim().strip_prefix("revision ");
        revision.expect("a revision").parse::<i64>().unwrap()
    };
    let added = run(&["put", "A.test", "10.0.0.1:80"]).await;
    let changed = etcd
        .put("/hosts/a.test/10.0.0.1:80", r#"{"weight": 5}"#)
        .await;
    let anew = etcd
        .put("/hosts/a.test/10.0.0.1:80", r#"{"weight": 5}"#)
        .await;
    etcd.put("/hosts/@waypost/pulse", "the fleet's own").await;
    etcd.put("/other/a.test/10.0.0.1:80", "").await;
    let moved = etcd
        .txn([
            TxnOp::delete("/hosts/a.test/10.0.0.1:80", None),
            TxnOp::put("/hosts/a.test/api/10.0.0.2:80", "", None),
            TxnOp::put("/hosts/b.test/10.0.0.2:80", "", None),
        ])
        .await;
    let lease = etcd.client().lease_grant(600, None).await.unwrap().id();
    let bound = PutOptions::new().with_lease(lease);
    let leased = etcd
        .txn([TxnOp::put("/hosts/a.test/10.0.0.3:80", "", Some(bound))])
        .await;
    etcd.client().lease_revoke(lease).await.unwrap();
    let removed = run(&["delete", "a.test/api", "10.0.0.2:80"]).await;

    let history = history(&etcd, &["a.test"]).await;
    assert_eq!((history.code, &*history.stderr), (Some(0), ""));
    let (heads, lines): (Vec<_>, Vec<_>) = history
        .stdout
        .lines()
        .partition(|line| line.starts_with("revision "));
    let expired = removed - 1;
    for (head, (revision, command)) in heads.iter().zip([
        (added, "waypost put A.test 10.0.0.1:80"),
        (changed, "not by waypost"),
        (anew, "not by waypost"),
        (moved, "not by waypost"),
        (leased, "not by waypost"),
        (expired, "not by waypost"),
        (removed, "waypost delete a.test/api 10.0.0.2:80"),
    ]) {
        let words: Vec<_> = head.splitn(5, "  ").collect();
        assert_eq!(words[0], format!("revision {revision}"), "{history:?}");
        assert_eq!(words.last(), Some(&command), "{history:?}");
        if command.starts_with("waypost") {
            assert!(words[1].ends_with('Z') && words[2].contains('@'), "{head}");
        }
    }
    assert_eq!(heads.len(), 7, "{history:?}");
    let weight = r#"{"weight": 5}"#;
    assert_eq!(
        lines,
        [
            "  + /hosts/a.test/10.0.0.1:80".to_owned(),
            format!("  ~ /hosts/a.test/10.0.0.1:80 '' -> {weight}"),
            format!("  = /hosts/a.test/10.0.0.1:80 {weight}"),
            format!("  - /hosts/a.test/10.0.0.1:80 {weight}"),
            "  + /hosts/a.test/api/10.0.0.2:80".to_owned(),
            format!("  + /hosts/a.test/10.0.0.3:80 (lease {lease:x})"),
            format!("  - /hosts/a.test/10.0.0.3:80 (lease {lease:x})"),
            "  - /hosts/a.test/api/10.0.0.2:80".to_owned(),
        ]
    );
}

#[tokio::test]
async fn a_scope_and_a_first_revision_narrow_it_down() {
    let etcd = EtcdCluster::start(1).await;
    let mut revisions = Vec::new();
    for key in [
        "a.test/b:80",
        "A.test/b:80",
        "a.test/api/b:80",
        "c.test/b:80",
    ] {
        revisions.push(etcd.put(&format!("/hosts/{key}"), "").await);
    }
    for (arguments, expected) in [
        (&[][..], &revisions[..]),
        (&["a.test"], &revisions[..3]),
        (&["a.test/api"], &revisions[2..3]),
        (&["--since", "4"], &revisions[2..]),
        (&["a.test", "--since", "4"], &revisions[2..3]),
        (&["d.test"], &[]),
    ] {
        let told = history(&etcd, &[arguments, &["--json"]].concat()).await;
        assert_eq!(told.code, Some(0), "{told:?}");
        let found: Vec<_> = json_lines(&told)
            .iter()
            .map(|event| event["revision"].as_i64().unwrap())
            .collect();
        assert_eq!(found, expected, "{arguments:?}");
        let nothing = told.stderr == "no change of d.test\n";
        assert_eq!(nothing, expected.is_empty(), "{told:?}");
    }
    // Where a journal goes on.
    let next = (revisions[3] + 1).to_string();
    let next = history(&etcd, &["--since", &next]).await;
    assert_eq!((next.code, &*next.stdout), (Some(0), ""), "{next:?}");
    let future = history(&etcd, &["--since", "99"]).await;
    assert_eq!(future.code, Some(1), "{future:?}");
    assert!(
        future.stderr.contains("revision 99 is still to come"),
        "{future:?}"
    );
    let wrong = history(&etcd, &["a test"]).await;
    assert_eq!(wrong.code, Some(1), "{wrong:?}");
    assert!(wrong.stderr.contains("HOST[/PATH] \"a test\""), "{wrong:?}");
}

#[tokio::test]
async fn json_has_everything_whole() {
    let etcd = EtcdCluster::start(1).await;
    let long = format!("\x1b[2J{}", "x".repeat(1000));
    let first = etcd.put("/hosts/a.test/b:80", &*long).await;
    etcd.delete("/hosts/a.test/b:80").await;
    let record = json!({"by": "me@here", "at": "2026-01-01T00:00:00Z", "command": "waypost put"});
    etcd.txn([
        TxnOp::put("/hosts/a.test/b:80", "{}", None),
        TxnOp::put("/waypost/hosts/change", record.to_string(), None),
    ])
    .await;
    etcd.txn([
        TxnOp::put("/hosts/a.test/b:80", "{ }", None),
        TxnOp::put("/waypost/hosts/change", "not as waypost writes it", None),
    ])
    .await;
    let told = history(&etcd, &["--json"]).await;
    let change = |kind: &str, before: Option<&str>, after: Option<&str>| {
        let mut change = json!({"kind": kind, "key": "/hosts/a.test/b:80"});
        for (name, value) in [("before", before), ("after", after)] {
            if let Some(value) = value {
                change[name] = value.into();
            }
        }
        [change]
    };
    assert_eq!(
        json_lines(&told),
        [
            json!({"revision": first, "changes": change("added", None, Some(&long))}),
            json!({"revision": first + 1, "changes": change("removed", Some(&long), None)}),
            json!({"revision": first + 2, "by": "me@here", "at": "2026-01-01T00:00:00Z",
                "command": "waypost put", "changes": change("added", None, Some("{}"))}),
            json!({"revision": first + 3, "changes": change("changed", Some("{}"), Some("{ }"))}),
        ]
    );
    let text = history(&etcd, &[]).await;
    assert!(!text.stdout.contains('\x1b'), "{text:?}");
}

#[tokio::test]
async fn what_is_compacted_away_is_said() {
    let etcd = EtcdCluster::start(1).await;
    etcd.put("/hosts/a.test/b:80", "1").await;
    let gone = etcd.delete("/hosts/a.test/b:80").await;
    etcd.compact(gone).await;
    let nothing = history(&etcd, &[]).await;
    let said = format!(
        "older changes are compacted away: etcd's history begins at revision {}\n",
        gone + 1
    );
    assert_eq!(nothing.stdout, "");
    assert_eq!(
        nothing.stderr,
        format!("{said}no change of the keys below /hosts/\n")
    );

    etcd.put("/hosts/c.test/b:80", "1").await;
    let kept = etcd.put("/hosts/c.test/b:80", "2").await;
    etcd.compact(kept - 1).await;
    let told = history(&etcd, &["c.test"]).await;
    assert_eq!(
        told.stdout,
        format!("revision {kept}  not by waypost\n  ~ /hosts/c.test/b:80 1 -> 2\n")
    );
    assert!(
        told.stderr
            .contains(&format!("begins at revision {kept}\n"))
    );
    let told = history(&etcd, &["--since", &kept.to_string()]).await;
    assert_eq!((told.stdout.lines().count(), &*told.stderr), (2, ""));
}

/// More than etcd sends at once, in revisions and in bytes.
#[tokio::test]
async fn a_long_history_is_told_to_its_end() {
    let etcd = EtcdCluster::start(1).await;
    let mut last = 0;
    for number in 0..2_100 {
        last = etcd.put("/hosts/a.test/b:80", number.to_string()).await;
    }
    let large = "x".repeat(400 << 10);
    for _ in 0..8 {
        let puts = ["b", "c", "d"]
            .map(|name| TxnOp::put(format!("/hosts/a.test/{name}:80"), large.clone(), None));
        last = etcd.txn(puts).await;
    }
    etcd.delete("/hosts/a.test/c:80").await;
    // Created and gone: nothing that is left in etcd tells of it.
    etcd.put("/hosts/b.test/c:80", "").await;
    etcd.delete("/hosts/b.test/c:80").await;
    etcd.put("/other", "a revision of somebody else").await;
    let told = history(&etcd, &["--json"]).await;
    assert_eq!(told.code, Some(0), "{}", told.stderr);
    let revisions: Vec<_> = json_lines(&told)
        .iter()
        .map(|event| event["revision"].as_i64().unwrap())
        .collect();
    let expected: Vec<_> = (last - 2_107..=last + 3).collect();
    assert_eq!(revisions, expected);
    let host = history(&etcd, &["b.test"]).await;
    assert_eq!(
        host.stdout
            .lines()
            .filter(|line| line.starts_with("  "))
            .collect::<Vec<_>>(),
        ["  + /hosts/b.test/c:80", "  - /hosts/b.test/c:80"]
    );
}

/// For each key that a revision deletes etcd looks up what it was, and sends nothing meanwhile.
#[tokio::test]
async fn a_revision_that_etcd_is_long_about_is_told() {
    const KEYS: usize = 5_000;
    let etcd = EtcdCluster::start(1).await;
    for first in (0..KEYS).step_by(100) {
        let key = |number| format!("/hosts/h{number}.test/b:80");
        let puts = (first..first + 100).map(|number| TxnOp::put(key(number), "", None));
        etcd.txn(puts.collect::<Vec<_>>()).await;
    }
    let everything = DeleteOptions::new().with_prefix();
    etcd.client()
        .delete("/hosts/", Some(everything))
        .await
        .unwrap();
    for since in ["1", &(KEYS / 100 + 2).to_string()] {
        let told = history(&etcd, &["--since", since]).await;
        assert_eq!((told.code, &*told.stderr), (Some(0), ""), "since {since}");
        let removed = told.stdout.lines().filter(|line| line.starts_with("  - "));
        assert_eq!(removed.count(), KEYS, "since {since}");
    }
    let host = history(&etcd, &["h4999.test"]).await;
    assert_eq!(
        host.stdout
            .lines()
            .filter(|line| line.starts_with("  "))
            .collect::<Vec<_>>(),
        ["  + /hosts/h4999.test/b:80", "  - /hosts/h4999.test/b:80"]
    );
}

/// etcd sends a thousand revisions at once, in fragments that end amid one; values may be large.
#[tokio::test]
async fn a_history_of_large_values_is_read_in_whole_revisions_and_small_parts() {
    let etcd = EtcdCluster::start(1).await;
    let large = "x".repeat(400 << 10);
    let mut last = 0;
    for _ in 0..12 {
        let puts = ["b", "c", "d"]
            .map(|name| TxnOp::put(format!("/hosts/a.test/{name}:80"), large.clone(), None));
        last = etcd.txn(puts).await;
    }
    let connector = Connector::new(etcd.config()).unwrap();
    let connection = connector.answering("/hosts/").await.unwrap();
    let mut past = connection.past("/hosts/", 1).await.unwrap();
    let mut revisions = Vec::new();
    while let Some(changes) = past.next().await.unwrap() {
        let part: Vec<_> = (changes.iter())
            .map(|past| past.change.mod_revision())
            .collect();
        assert!(part.len() <= 9, "that much is held at once: {part:?}");
        assert_eq!(part.len() % 3, 0, "split: {part:?}");
        revisions.extend(part);
    }
    let expected: Vec<_> = (last - 11..=last)
        .flat_map(|revision| [revision; 3])
        .collect();
    assert_eq!(revisions, expected);
}

/// It puts watches together, ignores fragments, and never answers progress requests.
#[tokio::test]
async fn history_is_told_through_etcds_own_proxy() {
    let etcd = EtcdCluster::start(1).await;
    etcd.put("/hosts/a.test/b:80", "").await;
    etcd.delete("/hosts/a.test/b:80").await;
    etcd.put("/other", "").await;
    let port = {
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        free.local_addr().unwrap().port()
    };
    let arguments = [
        "grpc-proxy".to_owned(),
        "start".to_owned(),
        format!("--endpoints={}", etcd.endpoints()[0]),
        format!("--listen-addr=127.0.0.1:{port}"),
    ];
    let _proxy = Process::start("etcd", &arguments, &etcd.directory().join("proxy.log"));
    let url = format!("http://127.0.0.1:{port}");
    eventually("the proxy answers", async || {
        let answer = waypost(&["check", "--no-dial", "--etcd", &url]).await;
        answer.code == Some(0)
    })
    .await;
    let told = waypost(&["history", "--etcd", &url]).await;
    assert_eq!(
        told.stdout,
        "revision 2  not by waypost\n  + /hosts/a.test/b:80\nrevision 3  not by waypost\n  - /hosts/a.test/b:80\n",
        "{told:?}"
    );
}

#[tokio::test]
async fn an_etcd_that_falls_silent_is_no_end_of_history() {
    let etcd = EtcdCluster::start(1).await;
    etcd.put("/hosts/a.test/b:80", "").await;
    etcd.put("/other", "").await;
    let connector = Connector::new(etcd.config()).unwrap();
    let connection = connector.answering("/hosts/").await.unwrap();
    let mut past = connection.past("/hosts/", 1).await.unwrap();
    let changes = past.next().await.unwrap().expect("the put");
    assert_eq!(changes.len(), 1);
    etcd.pause(0);
    let silence = past.next().await;
    etcd.resume(0);
    assert!(matches!(silence, Err(Fault::Silent(_))), "{silence:?}");
}

#[tokio::test]
async fn who_may_not_read_the_records_still_sees_what_changed() {
    let etcd = EtcdCluster::start(1).await;
    let endpoint = etcd.endpoints()[0].clone();
    let put = waypost(&["put", "a.test", "b:80", "--etcd", &endpoint]).await;
    assert_eq!(put.code, Some(0), "{put:?}");
    let mut client = etcd.client();
    for (user, password) in [("root", "root"), ("waypost", "first")] {
        client.user_add(user, password, None).await.unwrap();
        client.role_add(user).await.unwrap();
        client.user_grant_role(user, user).await.unwrap();
    }
    let read = Permission::new(PermissionType::Read, "/hosts/").with_prefix();
    client.role_grant_permission("waypost", read).await.unwrap();
    client.auth_enable().await.unwrap();
    let password = etcd.directory().join("password");
    std::fs::write(&password, "first").unwrap();
    let told = history(
        &etcd,
        &[
            "--etcd-user",
            "waypost",
            "--etcd-password-file",
            password.to_str().unwrap(),
        ],
    )
    .await;
    assert_eq!(told.code, Some(0), "{told:?}");
    assert!(
        told.stdout
            .ends_with("not by waypost\n  + /hosts/a.test/b:80\n"),
        "{told:?}"
    );
    assert!(
        told.stderr.contains("/waypost/hosts/change") && told.stderr.contains("permission denied"),
        "{told:?}"
    );
}

async fn history(etcd: &EtcdCluster, arguments: &[&str]) -> Ended {
    let endpoint = etcd.endpoints()[0].clone();
    waypost(&[&["history", "--etcd", &endpoint], arguments].concat()).await
}

fn json_lines(ended: &Ended) -> Vec<Value> {
    let lines = ended.stdout.lines();
    lines
        .map(|line| serde_json::from_str(line).expect(line))
        .collect()
}
