//! `waypost demo`: what it prints works as it stands, and nothing is left of it.

use std::{fs, path::Path, time::Duration};

use tokio::process::Child;

use crate::support::{
    load::{Client, ask},
    waypost::{self, DEADLINE, Lines, Waypost, eventually},
};

#[tokio::test]
async fn the_demo_shows_what_it_says_and_leaves_nothing_behind() {
    demo(&[], "etcd of the demo's own", true, "INT").await;
}

#[tokio::test]
async fn the_demo_does_with_a_directory() {
    // As when its terminal is closed.
    demo(&["--directory"], "the directory", true, "HUP").await;
}

#[tokio::test]
async fn the_demo_needs_no_etcd() {
    demo(&[], "the directory", false, "TERM").await;
}

#[tokio::test]
async fn a_demo_whose_port_is_busy_names_it_and_leaves_nothing_behind() {
    let (busy, temporary) = (
        Waypost::builder().start().await,
        tempfile::tempdir().unwrap(),
    );
    for flag in ["--listen", "--admin"] {
        let taken = if flag == "--listen" {
            format!("http://{}", busy.address())
        } else {
            busy.admin().to_string()
        };
        let mut arguments = vec!["demo", flag, &taken];
        match flag {
            "--listen" => arguments.extend(["--admin", "127.0.0.1:0"]),
            _ => arguments.extend(["--listen", "http://127.0.0.1:0"]),
        }
        let mut command = waypost::command(&arguments);
        let child = command.env("TMPDIR", temporary.path()).spawn().unwrap();
        let ended = waypost::ended(child).await;
        assert_eq!(ended.code, Some(1), "{ended:?}");
        let address = taken.trim_start_matches("http://");
        assert!(
            ended.stderr.contains(address),
            "{address}: {}",
            ended.stderr
        );
        is_empty(temporary.path());
    }
}

async fn demo(flags: &[&str], source: &str, with_etcd: bool, end: &str) {
    let temporary = tempfile::tempdir().unwrap();
    let arguments = [
        "demo",
        "--listen",
        "http://127.0.0.1:0",
        "--admin",
        "127.0.0.1:0",
    ];
    let mut command = waypost::command(&[&arguments, flags].concat());
    command.env("TMPDIR", temporary.path());
    if !with_etcd {
        command.env("PATH", temporary.path());
    }
    let mut child = command.spawn().unwrap();
    let id = child.id().expect("it runs");
    let output = Lines::of(
        child
            .stdout
            .take()
            .and_then(|pipe| pipe.into_owned_fd().ok()),
    );
    output.until("Ctrl-C ends it").await;
    let text = output.text();
    assert!(text.contains(source), "{text}");
    let after = |name: &str| {
        let line = text
            .lines()
            .find(|line| line.trim_start().starts_with(name))
            .expect(name);
        line.trim_start()[name.len()..].trim().to_owned()
    };
    let port = after("listener")
        .trim_end_matches('/')
        .rsplit(':')
        .next()
        .unwrap()
        .to_owned();
    let address = format!("127.0.0.1:{port}").parse().unwrap();
    let mut client = Client::connect(address).await.unwrap();
    let mut bodies = std::collections::BTreeSet::new();
    for _ in 0..6 {
        let answer = client.get("localhost", "/").await.unwrap();
        assert_eq!(answer.status(), 200);
        bodies.insert(answer.into_body());
    }
    assert_eq!(bodies.len(), 3, "three upstreams take turns: {bodies:?}");

    // The lines to try work as they stand.
    let line_after = |comment: &str| {
        let mut lines = text.lines().skip_while(|line| !line.contains(comment));
        lines.nth(1).expect(comment).trim().to_owned()
    };
    let sh = async |line: &str| {
        let output = tokio::process::Command::new("sh")
            .args(["-c", line])
            .output()
            .await
            .unwrap();
        assert!(output.status.success(), "{line}: {output:?}");
    };
    sh(&line_after("the fourth upstream joins")).await;
    let spare = after("spare").split(' ').next().unwrap().to_owned();
    let mut answers = async |wanted: &dyn Fn(&str) -> bool| {
        let mut seen = Vec::new();
        for _ in 0..4 {
            seen.push(client.get("localhost", "/").await.unwrap().into_body());
        }
        seen.iter().any(|body| wanted(body))
    };
    let of_spare = |body: &str| body.contains(spare.rsplit(':').next().unwrap());
    eventually("the spare one answers", async || answers(&of_spare).await).await;
    let first = after("upstreams").split(' ').next().unwrap().to_owned();
    sh(&line_after("the first one leaves")).await;
    let of_first = |body: &str| body.contains(first.rsplit(':').next().unwrap());
    eventually("the first has left", async || !answers(&of_first).await).await;
    sh(&line_after("pick at random")).await;
    let unknown = ask(address, "unknown.example", "/").await;
    assert_eq!(unknown.status(), 404);
    assert!(unknown.headers().contains_key("proxy-status"));

    let children = children_of(id);
    assert_eq!(
        !children.is_empty(),
        source.contains("etcd"),
        "{children:?}"
    );
    waypost::signal(id, end);
    assert_eq!(end_of(&mut child).await, Some(0));
    for child in children {
        let stat = fs::read_to_string(format!("/proc/{child}/stat"));
        assert!(stat.is_err(), "{child} still runs: {stat:?}");
    }
    is_empty(temporary.path());
}

async fn end_of(child: &mut Child) -> Option<i32> {
    let status = tokio::time::timeout(DEADLINE + Duration::from_secs(1), child.wait()).await;
    status.expect("it ends in time").unwrap().code()
}

fn children_of(id: u32) -> Vec<String> {
    let threads = fs::read_dir(format!("/proc/{id}/task")).expect("it runs");
    let children = threads.flatten().map(|thread| {
        let children = fs::read_to_string(thread.path().join("children"));
        children.unwrap_or_default()
    });
    let children: String = children.collect();
    children.split_whitespace().map(str::to_owned).collect()
}

fn is_empty(directory: &Path) {
    let left: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    assert!(left.is_empty(), "left behind: {left:?}");
}
