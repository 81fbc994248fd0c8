//! How a service's endpoints are used: balancing, limits, ejection, retries, sessions (Gateway API
//! `XBackendTrafficPolicy` and `BackendTLSPolicy`, Istio's `DestinationRule`).

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, StatusCode};

use super::session::cookie;
use super::target::Request;
use crate::balance::{By, Tables, hash, mix};
use crate::ids::{Hostname, ServiceKey};

/// How the endpoints of one service are used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceTraffic {
    /// The service.
    pub service: ServiceKey,
    /// For all its ports.
    pub traffic: Traffic,
    /// For single ports, instead.
    pub ports: Vec<(u16, Traffic)>,
    /// Parts of its endpoints.
    pub subsets: Vec<Subset>,
}

impl ServiceTraffic {
    /// How the endpoints of `port` are used, or of a subset of them.
    pub fn of(&self, port: u16, subset: Option<&str>) -> &Traffic {
        let of_subset = subset.and_then(|name| self.subsets.iter().find(|subset| *subset.name == *name));
        let of_port = || self.ports.iter().find(|(of, _)| *of == port).map(|(_, traffic)| traffic);
        of_subset.and_then(|subset| subset.traffic.as_ref()).or_else(of_port).unwrap_or(&self.traffic)
    }

    /// What has to be prepared so that endpoints are found as it says.
    pub fn tables(&self) -> Tables {
        let of_ports = self.ports.iter().map(|(_, traffic)| traffic);
        let of_subsets = self.subsets.iter().filter_map(|subset| subset.traffic.as_ref());
        let mut tables = Tables::default();
        for traffic in of_ports.chain(of_subsets).chain([&self.traffic]) {
            match traffic.algorithm {
                Algorithm::Ring(_) => tables.ring = true,
                Algorithm::Maglev(_) => tables.maglev = true,
                Algorithm::LeastRequest | Algorithm::RoundRobin | Algorithm::Random => {}
            }
        }
        tables
    }
}

/// Endpoints with certain labels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subset {
    /// Its name.
    pub name: Arc<str>,
    /// Labels that its endpoints have.
    pub labels: Vec<(Arc<str>, Arc<str>)>,
    /// For these endpoints, instead.
    pub traffic: Option<Traffic>,
}

/// How endpoints are used. The default is what a service gets of which nothing is said.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Traffic {
    /// Which one a request goes to.
    pub algorithm: Algorithm,
    /// Since an endpoint came, its weight grows from a tenth to its full over this time.
    pub slow_start: Option<Duration>,
    /// How much may be under way.
    pub limits: Limits,
    /// When one is left alone for a while.
    pub outliers: Option<Outliers>,
    /// How many requests may be tried again.
    pub budget: Budget,
    /// What keeps a client with its endpoint, where the rule does not say.
    pub session: Option<Session>,
    /// TLS to the endpoint itself, beside the mesh's own.
    pub tls: Option<Tls>,
}

/// The rule by which an endpoint is chosen.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Algorithm {
    /// Of two drawn ones, the one with fewer requests under way for its weight.
    #[default]
    LeastRequest,
    /// One after the other.
    RoundRobin,
    /// A drawn one.
    Random,
    /// The one that a property of the request leads to, on a circle: few change when endpoints come and go.
    Ring(Vec<HashOn>),
    /// The same by a table (Maglev): faster and more even, and a few more change.
    Maglev(Vec<HashOn>),
}

impl Algorithm {
    /// By what an endpoint is chosen for `request` of a client at `address`. `turn` is its number among the requests to
    /// the service.
    pub fn by(&self, request: &Request<'_>, address: IpAddr, turn: u64) -> By {
        let key = |all: &[HashOn]| all.iter().find_map(|property| property.key(request, address));
        match self {
            Algorithm::LeastRequest => By::LessBusy,
            Algorithm::RoundRobin => By::Turn(turn),
            Algorithm::Random => By::Random,
            // A request without any of them may go anywhere.
            Algorithm::Ring(all) => key(all).map_or(By::Random, By::Ring),
            Algorithm::Maglev(all) => key(all).map_or(By::Random, By::Maglev),
        }
    }
}

/// A property of a request that leads to an endpoint. Of several, the first that the request has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HashOn {
    /// The values of this header.
    Header(HeaderName),
    /// The value of this cookie.
    Cookie(Arc<str>),
    /// The first value of this parameter of the query.
    Query(Arc<str>),
    /// The address of the client.
    Address,
}

impl HashOn {
    fn key(&self, request: &Request<'_>, address: IpAddr) -> Option<u64> {
        match self {
            HashOn::Header(name) => {
                let mut values = request.headers.get_all(name).iter().map(|value| hash(value.as_bytes())).peekable();
                values.peek()?;
                Some(values.fold(0, |all, value| mix(all ^ value)))
            }
            HashOn::Cookie(name) => cookie(request.headers, name).map(|value| hash(value.as_bytes())),
            HashOn::Query(name) => request.target.parameter(name).map(|value| hash(value.as_bytes())),
            HashOn::Address => Some(match address.to_canonical() {
                IpAddr::V4(ip) => hash(&ip.octets()),
                IpAddr::V6(ip) => hash(&ip.octets()),
            }),
        }
    }
}

/// How much may be under way to a service at once. Beyond it, requests are refused at once (503).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Connections.
    pub connections: u32,
    /// Requests that wait for a connection.
    pub pending: u32,
    /// Requests.
    pub requests: u32,
    /// Retries.
    pub retries: u32,
    /// Requests on one connection before it is retired; 0 is no limit.
    pub requests_per_connection: u32,
    /// How long a connection may take to open.
    pub connect_timeout: Duration,
    /// How long a connection without requests is kept; `None` is the default of whoever keeps it.
    pub idle_timeout: Option<Duration>,
}

impl Default for Limits {
    /// Istio's: practically none, except that a connection opens within 10 s.
    fn default() -> Self {
        Self {
            connections: u32::MAX,
            pending: u32::MAX,
            requests: u32::MAX,
            retries: u32::MAX,
            requests_per_connection: 0,
            connect_timeout: Duration::from_secs(10),
            idle_timeout: None,
        }
    }
}

/// When an endpoint is ejected: left alone for a while because it fails (Istio's `outlierDetection`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outliers {
    /// So many answers 5xx, resets or failed connections in a row; 0 is never.
    pub consecutive_5xx: u32,
    /// So many answers 502, 503 or 504, resets or failed connections in a row; 0 is never.
    pub consecutive_gateway: u32,
    /// How often endpoints are looked at for their return.
    pub interval: Duration,
    /// How long the first ejection lasts; each further one lasts this much longer.
    pub base_ejection: Duration,
    /// Longest ejection.
    pub max_ejection: Duration,
    /// Percentage of endpoints that may be ejected at once. One always may, and all never.
    pub max_percent: u8,
    /// Below this percentage of healthy endpoints nobody counts as ejected.
    pub min_health_percent: u8,
}

impl Default for Outliers {
    /// Istio's: five in a row, 30 s, at most a tenth of the endpoints.
    fn default() -> Self {
        Self {
            consecutive_5xx: 5,
            consecutive_gateway: 0,
            interval: Duration::from_secs(10),
            base_ejection: Duration::from_secs(30),
            max_ejection: Duration::from_secs(300),
            max_percent: 10,
            min_health_percent: 0,
        }
    }
}

/// Whether a request is tried again (GEP-1731, Istio's `retries`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retry {
    /// Tries after the first.
    pub attempts: u32,
    /// After which ends of a try.
    pub on: RetryOn,
    /// The least wait before a retry; it doubles with each.
    pub backoff: Duration,
    /// The longest wait before a retry.
    pub max_backoff: Duration,
}

/// Ends of a try after which a request is tried again.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RetryOn {
    /// Answers with these statuses.
    pub statuses: Vec<StatusCode>,
    /// Any answer 5xx.
    pub any_5xx: bool,
    /// The connection failed to open.
    pub connect_failure: bool,
    /// The connection broke before an answer began.
    pub reset: bool,
    /// The upstream said that it has not begun: `REFUSED_STREAM`, or a `GOAWAY` below the stream.
    pub refused_stream: bool,
    /// One try took too long.
    pub timeout: bool,
    /// Answers of gRPC with these codes in their headers.
    pub grpc: Vec<u32>,
}

/// How many retries a service may get: a share of its requests, and always a few (GEP-3388).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Retries per hundred requests of the interval.
    pub percent: u32,
    /// The interval over which requests count.
    pub interval: Duration,
    /// So many retries are allowed ...
    pub min_retries: u32,
    /// ... in this time, whatever the share is.
    pub min_interval: Duration,
}

impl Default for Budget {
    /// The defaults of `XBackendTrafficPolicy`: 20 % over 10 s, and 10 a second.
    fn default() -> Self {
        Self { percent: 20, interval: Duration::from_secs(10), min_retries: 10, min_interval: Duration::from_secs(1) }
    }
}

/// What keeps a client with its endpoint (GEP-1619).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// What the client sends back.
    pub token: Token,
    /// How long a session lasts from its beginning.
    pub absolute_timeout: Option<Duration>,
    /// How long it lasts without a request.
    pub idle_timeout: Option<Duration>,
}

/// What carries a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Token {
    /// A cookie.
    Cookie {
        /// Its name.
        name: Arc<str>,
        /// The path it is for.
        path: Arc<str>,
        /// Whether the browser keeps it until the session's absolute end, instead of its own.
        permanent: bool,
    },
    /// A header.
    Header(HeaderName),
}

/// TLS that the waypoint originates (`BackendTLSPolicy`, `DestinationRule`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// The name that is indicated, and that the certificate must have unless `names` says otherwise.
    pub server_name: Hostname,
    /// Names of which the certificate must have one, as DNS names or URIs.
    pub names: Vec<Arc<str>>,
    /// Whom to believe.
    pub roots: Roots,
}

/// Certificate authorities.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Roots {
    /// Those of the system.
    System,
    /// These, in PEM.
    Pem(Arc<str>),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::table::tests::Asked;

    #[test]
    fn the_same_property_leads_to_the_same_key() {
        let header = HashOn::Header(HeaderName::from_static("x-user"));
        let (cookie, query) = (HashOn::Cookie("sid".into()), HashOn::Query("q".into()));
        let by = |all: &[&HashOn], request: &str, address: &str| {
            let all = all.iter().map(|property| (*property).clone()).collect();
            Algorithm::Ring(all).by(&Asked::new(request).request(), address.parse().unwrap(), 0)
        };
        for (property, request, same, other) in [
            (&header, "GET / x-user=a", "PUT /b x-user=a", "GET / x-user=b"),
            (&header, "GET / x-user=a x-user=b", "GET / y=1 x-user=a x-user=b", "GET / x-user=a"),
            (&cookie, "GET / cookie=sid=1;a=b", "GET / cookie=sid=1", "GET / cookie=sid=2"),
            (&query, "GET /?q=1", "GET /?a=b&q=1", "GET /?q=2"),
        ] {
            let key = by(&[property], request, "10.0.0.1");
            assert!(matches!(key, By::Ring(_)), "{request}");
            assert_eq!(key, by(&[property], same, "10.0.0.2"), "{same}");
            assert_ne!(key, by(&[property], other, "10.0.0.1"), "{other}");
            assert_eq!(by(&[property], "GET /", "10.0.0.1"), By::Random);
            // The next property counts where the first is absent.
            let address = by(&[&HashOn::Address], "GET /", "10.0.0.1");
            assert_eq!(by(&[property, &HashOn::Address], "GET /", "::ffff:10.0.0.1"), address);
            assert_eq!(by(&[property, &HashOn::Address], request, "10.0.0.1"), key);
        }
    }

    #[test]
    fn a_subset_comes_before_a_port_and_a_port_before_the_service() {
        let traffic = |algorithm| Traffic { algorithm, ..Traffic::default() };
        let subset = |name: &str, traffic| Subset { name: name.into(), labels: Vec::new(), traffic };
        let service = ServiceTraffic {
            service: "shop/web.shop.svc".parse().unwrap(),
            traffic: traffic(Algorithm::Random),
            ports: vec![(80, traffic(Algorithm::RoundRobin))],
            subsets: vec![subset("v1", None), subset("v2", Some(traffic(Algorithm::Maglev(Vec::new()))))],
        };
        for (port, name, algorithm) in [
            (443, None, Algorithm::Random),
            (80, None, Algorithm::RoundRobin),
            (80, Some("v1"), Algorithm::RoundRobin),
            (80, Some("v2"), Algorithm::Maglev(Vec::new())),
            (80, Some("v3"), Algorithm::RoundRobin),
        ] {
            assert_eq!(service.of(port, name).algorithm, algorithm, "{port} {name:?}");
        }
        assert_eq!(service.tables(), Tables { ring: false, maglev: true });
    }
}
