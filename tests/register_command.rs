//! `waypost register ... -- COMMAND`: when the upstream comes and goes, signals and exit codes.

use std::{fs, process::Stdio};

use tokio::task::JoinHandle;

use crate::{
    register::{Held, is_draining, until_draining},
    support::{
        command::{BINARY, Lines},
        etcd::EtcdCluster,
        load::{Load, ask, get},
        register::{Register, Service},
        waypost::{Waypost, eventually},
    },
};

#[tokio::test]
async fn the_upstream_comes_when_the_port_answers_and_goes_before_the_command() {
    let etcd = EtcdCluster::start(1).await;
    let waypost = Waypost::builder().etcd(&etcd.endpoints()).start().await;
    let service = Service::new();
    let key = format!("/hosts/a.test/{}", service.upstream());
    let mut register = service.register(&etcd.endpoints(), &[]);
    register.output().until("pid ").await;
    assert_eq!(Held::of(&etcd, &key).await, None);
    service.may("listen");
    register.log().until("registered").await;
    eventually("it serves", async || {
        ask(waypost.address(), "a.test", "/").await.status() == 200
    })
    .await;

    register.signal("TERM");
    register.output().until("SIGTERM").await;
    assert_eq!(Held::of(&etcd, &key).await, None, "gone before");
    service.may("end");
    assert_eq!(register.wait_exit().await, Some(7), "the command's code");
}

#[tokio::test]
async fn what_runs_is_finished_before_the_command_is_stopped() {
    let (etcd, service) = (EtcdCluster::start(1).await, Service::willing());
    let waypost = Waypost::builder().etcd(&etcd.endpoints()).start().await;
    let mut register = service.register(&etcd.endpoints(), &[]);
    let request = holding(&waypost, &register).await;
    register.signal("TERM");
    until_draining(&etcd).await;
    service.may("release");
    assert_eq!(request.await.unwrap(), Ok(200));
    assert_eq!(register.wait_exit().await, Some(7));
    let printed = register.output().until("cut off").await;
    assert_eq!(printed, "cut off: 0");
}

#[tokio::test]
async fn a_drain_ends_with_its_time_its_command_or_a_second_signal() {
    let etcd = EtcdCluster::start(1).await;
    let waypost = Waypost::builder().etcd(&etcd.endpoints()).start().await;
    for (patience, end, code) in [("1s", "", 7), ("60s", "/exit", 5), ("60s", "TERM", 137)] {
        let service = Service::willing();
        let arguments = ["--drain-timeout", patience];
        let mut register = service.register(&etcd.endpoints(), &arguments);
        let request = holding(&waypost, &register).await;
        register.signal("TERM");
        match end {
            "" => {
                register.log().until("1 request left").await;
            }
            "/exit" => {
                until_draining(&etcd).await;
                let _ = get(service.upstream().parse().unwrap(), "a.test", end).await;
            }
            signal => {
                until_draining(&etcd).await;
                register.signal(signal);
            }
        }
        assert_eq!(register.wait_exit().await, Some(code), "{end}");
        let _ = request.await;
        eventually("nothing runs", async || !is_draining(&etcd).await).await;
    }
}

#[tokio::test]
async fn services_that_restart_in_turn_lose_nothing() {
    let etcd = EtcdCluster::start(1).await;
    let first = Waypost::builder().etcd(&etcd.endpoints()).start().await;
    let second = Waypost::builder().etcd(&etcd.endpoints()).start().await;
    let services = [Service::willing(), Service::willing()];
    let mut registers = Vec::new();
    for service in &services {
        let register = service.register(&etcd.endpoints(), &[]);
        register.log().until("registered").await;
        registers.push(register);
    }
    for waypost in [&first, &second] {
        eventually("it serves", async || {
            ask(waypost.address(), "a.test", "/").await.status() == 200
        })
        .await;
    }
    let load = Load::of_posts(&[first.address(), second.address()], &["a.test"]);
    for _ in 0..2 {
        for (service, register) in services.iter().zip(&mut registers) {
            load.more(12).await;
            register.signal("TERM");
            assert_eq!(register.wait_exit().await, Some(7));
            assert_eq!(register.output().until("cut off").await, "cut off: 0");
            *register = service.register(&etcd.endpoints(), &[]);
            register.log().until("registered").await;
        }
    }
    load.more(12).await;
    let tally = load.finish().await;
    assert_eq!(tally.bodies.len(), 2, "both served: {tally:?}");
}

#[tokio::test]
async fn the_upstream_comes_when_the_health_path_answers_well() {
    let etcd = EtcdCluster::start(1).await;
    let service = Service::new();
    service.may("listen");
    let key = format!("/hosts/a.test/{}", service.upstream());
    let register = service.register(&etcd.endpoints(), &["--health-path", "/healthz"]);
    // It was asked, and again: once was not enough.
    let asked = |lines: &[String]| {
        let asked = lines.iter().filter(|line| *line == "Host: a.test").count();
        (asked > 1).then_some(())
    };
    assert_eq!(register.output().find(asked).await, Some(()));
    assert_eq!(Held::of(&etcd, &key).await, None);
    service.may("healthy");
    Held::until(&etcd, &key, |_| true).await;
}

#[tokio::test]
async fn another_address_may_be_asked() {
    let etcd = EtcdCluster::start(1).await;
    let service = Service::willing();
    let command = service.command();
    let at = service.upstream();
    // As the instances see it, and as this machine does.
    let mut arguments = vec!["a.test", "192.0.2.1:80", "--probe", &at, "--"];
    arguments.extend(command.iter().map(String::as_str));
    let _register = Register::start(&etcd.endpoints(), &arguments);
    Held::until(&etcd, "/hosts/a.test/192.0.2.1:80", |_| true).await;
}

#[tokio::test]
async fn signals_that_end_nothing_are_passed_on() {
    let etcd = EtcdCluster::start(1).await;
    let service = Service::willing();
    let key = format!("/hosts/a.test/{}", service.upstream());
    let mut register = service.register(&etcd.endpoints(), &[]);
    register.log().until("registered").await;
    for name in ["HUP", "USR1", "USR2"] {
        register.signal(name);
        register.output().until(&format!("SIG{name}")).await;
    }
    assert!(Held::of(&etcd, &key).await.is_some());
    register.signal("INT");
    register.output().until("SIGINT").await;
    assert_eq!(register.wait_exit().await, Some(7));
    assert_eq!(Held::of(&etcd, &key).await, None);
}

#[tokio::test]
async fn a_second_signal_kills_the_command() {
    let etcd = EtcdCluster::start(1).await;
    let service = Service::new();
    service.may("listen");
    let mut register = service.register(&etcd.endpoints(), &[]);
    register.log().until("registered").await;
    register.signal("QUIT");
    register.output().until("SIGQUIT").await;
    register.signal("TERM");
    assert_eq!(register.wait_exit().await, Some(137));
    let address = service.upstream().parse().unwrap();
    eventually("the command is gone", async || {
        get(address, "a.test", "/").await.is_err()
    })
    .await;
}

#[tokio::test]
async fn a_command_that_ends_takes_its_upstream_along() {
    let etcd = EtcdCluster::start(1).await;
    let service = Service::willing();
    let key = format!("/hosts/a.test/{}", service.upstream());
    let mut register = service.register(&etcd.endpoints(), &[]);
    register.log().until("registered").await;
    let _ = get(service.upstream().parse().unwrap(), "a.test", "/exit").await;
    assert_eq!(register.wait_exit().await, Some(5));
    assert_eq!(Held::of(&etcd, &key).await, None);
}

#[tokio::test]
async fn a_command_that_never_answers_is_never_registered() {
    let etcd = EtcdCluster::start(1).await;
    let directory = tempfile::tempdir().unwrap();
    let plain = directory.path().join("plain");
    fs::write(&plain, "no program").unwrap();
    let plain = plain.display().to_string();
    for (command, code) in [
        (&["sh", "-c", "exit 3"][..], 3),
        (&["sh", "-c", "exit 0"], 0),
        (&["sh", "-c", "kill -s KILL $$"], 137),
        (&["sh", "-c", "kill -s TERM $$"], 143),
        (&[&plain], 126),
        (&["/no/such/command"], 127),
    ] {
        let arguments = [&["a.test", "127.0.0.1:1", "--"], command].concat();
        let mut register = Register::start(&etcd.endpoints(), &arguments);
        assert_eq!(register.wait_exit().await, Some(code), "{command:?}");
        if code > 125 && code < 128 {
            register.log().until(command[0]).await;
        }
    }
    // A signal reaches it, though it is not registered.
    let wait = [
        "a.test",
        "127.0.0.1:1",
        "--",
        "sh",
        "-c",
        "echo up; read line",
    ];
    let mut register = Register::start(&etcd.endpoints(), &wait);
    register.output().until("up").await;
    register.signal("TERM");
    assert_eq!(register.wait_exit().await, Some(143));
    assert_eq!(Held::of(&etcd, "/hosts/a.test/127.0.0.1:1").await, None);
    assert_eq!(Held::of(&etcd, "/waypost/hosts/change").await, None);
}

/// As the first process of a container, it is the parent of every orphan.
#[tokio::test]
async fn as_process_1_it_waits_for_orphans() {
    // Ends when its input does; the subshell's children are orphans at once.
    let script = "for n in 1 2 3 4 5; do (true & exec true); done; echo up; read line";
    let inside = [
        "register",
        "a.test",
        "b:80",
        "--etcd",
        "127.0.0.1:1",
        "--",
        "sh",
        "-c",
        script,
    ];
    // Without root, a user namespace comes with the right to make others.
    let outside = [
        "--user",
        "--map-root-user",
        "--pid",
        "--fork",
        "--kill-child",
    ];
    let mut child = tokio::process::Command::new("unshare")
        .args(outside)
        .arg(BINARY)
        .args(inside)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("unshare is in util-linux");
    let output = Lines::of(
        child
            .stdout
            .take()
            .and_then(|pipe| pipe.into_owned_fd().ok()),
    );
    output.until("up").await;
    let unshare = child.id().expect("it runs");
    let first = children(unshare)[0];
    eventually("the shell alone is left", async || {
        children(first).len() == 1
    })
    .await;
    drop(child.stdin.take());
    let status = child.wait().await.unwrap();
    assert_eq!(
        status.code(),
        Some(1),
        "as `read` says at the end of its input"
    );
}

/// A request for /hold, once it runs: its status.
async fn holding(waypost: &Waypost, register: &Register) -> JoinHandle<Result<u16, String>> {
    register.log().until("registered").await;
    let address = waypost.address();
    eventually("it serves", async || {
        ask(address, "a.test", "/").await.status() == 200
    })
    .await;
    let request = tokio::spawn(async move {
        let answer = get(address, "a.test", "/hold").await?;
        Ok(answer.status().as_u16())
    });
    register.output().until("held").await;
    request
}

fn children(of: u32) -> Vec<u32> {
    let list = fs::read_to_string(format!("/proc/{of}/task/{of}/children")).unwrap_or_default();
    list.split_whitespace()
        .filter_map(|id| id.parse().ok())
        .collect()
}
