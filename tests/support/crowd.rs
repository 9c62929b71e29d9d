//! Origins that count how many requests they have at one time.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use super::origin::{Origin, Served};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// How many requests an origin, or several, had at one time.
#[derive(Clone, Default)]
pub struct Crowd(Arc<(AtomicUsize, AtomicUsize)>);

impl Crowd {
    /// One more.
    pub fn enter(&self) {
        let now = self.0.0.fetch_add(1, Ordering::SeqCst) + 1;
        self.0.1.fetch_max(now, Ordering::SeqCst);
    }

    /// One less.
    pub fn leave(&self) {
        self.0.0.fetch_sub(1, Ordering::SeqCst);
    }

    /// The most there were.
    pub fn most(&self) -> usize {
        self.0.1.load(Ordering::SeqCst)
    }
}

/// Takes its time for each request.
pub async fn busy(crowd: &Crowd) -> Origin {
    let crowd = crowd.clone();
    Origin::run(move |mut served: Served| {
        let crowd = crowd.clone();
        async move {
            while served.request().await.is_some() {
                crowd.enter();
                tokio::time::sleep(Duration::from_millis(5)).await;
                // Before the answer, which may bring the next request at once.
                crowd.leave();
                if !served.send(OK).await {
                    return;
                }
            }
        }
    })
    .await
}
