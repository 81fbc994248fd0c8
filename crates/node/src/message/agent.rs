//! Between the agent and the keeper.

use super::{Goodbye, MessageError, PodInfo, Wire, exactly, name, present};

// ---- agent to keeper ----

/// A request of the agent.
#[derive(Clone, PartialEq, prost::Message)]
pub struct FromAgent {
    /// Repeated in the answer; several requests may be open at a time.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// What is asked.
    #[prost(oneof = "from_agent::Asked", tags = "2, 3, 4, 5, 6")]
    pub asked: Option<from_agent::Asked>,
}

/// The choices of [`FromAgent`].
pub mod from_agent {
    /// What the agent asks.
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub enum Asked {
        /// The maps to fill, as descriptors: LISTENERS, then EXEMPT.
        #[prost(message, tag = "2")]
        Stores(super::Stores),
        /// Keep a pod; its network namespace is the descriptor.
        #[prost(message, tag = "3")]
        AddPod(super::EnrolPod),
        /// Give up a pod.
        #[prost(message, tag = "4")]
        RemovePod(super::ReleasePod),
        /// Which pods are there?
        #[prost(message, tag = "5")]
        List(super::List),
        /// How is a pod?
        #[prost(message, tag = "6")]
        Check(super::Check),
    }
}

/// The maps LISTENERS and EXEMPT.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Stores {}

/// A pod to keep.
#[derive(Clone, PartialEq, prost::Message)]
pub struct EnrolPod {
    /// Its place in LISTENERS.
    #[prost(uint32, tag = "1")]
    pub index: u32,
    /// The pod.
    #[prost(message, optional, tag = "2")]
    pub info: Option<PodInfo>,
}

/// A pod to give up.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ReleasePod {
    /// The pod's uid.
    #[prost(string, tag = "1")]
    pub uid: String,
}

/// Asks for all pods.
#[derive(Clone, PartialEq, prost::Message)]
pub struct List {}

/// Asks how a pod is.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Check {
    /// The pod's uid.
    #[prost(string, tag = "1")]
    pub uid: String,
}

impl Wire for FromAgent {
    const NAME: &'static str = "FromAgent";

    fn check(&self, descriptors: usize) -> Result<(), MessageError> {
        use from_agent::Asked;
        // A question of a newer version.
        let Some(asked) = &self.asked else { return Ok(()) };
        match asked {
            Asked::Stores(_) => exactly("Stores", descriptors, 2),
            Asked::AddPod(add) => {
                present("AddPod", "info", add.info.as_ref())?.check()?;
                exactly("AddPod", descriptors, 1)
            }
            Asked::RemovePod(remove) => {
                name("RemovePod", "uid", &remove.uid)?;
                exactly("RemovePod", descriptors, 0)
            }
            Asked::List(_) => exactly("List", descriptors, 0),
            Asked::Check(check) => {
                name("Check", "uid", &check.uid)?;
                exactly("Check", descriptors, 0)
            }
        }
    }
}

// ---- keeper to agent ----

/// An answer to the agent.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ToAgent {
    /// The request's id; 0 with a goodbye.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// The answer.
    #[prost(oneof = "to_agent::Answer", tags = "2, 3, 4, 5, 6, 7, 8")]
    pub answer: Option<to_agent::Answer>,
}

/// The choices of [`ToAgent`].
pub mod to_agent {
    /// What the keeper answers.
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub enum Answer {
        /// To stores.
        #[prost(message, tag = "2")]
        Stored(super::Stored),
        /// To a pod to keep.
        #[prost(message, tag = "3")]
        Added(super::Added),
        /// To a pod to give up.
        #[prost(message, tag = "4")]
        Removed(super::Removed),
        /// A part of the answer to a list.
        #[prost(message, tag = "5")]
        Pods(super::Pods),
        /// To a check.
        #[prost(message, tag = "6")]
        Checked(super::Checked),
        /// The keeper ends this connection.
        #[prost(message, tag = "7")]
        Goodbye(super::Goodbye),
        /// To what the keeper does not know.
        #[prost(message, tag = "8")]
        Unknown(super::Unknown),
    }
}

/// The maps are in use.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Stored {
    /// Why they are not; empty if they are.
    #[prost(string, tag = "1")]
    pub error: String,
}

/// The pod is kept.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Added {
    /// The pod's uid.
    #[prost(string, tag = "1")]
    pub uid: String,
    /// Cookie of its network namespace, as the programs see it.
    #[prost(fixed64, tag = "2")]
    pub netns_cookie: u64,
    /// Whether a ztunnel serves it, certificate and all: the pod may be captured.
    #[prost(bool, tag = "3")]
    pub serving: bool,
    /// Why it is not served.
    #[prost(string, tag = "4")]
    pub problem: String,
    /// Why it is not kept; empty if it is.
    #[prost(string, tag = "5")]
    pub error: String,
}

/// The pod is given up.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Removed {
    /// The pod's uid.
    #[prost(string, tag = "1")]
    pub uid: String,
    /// Whether the keeper had it.
    #[prost(bool, tag = "2")]
    pub found: bool,
}

/// A part of the list of pods.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Pods {
    /// Some pods.
    #[prost(message, repeated, tag = "1")]
    pub pods: Vec<KeptPod>,
    /// Whether another part follows.
    #[prost(bool, tag = "2")]
    pub more: bool,
}

/// A pod that the keeper has.
#[derive(Clone, PartialEq, prost::Message)]
pub struct KeptPod {
    /// The pod.
    #[prost(message, optional, tag = "1")]
    pub info: Option<PodInfo>,
    /// Its place in LISTENERS.
    #[prost(uint32, tag = "2")]
    pub index: u32,
    /// Cookie of its network namespace; 0 while its listeners are being made.
    #[prost(fixed64, tag = "3")]
    pub netns_cookie: u64,
    /// Whether a ztunnel serves it.
    #[prost(bool, tag = "4")]
    pub serving: bool,
}

/// How a pod is.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Checked {
    /// The pod's uid.
    #[prost(string, tag = "1")]
    pub uid: String,
    /// Whether its listeners listen and lie in their slots, as far as they should.
    #[prost(bool, tag = "2")]
    pub listening: bool,
    /// Whether a ztunnel serves it.
    #[prost(bool, tag = "3")]
    pub serving: bool,
    /// What is wrong; empty if nothing is.
    #[prost(string, tag = "4")]
    pub problem: String,
}

/// The request is one of a newer version: nothing was done.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Unknown {}

impl Wire for ToAgent {
    const NAME: &'static str = "ToAgent";

    fn check(&self, descriptors: usize) -> Result<(), MessageError> {
        use to_agent::Answer;
        // An answer of a newer version.
        let Some(answer) = &self.answer else { return Ok(()) };
        exactly(Self::NAME, descriptors, 0)?;
        match answer {
            Answer::Stored(_)
            | Answer::Added(_)
            | Answer::Removed(_)
            | Answer::Checked(_)
            | Answer::Goodbye(_)
            | Answer::Unknown(_) => Ok(()),
            Answer::Pods(pods) => {
                pods.pods.iter().try_for_each(|pod| present("KeptPod", "info", pod.info.as_ref())?.check())
            }
        }
    }
}
