//! One request to the certificate authority, as a ztunnel makes it.

use anyhow::Result;
use loam_core::ids::Identity;
use loam_tests::report::Signed;
use loam_tls::ca::DEFAULT_TTL;
use loam_tls::channel::ControlPlane;
use loam_tls::key::Key;
use loam_tls::{CaClient, CaConfig, SignCsr};
use std::path::PathBuf;

/// Asks for a certificate that proves `identity`, with the token of a node.
pub(crate) async fn run(address: String, root_file: PathBuf, token_file: PathBuf, identity: &str) -> Result<Signed> {
    let identity: Identity = identity.parse()?;
    let control_plane = ControlPlane { address, server_name: None, root_file };
    let authority =
        CaClient::new(CaConfig { control_plane, token_file, cluster: "Kubernetes".into(), ttl: DEFAULT_TTL });
    let answer = authority.sign(&identity, &Key::generate()?.request(&identity)?).await;
    Ok(match answer {
        Ok(issued) => Signed { certificates: issued.chain.len(), error: None },
        Err(error) => Signed { certificates: 0, error: Some(error.to_string()) },
    })
}
