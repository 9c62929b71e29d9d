//! The tables of docs/balancing.md.

use std::fmt::Write;

use super::{
    policy::Policy,
    world::{ORDINARY, Outcome, SLOW, Setup, percentile},
};

/// What of the capacity is asked for, in percent.
pub const LOADS: [u64; 2] = [15, 60];

/// As Markdown.
pub fn tables() -> String {
    let mut text = String::new();
    for load_percent in LOADS {
        let line = format!(
            "\nAt {load_percent} % of the capacity:\n\n\
             | policy | p50 | p99 | errors | busiest of the seven alike | share of the slow one |\n\
             |---|---|---|---|---|---|\n"
        );
        text.push_str(&line);
        for policy in Policy::ALL {
            let outcome = run(policy, load_percent, false);
            writeln!(text, "{}", row(policy, &outcome)).expect("writing to a String does not fail");
        }
    }
    text.push_str(
        "\nWhat the new upstream's first 10 s are like for those it serves, at 60 %:\n\n\
         | policy | p50 | p99 | p50 with slow start | p99 with slow start |\n|---|---|---|---|---|\n",
    );
    for policy in Policy::ALL {
        let [without, with] =
            [false, true].map(|slow_start| run(policy, 60, slow_start).took_at_new);
        let at = |took: &[u64], rank| format!("{} ms", percentile(took, rank));
        let cells = [
            at(&without, 5000),
            at(&without, 9900),
            at(&with, 5000),
            at(&with, 9900),
        ];
        writeln!(text, "| {} | {} |", policy.name(), cells.join(" | "))
            .expect("writing to a String does not fail");
    }
    text
}

pub fn run(policy: Policy, load_percent: u64, slow_start: bool) -> Outcome {
    let setup = Setup {
        policy,
        load_percent,
        slow_start,
    };
    setup.run()
}

fn row(policy: Policy, outcome: &Outcome) -> String {
    let alike = &outcome.attempts[ORDINARY];
    let busiest = alike.iter().max().copied().unwrap_or(0) * alike.len();
    let alike: usize = alike.iter().sum();
    let all: usize = outcome.attempts.iter().sum();
    format!(
        "| {} | {} ms | {} ms | {} % | {} x the mean | {} % |",
        policy.name(),
        percentile(&outcome.took, 5000),
        percentile(&outcome.took, 9900),
        hundredths(outcome.errors * 100, outcome.took.len()),
        hundredths(busiest, alike),
        hundredths(outcome.attempts[SLOW] * 100, all),
    )
}

/// A quotient with two decimals.
fn hundredths(a: usize, b: usize) -> String {
    let rounded = (a * 100 + b / 2) / b.max(1);
    format!("{}.{:02}", rounded / 100, rounded % 100)
}
