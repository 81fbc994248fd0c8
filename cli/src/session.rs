//! One run of a command against one cluster.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use loam_kube::{Cluster, Way};
use serde::de::DeserializeOwned;

use crate::args::Common;
use crate::code::Code;
use crate::fault::Fault;
use crate::names::{CONTROLLER, CONTROLLER_LABELS, NODE, NODE_LABELS, PART_OF};
use crate::node::{NodePod, by_node};

/// The cluster, and where in it the mesh is.
pub struct Session {
    /// The cluster.
    pub cluster: Cluster,
    /// The namespace of the mesh itself.
    pub system: String,
}

/// What is installed.
#[derive(Debug, Clone, Default)]
pub struct Mesh {
    /// The Deployment of the controller.
    pub controller: Option<Deployment>,
    /// Its pods.
    pub controller_pods: Vec<Pod>,
    /// The DaemonSet of the nodes.
    pub daemons: Option<DaemonSet>,
    /// The mesh by node.
    pub nodes: BTreeMap<String, NodePod>,
}

impl Session {
    /// The cluster that the command line names.
    pub async fn open(common: &Common) -> Result<Self, Fault> {
        let way = Way { kubeconfig: common.kubeconfig.clone(), context: common.context.clone() };
        Ok(Self { cluster: Cluster::find(&way).await?, system: common.system_namespace.clone() })
    }

    /// The namespace that is asked about: the one that is named, else that of the way to the cluster.
    pub fn namespace_or_default<'a>(&'a self, named: Option<&'a str>) -> &'a str {
        named.unwrap_or_else(|| self.cluster.default_namespace())
    }

    /// A namespace.
    pub async fn namespace(&self, name: &str) -> Result<Namespace, Fault> {
        let found: Option<Namespace> = self.cluster.get(None, name).await?;
        found.ok_or_else(|| {
            let why = format!("there is no such namespace at {}", self.cluster.address());
            Fault::new(Code::NoNamespace, format!("find namespace {name}"), why, "kubectl get namespaces")
        })
    }

    /// What is installed, whether or not it is whole.
    pub async fn mesh(&self) -> Result<Mesh, Fault> {
        let system = Some(self.system.as_str());
        let (controller, daemons, controller_pods, node_pods) = tokio::join!(
            self.cluster.get::<Deployment>(system, CONTROLLER),
            self.cluster.get::<DaemonSet>(system, NODE),
            self.cluster.list::<Pod>(system, Some(CONTROLLER_LABELS)),
            self.cluster.list::<Pod>(system, Some(NODE_LABELS)),
        );
        // Of several failures the same one is told each time.
        let (controller, daemons) = (controller?, daemons?);
        let (controller_pods, node_pods) = (controller_pods?, node_pods?);
        // Istio's have the same names.
        let controller = controller.filter(|deployment| is_ours(&deployment.metadata));
        let daemons = daemons.filter(|daemons| is_ours(&daemons.metadata));
        Ok(Mesh { controller, controller_pods, daemons, nodes: by_node(&node_pods) })
    }

    /// What is installed, where something is.
    pub async fn installed(&self) -> Result<Mesh, Fault> {
        let mesh = self.mesh().await?;
        match mesh.controller.is_none() && mesh.daemons.is_none() {
            true => Err(not_installed(&self.system)),
            false => Ok(mesh),
        }
    }

    /// What a program in a pod answers, as JSON.
    pub async fn ask<T: DeserializeOwned>(&self, pod: &str, port: u16, path: &str) -> Result<T, Fault> {
        let answer = self.cluster.fetch(&self.system, pod, port, path).await?;
        serde_json::from_slice(&answer).map_err(|error| {
            let what = format!("read {path} of port {port} of pod {}/{pod}", self.system);
            Fault::new(Code::Unreadable, what, error.to_string(), "loam version")
        })
    }
}

/// Whether an object is a part of this mesh.
pub fn is_ours(metadata: &ObjectMeta) -> bool {
    metadata.labels.as_ref().and_then(|labels| labels.get(PART_OF.0)).is_some_and(|value| value == PART_OF.1)
}

/// There is no mesh.
pub fn not_installed(system: &str) -> Fault {
    Fault::new(
        Code::NotInstalled,
        format!("find the mesh in namespace {system}"),
        format!("there is neither a Deployment {CONTROLLER} nor a DaemonSet {NODE}"),
        "loam install --wait",
    )
}
