//! What the object of one pod says.

use k8s_openapi::api::core::v1::{Pod, PodCondition};

/// The annotation that Istio's users know: `enabled` on a pod that is captured.
pub const REDIRECTION: &str = "ambient.istio.io/redirection";

/// Value of [`REDIRECTION`].
pub(super) const ENABLED: &str = "enabled";

/// The condition of a pod.
pub const CONDITION: &str = "loam.dev/Enrolled";

/// Most bytes of a message.
const MAX_MESSAGE_BYTES: usize = 512;

/// What there is to say of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// Why the condition is as it is.
    pub reason: Reason,
    /// The same for people.
    pub message: String,
}

/// Why the condition of a pod is as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// It is captured.
    Captured,
    /// It is captured, and a policy of the network keeps tunnels from it.
    TunnelsBlocked,
    /// It is on its way in.
    Waiting,
    /// It should be in the mesh, and something is wrong.
    Failed,
    /// It does not belong to the mesh.
    NotInMesh,
}

/// In what an object differs from what it should say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Difference {
    /// Whether its pod is captured.
    Capture,
    /// It says nothing of a pod that is not captured.
    Outside,
    /// Why.
    Words,
}

impl Reason {
    /// As the condition has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::Captured => "Captured",
            Reason::TunnelsBlocked => "TunnelsBlocked",
            Reason::Waiting => "Waiting",
            Reason::Failed => "Failed",
            Reason::NotInMesh => "NotInMesh",
        }
    }

    /// Whether the pod is captured.
    pub fn is_captured(self) -> bool {
        matches!(self, Reason::Captured | Reason::TunnelsBlocked)
    }

    /// Whether this is as somebody wanted it.
    pub fn is_good(self) -> bool {
        matches!(self, Reason::Captured | Reason::NotInMesh)
    }
}

impl Notice {
    /// A notice with these words, or the reason's own.
    pub fn new(reason: Reason, words: &str) -> Self {
        let message = match (words, reason) {
            ("", Reason::Captured) => "the pod's traffic goes through the mesh",
            ("", Reason::TunnelsBlocked) => "a policy of the network keeps tunnels from the pod",
            ("", Reason::Waiting | Reason::Failed | Reason::NotInMesh) => {
                "the pod's traffic does not go through the mesh"
            }
            (words, _) => words,
        };
        let mut end = message.len().min(MAX_MESSAGE_BYTES);
        while !message.is_char_boundary(end) {
            end -= 1;
        }
        Self { reason, message: message[..end].to_owned() }
    }

    /// Whether there is a notice on a pod.
    pub fn is_on(pod: &Pod) -> bool {
        is_annotated(pod) || condition(pod).is_some()
    }

    /// In what the object of a pod differs from this; none if it says so.
    pub fn difference(&self, pod: &Pod) -> Option<Difference> {
        let status = condition(pod).map(|condition| condition.status == "True");
        if is_annotated(pod) != self.reason.is_captured() || status.is_some_and(|is| is != self.reason.is_captured()) {
            return Some(Difference::Capture);
        }
        let Some(condition) = condition(pod) else {
            return Some(if self.reason.is_captured() { Difference::Capture } else { Difference::Outside });
        };
        let says = |what: &Option<String>, text: &str| what.as_deref().unwrap_or_default() == text;
        match says(&condition.reason, self.reason.as_str()) && says(&condition.message, &self.message) {
            true => None,
            false => Some(Difference::Words),
        }
    }
}

/// The condition of a pod.
pub(super) fn condition(pod: &Pod) -> Option<&PodCondition> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|condition| condition.type_ == CONDITION)
}

fn is_annotated(pod: &Pod) -> bool {
    pod.metadata.annotations.as_ref().and_then(|all| all.get(REDIRECTION)).is_some_and(|value| value == ENABLED)
}
