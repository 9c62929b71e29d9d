//! docs/balancing.md says what the simulation of the balancers finds.

#[path = "../examples/simulate_balancers/chance.rs"]
mod chance;
#[path = "../examples/simulate_balancers/plot.rs"]
mod plot;
#[path = "../examples/simulate_balancers/policy.rs"]
mod policy;
#[path = "../examples/simulate_balancers/report.rs"]
mod report;
#[path = "../examples/simulate_balancers/world.rs"]
mod world;

const HOW: &str = "run scripts/simulate-balancers";

#[test]
fn the_docs_have_the_tables_of_the_simulation() {
    let docs = include_str!("../docs/balancing.md");
    let (_, behind) = docs
        .split_once("<!-- simulated: begin -->\n")
        .expect("a mark");
    let (tables, _) = behind
        .split_once("<!-- simulated: end -->")
        .expect("a mark");
    assert_eq!(tables, report::tables(), "{HOW}");
}

#[test]
fn the_docs_have_the_plot_of_the_simulation() {
    assert_eq!(include_str!("../docs/balancing.svg"), plot::svg(), "{HOW}");
}
