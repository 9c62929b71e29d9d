//! A TCP link to a server that a test can cut and mend, while others go on using the server.

use std::net::SocketAddr;

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};

/// Forwards connections while it is whole; cut, it breaks those there are and refuses to carry new ones.
pub struct Link {
    address: SocketAddr,
    /// Where to; `None` while cut.
    target: watch::Sender<Option<String>>,
    task: JoinHandle<()>,
}

impl Link {
    /// A whole link to this URL's host and port.
    pub async fn to(url: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let target = watch::Sender::new(Some(authority(url)));
        Self {
            address: listener.local_addr().expect("its address"),
            task: tokio::spawn(accept(listener, target.clone())),
            target,
        }
    }

    /// Where to reach the server through it.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn cut(&self) {
        self.target.send_replace(None);
    }

    /// Whole again; the server may be another one than before.
    pub fn mend(&self, url: &str) {
        self.target.send_replace(Some(authority(url)));
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn authority(url: &str) -> String {
    url.trim_start_matches("http://").to_owned()
}

async fn accept(listener: TcpListener, target: watch::Sender<Option<String>>) {
    while let Ok((mut client, _)) = listener.accept().await {
        let mut target = target.subscribe();
        let Some(server) = target.borrow_and_update().clone() else {
            continue;
        };
        tokio::spawn(async move {
            let Ok(mut server) = TcpStream::connect(server).await else {
                return;
            };
            tokio::select! {
                _ = copy_bidirectional(&mut client, &mut server) => {}
                _ = target.changed() => {}
            }
        });
    }
}
