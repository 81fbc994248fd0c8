//! Servers that answer every question with one address: a name server on the network, or one that stands where a
//! ztunnel does and has its sockets from the keeper.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use loam_node::message::{
    FromZtunnel, Hello, PodAck, PodDrained, PodRef, Serving, ToZtunnel, Welcome, from_ztunnel, to_ztunnel,
};
use loam_node::{DNS_LANES, DNS_SOCKETS_PER_FAMILY, ListenerKind, Socket, ZTUNNEL_SOCKET};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinSet;

use crate::question::answer;

/// Where to answer.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The answer.
    #[arg(long)]
    with: Ipv4Addr,
    /// Addresses to listen on, over UDP and TCP.
    #[arg(long)]
    listen: Vec<SocketAddr>,
    /// Take the place of the ztunnel whose keeper works in this directory, and answer what the pods' programs ask.
    #[arg(long, value_name = "RUN_DIR")]
    for_pods: Option<PathBuf>,
}

/// Answers until the process ends.
pub(crate) async fn run(arguments: Arguments) -> Result<()> {
    let mut servers = JoinSet::new();
    for listen in arguments.listen {
        servers.spawn(messages(UdpSocket::bind(listen).await?, arguments.with));
        servers.spawn(connections(TcpListener::bind(listen).await?, arguments.with));
    }
    if let Some(run_dir) = arguments.for_pods {
        return for_pods(Socket::connect(&run_dir.join(ZTUNNEL_SOCKET))?, arguments.with).await;
    }
    println!("serving");
    while servers.join_next().await.is_some() {}
    Ok(())
}

async fn messages(socket: UdpSocket, with: Ipv4Addr) {
    let mut question = [0; 1500];
    loop {
        // A refusal of a former answer is no reason to stop.
        let Ok((bytes, from)) = socket.recv_from(&mut question).await else { continue };
        if let Some(answer) = answer(&question[..bytes], with) {
            let _ = socket.send_to(&answer, from).await;
        }
    }
}

async fn connections(listener: TcpListener, with: Ipv4Addr) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(connection(stream, with));
    }
}

async fn connection(mut stream: TcpStream, with: Ipv4Addr) -> io::Result<()> {
    loop {
        let mut question = vec![0; usize::from(stream.read_u16().await?)];
        stream.read_exact(&mut question).await?;
        let answer = answer(&question, with).ok_or(io::ErrorKind::InvalidData)?;
        stream.write_all(&[&(answer.len() as u16).to_be_bytes()[..], &answer].concat()).await?;
    }
}

/// Serves nothing but names, of every pod that the keeper gives.
async fn for_pods(socket: Socket, with: Ipv4Addr) -> Result<()> {
    socket.send_message(&Hello::new(), &[]).await?;
    let (welcome, _) = socket.recv_message::<Welcome>().await?.context("the keeper closed")?;
    ensure!(welcome.error.is_empty(), "the keeper refuses: {}", welcome.error);
    let socket = Arc::new(socket);
    let say = async |said| socket.send_message(&FromZtunnel::from(said), &[]).await;
    let mut pods: HashMap<u64, JoinSet<()>> = HashMap::new();
    while let Some((message, fds)) = socket.recv_message::<ToZtunnel>().await? {
        match message.said {
            Some(to_ztunnel::Said::AddPod(add)) => {
                let uid = add.info.context("a pod without its facts")?.uid;
                pods.insert(add.incarnation, names(fds, with)?);
                let pod = Some(PodRef { uid, incarnation: add.incarnation });
                say(from_ztunnel::Said::PodAck(PodAck { pod, error: String::new() })).await?;
            }
            Some(to_ztunnel::Said::RemovePod(remove)) => {
                let pod = remove.pod.as_ref().and_then(|pod| pods.remove(&pod.incarnation));
                // Its sockets are closed before the keeper hears of it.
                if let Some(mut servers) = pod {
                    servers.shutdown().await;
                }
                say(from_ztunnel::Said::PodDrained(PodDrained { pod: remove.pod })).await?;
            }
            Some(to_ztunnel::Said::SnapshotSent(_)) => {
                say(from_ztunnel::Said::Serving(Serving {})).await?;
                println!("serving");
            }
            _ => {}
        }
    }
    Ok(())
}

/// Answers on a pod's sockets for names.
fn names(mut fds: Vec<OwnedFd>, with: Ipv4Addr) -> Result<JoinSet<()>> {
    let mut servers = JoinSet::new();
    for (at, fd) in fds.drain(ListenerKind::ALL.len()..).enumerate() {
        match at % DNS_SOCKETS_PER_FAMILY < usize::from(DNS_LANES) {
            true => servers.spawn(messages(UdpSocket::from_std(fd.into())?, with)),
            false => servers.spawn(connections(TcpListener::from_std(fd.into())?, with)),
        };
    }
    Ok(servers)
}
