//! The contracts on the wire: generated messages and services, and their conversions to and from `loam_core`.
//!
//! `proto/` has the sources, `gen/` what `cargo run -p xtask-codegen` makes of them; other crates know these types only
//! at the edge where they speak to the wire.

pub mod convert;
pub mod encode;
pub mod intern;

#[allow(clippy::all, clippy::pedantic, clippy::restriction, unreachable_pub, missing_docs, reason = "generated")]
mod generated {
    pub mod envoy {
        pub mod config {
            pub mod core {
                pub mod v3 {
                    include!("gen/envoy.config.core.v3.rs");
                }
            }
        }
        pub mod service {
            pub mod discovery {
                pub mod v3 {
                    include!("gen/envoy.service.discovery.v3.rs");
                }
            }
        }
    }
    pub mod google {
        pub mod rpc {
            include!("gen/google.rpc.rs");
        }
    }
    pub mod loam {
        pub mod http {
            include!("gen/loam.http.rs");
        }
    }
    pub mod istio {
        pub mod security {
            include!("gen/istio.security.rs");
        }
        pub mod v1 {
            pub mod auth {
                include!("gen/istio.v1.auth.rs");
            }
        }
        pub mod workload {
            include!("gen/istio.workload.rs");
        }
    }
}

pub use generated::envoy::config::core::v3 as node;
pub use generated::envoy::service::discovery::v3 as discovery;
pub use generated::google::rpc;
pub use generated::istio::security;
pub use generated::istio::v1::auth as ca;
pub use generated::istio::workload;
pub use generated::loam::http as waypoint;

/// Type URL of workloads and services.
pub const ADDRESS_TYPE: &str = "type.googleapis.com/istio.workload.Address";
/// Type URL of the routes of services that a waypoint serves.
pub const ROUTES_TYPE: &str = "type.googleapis.com/loam.http.ServiceRoutes";
/// Type URL of how services are spoken to that its routes lead to.
pub const TRAFFIC_TYPE: &str = "type.googleapis.com/loam.http.ServiceTraffic";
/// Type URL of authorization policies.
pub const AUTHORIZATION_TYPE: &str = "type.googleapis.com/istio.security.Authorization";
