//! Every command as a user runs it: what it prints, and how it exits.

use std::fs;

use crate::support::{
    etcd::EtcdCluster,
    load::ask,
    sample::Sample,
    waypost::{self, Ended, Waypost, write},
};

#[tokio::test]
async fn every_command_has_help_with_examples() {
    let help = run(&["--help"]).await;
    assert_eq!((help.code, &*help.stderr), (Some(0), ""));
    let commands = help.stdout.split("Commands:\n").nth(1).expect("commands");
    let commands: Vec<_> = commands
        .lines()
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.strip_prefix("  ")?.split(' ').next())
        .filter(|name| !name.is_empty())
        .filter(|name| *name != "help")
        .collect();
    let names = "serve demo check routes explain put delete register wait history rollback accept \
                 healthcheck version";
    for name in names.split(' ') {
        assert!(commands.contains(&name), "{name} is not in {commands:?}");
    }
    for command in commands {
        for arguments in [[command, "--help"], ["help", command]] {
            let help = run(&arguments).await;
            assert_eq!((help.code, &*help.stderr), (Some(0), ""), "{command}");
            let examples = help.stdout.split("Examples:").nth(1).expect(command);
            assert!(
                examples.contains(&format!("waypost {command}")),
                "{command}"
            );
        }
    }
}

#[tokio::test]
async fn wrong_usage_exits_2_and_says_what_is_wrong() {
    for (arguments, word) in [
        (&[][..], "Usage"),
        (&["fly"], "fly"),
        (&["put", "a.test"], "UPSTREAM"),
        (&["wait", "soon"], "soon"),
        (&["wait", "1", "--timeout", "5"], "--timeout"),
        (&["routes", "--colour"], "--colour"),
        (&["version", "now"], "now"),
        (&["check", "--hosts-dir", "a", "--file", "b"], "--file"),
    ] {
        let ended = run(arguments).await;
        assert_eq!(ended.code, Some(2), "{arguments:?}: {ended:?}");
        assert!(
            ended.stderr.contains(word),
            "{arguments:?}: {}",
            ended.stderr
        );
        assert_eq!(ended.stdout, "", "{arguments:?}");
    }
}

#[tokio::test]
async fn version_is_one_line() {
    let version = concat!("waypost ", env!("CARGO_PKG_VERSION"), "\n");
    for arguments in [["version"], ["--version"]] {
        let ended = run(&arguments).await;
        assert_eq!((ended.code, &*ended.stdout), (Some(0), version));
    }
}

#[tokio::test]
async fn check_judges_a_directory_a_file_and_live_etcd() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name).display().to_string();
    write(
        &directory.path().join("good/a.test/10.0.0.1:80"),
        r#"{"weight": 2}"#,
    );
    write(
        &directory.path().join("good/a.test/@settings"),
        r#"{"balance": "random"}"#,
    );
    write(
        &directory.path().join("bad/a.test/10.0.0.1:80"),
        r#"{"weight": -2}"#,
    );
    write(&directory.path().join("bad/a.test/nonsense"), "");
    write(
        &directory.path().join("bad/b.test/@settings"),
        r#"{"mirror": "b:80"}"#,
    );
    let good = run(&["check", "--hosts-dir", &at("good")]).await;
    assert_eq!(
        (good.code, &*good.stdout),
        (Some(0), "2 keys checked, no problems\n")
    );
    let bad = run(&["check", "--hosts-dir", &at("bad")]).await;
    assert_eq!(bad.code, Some(1), "{bad:?}");
    for words in [
        ["/hosts/a.test/10.0.0.1:80: ", "weight"],
        ["/hosts/a.test/nonsense: ", "upstream"],
        ["/hosts/b.test/@settings: ", "unknown field `mirror`"],
        ["3 keys checked", "3 problems"],
    ] {
        let has_both = |line: &str| words.iter().all(|word| line.contains(word));
        assert!(
            bad.stdout.lines().any(has_both),
            "{words:?} is not in {}",
            bad.stdout
        );
    }
    let missing = run(&["check", "--hosts-dir", &at("missing")]).await;
    assert_eq!(missing.code, Some(1));
    assert!(missing.stderr.contains("missing"), "{}", missing.stderr);

    fs::write(at("dump"), "/hosts/a.test/10.0.0.1:80\n{\"weight\": -2}\n").unwrap();
    let file = run(&["check", "--file", &at("dump")]).await;
    assert_eq!(file.code, Some(1));
    assert!(file.stdout.contains("weight"), "{}", file.stdout);

    let mut etcd = EtcdCluster::start(1).await;
    let endpoint = etcd.endpoints()[0].clone();
    etcd.put("/hosts/a.test/10.0.0.1:80", "").await;
    let good = run(&["check", "--no-dial", "--etcd", &endpoint]).await;
    assert_eq!(
        (good.code, &*good.stdout),
        (Some(0), "1 key checked, no problems\n")
    );
    etcd.put("/hosts/a.test/nonsense", "").await;
    let bad = run(&["check", "--etcd", &endpoint]).await;
    assert_eq!(bad.code, Some(1));
    assert!(
        bad.stdout.contains("/hosts/a.test/nonsense: "),
        "{}",
        bad.stdout
    );
    etcd.kill(0);
    let gone = run(&["check", "--etcd", &endpoint]).await;
    assert_eq!(gone.code, Some(1));
    assert!(gone.stderr.contains(&endpoint), "{}", gone.stderr);
}

#[tokio::test]
async fn put_and_delete_change_what_an_instance_serves() {
    let etcd = EtcdCluster::start(1).await;
    let waypost = Waypost::builder().etcd(&etcd.endpoints()).start().await;
    let (endpoint, admin) = (etcd.endpoints()[0].clone(), waypost.admin().to_string());
    let sample = Sample::start().await;
    let (upstream, etcd_flag) = (sample.to_string(), ["--etcd", &*endpoint]);

    let words = ["put", "A.test/api", &upstream, r#"{"weight": 2}"#];
    let put = run(&[&words, &etcd_flag[..]].concat()).await;
    assert_eq!(put.code, Some(0), "{put:?}");
    let wait = run(&["wait", &revision_in(&put), "--admin", &admin]).await;
    assert_eq!(wait.code, Some(0), "{wait:?}");
    assert_eq!(ask(waypost.address(), "a.test", "/api").await.status(), 200);

    let routes = run(&["routes", "--admin", &admin]).await;
    assert_eq!(routes.code, Some(0), "{routes:?}");
    let row = format!("a.test/api  round-robin  {upstream} x2\n");
    assert!(routes.stdout.ends_with(&row), "{}", routes.stdout);
    let json = run(&["routes", "--json", "--admin", &admin]).await;
    let json: serde_json::Value = serde_json::from_str(&json.stdout).expect("a line of JSON");
    assert_eq!(json["members"][0]["upstream"], *upstream);

    let explained = run(&["explain", "http://a.test/api/x?y", "--admin", &admin]).await;
    assert_eq!(explained.code, Some(0), "{explained:?}");
    for word in ["a.test/api", &upstream, "/api/x?y"] {
        assert!(
            explained.stdout.contains(word),
            "{word}: {}",
            explained.stdout
        );
    }
    let unknown = run(&["explain", "http://b.test/", "--admin", &admin]).await;
    assert!(
        unknown.stdout.contains("404") && unknown.stdout.contains("b.test"),
        "{unknown:?}"
    );
    let nonsense = run(&["explain", "ftp://b.test/", "--admin", &admin]).await;
    assert_eq!(nonsense.code, Some(1));
    assert!(nonsense.stderr.contains("ftp"), "{}", nonsense.stderr);

    let deleted = run(&[&["delete", "a.test/api", &upstream], &etcd_flag[..]].concat()).await;
    assert_eq!(deleted.code, Some(0), "{deleted:?}");
    waypost
        .reached(revision_in(&deleted).parse().unwrap())
        .await;
    assert_eq!(ask(waypost.address(), "a.test", "/api").await.status(), 404);
    let again = run(&[&["delete", "a.test/api", &upstream], &etcd_flag[..]].concat()).await;
    assert_eq!(again.code, Some(1), "{again:?}");
    let empty = run(&["routes", "--admin", &admin]).await;
    assert_eq!((empty.code, &*empty.stderr), (Some(0), "no routes\n"));

    let late = run(&["wait", "99999", "--timeout", "200ms", "--admin", &admin]).await;
    assert_eq!(late.code, Some(1));
    assert!(
        late.stderr.contains("99999") && late.stderr.contains(&admin),
        "{}",
        late.stderr
    );
    for bad in [
        &["put", "a.test", "b:80", r#"{"weight": -1}"#][..],
        &["put", "a.test", "b:99999"],
        &["put", "a.test", "b"],
    ] {
        let ended = run(&[bad, &etcd_flag].concat()).await;
        assert!(matches!(ended.code, Some(1 | 2)), "{bad:?}: {ended:?}");
        assert!(!ended.stderr.is_empty(), "{bad:?}");
    }
}

#[tokio::test]
async fn commands_that_find_nobody_say_whom_they_asked() {
    for arguments in [
        &["routes"][..],
        &["explain", "http://a.test/"],
        &["healthcheck"],
        &["wait", "1", "--timeout", "100ms"],
        &["accept"],
        &["accept", "--list"],
    ] {
        let ended = run(&[arguments, &["--admin", "127.0.0.1:1"]].concat()).await;
        assert_eq!(ended.code, Some(1), "{arguments:?}: {ended:?}");
        assert!(
            ended.stderr.contains("127.0.0.1:1"),
            "{arguments:?}: {}",
            ended.stderr
        );
    }
    let put = run(&["put", "a.test", "b:80", "--etcd", "http://127.0.0.1:1"]).await;
    assert_eq!(put.code, Some(1));
    assert!(put.stderr.contains("http://127.0.0.1:1"), "{}", put.stderr);
}

#[tokio::test]
async fn healthcheck_tells_alive_from_ready() {
    let builder = Waypost::builder().flag("--drain-delay", "10m");
    let (waypost, directory) = (builder.start().await, tempfile::tempdir().unwrap());
    let admin = waypost.admin().to_string();
    let alive = async || run(&["healthcheck", "--admin", &admin]).await.code;
    let ready = async || {
        run(&["healthcheck", "--ready", "--admin", &admin])
            .await
            .code
    };
    assert_eq!((alive().await, ready().await), (Some(0), Some(0)));
    waypost.signal("TERM");
    waypost.log().until("draining").await;
    assert_eq!((alive().await, ready().await), (Some(0), Some(1)));
    drop(directory);
}

/// The revision that `put` and `delete` print.
fn revision_in(ended: &Ended) -> String {
    let mut words = ended.stdout.split(|c: char| !c.is_ascii_digit());
    let revision = words.rfind(|word| !word.is_empty());
    revision.expect("a revision").to_owned()
}

async fn run(arguments: &[&str]) -> Ended {
    waypost::waypost(arguments).await
}
