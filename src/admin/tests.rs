//! The API as a client sees it, over real sockets.

use std::net::SocketAddr;

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::{mpsc, oneshot},
};

use super::*;
use crate::{
    config::ServeArgs,
    live::{Rejected, RejectedKeys},
    route::{
        Route, Settings, Table,
        settings::{Balance, HostHeader, NormalizePath},
        testing,
    },
    upstream::{Endpoint, Registry, balancer::Balancer, load::Loads, testing::plain},
};

struct Instance {
    admin: Arc<Admin>,
    address: SocketAddr,
    accepts: mpsc::Receiver<oneshot::Sender<usize>>,
}

impl Instance {
    async fn start() -> Self {
        let config = ServeArgs::default().resolve().unwrap();
        let live = Live::new(Status {
            connected: true,
            observed: Some(9),
            ..Status::before("etcd", "http://127.0.0.1:2379")
        });
        let (acceptance, accepts) = Acceptance::channel();
        let admin = Admin::new(&config, live, Metrics::new(), Loads::over(0).0, acceptance);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(admin.clone().serve(listener));
        Self {
            admin,
            address,
            accepts,
        }
    }

    fn publish(&self, revision: Revision, routes: &[(&str, &[&str], Settings)]) {
        let mut registry = Registry::new(self.admin.metrics.clone());
        let mut table = Table::default();
        table.revision = revision;
        for (name, addresses, settings) in routes {
            let route = route(
                &self.admin.metrics,
                &mut registry,
                name,
                addresses,
                settings,
            );
            table.insert(Arc::new(route));
        }
        self.admin.live.table.store(Arc::new(table));
        self.admin.live.applied.send_replace(Some(revision));
    }

    async fn text(&self, request: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let head = format!("{request} HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).await.unwrap();
        let (head, body) = reply.split_once("\r\n\r\n").unwrap();
        (head[9..12].parse().unwrap(), body.to_owned())
    }

    async fn json(&self, path: &str) -> (u16, Value) {
        let (status, body) = self.text(&format!("GET {path}")).await;
        (status, serde_json::from_str(&body).expect(&body))
    }
}

/// `blog.example.com/api` with one member per address.
fn route(
    metrics: &Metrics,
    registry: &mut Registry,
    name: &str,
    addresses: &[&str],
    settings: &Settings,
) -> Route {
    let member = |address: &&str| {
        let endpoint = Endpoint::Tcp {
            address: address.parse().unwrap(),
            name: None,
        };
        testing::member(
            registry.upstream(&plain(endpoint)),
            &format!("/hosts/{name}/{address}"),
        )
    };
    let members: Vec<_> = addresses.iter().map(member).collect();
    Route {
        settings: Arc::new(settings.clone()),
        balancer: Balancer::new(Balance::RoundRobin, &vec![1; members.len()], |_| "", None),
        ..testing::of(name, members.into(), metrics)
    }
}

#[tokio::test]
async fn readiness_follows_the_table_the_source_and_the_drain() {
    let instance = Instance::start().await;
    assert_eq!(instance.text("GET /livez").await, (200, "ok\n".into()));
    let status = &instance.admin.live.status;
    status.send_modify(|status| status.error = Some("connection refused".into()));
    let (code, text) = instance.text("GET /readyz").await;
    assert_eq!(code, 503);
    assert!(text.contains("connection refused"), "{text}");

    status.send_modify(|status| status.error = None);
    instance.publish(5, &[]);
    assert_eq!(instance.text("GET /readyz").await, (200, "ready\n".into()));

    let since = Instant::now().checked_sub(Duration::from_secs(70));
    status.send_modify(|status| status.stale_since = since);
    let (code, text) = instance.text("GET /readyz").await;
    assert_eq!(code, 200);
    assert!(text.contains("stale for 7"), "{text}");

    instance.admin.begin_drain();
    let (code, text) = instance.text("GET /readyz").await;
    assert_eq!(code, 503);
    assert!(text.contains("draining"), "{text}");
}

#[tokio::test]
async fn status_and_metrics_agree_with_the_table() {
    let instance = Instance::start().await;
    let (_, status) = instance.json("/api/status").await;
    assert_eq!(status["applied_revision"], Value::Null);
    assert_eq!(status["ready"], false);

    let routes: [(&str, &[&str], Settings); 2] = [
        (
            "a.test",
            &["127.0.0.1:1", "127.0.0.1:2"],
            Settings::default(),
        ),
        ("a.test/api", &["127.0.0.1:3"], Settings::default()),
    ];
    instance.publish(5, &routes);
    let (_, status) = instance.json("/api/status").await;
    assert_eq!(status["applied_revision"], 5);
    assert_eq!(status["observed_revision"], 9);
    assert_eq!(status["source"], "etcd");
    assert_eq!(status["hosts"], 1);
    assert_eq!(status["routes"], 2);
    assert_eq!(status["members"], 3);
    let (_, metrics) = instance.text("GET /metrics").await;
    for line in [
        "waypost_revision 5",
        "waypost_routes 2",
        "waypost_source_connected 1",
    ] {
        assert!(metrics.contains(line), "{line}");
    }
}

#[tokio::test]
async fn routes_come_in_pages_that_cover_all() {
    let instance = Instance::start().await;
    let names: Vec<String> = (0..5).map(|i| format!("h{i}.test")).collect();
    let routes: Vec<(&str, &[&str], Settings)> = names
        .iter()
        .map(|name| (name.as_str(), &["127.0.0.1:1"][..], Settings::default()))
        .collect();
    instance.publish(5, &routes);
    let (mut seen, mut after) = (Vec::new(), String::new());
    loop {
        let (_, page) = instance
            .json(&format!("/api/routes?limit=2&after={after}"))
            .await;
        let routes = page["routes"].as_array().unwrap();
        assert!(routes.len() <= 2);
        seen.extend(
            routes
                .iter()
                .map(|route| route["name"].as_str().unwrap().to_owned()),
        );
        let Some(next) = page["next"].as_str() else {
            break;
        };
        after = next.to_owned();
    }
    assert_eq!(seen, names);

    let (_, page) = instance.json("/api/routes?host=H3.test").await;
    assert_eq!(page["routes"].as_array().unwrap().len(), 1);
    let member = &page["routes"][0]["members"][0];
    assert_eq!(member["key"], "/hosts/h3.test/127.0.0.1:1");
    assert_eq!(member["upstream"], "127.0.0.1:1");
}

#[tokio::test]
async fn explain_says_what_is_forwarded_or_why_not() {
    let instance = Instance::start().await;
    let (_, early) = instance.json("/api/explain?url=http://a.test/").await;
    assert_eq!(
        (&early["outcome"], &early["status"]),
        (&"no_table".into(), &503.into())
    );

    let rewritten = Settings {
        strip_prefix: true,
        add_prefix: "/base".into(),
        host_header: HostHeader::Upstream,
        ..Settings::default()
    };
    let stripped = Settings {
        strip_prefix: true,
        ..Settings::default()
    };
    let redirected = Settings {
        redirect_https: true,
        ..Settings::default()
    };
    let spelled = Settings {
        normalize_path: NormalizePath::Off,
        ..Settings::default()
    };
    let normalised = Settings {
        normalize_path: NormalizePath::Forward,
        add_query: "k=v".into(),
        ..Settings::default()
    };
    let routes: [(&str, &[&str], Settings); 8] = [
        ("a.test/raw", &["127.0.0.1:1"], spelled),
        ("a.test/tidy", &["127.0.0.1:1"], normalised),
        ("a.test/api", &["127.0.0.1:1"], rewritten),
        ("a.test/cut", &["127.0.0.1:1"], stripped),
        (
            "*.b.test",
            &["127.0.0.1:2", "127.0.0.1:3"],
            Settings::default(),
        ),
        ("empty.test", &[], Settings::default()),
        ("plain.test", &["127.0.0.1:1"], redirected),
        (
            "denied.test",
            &["127.0.0.1:1", "169.254.169.254:80"],
            Settings::default(),
        ),
    ];
    instance.publish(5, &routes);
    for (url, outcome, status, detail) in [
        ("A.test:80/api/x?y=1", "forward", Value::Null, "/base/x?y=1"),
        ("http://a.test/cut", "forward", Value::Null, "\"/\""),
        (
            "http://x.y.b.test/%2F",
            "forward",
            Value::Null,
            "one of 2 upstreams",
        ),
        (
            "http://denied.test/",
            "forward",
            Value::Null,
            "--upstream-deny forbids 1 of them",
        ),
        (
            "http://a.test/other",
            "no_path",
            404.into(),
            "no path prefix",
        ),
        ("http://c.test/", "no_host", 404.into(), "c.test"),
        (
            "http://empty.test/",
            "no_upstream",
            503.into(),
            "has no upstream",
        ),
        (
            "http://plain.test/q?z",
            "redirect",
            308.into(),
            "https://plain.test/q?z",
        ),
        ("https://plain.test/q?z", "forward", Value::Null, "/q?z"),
        (
            "a.test/raw//x/%zz",
            "forward",
            Value::Null,
            "\"/raw//x/%zz\"",
        ),
        (
            "a.test/x/../raw",
            "bad_request",
            400.into(),
            "normalize_path",
        ),
        (
            "a.test/raw/../tidy",
            "bad_request",
            400.into(),
            "normalize_path",
        ),
        (
            "a.test/x/..//t%69dy?q",
            "forward",
            Value::Null,
            "\"/tidy?k=v&q\"",
        ),
        ("a.test/tidy/%zz", "bad_request", 400.into(), "no triple"),
        (
            "http://a.test/x/../cut/y",
            "bad_request",
            400.into(),
            "strip_prefix",
        ),
    ] {
        let query = url.replace('%', "%25").replace('&', "%26");
        let (code, explained) = instance.json(&format!("/api/explain?url={query}")).await;
        assert_eq!(code, 200, "{url}: {explained}");
        assert_eq!(explained["outcome"], outcome, "{url}: {explained}");
        assert_eq!(explained["status"], status, "{url}: {explained}");
        assert!(explained.to_string().contains(detail), "{url}: {explained}");
    }
    let (_, explained) = instance.json("/api/explain?url=http://a.test/api").await;
    assert_eq!(explained["forward"]["host"], "127.0.0.1:1");
    assert_eq!(explained["route"]["members"][0]["mod_revision"], 3);
}

#[tokio::test]
async fn wait_ends_with_the_revision_or_with_504() {
    let instance = Instance::start().await;
    let (code, body) = instance.json("/api/wait?revision=5&timeout=0").await;
    assert_eq!(code, 504);
    assert!(
        body["error"].as_str().unwrap().contains("no routes"),
        "{body}"
    );

    let waiting = instance.json("/api/wait?revision=5&timeout=30s");
    let publishing = async {
        // Only after the waiter is there does the news matter.
        while instance.admin.live.applied.receiver_count() == 0 {
            tokio::task::yield_now().await;
        }
        instance.publish(6, &[]);
    };
    let ((code, body), ()) = tokio::join!(waiting, publishing);
    assert_eq!((code, &body["applied"]), (200, &6.into()));
    assert_eq!(
        instance.json("/api/wait?revision=7&timeout=1ms").await.0,
        504
    );
}

#[tokio::test]
async fn bad_requests_get_an_error_with_a_proper_status() {
    let instance = Instance::start().await;
    for (request, expected) in [
        ("GET /nothing", 404),
        ("GET /api/nothing", 404),
        ("POST /api/status", 405),
        ("GET /api/routes?limit=0", 400),
        ("GET /api/routes?limit=x", 400),
        ("GET /api/routes?limit=1000000", 400),
        ("GET /api/routes?hots=a", 400),
        ("GET /api/routes?host=a..b", 400),
        ("GET /api/explain", 400),
        ("GET /api/explain?url=ftp://a/", 400),
        ("GET /api/wait", 400),
        ("GET /api/wait?revision=x", 400),
        ("GET /api/wait?revision=1&timeout=5", 400),
    ] {
        let (code, body) = instance.text(request).await;
        assert_eq!(code, expected, "{request}: {body}");
        let body: Value = serde_json::from_str(&body).expect(&body);
        assert!(body["error"].is_string(), "{request}: {body}");
    }
    for (path, error) in [
        ("/api/explain", "say which URL: /api/explain?url=http://"),
        ("/api/wait", "missing field `revision`"),
        (
            "/api/routes?hots=a",
            "hots: unknown field `hots`, expected one of",
        ),
    ] {
        let (_, body) = instance.json(path).await;
        let found = body["error"].as_str().expect("a text");
        assert!(found.starts_with(error), "{path}: {found}");
    }
}

#[tokio::test]
async fn rejected_keys_are_listed_and_the_page_is_self_contained() {
    let instance = Instance::start().await;
    let rejected = Arc::new(Rejected {
        key: "/hosts/x".into(),
        reason: "no upstream".into(),
        mod_revision: 4,
        last_good_in_force: false,
    });
    let rejected = RejectedKeys {
        shown: vec![rejected; 2000],
        total: 3000,
    };
    instance.admin.live.rejected.store(Arc::new(rejected));
    let (_, body) = instance.json("/api/rejected").await;
    assert_eq!(body["rejected"][0]["key"], "/hosts/x");
    assert_eq!(body["rejected"][0]["last_good_in_force"], false);
    assert_eq!(body["rejected"].as_array().map(Vec::len), Some(1000));
    let (_, body) = instance.json("/api/rejected?limit=1500").await;
    assert_eq!(body["rejected"].as_array().map(Vec::len), Some(1500));
    let (_, body) = instance.json("/api/rejected?limit=0").await;
    assert_eq!(body["total"], 3000, "shown or not");
    assert_eq!(body["rejected"].as_array().map(Vec::len), Some(0));

    let (_, body) = instance.json("/api/status").await;
    assert_eq!(body["rejected_keys"], 3000);

    let (code, page) = instance.text("GET /").await;
    assert_eq!(code, 200);
    assert!(page.contains("<title>Waypost"));
    assert!(!page.contains("http://") && !page.contains("https://"));
}

#[tokio::test]
async fn held_deletions_show_everywhere_and_are_accepted_by_people_only() {
    let mut instance = Instance::start().await;
    instance.publish(5, &[]);
    let keys = ["/hosts/b/1:1", "/hosts/a/1:1", "/hosts/c/1:1"].map(Arc::from);
    instance
        .admin
        .live
        .held
        .store(Arc::new(keys.into_iter().collect()));
    let (_, body) = instance.json("/api/held?limit=2").await;
    assert_eq!(body["total"], 3);
    assert_eq!(
        body["held"],
        serde_json::json!(["/hosts/a/1:1", "/hosts/b/1:1"])
    );
    assert_eq!(instance.json("/api/status").await.1["held_deletes"], 3);
    let (code, text) = instance.text("GET /readyz").await;
    assert_eq!(code, 200);
    assert!(text.starts_with("ready, 3 deletions held"), "{text}");
    (instance.admin.live.status).send_modify(|status| status.stale_since = Some(Instant::now()));
    let (_, text) = instance.text("GET /readyz").await;
    assert!(
        text.starts_with("ready, 3 deletions held") && text.contains("), stale for 0s"),
        "{text}"
    );

    let by_page = "POST /api/accept HTTP/1.1\r\nOrigin: http://example.com\r\nX-Rest:";
    assert_eq!(instance.text(by_page).await.0, 403);
    assert_eq!(instance.text("GET /api/accept").await.0, 405);
    assert!(instance.accepts.try_recv().is_err());
    let mut accepts = std::mem::replace(&mut instance.accepts, mpsc::channel(1).1);
    let publisher = async {
        let reply: oneshot::Sender<usize> = accepts.recv().await.expect("an operator asks");
        reply.send(3).expect("the operator waits");
    };
    let ((code, body), ()) = tokio::join!(instance.text("POST /api/accept"), publisher);
    assert_eq!((code, &*body), (200, "{\"accepted\":3}"));
    drop(accepts);
    assert_eq!(instance.text("POST /api/accept").await.0, 503);
}
