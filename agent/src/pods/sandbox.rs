//! What the node knows of a pod, as opposed to what the pod says of itself.

use std::net::IpAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use super::spec::PodSpec;
use crate::processes::Processes;

/// The sandbox of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sandbox {
    /// Where its network namespace is.
    pub netns: PathBuf,
    /// The addresses that it was given; none if only the pod's status says it.
    pub addresses: Vec<IpAddr>,
    /// None of its containers runs yet.
    pub starting: bool,
    /// How it resolves names.
    pub resolv_conf: ResolvConf,
}

/// A pod's resolv.conf. It is made with the sandbox and stays as it is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ResolvConf {
    /// It was not found yet.
    #[default]
    Unknown,
    /// What it says.
    Text(String),
    /// It cannot be read, and is not tried again: whoever keeps a reader waiting would have many.
    Unreadable,
}

/// Nobody can say where a network namespace is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the agent does not find the network namespace {0} of the pod: it must see the node's processes (hostPID)")]
pub struct NetnsNotFound(PathBuf);

impl ResolvConf {
    /// What it says, if that is known.
    pub fn text(&self) -> Option<String> {
        match self {
            ResolvConf::Text(text) => Some(text.clone()),
            ResolvConf::Unknown | ResolvConf::Unreadable => None,
        }
    }
}

impl Sandbox {
    /// The sandbox that the CNI plugin tells of. The path that it knows may lead elsewhere in the agent's container, so
    /// the inode number has the last word.
    pub fn told(sandbox: &loam_cni::ask::Sandbox, processes: &Processes) -> Result<Self, NetnsNotFound> {
        let is_it = |path: &PathBuf| std::fs::metadata(path).is_ok_and(|found| found.ino() == sandbox.inode);
        let told = Some(sandbox.netns.clone()).filter(is_it);
        let netns = told.or_else(|| processes.mounted_at(sandbox.inode));
        let netns = netns.ok_or_else(|| NetnsNotFound(sandbox.netns.clone()))?;
        let addresses = sandbox.addresses.clone();
        Ok(Self { netns, addresses, starting: true, resolv_conf: ResolvConf::Unknown })
    }

    /// The sandbox of a pod that a predecessor knew.
    pub fn recorded(spec: &PodSpec) -> Self {
        let resolv_conf = spec.resolv.clone().map_or(ResolvConf::Unknown, ResolvConf::Text);
        let (netns, addresses) = (spec.netns.clone(), spec.addresses.clone());
        Self { netns, addresses, starting: spec.starting, resolv_conf }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_is_known_by_its_inode_and_not_by_its_path_alone() {
        let netns = PathBuf::from("/proc/self/ns/net");
        let inode = std::fs::metadata(&netns).unwrap().ino();
        let told = |inode| {
            let (namespace, name) = ("shop".into(), "web".into());
            let addresses = vec!["10.0.0.7".parse().unwrap()];
            let (uid, netns) = (String::new(), netns.clone());
            let sandbox = loam_cni::ask::Sandbox { namespace, name, uid, netns, inode, addresses };
            Sandbox::told(&sandbox, &Processes::new("/nowhere"))
        };
        assert_eq!(told(inode).unwrap().netns, netns);
        assert_eq!(told(inode + 1), Err(NetnsNotFound(netns.clone())));
    }
}
