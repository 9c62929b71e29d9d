//! Which host a request is for, in each of the places that can name one, and which spellings are refused.

use crate::support::{h2_raw, http::Wire, origin::Origin, waypost::Waypost};

/// Where a request may name its host.
#[derive(Clone, Copy, Debug)]
enum Place {
    Host,
    Target,
    Authority,
    HostOfHttp2,
}

impl Place {
    const ALL: [Self; 4] = [Self::Host, Self::Target, Self::Authority, Self::HostOfHttp2];

    /// The status for a request that names this host here, and nowhere else it needn't.
    async fn ask(self, waypost: &Waypost, host: &[u8]) -> u16 {
        let get = (&b":method"[..], &b"GET"[..]);
        let (scheme, path) = ((&b":scheme"[..], &b"http"[..]), (&b":path"[..], &b"/"[..]));
        match self {
            Self::Host | Self::Target => {
                let target: &[&[u8]] = match self {
                    Self::Target => &[b"http://", host],
                    _ => &[],
                };
                let request = [
                    &[&b"GET "[..]],
                    target,
                    &[
                        b"/ HTTP/1.1\r\nHost: ",
                        host,
                        b"\r\nConnection: close\r\n\r\n",
                    ],
                ];
                let mut wire = Wire::connect(waypost.address()).await;
                wire.ask(request.concat().concat()).await.status()
            }
            Self::Authority => {
                let fields = [get, scheme, (&b":authority"[..], host), path];
                h2_raw::ask(waypost.address(), &fields).await.status()
            }
            Self::HostOfHttp2 => {
                let fields = [get, scheme, path, (&b"host"[..], host)];
                h2_raw::ask(waypost.address(), &fields).await.status()
            }
        }
    }
}

#[tokio::test]
async fn hosts_are_what_they_mean_wherever_they_are_named_or_refused() {
    let waypost = Waypost::builder().start().await;
    let routes = [
        "a.test",
        "[::1]",
        "[fe80::1]",
        "[::ffff:127.0.0.1]",
        "127.0.0.1",
        "bücher.test",
        "my_host",
        "*.w.test",
    ];
    let mut origins = Vec::new();
    for route in routes {
        let origin = Origin::named(route).await;
        waypost.put(route, &origin, "").await;
        origins.push((route, origin));
    }
    let label = "l".repeat(63);
    let longest = format!("{label}.{label}.{label}.{}.w.test", "l".repeat(54));
    let (too_long, long_label) = (format!("l{longest}"), format!("l{label}.w.test"));
    // A route's name, nothing for a host that is fine and has none, or a refusal.
    let cases: &[(&str, Result<Option<&str>, u16>)] = &[
        ("a.test", Ok(Some("a.test"))),
        ("A.TeST", Ok(Some("a.test"))),
        ("a.test.", Ok(Some("a.test"))),
        ("a.test:80", Ok(Some("a.test"))),
        ("a.test.:8080", Ok(Some("a.test"))),
        ("a.test:", Ok(Some("a.test"))),
        ("a.test:0", Ok(Some("a.test"))),
        ("a.test:65535", Ok(Some("a.test"))),
        ("a.test:00080", Ok(Some("a.test"))),
        ("[::1]", Ok(Some("[::1]"))),
        ("[::1]:80", Ok(Some("[::1]"))),
        ("[::1]:", Ok(Some("[::1]"))),
        ("[0:0:0::0:1]", Ok(Some("[::1]"))),
        (
            "[0000:0000:0000:0000:0000:0000:0000:0001]",
            Ok(Some("[::1]")),
        ),
        ("[::0.0.0.1]", Ok(Some("[::1]"))),
        ("[FE80::1]", Ok(Some("[fe80::1]"))),
        ("[::ffff:127.0.0.1]", Ok(Some("[::ffff:127.0.0.1]"))),
        ("[::FFFF:7F00:1]:80", Ok(Some("[::ffff:127.0.0.1]"))),
        ("127.0.0.1:80", Ok(Some("127.0.0.1"))),
        ("xn--bcher-kva.test", Ok(Some("bücher.test"))),
        ("XN--BCHER-KVA.test", Ok(Some("bücher.test"))),
        ("Xn--BcHer-Kva.Test.:1", Ok(Some("bücher.test"))),
        ("my_host", Ok(Some("my_host"))),
        ("x.w.test", Ok(Some("*.w.test"))),
        (&longest, Ok(Some("*.w.test"))),
        ("w.test", Ok(None)),
        ("127.1", Ok(None)),
        ("0x7f.0.0.1", Ok(None)),
        ("[::]", Ok(None)),
        ("bucher.test", Ok(None)),
        ("xn--a", Ok(None)),
        ("-", Ok(None)),
        ("", Err(400)),
        (".", Err(400)),
        ("..", Err(400)),
        (".a.test", Err(400)),
        ("a..test", Err(400)),
        ("a.test..", Err(400)),
        (&too_long, Err(400)),
        (&long_label, Err(400)),
        ("a.test:65536", Err(400)),
        ("a.test:000080", Err(400)),
        ("a.test:+80", Err(400)),
        ("a.test:-1", Err(400)),
        ("a.test:8o", Err(400)),
        ("a.test:80:80", Err(400)),
        ("a.test: 80", Err(400)),
        (":80", Err(400)),
        ("::1", Err(400)),
        ("[::1", Err(400)),
        ("::1]", Err(400)),
        ("[]", Err(400)),
        ("[[::1]]", Err(400)),
        ("[::1].", Err(400)),
        ("[::1]x", Err(400)),
        ("[::1]:x", Err(400)),
        ("[::1]:65536", Err(400)),
        ("[::1%25eth0]", Err(400)),
        ("[::1%eth0]", Err(400)),
        ("[fe80::1%251]", Err(400)),
        ("[1::2::3]", Err(400)),
        ("[::12345]", Err(400)),
        ("[::1.2.3]", Err(400)),
        ("[127.0.0.1]", Err(400)),
        ("[v1.fe80::a]", Err(400)),
        ("[a.test]", Err(400)),
        ("bücher.test", Err(400)),
        ("a。test", Err(400)),
        ("@a.test", Err(400)),
        ("u@a.test", Err(400)),
        ("u:p@a.test", Err(400)),
        ("a.test@", Err(400)),
        ("a.test,a.test", Err(400)),
        ("a.test, a.test", Err(400)),
        ("a.test a.test", Err(400)),
        ("a .test", Err(400)),
        ("a.test/", Err(400)),
        ("a.test/x", Err(400)),
        ("a.test\\x", Err(400)),
        ("a.test?x", Err(400)),
        ("a.test#x", Err(400)),
        ("a.test;x", Err(400)),
        ("http://a.test", Err(400)),
        ("a%2Etest", Err(400)),
        ("a.test%00", Err(400)),
        ("*", Err(400)),
        ("*.w.test", Err(400)),
        ("a'b", Err(400)),
        ("a\"b", Err(400)),
        ("(a)", Err(400)),
        ("a=b", Err(400)),
        ("a+b", Err(400)),
        ("a$b", Err(400)),
        ("a\tb", Err(400)),
        ("a\0b", Err(400)),
        ("a\x7fb", Err(400)),
    ];
    for (host, expected) in cases {
        for place in Place::ALL {
            // There it ends what is asked for as the host, and means something else.
            if matches!(place, Place::Target) && host.contains(['/', '?', '#']) {
                continue;
            }
            let before: Vec<_> = origins
                .iter()
                .map(|(_, origin)| origin.requests().len())
                .collect();
            let status = place.ask(&waypost, host.as_bytes()).await;
            let what = format!("{host:?} as {place:?}");
            let reached = origins.iter().zip(&before);
            let reached =
                reached.filter(|((_, origin), before)| origin.requests().len() > **before);
            let reached: Vec<_> = reached.map(|((route, _), _)| *route).collect();
            match expected {
                Ok(Some(route)) => {
                    assert_eq!((status, &*reached), (200, &[*route][..]), "{what}");
                    let (_, origin) = origins.iter().find(|(name, _)| name == route).unwrap();
                    assert_eq!(origin.latest().head.one("host"), Some(*host), "{what}");
                }
                Ok(None) => assert_eq!((status, reached.len()), (404, 0), "{what}"),
                Err(refused) => assert_eq!((status, reached.len()), (*refused, 0), "{what}"),
            }
        }
    }
    for host in [&b"a\xfftest"[..], b"b\xfccher.test"] {
        for place in Place::ALL {
            assert_eq!(
                place.ask(&waypost, host).await,
                400,
                "{} as {place:?}",
                host.escape_ascii()
            );
        }
    }
}
