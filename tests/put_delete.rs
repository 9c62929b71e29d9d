//! `waypost put` and `waypost delete` against real etcd.

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use etcd_client::GetOptions;
use waypost::{
    cli::{delete::Delete, put::Put, waiting::WaitArgs},
    config::etcd::EtcdArgs,
    fleet::change::ChangeRecord,
};

use crate::support::{
    etcd::EtcdCluster,
    link::Link,
    waypost::{eventually, waypost},
};

#[tokio::test]
async fn put_writes_the_key_and_who_did_it_at_one_revision() {
    let etcd = EtcdCluster::start(1).await;
    let endpoints = etcd.endpoints();
    let code = put(
        &endpoints,
        "Blog.example.com/api",
        "10.0.0.7:4000",
        Some(r#"{"weight": 5}"#),
    );
    assert_eq!(code.await.unwrap(), ExitCode::SUCCESS);
    let (value, revision) = read(&etcd, "/hosts/blog.example.com/api/10.0.0.7:4000")
        .await
        .unwrap();
    assert_eq!(value, r#"{"weight": 5}"#);
    let (record, recorded_at) = read(&etcd, &ChangeRecord::key("/hosts/")).await.unwrap();
    assert_eq!(recorded_at, revision);
    let record: ChangeRecord = serde_json::from_str(&record).unwrap();
    assert_eq!(
        record.command,
        r#"waypost put Blog.example.com/api 10.0.0.7:4000 {"weight": 5}"#
    );
    assert!(
        record.by.contains('@') && record.at.ends_with('Z'),
        "{record:?}"
    );

    put(
        &etcd.endpoints(),
        "a",
        "@settings",
        Some(r#"{"balance": "random"}"#),
    )
    .await
    .unwrap();
    assert!(read(&etcd, "/hosts/a/@settings").await.is_some());
}

#[tokio::test]
async fn a_mistake_is_refused_and_nothing_is_written() {
    let etcd = EtcdCluster::start(1).await;
    for (route, upstream, json, reason) in [
        ("a", "b", None, "no upstream"),
        ("a", "b:99999", None, "port"),
        ("a", "b:80", Some(r#"{"weight": -1}"#), "weight"),
        ("a", "@settings", Some("{}x"), "not a JSON object"),
    ] {
        let error = put(&etcd.endpoints(), route, upstream, json)
            .await
            .unwrap_err();
        assert!(format!("{error:#}").contains(reason), "{error:#}");
    }
    let all = GetOptions::new().with_all_keys().with_count_only();
    let answer = etcd.client().get("", Some(all)).await.unwrap();
    assert_eq!(answer.count(), 0);
}

/// The connection breaks when etcd has made the change, and before it can say so.
#[tokio::test]
async fn a_lost_answer_is_told_as_one() {
    let etcd = EtcdCluster::start(1).await;
    etcd.put("/hosts/c.test/b:80", "").await;
    let lost = async |words: &[&str], key: &str, count: usize| {
        let link = Link::to(&etcd.endpoints()[0]).await;
        link.hold_answers_to(key);
        let url = link.url();
        let words = [words, &["--etcd", &url]].concat();
        let cut = async {
            eventually(key, async || {
                let kvs = etcd.client().get(key, None).await.unwrap();
                kvs.kvs().len() == count
            })
            .await;
            link.cut();
        };
        tokio::join!(waypost(&words), cut).0
    };
    let waits = ["put", "b.test", "b:80", "--wait", "--timeout", "2s"];
    let (put, put_and_wait, delete) = tokio::join!(
        lost(&["put", "a.test/x", "b:80"], "/hosts/a.test/x/b:80", 1),
        lost(&waits, "/hosts/b.test/b:80", 1),
        lost(&["delete", "c.test", "b:80"], "/hosts/c.test/b:80", 0),
    );
    for (ended, host) in [
        (put, "a.test"),
        (put_and_wait, "b.test"),
        (delete, "c.test"),
    ] {
        assert_eq!(ended.code, Some(1), "{ended:?}");
        let said = format!("whether it is written is not known; `waypost history {host}` tells");
        assert!(ended.stderr.contains(&said), "{ended:?}");
        assert!(!ended.stderr.contains("nothing"), "{ended:?}");
    }
}

/// And whether it was asked to write anything.
#[tokio::test]
async fn an_etcd_that_is_not_there_is_named() {
    for (words, writes) in [
        (&["put", "a.test", "b:80"][..], true),
        (&["delete", "a.test", "b:80"], true),
        (&["rollback", "--to", "2"], false),
        (&["history"], false),
        (&["wait", "2"], false),
        (&["check"], false),
    ] {
        let ended = waypost(&[words, &["--etcd", "http://127.0.0.1:1"]].concat()).await;
        assert_eq!(ended.code, Some(1), "{ended:?}");
        assert!(ended.stderr.contains("http://127.0.0.1:1"), "{ended:?}");
        assert_eq!(
            ended.stderr.contains("nothing is written"),
            writes,
            "{ended:?}"
        );
    }
}

#[tokio::test]
async fn force_writes_what_check_refuses_and_is_on_record() {
    let etcd = EtcdCluster::start(1).await;
    let endpoint = &etcd.endpoints()[0];
    let later = r#"{"mirror": "b:80"}"#;
    let words = ["put", "a.test", "@settings", later, "--etcd", endpoint];
    let refused = waypost(&words).await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(
        refused.stderr.contains("unknown field `mirror`"),
        "{refused:?}"
    );
    assert_eq!(read(&etcd, "/hosts/a.test/@settings").await, None);

    let forced = waypost(&[&words[..], &["--force"]].concat()).await;
    assert_eq!(forced.code, Some(0), "{forced:?}");
    assert!(
        forced.stderr.contains("unknown field `mirror`"),
        "{forced:?}"
    );
    let (value, revision) = read(&etcd, "/hosts/a.test/@settings").await.unwrap();
    assert_eq!(
        (value.as_str(), forced.stdout),
        (later, format!("revision {revision}\n"))
    );
    let (record, _) = read(&etcd, &ChangeRecord::key("/hosts/")).await.unwrap();
    assert!(record.contains("--force"), "{record}");
    let checked = waypost(&["check", "--etcd", endpoint]).await;
    assert_eq!(checked.code, Some(1), "{checked:?}");
}

#[tokio::test]
async fn delete_removes_one_key_and_says_who() {
    let etcd = EtcdCluster::start(1).await;
    etcd.put("/hosts/a/b:80", "").await;
    etcd.put("/hosts/a/c:80", "").await;
    etcd.put("/hosts/A/d:80", "as etcdctl was given it").await;
    assert_eq!(delete(&etcd, "A", "b:80").await, ExitCode::SUCCESS);
    assert_eq!(delete(&etcd, "A", "d:80").await, ExitCode::SUCCESS);
    assert_eq!(read(&etcd, "/hosts/a/b:80").await, None);
    assert_eq!(read(&etcd, "/hosts/A/d:80").await, None);
    assert!(read(&etcd, "/hosts/a/c:80").await.is_some());
    let (record, _) = read(&etcd, "/waypost/hosts/change").await.unwrap();
    assert!(record.contains("waypost delete A d:80"), "{record}");
}

#[tokio::test]
async fn deleting_what_is_not_there_fails_and_writes_nothing() {
    let etcd = EtcdCluster::start(1).await;
    assert_eq!(delete(&etcd, "a", "b:80").await, ExitCode::FAILURE);
    let etcd_at = etcd.endpoints().join(",");
    let ended = waypost(&["delete", "a", "b:80", "--etcd", &etcd_at]).await;
    let said = "waypost: there is no key /hosts/a/b:80: nothing deleted";
    assert!(ended.stderr.starts_with(said), "{ended:?}");
    assert_eq!(read(&etcd, "/waypost/hosts/change").await, None);
}

#[tokio::test]
async fn an_etcd_that_does_not_answer_is_named_within_five_seconds() {
    let etcd = EtcdCluster::start(1).await;
    etcd.pause(0);
    let mut endpoints = etcd.endpoints();
    endpoints.extend([1, 2].map(|port| format!("http://127.0.0.1:{port}")));
    let started = Instant::now();
    let error = format!(
        "{:#}",
        put(&endpoints, "a", "b:80", None).await.unwrap_err()
    );
    assert!(
        started.elapsed() < Duration::from_secs(5),
        "{:?}",
        started.elapsed()
    );
    assert!(
        endpoints.iter().all(|endpoint| error.contains(endpoint)),
        "{error}"
    );
    assert!(error.contains("no answer within 1.3 s"), "{error}");
    etcd.resume(0);
}

async fn put(
    endpoints: &[String],
    route: &str,
    upstream: &str,
    json: Option<&str>,
) -> anyhow::Result<ExitCode> {
    let put = Put {
        route: route.to_owned(),
        upstream: upstream.to_owned(),
        json: json.map(str::to_owned),
        force: false,
        wait: false,
        waiting: WaitArgs::default(),
        etcd: args(endpoints),
    };
    put.run().await
}

async fn delete(etcd: &EtcdCluster, route: &str, upstream: &str) -> ExitCode {
    let delete = Delete {
        route: route.to_owned(),
        upstream: upstream.to_owned(),
        wait: false,
        drain: false,
        waiting: WaitArgs::default(),
        etcd: args(&etcd.endpoints()),
    };
    delete.run().await.expect("an answer")
}

fn args(endpoints: &[String]) -> EtcdArgs {
    EtcdArgs {
        etcd: endpoints.to_vec(),
        ..EtcdArgs::default()
    }
}

async fn read(etcd: &EtcdCluster, key: &str) -> Option<(String, i64)> {
    let answer = etcd.client().get(key, None).await.expect("an answer");
    let pair = answer.kvs().first()?;
    Some((
        pair.value_str().expect("text").to_owned(),
        pair.mod_revision(),
    ))
}
