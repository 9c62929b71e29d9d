//! `waypost explain`: why a request goes where it goes.

use std::{
    fmt::Write as _,
    io::{self, Write},
    process::ExitCode,
};

use serde_json::Value;

use super::admin_client::{AdminArgs, encoded, fetch_json};

/// Say why a request goes where it goes, or why it is refused
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  waypost explain http://blog.example.com/api/users?page=2
  waypost explain https://blog.example.com/ --json
  waypost explain blog.example.com --admin 10.0.0.5:9900")]
pub struct Explain {
    /// The URL a client would ask for
    url: String,
    /// As JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    admin: AdminArgs,
}

impl Explain {
    /// Asks the instance and prints.
    ///
    /// # Errors
    ///
    /// When the URL is none, or the instance doesn't answer.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        let path = format!("/api/explain?url={}", encoded(&self.url));
        let explained = fetch_json(&self.admin.admin, &path).await?;
        let text = match self.json {
            true => format!("{explained:#}\n"),
            false => in_words(&self.url, &explained),
        };
        io::stdout().write_all(text.as_bytes())?;
        Ok(ExitCode::SUCCESS)
    }
}

fn in_words(url: &str, explained: &Value) -> String {
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    };
    let mut lines = String::new();
    let mut line = |name: &str, value: String| {
        if !value.is_empty() {
            let _ = writeln!(lines, "  {name:<10} {value}");
        }
    };
    line("host", text(&explained["host"]));
    line("path", text(&explained["path"]));
    line("revision", text(&explained["revision"]));
    let route = &explained["route"];
    if route.is_object() {
        line(
            "route",
            format!("{} ({})", text(&route["name"]), text(&route["balance"])),
        );
        if !route["settings_key"].is_null() {
            line(
                "settings",
                format!(
                    "{} (revision {})",
                    text(&route["settings_key"]),
                    route["settings_mod_revision"]
                ),
            );
        }
    }
    line("location", text(&explained["location"]));
    let forward = &explained["forward"];
    if forward.is_object() {
        line(
            "forwards",
            format!(
                "{} with Host {}",
                text(&forward["target"]),
                text(&forward["host"])
            ),
        );
    }
    for member in route["members"].as_array().map_or(&[][..], Vec::as_slice) {
        let role = match member["role"].as_str() {
            Some("backup") => ", a backup",
            _ => "",
        };
        let mut value = format!(
            "{} weight {}{role}, from {} (revision {})",
            text(&member["upstream"]),
            member["weight"],
            text(&member["key"]),
            member["mod_revision"]
        );
        if let Some(why) = member["why"].as_str() {
            value += &format!(", {}: {why}", text(&member["state"]));
        }
        if let Some(percent) = member["slow_start_percent"].as_u64() {
            value += &format!(", at {percent} % of its share in slow start");
        }
        line("upstream", value);
    }
    let verdict = match explained["status"].as_u64() {
        Some(status) => format!("answered with {status}"),
        None => "forwarded".to_owned(),
    };
    format!("{url}: {verdict}: {}\n{lines}", text(&explained["reason"]))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_forwarded_request_shows_its_way() {
        let explained = json!({
            "outcome": "forward", "status": null, "reason": "its one upstream gets it", "host": "a.test",
            "path": "/api/x", "revision": 7, "location": null,
            "route": {"name": "a.test/api", "balance": "random", "settings_key": "/hosts/a.test/api/@settings",
                "settings_mod_revision": 4, "members": [{"upstream": "10.0.0.1:80", "weight": 1, "state": "ejected",
                "why": "5 failures in a row", "key": "/hosts/a.test/api/10.0.0.1:80", "mod_revision": 3},
                {"upstream": "10.0.0.2:80", "weight": 1, "role": "backup", "state": "healthy", "why": null,
                "slow_start_percent": 40, "key": "/hosts/a.test/api/10.0.0.2:80", "mod_revision": 5}]},
            "forward": {"target": "/x", "host": "a.test"},
        });
        assert_eq!(
            in_words("http://a.test/api/x", &explained),
            "http://a.test/api/x: forwarded: its one upstream gets it\n  \
               host       a.test\n  \
               path       /api/x\n  \
               revision   7\n  \
               route      a.test/api (random)\n  \
               settings   /hosts/a.test/api/@settings (revision 4)\n  \
               forwards   /x with Host a.test\n  \
               upstream   10.0.0.1:80 weight 1, from /hosts/a.test/api/10.0.0.1:80 (revision 3), ejected: 5 failures in a row\n  \
               upstream   10.0.0.2:80 weight 1, a backup, from /hosts/a.test/api/10.0.0.2:80 (revision 5), at 40 % of its share in slow start\n"
        );
    }
}
