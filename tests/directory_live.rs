//! A hosts directory that is edited while requests run.

use std::fs;

use crate::support::{
    load::{Client, Load, ask},
    sample::Sample,
    waypost::{Waypost, eventually, write},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_come_and_go_and_not_one_request_fails() {
    let (waypost, samples) = serving(&["a.test", "a.test", "b.test"]).await;
    let load = Load::start(&[waypost.address()], &["a.test", "b.test"]);
    for round in 0..6 {
        let sample = &samples[round % 2];
        load.more(40).await;
        waypost.delete("a.test", sample).await;
        load.more(40).await;
        let hits = sample.hits();
        load.more(40).await;
        assert_eq!(sample.hits(), hits, "its file is gone");
        waypost.put("a.test", sample, "").await;
        load.more(40).await;
        assert!(sample.hits() > hits, "its file is back");
    }
    load.finish().await;
}

#[tokio::test]
async fn subdirectories_are_path_prefixes() {
    let (waypost, samples) = serving(&["a.test", "a.test/api", "a.test/api/v1"]).await;
    for (path, index) in [
        ("/", 0),
        ("/apix", 0),
        ("/api", 1),
        ("/api/x?y", 1),
        ("/api/v1/", 2),
    ] {
        let answer = ask(waypost.address(), "a.test", path).await;
        assert_eq!(*answer.body(), samples[index].to_string(), "{path}");
    }
    fs::remove_dir_all(waypost.hosts().join("a.test/api")).unwrap();
    eventually("the rest serves", async || {
        let answer = ask(waypost.address(), "a.test", "/api/v1/").await;
        *answer.body() == samples[0].to_string()
    })
    .await;
}

#[tokio::test]
async fn a_whole_tree_moved_in_and_away_is_seen() {
    let (waypost, samples) = serving(&["a.test"]).await;
    let aside = tempfile::tempdir_in(waypost.hosts().parent().unwrap()).unwrap();
    let ready = aside.path().join("b.test");
    write(&ready.join(samples[0].to_string()), "");
    write(&ready.join("deep").join(samples[0].to_string()), "");
    let there = waypost.hosts().join("b.test");
    fs::rename(&ready, &there).unwrap();
    eventually("moved in", async || {
        waypost.api("/api/status").await["routes"] == 3
    })
    .await;
    assert_eq!(
        ask(waypost.address(), "b.test", "/deep/").await.status(),
        200
    );
    // What is written below it later is watched too.
    waypost.put("b.test/deep", "127.0.0.1:1", "").await;
    fs::rename(&there, &ready).unwrap();
    eventually("moved away", async || {
        waypost.api("/api/status").await["routes"] == 1
    })
    .await;
    assert_eq!(
        ask(waypost.address(), "b.test", "/deep/").await.status(),
        404
    );
}

#[tokio::test]
async fn settings_take_effect_and_go_with_their_file() {
    let (waypost, samples) = serving(&["a.test/api", "a.test/api"]).await;
    let mut client = Client::connect(waypost.address()).await.unwrap();
    let settings =
        r#"{"response_headers": {"set": {"x-served-by": "waypost"}}, "balance": "random"}"#;
    waypost.put("a.test/api", "@settings", settings).await;
    let answer = client.get("a.test", "/api").await.unwrap();
    assert_eq!(answer.headers()["x-served-by"], "waypost");
    let route = waypost.api("/api/routes").await["routes"][0].clone();
    assert_eq!(route["balance"], "random");
    assert_eq!(route["settings_key"], "/hosts/a.test/api/@settings");

    // Broken JSON, an unknown field, a wrong type: the last good version stays.
    for (broken, word) in [
        (r#"{"balance": "#, "line 1"),
        (r#"{"balanse": "random"}"#, "balanse"),
        (r#"{"balance": 5}"#, "balance"),
        (r#"{"response_headers": {"set": {"host": "x"}}}"#, "host"),
    ] {
        waypost.put("a.test/api", "@settings", broken).await;
        let rejected = waypost.api("/api/rejected").await["rejected"].clone();
        assert_eq!(rejected.as_array().unwrap().len(), 1, "{rejected}");
        assert_eq!(rejected[0]["key"], "/hosts/a.test/api/@settings");
        assert_eq!(rejected[0]["last_good_in_force"], true, "{broken}");
        let reason = rejected[0]["reason"].as_str().unwrap().to_lowercase();
        assert!(reason.contains(word), "{broken}: {reason}");
        let answer = client.get("a.test", "/api").await.unwrap();
        assert_eq!(answer.headers()["x-served-by"], "waypost");
    }

    waypost.delete("a.test/api", "@settings").await;
    let answer = client.get("a.test", "/api").await.unwrap();
    assert_eq!(answer.headers().get("x-served-by"), None);
    assert_eq!(
        waypost.api("/api/rejected").await["rejected"],
        serde_json::json!([])
    );
    let before = samples[0].hits();
    for _ in 0..10 {
        client.get("a.test", "/api").await.unwrap();
    }
    assert_eq!(samples[0].hits() - before, 5, "round robin again");
}

#[tokio::test]
async fn a_broken_value_keeps_the_last_good_one_or_stays_out_alone() {
    let (waypost, samples) = serving(&["a.test"]).await;
    waypost
        .put("a.test", &samples[0], r#"{"weight": -1}"#)
        .await;
    waypost
        .put("a.test", "127.0.0.1:1", r#"{"weight": "much"}"#)
        .await;
    for _ in 0..4 {
        assert_eq!(ask(waypost.address(), "a.test", "/").await.status(), 200);
    }
    let rejected = waypost.api("/api/rejected").await["rejected"].clone();
    let in_force = |key: &str| {
        let mut all = rejected.as_array().unwrap().iter();
        all.find(|one| one["key"] == key).expect(key)["last_good_in_force"].clone()
    };
    assert_eq!(in_force(&format!("/hosts/a.test/{}", samples[0])), true);
    assert_eq!(in_force("/hosts/a.test/127.0.0.1:1"), false);
    // Any text that is no JSON object means the defaults.
    waypost.put("a.test", &samples[0], "anything at all").await;
    waypost.delete("a.test", "127.0.0.1:1").await;
    assert_eq!(waypost.api("/api/status").await["rejected_keys"], 0);
}

#[tokio::test]
async fn what_editors_leave_behind_is_no_key() {
    let (waypost, samples) = serving(&["a.test"]).await;
    let host = waypost.hosts().join("a.test");
    for name in [".hidden", "x.swp", "10.0.0.1:80~", "4913.tmp"] {
        fs::write(host.join(name), "").unwrap();
    }
    fs::write(waypost.hosts().join("README.md"), "notes").unwrap();
    // Edited in place, in two writes, without a rename.
    fs::write(host.join(samples[0].to_string()), "").unwrap();
    fs::write(host.join(samples[0].to_string()), r#"{"weight": 7}"#).unwrap();
    eventually("in force", async || {
        waypost.api("/api/routes").await["routes"][0]["members"][0]["weight"] == 7
    })
    .await;
    let rejected = waypost.api("/api/rejected").await["rejected"].clone();
    let keys: Vec<_> = rejected
        .as_array()
        .unwrap()
        .iter()
        .map(|one| &one["key"])
        .collect();
    assert_eq!(
        keys,
        ["/hosts/README.md"],
        "named, and nothing else: {rejected}"
    );
}

/// An instance with an upstream of its own for each of these routes.
async fn serving(routes: &[&str]) -> (Waypost, Vec<Sample>) {
    let waypost = Waypost::builder().start().await;
    let mut samples = Vec::new();
    for route in routes {
        let sample = Sample::start().await;
        waypost.put(route, &sample, "").await;
        samples.push(sample);
    }
    (waypost, samples)
}
