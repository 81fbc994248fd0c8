//! May a connection go to a destination that nobody declared? Told by the workload that opens it.

use std::sync::Arc;

use crate::addr::OrigDst;
use crate::outbound::{Destination, Query, Refusal, Unplanned, plan};
use crate::reason::Reason;
use crate::service::Service;
use crate::snapshot::Snapshot;
use crate::workload::Workload;

/// What a workload may do with destinations outside the registry: those that are neither a workload nor an address of
/// a service.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub enum Egress {
    /// It reaches them as if there were no mesh.
    #[default]
    AllowAny,
    /// Connections to them are refused.
    RegistryOnly {
        /// Who says so, for people: `Sidecar shop/default`.
        origin: Arc<str>,
    },
}

/// Judges a connection to an address that neither a workload nor a service has.
pub fn to_undeclared(source: &Workload, dst: OrigDst) -> Result<(), Refusal> {
    match &source.egress {
        Egress::AllowAny => Ok(()),
        Egress::RegistryOnly { origin } => Err(refusal(
            format!(
                "{dst} is not in the registry, and {origin} lets {} reach only what is (REGISTRY_ONLY): declare it in \
                 a ServiceEntry, or set the outbound traffic policy to ALLOW_ANY",
                source.name
            ),
            Destination::default(),
        )),
    }
}

/// Judges a connection that goes where it was going anyway, to an address that `service` declares.
pub fn through(source: &Workload, dst: OrigDst, service: &Arc<Service>) -> Result<(), Refusal> {
    match &source.egress {
        Egress::RegistryOnly { origin } if service.port(dst.port()).is_none() => Err(refusal(
            format!(
                "port {} of {dst} is not in the registry: service {} does not declare it, and {origin} lets {} reach \
                 only what is declared (REGISTRY_ONLY): add the port to the service, or set the outbound traffic \
                 policy to ALLOW_ANY",
                dst.port(),
                service.key,
                source.name
            ),
            Destination { service: Some(Arc::clone(service)), ..Destination::default() },
        )),
        Egress::RegistryOnly { .. } | Egress::AllowAny => Ok(()),
    }
}

/// Whether a connection that is open to `dst`, and that no endpoint was picked for, would be refused by now. Whatever is
/// declared is none of this, wherever it leads.
pub fn forbids(snapshot: &Snapshot, source: &Workload, dst: OrigDst) -> Option<Refusal> {
    match plan(snapshot, &Query::new(source, dst, 0)) {
        Err(Unplanned::Refused(refusal)) if refusal.reason == Reason::NotRegistered => Some(refusal),
        Err(_) | Ok(_) => None,
    }
}

fn refusal(detail: String, destination: Destination) -> Refusal {
    Refusal { destination, ..Refusal::new(Reason::NotRegistered, detail) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outbound::Plan;
    use crate::testmesh::{mesh, uid};

    const MESH: &str = "
        pod shop/free 10.0.0.1
        pod shop/bound 10.0.0.2 registry-only=Sidecar_shop/default
        pod shop/web-1 10.0.0.3 hbone serves=shop/web
        svc shop/web 10.1.0.1 ports=80>8080
        svc shop/pass 203.0.113.1 ports=443>443 mode=passthrough
        svc shop/range 198.51.100.0/24 ports=443>443 mode=passthrough
        svc other/shown 203.0.113.7 shown=other,shop ports=443>443 mode=passthrough
        svc other/hidden 203.0.113.8 shown=other,third ports=443>443 mode=passthrough
        svc other/private 203.0.113.9 private ports=443>443 mode=passthrough
    ";

    /// What becomes of a connection of the bound workload, after asserting that the free one may make it.
    fn bound(dst: &str) -> Result<(), (Reason, String)> {
        let snapshot = mesh(MESH);
        let ask = |name: &str| {
            let source = snapshot.workload(&uid(name)).unwrap();
            let original_dst = OrigDst::new(dst.parse().unwrap());
            plan(&snapshot, &Query::new(source, original_dst, 7))
        };
        let free = ask("shop/free");
        let port_unknown = matches!(&free, Err(Unplanned::Refused(r)) if r.reason == Reason::PortUnknown);
        assert!(free.is_ok() || port_unknown, "{dst}: {free:?}");
        let bound = ask("shop/bound");
        let dst = OrigDst::new(dst.parse().unwrap());
        let forbids = |name: &str| forbids(&snapshot, snapshot.workload(&uid(name)).unwrap(), dst).is_some();
        let refused = matches!(&bound, Err(Unplanned::Refused(r)) if r.reason == Reason::NotRegistered);
        assert_eq!(
            (forbids("shop/free"), forbids("shop/bound")),
            (false, refused),
            "open connections are judged alike"
        );
        match bound {
            Ok(Plan::Direct { .. } | Plan::Tunnel { .. }) => Ok(()),
            Err(Unplanned::Refused(refusal)) => Err((refusal.reason, refusal.detail)),
            Err(Unplanned::Unresolved(host)) => panic!("{host} is to be resolved"),
        }
    }

    #[test]
    fn what_is_declared_is_reached_and_what_is_not_is_refused_by_name() {
        let declared = [
            // A service, a pod on any port, the caller itself.
            "10.1.0.1:80",
            "10.0.0.3:8080",
            "10.0.0.3:9",
            "10.0.0.2:9",
            "127.0.0.1:9",
            "[::1]:9",
            // A ServiceEntry without endpoints: an address, and a range.
            "203.0.113.1:443",
            "198.51.100.77:443",
        ];
        for dst in declared {
            assert_eq!(bound(dst), Ok(()), "{dst}");
        }
        for dst in ["192.0.2.1:443", "169.254.169.254:80", "[2001:db8::1]:443", "198.51.101.1:443"] {
            let (reason, detail) = bound(dst).unwrap_err();
            assert_eq!(reason, Reason::NotRegistered, "{dst}");
            for part in [dst, "Sidecar_shop/default", "REGISTRY_ONLY", "ServiceEntry", "ALLOW_ANY"] {
                assert!(detail.contains(part), "{detail:?} does not say {part}");
            }
        }
    }

    #[test]
    fn a_port_that_the_service_does_not_declare_is_not_declared() {
        for dst in ["203.0.113.1:80", "198.51.100.77:80"] {
            let (reason, detail) = bound(dst).unwrap_err();
            assert_eq!(reason, Reason::NotRegistered, "{dst}");
            assert!(detail.contains("port 80") && detail.contains("shop/"), "{detail}");
        }
    }

    #[test]
    fn what_another_namespace_declares_for_itself_is_not_declared() {
        assert_eq!(bound("203.0.113.9:443").unwrap_err().0, Reason::NotRegistered);
        assert_eq!(bound("203.0.113.8:443").unwrap_err().0, Reason::NotRegistered);
        assert_eq!(bound("203.0.113.7:443"), Ok(()), "it is shown to this namespace");
    }
}
