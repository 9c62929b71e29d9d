//! How the source gets in: users, certificates, and an etcd that comes late.

use std::path::Path;

use etcd_client::{Client, Permission, PermissionType};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
};
use waypost::{
    config::{CertificateFiles, EtcdConfig, EtcdUser, Password},
    source::etcd::{Etcd, read_all},
};

use crate::support::{
    etcd::{EtcdCluster, Options, Tls},
    follower::{Follower, PREFIX},
    link::Link,
};

#[tokio::test]
async fn an_etcd_that_comes_late_is_waited_for() {
    let mut etcd = EtcdCluster::start(1).await;
    etcd.put("/hosts/a/a:80", "").await;
    etcd.kill(0);
    let mut follower = Follower::of(etcd.config());
    let status = follower.until_disconnected().await;
    assert_eq!(status.location, etcd.endpoints()[0]);
    assert!(status.stale_since.is_some());
    assert!(status.error.is_some_and(|error| error.contains("refused")));
    assert!(
        read_all(&etcd.config(), PREFIX)
            .await
            .unwrap_err()
            .to_string()
            .contains(&status.location)
    );
    etcd.restart(0).await;
    follower.until_keys(&["/hosts/a/a:80"]).await;
    let status = follower.until_status(|status| status.connected).await;
    assert!(status.error.is_none() && status.stale_since.is_none());
}

#[tokio::test]
async fn a_rotated_password_is_read_at_the_next_login() {
    let etcd = EtcdCluster::start(1).await;
    etcd.put("/hosts/a/a:80", "").await;
    let mut root = enable_authentication(&etcd).await;
    let password = etcd.directory().join("password");
    std::fs::write(&password, "first\n").unwrap();
    let link = Link::to(&etcd.endpoints()[0]).await;
    let mut follower = Follower::of(EtcdConfig {
        endpoints: vec![link.url()],
        user: Some(EtcdUser {
            name: "waypost".to_owned(),
            password: Password::File(password.clone()),
        }),
        ..etcd.config()
    });
    follower.until_keys(&["/hosts/a/a:80"]).await;
    follower.until_connected().await;

    link.cut();
    follower.until_disconnected().await;
    root.user_change_password("waypost", "second")
        .await
        .unwrap();
    root.put("/hosts/b/b:80", "", None).await.unwrap();
    link.mend(&etcd.endpoints()[0]);
    let refused = |error: &Option<String>| {
        error
            .as_ref()
            .is_some_and(|error| error.contains("authentication failed"))
    };
    follower.until_status(|status| refused(&status.error)).await;
    std::fs::write(&password, "second").unwrap();
    follower
        .until_keys(&["/hosts/a/a:80", "/hosts/b/b:80"])
        .await;
}

/// A change of users makes running clients' tokens "old" to etcd.
#[tokio::test]
async fn a_change_of_users_is_survived_and_a_missing_right_is_said() {
    let etcd = EtcdCluster::start(1).await;
    etcd.put("/hosts/a/a:80", "").await;
    let mut root = enable_authentication(&etcd).await;
    let link = Link::to(&etcd.endpoints()[0]).await;
    let mut follower = Follower::of(EtcdConfig {
        endpoints: vec![link.url()],
        user: Some(text_user("waypost", "first")),
        ..etcd.config()
    });
    follower.until_connected().await;
    root.role_revoke_permission(
        "waypost",
        PREFIX,
        Some(etcd_client::RoleRevokePermissionOptions::new().with_prefix()),
    )
    .await
    .unwrap();
    link.cut();
    link.mend(&etcd.endpoints()[0]);
    let denied = |error: &Option<String>| {
        error
            .as_ref()
            .is_some_and(|error| error.contains("permission denied"))
    };
    follower.until_status(|status| denied(&status.error)).await;
    grant(&mut root).await;
    root.put("/hosts/b/b:80", "", None).await.unwrap();
    follower
        .until_keys(&["/hosts/a/a:80", "/hosts/b/b:80"])
        .await;
    follower.until_connected().await;
}

#[tokio::test]
async fn a_user_is_no_error_where_authentication_is_off() {
    let etcd = EtcdCluster::start(1).await;
    let config = EtcdConfig {
        user: Some(text_user("waypost", "first")),
        ..etcd.config()
    };
    read_all(&config, PREFIX)
        .await
        .expect("etcd needs no login");
}

#[tokio::test]
async fn etcd_is_reached_by_tls_with_a_client_certificate() {
    let directory = tempfile::tempdir().unwrap();
    let tls = certificates(directory.path());
    let options = Options {
        tls: Some(tls.clone()),
        ..Options::default()
    };
    let etcd = EtcdCluster::start_with(1, options).await;
    etcd.put("/hosts/a/a:80", "").await;
    let config = EtcdConfig {
        ca: Some(tls.ca.clone()),
        client_certificate: Some(CertificateFiles {
            certificate: tls.client_certificate.clone(),
            key: tls.client_key.clone(),
        }),
        ..etcd.config()
    };
    let mut follower = Follower::of(config.clone());
    follower.until_keys(&["/hosts/a/a:80"]).await;
    follower.until_connected().await;
    let revision = etcd.put("/hosts/b/b:80", "").await;
    assert_eq!(follower.changes().await.1, revision);

    let anonymous = EtcdConfig {
        client_certificate: None,
        ..config.clone()
    };
    Follower::of(anonymous).until_disconnected().await;
    let distrustful = EtcdConfig { ca: None, ..config };
    let error = read_all(&distrustful, PREFIX)
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("UnknownIssuer"), "{error}");
}

#[tokio::test]
async fn an_unusable_certificate_file_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let tls = certificates(directory.path());
    let config = |ca: &Path, certificate: &Path, key: &Path| EtcdConfig {
        endpoints: vec!["https://127.0.0.1:1".to_owned()],
        ca: Some(ca.to_owned()),
        client_certificate: Some(CertificateFiles {
            certificate: certificate.to_owned(),
            key: key.to_owned(),
        }),
        user: None,
    };
    let missing = directory.path().join("missing.pem");
    for (config, flag) in [
        (
            config(&missing, &tls.client_certificate, &tls.client_key),
            "--etcd-ca",
        ),
        (
            config(&tls.client_key, &tls.client_certificate, &tls.client_key),
            "--etcd-ca",
        ),
        (
            config(&tls.ca, &tls.client_key, &tls.client_key),
            "--etcd-cert",
        ),
        (
            config(&tls.ca, &tls.client_certificate, &tls.client_certificate),
            "--etcd-key",
        ),
    ] {
        let error = Etcd::new(config, PREFIX.to_owned()).unwrap_err();
        assert!(format!("{error:#}").starts_with(flag), "{error:#}");
    }
}

/// A user `waypost` with the password `first` that may read and write the prefix; a client of root.
async fn enable_authentication(etcd: &EtcdCluster) -> Client {
    let mut client = etcd.client();
    client.user_add("root", "root", None).await.unwrap();
    client.role_add("root").await.unwrap();
    client.user_grant_role("root", "root").await.unwrap();
    client.user_add("waypost", "first", None).await.unwrap();
    client.role_add("waypost").await.unwrap();
    client.user_grant_role("waypost", "waypost").await.unwrap();
    grant(&mut client).await;
    client.auth_enable().await.unwrap();
    let login = etcd_client::ConnectOptions::new()
        .with_user("root", "root")
        .with_auto_token_refresh(true);
    Client::connect(etcd.endpoints(), Some(login))
        .await
        .unwrap()
}

async fn grant(client: &mut Client) {
    let all = Permission::new(PermissionType::Readwrite, PREFIX).with_prefix();
    client.role_grant_permission("waypost", all).await.unwrap();
}

fn text_user(name: &str, password: &str) -> EtcdUser {
    EtcdUser {
        name: name.to_owned(),
        password: Password::Text(password.to_owned()),
    }
}

/// An authority, a server and a client, as PEM files.
fn certificates(directory: &Path) -> Tls {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let write = |name: &str, pem: String| {
        let path = directory.join(name);
        std::fs::write(&path, pem).unwrap();
        path
    };
    let issue = |name: &str| {
        let names = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
        let mut params = CertificateParams::new(names).unwrap();
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &authority).unwrap();
        (
            write(&format!("{name}.crt"), certificate.pem()),
            write(&format!("{name}.key"), key.serialize_pem()),
        )
    };
    let (server_certificate, server_key) = issue("server");
    let (client_certificate, client_key) = issue("client");
    Tls {
        ca: write("ca.crt", authority.pem()),
        server_certificate,
        server_key,
        client_certificate,
        client_key,
    }
}
