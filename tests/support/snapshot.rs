//! Instances with a snapshot file, and what is said of it.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::{
    etcd::EtcdCluster,
    load::ask,
    sample::Sample,
    waypost::{Builder, Waypost, eventually},
};

/// etcd, an upstream, and a place for the file.
pub struct Place {
    pub etcd: EtcdCluster,
    pub sample: Sample,
    pub directory: TempDir,
}

impl Place {
    pub async fn new() -> Self {
        Self {
            etcd: EtcdCluster::start(1).await,
            sample: Sample::start().await,
            directory: tempfile::tempdir().unwrap(),
        }
    }

    pub fn file(&self) -> PathBuf {
        self.directory.path().join("snapshot")
    }

    pub fn builder(&self) -> Builder {
        self.builder_at(&self.file())
    }

    pub fn builder_at(&self, file: &Path) -> Builder {
        let builder = Waypost::builder().etcd(&self.etcd.endpoints());
        builder.flag("--snapshot", file.display())
    }

    pub fn key(&self, host: &str) -> String {
        format!("/hosts/{host}/{}", self.sample)
    }

    pub async fn put(&self, host: &str, value: &str) -> i64 {
        self.etcd.put(&self.key(host), value).await
    }

    /// Leaves a file with a.test and b.test, of a cluster that is wiped since and has c.test alone: the revisions of
    /// the file and of that.
    pub async fn wiped_since(&mut self) -> (i64, i64) {
        self.put("a.test", "").await;
        let revision = self.put("b.test", "").await;
        let first = self.builder().start().await;
        until_written(&first, revision).await;
        end(first).await;
        self.etcd.wipe();
        self.etcd.restart(0).await;
        (revision, self.put("c.test", "").await)
    }
}

pub async fn status(instance: &Waypost, host: &str) -> u16 {
    ask(instance.address(), host, "/").await.status().as_u16()
}

pub async fn until_status(instance: &Waypost, host: &str, code: u16) {
    let what = format!("{host} answers {code}");
    eventually(&what, async || status(instance, host).await == code).await;
}

pub async fn until_written(instance: &Waypost, revision: i64) {
    eventually("it is on disk", async || {
        instance.metric("waypost_snapshot_revision", &[]).await >= revision as f64
    })
    .await;
}

pub async fn end(mut instance: Waypost) {
    instance.signal("INT");
    assert_eq!(instance.wait_exit().await, Some(0));
}
