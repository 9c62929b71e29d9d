//! What is asked of etcd before a watch and beside one, in as many calls as it takes.

use std::sync::Arc;

use super::{
    fault::Fault,
    reading::{Everything, Reading},
    transport::{Connect, Transport},
    vigil::{Outcome, Task},
};

/// Asks beside the watch: by this connection, or by a new one if etcd wants a fresh login, as the watch itself needs none
/// once it stands. What to ask by next.
pub(super) async fn ask<C: Connect>(
    connector: &C,
    endpoint: &str,
    connection: Arc<C::Transport>,
    task: Task,
) -> (Outcome, Arc<C::Transport>) {
    let outcome = attempt(&*connection, task.clone()).await;
    if !outcome.wants_fresh_login() {
        return (outcome, connection);
    }
    match connector.connect(endpoint).await {
        Ok(fresh) => (attempt(&fresh, task).await, Arc::new(fresh)),
        Err(_) => (outcome, connection),
    }
}

async fn attempt(connection: &impl Transport, task: Task) -> Outcome {
    match task {
        Task::Put { key, value } => Outcome::Put(connection.put(&key, value).await),
        Task::Page { request, range_end } => {
            Outcome::Page(connection.page(request, &range_end).await)
        }
    }
}

/// Everything below the prefix, in as many pages as it takes.
pub(super) async fn read_everything(
    connection: &impl Transport,
    prefix: &[u8],
    range_end: &[u8],
) -> Result<Everything, Fault> {
    let mut reading = Reading::below(prefix);
    loop {
        match connection.page(reading.request(), range_end).await {
            Ok(page) => {
                if reading.accept(page)? {
                    return Ok(reading.finish());
                }
            }
            Err(Fault::Compacted) if reading.is_pinned() => reading.restart(),
            Err(Fault::TooLarge) if reading.shrink() => {}
            Err(Fault::Silent(_)) if reading.has_begun() && reading.shrink() => {}
            Err(fault) => return Err(fault),
        }
    }
}
