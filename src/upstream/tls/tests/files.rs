//! Files of authorities and of our own pair: replaced, broken, missing.

use super::*;

#[test]
fn a_replaced_file_is_read_again_and_a_broken_one_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::named("ours");
    let ca = authority.file(dir.path(), "ca.pem");
    let client = authority.client(dir.path(), "us");
    let options = TlsOptions {
        ca: Some(ca.clone()),
        client: Some(client.clone()),
        ..TlsOptions::default()
    };
    let endpoint = tcp("10.0.0.7:443", None);
    for (index, path) in [ca, client.cert, client.key].into_iter().enumerate() {
        let tls = UpstreamTls::new();
        let config = || tls.client_config(&options, &endpoint).unwrap();
        // As if the files had been read, and last looked at, long ago.
        let age = || {
            let mut state = tls.state.lock().unwrap();
            let entry = state.configs.values_mut().next().unwrap();
            entry.checked = entry.checked.checked_sub(RECHECK).unwrap();
            entry.modified[index] = Some(SystemTime::UNIX_EPOCH);
        };
        let first = config();
        assert!(Arc::ptr_eq(&first, &config()), "{path}");
        age();
        let second = config();
        assert!(!Arc::ptr_eq(&first, &second), "{path} is another one");
        let good = std::fs::read(&*path).unwrap();
        std::fs::write(&*path, "nonsense").unwrap();
        age();
        assert!(Arc::ptr_eq(&second, &config()), "{path} is broken");
        std::fs::write(&*path, good).unwrap();
    }
}

#[test]
fn a_file_of_no_use_is_read_once_a_second_and_not_by_every_dial() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::named("ours");
    let ca = authority.file(dir.path(), "ca.pem");
    let good = std::fs::read(&*ca).unwrap();
    std::fs::write(&*ca, "nonsense").unwrap();
    let options = TlsOptions {
        ca: Some(ca.clone()),
        ..TlsOptions::default()
    };
    let (tls, endpoint) = (UpstreamTls::new(), tcp("10.0.0.7:443", None));
    let first = tls.client_config(&options, &endpoint).unwrap_err();
    std::fs::write(&*ca, good).unwrap();
    let second = tls.client_config(&options, &endpoint).unwrap_err();
    assert_eq!(first.to_string(), second.to_string());
    let age = || {
        let mut state = tls.state.lock().unwrap();
        let failed = state.failed.values_mut().next().unwrap();
        failed.at = failed.at.checked_sub(REREAD).unwrap();
    };
    age();
    tls.client_config(&options, &endpoint).unwrap();
    assert!(tls.state.lock().unwrap().failed.is_empty());
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
            ..TlsOptions::default()
        };
        let Err(error) = tls.connector(&options, endpoint) else {
            panic!("{expected:?} was no error");
        };
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[test]
fn errors_of_our_own_pair_name_the_file_too() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::named("ours");
    let (us, them) = (
        authority.client(dir.path(), "us"),
        authority.client(dir.path(), "them"),
    );
    let nowhere = "/nowhere/us.pem";
    let pair = |cert: &str, key: &str| ClientFiles {
        cert: cert.into(),
        key: key.into(),
    };
    for (files, expected) in [
        (
            pair(nowhere, &us.key),
            "cannot read /nowhere/us.pem (\"cert\")",
        ),
        (
            pair(&us.cert, nowhere),
            "cannot read /nowhere/us.pem (\"key\")",
        ),
        (
            pair(&us.key, &us.key),
            "us.key (\"cert\") is no PEM file with certificates",
        ),
        (
            pair(&us.cert, &us.cert),
            "us.pem (\"key\") is no PEM file with an unencrypted private key",
        ),
        (pair(&us.cert, &them.key), "are no pair to present"),
    ] {
        let options = TlsOptions {
            insecure: true,
            client: Some(files),
            ..TlsOptions::default()
        };
        let endpoint = tcp("10.0.0.7:443", None);
        let error = UpstreamTls::new().client_config(&options, &endpoint);
        let error = error.expect_err(expected).to_string();
        assert!(error.contains(expected), "{error}");
    }
}
