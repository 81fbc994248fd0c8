//! Questions to name servers over sockets of every shape, each described as the program sees it.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use serde::Serialize;
use socket2::{Domain, Protocol, Socket, Type};

use crate::client::kind;
use crate::question;

/// What to ask, and how.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The servers.
    #[arg(required = true)]
    servers: Vec<SocketAddr>,
    /// The name whose address is asked for.
    #[arg(long)]
    name: String,
    /// Over which socket.
    #[arg(long, value_enum)]
    over: Over,
    /// Own address.
    #[arg(long)]
    bind: Option<SocketAddr>,
    /// Interface to bind to.
    #[arg(long)]
    device: Option<String>,
    /// Use IPv6 sockets for IPv4 servers.
    #[arg(long)]
    mapped: bool,
    /// How many questions to ask each server.
    #[arg(long, default_value_t = 1)]
    count: u32,
    /// Time between two.
    #[arg(long, default_value_t = 20)]
    every_ms: u64,
    /// Longest wait for an answer.
    #[arg(long, default_value_t = 3000)]
    timeout_ms: u64,
    /// When UDP sockets are made and connected, say so and wait for this file before the first question.
    #[arg(long)]
    wait_for: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Over {
    /// UDP, connected to each server.
    Connected,
    /// One UDP socket for all servers, which are all asked before the first answer is read.
    Unconnected,
    /// TCP, a connection to each server.
    Tcp,
}

/// What became of a question.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Asked {
    server: String,
    at_us: u64,
    ms: f64,
    error: Option<String>,
    code: u16,
    addresses: Vec<Ipv4Addr>,
    /// Who sent the answer, as it was received.
    from: Option<SocketAddr>,
    /// The socket's peer and own address.
    peer: Option<SocketAddr>,
    local: Option<SocketAddr>,
}

pub(crate) fn run(arguments: &Arguments) -> io::Result<Vec<Asked>> {
    let timeout = Duration::from_millis(arguments.timeout_ms);
    let mut all = Vec::new();
    match arguments.over {
        Over::Unconnected => {
            let socket = arguments.udp(arguments.servers[0])?;
            arguments.paced(|id| all.extend(together(arguments, &socket, id, timeout)))?;
        }
        Over::Connected => {
            let mut sockets = Vec::new();
            for &server in &arguments.servers {
                let socket = arguments.udp(server)?;
                let connected = socket.connect(arguments.as_asked(server));
                sockets.push((server, socket, connected));
            }
            arguments.paced(|id| {
                for (server, socket, connected) in &sockets {
                    all.push(described(*server, |asked| {
                        connected.as_ref().map_err(|error| io::Error::from(error.kind()))?;
                        (asked.peer, asked.local) = (socket.peer_addr().ok(), socket.local_addr().ok());
                        socket.set_read_timeout(Some(timeout))?;
                        socket.send(&question::question(id, &arguments.name))?;
                        let mut answer = [0; 1500];
                        let (bytes, from) = socket.recv_from(&mut answer)?;
                        asked.from = Some(from);
                        asked.read(&answer[..bytes])
                    }));
                }
            })?;
        }
        Over::Tcp => arguments.paced(|id| {
            for &server in &arguments.servers {
                all.push(described(server, |asked| by_tcp(arguments, server, id, timeout, asked)));
            }
        })?,
    }
    Ok(all)
}

impl Arguments {
    fn paced(&self, mut round: impl FnMut(u16)) -> io::Result<()> {
        if let Some(file) = &self.wait_for {
            println!("waiting");
            while !file.exists() {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        for number in 0..self.count {
            if number > 0 {
                std::thread::sleep(Duration::from_millis(self.every_ms));
            }
            round(number as u16 * 16 + 1);
        }
        Ok(())
    }

    /// The server's address as the socket takes it.
    fn as_asked(&self, server: SocketAddr) -> SocketAddr {
        match server.ip() {
            IpAddr::V4(v4) if self.mapped => (v4.to_ipv6_mapped(), server.port()).into(),
            _ => server,
        }
    }

    fn socket(&self, server: SocketAddr, kind: Type, protocol: Protocol) -> io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(self.as_asked(server)), kind, Some(protocol))?;
        if let Some(device) = &self.device {
            socket.bind_device(Some(device.as_bytes()))?;
        }
        if let Some(bind) = self.bind {
            socket.bind(&self.as_asked(bind).into())?;
        }
        Ok(socket)
    }

    fn udp(&self, server: SocketAddr) -> io::Result<UdpSocket> {
        Ok(self.socket(server, Type::DGRAM, Protocol::UDP)?.into())
    }
}

/// Asks every server over one socket, then reads the answers.
fn together(arguments: &Arguments, socket: &UdpSocket, first_id: u16, timeout: Duration) -> Vec<Asked> {
    let ask = |(at, &server): (usize, &SocketAddr)| {
        described(server, |_| {
            let question = question::question(first_id + at as u16, &arguments.name);
            socket.send_to(&question, arguments.as_asked(server)).map(drop)
        })
    };
    let mut all: Vec<Asked> = arguments.servers.iter().enumerate().map(ask).collect();
    let begun = Instant::now();
    let mut read = || -> io::Result<()> {
        socket.set_read_timeout(Some(timeout))?;
        let mut answer = [0; 1500];
        let (bytes, from) = socket.recv_from(&mut answer)?;
        let at = question::id(&answer[..bytes]).and_then(|id| id.checked_sub(first_id));
        let asked = at.and_then(|at| all.get_mut(usize::from(at)));
        let asked = asked.ok_or_else(|| io::Error::other("an answer to nothing"))?;
        asked.ms += begun.elapsed().as_secs_f64() * 1e3;
        (asked.from, asked.local) = (Some(from), socket.local_addr().ok());
        asked.read(&answer[..bytes])
    };
    for _ in 0..arguments.servers.len() {
        if read().is_err() {
            break;
        }
    }
    for asked in all.iter_mut().filter(|asked| asked.error.is_none() && asked.from.is_none()) {
        asked.error = Some("no answer".into());
        asked.ms += begun.elapsed().as_secs_f64() * 1e3;
    }
    all
}

fn by_tcp(arguments: &Arguments, server: SocketAddr, id: u16, timeout: Duration, asked: &mut Asked) -> io::Result<()> {
    let socket = arguments.socket(server, Type::STREAM, Protocol::TCP)?;
    socket.connect_timeout(&arguments.as_asked(server).into(), timeout)?;
    let mut stream = TcpStream::from(socket);
    (asked.peer, asked.local) = (stream.peer_addr().ok(), stream.local_addr().ok());
    stream.set_read_timeout(Some(timeout))?;
    let question = question::question(id, &arguments.name);
    stream.write_all(&[&(question.len() as u16).to_be_bytes()[..], &question].concat())?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut answer)?;
    asked.read(&answer)
}

fn described(server: SocketAddr, ask: impl FnOnce(&mut Asked) -> io::Result<()>) -> Asked {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let mut asked = Asked { server: server.to_string(), at_us: now.as_micros() as u64, ..Asked::default() };
    let begun = Instant::now();
    asked.error = ask(&mut asked).err().map(|error| kind(&error));
    asked.ms = begun.elapsed().as_secs_f64() * 1e3;
    asked
}

impl Asked {
    fn read(&mut self, answer: &[u8]) -> io::Result<()> {
        (self.code, self.addresses) = question::read(answer).map_err(io::Error::other)?;
        Ok(())
    }
}
