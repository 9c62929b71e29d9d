//! Commands that wait for the fleet: who is waited for, and what is said of those who don't answer.

use std::time::Duration;

use etcd_client::{Client, PutOptions};
use tokio::time::{Instant, sleep};

use crate::support::{
    etcd::EtcdCluster,
    fleet::{
        Begun, TRIES, assert_nothing_left, below, expire, id, instance, instance_below, registered,
        run, tried_for_a_while,
    },
    link::Link,
    load::ask,
    sample::Sample,
    waypost::{Waypost, command, ended, eventually, waypost},
};

#[tokio::test]
async fn a_change_is_waited_for_until_every_instance_serves_it() {
    let etcd = EtcdCluster::start(1).await;
    let (one, two) = (instance(&etcd).await, instance(&etcd).await);
    let sample = Sample::start().await;
    let upstream = sample.to_string();
    for round in 0..5 {
        let path = format!("a.test/{round}");
        let put = run(&etcd, &["put", &path, &upstream, "--wait", "--expect", "2"]).await;
        assert_eq!(put.code, Some(0), "{put:?}");
        assert!(put.stdout.starts_with("revision "), "{put:?}");
        assert!(put.stdout.ends_with("\nserved by 2 instances\n"), "{put:?}");
        for instance in [&one, &two] {
            let answer = ask(instance.address(), "a.test", &format!("/{round}")).await;
            assert_eq!(answer.status(), 200, "no moment later");
        }
        let delete = run(&etcd, &["delete", &path, &upstream, "--wait"]).await;
        assert_eq!(delete.code, Some(0), "{delete:?}");
        assert!(delete.stdout.ends_with("\ngone from 2 instances\n"));
        for instance in [&one, &two] {
            let answer = ask(instance.address(), "a.test", &format!("/{round}")).await;
            assert_eq!(answer.status(), 404);
        }
    }
    let revision = etcd.put("/hosts/b.test/b:80", "").await;
    let waited = run(&etcd, &["wait", &revision.to_string()]).await;
    assert_eq!(
        (waited.code, &*waited.stdout),
        (Some(0), "served by 2 instances\n")
    );
    for instance in [&one, &two] {
        let status = instance.api("/api/status").await;
        assert!(status["applied_revision"].as_i64() >= Some(revision));
    }
    assert_nothing_left(&etcd, "/hosts/").await;
    let missing = run(&etcd, &["delete", "c.test", "c:80", "--wait"]).await;
    assert_eq!(missing.code, Some(1));
    assert!(
        missing.stderr.contains("no key /hosts/c.test/c:80"),
        "{missing:?}"
    );
    assert_nothing_left(&etcd, "/hosts/").await;
}

#[tokio::test]
async fn instances_say_who_they_are_and_leave_when_they_end() {
    let etcd = EtcdCluster::start(1).await;
    let mut one = instance(&etcd).await;
    let two = instance(&etcd).await;
    let pairs = below(&etcd, "/waypost/hosts/instances/").await;
    assert_eq!(pairs.len(), 2);
    assert!(pairs.iter().all(|pair| pair.lease() != 0));
    let id = id(&one).await;
    let record = pairs
        .iter()
        .map(|pair| serde_json::from_slice::<serde_json::Value>(pair.value()).unwrap())
        .find(|record| record["id"] == *id)
        .expect("its record");
    assert_eq!(record["pid"], one.id());
    assert_eq!(record["listen"][0], one.address().to_string());
    assert_eq!(record["admin"], one.admin().to_string());
    assert_eq!(record["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(one.metric("waypost_registered", &[]).await, 1.0);

    one.signal("TERM");
    assert_eq!(one.wait_exit().await, Some(0));
    let pairs = below(&etcd, "/waypost/hosts/instances/").await;
    assert_eq!(pairs.len(), 1, "gone at once");
    let put = run(&etcd, &["put", "a.test", "a:80", "--wait"]).await;
    assert!(put.stdout.ends_with("served by 1 instance\n"), "{put:?}");
    drop(two);
}

#[tokio::test]
async fn too_few_instances_are_no_success() {
    let etcd = EtcdCluster::start(1).await;
    let put = run(&etcd, &["put", "a.test", "a:80", "--wait"]).await;
    assert_eq!(put.code, Some(1));
    assert!(put.stderr.contains("no instance is registered"), "{put:?}");
    assert!(put.stderr.ends_with("; the key stays put\n"), "{put:?}");
    assert_eq!(
        below(&etcd, "/hosts/a.test/").await.len(),
        1,
        "it stays put"
    );

    let one = instance(&etcd).await;
    for words in [
        &["put", "b.test", "b:80", "--wait"][..],
        &["delete", "b.test", "b:80", "--drain"],
        &["wait", "1"],
    ] {
        let ended = run(&etcd, &[words, &["--expect", "2"]].concat()).await;
        assert_eq!(ended.code, Some(1), "{ended:?}");
        let problem = "1 instance registered, but --expect says 2";
        assert!(ended.stderr.contains(problem), "{ended:?}");
    }
    assert!(
        below(&etcd, "/hosts/b.test/").await.is_empty(),
        "it stays deleted"
    );
    assert_nothing_left(&etcd, "/hosts/").await;
    drop(one);
}

#[tokio::test]
async fn an_instance_that_rejects_the_key_is_named() {
    let etcd = EtcdCluster::start(1).await;
    let one = instance(&etcd).await;
    let id = id(&one).await;
    for (upstream, json, reason) in [
        ("b:80", r#"{"weight": -1}"#, "weight"),
        ("b:0", "{}", "port"),
    ] {
        let words = ["put", "a.test", upstream, json, "--force", "--wait"];
        let put = run(&etcd, &words).await;
        assert_eq!(put.code, Some(1), "{put:?}");
        assert!(put.stderr.contains(&format!("instance {id} (")), "{put:?}");
        assert!(put.stderr.contains("rejects it: "), "{put:?}");
        assert!(put.stderr.contains(reason), "{put:?}");
    }
    // Once it is good, nothing of that is left.
    let put = run(&etcd, &["put", "a.test", "b:80", "{}", "--wait"]).await;
    assert_eq!(put.code, Some(0), "{put:?}");
}

/// It is stopped within its lease's time, so that it stays registered and answers nothing.
#[tokio::test]
async fn at_the_timeout_it_is_said_who_is_missing() {
    let etcd = EtcdCluster::start(1).await;
    let (one, two) = (instance(&etcd).await, instance(&etcd).await);
    let id = id(&two).await;
    two.signal("STOP");
    let words = ["put", "a.test", "a:80", "--wait", "--timeout", "1s"];
    let put = run(&etcd, &words).await;
    two.signal("CONT");
    assert_eq!(put.code, Some(1), "{put:?}");
    let said = format!("after 1s 1 of 2 instances acknowledged; missing: instance {id} (");
    assert!(put.stderr.contains(&said), "{put:?}");
    assert!(put.stderr.contains("; the key stays put"), "{put:?}");
    assert_eq!(below(&etcd, "/hosts/a.test/").await.len(), 1);
    assert_nothing_left(&etcd, "/hosts/").await;

    let early = run(&etcd, &["wait", "99999", "--timeout", "300ms"]).await;
    assert_eq!(early.code, Some(1));
    assert!(early.stderr.contains("99999 is still to come"), "{early:?}");
    drop(one);
}

#[tokio::test]
async fn an_instance_that_dies_is_lost() {
    let etcd = EtcdCluster::start(1).await;
    etcd.put("/hosts/a.test/a:80", "").await;
    let (one, two) = (instance(&etcd).await, instance(&etcd).await);
    let id = id(&two).await;
    two.signal("KILL");
    let delete = Begun::new(&etcd, &["delete", "a.test", "a:80", "--drain"]).await;
    expire(&etcd, &id).await;
    let ended = delete.ended().await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    let said = "vanished without acknowledging: it may be cut off and still use a:80";
    assert!(
        ended.stderr.contains(said) && ended.stderr.contains(&id),
        "{ended:?}"
    );
    assert_nothing_left(&etcd, "/hosts/").await;
    drop(one);
}

/// Its lease runs out by itself.
#[tokio::test]
async fn an_instance_that_is_cut_off_is_lost_and_serves_on() {
    let etcd = EtcdCluster::start(1).await;
    let sample = Sample::start().await;
    etcd.put(&format!("/hosts/a.test/{sample}"), "").await;
    let link = Link::to(&etcd.endpoints()[0]).await;
    let one = instance(&etcd).await;
    let cut_off = instance_below("/hosts/", &[link.url()]).await;
    let id = id(&cut_off).await;
    link.cut();
    let upstream = sample.to_string();
    let words = ["delete", "a.test", &*upstream, "--wait", "--timeout", "60s"];
    let delete = Begun::new(&etcd, &words).await;
    delete.until_left(&etcd, &registered(&one).await, 0).await;
    let since = Instant::now();
    while !below(&etcd, &format!("/waypost/hosts/instances/{id}"))
        .await
        .is_empty()
    {
        assert!(
            since.elapsed() < Duration::from_secs(40),
            "its lease lives on"
        );
        sleep(Duration::from_millis(50)).await;
    }
    let ended = delete.ended().await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    let said = format!("it may be cut off and still use {upstream}");
    assert!(
        ended.stderr.contains(&said) && ended.stderr.contains(&id),
        "{ended:?}"
    );
    assert_eq!(ask(one.address(), "a.test", "/").await.status(), 404);
    assert_eq!(
        ask(cut_off.address(), "a.test", "/").await.status(),
        200,
        "it was right"
    );
    eventually("it knows", async || {
        cut_off.api("/api/status").await["registered"] == false
    })
    .await;

    link.mend(&etcd.endpoints()[0]);
    registered(&cut_off).await;
    let put = run(
        &etcd,
        &["put", "a.test", &upstream, "--wait", "--expect", "2"],
    )
    .await;
    assert_eq!(put.code, Some(0), "{put:?}");
}

#[tokio::test]
async fn an_instance_that_joins_answers_but_is_not_waited_for() {
    let etcd = EtcdCluster::start(1).await;
    let one = instance(&etcd).await;
    one.signal("STOP");
    let put = Begun::new(&etcd, &["put", "a.test", "a:80", "--wait"]).await;
    let two = instance(&etcd).await;
    put.until_left(&etcd, &id(&two).await, 0).await;
    one.signal("CONT");
    let ended = put.ended().await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(
        ended.stdout.ends_with("served by 1 instance\n"),
        "{ended:?}"
    );
    assert_nothing_left(&etcd, "/hosts/").await;
}

/// Both the command and the instances turn to another member.
#[tokio::test]
async fn a_member_of_etcd_may_end_while_somebody_waits() {
    let mut etcd = EtcdCluster::start(3).await;
    let (one, two) = (instance(&etcd).await, instance(&etcd).await);
    for member in 0..3 {
        one.signal("STOP");
        let name = format!("{member}:80");
        let put = Begun::new(&etcd, &["put", "a.test", &format!("a{name}"), "--wait"]).await;
        etcd.kill(member);
        one.signal("CONT");
        let ended = put.ended().await;
        assert_eq!(ended.code, Some(0), "{ended:?}");
        assert!(
            ended.stdout.ends_with("served by 2 instances\n"),
            "{ended:?}"
        );
        etcd.restart(member).await;
    }
    drop(two);
}

#[tokio::test]
async fn a_fleet_knows_nothing_of_another_below_another_prefix() {
    let etcd = EtcdCluster::start(1).await;
    let one = instance(&etcd).await;
    // The keys of its instances lie below the folder of the first fleet's.
    let nested = instance_below("/hosts/instances/", &etcd.endpoints()).await;
    let other = instance_below("/other/", &etcd.endpoints()).await;
    other.signal("STOP");
    nested.signal("STOP");
    // So does its change record.
    let words = ["put", "b.test", "b:80", "--prefix", "/hosts/instances/"];
    assert_eq!(run(&etcd, &words).await.code, Some(0));
    let words = ["put", "a.test", "a:80", "--wait", "--timeout", "10s"];
    let put = run(&etcd, &words).await;
    assert!(put.stdout.ends_with("served by 1 instance\n"), "{put:?}");
    other.signal("CONT");
    let words = ["put", "a.test", "a:80", "--wait", "--prefix", "/other/"];
    let put = run(&etcd, &words).await;
    assert!(put.stdout.ends_with("served by 1 instance\n"), "{put:?}");
    let routes = one.api("/api/status").await["routes"].clone();
    assert_eq!(routes, 2, "b.test of the nested one is a path of its own");
    for prefix in ["/hosts/", "/other/"] {
        assert_nothing_left(&etcd, prefix).await;
    }
}

#[tokio::test]
async fn whoever_waits_and_is_killed_leaves_nothing_for_long() {
    let etcd = EtcdCluster::start(1).await;
    let one = instance(&etcd).await;
    one.signal("STOP");
    let words = ["put", "a.test", "a:80", "--wait", "--timeout", "2s"];
    let put = Begun::new(&etcd, &words).await;
    let barrier = below(&etcd, "/hosts/@waypost/barriers/").await;
    let lease = barrier[0].lease();
    put.kill();
    one.signal("CONT");
    eventually("it is answered", async || {
        !below(&etcd, "/waypost/hosts/acks/").await.is_empty()
    })
    .await;
    assert_eq!(below(&etcd, "/waypost/hosts/acks/").await[0].lease(), lease);
    let left = etcd.client().lease_time_to_live(lease, None).await.unwrap();
    assert_eq!(left.granted_ttl(), 12, "the timeout and 10 s");
}

#[tokio::test]
async fn without_the_right_to_register_an_instance_serves_all_the_same() {
    let etcd = EtcdCluster::start(1).await;
    let sample = Sample::start().await;
    etcd.put(&format!("/hosts/a.test/{sample}"), "").await;
    let mut root = reader(&etcd).await;
    let waypost = Waypost::builder()
        .etcd(&etcd.endpoints())
        .flag("--etcd-user", "reader")
        .env("ETCDCTL_PASSWORD", "secret")
        .start()
        .await;
    assert_eq!(ask(waypost.address(), "a.test", "/").await.status(), 200);
    waypost.log().until("not registered with the fleet").await;
    let status = waypost.api("/api/status").await;
    assert_eq!(status["registered"], false);
    let error = status["registration_error"].as_str().unwrap();
    assert!(error.contains("permission denied"), "{error}");
    assert_eq!(waypost.metric("waypost_registered", &[]).await, 0.0);
    let calls = tried_for_a_while(&etcd, "Authenticate").await;
    assert!(calls <= TRIES, "{calls} logins");
    assert_eq!(waypost.log().count("not registered"), 1, "once");
    root.auth_disable().await.unwrap();
}

#[tokio::test]
async fn flags_that_fit_nothing_are_usage_errors() {
    for (words, expected) in [
        (&["put", "a", "b:80", "--expect", "2"][..], "add --wait"),
        (&["put", "a", "b:80", "--timeout", "2s"], "add --wait"),
        (
            &["delete", "a", "b:80", "--expect", "2"],
            "add --wait or --drain",
        ),
        (&["delete", "a", "@settings", "--drain"], "say --wait"),
        (
            &["wait", "1", "--admin", "a:1", "--expect", "2"],
            "--expect",
        ),
        (
            &["put", "a", "b:80", "--wait", "--timeout", "2"],
            "--timeout",
        ),
    ] {
        let ended = waypost(words).await;
        assert_eq!(ended.code, Some(2), "{words:?}: {ended:?}");
        assert!(ended.stderr.contains(expected), "{words:?}: {ended:?}");
    }
    for words in [
        &["put", "a", "b:80", "--wait"][..],
        &["delete", "a", "b:80", "--drain"],
        &["wait", "1"],
    ] {
        let mut command = crate::support::waypost::command(words);
        let child = command
            .env("WAYPOST_HOSTS_DIR", "/srv/hosts")
            .spawn()
            .unwrap();
        let ended = crate::support::waypost::ended(child).await;
        assert_eq!(ended.code, Some(2), "{words:?}: {ended:?}");
        assert!(ended.stderr.contains("no fleet to wait for"), "{ended:?}");
    }
}

/// Users are asked for, and `reader` may read the routes alone; the client of root.
async fn reader(etcd: &EtcdCluster) -> Client {
    use etcd_client::{ConnectOptions, Permission, PermissionType};
    let mut client = etcd.client();
    for user in ["root", "reader"] {
        client.user_add(user, "secret", None).await.unwrap();
        client.role_add(user).await.unwrap();
        client.user_grant_role(user, user).await.unwrap();
    }
    let read = Permission::new(PermissionType::Read, "/hosts/").with_prefix();
    client.role_grant_permission("reader", read).await.unwrap();
    client.auth_enable().await.unwrap();
    let login = ConnectOptions::new().with_user("root", "secret");
    Client::connect(etcd.endpoints(), Some(login))
        .await
        .unwrap()
}

/// What an instance says of itself is shown, and does nothing to the terminal.
#[tokio::test]
async fn what_instances_say_does_not_steer_the_terminal() {
    let etcd = EtcdCluster::start(1).await;
    let lease = etcd.client().lease_grant(60, None).await.unwrap().id();
    let options = PutOptions::new().with_lease(lease);
    let key = "/waypost/hosts/instances/\u{1b}[2J\u{1b}[31mall done";
    let put = etcd.client().put(key, "{}", Some(options)).await;
    put.unwrap();
    let ended = run(&etcd, &["wait", "1", "--timeout", "1s"]).await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stderr.contains("all done"), "{ended:?}");
    assert!(!ended.stderr.contains('\u{1b}'), "{ended:?}");
}

/// `WAYPOST_ADMIN` is where one instance's admin API is to be: no word about whom to wait for.
#[tokio::test]
async fn the_environment_does_not_narrow_the_wait_to_one_instance() {
    let etcd = EtcdCluster::start(1).await;
    let (one, two) = (instance(&etcd).await, instance(&etcd).await);
    two.signal("STOP");
    let revision = etcd.put("/hosts/a.test/a:80", "").await.to_string();
    one.reached(revision.parse().unwrap()).await;
    let endpoints = etcd.endpoints().join(",");
    let arguments = ["wait", &revision, "--timeout", "1s", "--etcd", &endpoints];
    let mut wait = command(&arguments);
    let wait = wait.env("WAYPOST_ADMIN", one.admin().to_string());
    let ended = ended(wait.spawn().expect("the binary runs")).await;
    two.signal("CONT");
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stderr.contains("1 of 2 instances"), "{ended:?}");
}
