//! The cluster's certificates, and the files with which its parts and its users call the API server.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::address;
use crate::lab;

/// Organization whose members may do everything.
const MASTERS: &str = "system:masters";

/// A certificate to be made, and its key: `NAME.crt` and `NAME.key`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Wanted {
    /// Name of the files.
    pub name: String,
    /// Which authority signs it, by the name of its files.
    pub authority: String,
    /// Name it proves.
    pub common_name: String,
    /// Group it proves.
    pub organization: Option<String>,
    /// Whether it is shown by a server; else by a client.
    pub server: bool,
    /// DNS names and addresses of a server.
    pub names: Vec<String>,
}

/// Everything to be made in one directory.
#[derive(Debug, Serialize, Deserialize)]
pub struct Order {
    /// Names of the authorities' files.
    pub authorities: Vec<String>,
    /// Certificates signed by them.
    pub certificates: Vec<Wanted>,
    /// Names of keys for signing tokens: `NAME.key` and `NAME.pub`.
    pub keys: Vec<String>,
}

fn client(name: &str, common_name: &str, organization: Option<&str>) -> Wanted {
    Wanted {
        name: name.into(),
        authority: "ca".into(),
        common_name: common_name.into(),
        organization: organization.map(Into::into),
        server: false,
        names: Vec::new(),
    }
}

/// What a cluster with these nodes needs; each node has a name and addresses.
pub(super) fn order(nodes: &[(&str, Vec<String>)]) -> Order {
    let api_names = [
        "localhost",
        "127.0.0.1",
        lab::FABRIC_V4,
        lab::FABRIC_V6,
        address::API_SERVICE,
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
    ];
    let mut certificates = vec![
        Wanted {
            server: true,
            names: api_names.map(Into::into).into(),
            ..client("api-server", "kube-apiserver", None)
        },
        client("api-server-as-client", "kube-apiserver-kubelet-client", Some(MASTERS)),
        Wanted { authority: "front-ca".into(), ..client("front", "front-proxy-client", None) },
        client("admin", "admin", Some(MASTERS)),
        client("controller-manager", "system:kube-controller-manager", None),
        client("scheduler", "system:kube-scheduler", None),
        client("kube-proxy", "system:kube-proxy", None),
    ];
    for (name, addresses) in nodes {
        let user = format!("system:node:{name}");
        certificates.push(client(name, &user, Some("system:nodes")));
        let names = addresses.iter().cloned().chain([(*name).to_owned()]).collect();
        let served = client(&format!("{name}-serving"), &user, Some("system:nodes"));
        certificates.push(Wanted { server: true, names, ..served });
    }
    Order { authorities: vec!["ca".into(), "front-ca".into()], certificates, keys: vec!["service-accounts".into()] }
}

/// Writes a kubeconfig that calls the API server with the certificate `user` of the directory `pki`.
pub(super) fn kubeconfig(file: &Path, pki: &Path, user: &str) -> Result<()> {
    let path = |name: String| pki.join(name);
    // JSON is YAML.
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "loam", "cluster": {
            "server": address::api_url(), "certificate-authority": path("ca.crt".into()),
        }}],
        "users": [{"name": user, "user": {
            "client-certificate": path(format!("{user}.crt")), "client-key": path(format!("{user}.key")),
        }}],
        "contexts": [{"name": "loam", "context": {"cluster": "loam", "user": user}}],
        "current-context": "loam",
    });
    fs::write(file, serde_json::to_vec_pretty(&config)?).with_context(|| format!("write {}", file.display()))?;
    fs::set_permissions(file, fs::Permissions::from_mode(0o600)).map_err(Into::into)
}
