//! The way to the API server.

use std::path::PathBuf;
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Client, Config};

/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Where kubectl looks for the way to a cluster, too.
const KUBECONFIG: &str = "KUBECONFIG";

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The file that says how to reach a cluster is no good. What is named is `KUBECONFIG=PATH` or a path.
    #[error("read the way to the API server from {0}")]
    Kubeconfig(String, #[source] Box<KubeconfigError>),
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
    let config = match std::env::var(KUBECONFIG) {
        Ok(path) if !path.is_empty() => Config::from_kubeconfig(&KubeConfigOptions::default())
            .await
            .map_err(|e| ClientError::Kubeconfig(format!("KUBECONFIG={path}"), Box::new(e)))?,
        Ok(_) | Err(_) => incluster()?,
    };
    of(config).map(|(client, _)| client)
}

/// How a person names a cluster. What is left out is found as kubectl finds it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Way {
    /// The file with the ways to clusters; else what `KUBECONFIG` lists, else `~/.kube/config`.
    pub kubeconfig: Option<PathBuf>,
    /// Which of them; else the file's own choice.
    pub context: Option<String>,
}

/// A client for a person, and the address of the API server. Without any file it is the cluster in which this process
/// is a pod.
pub async fn personal_client(way: &Way) -> Result<(Client, String), ClientError> {
    let listed = std::env::var(KUBECONFIG).ok().filter(|paths| !paths.is_empty());
    let home = std::env::home_dir().map(|home| home.join(".kube/config")).filter(|path| path.exists());
    let (from, read) = match (&way.kubeconfig, listed, home) {
        (Some(path), _, _) => (path.display().to_string(), Kubeconfig::read_from(path)),
        (None, Some(paths), _) => (format!("KUBECONFIG={paths}"), Kubeconfig::read()),
        (None, None, Some(path)) => (path.display().to_string(), Kubeconfig::read_from(&path)),
        (None, None, None) => return of(incluster()?),
    };
    let options = KubeConfigOptions { context: way.context.clone(), ..KubeConfigOptions::default() };
    let config = match read {
        Ok(kubeconfig) => Config::from_custom_kubeconfig(kubeconfig, &options).await,
        Err(error) => Err(error),
    };
    of(config.map_err(|e| ClientError::Kubeconfig(from, Box::new(e)))?)
}

fn incluster() -> Result<Config, ClientError> {
    Config::incluster().map_err(|e| ClientError::NotInCluster(Box::new(e)))
}

fn of(mut config: Config) -> Result<(Client, String), ClientError> {
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    // Whoever asks has a deadline and a back-off of its own.
    config.default_retry = false;
    let url = config.cluster_url.to_string();
    match Client::try_from(config) {
        Ok(client) => Ok((client, url)),
        Err(error) => Err(ClientError::Client(url, Box::new(error))),
    }
}
