//! Against a small name server of the tests' own.

use std::{net::SocketAddr, sync::Mutex};

use hickory_resolver::{
    config::{ConnectionConfig, NameServerConfig},
    proto::{
        op::{Message, ResponseCode},
        rr::{Name, RData, Record, RecordType},
    },
};
use tokio::{net::UdpSocket, time::timeout};

use super::*;

/// A name server that answers every name alike.
struct NameServer {
    address: SocketAddr,
    zone: Arc<Mutex<Zone>>,
}

struct Zone {
    v4: Records,
    v6: Records,
    /// Seconds.
    time_to_live: u32,
    /// Questions for IPv4 addresses so far.
    asked: usize,
}

#[derive(Clone)]
enum Records {
    Addresses(&'static [&'static str]),
    Fails,
    Silent,
}

impl NameServer {
    async fn start(v4: Records, v6: Records) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let zone = Zone {
            v4,
            v6,
            time_to_live: 1,
            asked: 0,
        };
        let zone = Arc::new(Mutex::new(zone));
        let served = zone.clone();
        tokio::spawn(async move {
            let mut buffer = [0; 4096];
            while let Ok((length, client)) = socket.recv_from(&mut buffer).await {
                let question = Message::from_vec(&buffer[..length]).unwrap();
                let answer = served.lock().unwrap().answer(question);
                if let Some(answer) = answer {
                    socket.send_to(&answer, client).await.unwrap();
                }
            }
        });
        Self { address, zone }
    }

    /// A resolver that asks it and nobody else.
    fn names(&self) -> Names {
        let address = self.address;
        Names::asking(move || {
            let mut udp = ConnectionConfig::udp();
            udp.port = address.port();
            let server = NameServerConfig::new(address.ip(), true, vec![udp]);
            let config = ResolverConfig::from_name_servers(vec![server]);
            let mut builder = Resolver::builder_with_config(config, Default::default());
            let options = builder.options_mut();
            options.negative_max_ttl = Some(SHORTEST);
            options.timeout = Duration::from_millis(500);
            options.attempts = 0;
            let mut hosts = Hosts::default();
            let file = "10.9.9.9 listed.test\n10.9.9.8 listed.test\n::9 listed6.test\n";
            hosts.read_hosts_conf(file.as_bytes()).unwrap();
            Some(Lookups::by(builder.build().unwrap(), hosts))
        })
    }

    fn set(&self, v4: Records, v6: Records) {
        let mut zone = self.zone.lock().unwrap();
        (zone.v4, zone.v6) = (v4, v6);
    }

    fn asked(&self) -> usize {
        self.zone.lock().unwrap().asked
    }

    /// Waits until it was asked so many times more.
    async fn asked_again(&self, times: usize) {
        let goal = self.asked() + times;
        let asked = async {
            while self.asked() < goal {
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(Duration::from_secs(30), asked)
            .await
            .expect("it is asked");
    }
}

impl Zone {
    fn answer(&mut self, question: Message) -> Option<Vec<u8>> {
        let query = question.queries[0].clone();
        let is_v4 = query.query_type() == RecordType::A;
        self.asked += usize::from(is_v4);
        let records = if is_v4 { &self.v4 } else { &self.v6 };
        let mut answer = Message::response(question.metadata.id, question.metadata.op_code);
        answer.metadata.recursion_available = true;
        match records {
            Records::Silent => return None,
            Records::Fails => answer.metadata.response_code = ResponseCode::ServFail,
            Records::Addresses(addresses) => {
                for address in *addresses {
                    let data = match address.parse().unwrap() {
                        IpAddr::V4(address) => RData::A(address.into()),
                        IpAddr::V6(address) => RData::AAAA(address.into()),
                    };
                    let name: Name = query.name().clone();
                    answer.add_answer(Record::from_rdata(name, self.time_to_live, data));
                }
            }
        }
        answer.add_query(query);
        Some(answer.to_vec().unwrap())
    }
}

async fn next(names: &mut Names) -> (Vec<String>, Vec<String>) {
    let answer = timeout(Duration::from_secs(30), names.answer()).await;
    let answer = answer.expect("an answer in time");
    let texts = |list: Vec<IpAddr>| list.iter().map(ToString::to_string).collect();
    (texts(answer.addresses), texts(answer.fallbacks))
}

fn lists(addresses: &[&str], fallbacks: &[&str]) -> (Vec<String>, Vec<String>) {
    let texts = |list: &[&str]| list.iter().map(|&text| text.to_owned()).collect();
    (texts(addresses), texts(fallbacks))
}

const NONE: Records = Records::Addresses(&[]);

#[tokio::test]
async fn one_familys_addresses_are_members_and_the_others_are_fallen_back_to() {
    let v4 = Records::Addresses(&["10.0.0.2", "10.0.0.1", "10.0.0.2"]);
    let v6 = Records::Addresses(&["::2", "::1"]);
    for (v4, v6, expected) in [
        (
            v4.clone(),
            v6.clone(),
            lists(&["10.0.0.1", "10.0.0.2"], &["::1", "::2"]),
        ),
        (v4.clone(), NONE, lists(&["10.0.0.1", "10.0.0.2"], &[])),
        (NONE, v6.clone(), lists(&["::1", "::2"], &[])),
        (
            v4.clone(),
            Records::Fails,
            lists(&["10.0.0.1", "10.0.0.2"], &[]),
        ),
        (v4, Records::Silent, lists(&["10.0.0.1", "10.0.0.2"], &[])),
        (Records::Fails, v6, lists(&["::1", "::2"], &[])),
        (NONE, NONE, lists(&[], &[])),
    ] {
        let server = NameServer::start(v4, v6).await;
        let mut names = server.names();
        names.watch("app.test.".into());
        assert_eq!(next(&mut names).await, expected);
    }
}

#[tokio::test]
async fn a_name_in_the_hosts_file_has_no_other_addresses() {
    let v4 = Records::Addresses(&["10.0.0.1"]);
    let server = NameServer::start(v4, Records::Addresses(&["::1"])).await;
    for (name, expected) in [
        ("listed.test", lists(&["10.9.9.8", "10.9.9.9"], &[])),
        ("listed6.test", lists(&["::9"], &[])),
    ] {
        let mut names = server.names();
        names.watch(name.into());
        assert_eq!(next(&mut names).await, expected, "{name}");
    }
    assert_eq!(server.asked(), 0);
}

#[tokio::test]
async fn names_are_asked_for_again_when_their_time_is_over_and_not_before() {
    let server = NameServer::start(Records::Addresses(&["10.0.0.1"]), NONE).await;
    let mut names = server.names();
    let begun = std::time::Instant::now();
    names.watch("app.test.".into());
    assert_eq!(next(&mut names).await, lists(&["10.0.0.1"], &[]));
    // From now on for an hour.
    server.zone.lock().unwrap().time_to_live = 3600;
    server.set(Records::Addresses(&["10.0.0.2"]), NONE);
    assert_eq!(next(&mut names).await, lists(&["10.0.0.2"], &[]));
    assert!(begun.elapsed() >= Duration::from_millis(900), "it had 1 s");
    server.set(Records::Addresses(&["10.0.0.3"]), NONE);
    let asked = server.asked();
    let none = timeout(Duration::from_secs(3), names.answer()).await;
    assert!(none.is_err(), "{none:?}");
    assert_eq!(server.asked(), asked);
}

#[tokio::test]
async fn the_last_good_answer_stands_while_dns_fails() {
    let good = || Records::Addresses(&["10.0.0.1"]);
    let good6 = || Records::Addresses(&["::1"]);
    let mut cases = JoinSet::new();
    for (v4, v6) in [
        (Records::Fails, Records::Fails),
        (Records::Silent, Records::Silent),
        // Gone altogether, by mistake: who removes a name removes its key too.
        (NONE, NONE),
        // One family alone is no reason to change over to the other, nor to forget it.
        (Records::Fails, good6()),
        (good(), Records::Fails),
    ] {
        cases.spawn(async move {
            let server = NameServer::start(good(), good6()).await;
            let mut names = server.names();
            names.watch("app.test.".into());
            assert_eq!(next(&mut names).await, lists(&["10.0.0.1"], &["::1"]));
            server.set(v4, v6);
            tokio::select! {
                answer = names.answer() => panic!("{answer:?}"),
                () = server.asked_again(3) => {}
            }
            server.set(Records::Addresses(&["10.0.0.2"]), good6());
            assert_eq!(next(&mut names).await, lists(&["10.0.0.2"], &["::1"]));
        });
    }
    cases.join_all().await;
}

#[tokio::test]
async fn localhost_resolves_to_a_loopback_address() {
    let mut names = Names::start();
    names.watch("localhost".into());
    let answer = names.answer().await;
    assert_eq!(&*answer.name, "localhost");
    assert!(!answer.addresses.is_empty());
    assert!(answer.addresses.iter().all(IpAddr::is_loopback));
}

#[tokio::test]
async fn a_name_without_address_is_answered_with_none() {
    let mut names = Names::start();
    names.watch("nowhere.invalid".into());
    let answer = tokio::time::timeout(Duration::from_secs(20), names.answer()).await;
    assert_eq!(
        answer.expect("an answer in time").addresses,
        Vec::<IpAddr>::new()
    );
}

#[test]
fn failures_are_retried_ever_more_rarely_within_bounds() {
    for (failures, least, most) in [
        (1, 0.5, 1.0),
        (2, 1.0, 2.0),
        (5, 8.0, 16.0),
        (99, 15.0, 30.0),
    ] {
        let pause = back_off(failures).as_secs_f64();
        assert!((least..=most).contains(&pause), "{failures}: {pause}");
    }
}
