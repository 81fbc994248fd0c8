//! `loam waypoint`: Gateways that are waypoints, with the flags of `istioctl waypoint`.

pub mod apply;
pub mod delete;
pub mod gateway;
pub mod list;
pub mod status;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use loam_kube::AskError;
use serde::Serialize;
use serde_json::Value;

use crate::args::waypoint::Wanted;
use crate::code::Code;
use crate::fault::Fault;
use crate::output::{Look, Report};
use crate::session::Session;
use gateway::Gateway;

/// Names the waypoint in front of a namespace or a service.
const USE_LABEL: &str = "istio.io/use-waypoint";
/// Names the namespace of that waypoint, where it is another one.
const USE_NAMESPACE_LABEL: &str = "istio.io/use-waypoint-namespace";

/// Where the definitions of the Gateway API are had from.
const GET_GATEWAY_API: &str = "kubectl apply --server-side --filename \
    https://github.com/kubernetes-sigs/gateway-api/releases/latest/download/standard-install.yaml";

/// The Gateway that is asked for, as a manifest.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub struct Manifest(Value);

/// What `loam waypoint generate` prints. Without a namespace it is for the one in which it is applied.
pub fn generate(namespace: Option<&str>, wanted: &Wanted) -> Manifest {
    Manifest(gateway::manifest(namespace, wanted))
}

impl Report for Manifest {
    fn text(&self, _look: Look) -> String {
        let text = serde_saphyr::to_string(self).expect("JSON can be written as YAML");
        text.trim_end().to_owned() + "\n"
    }
}

/// Something to be told beside what was done, and what to type about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Note {
    message: String,
    remedy: String,
}

impl Note {
    fn text(&self, look: Look) -> String {
        format!("\n{}\n  do: {}\n", self.message, look.typed(&self.remedy))
    }
}

/// The waypoints of a namespace or of all, by namespace and name.
async fn all(session: &Session, namespace: Option<&str>) -> Result<Vec<Gateway>, Fault> {
    let mut gateways: Vec<Gateway> = match session.cluster.list(namespace, None).await {
        Err(AskError::Missing(why)) => return Err(no_gateway_api("find waypoints", why)),
        listed => listed?,
    };
    gateways.retain(Gateway::is_waypoint);
    gateways.sort_by(|a, b| (a.namespace(), a.name()).cmp(&(b.namespace(), b.name())));
    Ok(gateways)
}

/// Namespace and name of the waypoint that the labels of something name, which is in a namespace or is one.
fn named<'a>(metadata: &'a ObjectMeta, own_namespace: &'a str) -> Option<(&'a str, &'a str)> {
    let label = |name: &str| metadata.labels.as_ref()?.get(name).map(String::as_str).filter(|value| !value.is_empty());
    Some((label(USE_NAMESPACE_LABEL).unwrap_or(own_namespace), label(USE_LABEL)?))
}

/// What is shown where there is nothing to show.
fn nothing(namespace: Option<&str>) -> String {
    match namespace {
        Some(namespace) => format!("There are no waypoints in namespace {namespace}.\n"),
        None => "There are no waypoints.\n".to_owned(),
    }
}

fn no_gateway_api(what: impl Into<String>, why: impl Into<String>) -> Fault {
    Fault::new(Code::NoGatewayApi, what, why, GET_GATEWAY_API)
}

fn no_waypoint(what: impl Into<String>, namespace: &str, names: &[String]) -> Fault {
    let why = format!("there is no waypoint {} in namespace {namespace}", names.join(", "));
    Fault::new(Code::NoWaypoint, what, why, format!("loam waypoint list --namespace {namespace}"))
}
