//! What the node knows of a pod, as opposed to what the pod says of itself.

use std::path::PathBuf;

use super::spec::PodSpec;

/// The sandbox of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sandbox {
    /// Where its network namespace is.
    pub netns: PathBuf,
    /// How it resolves names.
    pub resolv_conf: ResolvConf,
}

/// A pod's resolv.conf. It is made with the sandbox and stays as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ResolvConf {
    /// It was not found yet.
    Unknown,
    /// What it says.
    Text(String),
    /// It cannot be read, and is not tried again: whoever keeps a reader waiting would have many.
    Unreadable,
}

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
    /// The sandbox of a pod that a predecessor knew.
    pub fn recorded(spec: &PodSpec) -> Self {
        let resolv_conf = spec.resolv.clone().map_or(ResolvConf::Unknown, ResolvConf::Text);
        Self { netns: spec.netns.clone(), resolv_conf }
    }
}
