//! What stands in the way of starting is named, and what is said in several places has one meaning.

use std::{fs, net::TcpListener as StdListener, path::Path};

use crate::support::{
    tls::Authority,
    waypost::{BINARY, Builder, Waypost, eventually, waypost, write},
};

#[tokio::test]
async fn a_busy_port_fails_the_start_and_is_named() {
    let busy = StdListener::bind("127.0.0.1:0").unwrap();
    let busy = busy.local_addr().unwrap();
    let builder = Waypost::builder().listen("http://127.0.0.1:0");
    refused(
        builder.listen(&format!("http://{busy}")),
        1,
        &[&busy.to_string(), "--listen"],
    )
    .await;
    refused(
        Waypost::builder().flag("--admin", busy),
        1,
        &[&busy.to_string(), "--admin"],
    )
    .await;

    // Another instance's port is no less busy, though the kernel would share it.
    let other = Waypost::builder().start().await;
    let taken = other.address();
    refused(
        Waypost::builder().listen(&format!("http://{taken}")),
        1,
        &[&taken.to_string()],
    )
    .await;
    let any = format!("http://0.0.0.0:{}", taken.port());
    refused(
        Waypost::builder().listen(&any),
        1,
        &["0.0.0.0", &taken.port().to_string()],
    )
    .await;
    let admin = other.admin();
    refused(
        Waypost::builder().flag("--admin", admin),
        1,
        &[&admin.to_string()],
    )
    .await;
    other.until_ready().await;
}

#[tokio::test]
async fn a_port_is_free_again_after_the_end() {
    let mut first = Waypost::builder().start().await;
    let (address, admin) = (first.address(), first.admin());
    first.signal("INT");
    assert_eq!(first.wait_exit().await, Some(0));
    let builder = Waypost::builder().listen(&format!("http://{address}"));
    let second = builder.flag("--admin", admin).start().await;
    assert_eq!((second.address(), second.admin()), (address, admin));
}

#[tokio::test]
async fn two_listeners_alike_are_refused() {
    let free = StdListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let url = format!("http://{free}");
    let alike = Waypost::builder().listen(&url).listen(&url);
    refused(alike, 1, &[&free.to_string(), "twice"]).await;
}

#[tokio::test]
async fn missing_and_broken_files_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::write(at("broken.pem"), "no certificate").unwrap();
    fs::write(at("file"), "").unwrap();
    let authority = Authority::new();
    let pair = authority.server(&["a.test"]);
    let other = authority.server(&["b.test"]);
    let https = |certificate: &Path, key: &Path| {
        let (certificate, key) = (certificate.display(), key.display());
        let url = format!("https://127.0.0.1:0?cert={certificate}&key={key}");
        Waypost::builder().listen(&url)
    };
    refused(https(&at("no.pem"), &pair.key), 1, &["no.pem", "--listen"]).await;
    refused(
        https(&pair.certificate, &at("no.key")),
        1,
        &["no.key", "--listen"],
    )
    .await;
    refused(https(&at("broken.pem"), &pair.key), 1, &["broken.pem"]).await;
    refused(
        https(&pair.certificate, &at("broken.pem")),
        1,
        &["broken.pem"],
    )
    .await;
    refused(https(&pair.certificate, &other.key), 1, &["b.test.key"]).await;
    let missing = at("missing");
    refused(
        Waypost::builder().flag("--tls-dir", missing.display()),
        1,
        &["--tls-dir", "missing"],
    )
    .await;
    refused(
        Waypost::builder().hosts_dir(&missing),
        1,
        &["--hosts-dir", "missing"],
    )
    .await;
    refused(
        Waypost::builder().hosts_dir(&at("file")),
        1,
        &["--hosts-dir", "not a directory"],
    )
    .await;
    let log = format!("json:{}", missing.join("access.log").display());
    refused(
        Waypost::builder().flag("--access-log", log),
        1,
        &["--access-log", "access.log"],
    )
    .await;
}

#[tokio::test]
async fn bad_flags_are_usage_errors_that_name_the_flag() {
    for (flag, value, words) in [
        ("--listen", "http://127.0.0.1:99999", &["99999"][..]),
        ("--listen", "https://127.0.0.1:0", &["certificate"]),
        ("--listen", "ftp://127.0.0.1:0", &["ftp"]),
        ("--admin", "127.0.0.1:99999", &["99999"]),
        ("--workers", "0", &["0"]),
        ("--workers", "many", &["many"]),
        ("--balance", "best", &["best", "round-robin"]),
        ("--balance", "Hash", &["least-request", "hash"]),
        ("--access-log", "xml", &["xml", "json"]),
        ("--drain-delay", "5", &["5s"]),
        ("--log", "verbose", &["verbose"]),
        ("--log-format", "xml", &["xml", "text"]),
        ("--trusted-proxies", "lan", &["lan"]),
        ("--upstream-deny", "10.0.0.0/33", &["10.0.0.0/33"]),
        ("--tunnels", "on", &["not supported yet"]),
        ("--etcd", "ftp://127.0.0.1:1", &["ftp"]),
        ("--prefix", "/", &["/hosts/"]),
        ("--prefix", "a//b", &["a//b"]),
        ("--etcd-key", "file", &["--etcd-cert"]),
        ("--etcd-user", "root", &["--etcd-password-file"]),
        ("--speed", "11", &["--speed"]),
    ] {
        let ended = waypost(&["serve", flag, value]).await;
        assert_eq!(ended.code, Some(2), "{flag} {value}: {ended:?}");
        assert_eq!(ended.stdout, "", "{flag} {value}");
        for word in [&[flag], words].concat() {
            assert!(
                ended.stderr.contains(word),
                "{flag} {value}: {}",
                ended.stderr
            );
        }
    }
    let both = Waypost::builder().flag("--etcd", "http://127.0.0.1:1");
    refused(both, 2, &["--hosts-dir", "--etcd"]).await;
    let both = Waypost::builder().flag("--snapshot", "/tmp/x");
    refused(both, 2, &["--snapshot", "--hosts-dir"]).await;
}

#[tokio::test]
async fn a_flag_beats_the_environment_which_beats_the_file_which_beats_the_default() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("waypost.toml");
    fs::write(&file, "drain-timeout = \"11s\"\n").unwrap();
    let config = file.display().to_string();
    let with_file = || Waypost::builder().flag("--config", &config);
    let with_both = || with_file().env("WAYPOST_DRAIN_TIMEOUT", "12s");
    for (builder, seconds) in [
        (Waypost::builder(), "30.0"),
        (with_file(), "11.0"),
        (Waypost::builder().env("WAYPOST_CONFIG", &config), "11.0"),
        (with_both(), "12.0"),
        (with_both().flag("--drain-timeout", "13s"), "13.0"),
        (with_file().env("WAYPOST_DRAIN_TIMEOUT", ""), "11.0"),
    ] {
        let mut waypost = builder.start().await;
        waypost.signal("INT");
        assert_eq!(waypost.wait_exit().await, Some(0));
        let line = waypost.log().until("draining").await;
        assert!(
            line.contains(&format!("timeout_seconds={seconds}")),
            "{seconds}: {line}"
        );
    }
}

#[tokio::test]
async fn mistakes_in_the_file_and_the_environment_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("waypost.toml");
    for (text, words) in [
        (
            "workers = 2\nspeed = 11\n",
            &["waypost.toml:2", "speed"][..],
        ),
        ("workers = 0\n", &["waypost.toml:1", "workers"]),
        (
            "listen = \"http://127.0.0.1:99999\"\n",
            &["waypost.toml:1", "listen", "99999"],
        ),
        ("workers = ", &["waypost.toml:1"]),
    ] {
        fs::write(&file, text).unwrap();
        let ended = Waypost::builder()
            .flag("--config", file.display())
            .run_to_end()
            .await;
        assert!(matches!(ended.code, Some(1 | 2)), "{text}: {ended:?}");
        for word in words {
            assert!(ended.stderr.contains(word), "{text}: {}", ended.stderr);
        }
    }
    let builder = Waypost::builder().env("WAYPOST_BALANCE", "best");
    refused(builder, 2, &["--balance", "best"]).await;
}

#[tokio::test]
async fn a_prefix_is_normalised() {
    let waypost = Waypost::builder().flag("--prefix", "hosts").start().await;
    waypost.put("a.test", "127.0.0.1:1", "").await;
    let waypost = Waypost::builder().flag("--prefix", "/x/y").start().await;
    write(&waypost.hosts().join("a.test/127.0.0.1:1"), "");
    eventually("applied", async || {
        waypost.api("/api/status").await["members"] == 1
    })
    .await;
    let page = waypost.api("/api/routes").await;
    assert_eq!(
        page["routes"][0]["members"][0]["key"],
        "/x/y/a.test/127.0.0.1:1"
    );
}

#[tokio::test]
async fn the_log_is_json_when_asked() {
    // The harness reads ports from the text log.
    let hosts = tempfile::tempdir().unwrap();
    let mut child = tokio::process::Command::new(BINARY)
        .args(["serve", "--log-format", "json", "--admin", "127.0.0.1:0"])
        .args(["--listen", "http://127.0.0.1:0", "--hosts-dir"])
        .arg(hosts.path())
        .stderr(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let pipe = child.stderr.take().unwrap().into_owned_fd().ok();
    let lines = crate::support::waypost::Lines::of(pipe);
    lines.until("routes applied").await;
    for line in lines.all() {
        let line: serde_json::Value = serde_json::from_str(&line).expect(&line);
        assert!(
            line["timestamp"].is_string() && line["level"].is_string(),
            "{line}"
        );
    }
}

/// It must end by itself with this code, and name these on standard error.
async fn refused(builder: Builder, code: i32, words: &[&str]) {
    let ended = builder.run_to_end().await;
    assert_eq!(ended.code, Some(code), "{words:?}: {ended:?}");
    for word in words {
        assert!(
            ended.stderr.contains(word),
            "{word} is not in {}",
            ended.stderr
        );
    }
    assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
}
