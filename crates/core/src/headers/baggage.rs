//! `baggage`: the labels of the workload at the other end (W3C Baggage).

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::{HeaderError, bounded};
use crate::workload::{Workload, WorkloadKind};

/// Most members read; the standard lets a sender have 180, our own have 7.
const MAX_MEMBERS: usize = 64;
/// Longest value kept: a Kubernetes name or a label value never reaches it.
const MAX_VALUE_BYTES: usize = 255;

const NAME: &str = "baggage";

/// What a workload says about itself; an unknown part is empty.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Baggage {
    /// Its cluster.
    pub cluster: Arc<str>,
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Name of its owner, such as the Deployment's.
    pub workload: Arc<str>,
    /// Kind of that owner.
    pub kind: WorkloadKind,
    /// Its canonical service.
    pub service_name: Arc<str>,
    /// The revision of that service.
    pub service_version: Arc<str>,
    /// Where it stands.
    pub region: Arc<str>,
    /// See `region`.
    pub zone: Arc<str>,
}

impl Baggage {
    /// What `workload` says about itself.
    pub fn of(workload: &Workload) -> Self {
        Self {
            cluster: workload.cluster.clone(),
            namespace: workload.namespace().into(),
            workload: workload.owner.clone(),
            kind: workload.kind,
            service_name: workload.canonical_name.clone(),
            service_version: workload.canonical_revision.clone(),
            region: workload.locality.region.clone(),
            zone: workload.locality.zone.clone(),
        }
    }
}

fn kind_key(kind: WorkloadKind) -> &'static str {
    match kind {
        WorkloadKind::Pod => "k8s.pod.name",
        WorkloadKind::Deployment => "k8s.deployment.name",
        WorkloadKind::CronJob => "k8s.cronjob.name",
        WorkloadKind::Job => "k8s.job.name",
    }
}

impl fmt::Display for Baggage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let members = [
            ("k8s.cluster.name", &self.cluster),
            ("k8s.namespace.name", &self.namespace),
            (kind_key(self.kind), &self.workload),
            ("service.name", &self.service_name),
            ("service.version", &self.service_version),
            ("cloud.region", &self.region),
            ("cloud.availability_zone", &self.zone),
        ];
        for (i, (key, value)) in members.iter().filter(|(_, v)| !v.is_empty()).enumerate() {
            write!(f, "{}{key}=", if i == 0 { "" } else { "," })?;
            encode(value, f)?;
        }
        Ok(())
    }
}

/// Percent-encodes what may not stand in a baggage value.
fn encode(value: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    for b in value.bytes() {
        // baggage-octet without '%' (W3C Baggage 3.3.1)
        match b {
            0x21 | 0x23..=0x24 | 0x26..=0x2B | 0x2D..=0x3A | 0x3C..=0x5B | 0x5D..=0x7E => {
                fmt::Write::write_char(f, char::from(b))?;
            }
            _ => write!(f, "%{b:02X}")?,
        }
    }
    Ok(())
}

fn decode(value: &str) -> Option<Arc<str>> {
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.bytes();
    while let Some(b) = rest.next() {
        match b {
            b'%' => {
                let (high, low) = (rest.next()?, rest.next()?);
                let digit = |b: u8| char::from(b).to_digit(16);
                bytes.push(u8::try_from(digit(high)? * 16 + digit(low)?).ok()?);
            }
            0x21..=0x7E => bytes.push(b),
            _ => return None,
        }
    }
    let text = String::from_utf8(bytes).ok()?;
    // It ends up in logs and labels.
    (text.len() <= MAX_VALUE_BYTES && !text.chars().any(char::is_control)).then(|| text.into())
}

impl FromStr for Baggage {
    type Err = HeaderError;

    /// Members with other keys are skipped; the first of two members with one key counts.
    fn from_str(value: &str) -> Result<Self, HeaderError> {
        let malformed = |why| HeaderError::Malformed { name: NAME, why };
        let mut baggage = Baggage::default();
        for (i, member) in bounded(NAME, value)?.split(',').enumerate() {
            if i == MAX_MEMBERS {
                return Err(malformed("has more than 64 members"));
            }
            let member = member.trim();
            if member.is_empty() {
                continue;
            }
            // Properties follow a semicolon; none is known to us.
            let pair = member.split(';').next().unwrap_or_default();
            let (key, value) = pair.split_once('=').ok_or_else(|| malformed("has a member without '='"))?;
            let mut kind = None;
            let place = match key.trim() {
                "k8s.cluster.name" => &mut baggage.cluster,
                "k8s.namespace.name" => &mut baggage.namespace,
                "service.name" => &mut baggage.service_name,
                "service.version" => &mut baggage.service_version,
                "cloud.region" => &mut baggage.region,
                "cloud.availability_zone" => &mut baggage.zone,
                key => {
                    let kinds = [WorkloadKind::Pod, WorkloadKind::Deployment, WorkloadKind::CronJob, WorkloadKind::Job];
                    kind = kinds.into_iter().find(|kind| kind_key(*kind) == key);
                    if kind.is_none() {
                        continue;
                    }
                    &mut baggage.workload
                }
            };
            if place.is_empty() {
                *place = decode(value.trim()).ok_or_else(|| malformed("has a value that is not text"))?;
                // A kind without a name says nothing.
                if let Some(kind) = kind.filter(|_| !place.is_empty()) {
                    baggage.kind = kind;
                }
            }
        }
        Ok(baggage)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_read_back_as_they_were_written() {
        let text = "k8s.cluster.name=Kubernetes,k8s.namespace.name=shop,k8s.deployment.name=web,\
                    service.name=web,service.version=v1,cloud.region=r1,cloud.availability_zone=z1";
        let baggage: Baggage = text.parse().unwrap();
        assert_eq!((&*baggage.workload, baggage.kind), ("web", WorkloadKind::Deployment));
        assert_eq!(baggage.to_string(), text);
    }

    #[test]
    fn empty_labels_are_left_out_and_odd_ones_encoded() {
        let baggage = Baggage { cluster: "a b,c=\u{e9}".into(), zone: "z;%".into(), ..Baggage::default() };
        let text = baggage.to_string();
        assert_eq!(text, "k8s.cluster.name=a%20b%2Cc=%C3%A9,cloud.availability_zone=z%3B%25");
        assert_eq!(text.parse::<Baggage>().unwrap(), baggage);
    }

    #[test]
    fn unknown_keys_properties_and_spaces_are_passed_over() {
        let baggage: Baggage = " userId=1 ;p=2 , service.name = web;x ,,service.name=other".parse().unwrap();
        assert_eq!(baggage, Baggage { service_name: "web".into(), ..Baggage::default() });
    }

    #[test]
    fn hostile_values_are_refused() {
        for text in [
            "service.name",
            "service.name=%",
            "service.name=%4",
            "service.name=%zz",
            "service.name=%+1",
            "service.name=%00",
            "service.name=%0a",
            "service.name=%ff",
            "service.name=a b",
            "service.name=\u{e9}",
            &format!("service.name={}", "a".repeat(256)),
            &"x=1,".repeat(65),
            &format!("x={}", "a".repeat(super::super::MAX_HEADER_BYTES)),
        ] {
            assert!(text.parse::<Baggage>().is_err(), "{text:.40?} was accepted");
        }
    }
}
