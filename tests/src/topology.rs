//! Nodes and pods as network namespaces.
//!
//! A node has a bridge for its pods and a link to the fabric, and routes between them; nodes know each other's pod
//! ranges. Nobody routes service addresses: they mean something to the mesh alone.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use serde::de::DeserializeOwned;

use crate::host;
use crate::lab::{COMMAND_TIMEOUT, Lab, Place, common_sysctls, netns_path};
use crate::process::{Output, Process};

/// First host number given to a pod; the ones below are for the node.
const FIRST_POD: u8 = 10;

/// A node.
#[derive(Debug, Clone)]
pub struct Node {
    lab: Lab,
    inner: Arc<NodeInner>,
}

#[derive(Debug)]
struct NodeInner {
    index: usize,
    name: String,
    next_pod: AtomicU8,
}

/// Makes a service address work without a mesh: nodes route it to its pods, which take it as their own. Packets keep
/// their addresses, so nothing has to be translated back.
pub fn route_service(lab: &Lab, vip: IpAddr, pods: &[&Pod]) -> Result<()> {
    for node in lab.nodes() {
        // A node with pods of the service chooses among its own: two nodes that chose freely would play ping-pong.
        let local: Vec<_> = pods.iter().filter(|p| p.node() == node.name()).collect();
        let mut route = format!("route add {vip}/32");
        for pod in &local {
            route.push_str(&format!(" nexthop via {} dev pods", pod.v4()));
        }
        if let (true, Some(remote)) = (local.is_empty(), pods.first()) {
            let nodes = lab.nodes();
            let home = nodes.iter().find(|n| n.name() == remote.node()).context("a pod without a node")?;
            route.push_str(&format!(" via {} dev eth0", home.v4()));
        }
        lab.sysctl(Some(node.name()), &[("net/ipv4/fib_multipath_hash_policy", "1".to_owned())].into())?;
        lab.ip(Some(node.name()), &[route])?;
    }
    for pod in pods {
        lab.ip(Some(&pod.inner.netns), &[format!("addr add {vip}/32 dev lo")])?;
    }
    Ok(())
}

/// A pod.
#[derive(Debug, Clone)]
pub struct Pod {
    lab: Lab,
    inner: Arc<PodInner>,
}

#[derive(Debug)]
struct PodInner {
    name: String,
    namespace: String,
    service_account: String,
    node: String,
    netns: String,
    veth: String,
    v4: Ipv4Addr,
    v6: Option<Ipv6Addr>,
}

fn pod_v4(node: usize, host: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 244, node as u8, host)
}

fn pod_v6(node: usize, host: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x244, node as u16, 0, 0, 0, 0, host.into())
}

fn node_v4(node: usize) -> Ipv4Addr {
    Ipv4Addr::new(172, 30, 0, node as u8)
}

fn node_v6(node: usize) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x30, 0, 0, 0, 0, 0, node as u16)
}

fn letter(index: usize) -> char {
    char::from(b'a' + (index as u8 - 1) % 26)
}

impl Node {
    pub(crate) fn create(lab: &Lab, index: usize) -> Result<Self> {
        let name = format!("node-{}", letter(index));
        lab.ip(
            None,
            &[
                format!("netns add {name}"),
                format!("link add up-{name} type veth peer name eth0 netns {name}"),
                format!("link set up-{name} master fabric up"),
            ],
        )?;
        let mut settings = common_sysctls();
        settings.insert("net/ipv4/ip_forward", "1".into());
        if host::has_ipv6() {
            settings.insert("net/ipv6/conf/all/forwarding", "1".into());
        }
        lab.sysctl(Some(&name), &settings)?;
        let mut lines = vec![
            "link set lo up".to_owned(),
            "link set eth0 up".into(),
            format!("addr add {}/24 dev eth0", node_v4(index)),
            // A bridge without an address of its own takes the lowest of its ports', and changes it when a pod comes or
            // goes: the others would send to the old one until their neighbour caches expire.
            format!("link add pods address 02:6c:6f:61:6d:{index:02x} type bridge mcast_snooping 0"),
            "link set pods up".into(),
            format!("addr add {}/24 dev pods", pod_v4(index, 1)),
        ];
        if host::has_ipv6() {
            lines.push(format!("addr add {}/64 dev eth0 nodad", node_v6(index)));
            lines.push(format!("addr add {}/64 dev pods nodad", pod_v6(index, 1)));
        }
        lab.ip(Some(&name), &lines)?;

        // The others learn the way to this node's pods, and this node the way to theirs.
        let everyone = lab_indexes(index);
        lab.ip(None, &routes_to(index, "fabric"))?;
        for other in everyone {
            lab.ip(Some(&format!("node-{}", letter(other))), &routes_to(index, "eth0"))?;
            lab.ip(Some(&name), &routes_to(other, "eth0"))?;
        }
        let inner = NodeInner { index, name, next_pod: AtomicU8::new(FIRST_POD) };
        Ok(Self { lab: lab.clone(), inner: Arc::new(inner) })
    }

    /// Adds a pod. Its processes start when you start them.
    pub fn pod(&self, name: &str, namespace: &str, service_account: &str) -> Result<Pod> {
        let host = self.inner.next_pod.fetch_add(1, Ordering::Relaxed);
        let index = self.inner.index;
        let node = &self.inner.name;
        let netns = format!("{namespace}.{name}");
        let veth = format!("veth{}-{host}", letter(index));
        self.lab.ip(
            None,
            &[
                format!("netns add {netns}"),
                // Made in the node and handed over, as a CNI plugin does.
                format!("link add {veth} netns {node} type veth peer name eth0 netns {netns}"),
            ],
        )?;
        self.lab.ip(Some(node), &[format!("link set {veth} master pods up")])?;
        self.lab.sysctl(Some(&netns), &common_sysctls())?;
        let mut lines = vec![
            "link set lo up".to_owned(),
            "link set eth0 up".into(),
            format!("addr add {}/24 dev eth0", pod_v4(index, host)),
            format!("route add default via {}", pod_v4(index, 1)),
        ];
        if host::has_ipv6() {
            lines.push(format!("addr add {}/64 dev eth0 nodad", pod_v6(index, host)));
            lines.push(format!("route add ::/0 via {}", pod_v6(index, 1)));
        }
        self.lab.ip(Some(&netns), &lines)?;
        let inner = PodInner {
            name: name.to_owned(),
            namespace: namespace.to_owned(),
            service_account: service_account.to_owned(),
            node: node.clone(),
            netns,
            veth,
            v4: pod_v4(index, host),
            v6: host::has_ipv6().then(|| pod_v6(index, host)),
        };
        Ok(Pod { lab: self.lab.clone(), inner: Arc::new(inner) })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Its address on the fabric.
    pub fn v4(&self) -> Ipv4Addr {
        node_v4(self.inner.index)
    }

    /// The lab it is in.
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// Its part of the cgroup hierarchy, which holds its own processes and its pods'.
    pub fn cgroup(&self) -> PathBuf {
        self.lab.cgroup().join(&self.inner.name)
    }

    /// Its directory for sockets, tokens and state.
    pub fn dir(&self) -> PathBuf {
        self.lab.work().join(&self.inner.name)
    }

    /// Starts one of the node's own processes.
    pub fn spawn(&self, name: &str, argv: &[&str]) -> Result<Process> {
        self.spawn_with(name, argv, &[])
    }

    /// Starts one of the node's own processes with additional environment.
    pub fn spawn_with(&self, name: &str, argv: &[&str], env: &[(&str, &str)]) -> Result<Process> {
        let place = Place { netns: Some(self.inner.name.clone()), cgroup: format!("{}/system", self.inner.name) };
        self.lab.spawn_at(&place, &format!("{}.{name}", self.inner.name), argv, env)
    }

    /// Runs a command on the node to its end.
    pub fn run(&self, argv: &[&str]) -> Result<Output> {
        self.spawn(argv.first().copied().unwrap_or("command"), argv)?.output(COMMAND_TIMEOUT)
    }

    /// Starts our tool on the node.
    pub fn tool(&self, arguments: &[&str]) -> Result<Process> {
        let mut argv = vec![self.lab.tool()?];
        argv.extend(arguments);
        self.spawn(arguments.first().copied().unwrap_or("tool"), &argv)
    }

    /// Starts our tool on the node as its kubelet, which has a cgroup of its own.
    pub fn kubelet(&self, arguments: &[&str]) -> Result<Process> {
        let mut argv = vec![self.lab.tool()?];
        argv.extend(arguments);
        let place = Place { netns: Some(self.inner.name.clone()), cgroup: format!("{}/kubelet", self.inner.name) };
        self.lab.spawn_at(&place, &format!("{}.kubelet", self.inner.name), &argv, &[])
    }

    /// The cgroup of its kubelet.
    pub fn kubelet_cgroup(&self) -> PathBuf {
        self.cgroup().join("kubelet")
    }

    /// Body of a successful HTTP GET from the node.
    pub fn http_get(&self, url: &str) -> Result<String> {
        self.tool(&["get", url])?.output(COMMAND_TIMEOUT)?.success()
    }
}

/// The numbers of the nodes made before `index`.
fn lab_indexes(index: usize) -> impl Iterator<Item = usize> {
    1..index
}

/// How `node`'s pods are reached over `device`.
fn routes_to(node: usize, device: &str) -> Vec<String> {
    let mut lines = vec![format!("route add {}/24 via {} dev {device}", pod_v4(node, 0), node_v4(node))];
    if host::has_ipv6() {
        lines.push(format!("route add {}/64 via {} dev {device}", pod_v6(node, 0), node_v6(node)));
    }
    lines
}

impl Pod {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Its Kubernetes namespace.
    pub fn namespace(&self) -> &str {
        &self.inner.namespace
    }

    /// Its service account.
    pub fn service_account(&self) -> &str {
        &self.inner.service_account
    }

    /// Its identity.
    pub fn identity(&self) -> String {
        format!("spiffe://cluster.local/ns/{}/sa/{}", self.inner.namespace, self.inner.service_account)
    }

    /// Name of its node.
    pub fn node(&self) -> &str {
        &self.inner.node
    }

    /// File of its network namespace inside the lab.
    pub fn netns(&self) -> PathBuf {
        netns_path(&self.inner.netns)
    }

    /// Name of its network namespace inside the lab, for `ip netns exec`.
    pub fn netns_name(&self) -> &str {
        &self.inner.netns
    }

    /// Name of the node's end of its link.
    pub fn veth(&self) -> &str {
        &self.inner.veth
    }

    /// Its IPv4 address.
    pub fn v4(&self) -> Ipv4Addr {
        self.inner.v4
    }

    /// Its IPv6 address, where the machine has IPv6.
    pub fn v6(&self) -> Option<Ipv6Addr> {
        self.inner.v6
    }

    /// All its addresses.
    pub fn addresses(&self) -> Vec<IpAddr> {
        std::iter::once(self.inner.v4.into()).chain(self.inner.v6.map(Into::into)).collect()
    }

    /// Its IPv4 address with a port.
    pub fn at(&self, port: u16) -> SocketAddr {
        (self.inner.v4, port).into()
    }

    /// All its addresses with a port.
    pub fn at_each(&self, port: u16) -> Vec<SocketAddr> {
        self.addresses().into_iter().map(|ip| (ip, port).into()).collect()
    }

    /// Starts a process in it.
    pub fn spawn(&self, name: &str, argv: &[&str]) -> Result<Process> {
        self.spawn_with(name, argv, &[])
    }

    /// Starts a process in it with additional environment.
    pub fn spawn_with(&self, name: &str, argv: &[&str], env: &[(&str, &str)]) -> Result<Process> {
        let place = Place {
            netns: Some(self.inner.netns.clone()),
            cgroup: format!("{}/pods/{}", self.inner.node, self.inner.netns),
        };
        self.lab.spawn_at(&place, &format!("{}.{name}", self.inner.name), argv, env)
    }

    /// Runs a command in it to its end.
    pub fn run(&self, argv: &[&str]) -> Result<Output> {
        self.spawn(argv.first().copied().unwrap_or("command"), argv)?.output(COMMAND_TIMEOUT)
    }

    /// Starts our tool in it.
    pub fn tool(&self, arguments: &[&str]) -> Result<Process> {
        let mut argv = vec![self.lab.tool()?];
        argv.extend(arguments);
        self.spawn(arguments.first().copied().unwrap_or("tool"), &argv)
    }

    /// Runs our tool in it and reads its report.
    pub fn report<T: DeserializeOwned>(&self, arguments: &[&str], timeout: Duration) -> Result<T> {
        self.tool(arguments)?.report(timeout).with_context(|| format!("{} in {}", arguments.join(" "), self.inner.name))
    }

    /// Kernel parameters of its namespace: names with slashes.
    pub fn sysctl(&self, name: &str, value: &str) -> Result<()> {
        self.lab.sysctl(Some(&self.inner.netns), &[(name, value.to_owned())].into())
    }

    /// Takes the pod away as a container runtime does: its processes are killed, its namespace is gone.
    pub fn vanish(&self) -> Result<()> {
        crate::cgroup::remove(&self.lab.cgroup().join(format!("{}/pods/{}", self.inner.node, self.inner.netns)))?;
        self.lab.ip(None, &[format!("netns del {}", self.inner.netns)])
    }
}
