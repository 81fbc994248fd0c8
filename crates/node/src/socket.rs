//! `SOCK_SEQPACKET` unix sockets on tokio: packets that arrive whole, with descriptors beside them.

use crate::message::{MAX_DESCRIPTORS, MAX_MESSAGE_BYTES, MessageError, Wire, decode, encode};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use tokio::io::Interest;
use tokio::net::{UnixListener, UnixStream};

/// Connections that wait to be accepted: two agents and a few ztunnels at most.
const BACKLOG: i32 = 16;

/// Room for the most descriptors the kernel passes in one packet, so that none is ever cut off.
const CONTROL_BYTES: usize = rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS));

/// Why a packet was not sent or received.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The system call failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The packet is larger than one may be.
    #[error("a packet of more than {MAX_MESSAGE_BYTES} bytes")]
    TooLarge,
    /// There are more descriptors than fit, or some could not be taken (the limit of open files).
    #[error("descriptors beside a packet were lost")]
    DescriptorsLost,
    /// The packet is not what belongs here.
    #[error(transparent)]
    Message(#[from] MessageError),
}

/// One packet.
#[derive(Debug)]
pub struct Packet {
    /// The message.
    pub bytes: Vec<u8>,
    /// The descriptors beside it, close-on-exec. Dropping the packet closes them.
    pub fds: Vec<OwnedFd>,
}

impl Packet {
    /// The message in it, with its descriptors, whose number has been checked.
    pub fn message<M: Wire>(self) -> Result<(M, Vec<OwnedFd>), MessageError> {
        let message = decode(&self.bytes, self.fds.len())?;
        Ok((message, self.fds))
    }
}

/// Who is at the other end, as the kernel saw it when the connection was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Its user.
    pub uid: u32,
    /// Its process, where it is visible from here.
    pub pid: Option<i32>,
}

/// A connection. Packets may be sent by several tasks at a time, each goes out whole.
#[derive(Debug)]
pub struct Socket {
    // Tokio offers no packet sockets. Its stream is one kind of readiness for any connected unix socket, and only its
    // readiness and its peer's credentials are used.
    stream: UnixStream,
}

impl Socket {
    /// Wraps a connected socket. Must be called inside a tokio runtime.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        Ok(Self { stream: UnixStream::from_std(std::os::unix::net::UnixStream::from(fd))? })
    }

    /// Two connected ends.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (a, b) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        Ok((Self::from_fd(a)?, Self::from_fd(b)?))
    }

    /// Connects to the listener at `path`. A unix socket connects at once or fails.
    pub fn connect(path: &Path) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let fd = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        rustix::net::connect(&fd, &SocketAddrUnix::new(path)?)?;
        Self::from_fd(fd)
    }

    /// Who is at the other end.
    pub fn peer(&self) -> io::Result<Peer> {
        let cred = self.stream.peer_cred()?;
        Ok(Peer { uid: cred.uid(), pid: cred.pid().filter(|pid| *pid != 0) })
    }

    /// Whether the other end is closed, even if packets from it are still to be read.
    pub fn is_peer_gone(&self) -> bool {
        let mut fds = [PollFd::new(&self.stream, PollFlags::empty())];
        match poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) {
            Ok(_) => fds[0].revents().intersects(PollFlags::HUP | PollFlags::ERR),
            Err(_) => false,
        }
    }

    /// Sends a packet; waits while the other end does not read. The caller keeps its descriptors.
    pub async fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), SocketError> {
        if bytes.len() > MAX_MESSAGE_BYTES {
            return Err(SocketError::TooLarge);
        }
        if fds.len() > MAX_DESCRIPTORS {
            return Err(SocketError::DescriptorsLost);
        }
        Ok(self.stream.async_io(Interest::WRITABLE, || send_now(self.as_fd(), bytes, fds)).await?)
    }

    /// Encodes and sends a message.
    pub async fn send_message<M: Wire>(&self, message: &M, fds: &[BorrowedFd<'_>]) -> Result<(), SocketError> {
        self.send(&encode(message)?, fds).await
    }

    /// The next packet; None when the other end is gone.
    pub async fn recv(&self) -> Result<Option<Packet>, SocketError> {
        let received = self.stream.async_io(Interest::READABLE, || recv_now(self.as_fd())).await;
        match received {
            Ok(received) => received,
            // Closed over there while something from here was still unread.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Receives and decodes a message with its descriptors; None when the other end is gone.
    pub async fn recv_message<M: Wire>(&self) -> Result<Option<(M, Vec<OwnedFd>)>, SocketError> {
        match self.recv().await? {
            Some(packet) => Ok(Some(packet.message()?)),
            None => Ok(None),
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

fn send_now(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); CONTROL_BYTES];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(Errno::INVAL.into());
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    retry_on_intr(|| rustix::net::sendmsg(socket, &[io::IoSlice::new(bytes)], &mut control, flags))?;
    Ok(())
}

/// The outer result is the readiness (would block, system errors), the inner one the packet's.
fn recv_now(socket: BorrowedFd<'_>) -> io::Result<Result<Option<Packet>, SocketError>> {
    let mut bytes = vec![0; MAX_MESSAGE_BYTES];
    let mut space = [MaybeUninit::uninit(); CONTROL_BYTES];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let got =
        retry_on_intr(|| rustix::net::recvmsg(socket, &mut [io::IoSliceMut::new(&mut bytes)], &mut control, flags))?;
    // Taken out first: whatever is wrong with the packet, its descriptors are owned from here and closed on return.
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    if got.flags.contains(ReturnFlags::CTRUNC) {
        return Ok(Err(SocketError::DescriptorsLost));
    }
    if got.flags.contains(ReturnFlags::TRUNC) {
        return Ok(Err(SocketError::TooLarge));
    }
    if got.bytes == 0 {
        return Ok(Ok(None));
    }
    bytes.truncate(got.bytes);
    bytes.shrink_to_fit();
    Ok(Ok(Some(Packet { bytes, fds })))
}

fn retry_on_intr<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> rustix::io::Result<T> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}

/// A listening socket in the file system.
#[derive(Debug)]
pub struct Listener {
    listener: UnixListener,
}

impl Listener {
    /// Listens at `path`, which must not exist.
    pub fn bind(path: &Path) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let fd = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        rustix::net::bind(&fd, &SocketAddrUnix::new(path)?)?;
        rustix::net::listen(&fd, BACKLOG)?;
        Ok(Self { listener: UnixListener::from_std(std::os::unix::net::UnixListener::from(fd))? })
    }

    /// The next connection.
    pub async fn accept(&self) -> io::Result<Socket> {
        let (stream, _) = self.listener.accept().await?;
        Ok(Socket { stream })
    }
}

#[cfg(test)]
mod tests;
