//! The way to the API server.

use std::time::Duration;

use kube::config::KubeConfigOptions;
use kube::{Client, Config};

/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Where kubectl looks for the way to a cluster, too.
const KUBECONFIG: &str = "KUBECONFIG";

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The file that `KUBECONFIG` names is no good.
    #[error("read the way to the API server from KUBECONFIG={0}")]
    Kubeconfig(String, #[source] Box<kube::config::KubeconfigError>),
    /// There is nothing that says where an API server is.
    #[error(
        "find the API server: KUBECONFIG is not set, and this is no pod with a service account; set KUBECONFIG, or \
         run in a pod whose automountServiceAccountToken is not false"
    )]
    NotInCluster(#[source] Box<kube::config::InClusterError>),
    /// What was found cannot be used.
    #[error("make a client of the API server at {0}")]
    Client(String, #[source] Box<kube::Error>),
}

/// A client of the API server that `KUBECONFIG` names; without it, of the cluster in which this process is a pod.
pub async fn client() -> Result<Client, ClientError> {
    let mut config = match std::env::var(KUBECONFIG) {
        Ok(path) if !path.is_empty() => Config::from_kubeconfig(&KubeConfigOptions::default())
            .await
            .map_err(|e| ClientError::Kubeconfig(path, Box::new(e)))?,
        Ok(_) | Err(_) => Config::incluster().map_err(|e| ClientError::NotInCluster(Box::new(e)))?,
    };
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    // Whoever asks has a deadline and a back-off of its own.
    config.default_retry = false;
    let url = config.cluster_url.to_string();
    Client::try_from(config).map_err(|e| ClientError::Client(url, Box::new(e)))
}
