//! Nobody reads what is printed any more: a log collector died, a pipe was closed, a disk is full.

use std::{fs::File, io::Read, process::Stdio};

use tokio::process::Command;

use crate::support::{
    load::ask,
    sample::Sample,
    waypost::{self, Waypost, eventually, get, write},
};

#[tokio::test]
async fn serving_goes_on_when_the_log_has_no_reader() {
    let (sample, hosts) = (Sample::start().await, tempfile::tempdir().unwrap());
    let arguments = [
        "serve",
        "--listen",
        "http://127.0.0.1:0",
        "--admin",
        "127.0.0.1:0",
    ];
    let mut command = waypost::command(&arguments);
    command.args([
        "--workers",
        "1",
        "--log",
        "debug",
        "--access-log",
        "json",
        "--hosts-dir",
    ]);
    let mut child = command.arg(hosts.path()).spawn().unwrap();
    drop(child.stdout.take());
    let pipe = child.stderr.take().unwrap().into_owned_fd().unwrap();
    let [admin, listener] = addresses(File::from(pipe));
    // The pipe has no reader from here on; each of these logs something.
    for round in 0..3 {
        let host = format!("h{round}.test");
        write(&hosts.path().join(&host).join(sample.to_string()), "");
        eventually("the route is served", async || {
            let answer = ask(listener, &host, "/").await;
            answer.status() == 200
        })
        .await;
        waypost::signal(child.id().unwrap(), "HUP");
        assert_eq!(get(admin, "/readyz").await.unwrap().0, 200);
    }
    waypost::signal(child.id().unwrap(), "INT");
    let status = tokio::time::timeout(waypost::DEADLINE, child.wait()).await;
    assert_eq!(status.expect("it ends").unwrap().code(), Some(0));
}

#[tokio::test]
async fn serving_goes_on_when_the_access_log_cannot_be_written() {
    let waypost = Waypost::builder()
        .flag("--access-log", "json:/dev/full")
        .start()
        .await;
    let sample = Sample::start().await;
    waypost.put("a.test", &sample, "").await;
    for _ in 0..5 {
        assert_eq!(ask(waypost.address(), "a.test", "/").await.status(), 200);
    }
    eventually("lost lines are counted", async || {
        waypost
            .metric("waypost_access_log_dropped_total", &[])
            .await
            == 5.0
    })
    .await;
    waypost.log().until("access log").await;
}

#[tokio::test]
async fn a_command_whose_output_is_cut_short_does_not_panic() {
    let hosts = tempfile::tempdir().unwrap();
    for number in 0..50 {
        write(&hosts.path().join(format!("h{number}.test/nonsense")), "");
    }
    let waypost = Waypost::builder().start().await;
    waypost.put("a.test", "127.0.0.1:1", "").await;
    let admin = waypost.admin();
    for arguments in [
        format!("check --hosts-dir {}", hosts.path().display()),
        format!("routes --admin {admin}"),
        format!("explain http://a.test/ --admin {admin}"),
        format!("healthcheck --admin {admin}"),
        "version".to_owned(),
        "--help".to_owned(),
        "serve --help".to_owned(),
    ] {
        // The reader is gone before anything is printed.
        let line = format!("(sleep 0.05; exec {} {arguments}) | true", waypost::BINARY);
        let output = Command::new("sh")
            .args(["-c", &line])
            .stdin(Stdio::null())
            .output()
            .await
            .unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(error, "", "{arguments}");
    }
}

/// The admin API's and the listener's, from the log; what comes later is not read.
fn addresses(mut log: File) -> [std::net::SocketAddr; 2] {
    let mut text = String::new();
    loop {
        let mut chunk = [0; 1024];
        let read = log.read(&mut chunk).expect("the log");
        assert_ne!(read, 0, "it ended: {text}");
        text.push_str(&String::from_utf8_lossy(&chunk[..read]));
        let of = |words: &str| {
            let line = text.lines().find(|line| line.contains(words))?;
            line.split("address=")
                .nth(1)?
                .split(' ')
                .next()?
                .parse()
                .ok()
        };
        if let (Some(admin), Some(listener)) = (of("serving the admin API"), of(" listening ")) {
            return [admin, listener];
        }
    }
}
