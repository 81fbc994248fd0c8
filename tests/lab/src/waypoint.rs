//! An HBONE endpoint in the place of a waypoint: it says what it is asked for and by whom, and hands each connection on
//! to the endpoint that it was told, in a tunnel of its own.

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use loam_core::addr::{DownstreamAddr, HBONE_PORT, NextHop};
use loam_core::authority::Authority;
use loam_core::ids::{Identity, TrustDomain};
use loam_core::reason::Reason;
use loam_hbone::{
    ConnectHeaders, Handler, Hooks, Incoming, KEEPALIVE, Limits, Malformed, OpenRequest, Pool, PoolConfig, TunnelKey,
    prepare, serve,
};
use loam_tests::report::Passed;
use loam_tls::ca::DEFAULT_TTL;
use loam_tls::channel::ControlPlane;
use loam_tls::key::Key;
use loam_tls::{CaClient, CaConfig, Credentials, SignCsr, Trust};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// How long the authority may not know the pod yet.
const CERTIFICATE_TIMEOUT: Duration = Duration::from_secs(20);
/// Between two questions to it.
const CERTIFICATE_PAUSE: Duration = Duration::from_millis(100);
/// Longest life of what is open when the end is asked for.
const DRAIN_LIMIT: Duration = Duration::from_secs(10);

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Where it listens.
    listen: SocketAddr,
    /// Whom it proves to be.
    #[arg(long)]
    identity: Identity,
    /// Address of the authority, as host:port.
    #[arg(long)]
    address: String,
    /// PEM file with the roots that vouch for it.
    #[arg(long)]
    ca_root: PathBuf,
    /// File with the token.
    #[arg(long)]
    token: PathBuf,
    /// What may be asked for, the endpoint that it leads to, and whom that proves to be: `authority=endpoint=identity`.
    #[arg(long)]
    route: Vec<Route>,
}

/// Where an authority leads to.
#[derive(Debug, Clone)]
struct Route {
    authority: Authority,
    endpoint: SocketAddr,
    expect: Identity,
}

impl std::str::FromStr for Route {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let [authority, endpoint, expect] = text.split('=').collect::<Vec<_>>()[..] else {
            bail!("{text} is not authority=endpoint=identity")
        };
        Ok(Self { authority: authority.parse()?, endpoint: endpoint.parse()?, expect: expect.parse()? })
    }
}

/// Serves until SIGTERM, then lets what is open end. Prints a line of JSON for each connection that it is asked for.
pub(crate) async fn run(arguments: Arguments) -> Result<()> {
    let mut end = signal(SignalKind::terminate())?;
    let credentials = Arc::new(certificate(&arguments).await?);
    let listener = TcpListener::bind(arguments.listen).await.with_context(|| format!("bind {}", arguments.listen))?;
    let waypoint = Arc::new(Waypoint {
        identity: arguments.identity,
        routes: arguments.route,
        credentials,
        tunnels: Pool::new(PoolConfig::default()),
    });
    println!("serving");
    let (draining, drain) = watch::channel(false);
    let mut served = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = served.join_next() => continue,
            _ = end.recv() => break,
        };
        // The client is gone already, or descriptors are short for a moment.
        let Ok((socket, _)) = accepted else { continue };
        let (waypoint, mut drain) = (waypoint.clone(), drain.clone());
        served.spawn(async move {
            let drained = async move { drop(drain.wait_for(|draining| *draining).await) };
            if let Err(error) = serve(socket, &waypoint.credentials, &Limits::default(), &waypoint, drained).await {
                eprintln!("tunnel ended: {error}");
            }
        });
    }
    drop(listener);
    draining.send_replace(true);
    let _ = timeout(DRAIN_LIMIT, async { while served.join_next().await.is_some() {} }).await;
    Ok(())
}

/// The certificate of a pod that the authority may not have heard of yet.
async fn certificate(arguments: &Arguments) -> Result<Credentials> {
    let control_plane =
        ControlPlane { address: arguments.address.clone(), server_name: None, root_file: arguments.ca_root.clone() };
    let token_file = arguments.token.clone();
    let authority =
        CaClient::new(CaConfig { control_plane, token_file, cluster: "Kubernetes".into(), ttl: DEFAULT_TTL });
    let identity = &arguments.identity;
    let signed = async {
        loop {
            let key = Key::generate()?;
            match authority.sign(identity, &key.request(identity)?).await {
                Ok(issued) => break anyhow::Ok((key, issued)),
                Err(error) => eprintln!("certificate: {error}"),
            }
            sleep(CERTIFICATE_PAUSE).await;
        }
    };
    let (key, issued) = timeout(CERTIFICATE_TIMEOUT, signed).await.context("the authority gives no certificate")??;
    let trust = Trust::new(TrustDomain::default(), []);
    Credentials::new(identity, key, issued, &trust, SystemTime::now()).map_err(Into::into)
}

struct Waypoint {
    identity: Identity,
    routes: Vec<Route>,
    credentials: Arc<Credentials>,
    tunnels: Pool,
}

impl Handler for Waypoint {
    async fn connect(&self, incoming: Box<Incoming>) {
        let request = incoming.request();
        let route = self.routes.iter().find(|route| route.authority == request.authority);
        let passed = Passed {
            authority: request.authority.to_string(),
            peer: request.peer.to_string(),
            forwarded: request.headers.forwarded.clone(),
            baggage: request.headers.baggage.clone(),
            endpoint: route.map(|route| route.endpoint),
        };
        // One write for a whole line: connections come at the same time, and the end may come at any.
        if let Ok(line) = serde_json::to_string(&passed) {
            let _ = std::io::stdout().write_all(format!("{line}\n").as_bytes());
        }
        let Some(route) = route else { return incoming.refuse(Reason::AuthorityMismatch) };
        if let Err(error) = self.hand_on(incoming, route).await {
            eprintln!("{}: {error:#}", route.endpoint);
        }
    }

    fn malformed(&self, peer: &Identity, _: DownstreamAddr, error: &Malformed) {
        eprintln!("{peer}: {error}");
    }
}

impl Waypoint {
    async fn hand_on(&self, incoming: Box<Incoming>, route: &Route) -> Result<()> {
        let next_hop = NextHop::new(SocketAddr::new(route.endpoint.ip(), HBONE_PORT));
        let key = TunnelKey::new(self.identity.clone(), vec![route.expect.clone()], next_hop, "waypoint".into());
        let request = OpenRequest {
            authority: Authority::from(route.endpoint),
            headers: ConnectHeaders::default(),
            credentials: self.credentials.clone(),
            dialer: Arc::new(|to: NextHop| TcpStream::connect(to.get())),
        };
        let opened = match self.tunnels.open(&Arc::new(key), &request).await {
            Ok(opened) => opened,
            Err(error) => {
                incoming.refuse(Reason::NoHealthyUpstream);
                return Err(error.into());
            }
        };
        let (near, far) = joined().await?;
        tokio::join!(incoming.accept(near, None, Hooks::none()), opened.carry(far, Hooks::none()));
        Ok(())
    }
}

/// Two sockets that are each other's peers.
async fn joined() -> Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let near = TcpStream::connect(listener.local_addr()?).await?;
    let (far, _) = listener.accept().await?;
    for socket in [&near, &far] {
        prepare(socket, KEEPALIVE)?;
    }
    Ok((near, far))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_says_what_leads_where_and_who_is_there() {
        let text = "10.96.0.1:80=10.244.1.10:7001=spiffe://cluster.local/ns/demo/sa/server";
        let route: Route = text.parse().unwrap();
        assert_eq!(route.authority.to_string(), "10.96.0.1:80");
        assert_eq!((route.endpoint.port(), route.expect.service_account()), (7001, "server"));
        let v6: Route = text.replace("10.244.1.10", "[fd00:244:1::a]").parse().unwrap();
        assert!(v6.endpoint.is_ipv6());
        for bad in ["", "10.96.0.1:80=10.244.1.10:7001", "a=b=c"] {
            assert!(bad.parse::<Route>().is_err(), "{bad}");
        }
    }
}
