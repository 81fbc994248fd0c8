use bytes::Bytes;
use loam_api::{encode, security, workload as wire};
use loam_core::addr::NetworkAddr;
use loam_core::authz::{Facts, judge};
use loam_core::ids::{Identity, TrustDomain, WorkloadUid};
use loam_core::policy::{Action, Policy, Rule, Scope};
use loam_core::workload::Workload;
use loam_rt::metrics::Registry;
use loam_xds::client::Resource;
use prost::Message;

use super::*;

const GOOD: &str = "Kubernetes//Pod/shop/good";
const BAD: &str = "Kubernetes//Pod/shop/bad";

fn fed() -> (Arc<Mesh>, Feed) {
    let mesh = Arc::new(Mesh::default());
    (mesh.clone(), Feed::new(mesh, Metrics::new(&Registry::default()), "root".into()))
}

fn resource(name: &str, body: impl Into<Bytes>) -> Resource {
    Resource { name: name.into(), version: String::new(), body: body.into() }
}

fn policy(name: &str, action: Action) -> Resource {
    let policy = Policy {
        key: format!("shop/{name}").into(),
        namespace: "shop".into(),
        scope: Scope::Namespace,
        action,
        dry_run: false,
        rules: vec![Rule::default()],
        unreadable: None,
    };
    let (name, body) = encode::policy(&policy);
    resource(&name, body)
}

/// What proxies are told of a pod at 10.0.0.`last`.
fn pod(uid: &str, last: u8) -> wire::Workload {
    wire::Workload {
        uid: uid.into(),
        name: uid.rsplit('/').next().unwrap().into(),
        namespace: "shop".into(),
        addresses: vec![Bytes::copy_from_slice(&[10, 0, 0, last])],
        ..Default::default()
    }
}

fn body(workload: wire::Workload) -> Bytes {
    wire::Address { r#type: Some(wire::address::Type::Workload(workload)) }.encode_to_vec().into()
}

fn addresses(resources: Vec<Resource>, removed: &[&str]) -> Update {
    let removed = removed.iter().map(|name| (*name).into()).collect();
    Update { type_url: ADDRESS_TYPE.into(), resources, removed, more: false }
}

/// The names of all workloads.
fn workloads(mesh: &Mesh) -> Vec<String> {
    let mut names: Vec<_> = mesh.load().workloads().map(|w| w.name.to_string()).collect();
    names.sort_unstable();
    names
}

#[test]
fn nothing_passes_before_the_last_piece_of_the_policies() {
    let (mesh, mut feed) = fed();
    let identity = Identity::new(TrustDomain::default(), "shop", "api").unwrap();
    let workload = Workload::new(WorkloadUid::of_pod("Kubernetes", "shop", "api"), "api", identity);
    let ip = "10.0.0.1".parse().unwrap();
    let facts = Facts { source: None, source_ip: ip, destination_ip: ip, destination_port: 80 };
    let verdict = || judge(&mesh.load(), &workload, &facts).to_string();
    let mut piece = |resource, more| {
        let update =
            Update { type_url: AUTHORIZATION_TYPE.into(), resources: vec![resource], removed: Vec::new(), more };
        assert_eq!(feed.apply(&update), []);
    };
    assert_eq!(verdict(), "no policy has arrived yet");
    piece(policy("everybody", Action::Allow), true);
    assert_eq!(verdict(), "no policy has arrived yet");
    piece(policy("nobody", Action::Deny), false);
    assert_eq!(verdict(), "denied by policy shop/nobody");
}

#[test]
fn no_address_is_a_strangers_before_the_last_piece_of_the_addresses() {
    let (mesh, mut feed) = fed();
    let mut piece = |resource, more| feed.apply(&Update { more, ..addresses(vec![resource], &[]) });
    piece(resource(GOOD, body(pod(GOOD, 1))), true);
    assert!(!mesh.load().has_addresses());
    piece(resource(BAD, body(pod(BAD, 2))), false);
    assert!(mesh.load().has_addresses());
}

#[test]
fn a_resource_that_is_wrong_is_refused_by_name_and_its_siblings_and_its_past_stay() {
    let whole = body(pod(BAD, 2));
    let with = |spoil: &dyn Fn(&mut wire::Workload)| {
        let mut pod = pod(BAD, 2);
        spoil(&mut pod);
        body(pod)
    };
    let port = |number| wire::PortList { ports: vec![wire::Port { service_port: number, ..Default::default() }] };
    let serving = |number| with(&|w| drop(w.services.insert("shop/web.shop.svc".into(), port(number))));
    let bytes = |n: usize| with(&|w| w.addresses = vec![vec![1; n].into()]);
    // Field 1 within field 1 within field 1, and so on: as deep as nobody needs.
    let deep = (0..200).fold(Vec::new(), |inner: Vec<u8>, _| {
        let mut outer = vec![0x0a];
        prost::encoding::encode_varint(inner.len() as u64, &mut outer);
        outer.extend(inner);
        outer
    });
    let not_utf8 = {
        let mut bytes = whole.to_vec();
        let at = bytes.windows(3).rposition(|w| w == b"bad").unwrap();
        bytes[at] = 0xff;
        bytes
    };
    for (what, bytes, why) in [
        ("truncated", whole.slice(..whole.len() - 1), "message: "),
        ("nothing", Bytes::new(), "type: is neither a workload nor a service"),
        ("too deep", deep.into(), "message: "),
        ("not UTF-8", not_utf8.into(), "message: "),
        ("a protocol that nobody knows", with(&|w| w.tunnel_protocol = 4711), "tunnel_protocol: 4711 is not known"),
        ("port 0", serving(0), "services[shop/web.shop.svc].ports[0].service_port: 0 is not a port"),
        ("port 65536", serving(65536), "services[shop/web.shop.svc].ports[0].service_port: 65536 is not a port"),
        ("port 2^32-1", serving(u32::MAX), "services[shop/web.shop.svc].ports[0].service_port: 4294967295 is not"),
        ("an address of 0 bytes", bytes(0), "addresses[0]: an address has 4 or 16 bytes, not 0"),
        ("an address of 3 bytes", bytes(3), "addresses[0]: an address has 4 or 16 bytes, not 3"),
        ("an address of 5 bytes", bytes(5), "addresses[0]: an address has 4 or 16 bytes, not 5"),
        ("an address of 17 bytes", bytes(17), "addresses[0]: an address has 4 or 16 bytes, not 17"),
        ("another's name", body(pod(GOOD, 2)), "name: the message says"),
        ("a policy", policy("p", Action::Deny).body, "message: "),
    ] {
        let (mesh, mut feed) = fed();
        assert_eq!(feed.apply(&addresses(vec![resource(BAD, whole.clone())], &[])), []);
        let before = mesh.load().workload(&BAD.parse().unwrap()).cloned();
        let siblings = vec![resource(BAD, bytes), resource(GOOD, body(pod(GOOD, 1)))];
        let rejected = feed.apply(&addresses(siblings, &[]));
        assert_eq!(rejected.iter().map(|r| &*r.name).collect::<Vec<_>>(), [BAD], "{what}: {rejected:?}");
        assert!(rejected[0].why.starts_with(why), "{what}: {rejected:?}");
        assert_eq!(workloads(&mesh), ["bad", "good"], "{what}");
        assert_eq!(mesh.load().workload(&BAD.parse().unwrap()), before.as_ref(), "{what}");
    }
}

#[test]
fn what_is_odd_but_can_be_meant_is_taken() {
    let at = |mesh: &Mesh, last: u8| {
        let addr = NetworkAddr { network: "".into(), ip: [10, 0, 0, last].into() };
        mesh.load().workload_at(&addr).map(|w| w.name.to_string())
    };
    let (mesh, mut feed) = fed();
    let mut apply = |resources, removed: &[&str]| assert_eq!(feed.apply(&addresses(resources, removed)), []);
    // Nothing at all, and the removal of what is not there and cannot be.
    apply(Vec::new(), &[]);
    apply(Vec::new(), &["", GOOD, "shop/nobody.svc", "\u{7f}"]);
    // One name twice: the later counts. A name in both lists is there afterwards.
    apply(vec![resource(GOOD, body(pod(GOOD, 1))), resource(GOOD, body(pod(GOOD, 2)))], &[]);
    assert_eq!([at(&mesh, 1), at(&mesh, 2)], [None, Some("good".into())]);
    apply(vec![resource(GOOD, body(pod(GOOD, 3)))], &[GOOD]);
    assert_eq!([at(&mesh, 2), at(&mesh, 3)], [None, Some("good".into())]);
    // Two that claim one address: the same one has it in whatever order they came.
    for order in [[BAD, GOOD], [GOOD, BAD]] {
        apply(order.map(|uid| resource(uid, body(pod(uid, 4)))).into(), &[BAD, GOOD]);
        assert_eq!(at(&mesh, 4), Some("bad".into()), "{order:?}");
    }
    // What it refers to is not there, or is itself.
    let lost = wire::Workload {
        services: [("shop/nobody.svc".into(), wire::PortList::default())].into(),
        authorization_policies: vec!["shop/nobody".into()],
        waypoint: Some(wire::GatewayAddress {
            destination: Some(wire::gateway_address::Destination::Address(wire::NetworkAddress {
                address: Bytes::copy_from_slice(&[10, 0, 0, 5]),
                ..Default::default()
            })),
            hbone_mtls_port: 15008,
            bypass_when_absent: false,
        }),
        ..pod(BAD, 5)
    };
    // Field 1000 of the envelope: of a version to come.
    let newer = [&body(lost)[..], &[0xc0, 0x3e, 0x01]].concat();
    apply(vec![resource(BAD, newer)], &[]);
    assert_eq!(workloads(&mesh), ["bad", "good"]);
    apply(Vec::new(), &[BAD, GOOD]);
    assert!(workloads(&mesh).is_empty());
}

#[test]
fn resources_of_a_type_that_nobody_asked_for_change_nothing() {
    let (mesh, mut feed) = fed();
    let update = Update { type_url: "type.googleapis.com/x".into(), ..addresses(vec![resource("a", vec![1])], &["b"]) };
    let rejected = feed.apply(&update);
    assert_eq!(rejected.iter().map(|r| &*r.name).collect::<Vec<_>>(), ["a"]);
    assert_eq!(mesh.load().revision(), 0);
}

#[test]
fn a_policy_that_cannot_be_read_is_refused_by_name_and_stands_for_a_denial() {
    let (mesh, mut feed) = fed();
    let unknown = security::Authorization {
        name: "p".into(),
        namespace: "shop".into(),
        scope: 1,
        action: 4711,
        ..Default::default()
    };
    let update = |body: Vec<u8>, removed: &[&str]| Update {
        type_url: AUTHORIZATION_TYPE.into(),
        ..addresses(if body.is_empty() { Vec::new() } else { vec![resource("shop/p", body)] }, removed)
    };
    let rejected = feed.apply(&update(unknown.encode_to_vec(), &[]));
    assert_eq!(rejected, [Rejected { name: "shop/p".into(), why: "action: 4711 is not known".into() }]);
    let stand_in = mesh.load().policy("shop/p").cloned().expect("it stands for the policy");
    assert_eq!((stand_in.action, stand_in.scope), (Action::Deny, Scope::Namespace));
    assert_eq!(feed.apply(&update(Vec::new(), &["shop/p"])), []);
    assert!(mesh.load().policy("shop/p").is_none());
}
