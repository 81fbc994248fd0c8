//! What the lab's tools report, as one line of JSON.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// Every payload our tools send is full of this text and a tag of [`TAG_BYTES`] after it: a capture that sees it saw
/// plaintext.
pub const MARKER: &str = "LOAM-PLAINTEXT-";

/// Length of the tag that tells one sender's markers from another's.
pub const TAG_BYTES: usize = 8;

/// Microseconds since 1970: the one clock that tests and tools share.
pub fn now_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| u64::try_from(d.as_micros()).unwrap_or(u64::MAX))
}

/// One connection, tried and described.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Probe {
    /// Why it failed, as `stage: error`.
    pub error: Option<String>,
    /// Time until `connect` returned.
    pub connect_ms: f64,
    /// Time until the answer was read.
    pub total_ms: f64,
    /// `getpeername` of the client.
    pub peer: Option<SocketAddr>,
    /// `getsockname` of the client.
    pub local: Option<SocketAddr>,
    /// What the server saw.
    pub server: Option<Seen>,
}

/// The two ends of a connection as the server sees them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// `getpeername` of the server.
    pub peer: SocketAddr,
    /// `getsockname` of the server.
    pub local: SocketAddr,
}

/// Connections made at a steady rate.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Rate {
    /// Connections tried.
    pub attempts: u64,
    /// Connections that were answered.
    pub ok: u64,
    /// Failures by `stage: error`.
    pub failures: BTreeMap<String, u64>,
    /// The first failures in detail.
    pub failed: Vec<Failure>,
    /// When the first attempt began.
    pub started_us: u64,
    /// When the last one ended.
    pub ended_us: u64,
    /// Latency from `connect` to the answer.
    pub latency_us: Percentiles,
}

/// A failed attempt; times are those of [`now_us`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Failure {
    /// When the attempt began.
    pub started_us: u64,
    /// When it failed.
    pub ended_us: u64,
    /// `connect`, `write` or `read`.
    pub stage: String,
    /// The error's kind.
    pub error: String,
}

/// Latencies of all attempts that were answered.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Percentiles {
    /// Median.
    pub p50: u64,
    /// 99 of a hundred are faster.
    pub p99: u64,
    /// 999 of a thousand are faster.
    pub p999: u64,
    /// The slowest.
    pub max: u64,
}

impl Percentiles {
    /// Percentiles of `values`.
    pub fn of(mut values: Vec<u64>) -> Self {
        values.sort_unstable();
        let at = |share: f64| values.get(((values.len().max(1) - 1) as f64 * share) as usize).copied().unwrap_or(0);
        Self { p50: at(0.5), p99: at(0.99), p999: at(0.999), max: at(1.0) }
    }
}

/// Requests over one connection at a steady pace, each timed from when it was due.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Paced {
    /// Requests answered.
    pub answered: u64,
    /// Why it ended early.
    pub error: Option<String>,
    /// Latency from the moment a request was due to its whole answer.
    pub latency_us: Percentiles,
}

/// Questions for a name, as many as were answered.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Lookups {
    /// Questions answered with an address.
    pub answered: u64,
    /// The same per second.
    pub per_second: f64,
    /// Numbers of other outcomes.
    pub failures: BTreeMap<String, u64>,
    /// Latency from a question to its answer.
    pub latency_us: Percentiles,
}

/// A long-lived connection with a message now and then.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PingPong {
    /// Answered messages.
    pub messages: u64,
    /// Why it ended, unless it was asked to.
    pub error: Option<String>,
    /// Longest time from a message to its answer.
    pub slowest_ms: f64,
    /// When it ended.
    pub ended_us: u64,
}

/// Byte-exact transfers.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Transfers {
    /// Connections that did all they should.
    pub ok: u64,
    /// Bytes compared.
    pub bytes: u64,
    /// What went wrong, with the size and the seed.
    pub errors: Vec<String>,
    /// How long it took.
    pub seconds: f64,
}

/// How a connection ended, seen by one side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ending {
    /// `end of stream`, `reset` or the error's kind.
    pub how: String,
    /// Bytes that arrived before.
    pub bytes: u64,
    /// Checksum of these bytes.
    pub sum: u64,
}

/// Connections held open.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Held {
    /// Connections that were answered.
    pub ok: u64,
    /// Failures by `stage: error`.
    pub failures: BTreeMap<String, u64>,
    /// Connections that had ended before we asked.
    pub lost: u64,
}

/// What a greeting at a tunnel port led to.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Greeted {
    /// Why it was refused.
    pub error: Option<String>,
    /// Bytes that the other side said inside the encryption.
    pub answered: u64,
}

/// What was told to somebody who held a tunnel port.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Lured {
    /// Connections that came.
    pub connections: u64,
    /// Bytes that they said inside the encryption.
    pub bytes: u64,
}

/// The answer of the certificate authority.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Signed {
    /// Certificates in the chain that was given.
    pub certificates: usize,
    /// Why none was given.
    pub error: Option<String>,
}

/// A connection that a waypoint was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Passed {
    /// What the tunnel asked for.
    pub authority: String,
    /// Who asked, as its certificate proves.
    pub peer: String,
    /// Who it says is behind that.
    pub forwarded: Option<String>,
    /// What it says of itself.
    pub baggage: Option<String>,
    /// Where the connection was handed on to, if anywhere.
    pub endpoint: Option<SocketAddr>,
}

/// What a capture saw in one network namespace.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Captured {
    /// Packets looked at.
    pub packets: u64,
    /// Packets the kernel dropped before we could look; a capture with drops proves nothing.
    pub dropped: u64,
    /// Bytes of TCP payload, by the lower of the two ports.
    pub payload_bytes: BTreeMap<u16, u64>,
    /// Packets with a marker, by its tag.
    pub markers: BTreeMap<String, Marked>,
    /// Packets with a readable line of HTTP/1, by who sent them to whom, as a pair of addresses.
    pub http: Vec<(IpAddr, IpAddr, u64)>,
    /// The first payload of each flow.
    pub flows: Vec<Flow>,
}

/// Packets that carried markers of one tag.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Marked {
    /// How many.
    pub packets: u64,
    /// When the newest connection among them was first seen.
    pub newest_us: u64,
    /// The first few, as `from -> to`.
    pub flows: Vec<String>,
}

/// The first payload of a connection's direction.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Flow {
    /// Sender.
    pub from: SocketAddr,
    /// Receiver.
    pub to: SocketAddr,
    /// When it was seen.
    pub at_us: u64,
    /// The first bytes.
    pub first: Vec<u8>,
}
