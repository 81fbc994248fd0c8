//! The connection to the control plane's configuration service.

use std::path::PathBuf;

use loam_api::node::Node;
use loam_tls::channel::{Channels, ControlPlane, tcp};
use loam_xds::client::{Connect, Connection};
use prost_types::value::Kind;
use prost_types::{Struct, Value};
use tonic::metadata::{Ascii, MetadataMap, MetadataValue};

use crate::config::Config;

/// Makes connections that prove which pod this is.
pub struct Control {
    channels: Channels,
    token: PathBuf,
    cluster: String,
}

impl Control {
    /// The configuration service that `config` names.
    pub fn new(config: &Config) -> Self {
        let to =
            ControlPlane { address: config.xds_address.clone(), server_name: None, root_file: config.ca_root.clone() };
        Self { channels: Channels::new(to, tcp()), token: config.token.clone(), cluster: config.cluster.to_string() }
    }
}

impl Connect for Control {
    async fn connect(&self) -> Result<Connection, Box<dyn std::error::Error + Send + Sync>> {
        let channel = self.channels.channel().await?;
        let token = tokio::fs::read_to_string(&self.token)
            .await
            .map_err(|error| format!("read token {}: {error}", self.token.display()))?;
        let mut bearer: MetadataValue<Ascii> = format!("Bearer {}", token.trim())
            .parse()
            .map_err(|_| format!("token {} has characters that no token has", self.token.display()))?;
        bearer.set_sensitive(true);
        let mut metadata = MetadataMap::new();
        metadata.insert("authorization", bearer);
        metadata.insert("clusterid", self.cluster.parse()?);
        Ok(Connection { channel, metadata })
    }
}

/// How this proxy introduces itself, in Istio's form.
pub fn node(config: &Config) -> Node {
    let text = |s: &str| Value { kind: Some(Kind::StringValue(s.to_owned())) };
    let fields = [
        ("NODE_NAME", &*config.node),
        ("CLUSTER_ID", &*config.cluster),
        ("NAME", &*config.pod),
        ("NAMESPACE", config.namespace()),
        ("GATEWAY_NAME", &*config.name),
        ("SERVICE_ACCOUNT", config.identity.service_account()),
    ];
    let fields = fields.into_iter().map(|(key, value)| (key.to_owned(), text(value))).collect();
    let (address, pod, namespace) = (config.address, &config.pod, config.namespace());
    Node {
        id: format!("waypoint~{address}~{pod}.{namespace}~{namespace}.svc.cluster.local"),
        metadata: Some(Struct { fields }),
        ..Node::default()
    }
}
