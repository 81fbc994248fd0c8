//! The command line, read once and checked as a whole: every mistake is told, not only the first.

use std::ffi::OsString;
use std::fmt::Display;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use loam_core::ids::{Hostname, Identity, TrustDomain};
use loam_manifest::Source;
use loam_rt::telemetry::LogFormat;

use crate::ca::Account;
use crate::index::Mesh;
use crate::provision::Template;

/// What the process is asked to do.
#[derive(Debug, Clone)]
pub enum Command {
    /// Serve until told to end.
    Serve(Box<Serve>),
    /// Print a token for a node.
    Token(Token),
}

/// How to serve.
#[derive(Debug, Clone)]
pub struct Serve {
    /// Where objects come from.
    pub source: Source,
    /// Where proxies connect.
    pub listen: SocketAddr,
    /// Where keys are kept, where no cluster keeps them.
    pub data_dir: Option<PathBuf>,
    /// The namespace of the controller, its secrets and its lease, with `kubernetes` as the source.
    pub namespace: String,
    /// Accounts whose pods speak for their nodes, with `kubernetes` as the source.
    pub trusted_node_accounts: Vec<Account>,
    /// What all resources have in common.
    pub mesh: Mesh,
    /// How waypoints are made, if they are.
    pub template: Option<Template>,
    /// Names and addresses of the serving certificate.
    pub serving_names: Vec<String>,
    /// The user's own authority: certificate and key.
    pub authority: Option<(PathBuf, PathBuf)>,
    /// Longest life of a workload's certificate.
    pub max_certificate_ttl: Duration,
    /// Where people and scrapers look.
    pub admin: SocketAddr,
    /// Where probes look, if they have a place of their own.
    pub readiness: Option<SocketAddr>,
    /// How log lines look.
    pub log_format: LogFormat,
    /// Which log lines there are.
    pub log_filter: String,
}

/// A token for a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// Where keys are kept.
    pub data_dir: PathBuf,
    /// The node.
    pub node: String,
    /// How long it is good.
    pub ttl: Duration,
}

/// Why there is no command to run.
#[derive(Debug)]
pub enum Refused {
    /// Help or version was asked for: the text.
    Told(String),
    /// All that is wrong.
    Mistakes(Vec<String>),
}

/// Certificates live for a day unless the user wants less.
const MAX_CERTIFICATE_TTL: u64 = 24 * 3600;
/// Where Istio's users keep the policies of the mesh.
const ROOT_NAMESPACE: &str = "istio-system";
/// Who the proxies of nodes are in an installation of Istio.
const TRUSTED_NODE_ACCOUNT: &str = "istio-system/ztunnel";
/// What proxies call the controller in an installation of Istio.
const SERVICE: &str = "istiod";
/// The client of the API server logs every attempt that fails; we say what follows from it.
const LOG_FILTER: &str = "info,kube_client=off";
/// Most names of a trust domain: each makes every principal of a policy longer by one.
const MAX_ALIASES: usize = 16;
/// Nobody renews a token in a file: a year, so that a demo of last month still runs.
const TOKEN_TTL: u64 = 365 * 24 * 3600;

#[derive(Parser)]
#[command(
    name = "loam-controller",
    version,
    about = "Compiles the mesh, serves it to proxies and signs their certificates"
)]
struct Cli {
    #[command(subcommand)]
    command: Commands,
}

#[derive(Subcommand)]
enum Commands {
    /// Serve until told to end (what happens without a command)
    Serve(Box<ServeArgs>),
    /// Print a token that proves a node
    Token(TokenArgs),
}

// Values are text here, so that the first wrong one does not hide the others.
#[derive(Args)]
struct ServeArgs {
    /// Where Kubernetes objects come from: kubernetes, or dir:PATH for a directory of manifests
    #[arg(long, env = "LOAM_SOURCE", default_value = "")]
    source: String,
    /// Address for proxies: configuration and certificates
    #[arg(long, default_value = "0.0.0.0:15012")]
    listen: String,
    /// Directory for keys and the root certificate; made if missing. Not used with the source kubernetes, where
    /// Secrets hold the keys
    #[arg(long, env = "LOAM_DATA_DIR", default_value = "")]
    data_dir: String,
    /// With the source kubernetes: namespace of the controller, its Secrets and its Lease
    #[arg(long, env = "POD_NAMESPACE", default_value = ROOT_NAMESPACE)]
    namespace: String,
    /// With the source kubernetes: service account whose pods speak for their nodes, as NAMESPACE/NAME; may be repeated
    #[arg(
        long = "trusted-node-account",
        env = "CA_TRUSTED_NODE_ACCOUNTS",
        value_delimiter = ',',
        default_value = TRUSTED_NODE_ACCOUNT
    )]
    trusted_node_accounts: Vec<String>,
    /// Trust domain of all identities
    #[arg(long, env = "TRUST_DOMAIN", default_value = TrustDomain::DEFAULT)]
    trust_domain: String,
    /// Another name of the trust domain: policies that name one mean both; may be repeated
    #[arg(long = "trust-domain-alias", env = "TRUST_DOMAIN_ALIASES", value_delimiter = ',')]
    trust_domain_aliases: Vec<String>,
    /// Namespace whose policies are about the whole mesh
    #[arg(long, env = "ROOT_NAMESPACE", default_value = ROOT_NAMESPACE)]
    root_namespace: String,
    /// Name of this cluster
    #[arg(long, env = "CLUSTER_ID", default_value = "Kubernetes")]
    cluster: String,
    /// Domain below which services have their names
    #[arg(long, env = "CLUSTER_DOMAIN", default_value = "cluster.local")]
    cluster_domain: String,
    /// Name of the network of this cluster
    #[arg(long, env = "NETWORK", default_value = "")]
    network: String,
    /// What workloads may do with destinations that nobody declared: ALLOW_ANY or REGISTRY_ONLY
    #[arg(long, env = "OUTBOUND_TRAFFIC_POLICY", default_value = "ALLOW_ANY")]
    outbound_traffic_policy: String,
    /// Image of waypoints, with the source kubernetes; without it none is made, and whoever has a Gateway brings its own
    #[arg(long, env = "WAYPOINT_IMAGE", default_value = "")]
    waypoint_image: String,
    /// When nodes pull that image: Always, IfNotPresent or Never
    #[arg(long, env = "WAYPOINT_PULL_POLICY", default_value = "IfNotPresent")]
    waypoint_pull_policy: String,
    /// Name of a Secret for the registry of that image, in the waypoint's namespace; may be repeated
    #[arg(long = "waypoint-pull-secret", env = "WAYPOINT_PULL_SECRETS", value_delimiter = ',')]
    waypoint_pull_secrets: Vec<String>,
    /// Name or address by which proxies call; may be repeated. Without it localhost, 127.0.0.1 and ::1, or with the
    /// source kubernetes localhost and the names of the Service istiod
    #[arg(long = "serving-name")]
    serving_names: Vec<String>,
    /// Certificate of your own CA and those above it, in PEM; without it one is made in the data directory
    #[arg(long)]
    ca_cert: Option<PathBuf>,
    /// Key of your own CA, in PEM
    #[arg(long)]
    ca_key: Option<PathBuf>,
    /// Longest life of a workload's certificate, in seconds
    #[arg(long, default_value_t = MAX_CERTIFICATE_TTL.to_string())]
    max_certificate_ttl: String,
    /// Address for metrics and readiness, and for debugging, which serves only callers on the machine itself
    #[arg(long, env = "ADMIN_ADDRESS", default_value = "127.0.0.1:15014")]
    admin: String,
    /// Address for readiness alone
    #[arg(long, env = "READINESS_ADDRESS", default_value = "")]
    readiness: String,
    /// plain or json
    #[arg(long, env = "LOG_FORMAT", default_value = "plain")]
    log_format: String,
    /// Such as info,loam_xds=debug
    #[arg(long, env = "RUST_LOG", default_value = LOG_FILTER)]
    log_filter: String,
}

#[derive(Args)]
struct TokenArgs {
    /// Directory with the key, the same as of the controller
    #[arg(long, env = "LOAM_DATA_DIR", default_value = "")]
    data_dir: String,
    /// Name of the node
    #[arg(long, default_value = "")]
    node: String,
    /// How long the token is good, in seconds
    #[arg(long, default_value_t = TOKEN_TTL.to_string())]
    ttl: String,
}

/// The command line as it is described to people.
pub fn described() -> clap::Command {
    Cli::command()
}

/// Reads a command line, the name of the program first.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Command, Refused> {
    let mut args: Vec<OsString> = args.into_iter().collect();
    let command = args.get(1).and_then(|a| a.to_str()).unwrap_or_default();
    let is_command = Cli::command().get_subcommands().any(|c| c.get_name() == command);
    if !is_command && !matches!(command, "help" | "-h" | "--help" | "-V" | "--version") {
        args.insert(1.min(args.len()), "serve".into());
    }
    let told = |e: clap::Error| match e.use_stderr() {
        false => Refused::Told(e.to_string()),
        true => {
            let text = e.to_string();
            Refused::Mistakes(vec![text.strip_prefix("error: ").unwrap_or(&text).trim_end().to_owned()])
        }
    };
    let matches = Cli::command().try_get_matches_from(args).map_err(told)?;
    match Cli::from_arg_matches(&matches).map_err(told)?.command {
        Commands::Serve(args) => args.check().map(|serve| Command::Serve(Box::new(serve))),
        Commands::Token(args) => args.check().map(Command::Token),
    }
    .map_err(Refused::Mistakes)
}

/// Collects mistakes.
#[derive(Default)]
struct Check {
    mistakes: Vec<String>,
}

impl Check {
    fn value<T: FromStr<Err: Display>>(&mut self, flag: &str, text: &str) -> Option<T> {
        text.parse().map_err(|e| self.mistake(flag, e)).ok()
    }

    fn needed<T>(&mut self, flag: &str, text: &str, read: impl FnOnce(&mut Self) -> Option<T>) -> Option<T> {
        if text.is_empty() {
            self.mistake(flag, "is needed");
            return None;
        }
        read(self)
    }

    fn path(&mut self, flag: &str, text: &str) -> Option<PathBuf> {
        self.needed(flag, text, |_| Some(text.into()))
    }

    fn seconds(&mut self, flag: &str, text: &str) -> Option<Duration> {
        match text.parse::<u64>() {
            Ok(seconds) if seconds > 0 => Some(Duration::from_secs(seconds)),
            Ok(_) | Err(_) => {
                self.mistake(flag, format_args!("{text:?} is not a number of seconds"));
                None
            }
        }
    }

    fn mistake(&mut self, flag: &str, what: impl Display) {
        self.mistakes.push(format!("--{flag}: {what}"));
    }
}

impl ServeArgs {
    fn check(self) -> Result<Serve, Vec<String>> {
        let mut check = Check::default();
        let source: Option<Source> = check.needed("source", &self.source, |c| c.value("source", &self.source));
        let template = (source == Some(Source::Kubernetes) && !self.waypoint_image.is_empty()).then(|| self.template());
        let listen = check.value("listen", &self.listen);
        let data_dir = match source {
            Some(Source::Kubernetes) => None,
            Some(Source::Dir(_)) | None => check.path("data-dir", &self.data_dir),
        };
        if let Err(error) = Identity::new(TrustDomain::default(), &self.namespace, "any") {
            check.mistake("namespace", error);
        }
        let accounts = self.trusted_node_accounts.iter().filter(|account| !account.is_empty());
        let accounts: Vec<Option<Account>> = accounts.map(|a| check.value("trusted-node-account", a)).collect();
        if source == Some(Source::Kubernetes) && accounts.is_empty() {
            check.mistake("trusted-node-account", "is needed: no proxy would be served");
        }
        let trust_domain = check.value("trust-domain", &self.trust_domain);
        let aliases = self.trust_domain_aliases.iter().filter(|alias| !alias.is_empty());
        let aliases: Vec<Option<TrustDomain>> = aliases.map(|a| check.value("trust-domain-alias", a)).collect();
        if aliases.len() > MAX_ALIASES {
            check.mistake("trust-domain-alias", format_args!("is given more than {MAX_ALIASES} times"));
        }
        if let Err(error) = Identity::new(TrustDomain::default(), &self.root_namespace, "any") {
            check.mistake("root-namespace", error);
        }
        let domain: Option<Hostname> = check.value("cluster-domain", &self.cluster_domain);
        for (flag, name) in [("cluster", &self.cluster), ("network", &self.network)] {
            let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
            if !name.chars().all(valid) || name.len() > 255 || (flag == "cluster" && name.is_empty()) {
                check.mistake(flag, format_args!("{name:?} is not letters, digits, '-', '.' and '_'"));
            }
        }
        let egress = check.value("outbound-traffic-policy", &self.outbound_traffic_policy);
        let authority = match (self.ca_cert, self.ca_key) {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => None,
            (Some(_), None) => {
                check.mistake("ca-key", "is needed beside --ca-cert");
                None
            }
            (None, Some(_)) => {
                check.mistake("ca-cert", "is needed beside --ca-key");
                None
            }
        };
        let serving_names = match (&source, &self.serving_names[..]) {
            (Some(Source::Kubernetes), []) => names_of_service(&self.namespace, &self.cluster_domain),
            (Some(Source::Dir(_)) | None, []) => ["localhost", "127.0.0.1", "::1"].map(str::to_owned).into(),
            (_, given) => given.to_owned(),
        };
        for name in &self.serving_names {
            if name.parse::<IpAddr>().is_err() && name.parse::<Hostname>().is_err() {
                check.mistake("serving-name", format_args!("{name:?} is neither an address nor a DNS name"));
            }
        }
        if !matches!(self.waypoint_pull_policy.as_str(), "Always" | "IfNotPresent" | "Never") {
            let policy = &self.waypoint_pull_policy;
            check.mistake("waypoint-pull-policy", format_args!("{policy:?} is not Always, IfNotPresent or Never"));
        }
        let max_certificate_ttl = check.seconds("max-certificate-ttl", &self.max_certificate_ttl);
        let admin = check.value("admin", &self.admin);
        let has_readiness = !self.readiness.is_empty();
        let readiness = has_readiness.then(|| check.value("readiness", &self.readiness)).flatten();
        let log_format = check.value("log-format", &self.log_format);
        let mesh = || {
            Some(Mesh {
                cluster: self.cluster.into(),
                cluster_domain: Arc::from(domain?.as_str()),
                trust_domain: trust_domain?,
                trust_domain_aliases: aliases.into_iter().collect::<Option<Vec<_>>>()?.into(),
                root_namespace: self.root_namespace.into(),
                network: self.network.into(),
                egress: egress?,
            })
        };
        let serve = || {
            Some(Serve {
                source: source?,
                listen: listen?,
                data_dir,
                namespace: self.namespace,
                trusted_node_accounts: accounts.into_iter().collect::<Option<Vec<_>>>()?,
                mesh: mesh()?,
                template,
                serving_names,
                authority,
                max_certificate_ttl: max_certificate_ttl?,
                admin: admin?,
                readiness,
                log_format: log_format?,
                log_filter: self.log_filter,
            })
        };
        match check.mistakes.is_empty() {
            true => serve().ok_or(check.mistakes),
            false => Err(check.mistakes),
        }
    }
}

impl ServeArgs {
    /// How waypoints are made: they are told what all proxies are told.
    fn template(&self) -> Template {
        let env = [
            ("ROOT_NAMESPACE", &self.root_namespace),
            ("TRUST_DOMAIN", &self.trust_domain),
            ("CLUSTER_ID", &self.cluster),
            ("NETWORK", &self.network),
            ("LOG_FORMAT", &self.log_format),
        ];
        let secrets = self.waypoint_pull_secrets.iter().filter(|secret| !secret.is_empty());
        Template {
            image: self.waypoint_image.clone(),
            pull_policy: self.waypoint_pull_policy.clone(),
            pull_secrets: secrets.cloned().collect(),
            control_plane: format!("{SERVICE}.{}.svc:15012", self.namespace),
            env: env.into_iter().map(|(name, value)| (name.to_owned(), value.clone())).collect(),
        }
    }
}

fn names_of_service(namespace: &str, cluster_domain: &str) -> Vec<String> {
    let service = format!("{SERVICE}.{namespace}");
    vec![format!("{service}.svc"), format!("{service}.svc.{cluster_domain}"), service, "localhost".to_owned()]
}

impl TokenArgs {
    fn check(self) -> Result<Token, Vec<String>> {
        let mut check = Check::default();
        let data_dir = check.path("data-dir", &self.data_dir);
        let node = check.needed("node", &self.node, |c| c.value::<Hostname>("node", &self.node));
        let ttl = check.seconds("ttl", &self.ttl);
        match (data_dir, node, ttl) {
            (Some(data_dir), Some(_), Some(ttl)) => Ok(Token { data_dir, node: self.node, ttl }),
            _ => Err(check.mistakes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(line: &str) -> Result<Command, Refused> {
        parse(std::iter::once("loam-controller").chain(line.split_whitespace()).map(OsString::from))
    }

    fn mistakes(line: &str) -> Vec<String> {
        match run(line) {
            Err(Refused::Mistakes(mistakes)) => mistakes,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn serving_is_what_happens_without_a_command() {
        for line in ["--source dir:/m --data-dir /d", "serve --source dir:/m --data-dir /d"] {
            let Ok(Command::Serve(serve)) = run(line) else { panic!("{line}") };
            assert_eq!(serve.source, Source::Dir("/m".into()));
            assert_eq!(serve.listen.to_string(), "0.0.0.0:15012");
            assert_eq!(serve.serving_names, ["localhost", "127.0.0.1", "::1"]);
        }
    }

    #[test]
    fn a_cluster_keeps_the_keys_and_knows_its_nodes() {
        let Ok(Command::Serve(serve)) = run("--source kubernetes") else { panic!() };
        assert_eq!((serve.source, serve.data_dir, &*serve.namespace), (Source::Kubernetes, None, "istio-system"));
        assert_eq!(serve.trusted_node_accounts, ["istio-system/ztunnel".parse().unwrap()]);
        let flags = "--source kubernetes --namespace mesh --trusted-node-account mesh/proxy,mesh/other";
        let Ok(Command::Serve(serve)) = run(flags) else { panic!() };
        assert_eq!((serve.trusted_node_accounts.len(), &*serve.namespace), (2, "mesh"));
        let names = ["istiod.mesh.svc", "istiod.mesh.svc.cluster.local", "istiod.mesh", "localhost"];
        assert_eq!(serve.serving_names, names);
        let Ok(Command::Serve(serve)) = run("--source kubernetes --serving-name a.b") else { panic!() };
        assert_eq!(serve.serving_names, ["a.b"]);
        assert_eq!(mistakes("--source kubernetes --namespace a/b --trusted-node-account proxy").len(), 2);
        assert_eq!(mistakes("--source kubernetes --trusted-node-account=").len(), 1);
    }

    #[test]
    fn every_mistake_is_told_at_once() {
        let line = "--source /m --listen nowhere --trust-domain A --cluster a/b --ca-key k --serving-name a/b --max-certificate-ttl 0 \
                    --admin :1 --readiness 8080 --log-format xml";
        let flags: Vec<_> = mistakes(line).into_iter().map(|m| m.split_once(':').unwrap().0.to_owned()).collect();
        let expected = [
            "source",
            "listen",
            "data-dir",
            "trust-domain",
            "cluster",
            "ca-cert",
            "serving-name",
            "max-certificate-ttl",
            "admin",
            "readiness",
            "log-format",
        ];
        assert_eq!(flags, expected.map(|f| format!("--{f}")));
        assert_eq!(mistakes("token --ttl x").len(), 3);
    }

    #[test]
    fn an_unknown_flag_is_a_mistake_and_help_is_not() {
        assert!(mistakes("--nonsense")[0].contains("--nonsense"));
        assert!(matches!(run("--help"), Err(Refused::Told(_))));
        assert!(matches!(run("token --help"), Err(Refused::Told(_))));
        assert!(matches!(run("--version"), Err(Refused::Told(text)) if text.contains(env!("CARGO_PKG_VERSION"))));
    }

    #[test]
    fn the_mesh_may_have_other_names_and_another_root_namespace() {
        let serve = |flags: &str| run(&format!("--source dir:/m --data-dir /d {flags}"));
        let Ok(Command::Serve(plain)) = serve("") else { panic!() };
        assert_eq!((plain.mesh.trust_domain_aliases.len(), &*plain.mesh.root_namespace), (0, "istio-system"));
        let flags = "--trust-domain-alias old.td --trust-domain-alias older.td --root-namespace mesh";
        let Ok(Command::Serve(named)) = serve(flags) else { panic!() };
        let aliases: Vec<_> = named.mesh.trust_domain_aliases.iter().map(TrustDomain::as_str).collect();
        assert_eq!((&aliases[..], &*named.mesh.root_namespace), (&["old.td", "older.td"][..], "mesh"));
        let many = "--trust-domain-alias a ".repeat(MAX_ALIASES + 1);
        for wrong in ["--trust-domain-alias a/b", "--root-namespace a/b", many.as_str()] {
            let Err(Refused::Mistakes(mistakes)) = serve(wrong) else { panic!("{wrong}") };
            assert_eq!(mistakes.len(), 1, "{mistakes:?}");
        }
    }

    #[test]
    fn a_token_is_for_a_node() {
        let Ok(Command::Token(token)) = run("token --data-dir /d --node n1") else { panic!() };
        assert_eq!((token.node.as_str(), token.ttl), ("n1", Duration::from_secs(TOKEN_TTL)));
    }
}
