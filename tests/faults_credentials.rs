//! Credentials that change or run out, under a Waypost that serves: it logs in afresh, and no route is lost.

use std::time::{Duration, Instant};

use etcd_client::{Client, ConnectOptions, Permission, PermissionType};
use tempfile::TempDir;

use crate::support::{
    etcd::{EtcdCluster, Options},
    link::Link,
    rig::Rig,
    soak,
    waypost::{Waypost, within},
};

const LIMIT: Duration = Duration::from_secs(30);
/// As the flags below have it.
const TOKEN_LIFE: Duration = Duration::from_secs(1);

/// What etcd gives who logs in: a name that a member remembers, or a text that it has signed.
#[derive(Clone, Copy, Debug)]
enum Tokens {
    Simple,
    Jwt,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expired_simple_token_loses_no_route() {
    expire(Tokens::Simple).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expired_jwt_loses_no_route() {
    expire(Tokens::Jwt).await;
}

/// The watch outlives its token; what is asked afterwards does not.
async fn expire(tokens: Tokens) {
    let guarded = Guarded::by(tokens).await;
    let rig = &guarded.rig;
    let begun = Instant::now();
    let age = (3 * TOKEN_LIFE).max(soak::seconds(0, 100));
    within(age * 2, "the token is too old", async || {
        begun.elapsed() > age
    })
    .await;
    rig.change(LIMIT).await;
    guarded.reconnect().await;
    rig.change(LIMIT).await;
    assert_eq!(rig.reads(), 1, "resumed, not read anew");
    guarded.rig.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_added_under_simple_tokens_loses_no_route() {
    add_users(Tokens::Simple).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_added_under_jwts_loses_no_route() {
    add_users(Tokens::Jwt).await;
}

/// Each change of users makes the tokens that are about "old".
async fn add_users(tokens: Tokens) {
    let guarded = Guarded::by(tokens).await;
    for round in 0..soak::rounds(2, 10) {
        let name = format!("other{round}");
        let mut root = guarded.root.clone();
        as_root("a user is added", async || {
            root.user_add(&*name, "secret", None).await
        })
        .await;
        guarded.rig.change(LIMIT).await;
        guarded.reconnect().await;
        guarded.rig.change(LIMIT).await;
    }
    assert_eq!(guarded.rig.reads(), 1, "resumed, not read anew");
    guarded.rig.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotated_password_loses_no_route() {
    let guarded = Guarded::by(Tokens::Simple).await;
    for round in 0..soak::rounds(2, 10) {
        let password = format!("password {round}");
        let mut root = guarded.root.clone();
        as_root("the password is another one", async || {
            root.user_change_password("waypost", &*password).await
        })
        .await;
        // The old password is in the file still, and what is lost now can't log in again.
        guarded.link.cut();
        guarded.rig.until_stale(LIMIT).await;
        guarded.link.mend(&guarded.rig.etcd.endpoints()[0]);
        within(LIMIT, "it says why", async || {
            let (_, text) = guarded.rig.waypost.admin_get("/readyz").await;
            text.contains("authentication failed")
        })
        .await;
        guarded.write_password(&password);
        guarded.rig.until_fresh(LIMIT).await;
        guarded.rig.change(LIMIT).await;
    }
    assert!(guarded.rig.waypost.log().count("etcd refuses us") > 0);
    assert_eq!(guarded.rig.reads(), 1, "resumed, not read anew");
    guarded.rig.finish().await;
}

/// A Waypost under load whose etcd asks who it is.
struct Guarded {
    rig: Rig,
    link: Link,
    root: Client,
    _files: TempDir,
}

impl Guarded {
    async fn by(tokens: Tokens) -> Self {
        let files = tempfile::tempdir().unwrap();
        let secret = files.path().join("secret");
        std::fs::write(&secret, "a secret of the members' own").unwrap();
        let secret = secret.display();
        let flags = match tokens {
            Tokens::Simple => vec!["--auth-token-ttl=1".to_owned()],
            Tokens::Jwt => vec![format!(
                "--auth-token=jwt,priv-key={secret},pub-key={secret},sign-method=HS256,ttl=1s"
            )],
        };
        let options = Options {
            flags,
            ..Options::default()
        };
        let mut etcd = EtcdCluster::start_with(1, options).await;
        let root = guard(&mut etcd).await;
        std::fs::write(etcd.directory().join("password"), "first").unwrap();
        let link = Link::to(&etcd.endpoints()[0]).await;
        let waypost = Waypost::builder()
            .etcd(&[link.url()])
            .flag("--etcd-user", "waypost")
            .flag(
                "--etcd-password-file",
                etcd.directory().join("password").display(),
            );
        let rig = Rig::over(etcd, waypost).await;
        Self {
            rig,
            link,
            root,
            _files: files,
        }
    }

    fn write_password(&self, password: &str) {
        let file = self.rig.etcd.directory().join("password");
        std::fs::write(file, password).unwrap();
    }

    /// Breaks the connection, and waits until the watch is resumed over a new one.
    async fn reconnect(&self) {
        self.link.cut();
        self.rig.until_stale(LIMIT).await;
        self.link.mend(&self.rig.etcd.endpoints()[0]);
        self.rig.until_fresh(LIMIT).await;
    }
}

/// Repeats what is refused because of its token: the client logs in anew once a call, and on a busy machine the fresh
/// token, too, is old when it is looked at.
async fn as_root<T>(what: &str, mut call: impl AsyncFnMut() -> Result<T, etcd_client::Error>) {
    within(LIMIT, what, async || match call().await {
        Ok(_) => true,
        Err(error) if error.to_string().contains("invalid auth token") => false,
        Err(error) => panic!("{what}: {error}"),
    })
    .await;
}

/// From now on etcd knows root, and a user `waypost` with the password `first` that may use the prefix.
async fn guard(etcd: &mut EtcdCluster) -> Client {
    let mut client = etcd.client();
    client.user_add("root", "root", None).await.unwrap();
    client.role_add("root").await.unwrap();
    client.user_grant_role("root", "root").await.unwrap();
    client.user_add("waypost", "first", None).await.unwrap();
    client.role_add("waypost").await.unwrap();
    client.user_grant_role("waypost", "waypost").await.unwrap();
    for prefix in ["/hosts/", "/waypost/hosts/"] {
        let all = Permission::new(PermissionType::Readwrite, prefix).with_prefix();
        client.role_grant_permission("waypost", all).await.unwrap();
    }
    client.auth_enable().await.unwrap();
    etcd.log_in("root", "root").await;
    let login = ConnectOptions::new()
        .with_user("root", "root")
        .with_auto_token_refresh(true);
    Client::connect(etcd.endpoints(), Some(login))
        .await
        .unwrap()
}
