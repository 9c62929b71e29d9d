//! Listeners that ask clients for a certificate, and what upstreams are told of it.

use std::{fs, net::SocketAddr, path::Path, sync::Arc};

use base64::{Engine, prelude::BASE64_STANDARD};
use rustls::{
    ClientConfig, HandshakeKind, SupportedProtocolVersion,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
    version::{TLS12, TLS13},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::support::{
    http::ask,
    origin::Origin,
    tls::{Authority, Pair},
    waypost::{Builder, Waypost, eventually, program, write},
};

/// A plain listener; with TLS, one that asks for nothing and one that asks for a certificate, and more by `options`.
fn listening(servers: &Authority, clients: &Path, options: &str) -> Builder {
    let query = servers.server(&["a.test"]).query();
    let clients = clients.display();
    Waypost::builder()
        .listen("http://127.0.0.1:0")
        .listen(&format!("https://127.0.0.1:0?{query}"))
        .listen(&format!(
            "https://127.0.0.1:0?{query}&client_ca={clients}{options}"
        ))
}

async fn in_front_of(origin: &Origin, builder: Builder) -> Waypost {
    let waypost = builder.start().await;
    waypost.put("a.test", origin, "").await;
    waypost
}

/// One request on a connection of its own: how the handshake went, or what ended it.
async fn exchange(
    address: SocketAddr,
    config: &Arc<ClientConfig>,
) -> Result<HandshakeKind, String> {
    let stream = TcpStream::connect(address).await.expect("it accepts");
    let name = ServerName::try_from("a.test").expect("a name");
    let connecting = TlsConnector::from(config.clone()).connect(name, stream);
    let exchange = async {
        let mut stream: TlsStream<TcpStream> = connecting.await?;
        let request = "GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close, Client-Cert\r\n\
            Client-Cert: forged\r\nclient_cert: forged\r\n\r\n";
        // With TLS 1.3 it is the first read that tells of a refusal.
        let _ = stream.write_all(request.as_bytes()).await;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        Ok(stream.get_ref().1.handshake_kind().expect("it is over"))
    };
    exchange
        .await
        .map_err(|error: std::io::Error| error.to_string())
}

fn told_of(pair: &Pair) -> String {
    let der = CertificateDer::from_pem_file(&pair.certificate).unwrap();
    format!(":{}:", BASE64_STANDARD.encode(der))
}

const VERSIONS: [&[&SupportedProtocolVersion]; 2] = [&[&TLS12], &[&TLS13]];

async fn refused(waypost: &Waypost) -> f64 {
    let labels = [("reason", "client_certificate")];
    waypost
        .metric("waypost_refused_connections_total", &labels)
        .await
}

#[tokio::test]
async fn a_client_is_served_by_its_certificate_or_told_what_is_wrong() {
    let (servers, clients, strangers) = (Authority::new(), Authority::new(), Authority::new());
    let known = clients.client("ann");
    let unknown = strangers.client("ann");
    let no_client = clients.server(&["a.test"]);
    for (auth, without) in [
        ("", Some("CertificateRequired")),
        ("&client_auth=required", Some("CertificateRequired")),
        ("&client_auth=optional", None),
    ] {
        let origin = Origin::named("ok").await;
        let options = format!("{auth}&client_cert_header=Client-Cert");
        let builder = listening(&servers, &clients.file(), &options);
        let waypost = in_front_of(&origin, builder).await;
        let mut count = 0.0;
        for versions in VERSIONS {
            for (shown, alert) in [
                (Some(&known), None),
                (None, without),
                // By an authority of the same name, which has another key.
                (Some(&unknown), Some("DecryptError")),
                (Some(&no_client), Some("UnsupportedCertificate")),
            ] {
                let what = format!("{auth} {versions:?} {shown:?}");
                let config = servers.client_config_showing(shown, versions);
                let outcome = exchange(waypost.addresses()[2], &config).await;
                match (alert, outcome) {
                    (None, Ok(_)) => {
                        let told = origin.latest().head.one("client-cert").map(String::from);
                        assert_eq!(told, shown.map(told_of), "{what}");
                    }
                    (Some(alert), Err(error)) => {
                        count += 1.0;
                        assert!(error.contains(alert), "{what}: {error}");
                    }
                    (_, outcome) => panic!("{what}: {outcome:?}"),
                }
                let is_counted = async || refused(&waypost).await == count;
                eventually(&what, is_counted).await;
            }
            // The listener beside it asks nobody, and tells of nobody.
            let config = servers.client_config_showing(Some(&known), versions);
            exchange(waypost.addresses()[1], &config)
                .await
                .expect("served");
            assert_eq!(origin.latest().head.one("client-cert"), None);
        }
    }
}

#[tokio::test]
async fn no_client_can_claim_a_certificate() {
    let authority = Authority::new();
    let origin = Origin::named("ok").await;
    let options = "&client_cert_header=X-Client_Cert";
    let builder = listening(&authority, &authority.file(), options);
    // Not even a proxy that is trusted: the handshake was not with us.
    let waypost = in_front_of(&origin, builder.flag("--trusted-proxies", "127.0.0.1")).await;
    for name in [
        "X-Client_Cert",
        "x-client-cert",
        "X_Client_Cert",
        "X_CLIENT-CERT",
        "x-client-cert-chain",
        "X_Client_Cert_Chain",
    ] {
        let request = format!(
            "POST / HTTP/1.1\r\nHost: a.test\r\n{name}: forged\r\nTransfer-Encoding: chunked\r\n\r\n\
             0\r\n{name}: forged\r\nX-Sum: 1\r\n\r\n"
        );
        assert_eq!(ask(waypost.address(), request).await.status(), 200);
        let asked = origin.latest();
        let fields = asked.head.fields.iter().chain(&asked.trailers);
        let forged: Vec<_> = fields.filter(|(_, value)| value == "forged").collect();
        assert!(forged.is_empty(), "{name}: {forged:?}");
        assert_eq!(asked.trailers, [("x-sum".to_owned(), "1".to_owned())]);
    }
}

#[tokio::test]
async fn a_session_is_resumed_where_it_was_begun_alone() {
    let (servers, clients) = (Authority::new(), Authority::new());
    let ann = clients.client("ann");
    let origin = Origin::named("ok").await;
    let options = "&client_cert_header=Client-Cert";
    let waypost = in_front_of(&origin, listening(&servers, &clients.file(), options)).await;
    let (open, asking) = (waypost.addresses()[1], waypost.addresses()[2]);
    for versions in VERSIONS {
        // It keeps its sessions by the server's name, whatever the port.
        let nobody = servers.client_config_showing(None, versions);
        assert_eq!(exchange(open, &nobody).await, Ok(HandshakeKind::Full));
        assert_eq!(exchange(open, &nobody).await, Ok(HandshakeKind::Resumed));
        let error = exchange(asking, &nobody).await.unwrap_err();
        assert!(
            error.contains("CertificateRequired"),
            "{versions:?}: {error}"
        );
        // A certificate that was shown holds for what is resumed.
        let ann_ = servers.client_config_showing(Some(&ann), versions);
        assert_eq!(exchange(asking, &ann_).await, Ok(HandshakeKind::Full));
        assert_eq!(exchange(asking, &ann_).await, Ok(HandshakeKind::Resumed));
        let told = origin.latest().head.one("client-cert").map(String::from);
        assert_eq!(told, Some(told_of(&ann)), "{versions:?}");
    }
}

#[tokio::test]
async fn other_authorities_are_taken_up_and_end_the_sessions_of_old_ones() {
    let (servers, old, new) = (Authority::new(), Authority::new(), Authority::new());
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("clients.pem");
    let pem = |authority: &Authority| fs::read_to_string(authority.file()).unwrap();
    write(&file, &pem(&old));
    let origin = Origin::named("ok").await;
    let waypost = in_front_of(&origin, listening(&servers, &file, "")).await;
    let asking = waypost.addresses()[2];
    let shows = |pair| servers.client_config_showing(Some(&pair), &[&TLS13]);
    let (ann, bob) = (shows(old.client("ann")), shows(new.client("bob")));
    assert_eq!(exchange(asking, &ann).await, Ok(HandshakeKind::Full));
    assert_eq!(exchange(asking, &ann).await, Ok(HandshakeKind::Resumed));
    assert!(
        exchange(asking, &bob)
            .await
            .unwrap_err()
            .contains("DecryptError")
    );

    // Without a signal: the file is watched.
    write(&file, &pem(&new));
    waypost.log().until("authorities of clients loaded").await;
    assert!(
        exchange(asking, &ann)
            .await
            .unwrap_err()
            .contains("DecryptError")
    );
    assert_eq!(exchange(asking, &bob).await, Ok(HandshakeKind::Full));

    write(&file, "nonsense");
    waypost.signal("HUP");
    let line = waypost
        .log()
        .until("could not read the certificates again")
        .await;
    assert!(line.contains("clients.pem"), "{line}");
    assert_eq!(exchange(asking, &bob).await, Ok(HandshakeKind::Resumed));
}

#[tokio::test]
async fn authorities_that_cannot_be_used_fail_the_start_by_name() {
    let authority = Authority::new();
    let dir = tempfile::tempdir().unwrap();
    let leaf = authority.client("ann");
    let missing = dir.path().join("missing.pem");
    let empty = dir.path().join("empty.pem");
    write(&empty, "");
    for file in [&missing, &empty, &leaf.key] {
        let ended = listening(&authority, file, "").run_to_end().await;
        assert_eq!(ended.code, Some(1), "{}", ended.stderr);
        let name = file.display().to_string();
        assert!(ended.stderr.contains(&name), "{}", ended.stderr);
    }
}

#[tokio::test]
async fn curl_and_openssl_show_certificates_and_understand_refusals() {
    let (servers, clients) = (Authority::new(), Authority::new());
    let ann = clients.client("ann");
    let origin = Origin::named("ok").await;
    let options = "&client_cert_header=X-SSL-Client-Cert&client_cert_format=pem&min_tls=1.3";
    let waypost = in_front_of(&origin, listening(&servers, &clients.file(), options)).await;
    let port = waypost.addresses()[2].port();
    let text = |path: &Path| path.to_str().expect("a path of ours").to_owned();
    let url = format!("https://a.test:{port}/");
    let resolve = format!("a.test:{port}:127.0.0.1");
    let (ca, cert, key) = (
        text(&servers.file()),
        text(&ann.certificate),
        text(&ann.key),
    );
    let curl = [
        "--silent",
        "--show-error",
        "--max-time",
        "15",
        "--cacert",
        &ca,
        "--resolve",
        &resolve,
        &url,
    ];
    let shown = ["--cert", &cert, "--key", &key];
    let run = async |name: &str, arguments: &[&str]| {
        let output = program(name, arguments).output().await.expect(name);
        let said = [output.stdout, output.stderr].concat();
        String::from_utf8_lossy(&said).into_owned()
    };
    for protocol in ["--http1.1", "--http2"] {
        let said = run("curl", &[&curl[..], &shown, &[protocol]].concat()).await;
        assert_eq!(said, "ok", "{protocol}");
        let told = origin
            .latest()
            .head
            .one("x-ssl-client-cert")
            .map(String::from);
        let told = told.expect("the certificate");
        let told = percent_encoding::percent_decode_str(&told)
            .decode_utf8()
            .unwrap();
        let pem = fs::read_to_string(&ann.certificate)
            .unwrap()
            .replace("\r\n", "\n");
        assert_eq!(told, pem);
    }
    let said = run("curl", &curl).await;
    assert!(said.contains("certificate required"), "{said}");
    let said = run("curl", &[&curl[..], &shown, &["--tls-max", "1.2"]].concat()).await;
    assert!(said.contains("alert protocol version"), "{said}");
    let connect = format!("127.0.0.1:{port}");
    let openssl = [
        "s_client",
        "-connect",
        &connect,
        "-servername",
        "a.test",
        "-CAfile",
        &ca,
        "-ign_eof",
    ];
    let said = run("openssl", &openssl).await;
    assert!(said.contains("certificate required"), "{said}");
    assert!(
        said.contains("Acceptable client certificate CA names"),
        "{said}"
    );
    assert!(said.contains("Waypost's tests"), "{said}");
    let said = run("openssl", &[&openssl[..], &["-tls1_2"]].concat()).await;
    assert!(said.contains("alert protocol version"), "{said}");
}
