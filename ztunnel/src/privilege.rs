//! The ztunnel reads every hostile byte of a node, so it holds no power over it: one unprivileged uid, no groups, no
//! capability in any set, and no way to gain one back.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::process::{DumpableBehavior, Gid, Resource, Rlimit, Uid, getrlimit, set_dumpable_behavior, setrlimit};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs, set_thread_groups, set_thread_res_gid,
    set_thread_res_uid,
};

/// Highest capability number a kernel may know; the kernel's own list ends sooner and says so with EINVAL.
const MAX_CAPABILITIES: u32 = 64;

/// Returns once this process has no privilege: at once when it was started that way, else as a fresh image of the
/// same program, since credentials belong to threads and a thread started earlier would keep the old ones.
pub fn shed(uid: u32, gid: u32) -> io::Result<()> {
    raise_descriptor_limit()?;
    if is_unprivileged()? {
        set_no_new_privs(true)?;
        // Keys live in this memory: no core dumps, no ptrace by other processes of the uid.
        set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
        return Ok(());
    }
    for number in 0..MAX_CAPABILITIES {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        match capability_is_in_bounding_set(capability) {
            Ok(true) => remove_capability_from_bounding_set(capability)?,
            Ok(false) => {}
            Err(rustix::io::Errno::INVAL) => break,
            Err(error) => return Err(error.into()),
        }
    }
    clear_ambient_capability_set()?;
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    set_thread_groups(&[])?;
    set_thread_res_gid(gid, gid, gid)?;
    set_thread_res_uid(uid, uid, uid)?;
    let none = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })?;
    set_no_new_privs(true)?;
    Err(Command::new("/proc/self/exe").args(std::env::args_os().skip(1)).exec())
}

/// Whether nothing is left to shed.
fn is_unprivileged() -> io::Result<bool> {
    let sets = capabilities(None)?;
    Ok(!rustix::process::geteuid().is_root()
        && (sets.effective | sets.permitted | sets.inheritable).is_empty()
        && !capability_is_in_bounding_set(CapabilitySet::SYS_ADMIN)?)
}

/// A connection takes two descriptors per hop; the default soft limit of 1,024 would end a node at 500 connections.
fn raise_descriptor_limit() -> io::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })?;
    Ok(())
}
