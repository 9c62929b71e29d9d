//! `waypost demo`: everything at once on one machine, with nothing to install.

mod store;
mod upstreams;

use std::{net::SocketAddr, process::ExitCode, time::Duration};

use anyhow::Context;
use tokio::time;

use self::{store::Store, upstreams::Upstreams};
use super::serve;
use crate::{
    config::{Config, ListenerConfig, ServeArgs, listener, values},
    server::{End, Server, Signal},
    telemetry::logging,
};

/// The host that the demo's routes are for.
const HOST: &str = "localhost";

/// Upstreams that are routed to from the start; one more runs, for the reader to add.
const ROUTED: usize = 3;

/// How long the routes may take to arrive.
const PATIENCE: Duration = Duration::from_secs(15);

/// Everything at once on one machine: sample upstreams, routes, a listener and the admin page
///
/// Routes live in a real etcd of its own if an `etcd` is on the PATH, else in a temporary directory. It prints what to
/// try, and takes everything away again when it ends.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  waypost demo
  waypost demo --directory
  waypost demo --listen http://127.0.0.1:8080 --admin 127.0.0.1:9901")]
pub struct Demo {
    /// Keep routes in a directory, even if there is an etcd
    #[arg(long)]
    directory: bool,
    /// Where to accept
    #[arg(
        long,
        value_name = "URL",
        default_value = "http://127.0.0.1:3000",
        value_parser = listener::parse
    )]
    listen: ListenerConfig,
    /// Where the admin API and the status page are
    #[arg(
        long,
        value_name = "ADDR",
        default_value = "127.0.0.1:9900",
        value_parser = values::address
    )]
    admin: SocketAddr,
}

impl Demo {
    /// Runs until Ctrl-C.
    ///
    /// # Errors
    ///
    /// Names the port that is busy, or what else is in the way.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        logging::start("warn", crate::config::LogFormat::Text);
        // A terminal that is closed ends it, too.
        let signals = serve::signals(Signal::Interrupt)?;
        let upstreams = Upstreams::start(ROUTED + 1).await?;
        let store = Store::start(self.directory).await?;
        let (routed, spare) = upstreams.addresses().split_at(ROUTED);
        for upstream in routed {
            store.put(HOST, *upstream).await?;
        }
        let server = Server::start(self.config(&store)?)
            .await
            .context("the demo could not start (--listen and --admin choose other addresses)")?;
        let mut applied = server.live().applied.subscribe();
        let first_table = applied.wait_for(Option::is_some);
        time::timeout(PATIENCE, first_table)
            .await
            .with_context(|| format!("no routes came from {}", store.description()))??;

        let accepting = server.addresses();
        let port = accepting.first().map_or(0, SocketAddr::port);
        let address = server.admin_address();
        let introduction = introduction(&store, routed, spare[0], port, address);
        super::print(&format!("{introduction}\n"))?;
        let end = server.run(signals).await;
        store.stop().await;
        super::print("The demo has ended; nothing of it is left.\n")?;
        Ok(match end {
            End::Finished => ExitCode::SUCCESS,
            End::Cut => ExitCode::FAILURE,
        })
    }

    fn config(&self, store: &Store) -> anyhow::Result<Config> {
        let mut args = ServeArgs::default();
        args.listen = vec![self.listen.clone()];
        args.admin = self.admin;
        args.drain_delay = Duration::ZERO;
        args.drain_timeout = Duration::from_secs(3);
        // A directory that exists, whichever it is: so that no `ETCDCTL_*` variable of the user's is heeded.
        args.hosts_dir = Some(store.hosts());
        let mut config = args.resolve()?;
        config.source = store.source();
        Ok(config)
    }
}

fn introduction(
    store: &Store,
    routed: &[SocketAddr],
    spare: SocketAddr,
    port: u16,
    admin: SocketAddr,
) -> String {
    let routed_list: Vec<_> = routed.iter().map(ToString::to_string).collect();
    let (add, remove) = (
        store.add_line(HOST, spare),
        store.remove_line(HOST, routed[0]),
    );
    let settings = store.settings_line(HOST, r#"{"balance": "random"}"#);
    format!(
        "Waypost is running; routes come from {source}.

  listener     http://{HOST}:{port}/
  upstreams    {upstreams}
  spare        {spare} runs too, but no route uses it yet
  status page  http://{admin}/

Try this in another terminal:

  # three upstreams take turns
  curl http://{HOST}:{port}/

  # the same in a loop; change routes meanwhile, and no request fails
  while sleep 0.2; do curl -sS http://{HOST}:{port}/; done

  # the fourth upstream joins
  {add}

  # the first one leaves
  {remove}

  # pick at random instead of in turn
  {settings}

  # a host that no key is for: 404, and Proxy-Status says why
  curl -i -H 'Host: unknown.example' http://{HOST}:{port}/

Ctrl-C ends it and leaves nothing behind.",
        source = store.description(),
        upstreams = routed_list.join("  "),
    )
}
