//! Leases: what is bound to one is gone from etcd once nobody keeps it alive.

use std::time::Duration;

use etcd_client::{Error, LeaseTimeToLiveOptions};

use super::{
    connection::{Connection, bounded},
    fault::Fault,
};

/// The id of a lease; never 0.
pub type Lease = i64;

impl Connection {
    /// A new lease. etcd counts in seconds, and grants at least a few.
    pub async fn grant(&self, ttl: Duration) -> Result<Lease, Fault> {
        let seconds = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX).max(1);
        let mut leases = self.client.lease_client();
        let granted = bounded("asking for a lease", leases.grant(seconds, None)).await?;
        Ok(granted.id())
    }

    /// Begins the lease's time anew. Whether there still is such a lease.
    pub async fn keep_alive(&self, lease: Lease) -> Result<bool, Fault> {
        let mut leases = self.client.lease_client();
        // The client reports `ttl 0`, by which etcd says that the lease is gone, as this error and as no other.
        let beat = async {
            match leases.keep_alive(lease).await {
                Ok(_) => Ok(true),
                Err(Error::LeaseKeepAliveError(_)) => Ok(false),
                Err(error) => Err(error),
            }
        };
        bounded("keeping the lease alive", beat).await
    }

    /// How many keys are bound to it; `None` if there is no such lease.
    pub async fn keys_bound(&self, lease: Lease) -> Result<Option<usize>, Fault> {
        let options = LeaseTimeToLiveOptions::new().with_keys();
        let mut leases = self.client.lease_client();
        let found = bounded(
            "looking at the lease",
            leases.time_to_live(lease, Some(options)),
        )
        .await?;
        Ok((found.ttl() > 0).then(|| found.keys().len()))
    }

    /// Ends a lease, and with it what is bound to it. One that is gone already is no error.
    pub async fn revoke(&self, lease: Lease) -> Result<(), Fault> {
        let mut leases = self.client.lease_client();
        match bounded("ending the lease", leases.revoke(lease)).await {
            Err(fault) if fault.is_lost_lease() => Ok(()),
            answer => answer.map(|_| ()),
        }
    }
}
