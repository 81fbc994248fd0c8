//! Endpoints that are known by name only, as this pod's name servers know them.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use loam_core::ids::Hostname;
use loam_core::outbound::Resolved;
use tokio::net::lookup_host;
use tokio::time::{Instant, timeout};

/// Longest wait for an answer.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long an answer is used. The system's resolver does not tell how long it is good for.
const TTL: Duration = Duration::from_secs(5);

/// Names remembered; when it is full the memory starts anew.
const MAX_NAMES: usize = 10_000;

/// Most addresses of one name.
const MAX_ADDRESSES: usize = 64;

/// Answers of name servers, while they are fresh.
#[derive(Debug, Default)]
pub struct Names {
    known: Mutex<HashMap<Hostname, (Instant, Resolved)>>,
}

impl Names {
    /// Where `host` leads to, or why nowhere.
    pub async fn resolve(&self, host: &Hostname) -> Resolved {
        if let Some(fresh) = self.fresh(host) {
            return fresh;
        }
        let addresses = match timeout(RESOLVE_TIMEOUT, lookup_host((host.as_str(), 0))).await {
            Ok(Ok(found)) => Ok(found.map(|addr| addr.ip()).take(MAX_ADDRESSES).collect::<Arc<[IpAddr]>>()),
            Ok(Err(error)) => Err(error.to_string().into()),
            Err(_) => Err(format!("no answer within {RESOLVE_TIMEOUT:?}").into()),
        };
        let resolved = Resolved { host: host.clone(), addresses };
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MAX_NAMES {
            known.clear();
        }
        known.insert(host.clone(), (Instant::now(), resolved.clone()));
        resolved
    }

    fn fresh(&self, host: &Hostname) -> Option<Resolved> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let (since, resolved) = known.get(host)?;
        (since.elapsed() < TTL).then(|| resolved.clone())
    }
}
