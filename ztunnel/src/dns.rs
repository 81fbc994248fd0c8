//! The questions that a pod asks name servers, which come here instead: names of the mesh are answered from the
//! snapshot, everything else by the pod's own servers, which are asked from inside the pod.
//!
//! A name of the mesh needs nothing but the snapshot, so it resolves whatever becomes of the servers.

pub mod metrics;
pub mod upstream;

mod frames;
mod serve;
mod sockets;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use loam_dns::{Client, Forward, Outcome, Query, Transport, Unanswered};
use loam_node::Resolv;
use loam_rt::drain::Drain;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::enrolled::{Caller, Proxy};
use crate::mesh::Mesh;
use crate::pods::Pod;
use metrics::{DnsMetrics, Labels};
use upstream::Upstream;

pub use sockets::Inside;

/// Port of name servers.
const PORT: u16 = 53;

/// The pod's own servers, as far as they are known and are not the pod itself.
pub(crate) fn upstream(pod: &Arc<Pod>, metrics: DnsMetrics) -> Upstream<Arc<Pod>> {
    let own: Vec<IpAddr> = pod.info().ips().collect();
    let servers = servers(pod.resolv().map(Resolv::servers).into_iter().flatten(), &own);
    Upstream::new(pod.clone(), servers, metrics)
}

/// Serves the questions of `pod` on the sockets that it has for them, if its questions are captured.
pub(crate) fn serve(
    pod: &Arc<Pod>,
    proxy: &Proxy,
    upstream: Arc<Upstream<Arc<Pod>>>,
    caller: watch::Receiver<Option<Caller>>,
    end: &Drain,
    tasks: &mut JoinSet<()>,
) {
    let Some(sockets) = pod.dns() else { return };
    let resolv = pod.resolv().cloned().unwrap_or_default();
    if pod.resolv().is_some() && upstream.has_no_server() {
        tracing::warn!(
            pod = pod.uid(),
            "the pod's resolv.conf names no server outside the pod: only names of the mesh resolve; switch its DNS \
             capture off if it has a resolver of its own"
        );
    }
    let has_ipv6 = pod.info().ips().any(|ip| ip.is_ipv6());
    let network = proxy.config.network.clone();
    let client = Client::new(&*pod.info().namespace, network, has_ipv6, &resolv.search, resolv.ndots);
    let dns = Arc::new(Dns::new(client, upstream, proxy.mesh.clone(), caller, proxy.dns.clone()));
    // Who has no configuration yet would take names of the mesh for others. Questions wait in the sockets meanwhile, where
    // a predecessor still reads them too.
    for socket in &sockets.udp {
        let serving = dns.clone().serve_udp(socket.clone(), end.clone());
        tasks.spawn(dns.clone().once_configured(end.clone(), serving));
    }
    for listener in &sockets.tcp {
        let serving = dns.clone().serve_tcp(listener.clone(), end.clone());
        tasks.spawn(dns.clone().once_configured(end.clone(), serving));
    }
}

/// One pod's questions.
pub struct Dns<I> {
    client: Client,
    mesh: Arc<Mesh>,
    /// The pod, for metrics.
    caller: watch::Receiver<Option<Caller>>,
    upstream: Arc<Upstream<I>>,
    metrics: DnsMetrics,
}

/// What to do about a message.
enum Decided {
    /// Nothing; nobody waits.
    Nothing,
    /// Send these bytes back.
    Answer(Vec<u8>),
    /// Ask the pod's servers.
    Ask(Forward, Labels),
}

impl<I: Inside> Dns<I> {
    /// The questions of a pod that sees the mesh as `client`.
    pub fn new(
        client: Client,
        upstream: Arc<Upstream<I>>,
        mesh: Arc<Mesh>,
        caller: watch::Receiver<Option<Caller>>,
        metrics: DnsMetrics,
    ) -> Self {
        Self { client, mesh, caller, upstream, metrics }
    }

    /// Does what `serving` does from when the pod may open connections, unless `end` comes first.
    async fn once_configured(self: Arc<Self>, end: Drain, serving: impl Future<Output = ()> + Send) {
        let mut caller = self.caller.clone();
        let configured = tokio::select! {
            known = caller.wait_for(Option::is_some) => known.is_ok(),
            () = end.started() => false,
        };
        if configured {
            serving.await;
        }
    }

    /// Decides about one message of the pod.
    fn decide(&self, message: &[u8], transport: Transport) -> Decided {
        let query = match Query::read(message, transport) {
            Ok(query) => query,
            Err(Unanswered::Ignored) => return Decided::Nothing,
            Err(Unanswered::Refused(bytes)) => {
                tracing::debug!(transport = transport.as_str(), "dns question refused");
                return Decided::Answer(bytes);
            }
        };
        let labels = {
            let caller = self.caller.borrow();
            Labels::new(query.kind(), transport, caller.as_ref().map(|caller| &**caller.workload()))
        };
        self.metrics.asked(&labels);
        let outcome = query.decide(&self.mesh.load(), &self.client, rand::random());
        let answered = match &outcome {
            Outcome::Answer { .. } => "mesh",
            Outcome::Forward(_) => "servers",
        };
        tracing::debug!(name = %query.name(), kind = query.kind(), transport = transport.as_str(), answered, "dns question");
        match outcome {
            Outcome::Answer { bytes, .. } => Decided::Answer(bytes),
            Outcome::Forward(forward) => Decided::Ask(forward, labels),
        }
    }

    /// The answer of the pod's servers, or that they gave none.
    async fn ask(&self, forward: Forward, labels: Labels) -> Vec<u8> {
        self.metrics.forwarded(&labels);
        let began = Instant::now();
        match self.upstream.ask(&forward).await {
            Ok(answer) => {
                self.metrics.took(forward.transport(), began.elapsed());
                answer
            }
            Err(error) => {
                tracing::debug!(%error, "dns servers");
                self.metrics.failed(&labels);
                forward.unanswered()
            }
        }
    }
}

/// The servers that a pod with the addresses `own` can be answered by: not those that are the pod itself, from where a
/// question would come back here for ever.
pub fn servers(configured: impl IntoIterator<Item = IpAddr>, own: &[IpAddr]) -> Vec<SocketAddr> {
    let others = configured.into_iter().filter(|server| !is_pod_itself(*server, own));
    others.map(|server| SocketAddr::new(server, PORT)).collect()
}

/// Whether it is the pod that listens there.
fn is_pod_itself(server: IpAddr, own: &[IpAddr]) -> bool {
    let server = server.to_canonical();
    server.is_loopback() || server.is_unspecified() || own.iter().any(|ip| ip.to_canonical() == server)
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
