//! The three switches of a pod's network namespace, and what they were before.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{StatVfsMountFlags, statvfs};
use rustix::mount::{MountFlags, mount_remount};
use serde::{Deserialize, Serialize};

use super::NetnsError;

/// Where the kernel shows its switches.
const SWITCHES: &str = "/proc/sys";

/// Below /proc/sys/net, which shows the namespace of the thread that reads it.
const NAMES: [&str; 3] = [
    // A connection that was accepted from a marked packet answers with the mark, so its answers take the same way.
    "ipv4/tcp_fwmark_accept",
    // So do resets and the like, which have no socket: without it a dial to a closed port would hang, and its reset
    // leave on the wire.
    "ipv4/fwmark_reflect",
    "ipv6/fwmark_reflect",
];

/// Values to go back to.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Before(Vec<(String, String)>);

impl Before {
    /// The values in the namespace of the calling thread.
    pub fn read() -> Self {
        Self(NAMES.iter().filter_map(|name| Some(((*name).to_owned(), read(name)?))).collect())
    }

    /// Writes them back.
    pub(super) fn restore(&self) -> Result<(), NetnsError> {
        // The names come from a file: only those that we set are ours to set.
        for name in NAMES {
            let value = self.0.iter().find(|(known, _)| known == name).map_or("0", |(_, value)| value.as_str());
            write(name, value)?;
        }
        Ok(())
    }
}

/// Makes the switches writable for this process where they are not: container runtimes show them read-only to whoever is not
/// privileged in everything. No other mount namespace sees it.
pub fn unlock() -> Result<(), NetnsError> {
    let failed = |error: rustix::io::Errno| NetnsError::Io("make /proc/sys writable", error.into());
    if !statvfs(SWITCHES).map_err(failed)?.f_flag.contains(StatVfsMountFlags::RDONLY) {
        return Ok(());
    }
    let flags = MountFlags::BIND | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount_remount(SWITCHES, flags, "").map_err(failed)
}

/// Turns all on; says which were off.
pub(super) fn set() -> Result<Vec<String>, NetnsError> {
    let off = check();
    for name in NAMES {
        if read(name).is_some_and(|value| value != "1") {
            write(name, "1")?;
        }
    }
    Ok(off)
}

/// Those that are off.
pub(super) fn check() -> Vec<String> {
    let off = NAMES.iter().filter(|name| read(name).is_some_and(|value| value != "1"));
    off.map(|name| format!("net.{} is off", name.replace('/', "."))).collect()
}

/// None where the kernel has no such switch: without IPv6 there is nothing to switch.
fn read(name: &str) -> Option<String> {
    Some(fs::read_to_string(path(name)).ok()?.trim().to_owned())
}

fn write(name: &'static str, value: &str) -> Result<(), NetnsError> {
    match fs::write(path(name), value) {
        Err(error) if error.kind() != io::ErrorKind::NotFound || name.starts_with("ipv4") => {
            Err(NetnsError::Sysctl(name, error))
        }
        _ => Ok(()),
    }
}

fn path(name: &str) -> PathBuf {
    Path::new(SWITCHES).join("net").join(name)
}
