//! Flags, checked once and together, and the limits of this process in one place.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use loam_core::ids::TrustDomain;

/// The L4 proxy of a node: carries the traffic of its enrolled pods inside mutual TLS.
#[derive(Debug, Parser)]
#[command(name = "loam-ztunnel", version)]
pub struct Flags {
    /// Name of this node.
    #[arg(long, env = "NODE_NAME")]
    node: String,
    /// Directory of the node's sockets, shared with the keeper.
    #[arg(long, env = "LOAM_RUN_DIR", default_value = "/run/loam")]
    run_dir: PathBuf,
    /// Address of the controller's configuration service, as host:port.
    #[arg(long, env = "XDS_ADDRESS", default_value = "istiod.istio-system.svc:15012")]
    xds_address: String,
    /// Address of the certificate authority, as host:port; the configuration service's when left out.
    #[arg(long, env = "CA_ADDRESS")]
    ca_address: Option<String>,
    /// PEM file with the roots that vouch for the controller.
    #[arg(long, env = "CA_ROOT_CA")]
    ca_root: PathBuf,
    /// File with the token that says which node this is; read again for every call.
    #[arg(long, env = "TOKEN_PATH")]
    token: PathBuf,
    /// Name of the cluster.
    #[arg(long, env = "CLUSTER_ID", default_value = "Kubernetes")]
    cluster: String,
    /// Trust domain of the mesh.
    #[arg(long, env = "TRUST_DOMAIN", default_value = TrustDomain::DEFAULT)]
    trust_domain: String,
    /// Name of the network that this node's addresses belong to.
    #[arg(long, env = "NETWORK", default_value = "")]
    network: String,
    /// Namespace whose policies are about the whole mesh.
    #[arg(long, env = "ROOT_NAMESPACE", default_value = "istio-system")]
    root_namespace: String,
    /// Where the administration interface listens; it has no authentication of its own.
    #[arg(long, env = "ADMIN_ADDRESS", default_value = "127.0.0.1:15000")]
    admin_address: SocketAddr,
    /// Where metrics are served.
    #[arg(long, env = "METRICS_ADDRESS", default_value = "[::]:15020")]
    metrics_address: SocketAddr,
    /// Where readiness is served.
    #[arg(long, env = "READINESS_ADDRESS", default_value = "[::]:15021")]
    readiness_address: SocketAddr,
    /// Threads that carry traffic; 0 is half of the processors: the other half is for those whose traffic it is.
    #[arg(long, env = "ZTUNNEL_WORKER_THREADS", default_value_t = 0)]
    worker_threads: usize,
    /// User and group to run as.
    #[arg(long, env = "ZTUNNEL_UID", default_value_t = 1337)]
    uid: u32,
    /// Longest time, in seconds, that established connections live on after a drain began.
    #[arg(long, env = "DRAIN_LIMIT_SECONDS", default_value_t = 3600)]
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
    /// Name of this node.
    pub node: Arc<str>,
    /// Directory with the keeper's socket.
    pub run_dir: PathBuf,
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
    /// Trust domain of the mesh.
    pub trust_domain: TrustDomain,
    /// Own network.
    pub network: Arc<str>,
    /// Namespace of the mesh's policies.
    pub root_namespace: Arc<str>,
    /// Administration interface.
    pub admin_address: SocketAddr,
    /// Metrics.
    pub metrics_address: SocketAddr,
    /// Readiness.
    pub readiness_address: SocketAddr,
    /// Threads that carry traffic.
    pub worker_threads: usize,
    /// User and group to run as.
    pub uid: u32,
    /// Longest drain.
    pub drain_limit: Duration,
    /// Whether logs are JSON.
    pub log_json: bool,
    /// Log levels.
    pub log_level: String,
}

/// Connections one pod may have through this process at once. A pod beyond it is refused, its neighbours are not: at
/// two descriptors each this stays far below the descriptor limit of a node.
pub const MAX_CONNECTIONS_PER_POD: usize = 20_000;

/// Longest wait for the workload and the certificate of a pod that just appeared.
pub const LOCAL_WORKLOAD_TIMEOUT: Duration = Duration::from_secs(5);

/// Longest time for a TCP connection to be established, which is Istio's.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

impl TryFrom<Flags> for Config {
    type Error = Vec<String>;

    fn try_from(flags: Flags) -> Result<Self, Vec<String>> {
        let mut mistakes = Vec::new();
        let trust_domain = flags.trust_domain.parse().unwrap_or_else(|error| {
            mistakes.push(format!("--trust-domain: {error}"));
            TrustDomain::default()
        });
        if flags.node.is_empty() {
            mistakes.push("--node: the name of the node is empty".to_owned());
        }
        if flags.uid == 0 {
            mistakes.push("--uid: the proxy never runs as root; give an unprivileged uid such as 1337".to_owned());
        }
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
        if !mistakes.is_empty() {
            return Err(mistakes);
        }
        Ok(Self {
            node: flags.node.into(),
            run_dir: flags.run_dir,
            xds_address: flags.xds_address,
            ca_address,
            ca_root: flags.ca_root,
            token: flags.token,
            cluster: flags.cluster.into(),
            trust_domain,
            network: flags.network.into(),
            root_namespace: flags.root_namespace.into(),
            admin_address: flags.admin_address,
            metrics_address: flags.metrics_address,
            readiness_address: flags.readiness_address,
            worker_threads: match flags.worker_threads {
                0 => default_threads(std::thread::available_parallelism().map_or(1, usize::from)),
                n => n,
            },
            uid: flags.uid,
            drain_limit: Duration::from_secs(flags.drain_limit),
            log_json,
            log_level: flags.log_level,
        })
    }
}

/// Half of the processors: the applications whose traffic it is need the rest, and on a small machine more threads
/// only wake each other.
fn default_threads(processors: usize) -> usize {
    (processors / 2).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_the_processors_carry_traffic() {
        assert_eq!([1, 2, 3, 8].map(default_threads), [1, 1, 1, 4]);
    }

    fn parse(args: &[&str]) -> Result<Config, Vec<String>> {
        let required = ["loam-ztunnel", "--node", "n1", "--ca-root", "/r", "--token", "/t"];
        Config::try_from(Flags::try_parse_from(required.iter().chain(args)).unwrap())
    }

    #[test]
    fn all_mistakes_are_told_at_once() {
        let mistakes =
            parse(&["--uid", "0", "--trust-domain", "UPPER", "--xds-address", "nowhere", "--log-format", "xml"])
                .unwrap_err();
        for flag in ["--uid", "--trust-domain", "--xds-address", "--log-format"] {
            assert!(mistakes.iter().any(|m| m.starts_with(flag)), "{flag} is missing in {mistakes:?}");
        }
    }

    #[test]
    fn the_authority_is_the_configuration_service_unless_told_otherwise() {
        assert_eq!(parse(&["--xds-address", "c:15012"]).unwrap().ca_address, "c:15012");
        assert_eq!(parse(&["--ca-address", "[fd00::1]:15013"]).unwrap().ca_address, "[fd00::1]:15013");
    }
}
