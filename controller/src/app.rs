//! The parts put together, in order.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use loam_api::ca::istio_certificate_service_server::IstioCertificateServiceServer;
use loam_core::ids::Identity;
use loam_kube::Client;
use loam_manifest::Source;
use loam_rt::drain::{self, Drain, Trigger};
use loam_rt::explain;
use loam_rt::ready::Ready;
use loam_rt::telemetry::Filter;
use loam_xds::server::{Ads, Authenticating};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::Status;
use tonic::transport::Server;

use crate::ca::authority::{Authority, ROOT_FILE};
use crate::ca::{Account, Authenticate, CaService, Entitled, Refused, Reviews, Tokens, files, secrets};
use crate::config::{Serve, Token};
use crate::debug::{self, Clients};
use crate::index::Residents;
use crate::leader;
use crate::owner::Owner;
use crate::publish::Published;
use crate::roots;
use crate::serve::{self, MAX_STREAMS, PING_INTERVAL, PING_TIMEOUT};
use crate::updates;
use crate::writer;

/// How long the parts may take to end.
const END: Duration = Duration::from_secs(5);

/// Pause before an API server that could not be reached is asked again.
const RETRY: Duration = Duration::from_secs(2);

/// Largest request for a certificate: some hundred times what an honest one takes.
const MAX_CSR_BYTES: usize = 64 << 10;

/// A controller that serves.
#[derive(Debug)]
pub struct Running {
    /// Where proxies connect.
    pub address: SocketAddr,
    /// Where people and scrapers look.
    pub admin: SocketAddr,
    trigger: Trigger,
    parts: JoinSet<Result<()>>,
}

impl Running {
    /// Waits until a part fails. None does in ordinary life.
    pub async fn failed(&mut self) -> anyhow::Error {
        loop {
            match self.parts.join_next().await {
                Some(Ok(Ok(()))) => {}
                Some(Ok(Err(error))) => return error,
                Some(Err(error)) => return anyhow::Error::new(error).context("a part of the controller"),
                None => return anyhow::anyhow!("every part of the controller has ended"),
            }
        }
    }

    /// Ends all parts.
    pub async fn end(mut self) {
        self.trigger.start();
        let all = async { while self.parts.join_next().await.is_some() {} };
        // Whatever is left is dropped with this value.
        let _ = tokio::time::timeout(END, all).await;
    }
}

/// Starts a controller. When this returns it has read everything and is reachable; the admin server is before.
pub async fn start(config: Serve, filter: Option<&Filter>) -> Result<Running> {
    let client = match config.source {
        Source::Dir(_) => None,
        Source::Kubernetes => Some(loam_kube::client().await?),
    };
    let listener = bind(config.listen, "proxies").await?;
    let admin = bind(config.admin, "the admin server").await?;
    let (address, admin_address) = (listener.local_addr()?, admin.local_addr()?);

    let (trigger, drain) = drain::channel();
    let ended = |drain: &Drain| {
        let drain = drain.clone();
        async move { drain.started().await }
    };
    let mut parts = JoinSet::new();
    let (published, clients, ready) = (Published::default(), Clients::default(), Ready::default());
    let (knows, objects, serves) = (ready.gate("authority"), ready.gate("objects"), ready.gate("listener"));
    let mut owner = Owner::new(config.mesh.clone(), published.clone());
    let mut watched = vec![(admin, debug::admin(&owner.view(), &published, &clients, &ready, filter))];
    if let Some(address) = config.readiness {
        watched.push((bind(address, "probes").await?, debug::readiness(&ready)));
    }
    for (listener, server) in watched {
        let end = ended(&drain);
        parts.spawn(async move {
            server.serve(listener, end).await;
            Ok(())
        });
    }

    let (authority, authenticate) = match &client {
        Some(client) => {
            let reviews = Reviews::new(client.clone(), config.trusted_node_accounts.clone());
            (authority_of_cluster(&config, client).await?, Arc::new(reviews).authenticate())
        }
        None => {
            let data_dir = config.data_dir.as_deref().context("keep keys: there is no data directory")?;
            (authority(&config, data_dir)?, Arc::new(Tokens::open(data_dir)?).authenticate())
        }
    };
    let authority = Arc::new(authority.with_max_ttl(config.max_certificate_ttl));
    knows.open();
    let mut updates = updates::follow(&config.source, client.as_ref()).await?;
    anyhow::ensure!(owner.begin(&mut updates).await, "the watch of {} has ended", config.source);
    objects.open();

    let ads = Ads::new(published.stores(), by_proxy(Arc::clone(&authenticate), owner.residents()), clients);
    let ca = CaService::new(Arc::clone(&authority), authenticate, OnNode(owner.residents()));
    let router = Server::builder()
        .http2_keepalive_interval(Some(PING_INTERVAL))
        .http2_keepalive_timeout(Some(PING_TIMEOUT))
        .max_concurrent_streams(Some(MAX_STREAMS))
        .add_service(ads.into_server())
        .add_service(IstioCertificateServiceServer::new(ca).max_decoding_message_size(MAX_CSR_BYTES));
    let tls = Arc::new(authority.serving_config(&config.serving_names)?);

    let (leads, led) = watch::channel(false);
    let wishes = owner.wishes(led.clone());
    let end = ended(&drain);
    parts.spawn(async move {
        tokio::select! {
            () = owner.follow(updates) => Err(anyhow::anyhow!("the watch of the manifests has ended")),
            () = end => Ok(()),
        }
    });
    let end = ended(&drain);
    parts.spawn(async move { serve::serve(listener, tls, router, end).await.context("serve proxies") });
    if let Some(client) = client {
        let (name, namespace) = (candidate(), config.namespace.clone());
        let (roots, template, end) = (authority.roots_pem(), config.template.clone(), ended(&drain));
        parts.spawn(async move {
            tokio::select! {
                () = leader::stand(client.clone(), &namespace, name, leads) => {}
                () = roots::keep(client.clone(), roots, led.clone()) => {}
                () = writer::keep(client.clone(), template, wishes, led) => {}
                () = end => return Ok(()),
            }
            Err(anyhow::anyhow!("what writes to the API server has ended"))
        });
    }
    serves.open();
    tracing::info!(%address, admin = %admin_address, source = %config.source, "controller serves");
    Ok(Running { address, admin: admin_address, trigger, parts })
}

/// A token for a node.
pub fn token(config: &Token) -> Result<String> {
    Ok(Tokens::open(&config.data_dir)?.issue(&config.node, config.ttl, SystemTime::now())?)
}

async fn bind(address: SocketAddr, whom: &str) -> Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("listen on {address} for {whom}"))
}

fn authority(config: &Serve, data_dir: &Path) -> Result<Authority> {
    let (domain, now) = (config.mesh.trust_domain.clone(), SystemTime::now());
    let Some((cert, key)) = &config.authority else { return Ok(Authority::open(data_dir, domain, now)?) };
    let authority = Authority::load(cert, key, domain, now)?;
    files::check_directory(data_dir)?;
    publish_roots(data_dir, &authority)?;
    Ok(authority)
}

/// The authority of a cluster. An API server that cannot be reached is waited for.
async fn authority_of_cluster(config: &Serve, client: &Client) -> Result<Authority> {
    let domain = &config.mesh.trust_domain;
    if let Some((cert, key)) = &config.authority {
        return Ok(Authority::load(cert, key, domain.clone(), SystemTime::now())?);
    }
    let mut told = String::new();
    loop {
        let error = match secrets::open(client, &config.namespace, domain, SystemTime::now()).await {
            Err(error) if error.may_pass() => explain(&error),
            done => return Ok(done?),
        };
        if error != told {
            tracing::warn!(error, "the API server is waited for");
            told = error;
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// What this controller is called in an election: nothing else is called so, not even itself after a restart.
fn candidate() -> String {
    let host = std::env::var("HOSTNAME").unwrap_or_else(|_| "loam-controller".to_owned());
    format!("{host}_{:016x}", rand::random::<u64>())
}

fn publish_roots(data_dir: &Path, authority: &Authority) -> Result<()> {
    Ok(files::publish(&data_dir.join(ROOT_FILE), authority.roots_pem().as_bytes())?)
}

/// Streams of configuration are for nodes and waypoints, as certificates are.
fn by_proxy(
    authenticate: Authenticate,
    residents: Arc<Residents>,
) -> impl Fn(&tonic::metadata::MetadataMap) -> Authenticating + Send + Sync {
    move |metadata| {
        let (caller, residents) = (authenticate(metadata), Arc::clone(&residents));
        // Whoever is refused learns nothing about why.
        Box::pin(async move {
            match caller.await {
                Ok(caller) => match &caller.account {
                    Some(account) if !residents.has_waypoint(&account.namespace, &account.name, &caller.node) => {
                        let caller = caller.name();
                        tracing::warn!(caller, "neither a trusted node account nor a pod of a waypoint");
                        Err(Status::unauthenticated("not authenticated"))
                    }
                    Some(_) | None => Ok(caller.name()),
                },
                Err(Refused::Stranger(why)) => {
                    tracing::warn!(why, "proxy not authenticated");
                    Err(Status::unauthenticated("not authenticated"))
                }
                Err(Refused::Unavailable(why)) => {
                    tracing::warn!(why, "proxy cannot be authenticated now");
                    Err(Status::unavailable("cannot authenticate now"))
                }
            }
        })
    }
}

/// A node may speak for whom it runs.
struct OnNode(Arc<Residents>);

impl Entitled for OnNode {
    fn runs_on(&self, identity: &Identity, node: &str) -> bool {
        self.0.runs_on(identity, node)
    }

    fn has_waypoint(&self, account: &Account, node: &str) -> bool {
        self.0.has_waypoint(&account.namespace, &account.name, node)
    }
}
