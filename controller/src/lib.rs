//! The controller: reads what is declared, compiles what proxies may know, and serves it with the certificates.
//!
//! With the source `kubernetes` its service account needs these rules, and no others.
//!
//! In the whole cluster:
//!
//! | apiGroups | resources | verbs |
//! |---|---|---|
//! | `""` | namespaces, nodes, pods, services | list, watch |
//! | `discovery.k8s.io` | endpointslices | list, watch |
//! | `security.istio.io` | authorizationpolicies, peerauthentications | list, watch |
//! | `networking.istio.io` | serviceentries, sidecars, workloadentries | list, watch |
//! | `gateway.networking.k8s.io` | backendtlspolicies, gatewayclasses, gateways, grpcroutes, httproutes, tcproutes, tlsroutes | get, list, watch |
//! | `gateway.networking.x-k8s.io` | xbackendtrafficpolicies | get, list, watch |
//! | `authentication.k8s.io` | tokenreviews | create |
//! | `""` | configmaps | create |
//! | `""` | configmaps, by name `istio-ca-root-cert` | get, update |
//!
//! The same for waypoints and what is told about them:
//!
//! | apiGroups | resources | verbs |
//! |---|---|---|
//! | `gateway.networking.k8s.io` | gatewayclasses | create |
//! | `apiextensions.k8s.io` | customresourcedefinitions, by name `gatewayclasses.gateway.networking.k8s.io` | get |
//! | `gateway.networking.k8s.io` | backendtlspolicies/status, gatewayclasses/status, gateways/status, grpcroutes/status, httproutes/status, tcproutes/status, tlsroutes/status | patch |
//! | `gateway.networking.x-k8s.io` | xbackendtrafficpolicies/status | patch |
//! | `networking.istio.io` | serviceentries | get |
//! | `networking.istio.io` | serviceentries/status | patch |
//! | `""` | services/status | patch |
//! | `""` | events | create |
//! | `""` | configmaps | get |
//! | `""` | serviceaccounts, services | get, create, patch |
//! | `apps` | deployments | get, create, patch |
//! | `policy` | poddisruptionbudgets | get, create, patch, delete |
//! | `autoscaling` | horizontalpodautoscalers | get, create, patch, delete |
//!
//! In its own namespace:
//!
//! | apiGroups | resources | verbs |
//! |---|---|---|
//! | `""` | secrets | create |
//! | `""` | secrets, by name `cacerts` and `istio-ca-secret` | get |
//! | `coordination.k8s.io` | leases | create |
//! | `coordination.k8s.io` | leases, by name `loam-controller-leader` | get, update |

#[cfg(test)]
mod apiserver;
pub mod app;
pub mod ca;
pub mod config;
pub mod debug;
pub mod index;
pub mod leader;
pub mod owner;
pub mod policy;
pub mod provision;
pub mod publish;
pub mod resource;
pub mod roots;
pub mod routes;
pub mod serve;
pub mod status;
pub mod updates;
pub mod writer;
