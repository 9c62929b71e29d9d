//! The plot of docs/balancing.md: how long requests take, by percentile, for each policy.

use std::fmt::Write;

use super::{
    policy::Policy,
    report::{LOADS, run},
    world::percentile,
};

const PANEL: (u64, u64) = (380, 300);
const MARGIN: (u64, u64) = (60, 40);
/// In ten-thousandths: each step is half as far from all as the one before.
const PERCENTILES: [usize; 12] = [
    0, 5000, 7500, 8750, 9375, 9687, 9844, 9922, 9961, 9980, 9990, 9995,
];
const LABELS: [(usize, &str); 5] = [
    (0, "0"),
    (1, "50 %"),
    (4, "94 %"),
    (7, "99.2 %"),
    (10, "99.9 %"),
];
const COLOURS: [&str; 5] = ["#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd"];
const DASHES: [&str; 5] = ["none", "none", "none", "none", "4 3"];
/// Milliseconds at the lower and the upper edge, and in between.
const TICKS: [u64; 7] = [16, 32, 64, 128, 256, 512, 1024];

/// As an SVG document.
pub fn svg() -> String {
    let (width, height) = (2 * (PANEL.0 + MARGIN.0) + 30, PANEL.1 + 2 * MARGIN.1 + 50);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    for (index, load_percent) in (0..).zip(LOADS) {
        panel(
            &mut svg,
            MARGIN.0 + index * (PANEL.0 + MARGIN.0),
            load_percent,
        );
    }
    for (index, policy) in (0..).zip(Policy::ALL) {
        let (x, y) = (MARGIN.0 + index * 165, height - 18);
        let (colour, dashes) = (COLOURS[index as usize], DASHES[index as usize]);
        line(
            &mut svg,
            &format!(
                "<path d=\"M{x} {y}h24\" stroke=\"{colour}\" stroke-width=\"2\" stroke-dasharray=\"{dashes}\"/>\
             <text x=\"{}\" y=\"{}\">{}</text>",
                x + 30,
                y + 4,
                policy.name()
            ),
        );
    }
    svg + "</svg>\n"
}

fn panel(svg: &mut String, left: u64, load_percent: u64) {
    let (top, bottom) = (MARGIN.1, MARGIN.1 + PANEL.1);
    let x = |step: usize| left + step as u64 * PANEL.0 / (PERCENTILES.len() as u64 - 1);
    let y = |milliseconds| {
        let (low, high) = (log2(TICKS[0]), log2(TICKS[6]));
        let up = log2(milliseconds).clamp(low, high) - low;
        bottom - up * PANEL.1 / (high - low)
    };
    let middle = left + PANEL.0 / 2;
    line(
        svg,
        &format!(
            "<text x=\"{middle}\" y=\"{}\" text-anchor=\"middle\">at {load_percent} % of the capacity</text>",
            top - 14
        ),
    );
    for tick in TICKS {
        let (right, y) = (left + PANEL.0, y(tick));
        line(
            svg,
            &format!(
                "<path d=\"M{left} {y}H{right}\" stroke=\"#ddd\"/>\
             <text x=\"{}\" y=\"{}\" text-anchor=\"end\">{tick} ms</text>",
                left - 6,
                y + 4
            ),
        );
    }
    for (step, label) in LABELS {
        let x = x(step);
        line(
            svg,
            &format!(
                "<path d=\"M{x} {top}V{bottom}\" stroke=\"#eee\"/>\
             <text x=\"{x}\" y=\"{}\" text-anchor=\"middle\">{label}</text>",
                bottom + 16
            ),
        );
    }
    for (index, policy) in Policy::ALL.into_iter().enumerate() {
        let took = run(policy, load_percent, false).took;
        let point = |(step, &rank)| format!("{},{}", x(step), y(percentile(&took, rank)));
        let points: Vec<String> = PERCENTILES.iter().enumerate().map(point).collect();
        line(
            svg,
            &format!(
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"2\" stroke-dasharray=\"{}\"/>",
                points.join(" "),
                COLOURS[index],
                DASHES[index]
            ),
        );
    }
}

fn line(svg: &mut String, text: &str) {
    writeln!(svg, "{text}").expect("writing to a String does not fail");
}

/// In 256ths, by squaring: the same on every machine.
fn log2(number: u64) -> u64 {
    let number = number.max(1);
    let whole = u64::from(number.ilog2());
    // 1 to 2, in units of 2^-32.
    let mut rest = ((u128::from(number) << 32) >> whole) as u64;
    let mut log = whole;
    for _ in 0..8 {
        rest = ((u128::from(rest) * u128::from(rest)) >> 32) as u64;
        let bit = rest >> 33;
        log = log << 1 | bit;
        rest >>= bit;
    }
    log
}
