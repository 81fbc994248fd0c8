//! What the fuzz targets do with their input: everything the node's processes parse from others. Each function must
//! return, whatever the bytes are, and asserts what must hold of whatever it could read.
//!
//! The targets in `tests/fuzz/fuzz_targets` call these under libFuzzer; the test below replays the committed corpus.

use std::fmt::{Debug, Display};
use std::str::FromStr;
use std::sync::Arc;

use loam_api::convert::Decoder;
use loam_api::discovery::DeltaDiscoveryResponse;
use loam_api::security::Authorization;
use loam_core::authority::Authority;
use loam_core::authz::{Facts, explain, judge};
use loam_core::headers::baggage::Baggage;
use loam_core::headers::forwarded::Forwarded;
use loam_core::headers::traceparent::Traceparent;
use loam_core::ids::{Hostname, Identity, ServiceKey, TrustDomain, WorkloadUid};
use loam_core::policy::Policy;
use loam_core::service::{Service, ServiceAddr};
use loam_core::snapshot::{Change, Snapshot};
use loam_core::workload::Workload;
use loam_dns::{Client, Family, Found, Lookup, Outcome, Query, Transport, Unanswered};
use loam_node::message::{FromAgent, FromZtunnel, ToZtunnel, Wire, decode, encode};
use prost::Message;

/// A fuzz target's name and what it does.
pub type Target = (&'static str, fn(&[u8]));

/// Every target.
pub const TARGETS: [Target; 11] = [
    ("connect_authority", connect_authority),
    ("connect_headers", connect_headers),
    ("spiffe_uri", spiffe_uri),
    ("certificate_san", certificate_san),
    ("xds_response", xds_response),
    ("keeper_to_ztunnel", keeper_to_ztunnel),
    ("ztunnel_to_keeper", ztunnel_to_keeper),
    ("agent_to_keeper", agent_to_keeper),
    ("dns_query", dns_query),
    ("dns_reply", dns_reply),
    ("policy_resource", policy_resource),
];

/// `:authority` of a CONNECT.
pub fn connect_authority(data: &[u8]) {
    round_trip::<Authority>(data);
}

/// `baggage`, `forwarded` and `traceparent` of a CONNECT.
pub fn connect_headers(data: &[u8]) {
    round_trip::<Baggage>(data);
    round_trip::<Forwarded>(data);
    round_trip::<Traceparent>(data);
}

/// The URI in a certificate, and the other names of the mesh.
pub fn spiffe_uri(data: &[u8]) {
    round_trip::<Identity>(data);
    round_trip::<TrustDomain>(data);
    round_trip::<Hostname>(data);
    round_trip::<ServiceKey>(data);
    round_trip::<WorkloadUid>(data);
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(identity) = loam_tls::cert::identity_in_uri(text) {
        assert_eq!(identity.to_string(), text, "a SPIFFE ID has one spelling");
    }
}

/// A certificate of a peer.
pub fn certificate_san(data: &[u8]) {
    if let Ok(identity) = loam_tls::cert::identity_in_certificate(data) {
        let text = identity.to_string();
        assert!(
            data.windows(text.len()).any(|window| window == text.as_bytes()),
            "{text} is not in the certificate it was read from"
        );
    }
}

/// A response of the control plane, applied to a mesh.
pub fn xds_response(data: &[u8]) {
    let Ok(response) = DeltaDiscoveryResponse::decode(data) else { return };
    let mut decoder = Decoder::default();
    let mut changes = Vec::new();
    for resource in &response.resources {
        let body = resource.resource.as_ref().map(|any| any.value.as_ref()).unwrap_or_default();
        changes.extend(decoder.decode(&response.type_url, &resource.name, body));
    }
    let removals = response.removed_resources.iter().flat_map(|name| decoder.removed(&response.type_url, name));
    let whole = Snapshot::default().apply(changes.clone());
    let mut step_by_step = Snapshot::default();
    for change in changes {
        step_by_step = step_by_step.apply(vec![change]);
    }
    assert_eq!(whole.workload_count(), step_by_step.workload_count());
    whole.apply(removals.collect());
}

/// A policy, in force for connections of all sorts: alone it is asked directly, among many it is looked up, and the
/// answers are the same.
pub fn policy_resource(data: &[u8]) {
    let Ok(message) = Authorization::decode(data) else { return };
    let Ok(policy) = Decoder::default().policy(message) else { return };
    let (name, body) = loam_api::encode::policy(&policy);
    let Ok(Change::Policy(again)) = Decoder::default().decode(loam_api::AUTHORIZATION_TYPE, &name, &body) else {
        panic!("{policy:?} was read, and as it is written it is not")
    };
    assert_eq!(again, policy);
    let Ok(identity) = "spiffe://cluster.local/ns/a/sa/web".parse::<Identity>() else { return };
    let mut workload = Workload::new(WorkloadUid::of_pod("c", "a", "web"), "web", identity.clone());
    let copies = (0..20).map(|i| Policy { key: format!("{}.{i}", policy.key).into(), ..policy.clone() });
    let copies: Vec<Policy> = copies.collect();
    workload.policies = copies.iter().map(|copy| copy.key.clone()).chain([policy.key.clone()]).collect();
    let many = Snapshot::default().apply(
        copies
            .into_iter()
            .map(Change::Policy)
            .chain([Change::Policy(policy.clone()), Change::Workload(workload.clone())])
            .collect(),
    );
    workload.policies = [policy.key.clone()].into();
    let alone = Snapshot::default().apply(vec![Change::Policy(policy), Change::Workload(workload.clone())]);
    let among = many.workload(&workload.uid).map_or(&workload, |workload| workload);
    for source in [None, Some(&identity)] {
        for (source_ip, port) in [([10, 0, 0, 1], 80), ([192, 0, 2, 1], 443)] {
            let (source_ip, destination_ip) = (source_ip.into(), [10, 0, 0, 2].into());
            let facts = Facts { source, source_ip, destination_ip, destination_port: port };
            let one = judge(&alone, &workload, &facts);
            assert_eq!(one.is_allowed(), judge(&many, among, &facts).is_allowed(), "{facts:?}");
            let explained = explain(&many, among, &facts);
            assert_eq!(explained.verdict.is_allowed(), one.is_allowed());
            // Each text of a policy may have a kilobyte.
            assert!(explained.to_string().len() < 32 * 1024, "an explanation is a line");
        }
    }
}

/// What a keeper, or somebody in its place, tells the ztunnel.
pub fn keeper_to_ztunnel(data: &[u8]) {
    message::<ToZtunnel>(data);
}

/// What a ztunnel, which reads hostile bytes, tells the keeper, which is root.
pub fn ztunnel_to_keeper(data: &[u8]) {
    message::<FromZtunnel>(data);
}

/// What an agent tells the keeper.
pub fn agent_to_keeper(data: &[u8]) {
    message::<FromAgent>(data);
}

/// What a pod asks a name server, by datagram and on a connection.
pub fn dns_query(data: &[u8]) {
    let mesh = mesh_with_a_service();
    let client = Client::new("shop", "", true, &["shop.svc.cluster.local", "cluster.local"], 5);
    for transport in [Transport::Udp, Transport::Tcp] {
        let answer = match Query::read(data, transport) {
            Err(Unanswered::Ignored) => continue,
            Err(Unanswered::Refused(refusal)) => {
                assert!(refusal.len() <= data.len() + 11, "a refusal is larger than what caused it");
                refusal
            }
            Ok(query) => match query.decide(&mesh, &client, 1) {
                Outcome::Answer { bytes, .. } => bytes,
                Outcome::Forward(forward) => {
                    let sent = forward.question(0x1234);
                    assert!(
                        sent.len() <= data.len() && sent[2..] == data[2..sent.len()],
                        "the question is another one"
                    );
                    forward.unanswered()
                }
            },
        };
        assert!(answer.len() <= 4096, "an answer of {} bytes", answer.len());
        assert!(answer[..2] == data[..2] && answer[2] & 0x80 != 0, "not the answer to this question");
    }
}

/// What comes back from a pod's name server, or from somebody in its place.
pub fn dns_reply(data: &[u8]) {
    let question = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x03www\x07example\x03com\0\0\x01\0\x01";
    let Ok(query) = Query::read(question, Transport::Udp) else { panic!("a question cannot be read") };
    let Outcome::Forward(forward) =
        query.decide(&mesh_with_a_service(), &Client::new::<&str>("shop", "", true, &[], 5), 1)
    else {
        panic!("the mesh does not have this name")
    };
    let Some(id) = data.first_chunk().map(|id| u16::from_be_bytes(*id)) else { return };
    if let Ok(reply) = forward.accept(id, data.to_vec()) {
        assert!(reply.bytes.len() <= 512, "the resolver did not ask for {} bytes", reply.bytes.len());
        assert!(reply.bytes[..2] == question[..2] && reply.bytes[2] & 0x80 != 0, "the resolver would not take it");
    }
    let Ok(host) = "www.example.com".parse() else { panic!("a name cannot be read") };
    let Some(lookup) = Lookup::new(&host, Family::V4) else { panic!("a name cannot be asked for") };
    if let Found::Addresses(addresses, ttl) = lookup.read(data) {
        assert!((1..=64).contains(&addresses.len()) && ttl <= i32::MAX as u32, "{addresses:?} for {ttl} s");
    }
}

fn mesh_with_a_service() -> Snapshot {
    let Ok(key) = "shop/web.shop.svc.cluster.local".parse() else { panic!("a service's key cannot be read") };
    let Ok(range) = "10.1.0.1/32".parse() else { panic!("an address cannot be read") };
    let addresses = vec![ServiceAddr { network: Arc::default(), range }];
    Snapshot::default().apply(vec![Change::Service(Service { addresses, ..Service::new(key, "web") })])
}

/// What could be read is written and read back as the same.
fn round_trip<T: FromStr + Display + Debug + PartialEq>(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(value) = text.parse::<T>() else { return };
    let written = value.to_string();
    let Ok(again) = written.parse::<T>() else { panic!("{text:?} was read, and written as {written:?}, which is not") };
    assert_eq!(again, value, "{text:?} became {written:?}");
}

/// The first byte is the number of descriptors that came along.
fn message<M: Wire + PartialEq + Debug>(data: &[u8]) {
    let Some((descriptors, bytes)) = data.split_first() else { return };
    let Ok(message) = decode::<M>(bytes, usize::from(*descriptors)) else { return };
    let Ok(written) = encode(&message) else { panic!("{message:?} was read and cannot be written") };
    assert!(
        decode::<M>(&written, usize::from(*descriptors)).is_ok_and(|again| again == message),
        "{message:?} is not read back"
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn the_committed_corpus_passes_every_target() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../corpus");
        for (name, target) in TARGETS {
            let mut cases = 0;
            for entry in std::fs::read_dir(corpus.join(name)).unwrap_or_else(|e| panic!("corpus of {name}: {e}")) {
                target(&std::fs::read(entry.unwrap().path()).unwrap());
                cases += 1;
            }
            assert!(cases >= 5, "{name} has {cases} cases");
        }
    }

    #[test]
    fn cut_and_flipped_seeds_pass_every_target() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../corpus");
        for (name, target) in TARGETS {
            for entry in std::fs::read_dir(corpus.join(name)).unwrap() {
                let mut seed = std::fs::read(entry.unwrap().path()).unwrap();
                seed.truncate(4096);
                for end in 0..seed.len() {
                    target(&seed[..end]);
                    seed[end] ^= 1 << (end % 8);
                    target(&seed);
                    seed[end] ^= 1 << (end % 8);
                }
            }
        }
    }
}
