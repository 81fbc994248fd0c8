//! The lab's tool: its first process, servers that say what they see, clients that measure, and a capture.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "reports go to standard output, errors beside them")]

mod answer;
mod ask;
mod capture;
mod certificates;
mod client;
mod exec;
mod feed;
mod get;
mod health;
mod hold;
mod init;
mod lookups;
mod node;
mod paced;
mod payload;
mod peer;
mod pingpong;
mod probe;
mod question;
mod rate;
mod serve;
mod sign;
mod signer;
mod tamper;
mod transfer;
mod waypoint;
mod web;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Parser, Subcommand};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::Serialize;

#[derive(Parser)]
#[command(name = "loam-lab", about = "Tools of the network lab")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// The first process of a lab.
    Init {
        /// Directory of the lab, removed at the end.
        #[arg(long)]
        work: PathBuf,
        /// Cgroups of the lab, removed at the end.
        #[arg(long, required = true)]
        cgroup: Vec<PathBuf>,
    },
    /// Runs a program in a network namespace and in cgroups.
    Exec {
        /// File of the network namespace.
        #[arg(long)]
        netns: Option<PathBuf>,
        /// Cgroup directories.
        #[arg(long)]
        cgroup: Vec<PathBuf>,
        /// Program and arguments.
        #[arg(last = true, required = true)]
        argv: Vec<String>,
    },
    /// The first process of a Kubernetes node.
    Node {
        /// File that says what it does.
        #[arg(long)]
        boot: PathBuf,
    },
    /// Makes the certificates of a Kubernetes cluster.
    Certificates {
        /// File that says which.
        #[arg(long)]
        order: PathBuf,
        /// Where to put them.
        #[arg(long)]
        dir: PathBuf,
    },
    /// Servers, each given as a port (all addresses, both families) or as an address.
    Serve {
        /// Sends back every byte, and the end of the stream.
        #[arg(long)]
        echo: Vec<String>,
        /// Does what the first line of a connection asks for.
        #[arg(long)]
        talk: Vec<String>,
    },
    /// One connection to a `talk` server, described.
    Probe {
        /// The server.
        to: SocketAddr,
        /// Give up after this.
        #[arg(long, default_value_t = 5000)]
        timeout_ms: u64,
        /// Own address.
        #[arg(long)]
        bind: Option<SocketAddr>,
        /// Tag of the marker.
        #[arg(long, default_value = "probe")]
        tag: String,
    },
    /// Connections to a `talk` server at a steady rate, until the time is over or SIGTERM.
    Rate {
        /// The servers, in turn.
        #[arg(required = true)]
        to: Vec<SocketAddr>,
        /// Connections per second.
        #[arg(long)]
        per_second: u64,
        /// For how long.
        #[arg(long)]
        seconds: f64,
        /// Keep each open for this long after its answer.
        #[arg(long, default_value_t = 0)]
        linger_ms: u64,
        /// Give up after this.
        #[arg(long, default_value_t = 10_000)]
        timeout_ms: u64,
        /// Tag of the marker.
        #[arg(long, default_value = "rate")]
        tag: String,
    },
    /// Connections to a `talk` server, so many at a time.
    Churn {
        /// The server.
        to: SocketAddr,
        /// How many.
        #[arg(long)]
        count: u64,
        /// How many at a time.
        #[arg(long, default_value_t = 64)]
        parallel: usize,
        /// Tag of the marker.
        #[arg(long, default_value = "churn")]
        tag: String,
    },
    /// Connections to a `talk` server held open until SIGTERM, then asked once more.
    Hold {
        /// The server.
        to: SocketAddr,
        /// How many.
        #[arg(long)]
        count: u64,
        /// Tag of the marker.
        #[arg(long, default_value = "hold")]
        tag: String,
    },
    /// One long connection to a `talk` server with a message now and then, until it fails or SIGTERM.
    Pingpong {
        /// The server.
        to: SocketAddr,
        /// Time between messages.
        #[arg(long, default_value_t = 50)]
        every_ms: u64,
        /// Longest wait for an answer.
        #[arg(long, default_value_t = 8000)]
        timeout_ms: u64,
        /// Tag of the marker.
        #[arg(long, default_value = "pingpong")]
        tag: String,
    },
    /// Byte-exact transfers of random sizes.
    Transfer(transfer::Arguments),
    /// HTTP GET; prints the body of a successful answer.
    Get {
        /// `http://address:port/path`.
        url: String,
        /// Print what answered even when it is not a success.
        #[arg(long)]
        any_status: bool,
    },
    /// An HTTP server that gives the same small answer to every request.
    Web {
        /// Where it listens.
        listen: SocketAddr,
    },
    /// A gRPC server that says that it is well to whoever checks its health.
    Health {
        /// Where it listens.
        listen: SocketAddr,
    },
    /// Requests to a `web` server over one connection at a steady pace.
    Paced {
        /// The server.
        to: SocketAddr,
        /// Requests per second.
        #[arg(long)]
        per_second: u32,
        /// For how long.
        #[arg(long)]
        seconds: f64,
    },
    /// Questions for the address of a name over UDP, as many as are answered.
    Lookups {
        /// The name server.
        server: SocketAddr,
        /// The name.
        #[arg(long)]
        name: String,
        /// How many at a time.
        #[arg(long)]
        parallel: usize,
        /// For how long.
        #[arg(long)]
        seconds: f64,
    },
    /// Serves the configuration of a large made-up mesh, and certificates to whoever names an identity as its token.
    Feed {
        /// Where it listens.
        #[arg(long)]
        listen: SocketAddr,
        /// Directory of its own authority; `root-cert.pem` in it is what clients need.
        #[arg(long)]
        data_dir: PathBuf,
        /// Number of workloads, ten to a service.
        #[arg(long)]
        workloads: u32,
    },
    /// Greets whoever holds a tunnel port, as a peer that may be wrong in some way.
    Greet {
        /// The tunnel port.
        to: SocketAddr,
        #[command(flatten)]
        shown: Shown,
    },
    /// Holds a tunnel port until SIGTERM, as a peer that may be wrong in some way.
    Lure {
        /// Where it listens.
        listen: SocketAddr,
        #[command(flatten)]
        shown: Shown,
    },
    /// Asks the certificate authority for a certificate, with the token of a node.
    Sign {
        /// Address of the authority, as host:port.
        #[arg(long)]
        address: String,
        /// PEM file with the roots that vouch for it.
        #[arg(long)]
        ca_root: PathBuf,
        /// File with the token.
        #[arg(long)]
        token: PathBuf,
        /// Whom the certificate shall prove.
        #[arg(long)]
        identity: String,
    },
    /// Hands on the configuration of another control plane, and breaks some of it.
    Tamper {
        /// Where it listens.
        #[arg(long)]
        listen: SocketAddr,
        /// Address of the other one, as host:port.
        #[arg(long)]
        upstream: String,
        /// Directory of the other one's authority.
        #[arg(long)]
        data_dir: PathBuf,
    },
    /// Holds a tunnel port in the place of a waypoint until SIGTERM.
    Waypoint(waypoint::Arguments),
    /// Asks name servers for the address of a name.
    Ask(ask::Arguments),
    /// Answers every question to a name server with one address.
    Answer(answer::Arguments),
    /// Looks at every packet of the network namespace until SIGTERM.
    Capture,
}

/// What a peer shows of itself.
#[derive(clap::Args)]
struct Shown {
    /// Directory of the mesh's authority.
    #[arg(long)]
    authority: PathBuf,
    /// Whom its certificate names.
    #[arg(long)]
    identity: String,
    /// In which way it is wrong.
    #[arg(long, value_enum, default_value = "none")]
    flaw: peer::Flaw,
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("loam-lab: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        // None needs a runtime, and the first processes must not have one: they fork.
        Command::Init { work, cgroup } => init::run(&work, &cgroup),
        Command::Exec { netns, cgroup, argv } => exec::run(netns.as_deref(), &cgroup, &argv),
        Command::Node { boot } => node::run(&boot),
        Command::Certificates { order, dir } => certificates::run(&order, &dir),
        Command::Get { url, any_status } => get::run(&url, any_status),
        Command::Ask(arguments) => report(&ask::run(&arguments)?),
        command => {
            raise_descriptor_limit();
            tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()?
                .block_on(asynchronous(command))
        }
    }
}

/// Ten thousand connections need as many descriptors. Where the limit stays lower, the reports say what failed.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

async fn asynchronous(command: Command) -> Result<()> {
    match command {
        Command::Serve { echo, talk } => serve::run(&echo, &talk).await,
        Command::Probe { to, timeout_ms, bind, tag } => {
            report(&probe::run(to, bind, Duration::from_millis(timeout_ms), &tag).await)
        }
        Command::Rate { to, per_second, seconds, linger_ms, timeout_ms, tag } => {
            let plan = rate::Plan {
                to,
                linger: Duration::from_millis(linger_ms),
                timeout: Duration::from_millis(timeout_ms),
                tag,
            };
            report(&rate::steady(plan, per_second, Duration::from_secs_f64(seconds)).await?)
        }
        Command::Churn { to, count, parallel, tag } => {
            let plan = rate::Plan { to: vec![to], linger: Duration::ZERO, timeout: Duration::from_secs(10), tag };
            report(&rate::churn(plan, count, parallel).await?)
        }
        Command::Hold { to, count, tag } => report(&hold::run(to, count, &tag).await?),
        Command::Pingpong { to, every_ms, timeout_ms, tag } => {
            let (every, timeout) = (Duration::from_millis(every_ms), Duration::from_millis(timeout_ms));
            report(&pingpong::run(to, every, timeout, &tag).await?)
        }
        Command::Transfer(arguments) => report(&transfer::run(arguments).await?),
        Command::Web { listen } => web::run(listen).await,
        Command::Health { listen } => health::run(listen).await,
        Command::Paced { to, per_second, seconds } => {
            report(&paced::run(to, per_second, Duration::from_secs_f64(seconds)).await?)
        }
        Command::Lookups { server, name, parallel, seconds } => {
            report(&lookups::run(server, name, parallel, Duration::from_secs_f64(seconds)).await?)
        }
        Command::Feed { listen, data_dir, workloads } => feed::run(listen, &data_dir, workloads).await,
        Command::Greet { to, shown } => report(&peer::greet(to, &shown.authority, &shown.identity, shown.flaw).await?),
        Command::Lure { listen, shown } => {
            report(&peer::lure(listen, &shown.authority, &shown.identity, shown.flaw).await?)
        }
        Command::Sign { address, ca_root, token, identity } => {
            report(&sign::run(address, ca_root, token, &identity).await?)
        }
        Command::Tamper { listen, upstream, data_dir } => tamper::run(listen, upstream, &data_dir).await,
        Command::Waypoint(arguments) => waypoint::run(arguments).await,
        Command::Answer(arguments) => answer::run(arguments).await,
        Command::Capture => report(&capture::run().await?),
        Command::Init { .. }
        | Command::Exec { .. }
        | Command::Node { .. }
        | Command::Certificates { .. }
        | Command::Get { .. }
        | Command::Ask(_) => unreachable!("main runs these"),
    }
}

fn report(value: &impl Serialize) -> Result<()> {
    println!("{}", serde_json::to_string(value)?);
    Ok(())
}
