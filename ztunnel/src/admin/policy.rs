//! Why policies deny: the denials that came last, and the verdict about a connection that somebody thinks of.

use std::net::{IpAddr, SocketAddr};

use http::StatusCode;
use loam_core::addr::NetworkAddr;
use loam_core::authz::{Facts, Verdict, explain};
use loam_core::ids::Identity;
use loam_rt::admin::{Request, Response};
use serde_json::{Value, json};

use super::{Sources, limit};
use crate::access_log::{AccessLog, MAX_DENIALS};

/// How to ask for a verdict.
pub(super) const USAGE: &str =
    "what policies say of a connection; ?dst=10.0.0.2:80&source=spiffe://td/ns/a/sa/b&source_ip=10.0.0.1";

/// How many denials are shown unless the caller says.
const USUAL_DENIALS: usize = 20;

pub(super) fn denials(log: &AccessLog, request: &Request) -> Response {
    match limit(request, USUAL_DENIALS) {
        Ok(limit) => Response::json(&log.denials(limit.min(MAX_DENIALS))),
        Err(refusal) => refusal,
    }
}

/// The verdict about a connection as the destination would judge it now. Without a source it comes in the clear;
/// without an address of its own it comes from the address of a workload with that identity, if there is one.
pub(super) fn what_if(sources: &Sources, request: &Request) -> Response {
    match verdict(sources, request) {
        Ok(verdict) => Response::json(&verdict),
        Err(why) => Response::text(StatusCode::BAD_REQUEST, format!("{why}\nusage: {USAGE}\n")),
    }
}

fn verdict(sources: &Sources, request: &Request) -> Result<Value, String> {
    let snapshot = (sources.snapshot)();
    let network = sources.config["network"].as_str().unwrap_or_default();
    let dst = request.query("dst").ok_or("dst is missing: the address and port of a workload")?;
    let dst: SocketAddr = dst.parse().map_err(|_| format!("dst: {dst:?} is not address:port"))?;
    let at = NetworkAddr { network: network.into(), ip: dst.ip() };
    let destination = snapshot
        .workload_at(&at)
        .ok_or_else(|| format!("dst: no workload has the address {}; services have no policies of L4", dst.ip()))?;
    let source = match request.query("source").filter(|source| !source.is_empty()) {
        Some(source) => Some(source.parse::<Identity>().map_err(|error| format!("source: {error}"))?),
        None => None,
    };
    let source_ip = match request.query("source_ip").filter(|ip| !ip.is_empty()) {
        Some(ip) => ip.parse::<IpAddr>().map_err(|_| format!("source_ip: {ip:?} is not an address"))?,
        None => {
            let mut of_source = snapshot.workloads().filter(|workload| source.as_ref() == Some(&workload.identity));
            let same_family = |ip: &&IpAddr| ip.is_ipv4() == dst.is_ipv4();
            of_source
                .find_map(|workload| workload.addresses.iter().find(same_family).copied())
                .ok_or("source_ip is missing: no workload with the source's identity is known")?
        }
    };
    let facts = Facts { source: source.as_ref(), source_ip, destination_ip: dst.ip(), destination_port: dst.port() };
    let explanation = explain(&snapshot, destination, &facts);
    let missed: Vec<Value> = explanation
        .missed
        .iter()
        .map(|miss| json!({ "policy": &*miss.policy, "rule": miss.rule, "field": miss.field, "why": miss.why }))
        .collect();
    let mut told = shown(&explanation.verdict);
    told["detail"] = explanation.to_string().into();
    told["connection"] = json!({
        "source": source.as_ref().map(ToString::to_string),
        "sourceIp": source_ip,
        "dst": dst,
        "destination": destination.uid.as_str(),
    });
    if !explanation.waypoints.is_empty() {
        told["waypoints"] = explanation.waypoints.iter().map(|waypoint| &**waypoint).collect::<Vec<_>>().into();
    }
    if let Some(policy) = &explanation.allowed_by {
        told["policy"] = (&**policy).into();
    }
    if !missed.is_empty() {
        told["missed"] = missed.into();
        told["moreMissed"] = explanation.more_missed.into();
    }
    if let Some(trial) = &explanation.dry_run {
        told["dryRun"] = shown(trial);
    }
    Ok(told)
}

fn shown(verdict: &Verdict) -> Value {
    match verdict {
        Verdict::Allow => json!({ "verdict": verdict.as_str() }),
        Verdict::Deny { reason, policy: Some(policy) } => {
            json!({ "verdict": verdict.as_str(), "reason": reason.as_str(), "policy": &**policy })
        }
        Verdict::Deny { reason, policy: None } => json!({ "verdict": verdict.as_str(), "reason": reason.as_str() }),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use loam_core::addr::{DownstreamAddr, OrigDst};
    use loam_core::policy::{Action, Clause, Match, Policy, Rule, Scope, StringMatch};
    use loam_core::reason::Reason;
    use loam_core::snapshot::Change;
    use loam_core::traversal::Traversal;
    use loam_core::workload::Workload;
    use loam_rt::shutdown::Shutdown;

    use super::super::admin;
    use super::super::tests::{ask, sources};
    use super::*;
    use crate::metrics::Direction;

    fn policy(action: Action, namespace: &str, dry_run: bool) -> Policy {
        let m = Match { namespaces: vec![StringMatch::Exact(namespace.into())], ..Match::default() };
        let key = format!("shop/{}{namespace}", if dry_run { "trial-" } else { "" });
        let rules = vec![Rule { clauses: vec![Clause { matches: vec![m] }] }];
        Policy {
            key: key.into(),
            namespace: "shop".into(),
            scope: Scope::Namespace,
            action,
            dry_run,
            rules,
            unreadable: None,
        }
    }

    /// The sources of `admin`'s tests, whose one workload is shop/web-1 at 10.0.1.5, with policies.
    fn judging() -> Sources {
        let sources = sources(Shutdown::default().asker());
        let policies = vec![policy(Action::Allow, "front", false), policy(Action::Deny, "front", true)];
        let snapshot = (sources.snapshot)().apply(policies.into_iter().map(Change::Policy).collect());
        Sources { snapshot: Arc::new(move || snapshot.clone()), ..sources }
    }

    async fn asked(query: &str) -> (u16, Value) {
        let (status, body) = ask(admin(&judging()), &format!("GET /debug/authz?{query}")).await;
        (status, serde_json::from_str(&body).unwrap_or(Value::String(body)))
    }

    #[tokio::test]
    async fn a_verdict_is_explained_before_anybody_connects() {
        let from =
            |namespace| format!("dst=10.0.1.5:80&source_ip=10.0.9.9&source=spiffe://cluster.local/ns/{namespace}/sa/x");
        let (status, told) = asked(&from("front")).await;
        assert_eq!((status, &told["verdict"], &told["policy"]), (200, &json!("allow"), &json!("shop/front")));
        assert_eq!(told["dryRun"], json!({ "verdict": "deny", "reason": "denied", "policy": "shop/trial-front" }));
        let (status, told) = asked(&from("back")).await;
        assert_eq!((status, &told["verdict"], &told["reason"]), (200, &json!("deny"), &json!("denied")));
        assert_eq!(told["missed"][0]["policy"], "shop/front");
        assert_eq!(told["missed"][0]["field"], "namespaces");
        assert_eq!(told["connection"]["destination"], "Kubernetes//Pod/shop/web-1");
        let (_, told) = asked("dst=10.0.1.5:80&source_ip=10.0.9.9").await;
        assert!(told["detail"].as_str().unwrap().contains("a caller without identity"), "{told}");
    }

    #[tokio::test]
    async fn who_would_go_past_a_waypoint_is_told_which_it_is() {
        let sources = sources(Shutdown::default().asker());
        let snapshot = (sources.snapshot)();
        let mut workload = Workload::clone(snapshot.workloads().next().unwrap());
        let rule = Traversal { waypoint: "shop/wp".into(), identities: [].into(), ports: [80].into() };
        workload.traversal = [rule].into();
        let snapshot = snapshot.apply(vec![Change::Workload(workload)]);
        let sources = Sources { snapshot: Arc::new(move || snapshot.clone()), ..sources };
        let asked = async |port: u16| -> Value {
            let question = format!("GET /debug/authz?dst=10.0.1.5:{port}&source_ip=10.0.9.9");
            serde_json::from_str(&ask(admin(&sources), &question).await.1).unwrap()
        };
        let told = asked(80).await;
        assert_eq!((&told["reason"], &told["waypoints"]), (&json!("waypoint_required"), &json!(["shop/wp"])));
        assert!(told["detail"].as_str().unwrap().ends_with("come by way of waypoint shop/wp"), "{told}");
        assert_eq!(asked(81).await["verdict"], "allow");
    }

    #[tokio::test]
    async fn a_question_without_sense_is_answered_with_what_is_wrong() {
        for (query, why) in [
            ("", "dst is missing"),
            ("dst=web:80", "is not address:port"),
            ("dst=10.9.9.9:80&source_ip=10.0.0.1", "no workload has the address 10.9.9.9"),
            ("dst=10.0.1.5:80&source=web&source_ip=10.0.0.1", "source: identity"),
            ("dst=10.0.1.5:80&source_ip=x", "source_ip: \"x\""),
            ("dst=10.0.1.5:80&source=spiffe://cluster.local/ns/a/sa/unknown", "source_ip is missing"),
        ] {
            let (status, told) = asked(query).await;
            assert_eq!(status, 400, "{query}");
            assert!(told.as_str().unwrap().contains(why), "{query}: {told}");
        }
    }

    #[tokio::test]
    async fn the_last_denials_are_remembered_and_no_more() {
        let sources = judging();
        for i in 0..MAX_DENIALS + 10 {
            let (from, to) = ("10.0.9.9:40000".parse().unwrap(), "10.0.1.5:80".parse().unwrap());
            let mut record = sources.connections.begin(Direction::Inbound, DownstreamAddr::new(from), OrigDst::new(to));
            record.facts().verdict = Some(Verdict::Deny { reason: Reason::Denied, policy: None });
            record.refuse(Reason::Denied, format!("no policy allows it: {i}"));
        }
        let (status, body) = ask(admin(&sources), "GET /debug/denials?limit=100000").await;
        let told: Vec<Value> = serde_json::from_str(&body).unwrap();
        assert_eq!((status, told.len()), (200, MAX_DENIALS));
        assert_eq!(told[0]["detail"], format!("no policy allows it: {}", MAX_DENIALS + 9));
        assert_eq!(told[0]["src"]["addr"], "10.0.9.9:40000");
        assert_eq!((&told[0]["reason"], &told[0]["cut"]), (&json!("denied"), &json!(false)));
        assert_eq!(ask(admin(&sources), "GET /debug/denials?limit=x").await.0, 400);
    }
}
