//! Read buffers, handed from connection to connection within a worker.
//!
//! A connection holds one only while bytes of a response are in it. So a thousand waiting connections need no memory,
//! and the next response is read into lines that are still in the cache.

use std::cell::RefCell;

use bytes::BytesMut;

use super::MOST_READ;

/// The most buffers that wait for use.
const MOST_SPARE: usize = 64;

thread_local! {
    static SPARE: RefCell<Vec<BytesMut>> = const { RefCell::new(Vec::new()) };
}

/// An empty buffer, the one used last if there is one; its room may be less than is wanted.
pub(super) fn take() -> BytesMut {
    SPARE.with_borrow_mut(Vec::pop).unwrap_or_default()
}

/// Keeps an empty buffer for the next response. Pieces split off it may still be on their way to a client: reserving
/// room takes it back whole once they are gone, and makes a new one until then.
pub(super) fn give(buffer: BytesMut) {
    debug_assert!(buffer.is_empty());
    if buffer.capacity() == 0 || buffer.capacity() > 2 * MOST_READ {
        return;
    }
    SPARE.with_borrow_mut(|spare| {
        if spare.len() < MOST_SPARE {
            spare.push(buffer);
        }
    });
}
