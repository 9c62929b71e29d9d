//! The PROXY protocol towards upstreams: what they are told of clients, and that no connection speaks for two.

mod told;

use std::collections::{HashMap, HashSet};

use http::Request;
use serde_json::json;
use tokio::task::JoinSet;

use self::told::{Told, V1, V2};
use crate::support::{
    command::waypost as run,
    h2_client::H2Client,
    http::Wire,
    neighbour::Neighbour,
    origin::{Origin, Refusing},
    tls::Authority,
    waypost::{Waypost, eventually, write},
    websocket::{Echo, Socket},
};

const GET: &str = "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n";
const POST: &str = "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 2\r\n\r\nhi";

/// What nginx says of a connection: whom its header names, and its own number for it.
const NGINX: &str = "    location / {\n      return 200 \"$proxy_protocol_addr $proxy_protocol_port \
    $proxy_protocol_server_addr $proxy_protocol_server_port; $connection\";\n    }";

async fn nginx() -> Neighbour {
    Neighbour::nginx(&format!("    listen LISTEN proxy_protocol;\n{NGINX}")).await
}

async fn one_worker() -> Waypost {
    Waypost::builder().flag("--workers", 1).start().await
}

/// What nginx is to say of this client.
fn named(client: &Wire, waypost: std::net::SocketAddr) -> String {
    let near = client.near();
    format!(
        "{} {} {} {}",
        near.ip(),
        near.port(),
        waypost.ip(),
        waypost.port()
    )
}

/// What the upstream said of the client, and of the connection.
fn halves(answer: &str) -> (String, String) {
    let (client, connection) = answer.split_once("; ").expect("two halves");
    (client.to_owned(), connection.to_owned())
}

#[tokio::test]
async fn nginx_is_told_who_the_client_is_and_where_it_came() {
    let waypost = Waypost::builder()
        .listen("http://127.0.0.1:0")
        .listen("http://0.0.0.0:0")
        .listen("http://[::1]:0")
        .listen("http://[::]:0")
        .start()
        .await;
    let ports: Vec<_> = (waypost.addresses().iter())
        .map(|address| address.port())
        .collect();
    let authority = Authority::new();
    let pair = authority.server(&["a.test"]);
    let (plain, secure) = (
        nginx().await,
        Neighbour::nginx(&format!(
            "    listen LISTEN ssl proxy_protocol;\n    ssl_certificate {};\n    ssl_certificate_key {};\n{NGINX}",
            pair.certificate.display(),
            pair.key.display()
        ))
        .await,
    );
    let tls = json!({"sni": "a.test", "ca": authority.file()});
    for (upstream, tls) in [(plain, json!(false)), (secure, tls)] {
        for version in ["v1", "v2"] {
            let value = json!({"proxy_protocol": version, "tls": tls}).to_string();
            waypost.put("a.test", upstream.address(), &value).await;
            for (client, at) in [
                ("127.66.0.9", format!("127.0.0.1:{}", ports[0])),
                ("127.66.0.9", format!("127.66.0.1:{}", ports[1])),
                ("::1", format!("[::1]:{}", ports[2])),
                ("::1", format!("[::1]:{}", ports[3])),
                // Of both families, and yet IPv4 is what it is.
                ("127.66.0.9", format!("127.0.0.1:{}", ports[3])),
            ] {
                let client: std::net::IpAddr = client.parse().unwrap();
                let at = at.parse().unwrap();
                let mut wire = Wire::connect_from(client, at).await;
                let answer = wire.ask(GET).await;
                let (told, _) = halves(answer.text());
                assert_eq!(told, named(&wire, at), "{value}");
            }
        }
    }
}

#[tokio::test]
async fn haproxy_is_told_who_the_client_is() {
    let waypost = one_worker().await;
    let haproxy = Neighbour::haproxy(
        "frontend front\n  mode http\n  bind LISTEN accept-proxy\n  \
         http-request return status 200 content-type text/plain lf-string \"%ci %cp %fi %fp; \"",
    )
    .await;
    for version in ["v1", "v2"] {
        let value = json!({"proxy_protocol": version}).to_string();
        waypost.put("a.test", haproxy.address(), &value).await;
        let mut wire = Wire::connect_from([127, 66, 0, 9], waypost.address()).await;
        for request in [GET, POST] {
            let answer = wire.ask(request).await;
            let (told, _) = halves(answer.text());
            assert_eq!(told, named(&wire, waypost.address()), "{version}");
        }
    }
}

#[tokio::test]
async fn no_two_clients_share_a_connection_and_each_keeps_its_own() {
    let waypost = one_worker().await;
    let upstream = nginx().await;
    for version in ["v1", "v2"] {
        let value = json!({"proxy_protocol": version}).to_string();
        waypost.put("a.test", upstream.address(), &value).await;
        let mut clients = Vec::new();
        for _ in 0..20 {
            clients.push(Wire::connect(waypost.address()).await);
        }
        let mut connections = HashMap::new();
        for _ in 0..4 {
            // In turn, then all at once.
            for (index, client) in clients.iter_mut().enumerate() {
                let answer = client.ask(POST).await;
                let (told, connection) = halves(answer.text());
                assert_eq!(told, named(client, waypost.address()));
                let before = connections.insert(index, connection.clone());
                assert!(before.is_none_or(|before| before == connection), "another");
            }
            for client in &mut clients {
                client.send(GET).await;
            }
            for (index, client) in clients.iter_mut().enumerate() {
                let answer = client.response("GET").await;
                let (told, connection) = halves(answer.text());
                assert_eq!(told, named(client, waypost.address()));
                assert_eq!(connections[&index], connection);
            }
        }
        let distinct: HashSet<_> = connections.values().collect();
        assert_eq!(distinct.len(), clients.len(), "{version}");
    }
}

#[tokio::test]
async fn connections_go_with_their_client() {
    let waypost = one_worker().await;
    let told = Told::start().await;
    waypost.put("a.test", &told.origin, V1).await;
    let mut clients = Vec::new();
    for _ in 0..6 {
        let mut client = Wire::connect(waypost.address()).await;
        client.ask(GET).await;
        clients.push(client);
    }
    let upstream = told.origin.to_string();
    let idle = async || {
        let labels = [("upstream", &*upstream)];
        waypost
            .metric("waypost_upstream_idle_connections", &labels)
            .await
    };
    eventually("they lie idle", async || idle().await == 6.0).await;
    // In order, and by a reset.
    clients.pop();
    clients[0].reset();
    told.origin.closed(2).await;
    // While its request runs.
    clients[1].send(format!("{GET}{GET}")).await;
    clients[1].reset();
    told.origin.closed(3).await;
    eventually("the others stay", async || idle().await == 3.0).await;
    let (told_of, _) = halves(clients[2].ask(GET).await.text());
    assert_eq!(told_of, told::v1_of(&clients[2], waypost.address()));
    drop(clients);
    told.origin.closed(6).await;
    assert_eq!(told.origin.connections(), 6);
    eventually("none is left", async || idle().await == 0.0).await;
}

#[tokio::test]
async fn fewer_connections_may_be_kept_than_there_are_clients() {
    for (most, closed) in [(2, 3), (0, 10)] {
        let waypost = one_worker().await;
        let told = Told::start().await;
        let value = json!({"proxy_protocol": "v1", "pool": {"max_idle": most}}).to_string();
        waypost.put("a.test", &told.origin, &value).await;
        let mut clients = Vec::new();
        for _ in 0..5 {
            clients.push(Wire::connect(waypost.address()).await);
        }
        // Who asks again finds its own as long as no others asked meanwhile.
        for client in &mut clients {
            for _ in 0..2 {
                let (told_of, _) = halves(client.ask(POST).await.text());
                assert_eq!(told_of, told::v1_of(client, waypost.address()));
            }
        }
        told.origin.closed(closed).await;
        assert_eq!(told.origin.connections(), closed + most);
    }
}

#[tokio::test]
async fn the_streams_of_an_http2_client_are_all_of_that_client() {
    let waypost = one_worker().await;
    let upstream = nginx().await;
    waypost.put("a.test", upstream.address(), V2).await;
    let (mut seen, mut clients) = (HashSet::new(), Vec::new());
    for _ in 0..2 {
        let client = H2Client::connect(waypost.address()).await;
        clients.push(client.clone());
        let ask = |client: H2Client| async move {
            let request = Request::get("http://a.test/").body(()).unwrap();
            halves(client.ask(request).await.expect("an answer").text())
        };
        let (first, connection) = ask(client.clone()).await;
        for _ in 0..3 {
            let again = ask(client.clone()).await;
            assert_eq!(again, (first.clone(), connection.clone()));
        }
        let together: JoinSet<_> = (0..20).map(|_| ask(client.clone())).collect();
        for (told, connection) in together.join_all().await {
            assert_eq!(told, first);
            // The first client's are not the second one's.
            seen.insert((connection, first.clone()));
        }
    }
    let connections: HashSet<_> = seen.iter().map(|(connection, _)| connection).collect();
    assert_eq!(connections.len(), seen.len(), "{seen:?}");
}

#[tokio::test]
async fn a_websocket_passes_behind_a_header() {
    let waypost = one_worker().await;
    let echo = Echo::start().await;
    let haproxy = Neighbour::haproxy(&format!(
        "listen front\n  mode http\n  timeout tunnel 60s\n  bind LISTEN accept-proxy\n  server echo {echo}"
    ))
    .await;
    for value in [V1, V2] {
        waypost.put("a.test", haproxy.address(), value).await;
        let mut socket = Socket::open(waypost.address(), "a.test").await;
        socket.echo("hello").await;
    }
}

#[tokio::test]
async fn health_checks_say_that_they_are_our_own() {
    let directory = tempfile::tempdir().unwrap();
    let waypost = one_worker().await;
    for (value, header) in [(V1, "PROXY UNKNOWN"), (V2, "20000000")] {
        let told = [
            Told::start().await,
            Told::start_at(directory.path().join(header.replace(' ', "-"))).await,
        ];
        for path in [json!(null), json!("/up")] {
            for told in &told {
                let health = json!({"path": path, "interval": "100ms"});
                let settings = json!({"health": health}).to_string();
                waypost.put("a.test", "@settings", &settings).await;
                waypost.put("a.test", &told.origin, value).await;
                let before = told.headers().len();
                eventually("it is checked", async || told.headers().len() > before + 2).await;
                let routes = waypost.api("/api/routes").await;
                let member = &routes["routes"][0]["members"][0];
                assert_eq!(member["state"], "healthy", "{member}");
                waypost.delete("a.test", &told.origin).await;
                let headers: HashSet<_> = told.headers().into_iter().collect();
                assert_eq!(headers, HashSet::from([header.to_owned()]));
            }
        }
    }
}

#[tokio::test]
async fn what_an_incoming_header_says_goes_on() {
    let waypost = Waypost::builder()
        .listen("http://127.0.0.1:0?proxy_protocol=true")
        .flag("--trusted-proxies", "127.0.0.1")
        .start()
        .await;
    let told = Told::start().await;
    let at = waypost.address();
    let request = "GET / HTTP/1.1\r\nHost: a.test\r\nX-Forwarded-For: 192.0.2.77\r\n\r\n";
    for (header, v1, v2) in [
        (
            "PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.2 56324 443".to_owned(),
            Some("2111000cc0000201c6336402dc0401bb"),
        ),
        (
            "PROXY TCP6 2001:db8::1 2001:db8::2 1 2\r\n",
            "PROXY TCP6 2001:db8::1 2001:db8::2 1 2".to_owned(),
            None,
        ),
        (
            "PROXY TCP6 ::ffff:192.0.2.1 2001:db8::2 1 2\r\n",
            "PROXY TCP6 ::ffff:192.0.2.1 2001:db8::2 1 2".to_owned(),
            None,
        ),
        // Nobody can say who: nobody is named.
        (
            "PROXY UNKNOWN\r\n",
            "PROXY UNKNOWN".to_owned(),
            Some("21000000"),
        ),
        // The load balancer itself, which is trusted; what it says of others is in the request.
        (
            "\r\n\r\n\0\r\nQUIT\n\x20\0\0\0",
            format!("PROXY TCP4 127.0.0.1 {} NEAR {}", at.ip(), at.port()),
            None,
        ),
    ] {
        for (value, expected) in [(V1, Some(&*v1)), (V2, v2)] {
            waypost.put("a.test", &told.origin, value).await;
            let mut client = Wire::connect(at).await;
            client.send(header).await;
            let near = client.near().port().to_string();
            let (told_of, _) = halves(client.ask(request).await.text());
            if let Some(expected) = expected {
                assert_eq!(told_of, expected.replace("NEAR", &near), "{header}");
            }
        }
    }
}

#[tokio::test]
async fn the_second_of_two_wayposts_knows_the_client() {
    let authority = Authority::new();
    let pair = authority.server(&["a.test"]);
    let origin = Origin::named("ok").await;
    let second = Waypost::builder()
        .listen("http://127.0.0.1:0?proxy_protocol=true")
        .listen(&format!(
            "https://127.0.0.1:0?proxy_protocol=true&{}",
            pair.query()
        ))
        .flag("--trusted-proxies", "127.0.0.1")
        .start()
        .await;
    second.put("a.test", &origin, "").await;
    let first = Waypost::builder().start().await;
    for (index, tls) in [
        json!(false),
        json!({"sni": "a.test", "ca": authority.file()}),
    ]
    .into_iter()
    .enumerate()
    {
        let upstream = second.addresses()[index];
        for version in ["v1", "v2"] {
            let value = json!({"proxy_protocol": version, "tls": tls}).to_string();
            first.put("a.test", upstream, &value).await;
            let mut client = Wire::connect_from([127, 66, 0, 9], first.address()).await;
            assert_eq!(client.ask(GET).await.text(), "ok", "{value}");
            let head = origin.latest().head;
            assert_eq!(head.one("x-forwarded-for"), Some("127.66.0.9"), "{value}");
        }
        first.delete("a.test", upstream).await;
    }
}

#[tokio::test]
async fn a_retry_tells_the_next_upstream_as_well() {
    let waypost = one_worker().await;
    let told = Told::start().await;
    // One refuses the connection, one ends it once it has the header, one the request.
    let refusing = Refusing::new();
    let at_header = Origin::run(async |mut served| {
        let _ = served.wire.take_until("\r\n").await;
        served.wire.reset();
    })
    .await;
    let at_request = Origin::run(async |mut served| {
        let _ = served.wire.take_until("\r\n").await;
        served.request().await;
    })
    .await;
    for (bad, request) in [
        (refusing.to_string(), POST),
        (at_header.to_string(), GET),
        (at_request.to_string(), GET),
    ] {
        waypost.put("a.test", &bad, V1).await;
        waypost.put("a.test", &told.origin, V1).await;
        let mut client = Wire::connect(waypost.address()).await;
        for _ in 0..4 {
            let answer = client.ask(request).await;
            assert_eq!(answer.status(), 200, "{answer:?}");
            let (told_of, _) = halves(answer.text());
            assert_eq!(told_of, told::v1_of(&client, waypost.address()));
        }
        waypost.delete("a.test", &bad).await;
    }
    assert!(at_header.connections() > 0 && at_request.connections() > 0);
    // Its own connection ends while it lies idle: the next request has a new one, with a header.
    let mut client = Wire::connect(waypost.address()).await;
    let (first, connection) = halves(client.ask(GET).await.text());
    told.hang_up();
    told.origin.closed(told.origin.connections()).await;
    let (again, next) = halves(client.ask(POST).await.text());
    assert_eq!(again, first);
    assert_ne!(next, connection);
}

#[tokio::test]
async fn upstreams_with_a_header_and_without_stand_side_by_side() {
    let waypost = one_worker().await;
    let told = Told::start().await;
    // One address, which three routes dial in three ways, and one that changes its way.
    let hosts = ["v1.test", "v2.test", "none.test"];
    for (host, value) in hosts.into_iter().zip([V1, V2, ""]) {
        waypost.put(host, &told.origin, value).await;
    }
    let mut clients = [
        Wire::connect(waypost.address()).await,
        Wire::connect(waypost.address()).await,
    ];
    let mut connections = HashSet::new();
    for (value, same) in [(V1, 0), (V2, 1), ("", 2), (V1, 0)] {
        waypost.put("a.test", &told.origin, value).await;
        for client in &mut clients {
            let near = told::v1_of(client, waypost.address());
            let mut said = Vec::new();
            for host in [hosts[0], hosts[1], hosts[2], "a.test"] {
                let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
                said.push(halves(client.ask(request).await.text()));
            }
            assert_eq!(said[0].0, near);
            assert!(said[1].0.starts_with("2111000c7f000001"), "{said:?}");
            assert_eq!(said[2].0, "nothing");
            assert_eq!(said[3], said[same], "the same way is the same connection");
            connections.extend(said.into_iter().map(|(_, connection)| connection));
        }
    }
    // Two clients with two each, and one that is anybody's.
    assert_eq!(connections.len(), 5);

    let plain = Origin::named("nothing; 0").await;
    waypost.put("mixed.test", &plain, "").await;
    waypost.put("mixed.test", &told.origin, V1).await;
    let mut said = HashSet::new();
    for _ in 0..4 {
        let answer = clients[0]
            .ask("GET / HTTP/1.1\r\nHost: mixed.test\r\n\r\n")
            .await;
        said.insert(halves(answer.text()).0);
    }
    let near = told::v1_of(&clients[0], waypost.address());
    assert_eq!(said, HashSet::from(["nothing".to_owned(), near]));
}

#[tokio::test]
async fn who_expects_no_header_says_so_and_who_expects_one_gets_none_of_another_kind() {
    let waypost = one_worker().await;
    let plain = Neighbour::nginx(&format!("    listen LISTEN;\n{NGINX}")).await;
    for (upstream, value, status) in [
        (plain.address(), V1, 400),
        (plain.address(), V2, 400),
        (nginx().await.address(), "", 502),
    ] {
        waypost.put("a.test", upstream, value).await;
        let mut client = Wire::connect(waypost.address()).await;
        let answer = client.ask(GET).await;
        assert_eq!(answer.status(), status, "{value}: {answer:?}");
        waypost.delete("a.test", upstream).await;
    }
}

#[tokio::test]
async fn the_version_is_shown_and_what_is_none_is_refused() {
    let waypost = one_worker().await;
    waypost.put("a.test", "10.0.0.1:80", V2).await;
    let url = "/api/explain?url=http%3A%2F%2Fa.test%2F";
    for route in [
        &waypost.api("/api/routes").await["routes"][0],
        &waypost.api(url).await["route"],
    ] {
        assert_eq!(route["members"][0]["proxy_protocol"], "v2", "{route}");
    }

    let directory = tempfile::tempdir().unwrap();
    let at = directory.path().display().to_string();
    for (value, reason) in [
        (
            r#"{"proxy_protocol": "v3"}"#,
            "proxy_protocol: unknown variant `v3`, expected `v1` or `v2`",
        ),
        (
            r#"{"proxy_protocol": "v1", "protocol": "h2"}"#,
            "proxy_protocol: it tells of one client, and with \"protocol\": \"h2\" many share a connection",
        ),
    ] {
        write(&directory.path().join("a.test/10.0.0.1:80"), value);
        let checked = run(&["check", "--hosts-dir", &at]).await;
        assert_eq!(checked.code, Some(1), "{checked:?}");
        assert!(checked.stdout.contains(reason), "{checked:?}");
        let put = run(&[
            "put",
            "a.test",
            "10.0.0.1:80",
            value,
            "--etcd",
            "http://127.0.0.1:1",
        ])
        .await;
        assert_eq!(put.code, Some(1), "{put:?}");
        assert!(put.stderr.contains(reason), "{put:?}");
    }
}
