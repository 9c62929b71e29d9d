//! Attacks, while a well-behaved client asks on: it is always answered, and the memory of the process stays
//! where it was. In a soak, which runs alone, its 99th percentile stays below 5 times what it was before. The client and
//! its upstream have a thread of their own. Attackers share two cores with them and with Waypost, so they give way to them,
//! and pause between bursts.

mod attackers;

use std::{
    net::SocketAddr,
    process::Command,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use tokio::{
    runtime::{Builder, Runtime},
    task::JoinSet,
    time::sleep,
};

use self::attackers::{
    Attack::{self, *},
    Places, Tally, attack_on,
};
use crate::support::{
    http::Wire,
    origin::Origin,
    soak::{is_soak, seconds},
    tls::Authority,
    waypost::Waypost,
};

/// What the memory may grow by: buffers of what is under way, and what the allocator keeps.
const GROWTH: usize = 48 << 20;
/// Beneath this a ratio says nothing: a thread that finds both cores taken, by attackers as it may be, waits for two or
/// three slices of the kernel's scheduler, of some 3 ms each, before anybody can answer it.
const FLOOR: Duration = Duration::from_millis(10);
/// For how long an attack is asked through, where it is not timed.
const PATIENCE: Duration = Duration::from_secs(2);

/// The 99th percentile of what a well-behaved client waits, on connections that it keeps for a while.
async fn p99(address: SocketAddr) -> Duration {
    let mut waited = Vec::new();
    let (begun, time) = (Instant::now(), seconds(0, 5));
    let is_enough = |asked: usize| match is_soak() {
        true => begun.elapsed() >= time && asked >= 1000,
        // A slow machine asks less often, but not for longer.
        false => asked >= 60 || (asked > 0 && begun.elapsed() > PATIENCE),
    };
    while !is_enough(waited.len()) {
        let mut client = Wire::connect(address).await;
        for _ in 0..20 {
            if !waited.is_empty() && !is_soak() && begun.elapsed() > PATIENCE {
                break;
            }
            let asked = Instant::now();
            let answer = client
                .ask("GET / HTTP/1.1\r\nHost: good.test\r\n\r\n")
                .await;
            assert_eq!((answer.status(), answer.text()), (200, "ok"));
            waited.push(asked.elapsed());
            sleep(Duration::from_millis(1)).await;
        }
    }
    waited.sort();
    waited[waited.len() * 99 / 100]
}

/// Threads of their own: those of the well-behaved client and of its upstream, or the attackers'.
struct Corner(Option<Runtime>);

impl Corner {
    fn new() -> Self {
        let mut runtime = Builder::new_multi_thread();
        let runtime = runtime.worker_threads(1).enable_all().build();
        Self(Some(runtime.expect("a thread")))
    }

    /// Of threads that leave the cores to everybody else's: what attackers take of them is not what Waypost is tried for.
    fn of_attackers() -> Self {
        let mut runtime = Builder::new_multi_thread();
        let runtime = runtime.worker_threads(2).on_thread_start(give_way);
        Self(Some(runtime.enable_all().build().expect("threads")))
    }

    fn runtime(&self) -> &Runtime {
        self.0.as_ref().expect("until it is dropped")
    }

    async fn run<T: Send + 'static>(&self, future: impl Future<Output = T> + Send + 'static) -> T {
        self.runtime().spawn(future).await.expect("no panic")
    }
}

/// Lets every other thread run before this one.
fn give_way() {
    let thread = std::fs::read_link("/proc/thread-self").expect("Linux");
    let id = thread.file_name().expect("its number");
    let mut renice = Command::new("renice");
    let reniced = renice.args(["-n", "19", "-p"]).arg(id).output();
    assert!(reniced.expect("it runs").status.success());
}

impl Drop for Corner {
    fn drop(&mut self) {
        // A runtime may not be dropped, which waits, inside of another.
        self.0.take().expect("once").shutdown_background();
    }
}

async fn withstands(attacks: &[Attack]) {
    let (corner, mob) = (Corner::new(), Corner::of_attackers());
    let authority = Authority::new();
    let pair = authority.server(&["a.test"]);
    let origin = corner.run(Origin::named("ok")).await;
    let large = "x".repeat(4 << 20);
    let other = Origin::named("ok").await;
    let large = Origin::answering(format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{large}",
        large.len()
    ))
    .await;
    // As many interim heads as are taken of an upstream, and no answer but these.
    let early = format!(
        "HTTP/1.1 103 Early Hints\r\nLink: <{}>\r\n\r\n",
        "e".repeat(40_000)
    );
    let early = Origin::answering(early.repeat(16)).await;
    let waypost = Waypost::builder()
        .listen("http://127.0.0.1:0")
        .listen(&format!("https://127.0.0.1:0?{}", pair.query()))
        .start()
        .await;
    waypost.put("a.test", &other, "").await;
    waypost.put("good.test", &origin, "").await;
    waypost.put("a.test/large", &large, "").await;
    waypost.put("a.test/early", &early, "").await;
    let places = Arc::new(Places {
        plain: waypost.addresses()[0],
        tls: waypost.addresses()[1],
        trusting: authority.client_config(&[]),
    });
    let address = places.plain;
    for &attack in attacks {
        let quiet = corner.run(p99(address)).await;
        let before = waypost.memory().0;
        let tally = Arc::new(Tally::default());
        let mut attackers = JoinSet::new();
        for _ in 0..attack.attackers() {
            let attacking = attack_on(attack, places.clone(), tally.clone());
            attackers.spawn_on(attacking, mob.runtime().handle());
        }
        let during = corner.run(p99(address)).await;
        if attack.is_cut_off() {
            let begun = Instant::now();
            while tally.cut_off.load(Relaxed) == 0 {
                assert!(
                    begun.elapsed() < Duration::from_secs(12),
                    "{attack:?} goes on"
                );
                sleep(Duration::from_millis(10)).await;
            }
        }
        let grown = waypost.memory().0.saturating_sub(before);
        attackers.shutdown().await;
        let (bursts, cut) = (tally.bursts.load(Relaxed), tally.cut_off.load(Relaxed));
        eprintln!(
            "{attack:?}: quiet {quiet:?}, during {during:?}, {grown} bytes more, {bursts} bursts, {cut} cut off"
        );
        // Beside other tests it is their noise: there each request is answered, and that is all.
        let is_bearable = !is_soak() || during < FLOOR.max(5 * quiet);
        assert!(is_bearable, "{attack:?}: {during:?}, before {quiet:?}");
        assert!(grown < GROWTH, "{attack:?}: {grown} bytes more");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_clients_and_large_heads_harm_nobody_else() {
    withstands(&[SlowHead, SlowBody, SlowRead, HeaderBomb, HugeTarget]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods_of_connections_and_handshakes_harm_nobody_else() {
    withstands(&[ConnectionFlood, HandshakeStall, HandshakeGarbage, KeyUpdate]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods_of_http2_frames_harm_nobody_else() {
    withstands(&[
        EmptyData,
        EmptyHeaders,
        Settings,
        SettingsUnread,
        Ping,
        PingUnread,
        Priority,
        WindowUpdate,
        WindowOverflow,
        ContinuationFlood,
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn abuses_of_http2_streams_harm_nobody_else() {
    withstands(&[RapidReset, MadeYouReset, Malformed]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_that_stay_harm_nobody_else() {
    withstands(&[LeftOpen, ZeroWindow, Unread, Interims, Crumbs]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bombs_of_http2_fields_harm_nobody_else() {
    withstands(&[HpackBomb, ManyFields]).await;
}
