//! `waypost routes`: what an instance serves.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use serde_json::Value;

use super::admin_client::{AdminArgs, encoded, fetch_json};

/// Routes asked for at once.
const PAGE: usize = 1000;

/// List what an instance serves
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  waypost routes
  waypost routes blog.example.com
  waypost routes --json | jq .name
  waypost routes --admin 10.0.0.5:9900")]
pub struct Routes {
    /// Only the routes of this host, as its key has it: blog.example.com, '*.example.com', '*'
    host: Option<String>,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    admin: AdminArgs,
}

impl Routes {
    /// Prints page after page.
    ///
    /// # Errors
    ///
    /// When the instance doesn't answer, or standard output is closed.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        let mut out = io::stdout();
        let mut after = String::new();
        let mut count = 0;
        loop {
            let mut path = format!("/api/routes?limit={PAGE}&after={}", encoded(&after));
            if let Some(host) = &self.host {
                path += &format!("&host={}", encoded(host));
            }
            let page = fetch_json(&self.admin.admin, &path).await?;
            let routes = page["routes"].as_array().map_or(&[][..], Vec::as_slice);
            let text = match self.json {
                true => routes.iter().map(|route| format!("{route}\n")).collect(),
                false => table(routes, count == 0 && !routes.is_empty()),
            };
            out.write_all(text.as_bytes())?;
            count += routes.len();
            match page["next"].as_str() {
                Some(next) => after = next.to_owned(),
                None => break,
            }
        }
        out.flush()?;
        if count == 0 {
            eprintln!("no routes");
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Widest name of a route in the table, in characters. `--json` has all of it.
const WIDEST: usize = 80;

/// Columns, wide enough for what is in them.
fn table(routes: &[Value], with_head: bool) -> String {
    let head = ["ROUTE", "BALANCE", "UPSTREAMS"].map(str::to_owned);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let rows = routes.iter().map(|route| {
        let members = route["members"].as_array().map_or(&[][..], Vec::as_slice);
        let upstreams: Vec<_> = members.iter().map(upstream).collect();
        [
            cut(&text(&route["name"])),
            text(&route["balance"]),
            upstreams.join(", "),
        ]
    });
    let rows: Vec<_> = with_head.then_some(head).into_iter().chain(rows).collect();
    let width = |column: usize| {
        let widths = rows.iter().map(|row| row[column].chars().count());
        widths.max().unwrap_or(0)
    };
    let (name, balance) = (width(0), width(1));
    rows.iter()
        .map(|row| format!("{:name$}  {:balance$}  {}\n", row[0], row[1], row[2]))
        .collect()
}

/// One of a thousand characters must not make the column so wide.
fn cut(name: &str) -> String {
    match name.char_indices().nth(WIDEST) {
        Some(_) => name.chars().take(WIDEST - 1).chain(['\u{2026}']).collect(),
        None => name.to_owned(),
    }
}

fn upstream(member: &Value) -> String {
    let name = member["upstream"].as_str().unwrap_or_default();
    let weight = match member["weight"].as_u64() {
        Some(1) | None => String::new(),
        Some(weight) => format!(" x{weight}"),
    };
    let role = match member["role"].as_str() {
        Some("backup") => Some("backup".to_owned()),
        _ => None,
    };
    let state = match member["state"].as_str() {
        Some("healthy") | None => None,
        Some("unresolved") => Some("no address known".to_owned()),
        Some(state) => Some(state.to_owned()),
    };
    let slow = member["slow_start_percent"].as_u64();
    let slow = slow.map(|percent| format!("slow start: {percent} %"));
    let marks: Vec<_> = [role, state, slow].into_iter().flatten().collect();
    match marks.is_empty() {
        true => format!("{name}{weight}"),
        false => format!("{name}{weight} ({})", marks.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn columns_line_up() {
        let routes = [
            json!({"name": "a.test", "balance": "random", "members": [
                {"upstream": "10.0.0.1:80", "weight": 5, "state": "healthy", "slow_start_percent": 10},
                {"upstream": "10.0.0.2:80", "weight": 1, "role": "backup", "state": "ejected"},
                {"upstream": "app:80", "weight": 1, "state": "unresolved"}]}),
            json!({"name": "long.example.test", "balance": "round-robin", "members": []}),
        ];
        assert_eq!(
            table(&routes, true),
            "ROUTE              BALANCE      UPSTREAMS\n\
             a.test             random       10.0.0.1:80 x5 (slow start: 10 %), 10.0.0.2:80 (backup, ejected), app:80 (no address known)\n\
             long.example.test  round-robin  \n"
        );
    }

    #[test]
    fn a_very_long_name_is_cut() {
        let named = |name: &str| json!({"name": name, "balance": "random", "members": []});
        let fits = "\u{e4}".repeat(WIDEST);
        let long = "a".repeat(4000);
        let routes = [named(&fits), named(&long)];
        assert_eq!(
            table(&routes, false),
            format!(
                "{fits}  random  \n{}\u{2026}  random  \n",
                &long[..WIDEST - 1]
            )
        );
    }
}
