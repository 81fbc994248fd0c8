//! Looks at every packet of a network namespace for payload that should not be readable.

use std::collections::{BTreeSet, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use loam_tests::report::{Captured, Flow, MARKER, TAG_BYTES, now_us};
use rustix::io::Errno;
use rustix::net::sockopt::set_socket_recv_buffer_size_force;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::signal::unix::{SignalKind, signal};

/// Every protocol, in network byte order as packet(7) wants it.
const ETH_P_ALL: u16 = 3u16.to_be();
/// Room for bursts while the machine is busy; the kernel counts what does not fit.
const RECEIVE_BUFFER: usize = 256 << 20;
/// A packet of a device with segmentation offload.
const MAX_PACKET: usize = 256 << 10;
/// Flows and examples kept.
const MAX_FLOWS: usize = 256;
const MAX_EXAMPLES: usize = 8;
/// Connections with markers that are told apart; beyond it none counts as new.
const MAX_READABLE: usize = 1 << 20;
/// How often it looks whether it should end.
const LOOK_UP: Duration = Duration::from_millis(50);
/// Longest work on the rest of the queue.
const MAX_REST_US: u64 = 10_000_000;
/// Bytes kept of a flow's first payload.
const FIRST_BYTES: usize = 256;

/// Captures until SIGTERM.
pub(crate) async fn run() -> Result<Captured> {
    let mut stop = signal(SignalKind::terminate())?;
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(i32::from(ETH_P_ALL))))?;
    set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER).context("make the receive buffer larger")?;
    socket.set_read_timeout(Some(LOOK_UP))?;
    let stopped = Arc::new(AtomicBool::new(false));
    let watching = tokio::task::spawn_blocking({
        let stopped = stopped.clone();
        move || watch(&socket, &stopped)
    });
    println!("capturing");
    stop.recv().await;
    stopped.store(true, Ordering::Relaxed);
    watching.await?
}

fn watch(socket: &Socket, stopped: &AtomicBool) -> Result<Captured> {
    let mut seen = Watch::new();
    let mut buffer = vec![0; MAX_PACKET];
    // An empty queue ends it, not the signal alone.
    loop {
        match rustix::io::read(socket, &mut buffer) {
            Ok(n) => seen.packet(&buffer[..n]),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) if stopped.load(Ordering::Relaxed) => break,
            Err(Errno::AGAIN) => {}
            Err(e) => return Err(e).context("read a packet"),
        }
        // A flood must not keep it alive for ever either.
        if stopped.load(Ordering::Relaxed) && now_us() > seen.end_by_us() {
            break;
        }
    }
    seen.report.dropped = dropped()?;
    Ok(seen.report)
}

/// Packets dropped by the packet sockets of this namespace.
fn dropped() -> Result<u64> {
    let output = Command::new("ss").args(["-0", "--memory", "--no-header"]).output().context("run ss")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    // skmem:(r0,rb212992,...,d0)
    let drops: Vec<u64> = text
        .split("skmem:(")
        .skip(1)
        .filter_map(|part| part.split(')').next()?.rsplit(",d").next()?.parse().ok())
        .collect();
    anyhow::ensure!(!drops.is_empty(), "ss does not show our socket: {text:?}");
    Ok(drops.iter().sum())
}

struct Watch {
    report: Captured,
    known: HashSet<(SocketAddr, SocketAddr)>,
    readable: HashSet<((SocketAddr, SocketAddr), String)>,
    find: Finder,
    http: Finder,
    asked_to_end_us: Option<u64>,
}

impl Watch {
    fn new() -> Self {
        Self {
            report: Captured::default(),
            known: HashSet::new(),
            readable: HashSet::new(),
            find: Finder::new(MARKER.as_bytes()),
            http: Finder::new(b" HTTP/1.1"),
            asked_to_end_us: None,
        }
    }

    /// When to end at the latest, counted from the first time this was asked.
    fn end_by_us(&mut self) -> u64 {
        *self.asked_to_end_us.get_or_insert_with(now_us) + MAX_REST_US
    }

    fn packet(&mut self, frame: &[u8]) {
        self.report.packets += 1;
        let Some(segment) = Segment::parse(frame) else { return };
        let port = segment.from.port().min(segment.to.port());
        if segment.payload.is_empty() {
            return;
        }
        *self.report.payload_bytes.entry(port).or_default() += segment.payload.len() as u64;
        if self.report.flows.len() < MAX_FLOWS && self.known.insert((segment.from, segment.to)) {
            self.report.flows.push(Flow {
                from: segment.from,
                to: segment.to,
                at_us: now_us(),
                first: segment.payload[..segment.payload.len().min(FIRST_BYTES)].to_vec(),
            });
        }
        if self.http.is_in(segment.payload) {
            let (from, to) = (segment.from.ip(), segment.to.ip());
            let pairs = &mut self.report.http;
            match pairs.iter().position(|&(f, t, _)| (f, t) == (from, to)) {
                Some(known) => pairs[known].2 += 1,
                None if pairs.len() < MAX_FLOWS => pairs.push((from, to, 1)),
                None => {}
            }
        }
        for tag in self.find.tags(segment.payload) {
            let ends = (segment.from.min(segment.to), segment.from.max(segment.to));
            let is_new = self.readable.len() < MAX_READABLE && self.readable.insert((ends, tag.clone()));
            let marked = self.report.markers.entry(tag).or_default();
            marked.packets += 1;
            if is_new {
                marked.newest_us = now_us();
            }
            let flow = format!("{} -> {}", segment.from, segment.to);
            if marked.flows.len() < MAX_EXAMPLES && !marked.flows.contains(&flow) {
                marked.flows.push(flow);
            }
        }
    }
}

struct Segment<'a> {
    from: SocketAddr,
    to: SocketAddr,
    payload: &'a [u8],
}

impl<'a> Segment<'a> {
    fn parse(frame: &'a [u8]) -> Option<Self> {
        let (kind, packet) = (frame.get(12..14)?, frame.get(14..)?);
        let (from, to, tcp): (IpAddr, IpAddr, &[u8]) = match kind {
            [0x08, 0x00] => {
                let (header, total) = (usize::from(packet.first()? & 0xf) * 4, word(packet, 2)?);
                if *packet.get(9)? != 6 {
                    return None;
                }
                let address = |at| Some(Ipv4Addr::from(<[u8; 4]>::try_from(packet.get(at..at + 4)?).ok()?));
                (address(12)?.into(), address(16)?.into(), packet.get(header..end(packet, total))?)
            }
            [0x86, 0xdd] => {
                if *packet.get(6)? != 6 {
                    return None;
                }
                let address = |at| Some(Ipv6Addr::from(<[u8; 16]>::try_from(packet.get(at..at + 16)?).ok()?));
                let total = match word(packet, 4)? {
                    0 => 0,
                    n => n + 40,
                };
                (address(8)?.into(), address(24)?.into(), packet.get(40..end(packet, total))?)
            }
            _ => return None,
        };
        let header = usize::from(tcp.get(12)? >> 4) * 4;
        Some(Self {
            from: (from, u16::try_from(word(tcp, 0)?).ok()?).into(),
            to: (to, u16::try_from(word(tcp, 2)?).ok()?).into(),
            payload: tcp.get(header..)?,
        })
    }
}

fn word(bytes: &[u8], at: usize) -> Option<usize> {
    Some(usize::from(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?])))
}

/// Where the packet ends: short frames are padded, and a length of 0 is a packet larger than the field can say.
fn end(packet: &[u8], total: usize) -> usize {
    if total == 0 { packet.len() } else { total.min(packet.len()) }
}

/// Searches for one text in steps of its length (Horspool), as everything on the wire passes here.
struct Finder {
    text: &'static [u8],
    skip: [usize; 256],
}

impl Finder {
    fn new(text: &'static [u8]) -> Self {
        let mut skip = [text.len(); 256];
        for (i, &byte) in text[..text.len() - 1].iter().enumerate() {
            skip[usize::from(byte)] = text.len() - 1 - i;
        }
        Self { text, skip }
    }

    fn is_in(&self, bytes: &[u8]) -> bool {
        self.position(bytes, 0).is_some()
    }

    /// Where the text stands at `from` or after it.
    fn position(&self, bytes: &[u8], from: usize) -> Option<usize> {
        let n = self.text.len();
        let mut at = from;
        while at + n <= bytes.len() {
            if &bytes[at..at + n] == self.text {
                return Some(at);
            }
            at += self.skip[usize::from(bytes[at + n - 1])];
        }
        None
    }

    /// The tags after every occurrence, each once.
    fn tags(&self, bytes: &[u8]) -> Vec<String> {
        let mut tags = BTreeSet::new();
        let mut from = 0;
        while let Some(at) = self.position(bytes, from) {
            from = at + self.text.len();
            // A tag that the packet's end cuts is nobody's; others of the same sender are whole.
            if let Some(tag) = bytes.get(from..from + TAG_BYTES) {
                tags.insert(String::from_utf8_lossy(tag).trim_end_matches('-').to_owned());
            }
        }
        tags.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::payload::marker;

    #[test]
    fn a_marker_is_found_wherever_it_stands() {
        let find = Finder::new(MARKER.as_bytes());
        for before in 0..40 {
            let text = format!("{}{}LOAM-PLAIN", "L".repeat(before), marker("me"));
            assert_eq!(find.tags(text.as_bytes()), ["me"], "{before} bytes before");
        }
        assert!(find.tags(b"LOAM-PLAINTEXLOAM-PLAINTEX").is_empty());
    }

    #[test]
    fn payload_is_found_behind_the_headers_of_both_families() {
        let mut v4 = vec![0; 12];
        v4.extend([0x08, 0x00, 0x45, 0, 0, 43, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        let tcp = [0x1f, 0x90, 0x30, 0x39, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x14, 0, 0, 0, 0, 0, 0, b'a', b'b', b'c'];
        v4.extend(tcp);
        v4.extend([0; 9]);
        let segment = Segment::parse(&v4).unwrap();
        assert_eq!(segment.payload, b"abc");
        assert_eq!((segment.from, segment.to), ("10.0.0.1:8080".parse().unwrap(), "10.0.0.2:12345".parse().unwrap()));

        let mut v6 = vec![0; 12];
        v6.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 23, 6, 64]);
        v6.extend(Ipv6Addr::LOCALHOST.octets());
        v6.extend(Ipv6Addr::LOCALHOST.octets());
        v6.extend(tcp);
        assert_eq!(Segment::parse(&v6).unwrap().payload, b"abc");
        for n in 0..v6.len() {
            let _ = Segment::parse(&v6[..n]);
        }
    }
}
