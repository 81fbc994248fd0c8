//! Policies about how a backend is spoken to.

use std::sync::Arc;
use std::time::Duration;

use loam_core::http::traffic::{Budget, Roots, Session, Tls};
use loam_manifest::gateway::{BackendTlsPolicySpec, BackendTrafficPolicySpec, PolicyRef};

use super::duration::duration;
use super::rules::read_session;
use super::{ACCEPTED, RESOLVED_REFS};
use crate::resource::quoted;
use crate::status::{Condition, Reason};

/// The services that a policy names, each with the name of a port where it names one.
fn targets(references: &[PolicyRef]) -> Vec<(Arc<str>, Option<Arc<str>>)> {
    let services = references.iter().filter(|target| target.group.is_empty() && target.kind == "Service");
    services.map(|target| (target.name.as_str().into(), target.section_name.as_deref().map(Arc::from))).collect()
}

/// What an `XBackendTrafficPolicy` asks for.
#[derive(Debug, Clone, PartialEq)]
pub struct TrafficPolicy {
    /// The services of its namespace that it is about.
    pub services: Vec<(Arc<str>, Option<Arc<str>>)>,
    /// How many requests may be retries.
    pub budget: Option<Budget>,
    /// What keeps a client with its endpoint.
    pub session: Option<Session>,
    /// Whether it is in force.
    pub accepted: Condition,
    /// The version of the object.
    pub generation: Option<i64>,
}

/// Reads an `XBackendTrafficPolicy`. One that is wrong is about nobody: without it retries are bounded all the same.
pub fn backend_traffic(spec: &BackendTrafficPolicySpec, generation: Option<i64>) -> TrafficPolicy {
    let read = || {
        let session = spec.session_persistence.as_ref().map(read_session).transpose()?;
        Ok::<_, String>((spec.retry_constraint.is_some().then(|| budget(spec)).transpose()?, session))
    };
    let services = targets(&spec.target_refs);
    match read() {
        Ok((budget, session)) => {
            let accepted = Condition::is(ACCEPTED, Reason::Accepted, "the policy is in force");
            TrafficPolicy { services, budget, session, accepted, generation }
        }
        Err(why) => {
            let accepted = Condition::is_not(ACCEPTED, Reason::Invalid, why);
            TrafficPolicy { services, budget: None, session: None, accepted, generation }
        }
    }
}

fn budget(spec: &BackendTrafficPolicySpec) -> Result<Budget, String> {
    let constraint = spec.retry_constraint.clone().unwrap_or_default();
    let usual = Budget::default();
    let (share, rate) = (constraint.budget.unwrap_or_default(), constraint.min_retry_rate.unwrap_or_default());
    let percent = share.percent.map_or(Some(usual.percent), |p| u32::try_from(p).ok().filter(|p| *p <= 100));
    let count = rate.count.map_or(Some(usual.min_retries), |count| u32::try_from(count).ok());
    let interval = |text: Option<String>, usual: Duration| text.map_or(Ok(usual), |text| duration(&text));
    Ok(Budget {
        percent: percent.ok_or("the percentage of a retry budget is not between 0 and 100")?,
        interval: interval(share.interval, usual.interval)?,
        min_retries: count.ok_or("the count of a retry rate is no count")?,
        min_interval: interval(rate.interval, usual.min_interval)?,
    })
}

/// What a `BackendTLSPolicy` asks for.
#[derive(Debug, Clone, PartialEq)]
pub struct TlsPolicy {
    /// The services of its namespace that it is about.
    pub services: Vec<(Arc<str>, Option<Arc<str>>)>,
    /// How they are spoken to; an error says why nobody may be asked.
    pub tls: Result<Tls, Condition>,
    /// Whether the certificates that it refers to are there.
    pub resolved: Condition,
    /// The version of the object.
    pub generation: Option<i64>,
}

/// Reads a `BackendTLSPolicy`.
pub fn backend_tls(spec: &BackendTlsPolicySpec, generation: Option<i64>) -> TlsPolicy {
    TlsPolicy { services: targets(&spec.target_refs), tls: tls(spec), resolved: resolved(spec), generation }
}

fn resolved(spec: &BackendTlsPolicySpec) -> Condition {
    let not = |reason, message: String| Condition::is_not(RESOLVED_REFS, reason, message);
    match spec.validation.ca_certificate_refs.first() {
        None => Condition::is(RESOLVED_REFS, Reason::ResolvedRefs, "it refers to nothing"),
        Some(reference) if (reference.group.as_str(), reference.kind.as_str()) == ("", "ConfigMap") => {
            let message = format!("ConfigMap {} is not read", quoted(&reference.name));
            not(Reason::InvalidCACertificateRef, message)
        }
        Some(reference) => not(Reason::InvalidKind, format!("a {} holds no certificates", quoted(&reference.kind))),
    }
}

fn tls(spec: &BackendTlsPolicySpec) -> Result<Tls, Condition> {
    let not = |reason, message: String| Err(Condition::is_not(ACCEPTED, reason, message));
    let validation = &spec.validation;
    let roots = match (&validation.ca_certificate_refs[..], validation.well_known_ca_certificates.as_deref()) {
        ([], Some("System")) => Roots::System,
        ([], other) => {
            let message = format!("wellKnownCACertificates {} is not System", quoted(other.unwrap_or_default()));
            return not(Reason::NoValidCACertificate, message);
        }
        ([reference, ..], _) => {
            let message = format!(
                "certificates of {} {} are not read: use wellKnownCACertificates",
                quoted(&reference.kind),
                quoted(&reference.name)
            );
            return not(Reason::NoValidCACertificate, message);
        }
    };
    let Ok(server_name) = validation.hostname.parse() else {
        return not(Reason::Invalid, format!("{} is no host", quoted(&validation.hostname)));
    };
    let mut names = Vec::new();
    for name in &validation.subject_alt_names {
        match (name.r#type.as_str(), &name.hostname, &name.uri) {
            ("Hostname", Some(host), _) => names.push(host.as_str().into()),
            ("URI", _, Some(uri)) => names.push(uri.as_str().into()),
            (other, _, _) => return not(Reason::Invalid, format!("a name of type {} is not known", quoted(other))),
        }
    }
    Ok(Tls { server_name, names, roots })
}
