//! Starting, draining and ending.

use crate::support::waypost::{Waypost, get};

#[tokio::test]
async fn sigint_ends_an_idle_instance_without_the_delay() {
    let mut waypost = Waypost::builder()
        .flag("--drain-delay", "60s")
        .start()
        .await;
    waypost.put("a.test", "127.0.0.1:1", "").await;
    waypost
        .put("a.test", "127.0.0.1:1", "{\"weight\": 3}")
        .await;
    waypost.delete("a.test", "127.0.0.1:1").await;
    assert_eq!(get(waypost.address(), "/").await.unwrap().0, 404);
    waypost.signal("INT");
    assert_eq!(waypost.wait_exit().await, Some(0));
}
