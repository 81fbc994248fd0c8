//! What the fuzz targets do with their input: everything the node's processes parse from others. Each function must
//! return, whatever the bytes are, and asserts what must hold of whatever it could read.
//!
//! The targets in `tests/fuzz/fuzz_targets` call these under libFuzzer; the test below replays the committed corpus.

use std::fmt::{Debug, Display};
use std::str::FromStr;

use loam_api::convert::Decoder;
use loam_api::discovery::DeltaDiscoveryResponse;
use loam_core::authority::Authority;
use loam_core::headers::baggage::Baggage;
use loam_core::headers::forwarded::Forwarded;
use loam_core::headers::traceparent::Traceparent;
use loam_core::ids::{Hostname, Identity, ServiceKey, TrustDomain, WorkloadUid};
use loam_core::snapshot::Snapshot;
use loam_node::message::{FromAgent, FromZtunnel, ToZtunnel, Wire, decode, encode};
use prost::Message;

/// A fuzz target's name and what it does.
pub type Target = (&'static str, fn(&[u8]));

/// Every target.
pub const TARGETS: [Target; 8] = [
    ("connect_authority", connect_authority),
    ("connect_headers", connect_headers),
    ("spiffe_uri", spiffe_uri),
    ("certificate_san", certificate_san),
    ("xds_response", xds_response),
    ("keeper_to_ztunnel", keeper_to_ztunnel),
    ("ztunnel_to_keeper", ztunnel_to_keeper),
    ("agent_to_keeper", agent_to_keeper),
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
