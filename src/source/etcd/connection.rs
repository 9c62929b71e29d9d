//! One connection to one member: how it is made, and the calls that the source makes, each bounded in time and size.

use std::time::Duration;

use etcd_client::{
    Client, ConnectOptions, GetOptions, KvClient, Txn, TxnResponse, WatchOptions, WatchStream,
};

use super::{
    assembly::Response,
    credentials::{read_password, tls_options},
    fault::Fault,
    identity::{Testimony, Witness},
    reading::{Content, Page, PageRequest},
    transport::{Connect, Responses, Transport, Watch},
};
use crate::{
    config::{EtcdConfig, etcd::is_https},
    route::Revision,
    source::{Change, Entry},
};

/// For every call, and for a watch to be created.
pub const CALL_TIME: Duration = Duration::from_secs(3);
/// For a command to find an endpoint that answers.
const ANSWER_TIME: Duration = Duration::from_secs(4);
/// Below 5 s etcd answers with GOAWAY.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_TIME: Duration = Duration::from_secs(5);
/// The default of 4 MiB makes a resume over more than that fail for ever.
pub(super) const MESSAGE_BYTES: usize = 64 << 20;
/// The most of a response that is not in fragments, which etcd makes of up to a thousand revisions, so that catching up
/// takes little memory. What is more comes in fragments, and costs etcd little as long as single changes are large.
const WHOLE_BYTES: usize = 16 << 20;

/// Makes connections.
#[derive(Clone, Debug)]
pub struct Connector {
    config: EtcdConfig,
    /// The most that a response of a watch may have.
    response_bytes: usize,
}

impl Connector {
    /// Checks what can be checked without etcd.
    ///
    /// # Errors
    ///
    /// Names the certificate file that can't be used.
    pub fn new(config: EtcdConfig) -> anyhow::Result<Self> {
        anyhow::ensure!(!config.endpoints.is_empty(), "--etcd names no endpoint");
        let connector = Self {
            config,
            response_bytes: MESSAGE_BYTES,
        };
        if connector.endpoints().iter().any(|url| is_https(url)) {
            tls_options(&connector.config)?;
        }
        Ok(connector)
    }

    /// No response of a watch may be larger than this.
    pub(super) fn limit_responses(&mut self, bytes: usize) {
        self.response_bytes = bytes;
    }

    /// A connection to the first endpoint that answers, for a command that a person waits for: all of them together
    /// have 4 s.
    ///
    /// # Errors
    ///
    /// Names every endpoint and why it didn't answer.
    pub async fn answering(&self, prefix: &str) -> anyhow::Result<Connection> {
        let each = ANSWER_TIME / u32::try_from(self.endpoints().len()).unwrap_or(u32::MAX);
        let mut failures = Vec::new();
        for endpoint in self.endpoints() {
            let attempt = async {
                let connection = self.connect(endpoint).await?;
                connection.answers(prefix).await.map(|()| connection)
            };
            match tokio::time::timeout(each, attempt).await {
                Ok(Ok(connection)) => return Ok(connection),
                Ok(Err(fault)) => failures.push(format!("{endpoint}: {fault}")),
                Err(_) => failures.push(format!(
                    "{endpoint}: no answer within {:.1} s",
                    each.as_secs_f64()
                )),
            }
        }
        anyhow::bail!(
            "etcd does not answer: {} (name the endpoints with --etcd)",
            failures.join("; ")
        )
    }

    async fn connect_with(
        &self,
        endpoint: &str,
        options: ConnectOptions,
    ) -> Result<Connection, Fault> {
        let client = bounded("connecting", Client::connect([endpoint], Some(options))).await?;
        let kv = client.kv_client().max_decoding_message_size(MESSAGE_BYTES);
        Ok(Connection {
            client,
            kv,
            response_bytes: self.response_bytes,
        })
    }
}

impl Connect for Connector {
    type Transport = Connection;

    fn endpoints(&self) -> &[String] {
        &self.config.endpoints
    }

    /// A client of its own for this endpoint, logged in: password and certificates are read anew, so that they can be
    /// rotated. Without a login nothing is sent yet.
    async fn connect(&self, endpoint: &str) -> Result<Connection, Fault> {
        let mut options = ConnectOptions::new()
            .with_keep_alive(KEEPALIVE_INTERVAL, KEEPALIVE_TIME)
            .with_keep_alive_while_idle(true)
            .with_connect_timeout(CALL_TIME)
            .with_require_leader(true);
        if is_https(endpoint) {
            let tls =
                tls_options(&self.config).map_err(|error| Fault::Refused(format!("{error:#}")))?;
            options = options.with_tls(tls);
        }
        let Some(user) = &self.config.user else {
            return self.connect_with(endpoint, options).await;
        };
        let password = read_password(&user.password).await?;
        let login = options.clone().with_user(&user.name, password);
        match self.connect_with(endpoint, login).await {
            // As etcdctl does: a login is no error where none is needed.
            Err(fault) if fault.wants_no_login() => self.connect_with(endpoint, options).await,
            result => result,
        }
    }
}

/// The end of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Committed {
    /// Whether its conditions were met.
    pub succeeded: bool,
    /// The store's revision after it.
    pub revision: Revision,
}

/// A client of one member.
pub struct Connection {
    pub(super) client: Client,
    pub(super) kv: KvClient,
    response_bytes: usize,
}

impl Connection {
    /// Commits a transaction.
    ///
    /// # Errors
    ///
    /// What etcd says; if that [leaves it in doubt](Fault::leaves_in_doubt), the transaction may have been committed.
    pub async fn commit(&self, txn: Txn) -> Result<Committed, Fault> {
        let answer = self.txn(txn).await?;
        Ok(Committed {
            succeeded: answer.succeeded(),
            revision: answer
                .header()
                .map_or(0, etcd_client::ResponseHeader::revision),
        })
    }

    /// One transaction, with all that it read.
    ///
    /// # Errors
    ///
    /// As of [`Self::commit`].
    pub async fn txn(&self, txn: Txn) -> Result<TxnResponse, Fault> {
        let mut kv = self.kv.clone();
        bounded("the transaction", kv.txn(txn)).await
    }

    /// Whether anybody is there. A linearizable read; what it finds doesn't matter.
    async fn answers(&self, prefix: &str) -> Result<(), Fault> {
        let mut kv = self.kv.clone();
        let options = GetOptions::new().with_count_only();
        match bounded("connecting", kv.get(prefix, Some(options))).await {
            // Who may write need not have the right to read.
            Err(Fault::Refused(message)) if message.contains("permission denied") => Ok(()),
            answer => answer.map(|_| ()),
        }
    }
}

impl Transport for Connection {
    type Watch = Stream;

    async fn page(&self, request: PageRequest, range_end: &[u8]) -> Result<Page, Fault> {
        let mut options = GetOptions::new()
            .with_range(range_end)
            .with_limit(request.limit);
        if let Some(revision) = request.revision {
            options = options.with_revision(revision);
        }
        options = match request.content {
            Content::Entries => options,
            Content::Keys => options.with_keys_only(),
            Content::Count => options.with_count_only(),
        };
        let mut kv = self.kv.clone();
        let mut answer = bounded("reading the keys", kv.get(request.start, Some(options))).await?;
        let header = answer.take_header().ok_or_else(headless)?;
        Ok(Page {
            more: answer.more(),
            count: answer.count(),
            entries: answer.take_kvs().into_iter().map(entry).collect(),
            cluster_id: header.cluster_id(),
            revision: header.revision(),
        })
    }

    async fn ask(&self, witness: &Witness, revision: Revision) -> Result<Testimony, Fault> {
        let options = GetOptions::new().with_revision(revision);
        let mut kv = self.kv.clone();
        let asked = kv.get(witness.key.clone(), Some(options));
        let mut answer = match bounded("checking our newest key", asked).await {
            Err(Fault::Compacted) => return Ok(Testimony::Compacted),
            Err(Fault::FutureRevision) => return Ok(Testimony::FutureRevision),
            answer => answer?,
        };
        let header = answer.take_header().ok_or_else(headless)?;
        if header.revision() < revision {
            return Ok(Testimony::FutureRevision);
        }
        let found = answer.take_kvs().into_iter().next().map(entry);
        Ok(Testimony::Read {
            cluster_id: header.cluster_id(),
            found: found.as_ref().map(Witness::from),
        })
    }

    async fn put(&self, key: &[u8], value: Vec<u8>) -> Result<Revision, Fault> {
        let mut kv = self.kv.clone();
        let answer = bounded("putting a key", kv.put(key, value, None)).await?;
        Ok(answer.header().ok_or_else(headless)?.revision())
    }

    async fn watch(
        &self,
        prefix: &[u8],
        range_end: &[u8],
        revision: Revision,
        responses: Responses,
    ) -> Result<Stream, Fault> {
        let mut options = WatchOptions::new()
            .with_range(range_end)
            .with_start_revision(revision)
            .with_progress_notify();
        let most = match responses {
            Responses::Whole => self.response_bytes.min(WHOLE_BYTES),
            Responses::InFragments => {
                options = options.with_fragment();
                self.response_bytes
            }
        };
        let mut client = self.client.watch_client().max_decoding_message_size(most);
        let watch = bounded("starting the watch", client.watch(prefix, Some(options))).await?;
        Ok(Stream { watch })
    }
}

/// A watch stream with one watch on it, and now and then a second one.
pub struct Stream {
    watch: WatchStream,
}

impl Watch for Stream {
    async fn response(&mut self) -> Result<Response, Fault> {
        match self.watch.message().await {
            Ok(Some(response)) => Ok(plain(response)),
            Ok(None) => Err(Fault::Unreachable("etcd closed the watch".to_owned())),
            Err(error) => Err(error.into()),
        }
    }

    async fn ask(&mut self, key: &[u8], revision: Revision) -> Result<(), Fault> {
        // What has become of one key since then may be large, too.
        let options = WatchOptions::new()
            .with_start_revision(revision)
            .with_fragment();
        bounded(
            "asking for a second watch",
            self.watch.watch(key, Some(options)),
        )
        .await
    }

    async fn take_back(&mut self, watch_id: i64) -> Result<(), Fault> {
        bounded("taking a second watch back", self.watch.cancel(watch_id)).await
    }
}

/// One past the last key below the prefix.
pub(super) fn range_end(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if let Some(next) = last.checked_add(1) {
            end.push(next);
            return end;
        }
    }
    // Nothing is behind 0xff...: etcd's word for "to the end".
    vec![0]
}

/// Every call to etcd goes through here.
pub(super) async fn bounded<T>(
    what: &str,
    call: impl Future<Output = Result<T, etcd_client::Error>>,
) -> Result<T, Fault> {
    match tokio::time::timeout(CALL_TIME, call).await {
        Ok(result) => result.map_err(Fault::from),
        Err(_) => Err(silent(what)),
    }
}

pub(super) fn silent(what: &str) -> Fault {
    Fault::Silent(format!(
        "{what}: no answer within {} s",
        CALL_TIME.as_secs()
    ))
}

pub(super) fn headless() -> Fault {
    Fault::Unreachable("an answer without a header: is this etcd?".to_owned())
}

pub(super) fn entry(pair: etcd_client::KeyValue) -> Entry {
    Entry {
        mod_revision: pair.mod_revision(),
        lease: pair.lease(),
        key: pair.0.key.into(),
        value: pair.0.value.into(),
    }
}

fn plain(response: etcd_client::WatchResponse) -> Response {
    let response = response.0;
    Response {
        watch_id: response.watch_id,
        created: response.created,
        canceled: response.canceled,
        compact_revision: response.compact_revision,
        cancel_reason: response.cancel_reason,
        fragment: response.fragment,
        cluster_id: (response.header.as_ref()).map_or(0, |header| header.cluster_id),
        revision: response.header.map_or(0, |header| header.revision),
        events: response.events.into_iter().filter_map(change).collect(),
    }
}

/// `None` for a kind of event that etcd doesn't have (yet).
pub(super) fn change(event: etcd_client::proto::PbEvent) -> Option<Change> {
    let pair = event.kv?;
    match event.r#type {
        0 => Some(Change::Put(Entry {
            mod_revision: pair.mod_revision,
            lease: pair.lease,
            key: pair.key.into(),
            value: pair.value.into(),
        })),
        1 => Some(Change::Delete {
            mod_revision: pair.mod_revision,
            key: pair.key.into(),
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_ends_behind_the_prefix() {
        assert_eq!(range_end(b"/hosts/"), b"/hosts0");
        assert_eq!(range_end(b"a\xff\xff"), b"b");
        assert_eq!(range_end(b"\xff"), b"\0");
    }
}
