//! Flags, checked once and together, and the limits of this process in one place.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use loam_core::ids::{Identity, TrustDomain};

/// The L7 proxy in front of services: routes, guards and observes their requests.
#[derive(Debug, Parser)]
#[command(name = "loam-waypoint", version)]
pub struct Flags {
    /// Name of the Gateway that this waypoint belongs to.
    #[arg(long, env = "GATEWAY_NAME")]
    name: String,
    /// Namespace of the Gateway and of this pod.
    #[arg(long, env = "POD_NAMESPACE")]
    namespace: String,
    /// Name of this pod.
    #[arg(long, env = "POD_NAME")]
    pod: String,
    /// Address of this pod.
    #[arg(long, env = "INSTANCE_IP")]
    address: IpAddr,
    /// Service account of this pod; the Gateway's name when left out.
    #[arg(long, env = "SERVICE_ACCOUNT")]
    service_account: Option<String>,
    /// Name of the node that this pod runs on.
    #[arg(long, env = "NODE_NAME", default_value = "")]
    node: String,
    /// Address of the controller's configuration service, as host:port.
    #[arg(long, env = "XDS_ADDRESS", default_value = "istiod.istio-system.svc:15012")]
    xds_address: String,
    /// Address of the certificate authority, as host:port; the configuration service's when left out.
    #[arg(long, env = "CA_ADDRESS")]
    ca_address: Option<String>,
    /// PEM file with the roots that vouch for the controller.
    #[arg(long, env = "CA_ROOT_CA")]
    ca_root: PathBuf,
    /// File with the token that says which pod this is; read again for every call.
    #[arg(long, env = "TOKEN_PATH")]
    token: PathBuf,
    /// Name of the cluster.
    #[arg(long, env = "CLUSTER_ID", default_value = "Kubernetes")]
    cluster: String,
    /// Trust domain of the mesh.
    #[arg(long, env = "TRUST_DOMAIN", default_value = TrustDomain::DEFAULT)]
    trust_domain: String,
    /// Name of the network that this pod's address belongs to.
    #[arg(long, env = "NETWORK", default_value = "")]
    network: String,
    /// Namespace whose policies are about the whole mesh.
    #[arg(long, env = "ROOT_NAMESPACE", default_value = "istio-system")]
    root_namespace: String,
    /// Where tunnels are accepted.
    #[arg(long, env = "HBONE_ADDRESS", default_value = "[::]:15008")]
    hbone_address: SocketAddr,
    /// Where the administration interface listens; it has no authentication of its own.
    #[arg(long, env = "ADMIN_ADDRESS", default_value = "127.0.0.1:15000")]
    admin_address: SocketAddr,
    /// Where metrics are served.
    #[arg(long, env = "METRICS_ADDRESS", default_value = "[::]:15020")]
    metrics_address: SocketAddr,
    /// Where readiness is served.
    #[arg(long, env = "READINESS_ADDRESS", default_value = "[::]:15021")]
    readiness_address: SocketAddr,
    /// Threads that carry traffic; 0 is as many as there are processors.
    #[arg(long, env = "WAYPOINT_WORKER_THREADS", default_value_t = 0)]
    worker_threads: usize,
    /// Longest time, in seconds, that requests and connections live on after a drain began. It is to be shorter than
    /// the time that the pod has to end.
    #[arg(long, env = "DRAIN_LIMIT_SECONDS", default_value_t = 20)]
    drain_limit: u64,
    /// Log format: plain or json.
    #[arg(long, env = "LOG_FORMAT", default_value = "plain")]
    log_format: String,
    /// Log levels, as a list of target=level.
    #[arg(long, env = "RUST_LOG", default_value = "info")]
    log_level: String,
}

/// What the flags mean.
#[derive(Debug, Clone)]
pub struct Config {
    /// Name of the Gateway.
    pub name: Arc<str>,
    /// Name of this pod.
    pub pod: Arc<str>,
    /// Address of this pod.
    pub address: IpAddr,
    /// Who this waypoint is.
    pub identity: Identity,
    /// Node that this pod runs on.
    pub node: Arc<str>,
    /// Configuration service.
    pub xds_address: String,
    /// Certificate authority.
    pub ca_address: String,
    /// Roots for both.
    pub ca_root: PathBuf,
    /// Token for both.
    pub token: PathBuf,
    /// Name of the cluster.
    pub cluster: Arc<str>,
    /// Own network.
    pub network: Arc<str>,
    /// Namespace of the mesh's policies.
    pub root_namespace: Arc<str>,
    /// Tunnels.
    pub hbone_address: SocketAddr,
    /// Administration interface.
    pub admin_address: SocketAddr,
    /// Metrics.
    pub metrics_address: SocketAddr,
    /// Readiness.
    pub readiness_address: SocketAddr,
    /// Threads that carry traffic.
    pub worker_threads: usize,
    /// Longest drain.
    pub drain_limit: Duration,
    /// Whether logs are JSON.
    pub log_json: bool,
    /// Log levels.
    pub log_level: String,
}

impl Config {
    /// Namespace of the Gateway and of this pod.
    pub fn namespace(&self) -> &str {
        self.identity.namespace()
    }
}

/// Tunnels accepted at once: each holds a descriptor and the buffers of TLS.
pub const MAX_TUNNELS: usize = 10_000;

/// Longest time for a TCP connection to be established, which is Istio's.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

impl TryFrom<Flags> for Config {
    type Error = Vec<String>;

    fn try_from(flags: Flags) -> Result<Self, Vec<String>> {
        let mut mistakes = Vec::new();
        for (flag, text) in [("--name", &flags.name), ("--namespace", &flags.namespace), ("--pod", &flags.pod)] {
            if text.is_empty() {
                mistakes.push(format!("{flag}: it is empty"));
            }
        }
        let trust_domain = flags.trust_domain.parse().unwrap_or_else(|error| {
            mistakes.push(format!("--trust-domain: {error}"));
            TrustDomain::default()
        });
        let account = flags.service_account.as_deref().unwrap_or(&flags.name);
        let identity = Identity::new(trust_domain, &flags.namespace, account)
            .map_err(|error| mistakes.push(format!("--namespace, --service-account: {error}")));
        let ca_address = flags.ca_address.unwrap_or_else(|| flags.xds_address.clone());
        for (flag, address) in [("--xds-address", &flags.xds_address), ("--ca-address", &ca_address)] {
            if !address.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok()) {
                mistakes.push(format!("{flag}: {address:?} is not host:port"));
            }
        }
        let log_json = match flags.log_format.as_str() {
            "plain" => false,
            "json" => true,
            other => {
                mistakes.push(format!("--log-format: {other:?} is neither plain nor json"));
                false
            }
        };
        let (Ok(identity), true) = (identity, mistakes.is_empty()) else { return Err(mistakes) };
        Ok(Self {
            name: flags.name.into(),
            pod: flags.pod.into(),
            address: flags.address.to_canonical(),
            identity,
            node: flags.node.into(),
            xds_address: flags.xds_address,
            ca_address,
            ca_root: flags.ca_root,
            token: flags.token,
            cluster: flags.cluster.into(),
            network: flags.network.into(),
            root_namespace: flags.root_namespace.into(),
            hbone_address: flags.hbone_address,
            admin_address: flags.admin_address,
            metrics_address: flags.metrics_address,
            readiness_address: flags.readiness_address,
            worker_threads: match flags.worker_threads {
                0 => std::thread::available_parallelism().map_or(1, usize::from),
                n => n,
            },
            drain_limit: Duration::from_secs(flags.drain_limit),
            log_json,
            log_level: flags.log_level,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Config, Vec<String>> {
        let required = [
            ["--name", "wp"],
            ["--namespace", "shop"],
            ["--pod", "wp-1"],
            ["--address", "::ffff:10.0.0.9"],
            ["--ca-root", "/r"],
            ["--token", "/t"],
        ];
        let unsaid = required.iter().filter(|[flag, _]| !args.contains(flag)).flatten();
        let all = ["loam-waypoint"].iter().chain(unsaid).chain(args);
        Config::try_from(Flags::try_parse_from(all).unwrap())
    }

    #[test]
    fn all_mistakes_are_told_at_once() {
        let args = ["--trust-domain", "UPPER", "--xds-address", "nowhere", "--log-format", "xml", "--namespace", ""];
        let mistakes = parse(&args).unwrap_err();
        for flag in ["--trust-domain", "--xds-address", "--log-format", "--namespace"] {
            assert!(mistakes.iter().any(|m| m.starts_with(flag)), "{flag} is missing in {mistakes:?}");
        }
    }

    #[test]
    fn a_waypoint_speaks_as_the_service_account_that_is_called_like_its_gateway() {
        let config = parse(&[]).unwrap();
        assert_eq!(config.identity.to_string(), "spiffe://cluster.local/ns/shop/sa/wp");
        assert_eq!(config.address.to_string(), "10.0.0.9");
        let config = parse(&["--service-account", "other"]).unwrap();
        assert_eq!(config.identity.to_string(), "spiffe://cluster.local/ns/shop/sa/other");
    }
}
