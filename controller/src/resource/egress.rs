//! What workloads may do with destinations that nobody declared, as namespaces and `Sidecar`s say it.

use std::fmt;
use std::str::FromStr;

use k8s_openapi::api::core::v1::Namespace;
use loam_manifest::istio::SidecarSpec;

use super::{Flaw, quoted};

/// Says it on a namespace.
pub const OUTBOUND_TRAFFIC_POLICY: &str = "loam.dev/outbound-traffic-policy";

/// What workloads may do with destinations that nobody declared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// Reach them as if there were no mesh.
    #[default]
    AllowAny,
    /// Nothing.
    RegistryOnly,
}

impl FromStr for Mode {
    type Err = Flaw;

    fn from_str(text: &str) -> Result<Self, Flaw> {
        match text {
            "ALLOW_ANY" => Ok(Self::AllowAny),
            "REGISTRY_ONLY" => Ok(Self::RegistryOnly),
            other => Err(format!("{} is neither ALLOW_ANY nor REGISTRY_ONLY", quoted(other))),
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AllowAny => "ALLOW_ANY",
            Self::RegistryOnly => "REGISTRY_ONLY",
        })
    }
}

/// What a namespace says. A word that is not understood restricts: somebody wanted to.
pub fn of_namespace(object: &Namespace, flaws: &mut Vec<Flaw>) -> Option<Mode> {
    let text = object.metadata.annotations.as_ref()?.get(OUTBOUND_TRAFFIC_POLICY)?;
    Some(understood(&format!("annotation {OUTBOUND_TRAFFIC_POLICY}"), text, flaws))
}

/// What a `Sidecar` says; `None` for one that says nothing about it.
pub fn of_sidecar(spec: &SidecarSpec, flaws: &mut Vec<Flaw>) -> Option<Mode> {
    let text = spec.outbound_traffic_policy.as_ref()?.mode.as_deref()?;
    let selects = spec.workload_selector.as_ref().and_then(|s| s.labels.as_ref()).is_some_and(|l| !l.is_empty());
    if selects {
        flaws.push(
            "outboundTrafficPolicy is ignored: it counts for whole namespaces, so take workloadSelector away or put \
             these workloads into a namespace of their own"
                .to_owned(),
        );
        return None;
    }
    Some(understood("outboundTrafficPolicy.mode", text, flaws))
}

fn understood(what: &str, text: &str, flaws: &mut Vec<Flaw>) -> Mode {
    text.parse().unwrap_or_else(|flaw| {
        flaws.push(format!("{what} {flaw}: read as {}, the stricter", Mode::RegistryOnly));
        Mode::RegistryOnly
    })
}
