//! Links and programs of bpf(2) that are pinned or known by number: what they are, and swapping a link's program.
#![expect(unsafe_code, reason = "no crate in use looks into links or swaps the program of a pinned one")]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// Commands of bpf(2), linux/bpf.h.
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_PROG_GET_FD_BY_ID: libc::c_long = 13;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_LINK_UPDATE: libc::c_long = 29;
const BPF_LINK_DETACH: libc::c_long = 34;

/// Kinds of links, linux/bpf.h.
const LINK_CGROUP: u32 = 3;
const LINK_NETNS: u32 = 5;

/// Most maps of one program that are listed: ours have at most four.
const MAX_MAPS: usize = 16;

/// What a link is attached to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attached {
    /// The cgroup with this id, which is the inode number of its directory.
    Cgroup(u64),
    /// The network namespace with this inode number.
    Netns(u64),
    /// Nothing any more: it was destroyed.
    Nothing,
    /// Something that none of our links is attached to.
    Other,
}

/// A link's facts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkInfo {
    /// Its number in the kernel.
    pub id: u32,
    /// The number of its program.
    pub program: u32,
    /// Where it is.
    pub attached: Attached,
}

/// A program's facts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProgramInfo {
    /// Hash of its instructions, apart from which maps they name.
    pub tag: u64,
    /// The numbers of its maps.
    pub maps: Vec<u32>,
}

/// The first fields of `struct bpf_link_info`, linux/bpf.h. What follows `program` depends on the kind.
#[repr(C)]
#[derive(Default)]
struct RawLinkInfo {
    kind: u32,
    id: u32,
    program: u32,
    padding: u32,
    /// A cgroup's id, or a namespace's inode number in the first four bytes.
    target: [u8; 8],
    attach_type: u32,
    more: [u32; 11],
}

/// The first fields of `struct bpf_prog_info`, linux/bpf.h.
#[repr(C)]
#[derive(Default)]
struct RawProgramInfo {
    kind: u32,
    id: u32,
    tag: [u8; 8],
    jited_bytes: u32,
    translated_bytes: u32,
    jited: u64,
    translated: u64,
    loaded_at: u64,
    created_by: u32,
    map_count: u32,
    maps: u64,
}

#[repr(C)]
struct PathAttr {
    path: u64,
    fd: u32,
    flags: u32,
}

#[repr(C)]
struct IdAttr {
    id: u32,
    next_id: u32,
    flags: u32,
}

#[repr(C)]
struct InfoAttr {
    fd: u32,
    info_bytes: u32,
    info: u64,
}

#[repr(C)]
struct UpdateAttr {
    link: u32,
    program: u32,
    flags: u32,
    old_program: u32,
}

#[repr(C)]
struct DetachAttr {
    link: u32,
}

/// Opens what is pinned at a path.
pub fn open(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let attr = PathAttr { path: path.as_ptr() as u64, fd: 0, flags: 0 };
    // SAFETY: the kernel reads a string with its terminator at path, which outlives the call.
    let fd = unsafe { bpf(BPF_OBJ_GET, &attr) }?;
    // SAFETY: the kernel has just returned this descriptor to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Swaps the program of a link for another of the same type, without a moment in which there is none.
pub fn update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let attr = UpdateAttr { link: raw(link), program: raw(program), flags: 0, old_program: 0 };
    // SAFETY: there is no address in attr.
    unsafe { bpf(BPF_LINK_UPDATE, &attr) }.map(drop)
}

/// Detaches a link. When this returns its program is not called any more, while a link that is merely let go of is
/// detached by the kernel some time later.
pub fn detach(link: BorrowedFd<'_>) -> io::Result<()> {
    let attr = DetachAttr { link: raw(link) };
    // SAFETY: there is no address in attr.
    unsafe { bpf(BPF_LINK_DETACH, &attr) }.map(drop)
}

/// Facts of a link.
pub fn link(fd: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    let mut info = RawLinkInfo::default();
    let attr = InfoAttr { fd: raw(fd), info_bytes: size_of::<RawLinkInfo>() as u32, info: (&raw mut info) as u64 };
    // SAFETY: the kernel writes at most `info_bytes` bytes at info, which is that large, plain integers, and outlives
    // the call. No link of a kind that we make reads an address from it.
    unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &attr) }?;
    let [a, b, c, d, ..] = info.target;
    let attached = match info.kind {
        LINK_CGROUP => Attached::Cgroup(u64::from_ne_bytes(info.target)),
        LINK_NETNS => Attached::Netns(u32::from_ne_bytes([a, b, c, d]).into()),
        _ => Attached::Other,
    };
    let attached = match attached {
        Attached::Cgroup(0) | Attached::Netns(0) => Attached::Nothing,
        attached => attached,
    };
    Ok(LinkInfo { id: info.id, program: info.program, attached })
}

/// Facts of the program with this number.
pub fn program(id: u32) -> io::Result<ProgramInfo> {
    let attr = IdAttr { id, next_id: 0, flags: 0 };
    // SAFETY: there is no address in attr.
    let fd = unsafe { bpf(BPF_PROG_GET_FD_BY_ID, &attr) }?;
    // SAFETY: the kernel has just returned this descriptor to nobody else.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut maps = [0_u32; MAX_MAPS];
    let mut info = RawProgramInfo { map_count: MAX_MAPS as u32, maps: maps.as_mut_ptr() as u64, ..Default::default() };
    let info_bytes = size_of::<RawProgramInfo>() as u32;
    let attr = InfoAttr { fd: raw(fd.as_fd()), info_bytes, info: (&raw mut info) as u64 };
    // SAFETY: the kernel writes at most `info_bytes` bytes at info, which is that large and plain integers, and at most
    // `map_count` words at maps, which has that many; the other sizes are 0. Both outlive the call.
    unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &attr) }?;
    let count = MAX_MAPS.min(info.map_count as usize);
    Ok(ProgramInfo { tag: u64::from_be_bytes(info.tag), maps: maps[..count].to_vec() })
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    // An open descriptor is never negative.
    fd.as_raw_fd() as u32
}

/// # Safety
/// The addresses in `attr` must be good for what `command` reads and writes there.
unsafe fn bpf<T>(command: libc::c_long, attr: &T) -> io::Result<RawFd> {
    // SAFETY: attr is a live reference of the given size, and the caller answers for the addresses inside it.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attr), size_of::<T>()) };
    match result {
        -1 => Err(io::Error::last_os_error()),
        // The results of these commands are 0 or a descriptor.
        result => Ok(result as RawFd),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_pinned_is_an_error_of_that_kind() {
        let error = open(Path::new("/sys/fs/bpf/loam-there-is-no-such-pin")).unwrap_err();
        let kinds = [io::ErrorKind::NotFound, io::ErrorKind::PermissionDenied];
        assert!(kinds.contains(&error.kind()), "{error}");
    }

    #[test]
    fn a_file_is_not_a_link() {
        assert!(link(std::fs::File::open("/dev/null").unwrap().as_fd()).is_err());
    }
}
