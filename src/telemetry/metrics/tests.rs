//! Series come and go with their holders, and stay few.

use std::sync::Weak;

use super::*;

#[test]
fn routes_beyond_the_bound_share_one_series() {
    let metrics = Metrics::new();
    let held: Vec<_> = (0..OWN_SERIES + 5)
        .map(|i| metrics.route(&format!("host-{i}.test")))
        .collect();
    for route in &held {
        route.requests[1].inc();
    }
    let text = metrics.encode();
    assert!(text.contains(r#"waypost_requests_total{code="2xx",route="host-0.test"} 1"#));
    assert!(text.contains(r#"waypost_requests_total{code="2xx",route="other"} 5"#));
    assert!(!text.contains("host-1000.test"));
    assert!(text.len() < 5_000_000, "a scrape of {} bytes", text.len());
}

#[test]
fn one_name_has_one_set_of_handles() {
    let metrics = Metrics::new();
    let first = metrics.upstream("10.0.0.1:80");
    assert!(Arc::ptr_eq(&first, &metrics.upstream("10.0.0.1:80")));
    assert!(!Arc::ptr_eq(&first, &metrics.upstream("10.0.0.1:81")));
}

#[test]
fn series_go_with_the_last_holder_and_make_room() {
    let metrics = Metrics::new();
    for round in 0..3 * OWN_SERIES {
        let name = format!("round-{round}.test");
        let first = metrics.route(&name);
        let second = metrics.route(&name);
        drop(first);
        second.requests[1].inc();
        assert!(round > 0 || metrics.encode().contains("round-0.test"));
    }
    assert!(metrics.routes.own.lock().is_empty());
    assert!(!metrics.encode().contains("round-"));
}

#[test]
fn a_name_claimed_while_its_last_holder_leaves_keeps_its_series() {
    let metrics = Metrics::new();
    let leaving = metrics.upstream("10.0.0.1:80");
    // What `claim` meets between the last decrement and `release`: an entry that can't be upgraded.
    let name = leaving.series.as_ref().map(|(_, name)| name.clone());
    metrics
        .upstreams
        .own
        .lock()
        .insert(name.expect("it has its own series"), Weak::new());
    let staying = metrics.upstream("10.0.0.1:80");
    drop(leaving);
    staying.requests.inc();
    let line = r#"waypost_upstream_requests_total{upstream="10.0.0.1:80"} 1"#;
    assert!(metrics.encode().contains(line));
}

#[test]
fn an_overlong_name_counts_as_other() {
    let metrics = Metrics::new();
    metrics.route(&"x".repeat(LONGEST_NAME + 1)).requests[4].inc();
    let line = r#"waypost_requests_total{code="5xx",route="other"} 1"#;
    assert!(metrics.encode().contains(line));
}

#[test]
fn a_route_called_other_does_not_take_the_shared_series_away() {
    let metrics = Metrics::new();
    drop(metrics.route(OTHER));
    drop(metrics.upstream(OTHER));
    metrics.route(&"x".repeat(LONGEST_NAME + 1)).requests[1].inc();
    metrics
        .upstream(&"x".repeat(LONGEST_NAME + 1))
        .requests
        .inc();
    let text = metrics.encode();
    assert!(text.contains(r#"waypost_requests_total{code="2xx",route="other"} 1"#));
    assert!(text.contains(r#"waypost_upstream_requests_total{upstream="other"} 1"#));
}

/// At a million hosts too, because further routes have no series; DESIGN's bound is 10 MB.
#[test]
fn the_longest_names_make_no_scrape_over_ten_megabytes() {
    let metrics = Metrics::new();
    let name = |i: usize| format!("{i:0>width$}", width = LONGEST_NAME);
    let routes: Vec<_> = (0..OWN_SERIES).map(|i| metrics.route(&name(i))).collect();
    let upstreams: Vec<_> = (0..OWN_SERIES)
        .map(|i| metrics.upstream(&name(i)))
        .collect();
    let bytes = metrics.encode().len();
    assert!(bytes < 10_000_000, "a scrape of {bytes} bytes");
    drop((routes, upstreams));
}

#[test]
fn the_process_and_its_version_are_shown() {
    let text = Metrics::new().encode();
    assert!(text.contains("waypost_build_info{version="));
    assert!(text.contains("process_open_fds "));
    assert!(!text.contains("process_open_fds 0\n"));
    assert!(!text.contains("process_resident_memory_bytes 0\n"));
}
