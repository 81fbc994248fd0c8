//! What the pool knows about its tunnels and what follows from it; no IO, no clock.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use loam_core::addr::NextHop;
use loam_core::ids::Identity;
use tokio::time::Instant;

/// Streams we put into one tunnel, if its peer allows as many. More would share the fate of one TCP connection.
pub(crate) const MAX_STREAMS: usize = 100;

/// Tunnels for one key: 25,600 connections from one pod to one peer are a mistake rather than a need.
pub(crate) const MAX_TUNNELS_PER_KEY: usize = 256;

/// How long a tunnel without streams is kept.
pub(crate) const IDLE_TIMEOUT: Duration = Duration::from_secs(5 * 60);

/// What two connections must have in common to share a tunnel.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TunnelKey {
    /// As whom we speak.
    pub source: Identity,
    /// Who may answer; one of them must.
    expect: Arc<[Identity]>,
    /// Where the tunnel leads.
    pub next_hop: NextHop,
    /// The pod it leaves from: its network namespace, its address, its life.
    pub source_pod: Arc<str>,
}

impl TunnelKey {
    /// A key. The order of `expect` does not matter.
    pub fn new(source: Identity, mut expect: Vec<Identity>, next_hop: NextHop, source_pod: Arc<str>) -> Self {
        expect.sort_unstable();
        expect.dedup();
        Self { source, expect: expect.into(), next_hop, source_pod }
    }

    /// Who may answer.
    pub fn expect(&self) -> &[Identity] {
        &self.expect
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct TunnelId(u64);

/// How to serve a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decision {
    /// In this tunnel, where a place is now taken.
    Use(TunnelId),
    /// Ask again after something happened to this tunnel.
    Wait(TunnelId),
    /// Through a tunnel to be made under this id; then ask again.
    Dial(TunnelId),
    /// Not at all: there are [`MAX_TUNNELS_PER_KEY`] already, all full.
    Full,
}

#[derive(Debug)]
struct Entry {
    id: TunnelId,
    /// End of the certificate it was made with. Certificates of one identity are renewed in time, so a later end is a
    /// newer certificate.
    not_after: SystemTime,
    state: State,
    streams: usize,
    idle_since: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Dialing,
    /// Connected. Until the peer has told its limit, only one stream may count on it.
    Up {
        limit: Option<usize>,
    },
    /// Takes no more streams and closes after the last.
    Retired,
}

impl Entry {
    fn has_room(&self) -> bool {
        match self.state {
            State::Up { limit } => self.streams < limit.map_or(1, |limit| limit.min(MAX_STREAMS)),
            State::Dialing | State::Retired => false,
        }
    }

    /// Whether it may have room soon for a reason that is under way.
    fn will_tell(&self) -> bool {
        matches!(self.state, State::Dialing | State::Up { limit: None })
    }
}

/// All tunnels of a pool. Ids in answers of the kind "close" are forgotten here and to be closed by the caller.
#[derive(Debug, Default)]
pub(crate) struct Book {
    tunnels: HashMap<Arc<TunnelKey>, Vec<Entry>>,
    next_id: u64,
}

impl Book {
    /// Finds a place for a stream; tunnels that were made with an older certificate give way.
    pub(crate) fn open(
        &mut self,
        key: &Arc<TunnelKey>,
        not_after: SystemTime,
        now: Instant,
        close: &mut Vec<TunnelId>,
    ) -> Decision {
        let entries = self.tunnels.entry(key.clone()).or_default();
        retire(entries, close, |entry| entry.not_after < not_after && entry.state != State::Dialing);
        // The oldest with room: the others may fall idle and go.
        if let Some(entry) = entries.iter_mut().find(|entry| entry.has_room()) {
            entry.streams += 1;
            return Decision::Use(entry.id);
        }
        if let Some(entry) = entries.iter().find(|entry| entry.will_tell()) {
            return Decision::Wait(entry.id);
        }
        if entries.len() >= MAX_TUNNELS_PER_KEY {
            return Decision::Full;
        }
        let id = TunnelId(self.next_id);
        self.next_id += 1;
        entries.push(Entry { id, not_after, state: State::Dialing, streams: 0, idle_since: now });
        Decision::Dial(id)
    }

    /// The tunnel is connected.
    pub(crate) fn connected(&mut self, key: &TunnelKey, id: TunnelId, now: Instant) {
        if let Some(entry) = self.entry(key, id)
            && entry.state == State::Dialing
        {
            entry.state = State::Up { limit: None };
            entry.idle_since = now;
        }
    }

    /// The peer told how many streams it allows.
    pub(crate) fn limited(&mut self, key: &TunnelKey, id: TunnelId, limit: usize) {
        if let Some(entry) = self.entry(key, id)
            && let State::Up { limit: known } = &mut entry.state
        {
            *known = Some(limit);
        }
    }

    /// A stream that [`Decision::Use`] gave a place to is over. True: close the tunnel.
    pub(crate) fn ended(&mut self, key: &TunnelKey, id: TunnelId, now: Instant) -> bool {
        let Some(entry) = self.entry(key, id) else { return false };
        entry.streams -= 1;
        entry.idle_since = now;
        let done = entry.streams == 0 && entry.state == State::Retired;
        if done {
            self.gone(key, id);
        }
        done
    }

    /// The tunnel shall take no more streams: its peer said so, or it failed. True: close it.
    pub(crate) fn retire(&mut self, key: &TunnelKey, id: TunnelId) -> bool {
        let Some(entry) = self.entry(key, id) else { return false };
        entry.state = State::Retired;
        let done = entry.streams == 0;
        if done {
            self.gone(key, id);
        }
        done
    }

    /// The tunnel does not exist any more.
    pub(crate) fn gone(&mut self, key: &TunnelKey, id: TunnelId) {
        if let Some(entries) = self.tunnels.get_mut(key) {
            entries.retain(|entry| entry.id != id);
            if entries.is_empty() {
                self.tunnels.remove(key);
            }
        }
    }

    /// True: it had no stream for [`IDLE_TIMEOUT`], close it.
    pub(crate) fn idle_expired(&mut self, key: &TunnelKey, id: TunnelId, now: Instant) -> bool {
        let Some(entry) = self.entry(key, id) else { return false };
        let expired = entry.streams == 0
            && entry.state != State::Dialing
            && now.saturating_duration_since(entry.idle_since) >= IDLE_TIMEOUT;
        if expired {
            self.gone(key, id);
        }
        expired
    }

    /// Retires every tunnel to one of these addresses.
    pub(crate) fn retire_peers(&mut self, peers: &HashSet<IpAddr>, close: &mut Vec<TunnelId>) {
        self.retire_where(close, |key| peers.contains(&key.next_hop.ip()));
    }

    /// Retires every tunnel of a pod.
    pub(crate) fn forget_pod(&mut self, pod: &str, close: &mut Vec<TunnelId>) {
        self.retire_where(close, |key| &*key.source_pod == pod);
    }

    /// Retires everything.
    pub(crate) fn retire_all(&mut self, close: &mut Vec<TunnelId>) {
        self.retire_where(close, |_| true);
    }

    fn retire_where(&mut self, close: &mut Vec<TunnelId>, matches: impl Fn(&TunnelKey) -> bool) {
        self.tunnels.retain(|key, entries| {
            if matches(key) {
                retire(entries, close, |_| true);
            }
            !entries.is_empty()
        });
    }

    /// Tunnels and the streams in them.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let all = self.tunnels.values().flatten();
        all.fold((0, 0), |(tunnels, streams), entry| (tunnels + 1, streams + entry.streams))
    }

    fn entry(&mut self, key: &TunnelKey, id: TunnelId) -> Option<&mut Entry> {
        self.tunnels.get_mut(key)?.iter_mut().find(|entry| entry.id == id)
    }
}

/// Retires entries; those without streams leave at once.
fn retire(entries: &mut Vec<Entry>, close: &mut Vec<TunnelId>, matches: impl Fn(&Entry) -> bool) {
    entries.retain_mut(|entry| {
        if !matches(entry) {
            return true;
        }
        entry.state = State::Retired;
        if entry.streams == 0 {
            close.push(entry.id);
        }
        entry.streams > 0
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Pool {
        book: Book,
        key: Arc<TunnelKey>,
        not_after: SystemTime,
        now: Instant,
        closed: Vec<TunnelId>,
    }

    fn identity(name: &str) -> Identity {
        format!("spiffe://cluster.local/ns/shop/sa/{name}").parse().unwrap()
    }

    fn key(peer: &str, pod: &str) -> Arc<TunnelKey> {
        let next_hop = NextHop::new(peer.parse().unwrap());
        Arc::new(TunnelKey::new(identity("web"), vec![identity("db")], next_hop, pod.into()))
    }

    impl Pool {
        fn new() -> Self {
            let not_after = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
            let key = key("10.0.0.7:15008", "pod");
            Self { book: Book::default(), key, not_after, now: Instant::now(), closed: Vec::new() }
        }

        fn open(&mut self) -> Decision {
            self.book.open(&self.key, self.not_after, self.now, &mut self.closed)
        }

        /// Makes the tunnel that the next connection asks for.
        fn dial(&mut self, limit: usize) -> TunnelId {
            let Decision::Dial(id) = self.open() else { panic!("no need to dial") };
            self.book.connected(&self.key, id, self.now);
            self.book.limited(&self.key, id, limit);
            id
        }

        fn end(&mut self, id: TunnelId) -> bool {
            self.book.ended(&self.key, id, self.now)
        }
    }

    #[test]
    fn one_dial_serves_everyone_who_waits() {
        let mut pool = Pool::new();
        let Decision::Dial(id) = pool.open() else { panic!() };
        assert_eq!(pool.open(), Decision::Wait(id));
        pool.book.connected(&pool.key, id, pool.now);
        assert_eq!(pool.open(), Decision::Use(id), "one stream needs no limit");
        assert_eq!(pool.open(), Decision::Wait(id), "the second has to know it");
        pool.book.limited(&pool.key, id, 200);
        assert_eq!(pool.open(), Decision::Use(id));
    }

    #[test]
    fn a_full_tunnel_gets_a_companion_and_is_used_again_when_streams_end() {
        let mut pool = Pool::new();
        let first = pool.dial(usize::MAX);
        for _ in 0..MAX_STREAMS {
            assert_eq!(pool.open(), Decision::Use(first));
        }
        let second = pool.dial(usize::MAX);
        assert_eq!(pool.open(), Decision::Use(second));
        assert!(!pool.end(first));
        assert_eq!(pool.open(), Decision::Use(first));
    }

    #[test]
    fn the_peer_may_allow_fewer_streams_and_change_its_mind() {
        let mut pool = Pool::new();
        let id = pool.dial(2);
        assert_eq!((pool.open(), pool.open()), (Decision::Use(id), Decision::Use(id)));
        assert!(matches!(pool.open(), Decision::Dial(_)));
        pool.book.limited(&pool.key, id, 3);
        assert_eq!(pool.open(), Decision::Use(id));
    }

    #[test]
    fn a_failed_dial_lets_the_next_one_try() {
        let mut pool = Pool::new();
        let Decision::Dial(id) = pool.open() else { panic!() };
        pool.book.gone(&pool.key, id);
        assert!(matches!(pool.open(), Decision::Dial(other) if other != id));
    }

    #[test]
    fn a_retired_tunnel_lives_until_its_last_stream_ends() {
        let mut pool = Pool::new();
        let id = pool.dial(100);
        assert_eq!((pool.open(), pool.open()), (Decision::Use(id), Decision::Use(id)));
        assert!(!pool.book.retire(&pool.key, id));
        assert!(matches!(pool.open(), Decision::Dial(_)));
        assert!(!pool.end(id));
        assert!(pool.end(id), "closed with the last stream");
    }

    #[test]
    fn a_newer_certificate_replaces_tunnels_but_an_older_one_does_not() {
        let mut pool = Pool::new();
        let busy = pool.dial(100);
        assert_eq!(pool.open(), Decision::Use(busy));
        pool.not_after -= Duration::from_secs(1);
        assert_eq!(pool.open(), Decision::Use(busy), "whoever still has the old one may use what is there");
        pool.not_after += Duration::from_secs(2);
        let renewed = pool.dial(100);
        assert_eq!(pool.open(), Decision::Use(renewed));
        assert!(pool.closed.is_empty(), "streams live on");
        assert!(!pool.end(busy));
        assert!(pool.end(busy));

        pool.end(renewed);
        pool.not_after += Duration::from_secs(1);
        assert!(matches!(pool.open(), Decision::Dial(_)));
        assert_eq!(pool.closed, [renewed], "one without streams goes at once");
    }

    #[test]
    fn an_idle_tunnel_expires_and_a_used_one_does_not() {
        let mut pool = Pool::new();
        let id = pool.dial(100);
        assert_eq!(pool.open(), Decision::Use(id));
        assert!(!pool.book.idle_expired(&pool.key, id, pool.now + 2 * IDLE_TIMEOUT));
        pool.now += IDLE_TIMEOUT;
        pool.end(id);
        assert!(!pool.book.idle_expired(&pool.key, id, pool.now + IDLE_TIMEOUT - Duration::from_secs(1)));
        assert!(pool.book.idle_expired(&pool.key, id, pool.now + IDLE_TIMEOUT));
        assert_eq!(pool.book.counts(), (0, 0));
    }

    #[test]
    fn tunnels_are_retired_by_peer_and_by_pod() {
        let mut book = Book::default();
        let (now, not_after) = (Instant::now(), SystemTime::UNIX_EPOCH);
        let mut closed = Vec::new();
        let mut ids = Vec::new();
        for key in [key("10.0.0.7:15008", "a"), key("10.0.0.8:15008", "a"), key("10.0.0.7:15008", "b")] {
            let Decision::Dial(id) = book.open(&key, not_after, now, &mut closed) else { panic!() };
            book.connected(&key, id, now);
            ids.push(id);
        }
        book.forget_pod("a", &mut closed);
        closed.sort_unstable();
        assert_eq!(closed, ids[..2]);
        book.retire_peers(&["10.0.0.7".parse().unwrap()].into(), &mut closed);
        assert_eq!(closed, ids);
        assert_eq!(book.counts(), (0, 0));
    }

    #[test]
    fn tunnels_of_one_key_are_bounded() {
        let mut pool = Pool::new();
        for _ in 0..MAX_TUNNELS_PER_KEY {
            let id = pool.dial(1);
            assert_eq!(pool.open(), Decision::Use(id));
        }
        assert_eq!(pool.open(), Decision::Full);
    }

    #[test]
    fn the_order_of_acceptable_identities_makes_no_other_key() {
        let next_hop = NextHop::new("10.0.0.7:15008".parse().unwrap());
        let key = |expect| TunnelKey::new(identity("web"), expect, next_hop, "pod".into());
        assert_eq!(key(vec![identity("a"), identity("b")]), key(vec![identity("b"), identity("a"), identity("a")]));
        assert_ne!(key(vec![identity("a")]), key(vec![identity("a"), identity("b")]));
    }
}
