//! What the source needs of etcd, and no more: so that it runs over a model of etcd as it does over the network.

use super::{
    assembly::Response,
    fault::Fault,
    identity::{Testimony, Witness},
    reading::{Page, PageRequest},
};
use crate::route::Revision;

/// Makes connections: [`Connector`](super::Connector), or a model of etcd.
pub trait Connect {
    /// What it makes.
    type Transport: Transport;

    /// The URLs of the members; at least one.
    fn endpoints(&self) -> &[String];

    /// A connection to this member.
    fn connect(
        &self,
        endpoint: &str,
    ) -> impl Future<Output = Result<Self::Transport, Fault>> + Send;
}

/// One connection to one member. Every call ends within [`CALL_TIME`](super::connection::CALL_TIME).
pub trait Transport {
    /// A watch over it.
    type Watch: Watch;

    /// One page of the range that ends at `range_end`.
    fn page(
        &self,
        request: PageRequest,
        range_end: &[u8],
    ) -> impl Future<Output = Result<Page, Fault>> + Send;

    /// What this cluster knows of the witness at our revision: one linearizable read.
    fn ask(
        &self,
        witness: &Witness,
        revision: Revision,
    ) -> impl Future<Output = Result<Testimony, Fault>> + Send;

    /// Puts a key; the store's revision after it.
    fn put(
        &self,
        key: &[u8],
        value: Vec<u8>,
    ) -> impl Future<Output = Result<Revision, Fault>> + Send;

    /// Asks for one watch over the range, from `revision` on; whether it stands, its first response says.
    ///
    /// Its responses end in [`Fault::TooLarge`] where etcd sends more at once than we decode.
    fn watch(
        &self,
        prefix: &[u8],
        range_end: &[u8],
        revision: Revision,
        responses: Responses,
    ) -> impl Future<Output = Result<Self::Watch, Fault>> + Send;
}

/// How etcd sends what a late watch missed, of up to a thousand revisions at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Responses {
    /// In one response, however large it is.
    Whole,
    /// In pieces of about the size that a request may have. etcd takes the size of a piece anew with every event that it
    /// adds, so its CPU time grows with the square of their number.
    InFragments,
}

/// A watch stream with one watch on it, and now and then a second one.
pub trait Watch {
    /// The next response, whenever it comes. Dropping the future loses none.
    fn response(&mut self) -> impl Future<Output = Result<Response, Fault>> + Send;

    /// Asks for a second watch over the same stream: on this key, from `revision` on.
    fn ask(
        &mut self,
        key: &[u8],
        revision: Revision,
    ) -> impl Future<Output = Result<(), Fault>> + Send;

    /// Takes a second watch back. Responses to it may still come.
    fn take_back(&mut self, watch_id: i64) -> impl Future<Output = Result<(), Fault>> + Send;
}
