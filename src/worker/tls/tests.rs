//! The store as a whole: what starts, what a reload changes, and real handshakes.

use std::{fs, time::Duration};

use rustls::{
    ALL_VERSIONS, ClientConfig, HandshakeKind, RootCertStore, SupportedProtocolVersion,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tempfile::{TempDir, tempdir};
use tokio::io::AsyncReadExt;
use tokio_rustls::{TlsConnector, client};

use super::{testing::*, *};

/// The chain served for a name, as a client would get it.
fn served(store: &TlsStore, name: &str) -> Option<Vec<CertificateDer<'static>>> {
    let picked = store.resolver.pick(Some(name))?;
    Some(picked.cert.clone())
}

fn chain(files: &CertificateFiles) -> Vec<CertificateDer<'static>> {
    vec![CertificateDer::from_pem_file(&files.certificate).unwrap()]
}

/// A listener with a pair of its own.
fn of_its_own(files: &CertificateFiles) -> ListenerTls {
    ListenerTls {
        certificate: Some(files.clone()),
        ..ListenerTls::default()
    }
}

fn load_error(listener: Option<&CertificateFiles>, tls_dir: Option<&Path>) -> String {
    let listener = listener.map(of_its_own).unwrap_or_default();
    format!("{:#}", TlsStore::load(&listener, tls_dir).unwrap_err())
}

#[test]
fn a_start_without_any_usable_certificate_says_why() {
    let dir = tempdir().unwrap();
    assert!(load_error(None, None).contains("give it cert=FILE&key=FILE, or use --tls-dir"));
    assert!(load_error(None, Some(dir.path())).contains("it holds no NAME.crt"));

    let files = write_pair(dir.path(), "half", &["a.example"]);
    fs::remove_file(&files.key).unwrap();
    let error = load_error(None, Some(dir.path()));
    assert!(error.contains("half.crt has no half.key"), "{error}");
    let error = load_error(Some(&files), None);
    assert!(error.contains("half.key"), "{error}");
    let error = load_error(None, Some(&dir.path().join("absent")));
    assert!(
        error.contains("--tls-dir") && error.contains("No such file"),
        "{error}"
    );
}

#[test]
fn a_broken_pair_of_the_directory_does_not_block_the_others() {
    let dir = tempdir().unwrap();
    let good = write_pair(dir.path(), "good", &["good.example"]);
    let half = write_pair(dir.path(), "half", &["half.example"]);
    fs::remove_file(half.certificate).unwrap();
    write_pair(dir.path(), "broken", &["broken.example"]);
    fs::write(dir.path().join("broken.crt"), "nonsense").unwrap();
    write_pair(dir.path(), "nameless", &["10.0.0.1"]);

    let store = TlsStore::load(&ListenerTls::default(), Some(dir.path())).unwrap();
    assert_eq!(store.certificates().all().count(), 1);
    assert_eq!(served(&store, "good.example"), Some(chain(&good)));
    let problems = store.reload().problems.join("\n");
    for problem in [
        "broken.crt holds no certificate",
        "half.key has no half.crt",
        "nameless.crt names no host",
    ] {
        assert!(problems.contains(problem), "{problems:?} lacks {problem:?}");
    }
}

#[test]
fn a_reload_swaps_what_changed_and_keeps_what_broke() {
    let (own, dir) = (tempdir().unwrap(), tempdir().unwrap());
    let listener = write_pair(own.path(), "own", &["own.example"]);
    let a = write_pair(dir.path(), "a", &["a.example"]);
    let b = write_pair(dir.path(), "b", &["b.example"]);
    let store = TlsStore::load(&of_its_own(&listener), Some(dir.path())).unwrap();
    let config = store.server_config();

    let report = store.reload();
    assert!(report.changed.is_empty() && report.removed.is_empty() && report.problems.is_empty());

    // One renewed, one added, one removed.
    write_pair(dir.path(), "a", &["a.example"]);
    write_pair(dir.path(), "c", &["c.example"]);
    fs::remove_file(&b.certificate).unwrap();
    fs::remove_file(&b.key).unwrap();
    let report = store.reload();
    assert_eq!(report.changed.len(), 2);
    assert_eq!(report.removed, [b.certificate]);
    assert_eq!(served(&store, "a.example"), Some(chain(&a)));
    assert_eq!(served(&store, "b.example"), Some(chain(&listener)));

    // Broken files: their certificates stay, the others move on.
    let (old_listener, old_a) = (chain(&listener), chain(&a));
    fs::write(&listener.key, "").unwrap();
    fs::remove_file(&a.key).unwrap();
    let c = write_pair(dir.path(), "c", &["c.example"]);
    let report = store.reload();
    assert_eq!(report.problems.len(), 2, "{:?}", report.problems);
    assert_eq!(served(&store, "elsewhere"), Some(old_listener));
    assert_eq!(served(&store, "a.example"), Some(old_a));
    assert_eq!(served(&store, "c.example"), Some(chain(&c)));
    assert!(
        Arc::ptr_eq(&config, &store.server_config()),
        "tickets stay valid"
    );
}

#[test]
fn the_last_certificate_is_not_reloaded_away() {
    let dir = tempdir().unwrap();
    let files = write_pair(dir.path(), "a", &["a.example"]);
    let old = chain(&files);
    let store = TlsStore::load(&ListenerTls::default(), Some(dir.path())).unwrap();
    fs::remove_file(files.certificate).unwrap();
    fs::remove_file(files.key).unwrap();
    let stores = [Arc::new(store)];
    let error = format!("{:#}", reload_all(&stores).unwrap_err());
    assert!(error.contains("no certificate is left"), "{error}");
    assert_eq!(served(&stores[0], "a.example"), Some(old.clone()));
    dir.close().unwrap();
    let error = format!("{:#}", reload_all(&stores).unwrap_err());
    assert!(error.contains("cannot read the directory"), "{error}");
    assert_eq!(served(&stores[0], "a.example"), Some(old));
}

/// Waits until the name is served with the chain of the file as it is now.
async fn until_served(store: &TlsStore, name: &str, files: &CertificateFiles) {
    // Far above the debounce, and below the 10 s of the poll: it is the events that are tested.
    let arrived = tokio::time::timeout(Duration::from_secs(8), async {
        while served(store, name) != Some(chain(files)) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    arrived.await.expect("the change is seen");
}

#[tokio::test]
async fn the_watcher_sees_renames_new_pairs_and_turned_symlinks() {
    let (own, dir) = (tempdir().unwrap(), tempdir().unwrap());
    // As Kubernetes mounts a secret: tls.crt -> ..data/tls.crt, ..data -> ..1
    let release = |name: &str| {
        let path = own.path().join(name);
        fs::create_dir(&path).unwrap();
        write_pair(&path, "tls", &["own.example"]);
        let draft = own.path().join("..draft");
        std::os::unix::fs::symlink(name, &draft).unwrap();
        fs::rename(draft, own.path().join("..data")).unwrap();
    };
    release("..1");
    let listener = CertificateFiles {
        certificate: own.path().join("tls.crt"),
        key: own.path().join("tls.key"),
    };
    std::os::unix::fs::symlink("..data/tls.crt", &listener.certificate).unwrap();
    std::os::unix::fs::symlink("..data/tls.key", &listener.key).unwrap();
    let a = write_pair(dir.path(), "a", &["a.example"]);

    let store = Arc::new(TlsStore::load(&of_its_own(&listener), Some(dir.path())).unwrap());
    let watching = tokio::spawn(watch(vec![store.clone()]));

    write_pair(dir.path(), "a", &["a.example"]);
    until_served(&store, "a.example", &a).await;
    release("..2");
    until_served(&store, "own.example", &listener).await;
    let b = write_pair(dir.path(), "b", &["b.example"]);
    until_served(&store, "b.example", &b).await;

    // A broken file stops neither its own old certificate nor later changes of others.
    let old_a = chain(&a);
    fs::write(&a.certificate, "nonsense").unwrap();
    write_pair(dir.path(), "b", &["b.example"]);
    until_served(&store, "b.example", &b).await;
    assert_eq!(served(&store, "a.example"), Some(old_a));
    watching.abort();
}

/// A client that trusts these certificates and resumes where it can.
fn client(trusted: &[&CertificateFiles], alpn: &[&str], versions: Versions) -> Arc<ClientConfig> {
    client_of(provider(), trusted, alpn, versions)
}

fn client_of(
    provider: Arc<CryptoProvider>,
    trusted: &[&CertificateFiles],
    alpn: &[&str],
    versions: Versions,
) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    for files in trusted {
        roots.add(chain(files).remove(0)).unwrap();
    }
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    Arc::new(config)
}

type Versions<'a> = &'a [&'static SupportedProtocolVersion];

type ClientStream = client::TlsStream<tokio::io::DuplexStream>;

/// One handshake and one byte each way, so that tickets arrive.
async fn connect(
    store: &TlsStore,
    client: &Arc<ClientConfig>,
    name: &str,
) -> (io::Result<ClientStream>, io::Result<()>) {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let serve = async {
        let mut stream = store.accept(far).await?;
        stream.write_all(b"x").await?;
        stream.flush().await
    };
    let connect = async {
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let connector = TlsConnector::from(client.clone());
        let mut stream = connector.connect(name, near).await?;
        stream.read_u8().await?;
        Ok(stream)
    };
    tokio::join!(connect, serve)
}

fn directory_with(names: &[&str]) -> (TempDir, Vec<CertificateFiles>) {
    let dir = tempdir().unwrap();
    let files = names
        .iter()
        .map(|name| write_pair(dir.path(), name, &[name]));
    let files = files.collect();
    (dir, files)
}

#[tokio::test]
async fn alpn_prefers_h2_and_a_client_without_it_is_served() {
    let (dir, files) = directory_with(&["a.example"]);
    let store = TlsStore::load(&ListenerTls::default(), Some(dir.path())).unwrap();
    let cases: [(&[&str], Option<&[u8]>); 3] = [
        (&["http/1.1", "h2"], Some(b"h2")),
        (&["http/1.1"], Some(b"http/1.1")),
        (&[], None),
    ];
    for (offered, expected) in cases {
        let (stream, _) = connect(
            &store,
            &client(&[&files[0]], offered, ALL_VERSIONS),
            "a.example",
        )
        .await;
        let stream = stream.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), expected, "{offered:?}");
    }
}

#[tokio::test]
async fn sessions_resume_with_either_version_and_across_a_reload() {
    for version in ALL_VERSIONS {
        let (dir, files) = directory_with(&["a.example", "b.example"]);
        let store = TlsStore::load(&ListenerTls::default(), Some(dir.path())).unwrap();
        let client = client(&[&files[0]], &[], &[version]);
        let kind = |stream: io::Result<ClientStream>| stream.unwrap().get_ref().1.handshake_kind();

        let (first, _) = connect(&store, &client, "a.example").await;
        assert_eq!(kind(first), Some(HandshakeKind::Full), "{version:?}");
        write_pair(dir.path(), "b.example", &["b.example"]);
        assert_eq!(store.reload().changed.len(), 1);
        let (second, _) = connect(&store, &client, "a.example").await;
        assert_eq!(kind(second), Some(HandshakeKind::Resumed), "{version:?}");

        // Another store is another listener: its ticket keys are its own.
        let other = TlsStore::load(&ListenerTls::default(), Some(dir.path())).unwrap();
        let (third, _) = connect(&other, &client, "a.example").await;
        assert_eq!(kind(third), Some(HandshakeKind::Full), "{version:?}");
    }
}

#[tokio::test]
async fn a_name_without_a_certificate_is_refused_as_unrecognised() {
    let (dir, files) = directory_with(&["a.example"]);
    let store = TlsStore::load(&ListenerTls::default(), Some(dir.path())).unwrap();
    let client = client(&[&files[0]], &[], ALL_VERSIONS);
    // A client that connects to an address names nothing.
    for (name, said) in [
        ("b.example", "no certificate for b.example"),
        (
            "127.0.0.1",
            "no certificate for a client that names no host",
        ),
    ] {
        let (near, far) = connect(&store, &client, name).await;
        let near = near.unwrap_err().to_string();
        assert!(near.contains("UnrecognisedName"), "{near}");
        assert_eq!(far.unwrap_err().to_string(), said);
    }
}

#[tokio::test]
async fn the_listener_answers_with_its_own_for_other_names() {
    let (dir, files) = directory_with(&["a.example"]);
    let own = tempdir().unwrap();
    let listener = write_pair(own.path(), "own", &["own.example", "127.0.0.1"]);
    let store = TlsStore::load(&of_its_own(&listener), Some(dir.path())).unwrap();
    for (name, trusted) in [
        ("a.example", &files[0]),
        ("own.example", &listener),
        ("127.0.0.1", &listener),
    ] {
        let (near, far) = connect(&store, &client(&[trusted], &[], ALL_VERSIONS), name).await;
        assert!(near.is_ok() && far.is_ok(), "{name}");
    }
}

#[tokio::test]
async fn aes_128_is_chosen_unless_the_client_would_rather_not_do_aes() {
    use rustls::CipherSuite::{
        TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256,
    };
    let (dir, files) = directory_with(&["a.example"]);
    let store = TlsStore::load(&ListenerTls::default(), Some(dir.path())).unwrap();
    for (first, chosen) in [
        (TLS13_AES_256_GCM_SHA384, TLS13_AES_128_GCM_SHA256),
        (TLS13_AES_128_GCM_SHA256, TLS13_AES_128_GCM_SHA256),
        (
            TLS13_CHACHA20_POLY1305_SHA256,
            TLS13_CHACHA20_POLY1305_SHA256,
        ),
    ] {
        let mut provider = (*provider()).clone();
        provider
            .cipher_suites
            .sort_by_key(|suite| suite.suite() != first);
        let client = client_of(Arc::new(provider), &[&files[0]], &[], ALL_VERSIONS);
        let (stream, served) = connect(&store, &client, "a.example").await;
        served.unwrap();
        let stream = stream.unwrap();
        let suite = stream.get_ref().1.negotiated_cipher_suite().unwrap();
        assert_eq!(suite.suite(), chosen, "{first:?} first");
    }
}
