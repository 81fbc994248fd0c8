use super::*;
use rustix::io::{FdFlags, fcntl_getfd};
use std::fs::File;

/// A pipe's read end to pass, and its write end, which reports when the last copy of the read end is closed.
fn witness() -> (OwnedFd, OwnedFd) {
    rustix::pipe::pipe().unwrap()
}

/// Whether no copy of the witness's read end is open any more.
fn is_released(write_end: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(write_end, PollFlags::empty())];
    poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap();
    fds[0].revents().contains(PollFlags::ERR)
}

#[tokio::test]
async fn packets_arrive_whole_in_order_and_with_their_descriptors() {
    let (a, b) = Socket::pair().unwrap();
    let null = File::open("/dev/null").unwrap();
    a.send(b"one", &[null.as_fd(), null.as_fd()]).await.unwrap();
    a.send(b"two", &[]).await.unwrap();
    let one = b.recv().await.unwrap().unwrap();
    assert_eq!((&one.bytes[..], one.fds.len()), (&b"one"[..], 2));
    let two = b.recv().await.unwrap().unwrap();
    assert_eq!((&two.bytes[..], two.fds.len()), (&b"two"[..], 0));
}

#[tokio::test]
async fn the_most_descriptors_fit_and_one_more_is_refused() {
    let (a, b) = Socket::pair().unwrap();
    let null = File::open("/dev/null").unwrap();
    a.send(b"x", &[null.as_fd(); MAX_DESCRIPTORS]).await.unwrap();
    assert_eq!(b.recv().await.unwrap().unwrap().fds.len(), MAX_DESCRIPTORS);
    let more = [null.as_fd(); MAX_DESCRIPTORS + 1];
    assert!(matches!(a.send(b"x", &more).await, Err(SocketError::DescriptorsLost)));
}

#[tokio::test]
async fn received_descriptors_are_close_on_exec() {
    let (a, b) = Socket::pair().unwrap();
    let null = File::open("/dev/null").unwrap();
    a.send(b"x", &[null.as_fd()]).await.unwrap();
    let packet = b.recv().await.unwrap().unwrap();
    assert!(fcntl_getfd(&packet.fds[0]).unwrap().contains(FdFlags::CLOEXEC));
}

#[tokio::test]
async fn the_largest_packet_passes_and_a_larger_one_is_an_error_at_both_ends() {
    let (a, b) = Socket::pair().unwrap();
    let largest = vec![7; MAX_MESSAGE_BYTES];
    a.send(&largest, &[]).await.unwrap();
    assert_eq!(b.recv().await.unwrap().unwrap().bytes, largest);
    assert!(matches!(a.send(&vec![7; MAX_MESSAGE_BYTES + 1], &[]).await, Err(SocketError::TooLarge)));

    let (read_end, write_end) = witness();
    let mut space = [MaybeUninit::uninit(); CONTROL_BYTES];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let rights = [read_end.as_fd()];
    assert!(control.push(SendAncillaryMessage::ScmRights(&rights)));
    let huge = vec![7; MAX_MESSAGE_BYTES + 1];
    rustix::net::sendmsg(&a, &[io::IoSlice::new(&huge)], &mut control, SendFlags::NOSIGNAL).unwrap();
    drop(read_end);
    assert!(matches!(b.recv().await, Err(SocketError::TooLarge)));
    assert!(is_released(&write_end), "the descriptor beside the refused packet leaked");
}

#[tokio::test]
async fn a_refused_message_closes_the_descriptors_that_came_with_it() {
    use crate::message::Hello;
    let (a, b) = Socket::pair().unwrap();
    let (read_end, write_end) = witness();
    a.send(&encode(&Hello::new()).unwrap(), &[read_end.as_fd()]).await.unwrap();
    drop(read_end);
    let error = b.recv_message::<Hello>().await.unwrap_err();
    assert_eq!(error.to_string(), "Hello came with 1 descriptors, not 0");
    assert!(is_released(&write_end), "the descriptor beside the refused message leaked");
}

#[tokio::test]
async fn the_end_of_the_peer_is_an_end_and_not_an_error() {
    let (a, b) = Socket::pair().unwrap();
    assert!(!b.is_peer_gone());
    a.send(b"last words", &[]).await.unwrap();
    b.send(b"never read", &[]).await.unwrap();
    drop(a);
    assert!(b.is_peer_gone());
    // The kernel reports the unread packet as a reset, once, before or instead of the packet that waits here.
    while let Some(packet) = b.recv().await.unwrap() {
        assert_eq!(packet.bytes, b"last words");
    }
    assert!(b.send(b"x", &[]).await.is_err());
}

#[tokio::test]
async fn a_sender_waits_for_a_slow_reader_and_loses_nothing() {
    let (a, b) = Socket::pair().unwrap();
    let packet = vec![1; 32 * 1024];
    let sending = tokio::spawn(async move {
        for _ in 0..100 {
            a.send(&packet, &[]).await.unwrap();
        }
    });
    let mut received = 0;
    while let Some(packet) = b.recv().await.unwrap() {
        assert_eq!(packet.bytes.len(), 32 * 1024);
        received += 1;
    }
    sending.await.unwrap();
    assert_eq!(received, 100);
}

#[tokio::test]
async fn a_listener_tells_who_connected() {
    let dir = std::env::temp_dir().join(format!("loam-node-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let path = dir.join("s.sock");
    let listener = Listener::bind(&path).unwrap();
    let client = Socket::connect(&path).unwrap();
    let served = listener.accept().await.unwrap();
    let me =
        Peer { uid: rustix::process::getuid().as_raw(), pid: Some(rustix::process::getpid().as_raw_nonzero().get()) };
    assert_eq!(served.peer().unwrap(), me);
    client.send(b"hi", &[]).await.unwrap();
    assert_eq!(served.recv().await.unwrap().unwrap().bytes, b"hi");
    std::fs::remove_dir_all(&dir).unwrap();
}
