//! Between a ztunnel and the keeper.

use super::{
    Goodbye, Kind, MAX_DESCRIPTORS, MessageError, PodInfo, PodRef, Wire, exactly, incarnation, listeners, name,
    pod_ref, present, socket_kind, text,
};

// ---- ztunnel to keeper ----

/// Everything a ztunnel says after its hello.
#[derive(Clone, PartialEq, prost::Message)]
pub struct FromZtunnel {
    /// What it says.
    #[prost(oneof = "from_ztunnel::Said", tags = "1, 2, 3, 4, 5, 6")]
    pub said: Option<from_ztunnel::Said>,
}

/// The choices of [`FromZtunnel`].
pub mod from_ztunnel {
    /// What a ztunnel says.
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub enum Said {
        /// Send sockets.
        #[prost(message, tag = "1")]
        Need(super::Need),
        /// A pod is served, or why not.
        #[prost(message, tag = "2")]
        PodAck(super::PodAck),
        /// The pods of the snapshot are served.
        #[prost(message, tag = "3")]
        Serving(super::Serving),
        /// The last connection of a removed pod has ended.
        #[prost(message, tag = "4")]
        PodDrained(super::PodDrained),
        /// This ztunnel accepts no more.
        #[prost(message, tag = "5")]
        Leaving(super::Leaving),
        /// Listeners that this ztunnel holds from a former keeper, in the order of [`AddPod`](super::AddPod).
        #[prost(message, tag = "6")]
        Held(super::Held),
    }
}

/// Asks for sockets.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Need {
    /// The pod in whose namespace they are made.
    #[prost(message, optional, tag = "1")]
    pub pod: Option<PodRef>,
    /// Their kind.
    #[prost(enumeration = "Kind", tag = "2")]
    pub kind: i32,
    /// How many, 1 to 253.
    #[prost(uint32, tag = "3")]
    pub count: u32,
}

/// Says that a pod is served, or why it is not. May be said again when that changes.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PodAck {
    /// The pod.
    #[prost(message, optional, tag = "1")]
    pub pod: Option<PodRef>,
    /// Why it is not served; empty if it is.
    #[prost(string, tag = "2")]
    pub error: String,
}

/// The pods of the snapshot are served, as far as they can be: older ztunnels may retire.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Serving {}

/// The last connection of a removed pod has ended.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PodDrained {
    /// The pod.
    #[prost(message, optional, tag = "1")]
    pub pod: Option<PodRef>,
}

/// This ztunnel accepts no more; its connection stays for the sockets that its open connections need.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Leaving {}

/// Offers the sockets of a pod to a keeper that may not have them. They are in use in the pod's namespace, so
/// that it could not make its own.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Held {
    /// The pod's uid.
    #[prost(string, tag = "1")]
    pub uid: String,
}

impl Wire for FromZtunnel {
    const NAME: &'static str = "FromZtunnel";

    fn check(&self, descriptors: usize) -> Result<(), MessageError> {
        use from_ztunnel::Said;
        // Said in a newer version.
        let Some(said) = &self.said else { return Ok(()) };
        match said {
            Said::Need(need) => {
                pod_ref("Need", need.pod.as_ref())?;
                socket_kind("Need", need.kind)?;
                if !(1..=MAX_DESCRIPTORS as u32).contains(&need.count) {
                    return Err(MessageError::Field { message: "Need", field: "count", why: "is not 1 to 253" });
                }
                exactly("Need", descriptors, 0)
            }
            Said::PodAck(ack) => {
                pod_ref("PodAck", ack.pod.as_ref())?;
                text("PodAck", "error", &ack.error)?;
                exactly("PodAck", descriptors, 0)
            }
            Said::Serving(_) => exactly("Serving", descriptors, 0),
            Said::PodDrained(drained) => {
                pod_ref("PodDrained", drained.pod.as_ref())?;
                exactly("PodDrained", descriptors, 0)
            }
            Said::Leaving(_) => exactly("Leaving", descriptors, 0),
            Said::Held(held) => {
                name("Held", "uid", &held.uid)?;
                listeners("Held", descriptors)
            }
        }
    }
}

impl From<from_ztunnel::Said> for FromZtunnel {
    fn from(said: from_ztunnel::Said) -> Self {
        Self { said: Some(said) }
    }
}

// ---- keeper to ztunnel ----

/// Everything the keeper says to a ztunnel after its welcome.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ToZtunnel {
    /// What it says.
    #[prost(oneof = "to_ztunnel::Said", tags = "1, 2, 3, 4, 5, 6")]
    pub said: Option<to_ztunnel::Said>,
}

/// The choices of [`ToZtunnel`].
pub mod to_ztunnel {
    /// What the keeper says to a ztunnel.
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub enum Said {
        /// A pod and its sockets.
        #[prost(message, tag = "1")]
        AddPod(super::AddPod),
        /// Stop accepting for a pod and say when its last connection has ended.
        #[prost(message, tag = "2")]
        RemovePod(super::RemovePod),
        /// All pods have been sent.
        #[prost(message, tag = "3")]
        SnapshotSent(super::SnapshotSent),
        /// Answer to a need.
        #[prost(message, tag = "4")]
        Sockets(super::Sockets),
        /// Another ztunnel serves: stop accepting, let connections end, leave.
        #[prost(message, tag = "5")]
        Retire(super::Retire),
        /// The keeper ends this connection.
        #[prost(message, tag = "6")]
        Goodbye(super::Goodbye),
    }
}

/// A pod to serve. Beside it its listeners in the order of [`ListenerKind::ALL`](crate::ListenerKind::ALL), and where
/// its questions are captured the sockets for them: for each family, IPv4 first, [`DNS_LANES`](crate::DNS_LANES) UDP
/// sockets and a TCP listener.
#[derive(Clone, PartialEq, prost::Message)]
pub struct AddPod {
    /// Which incarnation of it.
    #[prost(uint64, tag = "1")]
    pub incarnation: u64,
    /// The pod.
    #[prost(message, optional, tag = "2")]
    pub info: Option<PodInfo>,
}

/// A pod to serve no more.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RemovePod {
    /// The pod.
    #[prost(message, optional, tag = "1")]
    pub pod: Option<PodRef>,
}

/// All pods that the keeper has have been sent.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SnapshotSent {}

/// Sockets, or why there are none.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Sockets {
    /// The pod whose need is answered.
    #[prost(message, optional, tag = "1")]
    pub pod: Option<PodRef>,
    /// The kind that was asked for.
    #[prost(enumeration = "Kind", tag = "2")]
    pub kind: i32,
    /// Why there are none; empty if there are.
    #[prost(string, tag = "3")]
    pub error: String,
}

/// Another ztunnel serves.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Retire {}

impl Wire for ToZtunnel {
    const NAME: &'static str = "ToZtunnel";

    fn check(&self, descriptors: usize) -> Result<(), MessageError> {
        use to_ztunnel::Said;
        // Said in a newer version.
        let Some(said) = &self.said else { return Ok(()) };
        match said {
            Said::AddPod(add) => {
                incarnation("AddPod", add.incarnation)?;
                present("AddPod", "info", add.info.as_ref())?.check()?;
                listeners("AddPod", descriptors)
            }
            Said::RemovePod(remove) => {
                pod_ref("RemovePod", remove.pod.as_ref())?;
                exactly("RemovePod", descriptors, 0)
            }
            Said::SnapshotSent(_) => exactly("SnapshotSent", descriptors, 0),
            Said::Sockets(sockets) => {
                pod_ref("Sockets", sockets.pod.as_ref())?;
                socket_kind("Sockets", sockets.kind)?;
                text("Sockets", "error", &sockets.error)?;
                match (sockets.error.is_empty(), descriptors) {
                    (true, 1..=MAX_DESCRIPTORS) | (false, 0) => Ok(()),
                    (true, got) => Err(MessageError::Descriptors {
                        message: "Sockets",
                        got,
                        expected: "1 to 253 without an error",
                    }),
                    (false, got) => {
                        Err(MessageError::Descriptors { message: "Sockets", got, expected: "0 with an error" })
                    }
                }
            }
            Said::Retire(_) => exactly("Retire", descriptors, 0),
            Said::Goodbye(goodbye) => {
                text("Goodbye", "reason", &goodbye.reason)?;
                exactly("Goodbye", descriptors, 0)
            }
        }
    }
}

impl From<to_ztunnel::Said> for ToZtunnel {
    fn from(said: to_ztunnel::Said) -> Self {
        Self { said: Some(said) }
    }
}
