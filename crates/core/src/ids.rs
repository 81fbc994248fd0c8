//! Names that are parsed once and valid ever after.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// A name that does not have the required form. The text says which rule it breaks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} {value:?}: {why}")]
pub struct NameError {
    kind: &'static str,
    value: String,
    why: &'static str,
}

impl NameError {
    fn new(kind: &'static str, value: &str, why: &'static str) -> Self {
        // Names come from the network: quote a bounded piece of them.
        Self { kind, value: value.chars().take(128).collect(), why }
    }
}

/// Longest name accepted anywhere, as long as a name in DNS, which also bounds trust domains (SPIFFE-ID 2.1).
pub const MAX_NAME_BYTES: usize = 255;

/// Longest hostname: with its lengths and its end it fills the 255 bytes that DNS has for a name (RFC 1035 2.3.4).
pub const MAX_HOSTNAME_BYTES: usize = 253;

/// The SPIFFE trust domain: lower-case letters, digits, `.`, `-` and `_` (SPIFFE-ID 2.1).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    /// Istio's default, which the wire leaves out.
    pub const DEFAULT: &str = "cluster.local";

    /// The domain as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for TrustDomain {
    fn default() -> Self {
        Self(Self::DEFAULT.into())
    }
}

impl FromStr for TrustDomain {
    type Err = NameError;

    fn from_str(s: &str) -> Result<Self, NameError> {
        let valid = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_');
        match s {
            "" => Err(NameError::new("trust domain", s, "is empty")),
            _ if s.len() > MAX_NAME_BYTES => Err(NameError::new("trust domain", s, "is longer than 255 bytes")),
            _ if !s.bytes().all(valid) => {
                Err(NameError::new("trust domain", s, "has a character other than a-z, 0-9, '.', '-' or '_'"))
            }
            _ => Ok(Self(s.into())),
        }
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Who a workload is: `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity {
    trust_domain: TrustDomain,
    namespace: Arc<str>,
    service_account: Arc<str>,
}

impl Identity {
    /// An identity from its parts; namespace and service account must be non-empty path segments.
    pub fn new(trust_domain: TrustDomain, namespace: &str, service_account: &str) -> Result<Self, NameError> {
        Ok(Self {
            trust_domain,
            namespace: segment("namespace", namespace)?.into(),
            service_account: segment("service account", service_account)?.into(),
        })
    }

    /// An identity whose parts share memory with those of others; the same rules as for [`Identity::new`].
    pub fn shared(
        trust_domain: TrustDomain,
        namespace: Arc<str>,
        service_account: Arc<str>,
    ) -> Result<Self, NameError> {
        segment("namespace", &namespace)?;
        segment("service account", &service_account)?;
        Ok(Self { trust_domain, namespace, service_account })
    }

    /// The domain whose authority vouches for this identity.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The Kubernetes namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The Kubernetes service account.
    pub fn service_account(&self) -> &str {
        &self.service_account
    }
}

/// A path segment of a SPIFFE ID (SPIFFE-ID 2.2): letters, digits, `.`, `-`, `_`, and not only dots.
fn segment<'a>(kind: &'static str, s: &'a str) -> Result<&'a str, NameError> {
    let valid = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    match s {
        "" => Err(NameError::new(kind, s, "is empty")),
        "." | ".." => Err(NameError::new(kind, s, "is a relative path segment")),
        _ if s.len() > MAX_NAME_BYTES => Err(NameError::new(kind, s, "is longer than 255 bytes")),
        _ if !s.bytes().all(valid) => {
            Err(NameError::new(kind, s, "has a character other than letters, digits, '.', '-' or '_'"))
        }
        _ => Ok(s),
    }
}

impl FromStr for Identity {
    type Err = NameError;

    fn from_str(s: &str) -> Result<Self, NameError> {
        let fail = |why| Err(NameError::new("identity", s, why));
        let Some(rest) = s.strip_prefix("spiffe://") else { return fail("does not begin with spiffe://") };
        let mut parts = rest.split('/');
        let (td, ns, namespace, sa, account, more) =
            (parts.next(), parts.next(), parts.next(), parts.next(), parts.next(), parts.next());
        match (td, ns, namespace, sa, account, more) {
            (Some(td), Some("ns"), Some(namespace), Some("sa"), Some(account), None) => {
                Self::new(td.parse()?, namespace, account)
            }
            _ => fail("is not spiffe://<trust domain>/ns/<namespace>/sa/<service account>"),
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}/ns/{}/sa/{}", self.trust_domain, self.namespace, self.service_account)
    }
}

/// A DNS name in lower case without its final dot.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Hostname(Arc<str>);

impl Hostname {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Hostname {
    type Err = NameError;

    fn from_str(s: &str) -> Result<Self, NameError> {
        let name = valid_hostname(s)?;
        Ok(Self(name.to_ascii_lowercase().into()))
    }
}

impl TryFrom<Arc<str>> for Hostname {
    type Error = NameError;

    /// Keeps the given memory when the name is in its final form.
    fn try_from(s: Arc<str>) -> Result<Self, NameError> {
        let name = valid_hostname(&s)?;
        if name.len() == s.len() && !name.bytes().any(|b| b.is_ascii_uppercase()) {
            return Ok(Self(s));
        }
        Ok(Self(name.to_ascii_lowercase().into()))
    }
}

/// The name without its final dot, if it is a hostname.
pub(crate) fn valid_hostname(s: &str) -> Result<&str, NameError> {
    let name = s.strip_suffix('.').unwrap_or(s);
    let fail = |why| Err(NameError::new("hostname", s, why));
    if name.is_empty() {
        return fail("is empty");
    }
    if name.len() > MAX_HOSTNAME_BYTES {
        return fail("is longer than 253 bytes");
    }
    for (i, label) in name.split('.').enumerate() {
        let wildcard = i == 0 && label == "*" && name.len() > 1;
        let valid = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
        if label.is_empty() || label.len() > 63 {
            return fail("has a label that is empty or longer than 63 bytes");
        }
        if !wildcard && !label.bytes().all(valid) {
            return fail("has a character other than letters, digits, '-', '_' and a leading '*.'");
        }
    }
    Ok(name)
}

impl fmt::Display for Hostname {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A workload's name on the wire, unique in the mesh: `<cluster>//Pod/<namespace>/<name>` and its kin.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkloadUid(Arc<str>);

impl WorkloadUid {
    /// The uid of a pod of `cluster`.
    pub fn of_pod(cluster: &str, namespace: &str, name: &str) -> Self {
        Self(format!("{cluster}//Pod/{namespace}/{name}").into())
    }

    /// The uid as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl WorkloadUid {
    /// The uid as shared text.
    pub fn as_shared(&self) -> &Arc<str> {
        &self.0
    }
}

impl FromStr for WorkloadUid {
    type Err = NameError;

    fn from_str(s: &str) -> Result<Self, NameError> {
        match s {
            "" => Err(NameError::new("workload uid", s, "is empty")),
            _ if s.len() > 4 * MAX_NAME_BYTES => Err(NameError::new("workload uid", s, "is longer than 1020 bytes")),
            _ if s.chars().any(char::is_control) => Err(NameError::new("workload uid", s, "has a control character")),
            _ => Ok(Self(s.into())),
        }
    }
}

impl fmt::Display for WorkloadUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The key of a service: `<namespace>/<hostname>` on the wire.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceKey {
    /// Namespace of the object that declares the service.
    pub namespace: Arc<str>,
    /// Its full DNS name.
    pub hostname: Hostname,
}

impl ServiceKey {
    /// A key whose parts share memory with those of others.
    pub fn shared(namespace: Arc<str>, hostname: Hostname) -> Result<Self, NameError> {
        segment("namespace", &namespace)?;
        Ok(Self { namespace, hostname })
    }
}

impl FromStr for ServiceKey {
    type Err = NameError;

    fn from_str(s: &str) -> Result<Self, NameError> {
        match s.split_once('/') {
            Some((namespace, hostname)) => {
                Ok(Self { namespace: segment("namespace", namespace)?.into(), hostname: hostname.parse()? })
            }
            None => Err(NameError::new("service", s, "is not <namespace>/<hostname>")),
        }
    }
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.hostname)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_read_back_as_it_was_written() {
        let text = "spiffe://td.example/ns/shop/sa/web";
        let identity: Identity = text.parse().unwrap();
        assert_eq!((identity.namespace(), identity.service_account()), ("shop", "web"));
        assert_eq!(identity.to_string(), text);
    }

    #[test]
    fn an_identity_of_any_other_form_is_refused() {
        for text in [
            "",
            "spiffe://",
            "spiffe://td",
            "spiffe://td/ns/a/sa",
            "spiffe://td/ns/a/sa/",
            "spiffe://td/ns//sa/b",
            "spiffe://td/ns/a/sa/b/",
            "spiffe://td/ns/a/sa/b/..",
            "spiffe://td/ns/../sa/b",
            "spiffe://td/sa/b/ns/a",
            "spiffe://TD/ns/a/sa/b",
            "spiffe://td:80/ns/a/sa/b",
            "spiffe://u@td/ns/a/sa/b",
            "spiffe://td/ns/a/sa/b?x",
            "spiffe://td/ns/a/sa/b#x",
            "spiffe://td/ns/a/sa/%62",
            "spiffe://td/ns/a/sa/b\0",
            "SPIFFE://td/ns/a/sa/b",
            "https://td/ns/a/sa/b",
        ] {
            assert!(text.parse::<Identity>().is_err(), "{text:?} was accepted");
        }
        assert!(format!("spiffe://td/ns/a/sa/{}", "b".repeat(2049)).parse::<Identity>().is_err());
    }

    #[test]
    fn hostnames_compare_without_case_and_final_dot() {
        assert_eq!("Web.Shop.SVC.".parse::<Hostname>().unwrap(), "web.shop.svc".parse().unwrap());
        for text in ["", ".", "a..b", "a b", "*", "a.*.b", &"a".repeat(64)] {
            assert!(text.parse::<Hostname>().is_err(), "{text:?} was accepted");
        }
        assert!("*.example.org".parse::<Hostname>().is_ok());
        let long = |bytes: usize| format!("{}{}", "a.".repeat(100), "b.".repeat(100))[..bytes - 1].to_owned() + "c";
        assert!(long(253).parse::<Hostname>().is_ok() && format!("{}.", long(253)).parse::<Hostname>().is_ok());
        assert!(long(255).parse::<Hostname>().is_err() && "ab.".repeat(85)[..254].parse::<Hostname>().is_err());
    }
}
