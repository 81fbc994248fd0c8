//! Why a connection is refused.

/// The connection cannot be given to the ztunnel, and it must not go around it.
#[derive(Clone, Copy)]
pub(crate) enum Refused {
    /// No ztunnel listens for the pod.
    NoListener,
    /// The socket is bound to an interface and the kernel does not let us undo that.
    BoundToInterface,
    /// The socket does not take the mark.
    NotMarked,
}

impl Refused {
    /// What the application's `connect()` fails with: always that nobody serves it, which programs know to retry.
    #[inline(always)]
    pub(crate) fn errno(self) -> i32 {
        const ECONNREFUSED: i32 = 111;
        match self {
            Refused::NoListener | Refused::BoundToInterface | Refused::NotMarked => ECONNREFUSED,
        }
    }
}
