//! One connection to whichever member answers, shared by those of a process who have something to tell the fleet.

use std::sync::Arc;

use etcd_client::{ResponseHeader, TxnResponse};
use tokio::sync::Mutex;

use crate::{
    route::Revision,
    source::etcd::{Connection, Connector, fault::Fault, transport::Connect},
};

/// The way to etcd. After a fault the next call goes to the next member, over a connection that is logged in afresh.
pub struct Reach {
    connector: Connector,
    current: Mutex<Current>,
}

struct Current {
    member: usize,
    connection: Option<Arc<Connection>>,
}

impl Reach {
    /// Connects to nothing yet; the first member is one at random.
    pub fn new(connector: Connector) -> Arc<Self> {
        let member = rand::random_range(0..connector.endpoints().len().max(1));
        Self::beginning(connector, member, None)
    }

    /// Goes on over a connection that was made to find out who answers.
    pub fn over(connector: Connector, connection: Connection) -> Arc<Self> {
        Self::beginning(connector, 0, Some(Arc::new(connection)))
    }

    fn beginning(
        connector: Connector,
        member: usize,
        connection: Option<Arc<Connection>>,
    ) -> Arc<Self> {
        Arc::new(Self {
            connector,
            current: Mutex::new(Current { member, connection }),
        })
    }

    /// Makes one attempt at a call; how often and when to try again is the caller's to say.
    ///
    /// # Errors
    ///
    /// What came of it. Unless it says that a lease is lost, the connection is given up.
    pub async fn call<T>(
        &self,
        call: impl AsyncFnOnce(&Connection) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        let connection = self.connection().await?;
        let outcome = call(&connection).await;
        if let Err(fault) = &outcome
            && !fault.is_lost_lease()
        {
            self.leave(&connection).await;
        }
        outcome
    }

    async fn connection(&self) -> Result<Arc<Connection>, Fault> {
        let mut current = self.current.lock().await;
        if let Some(connection) = &current.connection {
            return Ok(connection.clone());
        }
        let endpoints = self.connector.endpoints();
        let endpoint = &endpoints[current.member % endpoints.len()];
        match self.connector.connect(endpoint).await {
            Ok(connection) => {
                let connection = Arc::new(connection);
                current.connection = Some(connection.clone());
                Ok(connection)
            }
            Err(fault) => {
                current.member += 1;
                Err(fault)
            }
        }
    }

    /// Unless somebody else has left it already.
    async fn leave(&self, failed: &Arc<Connection>) {
        let mut current = self.current.lock().await;
        let is_current = |connection: &Arc<Connection>| Arc::ptr_eq(connection, failed);
        if current.connection.as_ref().is_some_and(is_current) {
            current.connection = None;
            current.member += 1;
        }
    }
}

/// The revision of the store after a transaction.
pub(super) fn revision(answer: &TxnResponse) -> Revision {
    answer.header().map_or(0, ResponseHeader::revision)
}
