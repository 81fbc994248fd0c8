//! The parts put together, in order.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use loam_api::ca::istio_certificate_service_server::IstioCertificateServiceServer;
use loam_core::ids::Identity;
use loam_manifest::{Manifests, Source};
use loam_rt::admin::Server as Admin;
use loam_rt::drain::{self, Drain, Trigger};
use loam_rt::ready::Ready;
use loam_rt::telemetry::Filter;
use loam_xds::server::Ads;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tonic::Status;
use tonic::transport::Server;

use crate::ca::authority::{Authority, ROOT_FILE};
use crate::ca::{Authenticate, CaService, Entitled, Tokens, files};
use crate::config::{Serve, Token};
use crate::debug::{self, Clients};
use crate::index::Residents;
use crate::owner::Owner;
use crate::publish::Published;
use crate::serve::{self, MAX_STREAMS, PING_INTERVAL, PING_TIMEOUT};

/// How long the parts may take to end.
const END: Duration = Duration::from_secs(5);

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

/// Starts a controller. When this returns it has read everything and is reachable.
pub async fn start(config: Serve, filter: Option<&Filter>) -> Result<Running> {
    let Source::Dir(dir) = &config.source else {
        anyhow::bail!("--source {}: this controller reads a directory of manifests: write dir:PATH", config.source);
    };
    let listener = bind(config.listen, "proxies").await?;
    let admin = bind(config.admin, "the admin server").await?;
    let (address, admin_address) = (listener.local_addr()?, admin.local_addr()?);
    let authority = Arc::new(authority(&config)?);
    let tokens = Arc::new(Tokens::open(&config.data_dir)?);

    let published = Published::default();
    let mut owner = Owner::new(config.mesh.clone(), published.clone());
    let mut manifests = Manifests::stream(dir).await?;
    anyhow::ensure!(owner.begin(&mut manifests).await, "the watch of {} has ended", dir.display());

    let (trigger, drain) = drain::channel();
    let (clients, ready) = (Clients::default(), Ready::default());
    let gate = ready.gate("listener");
    let routes = debug::routes(&owner.view(), &published, &clients, &ready, filter);
    let ads = Ads::new(published.stores(), by_node(Arc::clone(&tokens).authenticate()), clients);
    let ca = CaService::new(Arc::clone(&authority), tokens.authenticate(), OnNode(owner.residents()));
    let router = Server::builder()
        .http2_keepalive_interval(Some(PING_INTERVAL))
        .http2_keepalive_timeout(Some(PING_TIMEOUT))
        .max_concurrent_streams(Some(MAX_STREAMS))
        .add_service(ads.into_server())
        .add_service(IstioCertificateServiceServer::new(ca).max_decoding_message_size(MAX_CSR_BYTES));
    let tls = Arc::new(authority.serving_config(&config.serving_names)?);

    let mut parts = JoinSet::new();
    let ended = |drain: &Drain| {
        let drain = drain.clone();
        async move { drain.started().await }
    };
    let end = ended(&drain);
    parts.spawn(async move {
        tokio::select! {
            () = owner.follow(manifests) => Err(anyhow::anyhow!("the watch of the manifests has ended")),
            () = end => Ok(()),
        }
    });
    let end = ended(&drain);
    parts.spawn(async move { serve::serve(listener, tls, router, end).await.context("serve proxies") });
    let end = ended(&drain);
    parts.spawn(async move {
        Admin::new(routes).serve(admin, end).await;
        Ok(())
    });
    gate.open();
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

fn authority(config: &Serve) -> Result<Authority> {
    let (domain, now) = (config.mesh.trust_domain.clone(), SystemTime::now());
    let authority = match &config.authority {
        None => Authority::open(&config.data_dir, domain, now)?,
        Some((cert, key)) => {
            let authority = Authority::load(cert, key, domain, now)?;
            files::check_directory(&config.data_dir)?;
            publish_roots(&config.data_dir, &authority)?;
            authority
        }
    };
    Ok(authority.with_max_ttl(config.max_certificate_ttl))
}

fn publish_roots(data_dir: &Path, authority: &Authority) -> Result<()> {
    Ok(files::publish(&data_dir.join(ROOT_FILE), authority.roots_pem().as_bytes())?)
}

/// Streams of configuration are for nodes, as certificates are.
fn by_node(
    authenticate: Authenticate,
) -> impl Fn(&tonic::metadata::MetadataMap) -> Result<String, Status> + Send + Sync {
    move |metadata| match authenticate(metadata) {
        Ok(caller) => Ok(caller.node),
        Err(why) => {
            tracing::warn!(why, "proxy not authenticated");
            // A stranger learns nothing about why.
            Err(Status::unauthenticated("not authenticated"))
        }
    }
}

/// A node may speak for whom it runs.
struct OnNode(Arc<Residents>);

impl Entitled for OnNode {
    fn runs_on(&self, identity: &Identity, node: &str) -> bool {
        self.0.runs_on(identity, node)
    }
}
