//! Patterns for identities. What a manifest names is a literal, or one with `*` at one end: nothing else is a pattern,
//! and nothing becomes one by putting names together.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use loam_core::ids::{Identity, TrustDomain};
use loam_core::policy::{ServiceAccount, StringMatch};

/// Longest pattern: an identity of the longest parts fits, and so does the pattern into a field of the wire.
const MAX_PATTERN_BYTES: usize = 900;

/// The mesh's own trust domain and those that count as the same.
#[derive(Debug, Clone)]
pub struct TrustDomains(Vec<TrustDomain>);

impl TrustDomains {
    /// The mesh's own and its aliases.
    pub fn new(own: &TrustDomain, aliases: &[TrustDomain]) -> Self {
        let mut all = vec![own.clone()];
        aliases.iter().for_each(|alias| match all.contains(alias) {
            true => {}
            false => all.push(alias.clone()),
        });
        Self(all)
    }

    fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(TrustDomain::as_str)
    }

    /// Whether a policy means the mesh by this name. Istio's default does, whatever the mesh is called.
    fn is_ours(&self, domain: &str) -> bool {
        domain == TrustDomain::DEFAULT || self.iter().any(|own| own == domain)
    }
}

/// A pattern as it is written: a literal, `x*`, `*x`, or `*`.
pub fn pattern(text: &str) -> Result<StringMatch, &'static str> {
    if text.is_empty() {
        return Err("is empty");
    }
    if text.len() > MAX_PATTERN_BYTES {
        return Err("is longer than 900 bytes");
    }
    if text.chars().any(char::is_control) {
        return Err("has a control character");
    }
    let (rest, matched): (&str, fn(Arc<str>) -> StringMatch) = match (text.strip_prefix('*'), text.strip_suffix('*')) {
        (Some(""), _) => return Ok(StringMatch::Presence),
        (Some(rest), _) => (rest, StringMatch::Suffix),
        (None, Some(rest)) => (rest, StringMatch::Prefix),
        (None, None) => (text, StringMatch::Exact),
    };
    match rest.contains('*') {
        true => Err("has more than a single '*' at one of its ends"),
        false => Ok(matched(rest.into())),
    }
}

/// A pattern for a namespace.
pub fn namespace(text: &str) -> Result<StringMatch, &'static str> {
    match text.contains('/') {
        true => Err("has a slash, which no namespace has"),
        false => pattern(text),
    }
}

/// Patterns for principals: one that names a trust domain of the mesh stands for all of them.
pub fn principals(text: &str, domains: &TrustDomains) -> Result<Vec<StringMatch>, String> {
    if text.starts_with("spiffe://") {
        return Err("is written without spiffe://".to_owned());
    }
    let written = pattern(text)?;
    if let StringMatch::Exact(exact) = &written {
        let form = "is not <trust domain>/ns/<namespace>/sa/<service account>";
        format!("spiffe://{exact}").parse::<Identity>().map_err(|_| form)?;
    }
    let Some((domain, rest)) = text.split_once('/') else { return Ok(vec![written]) };
    if domain == "*" {
        return Ok(vec![written]);
    }
    let of = |domain: &str| pattern(&format!("{domain}/{rest}"));
    match domain.strip_prefix('*') {
        // All of ours are meant as soon as one is, and the pattern goes on to mean others like it.
        Some(end) if domains.iter().any(|own| own.ends_with(end)) => {
            let others = domains.iter().filter(|own| !own.ends_with(end));
            let others: Vec<_> = others.map(of).collect::<Result<_, _>>()?;
            Ok(std::iter::once(written).chain(others).collect())
        }
        None if domains.is_ours(domain) => Ok(domains.iter().map(of).collect::<Result<_, _>>()?),
        Some(_) | None => Ok(vec![written]),
    }
}

/// Patterns for the principals of a trust domain; `None` for one that cannot be told at L4.
pub fn trust_domain(text: &str, domains: &TrustDomains) -> Result<Option<Vec<StringMatch>>, String> {
    let begins = |domain: &str| StringMatch::Prefix(format!("{domain}/").into());
    match pattern(text)? {
        StringMatch::Exact(domain) => {
            domain.parse::<TrustDomain>().map_err(|error| error.to_string())?;
            match domains.is_ours(&domain) {
                true => Ok(Some(domains.iter().map(begins).collect())),
                false => Ok(Some(vec![begins(&domain)])),
            }
        }
        StringMatch::Prefix(_) if text.contains('/') => Err("has a slash, which no trust domain has".to_owned()),
        StringMatch::Suffix(_) => Ok(None),
        any @ (StringMatch::Prefix(_) | StringMatch::Presence) => Ok(Some(vec![any])),
    }
}

/// Patterns for what fits one of both; `None` if that cannot be written as patterns.
pub fn both(principals: &[StringMatch], domains: &[StringMatch]) -> Option<Vec<StringMatch>> {
    let mut common = Vec::new();
    for (principal, domain) in principals.iter().flat_map(|p| domains.iter().map(move |d| (p, d))) {
        match (principal, domain) {
            (one, StringMatch::Presence) | (StringMatch::Presence, one) => common.push(one.clone()),
            (StringMatch::Exact(exact), _) => common.extend(domain.matches(Some(exact)).then(|| principal.clone())),
            (StringMatch::Prefix(a), StringMatch::Prefix(b)) if a.starts_with(&**b) => common.push(principal.clone()),
            (StringMatch::Prefix(a), StringMatch::Prefix(b)) if b.starts_with(&**a) => common.push(domain.clone()),
            (StringMatch::Prefix(_), StringMatch::Prefix(_)) => {}
            // Whole domain and whole rest make a whole identity.
            (StringMatch::Suffix(end), StringMatch::Prefix(domain))
                if end.starts_with("/ns/") && domain.ends_with('/') =>
            {
                common.push(StringMatch::Exact(format!("{}{end}", domain.trim_end_matches('/')).into()));
            }
            (StringMatch::Prefix(_) | StringMatch::Suffix(_), _) => return None,
        }
    }
    Some(common)
}

/// A service account: `name` of the policy's namespace, or `namespace/name`.
pub fn service_account(text: &str, own: &str) -> Result<ServiceAccount, String> {
    let (namespace, name) = text.split_once('/').unwrap_or((own, text));
    let valid = Identity::new(TrustDomain::default(), namespace, name);
    valid.map_err(|_| "is neither <service account> nor <namespace>/<service account>")?;
    Ok(ServiceAccount { namespace: namespace.into(), name: name.into() })
}

/// A range of addresses, or a single one.
pub fn ip_block(text: &str) -> Result<IpNet, &'static str> {
    let wrong = "is neither an IP address nor a range such as 10.0.0.0/8";
    let net = match text.split_once('/') {
        None => IpNet::from(text.parse::<IpAddr>().map_err(|_| wrong)?),
        Some(_) => text.parse().map_err(|_| wrong)?,
    };
    let IpNet::V6(v6) = net else { return Ok(net.trunc()) };
    let Some(mapped) = v6.addr().to_ipv4_mapped() else { return Ok(net.trunc()) };
    // The length of a mapped address counts the 96 bits before it.
    let length = v6.prefix_len().checked_sub(96).ok_or("is wider than the mapped IPv4 addresses")?;
    Ok(IpNet::new(mapped.into(), length).map_err(|_| wrong)?.trunc())
}

/// A port.
pub fn port(text: &str) -> Result<u16, &'static str> {
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|port| digits && *port > 0).ok_or("is not a port from 1 to 65535")
}

/// Labels that select: a key and a value each, and no patterns in them.
pub fn label(key: &str, value: &str) -> Result<(), &'static str> {
    if key.is_empty() {
        return Err("has an empty key");
    }
    match key.contains('*') || value.contains('*') {
        true => Err("has a '*': labels are compared as they are"),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests;
