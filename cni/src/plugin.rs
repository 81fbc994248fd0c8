//! The plugin's side of the CNI specification (versions 0.3.1 to 1.1.0): a command in the environment and a network
//! configuration on standard input give a result on standard output.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::ask::{Answer, Ask, AskError, Sandbox};

/// Versions of the specification whose results can be passed on.
pub const VERSIONS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// Error codes of the specification.
mod code {
    pub(super) const INCOMPATIBLE_VERSION: u32 = 1;
    pub(super) const INVALID_ENVIRONMENT: u32 = 4;
    pub(super) const DECODING_FAILURE: u32 = 6;
    pub(super) const INVALID_CONFIGURATION: u32 = 7;
    pub(super) const TRY_AGAIN: u32 = 11;
    /// The first of those that are left to plugins.
    pub(super) const NOT_CAPTURED: u32 = 100;
}

/// The environment of a call.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Environment {
    /// `CNI_COMMAND`.
    pub command: String,
    /// `CNI_NETNS`.
    pub netns: String,
    /// `CNI_ARGS`.
    pub args: String,
}

/// Our entry in a network configuration, as the runtime hands it to us.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Config {
    #[serde(default)]
    cni_version: String,
    /// The agent's socket.
    socket: Option<PathBuf>,
    /// The agent's own DaemonSet.
    agent: Option<DaemonSet>,
    /// Namespaces whose pods never are in the mesh, whatever they say.
    #[serde(default)]
    outside: Vec<String>,
    prev_result: Option<Value>,
}

/// A DaemonSet whose pods are never asked about: nobody could answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DaemonSet {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl DaemonSet {
    /// Whether a pod has the name that Kubernetes gives to this DaemonSet's pods: five letters or digits follow.
    fn made(&self, namespace: &str, pod: &str) -> bool {
        let random = pod.strip_prefix(&*self.name).and_then(|rest| rest.strip_prefix('-'));
        let is_random =
            |text: &str| text.len() == 5 && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        namespace == self.namespace && random.is_some_and(is_random)
    }
}

/// Our entry for a network configuration: where the agent listens, and about whose pods it is not asked, which are those
/// of its own DaemonSet and of namespaces that never are in the mesh.
pub fn entry(socket: &Path, agent: &DaemonSet, outside: &[&str]) -> Value {
    json!({ "type": crate::NAME, "socket": socket, "agent": agent, "outside": outside })
}

/// Why a call fails, in the specification's form.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Failure {
    #[serde(rename = "cniVersion")]
    version: String,
    code: u32,
    msg: String,
}

impl Failure {
    fn new(version: &str, code: u32, msg: impl Into<String>) -> Self {
        Self { version: version.to_owned(), code, msg: msg.into() }
    }
}

/// Answers one call. `ask` reaches the agent at a socket.
pub fn call(
    environment: &Environment,
    config: &[u8],
    ask: impl Fn(&Path, &Ask) -> Result<Answer, AskError>,
) -> Result<Option<Value>, Failure> {
    let newest = VERSIONS[VERSIONS.len() - 1];
    match environment.command.as_str() {
        "VERSION" => Ok(Some(json!({ "cniVersion": newest, "supportedVersions": VERSIONS }))),
        "ADD" => add(environment, &read(config)?, ask).map(Some),
        "CHECK" => check(environment, &read(config)?, ask).map(|()| None),
        "DEL" => {
            // A sandbox that is to go must go, whatever is wrong here or with the agent.
            if let Ok(config) = read(config)
                && let Some((socket, sandbox)) = subject(environment, &config).ok().flatten()
            {
                let _ = ask(&socket, &Ask::Delete(sandbox));
            }
            Ok(None)
        }
        // Nothing is kept that could be left over.
        "GC" => read(config).map(|_| None),
        // An agent that is away for a moment fails sandboxes, which are tried again. If that were said here, the whole
        // node would count as not ready meanwhile.
        "STATUS" => read(config).map(|_| None),
        other => Err(Failure::new(
            newest,
            code::INVALID_ENVIRONMENT,
            format!("CNI_COMMAND is {other:?}, which is no command"),
        )),
    }
}

fn read(config: &[u8]) -> Result<Config, Failure> {
    let config: Config = serde_json::from_slice(config).map_err(|error| {
        Failure::new("1.0.0", code::DECODING_FAILURE, format!("read the network configuration: {error}"))
    })?;
    match VERSIONS.contains(&&*config.cni_version) {
        true => Ok(config),
        false => {
            let known = VERSIONS.join(", ");
            let text = format!("the network configuration has cniVersion {:?}, not one of {known}", config.cni_version);
            Err(Failure::new(&config.cni_version, code::INCOMPATIBLE_VERSION, text))
        }
    }
}

fn add(
    environment: &Environment,
    config: &Config,
    ask: impl Fn(&Path, &Ask) -> Result<Answer, AskError>,
) -> Result<Value, Failure> {
    let result = previous(config)?;
    if let Some((socket, sandbox)) = subject(environment, config)? {
        let pod = format!("pod {}/{}", sandbox.namespace, sandbox.name);
        let failed = |why: String| Failure::new(&config.cni_version, code::TRY_AGAIN, format!("{pod}: {why}"));
        let answer = ask(&socket, &Ask::Add(sandbox)).map_err(|error| failed(error.to_string()))?;
        if !answer.error.is_empty() {
            return Err(failed(answer.error));
        }
    }
    Ok(result)
}

fn check(
    environment: &Environment,
    config: &Config,
    ask: impl Fn(&Path, &Ask) -> Result<Answer, AskError>,
) -> Result<(), Failure> {
    previous(config)?;
    let Some((socket, sandbox)) = subject(environment, config)? else { return Ok(()) };
    let answer = ask(&socket, &Ask::Check(sandbox))
        .map_err(|error| Failure::new(&config.cni_version, code::TRY_AGAIN, error.to_string()))?;
    match answer.error.is_empty() {
        true => Ok(()),
        false => Err(Failure::new(&config.cni_version, code::NOT_CAPTURED, answer.error)),
    }
}

/// What the plugins before gave the pod. It is passed on as it is.
fn previous(config: &Config) -> Result<Value, Failure> {
    config.prev_result.clone().ok_or_else(|| {
        let text = "there is no prevResult: loam-cni comes after the plugin that gives pods their network";
        Failure::new(&config.cni_version, code::INVALID_CONFIGURATION, text)
    })
}

/// Whom to ask about what; none for pods that are none of the mesh's without asking.
fn subject(environment: &Environment, config: &Config) -> Result<Option<(PathBuf, Sandbox)>, Failure> {
    let failed = |code, text: String| Err(Failure::new(&config.cni_version, code, text));
    let args = args(&environment.args);
    let arg = |name: &str| args.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (namespace, name) = (arg("K8S_POD_NAMESPACE"), arg("K8S_POD_NAME"));
    if namespace.is_empty() || name.is_empty() {
        return failed(
            code::INVALID_ENVIRONMENT,
            "CNI_ARGS names no pod (K8S_POD_NAMESPACE, K8S_POD_NAME): loam-cni is for pods of Kubernetes".into(),
        );
    }
    let is_agents = config.agent.as_ref().is_some_and(|agent| agent.made(&namespace, &name));
    if is_agents || config.outside.contains(&namespace) {
        return Ok(None);
    }
    let Some(socket) = config.socket.clone() else {
        return failed(code::INVALID_CONFIGURATION, "the entry of loam-cni has no socket".into());
    };
    let netns = PathBuf::from(&environment.netns);
    if environment.command == "ADD" && !netns.is_absolute() {
        let text = format!("CNI_NETNS is {:?}, which is no path of a network namespace", environment.netns);
        return failed(code::INVALID_ENVIRONMENT, text);
    }
    let addresses = addresses(config.prev_result.as_ref());
    let inode = inode(&netns);
    Ok(Some((socket, Sandbox { namespace, name, uid: arg("K8S_POD_UID"), netns, inode, addresses })))
}

fn inode(netns: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata(netns).map(|metadata| metadata.ino()).unwrap_or_default()
}

/// `KEY=VALUE;KEY=VALUE`, as an object.
fn args(text: &str) -> Map<String, Value> {
    let pairs = text.split(';').filter_map(|pair| pair.split_once('='));
    pairs.map(|(key, value)| (key.to_owned(), Value::from(value))).collect()
}

/// The addresses in a result: those of the pod's own interfaces, since `ips` of a result has no others.
fn addresses(result: Option<&Value>) -> Vec<IpAddr> {
    let ips = result.and_then(|result| result.get("ips")).and_then(Value::as_array).into_iter().flatten();
    let address = |ip: &Value| ip.get("address")?.as_str()?.split('/').next()?.parse().ok();
    ips.filter_map(address).collect()
}

#[cfg(test)]
mod tests;
