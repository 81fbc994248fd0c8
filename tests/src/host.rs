//! What this machine offers, and what it lacks for a lab.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::cgroup;

/// Oldest kernel with everything the redirect needs (`bpf_set_retval`).
pub const MIN_KERNEL: (u32, u32) = (5, 18);

/// Set where the kernel itself is what is tested: then its version is no reason not to try.
pub const ANY_KERNEL: &str = "LOAM_ANY_KERNEL";

/// Whether we are root.
pub fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|m| m.uid() == 0)
}

/// Whether the kernel has IPv6 switched on.
pub fn has_ipv6() -> bool {
    Path::new("/proc/net/if_inet6").exists()
}

/// What the kernel lacks, one sentence each; empty when a lab can run.
pub fn missing_from_kernel() -> Vec<String> {
    let mut missing = Vec::new();
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    match kernel_version(&release) {
        Some(version) if version >= MIN_KERNEL => {}
        _ if std::env::var_os(ANY_KERNEL).is_some() => {}
        _ => missing.push(format!("Linux {}.{} or newer (this is {})", MIN_KERNEL.0, MIN_KERNEL.1, release.trim())),
    }
    let filesystems = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if !filesystems.lines().any(|l| l.split_whitespace().last() == Some("bpf")) {
        missing.push("a kernel with BPF and its file system (CONFIG_BPF_SYSCALL)".into());
    }
    if cgroup::mount().is_err() {
        missing.push("a mounted cgroup v2 hierarchy (mount -t cgroup2 none /sys/fs/cgroup)".into());
    }
    missing
}

/// The first two numbers of a kernel's release.
pub fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// The program `name` on the search path.
pub fn finds_program(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Administration tools are not on the path of an ordinary user everywhere.
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|dir| fs::metadata(dir.join(name)).is_ok_and(|m| m.is_file() && m.mode() & 0o111 != 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_versions_are_read_from_any_release_string() {
        assert_eq!(kernel_version("6.1.0-18-amd64"), Some((6, 1)));
        assert_eq!(kernel_version("5.15\n"), Some((5, 15)));
        assert_eq!(kernel_version("strange"), None);
    }
}
