//! Istio's ztunnel around a pair of pods, without anything else of Istio's: one process in each pod's network namespace
//! ("dedicated" mode), its workloads from its environment, its certificates from an authority of the lab, and the pods'
//! connections brought to it by NAT, as Istio's node agent does it. Whatever is not said here is its own default.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use loam_tests::lab::{COMMAND_TIMEOUT, FABRIC_V4};
use loam_tests::{Lab, Pod, Process, bin, eventually, metrics};
use serde_json::json;

use super::other::path_text;
use super::stage::{WEB, service_name};

/// Address of the service in front of the server, which nobody else has.
const SERVICE_ADDRESS: &str = "10.96.255.1";
/// Port of the authority on the fabric.
const CA_PORT: u16 = 15113;
/// On everything that the ztunnel sends.
const OWN_MARK: u16 = 1337;
/// On answers of the application to a connection that the ztunnel made with the client's address.
const REPLY_MARK: u16 = 0x111;
/// Routing table that leads such answers back into the ztunnel.
const REPLY_TABLE: u16 = 100;

const READY: &str = "http://127.0.0.1:15021/healthz/ready";
const METRICS: &str = "http://127.0.0.1:15020/metrics";
const OPENED: &str = "istio_tcp_connections_opened_total";

const START_TIMEOUT: Duration = Duration::from_secs(20);

/// Starts one in each pod of a pair and gives it their connections; the client's comes first.
pub(crate) fn surround(lab: &Lab, program: &Path, pair: [&Pod; 2]) -> Result<Vec<Process>> {
    let data = lab.work().join("istio-ca");
    let (tool, listen) = (bin::path("loam-lab")?, format!("{FABRIC_V4}:{CA_PORT}"));
    let feed = [path_text(&tool)?, "feed", "--listen", &listen, "--data-dir", path_text(&data)?, "--workloads", "0"];
    lab.spawn("ca", &feed)?.wait_for_output("serving", START_TIMEOUT)?;
    let rules = lab.work().join("istio.nft");
    fs::write(&rules, capture_rules())?;

    let workloads = workloads(pair);
    let one = |pod: &Pod| start(pod, program, &workloads, &data.join("root-cert.pem"));
    let processes = pair.into_iter().map(one).collect::<Result<Vec<_>>>()?;
    for pod in pair {
        capture(pod, &rules)?;
    }
    Ok(processes)
}

/// A command line that starts it with these settings only: what is set around the bench is meant for ours.
pub(crate) fn command(program: &Path, settings: &[(&str, &str)]) -> Result<Vec<String>> {
    let program = path_text(program)?.to_owned();
    let settings = settings.iter().map(|(name, value)| format!("{name}={value}"));
    Ok(["env", "-i"].map(str::to_owned).into_iter().chain(settings).chain([program]).collect())
}

fn start(pod: &Pod, program: &Path, workloads: &str, root: &Path) -> Result<Process> {
    let info = format!("{}/{}/{}", pod.namespace(), pod.name(), pod.service_account());
    let (authority, mark, identity) = (format!("https://{FABRIC_V4}:{CA_PORT}"), OWN_MARK.to_string(), pod.identity());
    let settings = [
        ("PROXY_MODE", "dedicated"),
        ("PROXY_WORKLOAD_INFO", &info),
        ("PACKET_MARK", &mark),
        ("NODE_NAME", pod.node()),
        ("LOCAL_XDS", workloads),
        ("XDS_ADDRESS", ""),
        ("CA_ADDRESS", &authority),
        ("CA_ROOT_CA", path_text(root)?),
        ("AUTH_TOKEN", &identity),
    ];
    let command = command(program, &settings)?;
    let command: Vec<&str> = command.iter().map(String::as_str).collect();
    let process = pod.spawn("istio-ztunnel", &command)?;
    let ready = eventually(START_TIMEOUT, || match process.is_running() {
        true => get(pod, READY).map(drop),
        false => Ok(()),
    });
    let said = || format!("{}{}", process.stdout(), process.stderr());
    ensure!(process.is_running(), "Istio's ztunnel ended at once in {}: {}", pod.name(), said());
    ready.with_context(|| format!("Istio's ztunnel in {} does not get ready: {}", pod.name(), said()))?;
    Ok(process)
}

fn get(pod: &Pod, url: &str) -> Result<String> {
    pod.tool(&["get", url])?.output(COMMAND_TIMEOUT)?.success()
}

/// What both may know, in the form of its local configuration.
fn workloads(pair: [&Pod; 2]) -> String {
    let [_, server] = pair;
    let (hostname, ports) = (service_name(server), json!({ WEB.to_string(): WEB }));
    let workload = |pod: &Pod| {
        let services = if pod.name() == server.name() {
            json!({ format!("{}/{hostname}", server.namespace()): ports })
        } else {
            json!({})
        };
        json!({
            "uid": format!("Kubernetes//Pod/{}/{}", pod.namespace(), pod.name()),
            "name": pod.name(),
            "namespace": pod.namespace(),
            "serviceAccount": pod.service_account(),
            "trustDomain": "cluster.local",
            "workloadName": pod.name(),
            "workloadType": "deployment",
            "canonicalName": pod.name(),
            "canonicalRevision": "latest",
            "clusterId": "Kubernetes",
            "workloadIps": [pod.v4()],
            "protocol": "HBONE",
            "node": pod.node(),
            "services": services,
        })
    };
    let service = json!({
        "name": "web",
        "namespace": server.namespace(),
        "hostname": hostname,
        "vips": [format!("/{SERVICE_ADDRESS}")],
        "ports": ports,
    });
    let text = json!({ "workloads": pair.map(workload), "services": [service] }).to_string();
    // It reads YAML, where a port is a number also as a key, which JSON does not have.
    text.replace(&format!("\"{WEB}\":"), &format!("{WEB}: "))
}

/// Everything TCP goes through the ztunnel, and questions to name servers, except what it sends itself. Answers to connections that it made with the
/// client's address find back by a mark, since the route to that address leads elsewhere.
fn capture_rules() -> String {
    format!(
        "table ip capture {{
  chain inward {{
    type nat hook prerouting priority -100;
    meta mark {OWN_MARK} accept
    ip daddr 127.0.0.0/8 accept
    tcp dport != 15008 redirect to :15006
  }}
  chain outward {{
    type nat hook output priority -100;
    meta mark {{ {OWN_MARK}, {REPLY_MARK} }} accept
    ip daddr {{ 127.0.0.0/8, {FABRIC_V4} }} accept
    ip protocol tcp redirect to :15001
    udp dport 53 redirect to :15053
  }}
  chain remember {{
    type filter hook prerouting priority -150;
    meta mark {OWN_MARK} ct mark set {REPLY_MARK}
  }}
  chain recall {{
    type route hook output priority -150;
    ct mark {REPLY_MARK} meta mark set {REPLY_MARK}
  }}
}}
"
    )
}

fn capture(pod: &Pod, rules: &Path) -> Result<()> {
    let (mark, table) = (REPLY_MARK.to_string(), REPLY_TABLE.to_string());
    let commands: [&[&str]; 3] = [
        &["ip", "rule", "add", "fwmark", &mark, "lookup", &table],
        &["ip", "route", "add", "local", "0.0.0.0/0", "dev", "lo", "table", &table],
        &["nft", "--file", path_text(rules)?],
    ];
    for command in commands {
        pod.run(command)?.success().with_context(|| format!("{} in {}", command.join(" "), pod.name()))?;
    }
    Ok(())
}

/// Makes sure that connections of the pair went through both, and not past them.
pub(crate) fn prove([client, server]: [&Pod; 2]) -> Result<()> {
    for (pod, reporter) in [(client, "reporter=\"source\""), (server, "reporter=\"destination\"")] {
        eventually(START_TIMEOUT, || {
            let page = get(pod, METRICS)?;
            let labels = [reporter, "connection_security_policy=\"mutual_tls\""];
            let opened = metrics::sum(&page, OPENED, &labels).unwrap_or_default();
            ensure!(opened > 0.0, "Istio's ztunnel in {} carried no connection with mutual TLS", pod.name());
            Ok(())
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_our_environment_reaches_it() {
        let command = command(Path::new("/opt/ztunnel"), &[("PROXY_MODE", "dedicated"), ("XDS_ADDRESS", "")]).unwrap();
        assert_eq!(command, ["env", "-i", "PROXY_MODE=dedicated", "XDS_ADDRESS=", "/opt/ztunnel"]);
    }

    #[test]
    fn the_ztunnel_is_not_brought_to_itself() {
        let rules = capture_rules();
        let chains = rules.split("chain ").filter(|chain| chain.contains("redirect"));
        for chain in chains {
            let (before, _) = chain.split_once("redirect").unwrap();
            assert!(before.contains("1337"), "{chain}");
        }
    }
}
