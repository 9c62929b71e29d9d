//! Active health checks: who is asked what and how often, and who gets requests for it.

mod answers;

use std::{
    fmt,
    path::PathBuf,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::json;
use tokio::sync::Semaphore;

use crate::support::{
    h2_origin::H2Origin,
    http::Message,
    load,
    origin::{Origin, Served, answer_all},
    tls::Authority,
    waypost::{Waypost, eventually, waypost},
};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// Health checks of `/healthz`, ten a second.
const CHECKED: &str = r#"{"health": {"path": "/healthz", "interval": "100ms"}}"#;

#[tokio::test]
async fn an_upstream_goes_out_after_bad_answers_and_comes_back_after_good_ones() {
    let waypost = Waypost::builder().start().await;
    let (sick, well) = (Patient::start().await, Patient::start().await);
    waypost.put("a.test", "@settings", CHECKED).await;
    waypost.put("a.test", &sick, "").await;
    waypost.put("a.test", &well, "").await;
    sick.checked(1).await;
    let check = sick.checks().pop().unwrap();
    assert_eq!(check.head.line, "GET /healthz HTTP/1.1");
    assert_eq!(check.head.one("host"), Some(&*sick.to_string()));
    let agent = format!("waypost/{} health-check", env!("CARGO_PKG_VERSION"));
    assert_eq!(check.head.one("user-agent"), Some(&*agent));
    assert_eq!(check.head.one("connection"), Some("close"));
    ask_often(&waypost, "a.test").await;
    assert!(sick.requests() > 0 && well.requests() > 0);

    sick.is_up(false);
    until_unhealthy(&waypost, &sick, 1).await;
    let line = waypost.log().until("upstream is unhealthy").await;
    assert!(
        line.contains("it answered 503") && line.contains("/healthz"),
        "{line}"
    );
    let page = waypost.api("/api/routes?host=a.test").await;
    let members = page["routes"][0]["members"].as_array().unwrap();
    let shown = members
        .iter()
        .find(|member| member["upstream"] == sick.to_string());
    let shown = shown.unwrap();
    assert_eq!(shown["state"], "unhealthy");
    let why = shown["why"].as_str().unwrap();
    assert!(
        why.ends_with("its last health check: it answered 503"),
        "{why}"
    );
    let before = sick.requests();
    ask_often(&waypost, "a.test").await;
    assert_eq!(sick.requests(), before, "it gets none while it is out");

    sick.is_up(true);
    until_unhealthy(&waypost, &sick, 0).await;
    waypost.log().until("upstream is healthy").await;
    ask_often(&waypost, "a.test").await;
    assert!(sick.requests() > before, "it is back");
    assert_eq!(
        waypost.log().count("healthy"),
        2,
        "each change is said once"
    );
    assert!(waypost.metric(TOTAL, &[("result", "good")]).await >= 2.0);
    assert!(waypost.metric(TOTAL, &[("result", "bad")]).await >= 3.0);
}

#[tokio::test]
async fn who_comes_back_by_its_checks_starts_slowly() {
    const ASKED: usize = 300;
    let waypost = Waypost::builder().flag("--workers", 1).start().await;
    let patients = [
        Patient::start().await,
        Patient::start().await,
        Patient::start().await,
    ];
    let sick = &patients[0];
    for patient in &patients {
        waypost.put("a.test", patient, "").await;
    }
    // After them: who comes under it is new.
    let mut settings: serde_json::Value = serde_json::from_str(CHECKED).unwrap();
    settings["slow_start"] = "10m".into();
    waypost
        .put("a.test", "@settings", &settings.to_string())
        .await;
    let share = async || {
        let before = sick.requests();
        for _ in 0..ASKED {
            let answer = load::ask(waypost.address(), "a.test", "/").await;
            assert_eq!(answer.status(), 200, "{answer:?}");
        }
        sick.requests() - before
    };
    assert_eq!(share().await, ASKED / 3, "it was there");
    sick.is_up(false);
    until_unhealthy(&waypost, sick, 1).await;
    assert_eq!(share().await, 0);
    sick.is_up(true);
    until_unhealthy(&waypost, sick, 0).await;
    let share = share().await;
    // Some 14 by chance, where a third were its whole share.
    assert!((1..=50).contains(&share), "{share}");
}

#[tokio::test]
async fn routes_that_ask_alike_share_one_check_and_others_have_their_own() {
    let waypost = Waypost::builder().start().await;
    let origin = Patient::start().await;
    for host in ["a.test", "b.test", "c.test"] {
        waypost.put(host, "@settings", CHECKED).await;
        waypost.put(host, &origin, "").await;
    }
    assert_eq!(waypost.metric("waypost_health_checks", &[]).await, 1.0);
    let (begun, before) = (Instant::now(), origin.checks().len());
    origin.checked(before + 20).await;
    // 19 intervals at least lie between; three checks instead of one would take a third of it.
    let least = Duration::from_millis(19 * 90);
    assert!(begun.elapsed() >= least, "{:?}", begun.elapsed());

    let other = r#"{"health": {"path": "/other", "interval": "100ms"}}"#;
    waypost.put("c.test", "@settings", other).await;
    eventually("both are asked for", async || {
        waypost.metric("waypost_health_checks", &[]).await == 2.0
    })
    .await;
    eventually("the other path is asked for", async || {
        origin.checks_of("/other") >= 3
    })
    .await;
    let before = origin.checks_of("/healthz");
    eventually("the first path still is", async || {
        origin.checks_of("/healthz") >= before + 3
    })
    .await;

    // Nobody asks for it any more.
    waypost.put("c.test", "@settings", CHECKED).await;
    eventually("one of them ends", async || {
        waypost.metric("waypost_health_checks", &[]).await == 1.0
    })
    .await;
    let (other, first) = (origin.checks_of("/other"), origin.checks_of("/healthz"));
    origin.checked(other + first + 5).await;
    assert_eq!(origin.checks_of("/other"), other);
}

#[tokio::test]
async fn a_removed_upstream_is_checked_no_more() {
    let waypost = Waypost::builder().start().await;
    let (removed, stays) = (Patient::start().await, Patient::start().await);
    waypost.put("a.test", "@settings", CHECKED).await;
    waypost.put("a.test", &removed, "").await;
    waypost.put("a.test", &stays, "").await;
    removed.is_up(false);
    until_unhealthy(&waypost, &removed, 1).await;
    waypost.delete("a.test", &removed).await;
    eventually("its check ends", async || {
        waypost.metric("waypost_health_checks", &[]).await == 1.0
    })
    .await;
    assert_eq!(unhealthy(&waypost, &removed).await, 0.0);
    let (connections, checks) = (removed.origin.connections(), stays.checks().len());
    stays.checked(checks + 5).await;
    assert_eq!(removed.origin.connections(), connections);
}

#[tokio::test]
async fn what_begins_unhealthy_gets_no_request_before_it_has_proved_itself() {
    let waypost = Waypost::builder().start().await;
    let known = Patient::start().await;
    // So long that only what is checked at once is ready before the end of the test.
    let settings = r#"{"health": {"path": "/healthz", "interval": "20s", "timeout": "15s", "initial": "unhealthy"}}"#;
    waypost.put("a.test", "@settings", settings).await;
    waypost.put("a.test", &known, "").await;
    until_unhealthy(&waypost, &known, 0).await;
    let is_ready = Arc::new(Semaphore::new(0));
    let new = Origin::run({
        let is_ready = is_ready.clone();
        move |mut served| {
            let is_ready = is_ready.clone();
            async move {
                while let Some(request) = served.request().await {
                    if is_check(&request) {
                        is_ready.acquire().await.expect("open").forget();
                    }
                    served.send(OK).await;
                }
            }
        }
    })
    .await;
    waypost.put("a.test", &new, "").await;
    new.asked(1).await;
    ask_often(&waypost, "a.test").await;
    assert_eq!(new.requests().len(), 1, "only its check");
    let page = waypost.api("/api/routes?host=a.test").await;
    let members = page["routes"][0]["members"].as_array().unwrap();
    let why = members.iter().find_map(|member| member["why"].as_str());
    assert!(why.unwrap().starts_with("not yet proven: "), "{why:?}");
    is_ready.add_permits(1);
    until_unhealthy(&waypost, &new, 0).await;
    ask_often(&waypost, "a.test").await;
    assert!(new.requests().len() > 1);
}

#[tokio::test]
async fn what_is_known_survives_changes_of_the_table() {
    let waypost = Waypost::builder().start().await;
    let (sick, well) = (Patient::start().await, Patient::start().await);
    waypost.put("a.test", "@settings", CHECKED).await;
    waypost.put("a.test", &sick, "").await;
    waypost.put("a.test", &well, "").await;
    sick.is_up(false);
    until_unhealthy(&waypost, &sick, 1).await;
    let before = sick.requests();
    let still = r#"{"health": {"path": "/healthz", "interval": "100ms"}, "strip_prefix": true}"#;
    let third = Patient::start().await;
    for (route, key, value) in [
        ("b.test", well.to_string(), ""),
        ("b.test", "@settings".to_owned(), "{}"),
        ("a.test", third.to_string(), ""),
        ("a.test", sick.to_string(), r#"{"weight": 5}"#),
        ("a.test", well.to_string(), r#"{"weight": 7}"#),
        ("a.test", "@settings".to_owned(), still),
    ] {
        waypost.put(route, key, value).await;
        ask_often(&waypost, "a.test").await;
        assert_eq!(sick.requests(), before, "after {route} {value}");
    }
    waypost.delete("a.test", &third).await;
    ask_often(&waypost, "a.test").await;
    assert_eq!(sick.requests(), before);
    assert_eq!(
        waypost.log().count("upstream is unhealthy"),
        1,
        "it was it throughout"
    );
}

#[tokio::test]
async fn settings_that_change_begin_anew() {
    let waypost = Waypost::builder().start().await;
    let (sick, well) = (Patient::start().await, Patient::start().await);
    let wrong = r#"{"health": {"path": "/wrong", "interval": "100ms", "expect": "204"}}"#;
    waypost.put("a.test", "@settings", wrong).await;
    waypost.put("a.test", &sick, "").await;
    until_unhealthy(&waypost, &sick, 1).await;
    waypost.put("a.test", &well, "").await;
    waypost.put("a.test", "@settings", CHECKED).await;
    until_unhealthy(&waypost, &sick, 0).await;
    ask_often(&waypost, "a.test").await;
    assert!(sick.requests() > 0);
}

#[tokio::test]
async fn check_knows_what_health_may_say() {
    let hosts = tempfile::tempdir().unwrap();
    let route = hosts.path().join("a.test");
    std::fs::create_dir(&route).unwrap();
    std::fs::write(route.join("127.0.0.1:1"), "").unwrap();
    for (settings, code, text) in [
        (CHECKED, 0, ""),
        (r#"{"health": {"interval": "1ms"}}"#, 1, "health.interval"),
    ] {
        std::fs::write(route.join("@settings"), settings).unwrap();
        let directory = hosts.path().display().to_string();
        let ended = waypost(&["check", "--hosts-dir", &directory]).await;
        assert_eq!(ended.code, Some(code), "{settings}: {ended:?}");
        assert!(ended.stdout.contains(text), "{settings}: {ended:?}");
    }
}

const TOTAL: &str = "waypost_health_checks_total";

/// As many requests as [`ask_often`] makes.
const MANY: usize = 12;

/// Asks for the host again and again; every request must be answered well.
async fn ask_often(waypost: &Waypost, host: &str) {
    for _ in 0..MANY {
        let answer = load::ask(waypost.address(), host, "/").await;
        assert_eq!(answer.status(), 200, "{answer:?}");
    }
}

/// How many checks find this upstream unhealthy.
async fn unhealthy(waypost: &Waypost, upstream: impl fmt::Display) -> f64 {
    let upstream = upstream.to_string();
    (waypost.metric("waypost_upstream_unhealthy", &[("upstream", &upstream)])).await
}

async fn until_unhealthy(waypost: &Waypost, upstream: impl fmt::Display, checks: u8) {
    let what = format!("{checks} checks find {upstream} unhealthy");
    eventually(&what, async || {
        unhealthy(waypost, &upstream).await == f64::from(checks)
    })
    .await;
}

/// Waits for the first line of the log about this upstream.
async fn told_of(waypost: &Waypost, upstream: impl fmt::Display) -> String {
    let log = waypost.log();
    log.until(&format!("upstream=\"{upstream}\"")).await
}

/// Checks an origin that begins unhealthy, until it isn't.
async fn proves_good(waypost: &Waypost, host: &str, origin: &Origin) {
    let settings =
        r#"{"health": {"path": "/healthz", "interval": "100ms", "initial": "unhealthy"}}"#;
    waypost.put(host, "@settings", settings).await;
    waypost.put(host, origin, "").await;
    let line = told_of(waypost, origin).await;
    assert!(line.contains("upstream is healthy"), "{host}: {line}");
    assert_eq!(unhealthy(waypost, origin).await, 0.0);
    waypost.delete(host, origin).await;
}

/// An origin that answers health checks as it is told, and requests always.
struct Patient {
    origin: Origin,
    is_up: Arc<AtomicBool>,
}

impl Patient {
    async fn start() -> Self {
        let is_up = Arc::new(AtomicBool::new(true));
        let origin = Origin::run(Self::script(is_up.clone())).await;
        Self { origin, is_up }
    }

    /// On a socket in the file system.
    async fn at(path: PathBuf) -> Self {
        let is_up = Arc::new(AtomicBool::new(true));
        let origin = Origin::run_unix(path, Self::script(is_up.clone())).await;
        Self { origin, is_up }
    }

    fn script(
        is_up: Arc<AtomicBool>,
    ) -> impl Fn(Served) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync + 'static {
        move |mut served| {
            let is_up = is_up.clone();
            Box::pin(async move {
                while let Some(request) = served.request().await {
                    let answer = match is_check(&request) && !is_up.load(Ordering::Relaxed) {
                        true => "HTTP/1.1 503 Sick\r\ncontent-length: 0\r\n\r\n",
                        false => OK,
                    };
                    if !served.send(answer).await {
                        return;
                    }
                }
            })
        }
    }

    fn is_up(&self, is_up: bool) {
        self.is_up.store(is_up, Ordering::Relaxed);
    }

    fn checks(&self) -> Vec<Message> {
        let mut requests = self.origin.requests();
        requests.retain(is_check);
        requests
    }

    fn checks_of(&self, path: &str) -> usize {
        let line = format!("GET {path} HTTP/1.1");
        let checks = self.checks();
        checks
            .iter()
            .filter(|check| check.head.line == line)
            .count()
    }

    /// Waits until it has had so many checks.
    async fn checked(&self, count: usize) {
        eventually("it is checked", async || self.checks().len() >= count).await;
    }

    /// How many requests it got that were no checks.
    fn requests(&self) -> usize {
        self.origin.requests().len() - self.checks().len()
    }
}

impl fmt::Display for Patient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.origin.fmt(f)
    }
}

fn is_check(request: &Message) -> bool {
    let agent = request.head.one("user-agent").unwrap_or_default();
    agent.ends_with("health-check")
}
