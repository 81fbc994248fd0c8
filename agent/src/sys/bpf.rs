//! Maps of the kernel's programs, reached by a descriptor alone.
#![expect(unsafe_code, reason = "bpf(2) takes addresses, and nobody offers it by descriptor")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Commands of bpf(2), linux/bpf.h.
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_MAP_DELETE_ELEM: libc::c_long = 3;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;

/// Largest key or value that is used through this face.
const MAX_ELEMENT_BYTES: u32 = 256;

/// The types of maps that somebody asks for, linux/bpf.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum MapType {
    /// Sockets by index.
    SockMap = 15,
    /// A value inside each socket, keyed by its descriptor.
    SkStorage = 24,
}

/// When an update may happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub enum Update {
    /// Always.
    Any = 0,
    /// Only where nothing lies yet.
    NoExist = 1,
}

/// A map whose type and sizes are known.
#[derive(Debug)]
pub struct Map {
    fd: OwnedFd,
    key_bytes: usize,
    value_bytes: usize,
    max_entries: u32,
}

/// The first fields of `struct bpf_map_info`, linux/bpf.h.
#[repr(C)]
#[derive(Default)]
struct MapInfo {
    map_type: u32,
    id: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
}

/// The part of `union bpf_attr` for one element, linux/bpf.h.
#[repr(C)]
struct ElementAttr {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// The part of `union bpf_attr` for an object's facts, linux/bpf.h.
#[repr(C)]
struct InfoAttr {
    fd: u32,
    info_bytes: u32,
    info: u64,
}

impl Map {
    /// The map behind `fd`, which must be of this type with keys and values of this many bytes.
    pub fn from_fd(fd: OwnedFd, map_type: MapType, key_bytes: u32, value_bytes: u32) -> io::Result<Self> {
        let info = map_info(fd.as_fd())?;
        let found = (info.map_type, info.key_size, info.value_size);
        if found != (map_type as u32, key_bytes, value_bytes) || key_bytes.max(value_bytes) > MAX_ELEMENT_BYTES {
            let text = format!(
                "the descriptor is a map of type {}, key {} and value {} bytes, not {map_type:?} with {key_bytes} and {value_bytes}",
                info.map_type, info.key_size, info.value_size
            );
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        Ok(Self { fd, key_bytes: key_bytes as usize, value_bytes: value_bytes as usize, max_entries: info.max_entries })
    }

    /// How many elements it can hold.
    pub fn max_entries(&self) -> u32 {
        self.max_entries
    }

    /// Writes an element. Key and value must have the sizes of the map.
    pub fn update(&self, key: &[u8], value: &[u8], when: Update) -> io::Result<()> {
        if key.len() != self.key_bytes || value.len() != self.value_bytes {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let attr = ElementAttr {
            map_fd: raw(self.fd.as_fd()),
            padding: 0,
            key: key.as_ptr() as u64,
            value: value.as_ptr() as u64,
            flags: when as u64,
        };
        // SAFETY: the kernel reads `key_size` bytes at key and `value_size` at value; both slices live until the call
        // returns and have just been found to have those sizes, which a map never changes.
        unsafe { bpf(BPF_MAP_UPDATE_ELEM, &attr) }
    }

    /// Removes an element. The key must have the size of the map's.
    pub fn delete(&self, key: &[u8]) -> io::Result<()> {
        if key.len() != self.key_bytes {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let attr =
            ElementAttr { map_fd: raw(self.fd.as_fd()), padding: 0, key: key.as_ptr() as u64, value: 0, flags: 0 };
        // SAFETY: the kernel reads `key_size` bytes at key, which is that long and lives until the call returns.
        unsafe { bpf(BPF_MAP_DELETE_ELEM, &attr) }
    }
}

fn map_info(fd: BorrowedFd<'_>) -> io::Result<MapInfo> {
    let mut info = MapInfo::default();
    let attr = InfoAttr { fd: raw(fd), info_bytes: size_of::<MapInfo>() as u32, info: (&raw mut info) as u64 };
    // SAFETY: the kernel writes at most `info_bytes` bytes at info, which is that large, writable, plain integers, and
    // outlives the call.
    unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &attr) }?;
    Ok(info)
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    // An open descriptor is never negative.
    fd.as_raw_fd() as u32
}

/// # Safety
/// The addresses in `attr` must be good for what `command` reads and writes there.
unsafe fn bpf<T>(command: libc::c_long, attr: &T) -> io::Result<()> {
    // SAFETY: attr is a live reference of the given size, and the caller answers for the addresses inside it.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attr), size_of::<T>()) };
    match result {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::FromRawFd;

    #[test]
    fn a_descriptor_that_is_no_map_is_refused() {
        let file = File::open("/dev/null").unwrap();
        assert!(Map::from_fd(file.into(), MapType::SockMap, 4, 4).is_err());
    }

    /// `union bpf_attr` for BPF_MAP_CREATE.
    #[repr(C)]
    #[derive(Default)]
    struct CreateAttr {
        map_type: u32,
        key_size: u32,
        value_size: u32,
        max_entries: u32,
        map_flags: u32,
        inner_map_fd: u32,
        numa_node: u32,
        name: [u8; 16],
        ifindex: u32,
        btf_fd: u32,
        btf_key_type_id: u32,
        btf_value_type_id: u32,
    }

    fn create<T>(command: libc::c_long, attr: &T) -> OwnedFd {
        // SAFETY: both callers' attributes hold descriptors, numbers, and addresses of slices that outlive the call.
        let fd = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attr), size_of::<T>()) };
        assert!(fd >= 0, "bpf {command}: {}", io::Error::last_os_error());
        // SAFETY: the kernel has just returned this descriptor to nobody else.
        unsafe { OwnedFd::from_raw_fd(fd as i32) }
    }

    /// A map of sockets like LISTENERS. Needs root.
    pub(crate) fn sock_map(max_entries: u32) -> OwnedFd {
        create(0, &CreateAttr { map_type: 15, key_size: 4, value_size: 4, max_entries, ..Default::default() })
    }

    /// A map like EXEMPT. Needs root.
    pub(crate) fn sk_storage() -> OwnedFd {
        // Type information is required for socket storage: one type, `int`.
        let mut btf = Vec::new();
        btf.extend(0xeb9f_u16.to_ne_bytes()); // magic
        btf.extend([1, 0]); // version, flags
        // header length; types at 0 with 16 bytes; strings at 16 with 5 bytes
        for word in [24_u32, 0, 16, 16, 5] {
            btf.extend(word.to_ne_bytes());
        }
        // name at 1, kind integer, 4 bytes, signed with 32 bits
        for word in [1_u32, 1 << 24, 4, 1 << 24 | 32] {
            btf.extend(word.to_ne_bytes());
        }
        btf.extend(b"\0int\0");
        #[repr(C)]
        struct BtfAttr {
            btf: u64,
            log: u64,
            btf_bytes: u32,
            log_bytes: u32,
            log_level: u32,
        }
        let attr =
            BtfAttr { btf: btf.as_ptr() as u64, log: 0, btf_bytes: btf.len() as u32, log_bytes: 0, log_level: 0 };
        let btf = create(18, &attr);
        create(
            0,
            &CreateAttr {
                map_type: 24,
                key_size: 4,
                value_size: 4,
                map_flags: 1, // BPF_F_NO_PREALLOC
                btf_fd: btf.as_raw_fd() as u32,
                btf_key_type_id: 1,
                btf_value_type_id: 1,
                ..Default::default()
            },
        )
    }

    /// Whether something lies at `key`: an update that may only create finds it there.
    pub(crate) fn is_filled(map: &Map, key: u32, value: BorrowedFd<'_>) -> bool {
        match map.update(&key.to_ne_bytes(), &value.as_raw_fd().to_ne_bytes(), Update::NoExist) {
            Ok(()) => {
                map.delete(&key.to_ne_bytes()).unwrap();
                false
            }
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(libc::EEXIST), "{error}");
                true
            }
        }
    }
}
