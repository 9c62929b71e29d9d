//! Real handshakes with a server, and what the store of configurations keeps.

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd,
};
use rustls::{HandshakeKind, ServerConfig, pki_types::PrivateKeyDer};
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
async fn sessions_resume_but_never_from_an_unverified_one() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::named("ours");
    let server = authority.server(&["app.internal"]);
    let tls = UpstreamTls::new();
    let endpoint = tcp("10.0.0.7:443", Some("app.internal"));
    let insecure = TlsOptions {
        insecure: true,
        ..TlsOptions::default()
    };
    let verified = TlsOptions {
        ca: Some(authority.file(dir.path(), "ca.pem")),
        ..TlsOptions::default()
    };
    for (options, expected) in [
        (&insecure, HandshakeKind::Full),
        (&insecure, HandshakeKind::Resumed),
        (&verified, HandshakeKind::Full),
        (&verified, HandshakeKind::Resumed),
    ] {
        let outcome = connect(&tls, options, &endpoint, &server).await;
        let kind = outcome.client.unwrap().get_ref().1.handshake_kind();
        assert_eq!(kind, Some(expected), "{options:?}");
    }
}

#[test]
fn one_configuration_serves_all_names_of_one_trust() {
    let tls = UpstreamTls::new();
    let options = |sni: &str, insecure| TlsOptions {
        sni: Some(sni.into()),
        ca: None,
        insecure,
    };
    let first = tls.client_config(&options("a.example", true)).unwrap();
    let second = tls.client_config(&options("b.example", true)).unwrap();
    assert!(Arc::ptr_eq(&first, &second));
}

#[test]
fn a_replaced_file_of_authorities_is_read_again_and_a_broken_one_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = Authority::named("ours").file(dir.path(), "ca.pem");
    let options = TlsOptions {
        ca: Some(path.clone()),
        ..TlsOptions::default()
    };
    let tls = UpstreamTls::new();
    // As if the file had been read, and last looked at, long ago.
    let age = || {
        let mut state = tls.state.lock().unwrap();
        let entry = state.configs.values_mut().next().unwrap();
        entry.checked = entry.checked.checked_sub(RECHECK).unwrap();
        entry.modified = Some(SystemTime::UNIX_EPOCH);
    };
    let first = tls.client_config(&options).unwrap();
    assert!(Arc::ptr_eq(&first, &tls.client_config(&options).unwrap()));
    age();
    let second = tls.client_config(&options).unwrap();
    assert!(!Arc::ptr_eq(&first, &second));
    std::fs::write(&*path, "nonsense").unwrap();
    age();
    assert!(Arc::ptr_eq(&second, &tls.client_config(&options).unwrap()));
}

#[test]
fn configurations_are_bounded_and_the_one_unused_longest_goes() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::named("ours");
    let tls = UpstreamTls::new();
    let mut options = Vec::new();
    for index in 0..=LIMIT {
        let ca = authority.file(dir.path(), &format!("{index}.pem"));
        options.push(TlsOptions {
            ca: Some(ca),
            ..TlsOptions::default()
        });
        tls.client_config(&options[index]).unwrap();
        // The first stays in use, so the second is the one to go.
        tls.client_config(&options[0]).unwrap();
    }
    let state = tls.state.lock().unwrap();
    assert_eq!(state.configs.len(), LIMIT);
    assert!(state.configs.contains_key(&Trust::of(&options[0])));
    assert!(!state.configs.contains_key(&Trust::of(&options[1])));
}

#[test]
fn errors_name_the_file_or_the_name() {
    let dir = tempfile::tempdir().unwrap();
    let empty = dir.path().join("empty.pem");
    std::fs::write(&empty, "").unwrap();
    let empty: Box<str> = empty.to_str().unwrap().into();
    let tls = UpstreamTls::new();
    let ip = tcp("10.0.0.7:443", None);
    let unix = Endpoint::Unix("/run/app.sock".into());
    let cases = [
        (
            Some("/nowhere/ca.pem"),
            None,
            &ip,
            "cannot read /nowhere/ca.pem",
        ),
        (
            Some(&*empty),
            None,
            &ip,
            "empty.pem (\"ca\") is no PEM file",
        ),
        (Some("/dev/zero"), None, &ip, "it is no regular file"),
        (Some("/"), None, &ip, "it is no regular file"),
        (None, Some("not a name"), &ip, "not a name is no host name"),
        (None, None, &unix, "unix:%2Frun%2Fapp.sock is no host name"),
    ];
    for (ca, sni, endpoint, expected) in cases {
        let options = TlsOptions {
            sni: sni.map(Into::into),
            ca: ca.map(Into::into),
            insecure: false,
        };
        let Err(error) = tls.connector(&options, endpoint) else {
            panic!("{expected:?} was no error");
        };
        assert!(error.to_string().contains(expected), "{error}");
    }
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
