//! Flags, environment and file together.

use std::{fs, path::Path};

use clap::{Args, Command, FromArgMatches};

use super::*;

/// As `waypost serve ARGUMENTS` would, with the environment left out.
fn config(arguments: &[&str]) -> anyhow::Result<Config> {
    let command = ServeArgs::augment_args(Command::new("serve").no_binary_name(true));
    let command = file::without_environment(command);
    let matches = command.try_get_matches_from(arguments)?;
    ServeArgs::from_arg_matches(&matches)?
        .with_file(&matches)?
        .resolve()
}

fn write(directory: &Path, name: &str, text: &str) -> String {
    let path = directory.join(name);
    fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn the_defaults_are_those_of_the_manual() {
    let config = config(&[]).unwrap();
    assert_eq!(
        config.listeners,
        [listener::parse("http://0.0.0.0:3000").unwrap()]
    );
    assert_eq!(config.prefix, "/hosts/");
    assert_eq!(config.admin, "127.0.0.1:9900".parse().unwrap());
    assert_eq!(config.drain_delay, Duration::from_secs(5));
    assert_eq!(config.drain_timeout, Duration::from_secs(30));
    assert_eq!(config.upstream_deny.len(), 2);
    assert!(config.trusted_proxies.is_empty());
    assert!(config.access_log.is_none());
    assert!(config.workers >= 1);
    let SourceConfig::Etcd(etcd) = config.source else {
        panic!("etcd is the default")
    };
    assert_eq!(etcd.endpoints, ["http://127.0.0.1:2379"]);
    assert_eq!(ServeArgs::default().drain_delay, Duration::from_secs(5));
}

#[test]
fn bad_flags_are_named_with_their_value() {
    for (arguments, expected) in [
        (
            vec!["--listen", "http://0.0.0.0:99999"],
            vec!["--listen", "99999"],
        ),
        (vec!["--admin", "127.0.0.1"], vec!["--admin", "port"]),
        (vec!["--workers", "0"], vec!["--workers", "0"]),
        (vec!["--workers", "1025"], vec!["--workers", "1024"]),
        (vec!["--balance", "fair"], vec!["--balance", "round-robin"]),
        (vec!["--drain-delay", "5"], vec!["--drain-delay", "5s"]),
        (
            vec!["--trusted-proxies", "lan"],
            vec!["--trusted-proxies", "lan"],
        ),
        (
            vec!["--upstream-deny", "1.2.3.4/40"],
            vec!["--upstream-deny", "/40"],
        ),
        (
            vec!["--access-log", "xml"],
            vec!["--access-log", "combined"],
        ),
        (vec!["--log", "waypost=loud"], vec!["--log", "loud"]),
        (vec!["--log-format", "xml"], vec!["--log-format", "json"]),
        (
            vec!["--snapshot", "x", "--hosts-dir", "/"],
            vec!["--snapshot", "--etcd", "--hosts-dir"],
        ),
        (vec!["--tunnels"], vec!["--tunnels", "not supported yet"]),
        (
            vec!["--tunnel-advertise", "x"],
            vec!["--tunnel-advertise", "not supported yet"],
        ),
        (vec!["--prefix", ""], vec!["--prefix"]),
        (
            vec!["--listen", "https://127.0.0.1:443"],
            vec!["--listen", "--tls-dir"],
        ),
        (
            vec!["--hosts-dir", ".", "--etcd", "http://e:1"],
            vec!["--hosts-dir", "--etcd"],
        ),
        (
            vec!["--hosts-dir", "/nonexistent"],
            vec!["--hosts-dir", "/nonexistent"],
        ),
        (
            vec!["--hosts-dir", "/proc/version"],
            vec!["--hosts-dir", "not a directory"],
        ),
        (
            vec!["--tls-dir", "/nonexistent"],
            vec!["--tls-dir", "/nonexistent"],
        ),
        (
            vec![
                "--listen",
                "https://127.0.0.1:443?cert=/nonexistent&key=/nonexistent",
            ],
            vec!["--listen", "/nonexistent"],
        ),
        (
            vec![
                "--listen",
                "http://127.0.0.1:80",
                "--listen",
                "http://localhost:80",
            ],
            vec!["--listen", "127.0.0.1:80", "twice"],
        ),
        (
            vec!["--config", "/nonexistent.toml"],
            vec!["--config", "/nonexistent.toml"],
        ),
    ] {
        let Err(error) = config(&arguments) else {
            panic!("{arguments:?} was accepted")
        };
        let error = format!("{error:#}");
        for part in expected {
            assert!(error.contains(part), "{arguments:?}: {error}");
        }
    }
}

#[test]
fn contradictions_are_usage_errors_and_missing_files_are_not() {
    let usage = |arguments: &[&str]| config(arguments).unwrap_err().is::<Usage>();
    assert!(usage(&["--listen", "https://127.0.0.1:443"]));
    assert!(usage(&["--hosts-dir", ".", "--etcd", "http://e:1"]));
    assert!(!usage(&["--hosts-dir", "/nonexistent"]));
}

#[test]
fn two_listeners_on_port_0_are_two_listeners() {
    let config = config(&["--listen", "http://127.0.0.1:0,http://127.0.0.1:0"]).unwrap();
    assert_eq!(config.listeners.len(), 2);
}

#[test]
fn a_flag_beats_the_file_and_the_file_beats_the_default() {
    let dir = tempfile::tempdir().unwrap();
    let file = write(
        dir.path(),
        "waypost.toml",
        r#"
        listen = ["http://127.0.0.1:81", "http://127.0.0.1:82"]
        etcd = ["http://a:1", "http://b:2"]
        workers = 3
        drain-delay = "1s"
        trusted-proxies = ["10.0.0.0/8", "192.0.2.1"]
        prefix = "routes"
        "#,
    );
    let merged = config(&["--config", &file, "--drain-delay", "2s"]).unwrap();
    let ports: Vec<_> = merged.listeners.iter().map(|l| l.address.port()).collect();
    assert_eq!(ports, [81, 82]);
    assert_eq!(merged.workers, 3);
    assert_eq!(merged.trusted_proxies.len(), 2);
    assert_eq!(merged.prefix, "/routes/");
    assert_eq!(merged.drain_delay, Duration::from_secs(2), "the flag's");
    assert_eq!(merged.drain_timeout, Duration::from_secs(30), "the default");
    let SourceConfig::Etcd(etcd) = merged.source else {
        panic!("the file names etcd")
    };
    assert_eq!(etcd.endpoints, ["http://a:1", "http://b:2"]);

    let replaced = config(&["--config", &file, "--listen", "http://127.0.0.1:83"]).unwrap();
    assert_eq!(
        replaced.listeners.len(),
        1,
        "a flag replaces the file's list"
    );
}

#[test]
fn mistakes_in_the_file_name_file_line_and_key() {
    let dir = tempfile::tempdir().unwrap();
    for (text, expected) in [
        (
            "workers = 2\nlissten = 'x'\n",
            vec![":2:", "lissten", "listen"],
        ),
        ("\n\nworkers = 0\n", vec![":3:", "workers", "0"]),
        ("workers = true\n", vec![":1:", "workers", "boolean"]),
        ("listen = [1.5]\n", vec![":1:", "listen"]),
        (
            "listen = 'http://0.0.0.0:99999'\n",
            vec![":1:", "listen", "99999"],
        ),
        ("config = 'other.toml'\n", vec![":1:", "config"]),
        (
            "tunnels = 'x'\n",
            vec![":1:", "tunnels", "not supported yet"],
        ),
        ("workers = 2\nworkers = 3\n", vec![":2:", "duplicate"]),
        ("workers = \n", vec![":1:"]),
        ("[serve]\nworkers = 2\n", vec![":1:", "serve"]),
    ] {
        let file = write(dir.path(), "waypost.toml", text);
        let error = config(&["--config", &file]).expect_err(text);
        let error = format!("{error:#}");
        assert!(error.contains("waypost.toml"), "{text}: {error}");
        for part in expected {
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
