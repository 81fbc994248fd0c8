//! A thread inside a pod's network namespace. Sockets belong to the namespace of the thread that makes them, and a
//! thread made for each batch would cost more than the batch.

use super::dns::DnsSockets;
use super::slots::Stores;
use super::sockets::{Listeners, MakeError, adopt, cookie, dialler, listeners};
use crate::sys::netns::{self, NetnsId};
use loam_node::Kind;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

/// Work that waits for one thread. Every ztunnel has one need per kind open, and there are two of them in a hand-over.
const MAX_WORK: usize = 64;

/// The thread makes system calls and formats errors.
const STACK_BYTES: usize = 256 * 1024;

/// Why there is nobody to make sockets.
#[derive(Debug, thiserror::Error)]
pub(super) enum PlaceError {
    /// What was given as a namespace is not one.
    #[error("{0}")]
    NotANamespace(#[source] io::Error),
    /// It is the keeper's own.
    #[error("the network namespace is the node's own")]
    Own,
    /// The thread could not be made.
    #[error("start a thread: {0}")]
    Thread(#[source] io::Error),
    /// More work waits than [`MAX_WORK`].
    #[error("more than {MAX_WORK} requests for sockets of this pod wait")]
    Busy,
    /// The thread has ended, which only a fault in it can bring about.
    #[error("the thread inside the network namespace has ended")]
    Ended,
}

/// Sockets that another keeper made, as they came: listeners, and perhaps sockets for names.
#[derive(Debug, Default)]
pub(super) struct Held {
    /// In the order of `ListenerKind::ALL`.
    pub(super) mesh: Option<[OwnedFd; 3]>,
    /// In the order in which they travel; empty if there are none.
    pub(super) dns: Vec<OwnedFd>,
}

/// Listeners that were made, with the cookie of their namespace.
pub(super) type Listening = (Listeners, u64);

/// Receives the outcome of a piece of work, on the thread.
type Then<T> = Box<dyn FnOnce(T) + Send>;

enum Work {
    Listen { held: Held, dns: bool, then: Then<Result<Listening, String>> },
    Dial { kind: Kind, count: usize, stores: Stores, then: Then<Result<Vec<OwnedFd>, String>> },
    Look { then: Then<bool> },
}

/// A handle to the thread; the thread ends when the last handle is gone, and lets go of the namespace.
#[derive(Debug, Clone)]
pub(super) struct Place {
    work: SyncSender<Work>,
    // Named so that Debug says which it is.
    _netns: NetnsId,
}

/// The id of a namespace that a pod may have.
pub(super) fn identify(netns: &OwnedFd) -> Result<NetnsId, PlaceError> {
    let id = netns::id(netns.as_fd()).map_err(PlaceError::NotANamespace)?;
    let own = netns::own().and_then(|own| netns::id(own.as_fd())).map_err(PlaceError::NotANamespace)?;
    match id == own {
        true => Err(PlaceError::Own),
        false => Ok(id),
    }
}

impl Place {
    /// Starts a thread in a namespace. Whether it could enter shows in the outcome of the first work.
    pub(super) fn start(netns: OwnedFd, id: NetnsId) -> Result<Self, PlaceError> {
        let (work, queue) = sync_channel(MAX_WORK);
        let thread = std::thread::Builder::new().name("pod".into()).stack_size(STACK_BYTES);
        thread.spawn(move || run(netns, queue)).map_err(PlaceError::Thread)?;
        Ok(Self { work, _netns: id })
    }

    /// Makes the listeners, those for names as well if `dns` is set, or adopts those that are there already.
    pub(super) fn listen(
        &self,
        held: Held,
        dns: bool,
        then: impl FnOnce(Result<Listening, String>) + Send + 'static,
    ) -> Result<(), PlaceError> {
        self.ask(Work::Listen { held, dns, then: Box::new(then) })
    }

    /// Makes sockets for dialling and enters them in EXEMPT.
    pub(super) fn dial(
        &self,
        kind: Kind,
        count: usize,
        stores: &Stores,
        then: impl FnOnce(Result<Vec<OwnedFd>, String>) + Send + 'static,
    ) -> Result<(), PlaceError> {
        self.ask(Work::Dial { kind, count, stores: stores.clone(), then: Box::new(then) })
    }

    /// Looks whether the namespace has no interface but its loopback: the pod was torn down.
    pub(super) fn is_deserted(&self, then: impl FnOnce(bool) + Send + 'static) -> Result<(), PlaceError> {
        self.ask(Work::Look { then: Box::new(then) })
    }

    fn ask(&self, work: Work) -> Result<(), PlaceError> {
        self.work.try_send(work).map_err(|error| match error {
            TrySendError::Full(_) => PlaceError::Busy,
            TrySendError::Disconnected(_) => PlaceError::Ended,
        })
    }
}

fn run(netns: OwnedFd, queue: Receiver<Work>) {
    let entered = netns::enter(netns.as_fd()).map_err(|error| match error.raw_os_error() {
        Some(libc::EINVAL) => "the descriptor is of a namespace of another kind than network".to_owned(),
        _ => format!("enter the network namespace: {error}"),
    });
    // Being inside keeps the namespace.
    drop(netns);
    while let Ok(work) = queue.recv() {
        let entered = entered.clone();
        match work {
            Work::Listen { held, dns, then } => {
                then(entered.and_then(|()| listen(held, dns).map_err(|e| e.to_string())));
            }
            Work::Dial { kind, count, stores, then } => then(entered.and_then(|()| dial(kind, count, &stores))),
            Work::Look { then } => then(entered.is_err() || is_deserted().unwrap_or(false)),
        }
    }
}

fn listen(held: Held, dns: bool) -> Result<Listening, MakeError> {
    let cookie = cookie()?;
    let mesh = match held.mesh.map(|held| adopt(held, cookie)) {
        Some(Ok(adopted)) => adopted,
        Some(Err(error)) => {
            tracing::warn!(%error, "listeners offered by a ztunnel are not taken");
            listeners()?
        }
        None => listeners()?,
    };
    let dns = match dns {
        true if held.dns.is_empty() => Some(DnsSockets::make()?),
        true => Some(DnsSockets::adopt(held.dns, cookie).or_else(|error| {
            tracing::warn!(%error, "sockets for names offered by a ztunnel are not taken");
            DnsSockets::make()
        })?),
        false => None,
    };
    Ok((Listeners { mesh, dns }, cookie))
}

fn dial(kind: Kind, count: usize, stores: &Stores) -> Result<Vec<OwnedFd>, String> {
    let mut sockets = Vec::with_capacity(count);
    for _ in 0..count {
        let socket = dialler(kind).map_err(|error| error.to_string())?;
        stores.exempt(&socket).map_err(|error| format!("exempt a socket from the redirect: {error}"))?;
        sockets.push(socket);
    }
    Ok(sockets)
}

fn is_deserted() -> io::Result<bool> {
    // Two lines of heading, then one per interface.
    let devices = std::fs::read_to_string("/proc/thread-self/net/dev")?;
    Ok(devices.lines().skip(2).all(|line| line.trim_start().starts_with("lo:")))
}

/// The listeners of a pod, shared with what travels to ztunnels.
pub(super) type SharedListeners = Arc<Listeners>;
