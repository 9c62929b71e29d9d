//! The values of single flags: text in, final type or a message out. The caller names the flag.

use std::{net::SocketAddr, path::PathBuf, str::FromStr, time::Duration};

use ipnet::IpNet;

use super::{AccessLogConfig, AccessLogFormat};
use crate::route::settings::Balance;

/// Longest time a flag takes. Far beyond any use, and no clock overflows when it is added to.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// `10.0.0.0/8,192.0.2.1`, or `none`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Networks(pub Vec<IpNet>);

/// `off`, or a format with a path or without.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessLogChoice(pub Option<AccessLogConfig>);

/// `ADDRESS:PORT`, `[IPV6]:PORT`, or `localhost` for the address.
pub fn address(text: &str) -> Result<SocketAddr, String> {
    socket_address(text, None)
}

pub(super) fn socket_address(text: &str, default_port: Option<u16>) -> Result<SocketAddr, String> {
    // The last colon outside of brackets is the port's.
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (text, None),
    };
    let port = match (port, default_port) {
        (Some(port), _) => port
            .parse()
            .map_err(|_| format!("the port {port:?} is not a number from 0 to 65535"))?,
        (None, Some(default)) => default,
        (None, None) => return Err("the port is missing, as in 127.0.0.1:9900".into()),
    };
    let ip = match host {
        "localhost" => [127, 0, 0, 1].into(),
        _ => match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            Some(v6) => v6.parse().map(std::net::IpAddr::V6).ok(),
            None => host.parse().map(std::net::IpAddr::V4).ok(),
        }
        .ok_or_else(|| {
            format!("{host:?} is not an IP address: write 0.0.0.0 for all, [::] for IPv6 too, or localhost")
        })?,
    };
    Ok(SocketAddr::new(ip, port))
}

impl FromStr for Networks {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self::default());
        }
        let network = |text: &str| {
            let text = text.trim();
            let ip = || text.parse::<std::net::IpAddr>().map(IpNet::from);
            text.parse::<IpNet>().or_else(|_| ip()).map_err(|_| {
                format!("{text:?} is not a network: write 10.0.0.0/8, separated by commas, or none")
            })
        };
        text.split(',')
            .map(network)
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

impl FromStr for AccessLogChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (format, path) = match text.split_once(':') {
            Some((format, path)) => (format, Some(PathBuf::from(path))),
            None => (text, None),
        };
        let format = match format {
            "off" if path.is_none() => return Ok(Self(None)),
            "json" => AccessLogFormat::Json,
            "combined" => AccessLogFormat::Combined,
            _ => return Err("write off, json or combined; json:FILE for a file".into()),
        };
        if path
            .as_ref()
            .is_some_and(|path| path.as_os_str().is_empty())
        {
            return Err("no file stands after the colon".into());
        }
        Ok(Self(Some(AccessLogConfig { format, path })))
    }
}

/// `round-robin`, `random`, `least-request` or `hash`.
pub fn balance(text: &str) -> Result<Balance, String> {
    match text {
        "round-robin" => Ok(Balance::RoundRobin),
        "random" => Ok(Balance::Random),
        "least-request" => Ok(Balance::LeastRequest),
        "hash" => Ok(Balance::Hash),
        _ => Err("write round-robin, random, least-request or hash".into()),
    }
}

/// `5s`, `1m30s`, `0`; up to 365 days.
pub fn duration(text: &str) -> Result<Duration, String> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let duration = humantime::parse_duration(text)
        .map_err(|_| "write a number and a unit, such as 500ms, 5s or 1m")?;
    if duration > LONGEST {
        return Err("that is over the limit of 365 days".into());
    }
    Ok(duration)
}

/// For flags that are known but don't work in this version.
pub fn not_yet(_text: &str) -> Result<String, String> {
    Err("not supported yet".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_needs_a_port() {
        assert_eq!(address("localhost:0"), Ok(([127, 0, 0, 1], 0).into()));
        assert!(
            address("127.0.0.1")
                .unwrap_err()
                .contains("port is missing")
        );
        assert!(address("[::1]").unwrap_err().contains("port is missing"));
        assert!(address("").is_err());
    }

    #[test]
    fn networks_take_bare_addresses_and_none() {
        let networks: Networks = "10.0.0.0/8, 192.0.2.1,fe80::/10".parse().unwrap();
        let texts: Vec<_> = networks.0.iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["10.0.0.0/8", "192.0.2.1/32", "fe80::/10"]);
        assert_eq!("none".parse(), Ok(Networks::default()));
        for bad in ["", "10.0.0.0/33", "10.0.0.0/8,", "lan"] {
            assert!(bad.parse::<Networks>().is_err(), "{bad}");
        }
    }

    #[test]
    fn access_logs_have_a_format_and_perhaps_a_file() {
        let log = |format, path: Option<&str>| {
            Ok(AccessLogChoice(Some(AccessLogConfig {
                format,
                path: path.map(PathBuf::from),
            })))
        };
        assert_eq!("off".parse(), Ok(AccessLogChoice(None)));
        assert_eq!("json".parse(), log(AccessLogFormat::Json, None));
        let file = log(AccessLogFormat::Combined, Some("/var/log/a:b"));
        assert_eq!("combined:/var/log/a:b".parse(), file);
        for bad in ["", "off:/x", "jsn", "json:"] {
            assert!(bad.parse::<AccessLogChoice>().is_err(), "{bad}");
        }
    }

    #[test]
    fn durations_need_a_unit() {
        assert_eq!(duration("1m30s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("0"), Ok(Duration::ZERO));
        for bad in ["", "5", "-1s", "5 parsecs", "366days", "300000000000years"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
