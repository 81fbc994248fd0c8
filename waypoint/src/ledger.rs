//! What this process knows of its dealings with each service, and what its traffic policy makes of it: how many requests
//! are under way, what was spent of the budget of retries, which endpoints are ejected, and which have just come.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use loam_core::balance::ejection::{Ejections, Outcome};
use loam_core::balance::{Standing, Standings, cold};
use loam_core::http::budget::Spending;
use loam_core::http::traffic::Traffic;
use loam_core::ids::ServiceKey;
use loam_core::snapshot::Snapshot;
use loam_core::waypoint::Target;
use tokio::time::Instant;

use crate::endpoints::Endpoints;
use crate::mesh::Mesh;

/// Ports of services that are remembered; when it is full the memory starts anew.
const MAX_ACCOUNTS: usize = 10_000;

/// Endpoints of a service whose arrival is remembered. Beyond it they count as old.
const MAX_ARRIVALS: usize = 10_000;

/// The accounts of all services.
pub struct Ledger {
    mesh: Arc<Mesh>,
    began: Instant,
    accounts: Mutex<HashMap<(ServiceKey, u16), Arc<Account>>>,
}

/// The dealings with one port of a service under one traffic policy. Another policy begins anew.
pub struct Account {
    began: Instant,
    traffic: Traffic,
    turns: AtomicU64,
    under_way: AtomicU32,
    spending: Mutex<Spending>,
    ejections: Option<Mutex<Ejections>>,
    /// When endpoints came; those that were there from the beginning at no time.
    arrivals: Option<Mutex<HashMap<IpAddr, Option<Duration>>>>,
}

/// A request to a service, until it is dropped.
pub struct Entry {
    account: Option<Arc<Account>>,
    /// Its number among the requests to the service.
    pub turn: u64,
    /// How many endpoints the service has.
    endpoints: usize,
}

impl Ledger {
    /// The accounts of the services of `mesh`.
    pub fn new(mesh: Arc<Mesh>) -> Self {
        Self { mesh, began: Instant::now(), accounts: Mutex::default() }
    }

    /// Enters a request to `to`. `None` when as many are under way as may be.
    pub fn enter(&self, to: &Target) -> Option<Entry> {
        let Target::Service { service, port, .. } = to else {
            return Some(Entry { account: None, turn: 0, endpoints: 1 });
        };
        let snapshot = self.mesh.load();
        let account = self.account(&snapshot, &service.key, port.service_port);
        let endpoints = snapshot.members(&service.key).map_or(0, |members| members.workloads().len());
        let limit = account.traffic.limits.requests;
        let entered = account
            .under_way
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_add(1).filter(|n| *n <= limit));
        entered.ok()?;
        lock(&account.spending).request(self.began.elapsed());
        let turn = account.turns.fetch_add(1, Ordering::Relaxed);
        Some(Entry { account: Some(account), turn, endpoints })
    }

    fn account(&self, snapshot: &Snapshot, service: &ServiceKey, port: u16) -> Arc<Account> {
        let told = snapshot.traffic(service).map(|traffic| traffic.of(port, None));
        let mut accounts = lock(&self.accounts);
        let key = (service.clone(), port);
        if let Some(known) = accounts.get(&key) {
            let same = match told {
                Some(traffic) => known.traffic == *traffic,
                None => known.traffic == Traffic::default(),
            };
            if same {
                return known.clone();
            }
        }
        if accounts.len() >= MAX_ACCOUNTS {
            accounts.clear();
        }
        let traffic = told.cloned().unwrap_or_default();
        let account = Arc::new(Account::new(self.began, traffic, snapshot, service));
        accounts.insert(key, account.clone());
        account
    }
}

impl Account {
    fn new(began: Instant, traffic: Traffic, snapshot: &Snapshot, service: &ServiceKey) -> Self {
        let arrivals = traffic.slow_start.map(|_| {
            let members = snapshot.members(service).map_or(&[][..], |members| members.workloads());
            let old = members.iter().flat_map(|member| &member.addresses).map(|ip| (*ip, None));
            Mutex::new(old.take(MAX_ARRIVALS).collect())
        });
        Self {
            began,
            turns: AtomicU64::new(0),
            under_way: AtomicU32::new(0),
            spending: Mutex::new(Spending::new(traffic.budget)),
            ejections: traffic.outliers.map(|outliers| Mutex::new(Ejections::new(outliers))),
            arrivals,
            traffic,
        }
    }

    /// How much of its weight an endpoint lacks because it has just come.
    fn cold(&self, endpoint: IpAddr) -> u16 {
        let (Some(arrivals), Some(window)) = (&self.arrivals, self.traffic.slow_start) else { return 0 };
        let now = self.began.elapsed();
        let mut arrivals = lock(arrivals);
        if arrivals.len() >= MAX_ARRIVALS && !arrivals.contains_key(&endpoint) {
            return 0;
        }
        match arrivals.entry(endpoint).or_insert(Some(now)) {
            None => 0,
            Some(came) => cold(now.saturating_sub(*came), window),
        }
    }
}

impl Entry {
    /// The service's traffic policy.
    pub fn traffic(&self) -> Option<&Traffic> {
        self.account.as_ref().map(|account| &account.traffic)
    }

    /// Whether the service's endpoints are to be reached by TLS: what was told to be encrypted never goes in the clear.
    pub fn wants_tls(&self) -> bool {
        self.traffic().is_some_and(|traffic| traffic.tls.is_some())
    }

    /// Takes one retry, if there is one left.
    pub fn may_retry(&self) -> bool {
        self.account.as_ref().is_none_or(|account| lock(&account.spending).retry(account.began.elapsed()))
    }

    /// Takes note of how a try at `endpoint` ended. Tells whether the endpoint is ejected for that.
    pub fn note(&self, endpoint: SocketAddr, outcome: Outcome) -> bool {
        let Some(account) = &self.account else { return false };
        let Some(ejections) = &account.ejections else { return false };
        lock(ejections).note(endpoint, outcome, account.began.elapsed(), self.endpoints)
    }

    /// How the endpoints stand, for a request like this.
    pub fn standings<'a>(&'a self, endpoints: &'a Endpoints) -> Seen<'a> {
        Seen { endpoints, entry: self }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if let Some(account) = &self.account {
            account.under_way.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// The endpoints of a service as its account has them.
pub struct Seen<'a> {
    endpoints: &'a Endpoints,
    entry: &'a Entry,
}

impl Standings for Seen<'_> {
    fn of(&self, endpoint: SocketAddr) -> Standing {
        let standing = self.endpoints.of(endpoint);
        let Some(account) = &self.entry.account else { return standing };
        let ejected = account.ejections.as_ref().is_some_and(|ejections| {
            lock(ejections).is_ejected(endpoint, account.began.elapsed(), self.entry.endpoints)
        });
        Standing { aside: standing.aside || ejected, cold: account.cold(endpoint.ip()), ..standing }
    }
}

impl fmt::Debug for Seen<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seen")
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere leaves counts that are right or off by one.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
