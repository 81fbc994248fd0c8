//! Why a connection or a question is refused.

/// It cannot be given to the ztunnel, and it must not go around it.
#[derive(Clone, Copy)]
pub(crate) enum Refused {
    /// No ztunnel listens for the pod.
    NoListener,
    /// The socket is bound to an interface and the kernel does not let us undo that.
    BoundToInterface,
    /// The socket does not take the mark.
    NotMarked,
    /// The socket has no room to remember which name server it asks.
    NotRemembered,
}

impl Refused {
    /// What the application's call fails with: always that nobody serves it, which programs know to retry.
    #[inline(always)]
    pub(crate) fn errno(self) -> i32 {
        const ECONNREFUSED: i32 = 111;
        match self {
            Refused::NoListener | Refused::BoundToInterface | Refused::NotMarked | Refused::NotRemembered => {
                ECONNREFUSED
            }
        }
    }
}
