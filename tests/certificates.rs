//! Certificates over the wire: which one is shown to whom, and what happens when the files change.

use std::{fs, net::SocketAddr, process::Stdio, sync::Arc};

use rustls::{
    ClientConfig,
    client::Resumption,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::support::{
    sample::Sample,
    tls::{Authority, Pair},
    waypost::{Builder, Waypost, eventually},
};

#[tokio::test]
async fn the_name_a_client_asks_for_chooses_the_certificate() {
    let (authority, directory) = (Authority::new(), tempfile::tempdir().unwrap());
    let a = authority.server_in(directory.path(), &["a.test", "also-a.test"]);
    let wildcard = authority.server_in(directory.path(), &["*.b.test"]);
    let (waypost, _sample) = serving(tls_dir(directory.path())).await;
    let config = client(&authority);
    for (name, pair) in [("a.test", &a), ("also-a.test", &a), ("x.b.test", &wildcard)] {
        let stream = connect(waypost.address(), name, &config).await.expect(name);
        assert_eq!(shown(&stream), pair_in(pair), "{name}");
    }
    for unknown in ["b.test", "x.y.b.test", "nobody.test"] {
        let error = connect(waypost.address(), unknown, &config)
            .await
            .expect_err(unknown);
        assert!(error.contains("UnrecognisedName"), "{unknown}: {error}");
    }
}

#[tokio::test]
async fn a_listener_with_a_pair_of_its_own_shows_it_to_everybody_else() {
    let (authority, directory) = (Authority::new(), tempfile::tempdir().unwrap());
    let a = authority.server_in(directory.path(), &["a.test"]);
    let own = authority.server(&["own.test", "127.0.0.1"]);
    let listener = format!("https://127.0.0.1:0?{}", own.query());
    let builder = Waypost::builder().listen(&listener);
    let (waypost, _sample) = serving(builder.flag("--tls-dir", directory.path().display())).await;
    let config = client(&authority);
    for (name, pair) in [("a.test", &a), ("own.test", &own), ("127.0.0.1", &own)] {
        let stream = connect(waypost.address(), name, &config).await.expect(name);
        assert_eq!(shown(&stream), pair_in(pair), "{name}");
    }
}

#[tokio::test]
async fn changed_files_are_used_and_open_connections_live_on() {
    let (authority, directory) = (Authority::new(), tempfile::tempdir().unwrap());
    let old = pair_in(&authority.server_in(directory.path(), &["a.test"]));
    let (waypost, sample) = serving(tls_dir(directory.path())).await;
    let config = client(&authority);
    let mut open = connect(waypost.address(), "a.test", &config).await.unwrap();
    assert_eq!(shown(&open), old);
    assert!(
        exchange(&mut open, "a.test")
            .await
            .ends_with(&sample.to_string())
    );

    let new = pair_in(&authority.server_in(directory.path(), &["a.test"]));
    assert_ne!(new, old);
    let shows = async |pair: &CertificateDer<'static>| {
        let stream = connect(waypost.address(), "a.test", &config).await;
        stream.is_ok_and(|stream| shown(&stream) == *pair)
    };
    eventually("the new one is shown", async || shows(&new).await).await;
    assert!(
        exchange(&mut open, "a.test")
            .await
            .starts_with("HTTP/1.1 200")
    );

    // One more pair, and one less.
    let b = authority.server_in(directory.path(), &["b.test"]);
    eventually("b.test is known", async || {
        connect(waypost.address(), "b.test", &config).await.is_ok()
    })
    .await;
    fs::remove_file(&b.key).unwrap();
    fs::remove_file(&b.certificate).unwrap();
    eventually("b.test is unknown", async || {
        connect(waypost.address(), "b.test", &config).await.is_err()
    })
    .await;

    // A broken file changes nothing, and is named.
    fs::write(directory.path().join("a.test.crt"), "half a certifica").unwrap();
    waypost.log().until("a.test.crt").await;
    assert!(shows(&new).await);
    assert!(
        exchange(&mut open, "a.test")
            .await
            .starts_with("HTTP/1.1 200")
    );
}

#[tokio::test]
async fn sighup_reads_the_certificates_at_once() {
    let authority = Authority::new();
    let pair = authority.server(&["a.test"]);
    let builder = Waypost::builder().listen(&format!("https://127.0.0.1:0?{}", pair.query()));
    let (waypost, _sample) = serving(builder).await;
    let config = client(&authority);
    let mut open = connect(waypost.address(), "a.test", &config).await.unwrap();
    let new = pair_in(&authority.server(&["a.test"]));
    waypost.signal("HUP");
    waypost.log().until("read the certificates again").await;
    let stream = connect(waypost.address(), "a.test", &config).await.unwrap();
    assert_eq!(shown(&stream), new);
    assert!(
        exchange(&mut open, "a.test")
            .await
            .starts_with("HTTP/1.1 200")
    );

    fs::write(&pair.key, "broken").unwrap();
    waypost.signal("HUP");
    let line = waypost
        .log()
        .until("could not read the certificates again")
        .await;
    assert!(line.contains(&pair.key.display().to_string()), "{line}");
    let stream = connect(waypost.address(), "a.test", &config).await.unwrap();
    assert_eq!(shown(&stream), new);
}

#[tokio::test]
async fn plain_and_tls_listeners_serve_side_by_side_and_alpn_chooses_http2() {
    let authority = Authority::new();
    let pair = authority.server(&["a.test"]);
    let builder = Waypost::builder()
        .listen("http://127.0.0.1:0")
        .listen(&format!("https://127.0.0.1:0?{}", pair.query()));
    let (waypost, sample) = serving(builder).await;
    let [plain, tls] = [0, 1].map(|index| waypost.addresses()[index].port());
    for (url, flag, expected) in [
        (format!("https://a.test:{tls}/"), "--http2", "200 2"),
        (format!("https://a.test:{tls}/"), "--http1.1", "200 1.1"),
        (format!("http://a.test:{plain}/"), "--http1.1", "200 1.1"),
        (
            format!("http://a.test:{plain}/"),
            "--http2-prior-knowledge",
            "200 2",
        ),
    ] {
        let curl = tokio::process::Command::new("curl")
            .args([
                "--silent",
                "--show-error",
                "--max-time",
                "10",
                flag,
                &url,
                "--cacert",
            ])
            .arg(authority.file())
            .args(["--resolve", &format!("a.test:{tls}:127.0.0.1")])
            .args(["--resolve", &format!("a.test:{plain}:127.0.0.1")])
            .args(["--write-out", " %{http_code} %{http_version}"])
            .stdin(Stdio::null())
            .output();
        let output = curl.await.expect("these tests need curl");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(
            text,
            format!("{sample} {expected}"),
            "{flag} {url}: {error}"
        );
    }
}

fn tls_dir(directory: &std::path::Path) -> Builder {
    let builder = Waypost::builder().listen("https://127.0.0.1:0");
    builder.flag("--tls-dir", directory.display())
}

/// An instance with a sample upstream for every host.
async fn serving(builder: Builder) -> (Waypost, Sample) {
    let (waypost, sample) = tokio::join!(builder.start(), Sample::start());
    waypost.put("*", &sample, "").await;
    (waypost, sample)
}

/// Each connection is to show its certificate, so none is resumed.
fn client(authority: &Authority) -> Arc<ClientConfig> {
    let mut config = ClientConfig::clone(&authority.client_config(&[]));
    config.resumption = Resumption::disabled();
    Arc::new(config)
}

async fn connect(
    address: SocketAddr,
    name: &str,
    config: &Arc<ClientConfig>,
) -> Result<TlsStream<TcpStream>, String> {
    let name = ServerName::try_from(name.to_owned()).expect("a name");
    let stream = TcpStream::connect(address)
        .await
        .map_err(|error| error.to_string())?;
    let connecting = TlsConnector::from(config.clone()).connect(name, stream);
    connecting.await.map_err(|error| format!("{error:?}"))
}

/// GET on a connection that stays open; what came.
async fn exchange(stream: &mut TlsStream<TcpStream>, host: &str) -> String {
    let request = format!("GET / HTTP/1.1\r\nhost: {host}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut read = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&read).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.split("content-length: ").nth(1).expect("a length");
            let length: usize = length.lines().next().unwrap().parse().unwrap();
            if body.len() >= length {
                return text;
            }
        }
        assert_ne!(
            stream.read_buf(&mut read).await.unwrap(),
            0,
            "closed: {text}"
        );
    }
}

fn shown(stream: &TlsStream<TcpStream>) -> CertificateDer<'static> {
    let chain = stream.get_ref().1.peer_certificates();
    chain.expect("a certificate")[0].clone().into_owned()
}

fn pair_in(pair: &Pair) -> CertificateDer<'static> {
    CertificateDer::from_pem_file(&pair.certificate).expect("a certificate")
}
