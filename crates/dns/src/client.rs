//! Who asks.

use std::sync::Arc;

/// Most search domains that are used: as many as Kubernetes allows a pod.
const MAX_SEARCH_DOMAINS: usize = 32;

/// Most dots below which a name is tried with the search domains: as many as resolvers allow.
const MAX_NDOTS: u32 = 15;

/// The pod that asks, and what its resolver makes of a short name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Client {
    /// Its namespace, which decides what it may see.
    pub namespace: Arc<str>,
    /// Its network: addresses of others are of no use to it.
    pub network: Arc<str>,
    /// Whether it has an IPv6 address.
    pub ipv6: bool,
    search: Vec<String>,
    ndots: usize,
}

impl Client {
    /// A pod whose resolv.conf has these search domains and `ndots`.
    pub fn new<S: AsRef<str>>(
        namespace: impl Into<Arc<str>>,
        network: impl Into<Arc<str>>,
        ipv6: bool,
        search: &[S],
        ndots: u32,
    ) -> Self {
        let search = search.iter().take(MAX_SEARCH_DOMAINS).filter_map(|domain| usable(domain.as_ref()));
        Self {
            namespace: namespace.into(),
            network: network.into(),
            ipv6,
            search: within_cluster(search.collect()),
            ndots: ndots.min(MAX_NDOTS) as usize,
        }
    }

    /// The search domains of its cluster, in order.
    pub(crate) fn search(&self) -> &[String] {
        &self.search
    }

    /// Whether its resolver tries `name` with the search domains before it tries it as it is.
    pub(crate) fn is_short(&self, name: &str) -> bool {
        name.bytes().filter(|b| *b == b'.').count() < self.ndots
    }
}

/// A domain in the form in which names are compared.
fn usable(domain: &str) -> Option<String> {
    let domain = domain.trim_matches('.').to_ascii_lowercase();
    (!domain.is_empty() && domain.len() <= loam_core::ids::MAX_NAME_BYTES).then_some(domain)
}

/// The domains that belong to the cluster: only beneath them is a name certainly one that a resolver made by appending
/// a search domain. `api.shop.example.org` is a name of its own even where `example.org` is searched.
fn within_cluster(search: Vec<String>) -> Vec<String> {
    let Some(cluster) = search.iter().find_map(|domain| cluster_domain(domain)).map(str::to_owned) else {
        return Vec::new();
    };
    let within = |domain: &String| match domain.strip_suffix(cluster.as_str()) {
        Some(rest) => rest.is_empty() || rest.ends_with('.'),
        None => false,
    };
    search.into_iter().filter(within).collect()
}

/// The cluster's domain in `<namespace>.svc.<domain>` or `svc.<domain>`.
fn cluster_domain(domain: &str) -> Option<&str> {
    if let Some(cluster) = domain.strip_prefix("svc.") {
        return Some(cluster);
    }
    domain.split_once('.')?.1.strip_prefix("svc.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_search_domains_of_the_cluster_count() {
        let client = |search: &[&str]| Client::new("shop", "", false, search, 5).search;
        assert_eq!(
            client(&[
                "shop.svc.cluster.local",
                "svc.cluster.local.",
                "Cluster.Local",
                "example.org",
                "my-cluster.local"
            ]),
            ["shop.svc.cluster.local", "svc.cluster.local", "cluster.local"]
        );
        assert_eq!(client(&["bank.svc.k8s.corp", "corp"]), ["bank.svc.k8s.corp"]);
        assert!(client(&["example.org", "svc", "."]).is_empty());
        assert!(client(&[]).is_empty());
    }
}
