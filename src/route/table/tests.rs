use super::*;
use crate::{route::Settings, telemetry::metrics::Metrics, upstream::balancer::Balancer};

pub(super) fn id(name: &str) -> RouteId {
    let (host, prefix) = name.split_once('/').unwrap_or((name, ""));
    RouteId {
        host: host.parse().expect(name),
        prefix: prefix.parse().expect(name),
    }
}

/// A route without members.
pub(super) fn route(name: &str) -> Arc<Route> {
    let RouteId { host, prefix } = id(name);
    Arc::new(Route {
        host,
        prefix,
        name: name.into(),
        settings: Settings::shared_default(),
        settings_key: None,
        members: Box::default(),
        balancer: Balancer::Nobody,
        backups: None,
        panic: Default::default(),
        tokens: None,
        limits: None,
        speaks_http2: false,
        metrics: Metrics::new().route(name),
    })
}

fn table(names: &[&str]) -> Table {
    let mut table = Table::default();
    names.iter().for_each(|name| table.insert(route(name)));
    table
}

#[test]
fn the_host_is_chosen_first_and_then_the_longest_prefix() {
    let table = table(&[
        "a.example.com",
        "a.example.com/api",
        "a.example.com/api/v1",
        "a.example.com/api-x",
        "*.example.com",
        "*.b.example.com/only",
        "split.example.com/api",
        "127.0.0.1",
        "*.0.0.1",
        "[::1]",
    ]);
    for (host, path, expected) in [
        ("a.example.com", "/", Ok("a.example.com")),
        ("a.example.com", "", Ok("a.example.com")),
        ("a.example.com", "*", Ok("a.example.com")),
        ("a.example.com", "/apix", Ok("a.example.com")),
        ("a.example.com", "/api", Ok("a.example.com/api")),
        ("a.example.com", "/api/", Ok("a.example.com/api")),
        ("a.example.com", "/api/v10", Ok("a.example.com/api")),
        ("a.example.com", "/api/v1/x/y", Ok("a.example.com/api/v1")),
        ("a.example.com", "/api-x/v1", Ok("a.example.com/api-x")),
        ("a.example.com", "/%61pi/v1", Ok("a.example.com/api/v1")),
        ("a.example.com", "/api%2Fv1", Ok("a.example.com")),
        (
            "a.example.com",
            "//api/./x/../v1",
            Ok("a.example.com/api/v1"),
        ),
        ("a.example.com", "/api/../x", Ok("a.example.com")),
        ("x.example.com", "/api", Ok("*.example.com")),
        ("x.y.example.com", "/", Ok("*.example.com")),
        ("example.com", "/", Err(Miss::Host)),
        ("xexample.com", "/", Err(Miss::Host)),
        ("x.b.example.com", "/only/x", Ok("*.b.example.com/only")),
        ("x.b.example.com", "/", Err(Miss::Path)),
        ("split.example.com", "/api", Ok("split.example.com/api")),
        ("split.example.com", "/", Err(Miss::Path)),
        ("127.0.0.1", "/", Ok("127.0.0.1")),
        ("10.0.0.1", "/", Err(Miss::Host)),
        ("[::1]", "/", Ok("[::1]")),
        ("", "/", Err(Miss::Host)),
    ] {
        let found = table.find(host, path).map(|route| &*route.name);
        assert_eq!(found, expected, "{host} {path}");
    }
}

#[test]
fn where_normalising_is_off_a_path_means_one_route_or_none() {
    let spelled = Arc::new(Settings {
        normalize_path: NormalizePath::Off,
        ..Settings::default()
    });
    let mut table = table(&[
        "a.example",
        "a.example/api",
        "b.example/api",
        "c.example/api",
    ]);
    for name in ["a.example/raw", "b.example", "c.example/raw", "d.example"] {
        let route = Arc::into_inner(route(name)).expect("nobody else has it");
        table.insert(Arc::new(Route {
            settings: spelled.clone(),
            ..route
        }));
    }
    for (host, path, expected) in [
        ("a.example", "/raw", Ok("a.example/raw")),
        ("a.example", "/raw/x//y/./%7e%zz/../z", Ok("a.example/raw")),
        ("a.example", "/x/../y", Ok("a.example")),
        ("a.example", "/%61pi", Ok("a.example/api")),
        ("a.example", "/x/../api", Ok("a.example/api")),
        ("a.example", "/%72aw", Err(Miss::Spelling)),
        ("a.example", "//raw", Err(Miss::Spelling)),
        ("a.example", "/x/../raw", Err(Miss::Spelling)),
        ("a.example", "/raw/../api", Err(Miss::Spelling)),
        ("a.example", "/raw/..", Err(Miss::Spelling)),
        ("a.example", "/raw%2f..%2fapi", Ok("a.example")),
        // Off for the rest of a host, which another prefix guards.
        ("b.example", "/x/../y", Ok("b.example")),
        ("b.example", "/api/./x", Ok("b.example/api")),
        ("b.example", "/%61pi", Err(Miss::Spelling)),
        ("b.example", "/x/../api", Err(Miss::Spelling)),
        ("b.example", "/api/../x", Err(Miss::Spelling)),
        // Nothing serves the rest.
        ("c.example", "/raw/../x", Err(Miss::Spelling)),
        ("c.example", "/x/../raw", Err(Miss::Spelling)),
        ("c.example", "/api/../x", Err(Miss::Path)),
        ("c.example", "*", Err(Miss::Path)),
        ("d.example", "/x/..//%61", Ok("d.example")),
    ] {
        let found = table.find(host, path).map(|route| &*route.name);
        assert_eq!(found, expected, "{host} {path}");
    }
}

#[test]
fn any_host_serves_the_rest() {
    let table = table(&["*", "a.example/x"]);
    for (host, path, expected) in [
        ("b.example", "/", Ok("*")),
        ("10.0.0.1", "/", Ok("*")),
        ("", "/", Ok("*")),
        ("a.example", "/", Err(Miss::Path)),
    ] {
        let found = table.find(host, path).map(|route| &*route.name);
        assert_eq!(found, expected, "{host} {path}");
    }
}

#[test]
fn edits_of_a_clone_leave_the_original_and_are_counted() {
    let before = table(&["a.example", "a.example/x", "*.b.example"]);
    let mut after = before.clone();
    after.remove(&id("a.example"));
    after.remove(&id("nobody.example"));
    after.remove(&id("a.example/nothing"));
    assert_eq!(after.find("a.example", "/").err(), Some(Miss::Path));
    after.remove(&id("a.example/x"));
    after.remove(&id("*.b.example"));
    assert_eq!(after.counts(), Counts::default());
    assert_eq!(after.find("a.example", "/x").err(), Some(Miss::Host));
    let counts = before.counts();
    assert_eq!((counts.hosts, counts.routes), (2, 3));
    assert!(before.find("a.example", "/").is_ok());
}

#[test]
fn pages_are_in_order_and_miss_nobody() {
    let names: Vec<String> = (0..100)
        .map(|n| format!("h{:03}.example", n * 37 % 100))
        .collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let table = table(&[&names[..], &["*", "h000.example/api"]].concat());
    let mut seen: Vec<String> = Vec::new();
    loop {
        let page = table.page(seen.last().map_or("", String::as_str), 7);
        assert!(page.len() <= 7);
        if page.is_empty() {
            break;
        }
        seen.extend(page.iter().map(|route| route.name.to_string()));
    }
    assert!(seen.is_sorted());
    assert_eq!(seen.len(), 102);
    assert!(table.page("", 0).is_empty());
}
