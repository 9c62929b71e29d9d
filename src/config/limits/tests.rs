//! Each limit has bounds, and stands in the documentation.

use clap::{Args, Command, FromArgMatches};

use super::*;

const DOCUMENTED: &str = include_str!("../../../docs/http.md");

fn command() -> Command {
    let command = LimitArgs::augment_args(Command::new("serve").no_binary_name(true));
    command.mut_args(|arg| arg.env(None::<&'static str>))
}

fn limits(arguments: &[&str]) -> anyhow::Result<ClientLimits> {
    let matches = command().try_get_matches_from(arguments)?;
    LimitArgs::from_arg_matches(&matches)?.resolve()
}

#[test]
fn what_is_out_of_bounds_is_refused_with_the_flag_and_the_bounds() {
    for (flag, bad, said) in [
        ("--max-header-bytes", "1000B", "from 1KiB to 1MiB"),
        ("--max-header-bytes", "2MiB", "from 1KiB to 1MiB"),
        ("--max-header-bytes", "lots", "a number and a unit"),
        ("--max-header-fields", "0", "1..=4096"),
        ("--max-header-fields", "5000", "1..=4096"),
        ("--max-target-bytes", "64KiB", "from 256B to 60KiB"),
        ("--header-timeout", "0", "under 100ms"),
        ("--header-timeout", "10", "a number and a unit"),
        ("--tls-handshake-timeout", "1ms", "under 100ms"),
        ("--idle-timeout", "400days", "365 days"),
        ("--body-timeout", "-1s", "a number and a unit"),
        ("--max-connections", "0", "1..=10000000"),
        ("--max-connections-per-client", "0", "half, or none"),
        ("--max-connections-per-client", "most", "half, or none"),
        ("--h2-max-streams", "0", "1..=10000"),
        ("--h2-max-resets", "0", "1..=1000000"),
        ("--h2-max-resets", "99", "--h2-max-streams"),
        ("--h2-stream-window", "1KiB", "from 16KiB to 64MiB"),
        ("--h2-connection-window", "60KiB", "from 64KiB to 1GiB"),
        ("--h2-connection-window", "4GiB", "from 64KiB to 1GiB"),
        ("--h2-stream-window", "2MiB", "--h2-connection-window"),
    ] {
        let error = limits(&[&format!("{flag}={bad}")]).expect_err(flag);
        let error = format!("{error:#}");
        assert!(
            error.contains(flag) && error.contains(said),
            "{flag}={bad}: {error}"
        );
    }
}

#[test]
fn every_flag_has_an_environment_twin_and_a_row_with_its_default_in_the_documentation() {
    let command = LimitArgs::augment_args(Command::new("serve"));
    for arg in command.get_arguments() {
        let Some(flag) = arg.get_long() else { continue };
        let twin = format!("WAYPOST_{}", flag.replace('-', "_").to_uppercase());
        assert_eq!(arg.get_env(), Some(std::ffi::OsStr::new(&twin)), "{flag}");
        let default = arg.get_default_values().first();
        let default = default.map_or(String::new(), |text| format!(" `{}` |", text.display()));
        let row = format!("| `--{flag}` |{default}");
        assert!(DOCUMENTED.contains(&row), "docs/http.md lacks {row}");
    }
}

#[test]
fn each_flag_sets_its_limit() {
    let of = |argument: &str| limits(&[argument]).expect(argument);
    assert_eq!(of("--max-header-bytes=8KiB").header_bytes, 8192);
    assert_eq!(of("--max-header-fields=7").header_fields, 7);
    assert_eq!(of("--max-target-bytes=1KiB").target_bytes, 1024);
    let second = Duration::from_secs(1);
    assert_eq!(of("--header-timeout=1s").head, second);
    assert_eq!(of("--tls-handshake-timeout=1s").opening, second);
    assert_eq!(of("--idle-timeout=1s").idle, second);
    assert_eq!(of("--body-timeout=1s").body, second);
    let connections = |argument: &str| of(argument).connections;
    assert_eq!(connections("--max-connections=9").process, Some(9));
    for (text, expected) in [
        ("half", PerClient::Half),
        ("7", PerClient::AtMost(7)),
        ("none", PerClient::Unlimited),
    ] {
        let argument = format!("--max-connections-per-client={text}");
        assert_eq!(connections(&argument).per_client, expected);
    }
    assert_eq!(of("--h2-max-streams=7").http2.streams, 7);
    assert_eq!(of("--h2-max-resets=200").http2.resets, 200);
    assert_eq!(of("--h2-max-streams=7").http2.resets, 1000);
    assert_eq!(of("--h2-max-streams=7000").http2.resets, 7000);
    assert_eq!(of("--h2-stream-window=16KiB").http2.stream_window, 1 << 14);
    let window = of("--h2-connection-window=2MiB").http2.connection_window;
    assert_eq!(window, 2 << 20);
    assert_eq!(limits(&[]).expect("the defaults"), ClientLimits::default());
}
