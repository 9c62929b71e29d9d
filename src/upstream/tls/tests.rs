//! Real handshakes with a server, and what the store of configurations keeps.

mod files;

use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd,
};
use rustls::{
    HandshakeKind, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer},
    server::WebPkiClientVerifier,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::{TlsAcceptor, client::TlsStream};

use super::*;

struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn named(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn file(&self, dir: &Path, name: &str) -> Box<str> {
        let path = dir.join(name);
        std::fs::write(&path, self.0.pem()).unwrap();
        path.to_str().unwrap().into()
    }

    fn server(&self, names: &[&str]) -> Arc<ServerConfig> {
        let names: Vec<_> = names.iter().map(|&name| name.to_owned()).collect();
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(names).unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        serve(certificate.der().clone(), &key)
    }
}

impl Authority {
    /// A pair for a client, `NAME.pem` and `NAME.key`.
    fn client(&self, dir: &Path, name: &str) -> ClientFiles {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = certificate.signed_by(&key, &self.0).unwrap();
        let write = |extension: &str, text: String| {
            let path = dir.join(name).with_extension(extension);
            std::fs::write(&path, text).unwrap();
            path.to_str().unwrap().into()
        };
        ClientFiles {
            cert: write("pem", certificate.pem()),
            key: write("key", key.serialize_pem()),
        }
    }

    /// As [`Self::server`], for clients with a certificate by this authority alone.
    fn server_for_clients(&self, names: &[&str]) -> Arc<ServerConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone()).unwrap();
        let provider = Arc::new(aws_lc_rs::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
        let config = self.server(names);
        let builder = ServerConfig::builder_with_provider(config.crypto_provider().clone());
        let mut verified = builder
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier.build().unwrap())
            .with_cert_resolver(config.cert_resolver.clone());
        verified.alpn_protocols = config.alpn_protocols.clone();
        Arc::new(verified)
    }
}

fn serve(certificate: CertificateDer<'static>, key: &KeyPair) -> Arc<ServerConfig> {
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Arc::new(config)
}

/// What one connection came to: the handshake as the client saw it, and the name the server was asked for.
struct Outcome {
    client: io::Result<TlsStream<tokio::io::DuplexStream>>,
    asked: Option<String>,
}

async fn connect(
    tls: &UpstreamTls,
    options: &TlsOptions,
    endpoint: &Endpoint,
    server: &Arc<ServerConfig>,
) -> Outcome {
    let (connector, name) = tls.connector(options, endpoint).unwrap();
    let (near, far) = tokio::io::duplex(64 * 1024);
    let serve = async {
        let mut stream = TlsAcceptor::from(server.clone()).accept(far).await.ok()?;
        stream.write_all(b"x").await.ok()?;
        stream.get_ref().1.server_name().map(str::to_owned)
    };
    let dial = async {
        let mut stream = connector.connect(name, near).await?;
        stream.read_u8().await?;
        Ok(stream)
    };
    let (client, asked) = tokio::join!(dial, serve);
    Outcome { client, asked }
}

fn tcp(address: &str, name: Option<&str>) -> Endpoint {
    Endpoint::Tcp {
        address: address.parse().unwrap(),
        name: name.map(Into::into),
    }
}

#[tokio::test]
async fn the_certificate_must_be_by_the_authority_and_for_the_name() {
    let dir = tempfile::tempdir().unwrap();
    let (authority, stranger) = (Authority::named("ours"), Authority::named("strange"));
    let ca = authority.file(dir.path(), "ca.pem");
    let options = |ca: &str, sni: Option<&str>, insecure| TlsOptions {
        sni: sni.map(Into::into),
        ca: Some(ca.into()),
        insecure,
        client: None,
    };
    let wrong_ca = stranger.file(dir.path(), "stranger.pem");
    let server = authority.server(&["app.internal", "10.0.0.7", "2001:db8::7"]);
    let tls = UpstreamTls::new();

    let named = tcp("10.0.0.9:443", Some("app.internal"));
    let other = tcp("10.0.0.9:443", Some("other.internal"));
    let address = tcp("10.0.0.7:443", None);
    let mapped = tcp("[::ffff:10.0.0.7]:443", None);
    let v6 = tcp("[2001:db8::7]:443", None);
    let wrong_address = tcp("10.0.0.9:443", None);
    let unix = Endpoint::Unix("/run/app.sock".into());
    let (app, elsewhere) = (Some("app.internal"), Some("else.internal"));
    type Case<'a> = (
        &'a str,
        TlsOptions,
        &'a Endpoint,
        Result<Option<&'a str>, &'a str>,
    );
    let cases: Vec<Case<'_>> = vec![
        ("by name", options(&ca, None, false), &named, Ok(app)),
        ("by address", options(&ca, None, false), &address, Ok(None)),
        (
            "by mapped address",
            options(&ca, None, false),
            &mapped,
            Ok(None),
        ),
        ("by IPv6 address", options(&ca, None, false), &v6, Ok(None)),
        ("sni over name", options(&ca, app, false), &other, Ok(app)),
        (
            "sni over address",
            options(&ca, app, false),
            &wrong_address,
            Ok(app),
        ),
        (
            "sni for a socket file",
            options(&ca, app, false),
            &unix,
            Ok(app),
        ),
        (
            "wrong name",
            options(&ca, None, false),
            &other,
            Err("not valid for name"),
        ),
        (
            "wrong address",
            options(&ca, None, false),
            &wrong_address,
            Err("not valid for name"),
        ),
        (
            "wrong sni",
            options(&ca, elsewhere, false),
            &named,
            Err("not valid for name"),
        ),
        (
            "wrong authority",
            options(&wrong_ca, None, false),
            &named,
            Err("UnknownIssuer"),
        ),
        (
            "anyone",
            options(&wrong_ca, elsewhere, true),
            &named,
            Ok(elsewhere),
        ),
    ];
    for (case, options, endpoint, expected) in cases {
        let outcome = connect(&tls, &options, endpoint, &server).await;
        match (outcome.client, expected) {
            (Ok(stream), Ok(asked)) => {
                assert_eq!(outcome.asked.as_deref(), asked, "{case}");
                let alpn = stream.get_ref().1.alpn_protocol();
                assert_eq!(alpn, Some(&b"http/1.1"[..]), "{case}");
            }
            (Err(error), Err(expected)) => {
                let error = error.to_string();
                assert!(error.contains(expected), "{case}: {error}");
            }
            (client, expected) => panic!("{case}: {client:?}, not {expected:?}"),
        }
    }
}

#[tokio::test]
async fn a_server_that_is_its_own_authority_is_verified_by_name_and_date() {
    let dir = tempfile::tempdir().unwrap();
    let year = |year| date_time_ymd(year, 1, 1);
    let cases = [
        ("app.internal", 2000..4000, None),
        ("other.internal", 2000..4000, Some("not valid for name")),
        ("app.internal", 2000..2001, Some("Expired")),
        ("app.internal", 3999..4000, Some("NotValidYet")),
    ];
    for (index, (name, years, expected)) in cases.into_iter().enumerate() {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.not_before = year(years.start);
        params.not_after = year(years.end);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let file = dir.path().join(index.to_string());
        std::fs::write(&file, certificate.pem()).unwrap();
        let options = TlsOptions {
            ca: Some(file.to_str().unwrap().into()),
            ..TlsOptions::default()
        };
        let endpoint = tcp("10.0.0.7:443", Some("app.internal"));
        let server = serve(certificate.der().clone(), &key);
        let outcome = connect(&UpstreamTls::new(), &options, &endpoint, &server).await;
        match (outcome.client, expected) {
            (Ok(_), None) => {}
            (Err(error), Some(expected)) if error.to_string().contains(expected) => {}
            (client, _) => panic!("{name} {years:?}: {client:?}, not {expected:?}"),
        }
    }
}

#[tokio::test]
async fn sessions_resume_but_only_with_the_same_upstream_on_the_same_terms() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::named("ours");
    let tls = UpstreamTls::new();
    let insecure = TlsOptions {
        insecure: true,
        ..TlsOptions::default()
    };
    let verified = TlsOptions {
        ca: Some(authority.file(dir.path(), "ca.pem")),
        ..TlsOptions::default()
    };
    let by_other_file = TlsOptions {
        ca: Some(authority.file(dir.path(), "other.pem")),
        ..TlsOptions::default()
    };
    let as_client = |name| TlsOptions {
        client: Some(authority.client(dir.path(), name)),
        ..verified.clone()
    };
    let by_other_name = TlsOptions {
        sni: Some("www.internal".into()),
        ..verified.clone()
    };
    let server = authority.server(&["app.internal", "www.internal"]);
    let endpoint = tcp("10.0.0.7:443", Some("app.internal"));
    let sibling = tcp("10.0.0.8:443", Some("app.internal"));
    for (case, options, endpoint) in [
        ("insecure", &insecure, &endpoint),
        ("verified", &verified, &endpoint),
        ("another ca", &by_other_file, &endpoint),
        ("as somebody", &as_client("us"), &endpoint),
        ("as somebody else", &as_client("them"), &endpoint),
        ("another name", &by_other_name, &endpoint),
        ("another address", &verified, &sibling),
    ] {
        for expected in [HandshakeKind::Full, HandshakeKind::Resumed] {
            let outcome = connect(&tls, options, endpoint, &server).await;
            let kind = outcome.client.unwrap().get_ref().1.handshake_kind();
            assert_eq!(kind, Some(expected), "{case}");
        }
    }
}

#[test]
fn sessions_are_remembered_of_so_many_upstreams_and_no_more() {
    let tls = UpstreamTls::new();
    let options = TlsOptions {
        insecure: true,
        ..TlsOptions::default()
    };
    for port in 1..=MOST_SESSIONED as u16 + 10 {
        let endpoint = tcp(&format!("10.0.0.7:{port}"), None);
        tls.client_config(&options, &endpoint).unwrap();
    }
    let state = tls.state.lock().unwrap();
    let entry = state.configs.values().next().unwrap();
    assert_eq!(entry.sessioned.len(), MOST_SESSIONED);
}

#[tokio::test]
async fn who_we_are_is_shown_to_servers_that_ask() {
    let dir = tempfile::tempdir().unwrap();
    let (authority, stranger) = (Authority::named("ours"), Authority::named("strange"));
    let server = authority.server_for_clients(&["app.internal"]);
    let endpoint = tcp("10.0.0.7:443", Some("app.internal"));
    let ca = authority.file(dir.path(), "ca.pem");
    let tls = UpstreamTls::new();
    for (client, is_let_in) in [
        (Some(authority.client(dir.path(), "us")), true),
        (Some(stranger.client(dir.path(), "them")), false),
        (None, false),
    ] {
        let case = format!("{client:?}");
        let options = TlsOptions {
            ca: Some(ca.clone()),
            client,
            ..TlsOptions::default()
        };
        let outcome = connect(&tls, &options, &endpoint, &server).await;
        assert_eq!(outcome.client.is_ok(), is_let_in, "{case}");
    }
}

#[tokio::test]
async fn a_certificate_by_the_authority_must_be_in_date() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::named("ours");
    let options = TlsOptions {
        ca: Some(authority.file(dir.path(), "ca.pem")),
        ..TlsOptions::default()
    };
    let endpoint = tcp("10.0.0.7:443", Some("app.internal"));
    for (years, expected) in [
        (2000..4000, None),
        (2000..2001, Some("certificate expired")),
        (3999..4000, Some("not valid yet")),
    ] {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["app.internal".to_owned()]).unwrap();
        params.not_before = date_time_ymd(years.start, 1, 1);
        params.not_after = date_time_ymd(years.end, 1, 1);
        let certificate = params.signed_by(&key, &authority.0).unwrap();
        let server = serve(certificate.der().clone(), &key);
        let outcome = connect(&UpstreamTls::new(), &options, &endpoint, &server).await;
        let error = outcome.client.err().map(|error| error.to_string());
        let is_so = match (&error, expected) {
            (None, None) => true,
            (Some(error), Some(expected)) => error.contains(expected),
            _ => false,
        };
        assert!(is_so, "{years:?}: {error:?}, not {expected:?}");
    }
}

#[test]
fn one_configuration_serves_all_names_of_one_upstream_on_the_same_terms() {
    let tls = UpstreamTls::new();
    let options = |sni: &str, insecure| TlsOptions {
        sni: Some(sni.into()),
        ca: None,
        insecure,
        client: None,
    };
    let endpoint = tcp("10.0.0.7:443", None);
    let config = |sni: &str| tls.client_config(&options(sni, true), &endpoint).unwrap();
    let (first, second) = (config("a.example"), config("b.example"));
    assert!(Arc::ptr_eq(&first, &second));
}

#[test]
fn configurations_are_bounded_and_the_one_unused_longest_goes() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::named("ours");
    let (tls, endpoint) = (UpstreamTls::new(), tcp("10.0.0.7:443", None));
    let mut options = Vec::new();
    for index in 0..=LIMIT {
        let ca = authority.file(dir.path(), &format!("{index}.pem"));
        options.push(TlsOptions {
            ca: Some(ca),
            ..TlsOptions::default()
        });
        tls.client_config(&options[index], &endpoint).unwrap();
        // The first stays in use, so the second is the one to go.
        tls.client_config(&options[0], &endpoint).unwrap();
    }
    let state = tls.state.lock().unwrap();
    assert_eq!(state.configs.len(), LIMIT);
    assert!(state.configs.contains_key(&Terms::of(&options[0])));
    assert!(!state.configs.contains_key(&Terms::of(&options[1])));
}

#[test]
fn preloaded_authorities_are_not_read_again() {
    let tls = UpstreamTls::new();
    tls.preload();
    let roots = || {
        let mut state = tls.state.lock().unwrap();
        state.system_roots().map_err(|error| error.to_string())
    };
    let (first, second) = (roots(), roots());
    match (&first, &second) {
        (Ok(first), Ok(second)) => assert!(Arc::ptr_eq(first, second)),
        // Nor is a failure, which every dial would repeat.
        (first, second) => assert_eq!(first.as_ref().err(), second.as_ref().err()),
    }
    let mut state = tls.state.lock().unwrap();
    let read = state.system_roots.as_ref().unwrap().read;
    assert!(state.system_roots().is_ok() || read.elapsed() < RECHECK);
    assert_eq!(state.system_roots.as_ref().unwrap().read, read);
}
