use bytes::Bytes;
use loam_core::policy::Scope;
use loam_core::snapshot::Snapshot;

use super::*;
use crate::encode;
use crate::workload as wire;

const UID: &str = "Kubernetes//Pod/shop/web-1";

/// A workload with everything said.
fn full_workload() -> wire::Workload {
    let port = |service_port, target_port| wire::Port { service_port, target_port, app_protocol: 2 };
    wire::Workload {
        uid: UID.into(),
        name: "web-1".into(),
        namespace: "shop".into(),
        addresses: vec![Bytes::from_static(&[10, 0, 0, 1]), Bytes::copy_from_slice(&[0xfd; 16])],
        network: "net".into(),
        tunnel_protocol: 1,
        trust_domain: "td.example".into(),
        service_account: "web".into(),
        waypoint: Some(wire::GatewayAddress {
            destination: Some(wire::gateway_address::Destination::Hostname(wire::NamespacedHostname {
                namespace: "shop".into(),
                hostname: "wp.shop.svc".into(),
            })),
            hbone_mtls_port: 15008,
            bypass_when_absent: true,
        }),
        node: "n1".into(),
        canonical_name: "web".into(),
        canonical_revision: "v1".into(),
        workload_type: 0,
        workload_name: "web".into(),
        native_tunnel: false,
        authorization_policies: vec!["shop/a".into(), "shop/b".into()],
        status: 1,
        cluster_id: "east".into(),
        network_gateway: Some(wire::GatewayAddress {
            destination: Some(wire::gateway_address::Destination::Address(wire::NetworkAddress {
                network: "net".into(),
                address: Bytes::from_static(&[1, 2, 3, 4]),
                length: None,
            })),
            hbone_mtls_port: 15008,
            bypass_when_absent: false,
        }),
        hostname: "web.example".into(),
        services: [
            ("shop/api.shop.svc".to_owned(), wire::PortList { ports: vec![port(80, 8080), port(81, 0)] }),
            ("shop/web.shop.svc".to_owned(), wire::PortList::default()),
        ]
        .into(),
        application_tunnel: None,
        locality: Some(wire::Locality { region: "r".into(), zone: "z".into(), subzone: "s".into() }),
        network_mode: 1,
        capacity: Some(7),
        egress: Some(wire::Egress { mode: 1, origin: "Sidecar shop/default".into() }),
        traversal: vec![wire::Traversal {
            waypoint: "shop/wp".into(),
            identities: vec!["spiffe://td.example/ns/shop/sa/wp".into()],
            ports: vec![8080, 9090],
        }],
    }
}

fn full_service() -> wire::Service {
    let vip = |bytes: &'static [u8], length| wire::NetworkAddress {
        network: String::new(),
        address: Bytes::from_static(bytes),
        length,
    };
    let gateway = full_workload().waypoint;
    wire::Service {
        name: "web".into(),
        namespace: "shop".into(),
        hostname: "web.shop.svc".into(),
        addresses: vec![vip(&[10, 1, 0, 1], None), vip(&[10, 2, 0, 0], Some(16)), vip(&[0xfd; 16], None)],
        ports: vec![wire::Port { service_port: 80, target_port: 8080, app_protocol: 4 }],
        subject_alt_names: vec!["spiffe://td/ns/shop/sa/web".into()],
        waypoint: gateway.clone(),
        load_balancing: Some(wire::LoadBalancing {
            routing_preference: vec![6, 1, 2],
            mode: 2,
            health_policy: 1,
            affinity: 1,
        }),
        ip_families: 3,
        canonical: true,
        ingress_use_waypoint: false,
        weighted_waypoints: vec![wire::WeightedWaypoint { destination: gateway, weight: 10 }],
        visibility: 1,
        visible_to: vec!["bank".into(), "shop".into()],
    }
}

fn full_policy() -> security::Authorization {
    use security::string_match::MatchType;
    let string = |m| security::StringMatch { match_type: Some(m) };
    let range = || vec![security::Address { address: Bytes::from_static(&[10, 0, 0, 0]), length: 8 }];
    let account = || vec![security::ServiceAccountMatch { namespace: "a".into(), service_account: "b".into() }];
    let m = security::Match {
        namespaces: vec![string(MatchType::Exact("a".into()))],
        not_namespaces: vec![string(MatchType::Prefix("b".into()))],
        principals: vec![string(MatchType::Suffix("c".into()))],
        not_principals: vec![string(MatchType::Presence(()))],
        source_ips: range(),
        not_source_ips: range(),
        destination_ips: range(),
        not_destination_ips: range(),
        destination_ports: vec![1, 65535],
        not_destination_ports: vec![80],
        service_accounts: account(),
        not_service_accounts: account(),
    };
    security::Authorization {
        name: "p".into(),
        namespace: "shop".into(),
        scope: 2,
        action: 1,
        rules: vec![security::Rule { clauses: vec![security::Clause { matches: vec![m] }] }],
        dry_run: true,
    }
}

#[test]
fn what_is_read_and_written_again_is_the_same_message() {
    assert_eq!(wire::Workload::from(&Workload::try_from(full_workload()).unwrap()), full_workload());
    assert_eq!(wire::Service::from(&Service::try_from(full_service()).unwrap()), full_service());
    assert_eq!(security::Authorization::from(&Policy::try_from(full_policy()).unwrap()), full_policy());
}

#[test]
fn what_the_wire_leaves_out_has_its_meaning_and_is_left_out_again() {
    let least = wire::Workload { uid: UID.into(), namespace: "shop".into(), workload_type: 2, ..Default::default() };
    let workload = Workload::try_from(least.clone()).unwrap();
    assert_eq!(workload.identity.to_string(), "spiffe://cluster.local/ns/shop/sa/default");
    assert_eq!((&*workload.cluster, workload.capacity), ("Kubernetes", 1));
    assert_eq!(wire::Workload::from(&workload), least);
}

/// Applies `spoil` to the full workload and expects an error that begins with `expected`.
#[track_caller]
fn bad_workload(expected: &str, spoil: impl FnOnce(&mut wire::Workload)) {
    let mut message = full_workload();
    spoil(&mut message);
    let error = Workload::try_from(message).unwrap_err().to_string();
    assert!(error.starts_with(&format!("{UID}: {expected}")), "{error}");
}

#[test]
fn a_bad_workload_is_refused_with_its_name_and_field() {
    for bytes in [0, 3, 5, 17] {
        bad_workload("addresses[1]: an address has 4 or 16 bytes", |w| w.addresses[1] = vec![0; bytes].into());
    }
    bad_workload("addresses[2]: 10.0.0.1 is there twice", |w| w.addresses.push(w.addresses[0].clone()));
    bad_workload("addresses[2]: 10.0.0.1 is there twice", |w| {
        w.addresses.push(Bytes::from_static(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 1]));
    });
    bad_workload("addresses: more than 64", |w| {
        w.addresses = (0..65).map(|i| Bytes::copy_from_slice(&[10, 1, 0, i])).collect();
    });
    bad_workload("tunnel_protocol: LEGACY_ISTIO_MTLS", |w| w.tunnel_protocol = 2);
    bad_workload("tunnel_protocol: 3 is not known", |w| w.tunnel_protocol = 3);
    bad_workload("identity: namespace \"\": is empty", |w| w.namespace.clear());
    bad_workload("identity: service account", |w| w.service_account = "a/b".into());
    bad_workload("trust_domain: ", |w| w.trust_domain = "TD".into());
    bad_workload("hostname: ", |w| w.hostname = "a b".into());
    bad_workload("node: has a control character", |w| w.node = "a\nb".into());
    bad_workload("node: 1025 bytes", |w| w.node = "a".repeat(1025));
    bad_workload("authorization_policies[0]: ", |w| w.authorization_policies[0] = "no-slash".into());
    bad_workload("services[x]: ", |w| drop(w.services.insert("x".into(), Default::default())));
    bad_workload("services[a/b..c]: ", |w| drop(w.services.insert("a/b..c".into(), Default::default())));
    for (number, field) in [(0, "service_port"), (65536, "service_port"), (u32::MAX, "service_port")] {
        bad_workload(&format!("services[shop/api.shop.svc].ports[1].{field}: {number} is not a port"), |w| {
            w.services.get_mut("shop/api.shop.svc").unwrap().ports[1].service_port = number;
        });
    }
    bad_workload("services[shop/api.shop.svc].ports[0].target_port: 65536", |w| {
        w.services.get_mut("shop/api.shop.svc").unwrap().ports[0].target_port = 65536;
    });
    bad_workload("waypoint.destination: is missing", |w| w.waypoint.as_mut().unwrap().destination = None);
    bad_workload("waypoint.hbone_mtls_port: 0", |w| w.waypoint.as_mut().unwrap().hbone_mtls_port = 0);
    bad_workload("traversal[0].identities[1]: ", |w| w.traversal[0].identities.push("wp".into()));
    bad_workload("traversal[0].ports[1]: 65536 is not a port", |w| w.traversal[0].ports[1] = 65536);
    let nameless = Workload::try_from(wire::Workload { uid: String::new(), ..full_workload() }).unwrap_err();
    assert_eq!(nameless.field, "uid");
}

#[test]
fn a_value_that_is_not_known_is_read_as_the_safest_one_where_it_is_not_about_security() {
    let workload = wire::Workload { status: 9, network_mode: 9, workload_type: 9, ..full_workload() };
    let workload = Workload::try_from(workload).unwrap();
    assert_eq!(workload.health, loam_core::workload::Health::Unhealthy);
    assert_eq!(workload.network_mode, loam_core::workload::NetworkMode::Standard);
    let service = wire::Service { visibility: 9, ip_families: 9, ..full_service() };
    let service = Service::try_from(service).unwrap();
    assert!(!service.is_visible_to("other") && !service.is_visible_to("bank") && service.is_visible_to("shop"));
}

#[test]
fn a_bad_service_is_refused_with_its_name_and_field() {
    let check = |expected: &str, spoil: &dyn Fn(&mut wire::Service)| {
        let mut message = full_service();
        spoil(&mut message);
        let error = Service::try_from(message).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    check("shop/web.shop.svc: addresses[0]: the prefix length", &|s| s.addresses[0].length = Some(33));
    check("shop/web.shop.svc: addresses[2]: the prefix length", &|s| s.addresses[2].length = Some(129));
    check("addresses[0]: an address has", &|s| s.addresses[0].address = Bytes::new());
    check("ports[0].service_port: 70000", &|s| s.ports[0].service_port = 70000);
    check("weighted_waypoints[0].destination: is missing", &|s| s.weighted_waypoints[0].destination = None);
    check("shop/: namespace/hostname: ", &|s| s.hostname.clear());
}

#[test]
fn of_two_ports_with_one_number_the_first_counts() {
    let port = |service_port, target_port| wire::Port { service_port, target_port, app_protocol: 0 };
    let service = wire::Service { ports: vec![port(53, 1), port(80, 2), port(53, 3)], ..full_service() };
    let service = Service::try_from(service).unwrap();
    assert_eq!(service.ports.iter().map(|p| (p.service_port, p.target_port)).collect::<Vec<_>>(), [(53, 1), (80, 2)]);
}

#[test]
fn names_that_are_no_identities_are_not_accepted_as_such() {
    let mut message = full_service();
    message.subject_alt_names = vec!["web.example".into(), "spiffe://td/ns/a/sa/b".into()];
    assert_eq!(Service::try_from(message).unwrap().subject_alt_names.len(), 1);
}

#[test]
fn a_policy_is_understood_whole_or_refused_with_its_name_and_field() {
    let check = |expected: &str, spoil: &dyn Fn(&mut security::Authorization)| {
        let mut message = full_policy();
        spoil(&mut message);
        let error = Policy::try_from(message).unwrap_err().to_string();
        assert!(error.starts_with(&format!("shop/{expected}")), "{error}");
    };
    fn one(p: &mut security::Authorization) -> &mut security::Match {
        &mut p.rules[0].clauses[0].matches[0]
    }
    check("p: scope: 3 is not known", &|p| p.scope = 3);
    check("p: action: 7 is not known", &|p| p.action = 7);
    check("p: rules[0].clauses[0].matches[0].namespaces[0]: is empty", &|p| one(p).namespaces[0].match_type = None);
    check("p: rules[0].clauses[0].matches[0].not_source_ips[0]: an address", &|p| {
        one(p).not_source_ips[0].address = Bytes::from_static(&[1]);
    });
    check("p: rules[0].clauses[0].matches[0].source_ips[0]: the prefix", &|p| one(p).source_ips[0].length = 33);
    check("p: rules[0].clauses[0].matches[0].destination_ports[1]: 65536", &|p| one(p).destination_ports[1] = 65536);
    check(": name: ", &|p| p.name.clear());
    check("a/b: name: ", &|p| p.name = "a/b".into());
}

#[test]
fn a_resource_is_decoded_under_its_own_name_only() {
    let mut decoder = Decoder::default();
    let workload = Workload::try_from(full_workload()).unwrap();
    let (name, body) = encode::workload(&workload);
    assert!(matches!(decoder.decode(ADDRESS_TYPE, &name, &body), Ok(Change::Workload(w)) if w == workload));
    let error = decoder.decode(ADDRESS_TYPE, "other", &body).unwrap_err();
    assert_eq!(error.to_string(), format!("other: name: the message says {UID:?}"));
    let (name, body) = encode::policy(&full_policy().try_into().unwrap());
    assert!(matches!(decoder.decode(AUTHORIZATION_TYPE, &name, &body), Ok(Change::Policy(_))));
    assert_eq!(decoder.decode("x", &name, &body).unwrap_err().field, "type_url");
}

#[test]
fn a_broken_message_is_refused_and_an_unknown_field_is_not() {
    let mut decoder = Decoder::default();
    let (name, body) = encode::service(&full_service().try_into().unwrap());
    for end in 0..body.len() {
        let error = decoder.decode(ADDRESS_TYPE, &name, &body[..end]).unwrap_err();
        assert_eq!(error.resource, name);
    }
    assert_eq!(decoder.decode(ADDRESS_TYPE, "n", &[]).unwrap_err().field, "type");
    // Field 1000, a varint.
    let extended = [&body[..], &[0xc0, 0x3e, 0x01]].concat();
    assert!(decoder.decode(ADDRESS_TYPE, &name, &extended).is_ok());
    // A group within a group, without end.
    assert!(decoder.decode(ADDRESS_TYPE, &name, &[0x0b; 1000]).is_err());
}

#[test]
fn doubt_about_a_policy_is_as_wide_as_what_could_be_read_of_it() {
    let decoder = Decoder::default();
    let doubt = |name: &str, body: &[u8]| match decoder.doubt(AUTHORIZATION_TYPE, name, body, "root", "why") {
        Some(Change::UnreadablePolicy(policy)) => Some((policy.key.to_string(), policy.scope)),
        None => None,
        Some(other) => panic!("{other:?}"),
    };
    let with = |edit: &dyn Fn(&mut security::Authorization)| {
        let mut message = full_policy();
        message.action = 4711;
        message.dry_run = false;
        edit(&mut message);
        message.encode_to_vec()
    };
    let of = |name: &str, scope| Some((name.to_owned(), scope));
    assert_eq!(doubt("shop/p", &with(&|m| m.scope = 0)), of("shop/p", Scope::Global));
    assert_eq!(doubt("root/p", &with(&|m| m.scope = 1)), of("root/p", Scope::Namespace));
    assert_eq!(doubt("root/p", &with(&|m| m.scope = 2)), of("root/p", Scope::Workload));
    assert_eq!(doubt("shop/p", &with(&|m| m.scope = 3)), of("shop/p", Scope::Namespace));
    assert_eq!(doubt("root/p", &with(&|m| m.scope = 3)), of("root/p", Scope::Global));
    assert_eq!(doubt("shop/p", &[0x0b]), of("shop/p", Scope::Namespace));
    assert_eq!(doubt("root/p", &[0x0b]), of("root/p", Scope::Global));
    // It says itself that nothing depends on it.
    assert_eq!(doubt("shop/p", &with(&|m| m.dry_run = true)), None);
    assert!(decoder.doubt(ADDRESS_TYPE, "shop/p", &[0x0b], "root", "why").is_none());
}

#[test]
fn a_removal_takes_away_what_has_the_name() {
    let mut decoder = Decoder::default();
    let resources =
        [encode::workload(&full_workload().try_into().unwrap()), encode::service(&full_service().try_into().unwrap())];
    let mut mesh = Snapshot::default();
    for (name, body) in &resources {
        mesh = mesh.apply(vec![decoder.decode(ADDRESS_TYPE, name, body).unwrap()]);
    }
    assert_eq!((mesh.workload_count(), mesh.services().count()), (1, 1));
    for (name, _) in &resources {
        mesh = mesh.apply(decoder.removed(ADDRESS_TYPE, name));
    }
    assert_eq!((mesh.workload_count(), mesh.services().count()), (0, 0));
    assert!(decoder.removed(ADDRESS_TYPE, "").is_empty());
    assert!(decoder.removed("x", UID).is_empty());
}

#[test]
fn workloads_share_what_they_have_in_common() {
    let mut decoder = Decoder::default();
    let a = decoder.workload(full_workload()).unwrap();
    let b = decoder.workload(full_workload()).unwrap();
    assert!(Arc::ptr_eq(&a.services, &b.services) && Arc::ptr_eq(&a.locality, &b.locality));
    assert!(Arc::ptr_eq(&a.node, &b.node) && Arc::ptr_eq(&a.policies, &b.policies));
    assert!(std::ptr::eq(a.identity.namespace(), b.identity.namespace()));
}

#[test]
fn a_mode_of_egress_that_is_not_known_is_the_strictest() {
    use loam_core::egress::Egress;
    let egress = |mode: i32, origin: &str| {
        let egress = Some(wire::Egress { mode, origin: origin.into() });
        Workload::try_from(wire::Workload { egress, ..full_workload() }).map(|w| w.egress)
    };
    let registry_only = |origin: &str| Ok(Egress::RegistryOnly { origin: origin.into() });
    assert_eq!(egress(0, ""), Ok(Egress::AllowAny));
    assert_eq!(egress(1, "Sidecar shop/default"), registry_only("Sidecar shop/default"));
    for mode in [2, -1, i32::MAX] {
        assert_eq!(egress(mode, ""), registry_only("the outbound traffic policy"), "{mode}");
    }
    assert!(egress(1, "a\nb").is_err());
    assert!(egress(1, &"x".repeat(1025)).is_err());
}

mod waypoints {
    use loam_core::http::route::{Route, ServiceRoutes};
    use loam_core::http::traffic::ServiceTraffic;

    use super::*;
    use crate::waypoint as wire;
    use crate::{ROUTES_TYPE, TRAFFIC_TYPE};

    const NAME: &str = "infra/w/shop/web.shop.svc";

    fn pattern(pattern: wire::pattern::Type) -> Option<wire::Pattern> {
        Some(wire::Pattern { r#type: Some(pattern) })
    }

    fn filter(filter: wire::filter::Type) -> wire::Filter {
        wire::Filter { r#type: Some(filter) }
    }

    fn share() -> Option<wire::Share> {
        Some(wire::Share { parts: 1, of: 3 })
    }

    fn upstream() -> Option<wire::Upstream> {
        let service = wire::ServicePort {
            namespace: "shop".into(),
            hostname: "b.shop.svc".into(),
            port: 80,
            subset: "v1".into(),
        };
        Some(wire::Upstream { r#type: Some(wire::upstream::Type::Service(service)) })
    }

    fn session() -> wire::Session {
        let cookie = wire::session::Cookie { name: "s".into(), path: "/".into(), permanent: true };
        wire::Session {
            token: Some(wire::session::Token::Cookie(cookie)),
            absolute_timeout_millis: Some(1),
            idle_timeout_millis: Some(2),
        }
    }

    /// A rule with everything said.
    fn rule() -> wire::Rule {
        use wire::filter::Type;
        let header = wire::Header { name: "a".into(), value: Bytes::from_static(b"b") };
        let edits = wire::HeaderEdits { set: vec![header.clone()], add: vec![], remove: vec!["c".into()] };
        let path = |edit| Some(wire::PathEdit { r#type: Some(edit) });
        let redirect = wire::Redirect {
            scheme: wire::redirect::Scheme::Https.into(),
            host: "h.org".into(),
            port: 8443,
            path: path(wire::path_edit::Type::Full("/x".into())),
            status: 301,
        };
        let rewrite = wire::Rewrite { host: "h.org".into(), path: path(wire::path_edit::Type::Prefix("/y".into())) };
        let origin = |origin| wire::cors::Origin { r#type: Some(origin) };
        let wildcard = wire::cors::Wildcard { before: "https://".into(), behind: ".org".into() };
        let cors = wire::Cors {
            allow_origins: vec![
                origin(wire::cors::origin::Type::Any(true)),
                origin(wire::cors::origin::Type::Exact("https://a.org".into())),
                origin(wire::cors::origin::Type::Wildcard(wildcard)),
            ],
            allow_methods: Some(wire::cors::Allowed { all: true, these: vec![] }),
            allow_headers: Some(wire::cors::Allowed { all: false, these: vec!["x".into()] }),
            expose_headers: None,
            max_age_millis: Some(5000),
            credentials: true,
        };
        let one_match = wire::Match {
            path: Some(wire::PathMatch { r#type: Some(wire::path_match::Type::Prefix("/v1".into())) }),
            method: "GET".into(),
            headers: vec![wire::ValueMatch {
                name: "a".into(),
                value: pattern(wire::pattern::Type::Regex("b+".into())),
                absent: true,
            }],
            query: vec![wire::ValueMatch {
                name: "q".into(),
                value: pattern(wire::pattern::Type::Exact("1".into())),
                absent: false,
            }],
        };
        let method = wire::GrpcMethod { service: pattern(wire::pattern::Type::Exact("s.S".into())), method: None };
        let grpc = wire::Match {
            path: Some(wire::PathMatch { r#type: Some(wire::path_match::Type::Grpc(method)) }),
            ..wire::Match::default()
        };
        let invalid = wire::InvalidReference {
            reference: "nobody".into(),
            why: wire::invalid_reference::Why::BackendNotFound.into(),
        };
        wire::Rule {
            name: "first".into(),
            matches: vec![one_match, grpc],
            filters: vec![
                filter(Type::RequestHeaders(edits.clone())),
                filter(Type::ResponseHeaders(edits)),
                filter(Type::Redirect(redirect)),
                filter(Type::Rewrite(rewrite)),
                filter(Type::Mirror(wire::Mirror { upstream: upstream(), share: share() })),
                filter(Type::Cors(cors)),
                filter(Type::Respond(wire::Respond { status: 404, body: "no".into() })),
                filter(Type::Fault(wire::Fault {
                    delayed: share(),
                    delay_millis: 5,
                    aborted: share(),
                    abort_status: 503,
                })),
                filter(Type::Unknown("teleport".into())),
            ],
            backends: vec![
                wire::Backend { weight: 2, upstream: upstream(), filters: vec![] },
                wire::Backend {
                    weight: 1,
                    upstream: Some(wire::Upstream { r#type: Some(wire::upstream::Type::Invalid(invalid)) }),
                    filters: vec![],
                },
            ],
            request_timeout_millis: Some(1000),
            backend_timeout_millis: Some(100),
            retry: Some(wire::Retry {
                attempts: 2,
                statuses: vec![503],
                any_5xx: true,
                connect_failure: true,
                reset: true,
                refused_stream: true,
                timeout: true,
                grpc: vec![14],
                backoff_millis: 25,
                max_backoff_millis: 250,
            }),
            session: Some(session()),
        }
    }

    fn routes(rule: wire::Rule) -> wire::ServiceRoutes {
        let route = wire::Route {
            kind: wire::route::Kind::Http.into(),
            namespace: "shop".into(),
            name: "r".into(),
            created: 7,
            ports: vec![80, 8080],
            hostnames: vec!["*.a.org".into()],
            order: wire::route::Order::Listed.into(),
            rules: vec![rule],
        };
        wire::ServiceRoutes {
            gateway: "infra/w".into(),
            namespace: "shop".into(),
            hostname: "web.shop.svc".into(),
            routes: vec![route],
        }
    }

    fn decoded(message: wire::ServiceRoutes) -> Result<ServiceRoutes, ConvertError> {
        match Decoder::default().decode(ROUTES_TYPE, NAME, &message.encode_to_vec())? {
            Change::Routes(routes) => Ok(routes),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn routes_come_back_as_they_went() {
        let read = decoded(routes(rule())).unwrap();
        let (name, body) = encode::routes("infra/w", &read);
        assert_eq!(name, NAME);
        assert_eq!(wire::ServiceRoutes::decode(&*body).unwrap(), routes(rule()));
        let route: &Route = &read.routes[0];
        assert_eq!((route.created, &route.ports[..], route.rules[0].backends.len()), (7, &[80, 8080][..], 2));
    }

    #[test]
    fn what_must_not_be_passed_over_refuses_the_resource_by_its_field() {
        let without_path = wire::Match { path: Some(wire::PathMatch { r#type: None }), ..wire::Match::default() };
        let header = |name: &str| wire::Match {
            headers: vec![wire::ValueMatch {
                name: name.into(),
                value: pattern(wire::pattern::Type::Exact("b".into())),
                absent: false,
            }],
            ..wire::Match::default()
        };
        let path = |path| wire::Match { path: Some(wire::PathMatch { r#type: Some(path) }), ..wire::Match::default() };
        for (wrong, field) in [
            (without_path, "routes[0].rules[0].matches[1].path"),
            (header("a b"), "routes[0].rules[0].matches[1].headers[0].name"),
            (path(wire::path_match::Type::Regex("(".into())), "routes[0].rules[0].matches[1].path"),
        ] {
            let matches = vec![wire::Match::default(), wrong];
            let error = decoded(routes(wire::Rule { matches, ..rule() })).unwrap_err();
            assert_eq!((error.resource.as_str(), error.field.as_str()), (NAME, field));
        }
        let mut unknown = routes(rule());
        unknown.routes[0].kind = 99;
        assert_eq!(decoded(unknown).unwrap_err().field, "routes[0].kind");
        let other = wire::ServiceRoutes { gateway: "infra/other".into(), ..routes(rule()) };
        assert_eq!(decoded(other).unwrap_err().field, "name");
    }

    #[test]
    fn a_filter_or_a_backend_of_an_unknown_kind_fails_where_it_stands() {
        use loam_core::http::backend::Upstream;
        use loam_core::http::filter::Filter;
        let unknown = wire::Rule {
            filters: vec![wire::Filter { r#type: None }],
            backends: vec![wire::Backend { weight: 1, upstream: None, filters: vec![] }],
            ..wire::Rule::default()
        };
        let read = decoded(routes(unknown)).unwrap();
        let rule = &read.routes[0].rules[0];
        assert!(
            matches!(rule.filters[..], [Filter::Unknown(_)])
                && matches!(rule.backends[0].upstream, Upstream::Invalid { .. })
        );
    }

    #[test]
    fn traffic_comes_back_as_it_went() {
        let traffic = wire::Traffic {
            algorithm: Some(wire::Algorithm {
                kind: wire::algorithm::Kind::Ring.into(),
                hash_on: vec![wire::HashOn { r#type: Some(wire::hash_on::Type::Header("a".into())) }],
            }),
            slow_start_millis: Some(3),
            limits: Some(wire::Limits {
                connections: Some(1),
                pending: Some(2),
                requests: Some(3),
                retries: Some(4),
                requests_per_connection: Some(5),
                connect_timeout_millis: Some(6),
                idle_timeout_millis: Some(7),
            }),
            outliers: Some(wire::Outliers { consecutive_5xx: 1, max_percent: 10, ..wire::Outliers::default() }),
            budget: Some(wire::Budget { percent: 1, interval_millis: 2, min_retries: 3, min_interval_millis: 4 }),
            session: Some(session()),
            tls: Some(wire::Tls {
                server_name: "a.org".into(),
                names: vec!["b.org".into()],
                roots: Some(wire::tls::Roots::Pem("pem".into())),
            }),
        };
        let message = wire::ServiceTraffic {
            gateway: "infra/w".into(),
            namespace: "shop".into(),
            hostname: "web.shop.svc".into(),
            traffic: Some(traffic.clone()),
            ports: vec![wire::PortTraffic { port: 80, traffic: Some(traffic.clone()) }],
            subsets: vec![wire::Subset {
                name: "v1".into(),
                labels: [("version".into(), "v1".into())].into(),
                traffic: Some(traffic),
            }],
        };
        let change = Decoder::default().decode(TRAFFIC_TYPE, NAME, &message.encode_to_vec()).unwrap();
        let Change::Traffic(read) = change else { panic!("{change:?}") };
        let read: ServiceTraffic = read;
        assert_eq!(wire::ServiceTraffic::decode(&*encode::traffic("infra/w", &read).1).unwrap(), message);
    }

    #[test]
    fn the_removal_of_a_waypoints_resource_names_its_service() {
        let removed = Decoder::default().removed(ROUTES_TYPE, NAME);
        assert!(matches!(&removed[..], [Change::RemoveRoutes(key)] if key.to_string() == "shop/web.shop.svc"));
        assert!(Decoder::default().removed(TRAFFIC_TYPE, "shop/web.shop.svc").is_empty());
    }
}
