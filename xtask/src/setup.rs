//! What demo and tests need of the system.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};
use loam_tests::{cluster, host};

use crate::term::Term;
use crate::{Unavailable, succeed};

/// A thing we need, how we look for it, and the Debian package that has it.
struct Need {
    what: &'static str,
    found: fn() -> bool,
    package: &'static str,
}

const NEEDS: [Need; 6] = [
    Need { what: "a C compiler (cc)", found: || host::finds_program("cc"), package: "gcc" },
    Need {
        what: "the C library's headers",
        found: || Path::new("/usr/include/stdio.h").exists(),
        package: "libc6-dev",
    },
    Need { what: "make", found: || host::finds_program("make"), package: "make" },
    Need {
        what: "ip and ss (iproute2)",
        found: || host::finds_program("ip") && host::finds_program("ss"),
        package: "iproute2",
    },
    Need {
        what: "unshare and nsenter (util-linux)",
        found: || host::finds_program("unshare") && host::finds_program("nsenter"),
        package: "util-linux",
    },
    Need { what: "mount", found: || host::finds_program("mount"), package: "mount" },
];

/// What makes the load of `bench`; nothing else needs it.
const LOAD_NEEDS: [Need; 2] = [
    Need { what: "iperf3", found: || host::finds_program("iperf3"), package: "iperf3" },
    Need { what: "wrk", found: || host::finds_program("wrk"), package: "wrk" },
];

/// What brings connections to a ztunnel that does not do so itself; only `bench` with Istio's needs it.
const NAT_NEEDS: [Need; 1] = [Need { what: "nft", found: || host::finds_program("nft"), package: "nftables" }];

/// What a Kubernetes cluster takes from the system; the rest is built.
const CLUSTER_NEEDS: [Need; 7] = [
    Need {
        what: "containerd and ctr",
        found: || host::finds_program("containerd") && host::finds_program("ctr"),
        package: "containerd",
    },
    Need { what: "runc", found: || host::finds_program("runc"), package: "runc" },
    Need {
        what: "CNI plugins (ptp, host-local, portmap)",
        found: || cluster::cni_programs().is_ok(),
        package: "containernetworking-plugins",
    },
    Need { what: "nft", found: || host::finds_program("nft"), package: "nftables" },
    Need { what: "iptables", found: || host::finds_program("iptables"), package: "iptables" },
    Need { what: "conntrack", found: || host::finds_program("conntrack"), package: "conntrack" },
    Need { what: "strip (binutils)", found: || host::finds_program("strip"), package: "binutils" },
];

/// What starts kernels of distributions.
const KERNEL_NEEDS: [Need; 3] = [
    Need {
        what: "qemu-system-x86_64",
        found: || host::finds_program("qemu-system-x86_64"),
        package: "qemu-system-x86",
    },
    Need { what: "depmod and insmod (kmod)", found: || host::finds_program("depmod"), package: "kmod" },
    Need { what: "strip (binutils)", found: || host::finds_program("strip"), package: "binutils" },
];

/// The oldest Go that builds Kubernetes as `tests/cluster/go.mod` names it.
const MIN_GO: (u32, u32) = (1, 24);

fn missing(needs: &[Need]) -> Vec<&Need> {
    needs.iter().filter(|need| !(need.found)()).collect()
}

/// Makes sure that everything is there, installing what is missing where we may.
pub(crate) fn ensure() -> Result<()> {
    ensure_each(&NEEDS)
}

/// Makes sure that there is what makes load.
pub(crate) fn ensure_load() -> Result<()> {
    ensure_each(&LOAD_NEEDS)
}

/// Makes sure that there is what brings connections to Istio's ztunnel.
pub(crate) fn ensure_nft() -> Result<()> {
    ensure_each(&NAT_NEEDS)
}

/// Makes sure that we may and can start a Kubernetes cluster; `task` is how we were called.
pub(crate) fn ensure_cluster(task: &str) -> Result<()> {
    ensure_lab(task)?;
    ensure_each(&CLUSTER_NEEDS)
}

/// Makes sure that we can fetch kernels of distributions and start them.
pub(crate) fn ensure_kernels() -> Result<()> {
    if std::env::consts::ARCH != "x86_64" {
        bail!(Unavailable("The kernels are those for x86-64, and the programs in them are this machine's".into()));
    }
    if !(host::finds_program("apt-get") && host::finds_program("dpkg-deb")) {
        bail!(Unavailable("Kernels are fetched by apt: run this on Debian or Ubuntu".into()));
    }
    ensure()?;
    ensure_each(&KERNEL_NEEDS)
}

/// Makes sure that there is a Go that can build Kubernetes. Distributions have older ones.
pub(crate) fn ensure_go() -> Result<()> {
    let output = Command::new("go").args(["env", "GOVERSION"]).output();
    let said = output.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned()).unwrap_or_default();
    if go_version(&said).is_some_and(|found| found >= MIN_GO) {
        return Ok(());
    }
    let (major, minor) = MIN_GO;
    let found = if said.is_empty() { "there is none".to_owned() } else { format!("this is {said}") };
    bail!(Unavailable(format!(
        "Kubernetes is built with Go {major}.{minor} or newer ({found}). Install it and try again:\n  \
         https://go.dev/doc/install"
    )))
}

fn go_version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.strip_prefix("go")?.split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn ensure_each(needs: &[Need]) -> Result<()> {
    let missing = missing(needs);
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = missing.iter().map(|need| need.what).collect();
    let packages: Vec<_> = missing.iter().map(|need| need.package).collect();
    println!("missing: {}", names.join(", "));
    let install = format!("apt-get install -y --no-install-recommends {}", packages.join(" "));
    if !is_debian() {
        bail!(Unavailable(format!("Install them and try again. On Debian or Ubuntu: sudo {install}")));
    }
    if !host::is_root() {
        bail!(Unavailable(format!("Install them and try again:\n  sudo apt-get update && sudo {install}")));
    }
    println!("installing: {}", packages.join(" "));
    let apt = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        succeed(command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive"))
    };
    // Package lists may be old or absent; without a network the installed ones may still do.
    let _ = apt(&["update", "-qq"]);
    let mut arguments = vec!["install", "-y", "-qq", "--no-install-recommends"];
    arguments.extend(&packages);
    if apt(&arguments).is_err() || !self::missing(needs).is_empty() {
        bail!(Unavailable(format!("apt-get could not install them. Install them and try again:\n  {install}")));
    }
    Ok(())
}

/// Makes sure that we may and can make a lab; `task` is how we were called.
pub(crate) fn ensure_lab(task: &str) -> Result<()> {
    if !host::is_root() {
        bail!(Unavailable(format!(
            "This makes network namespaces and loads BPF programs, which needs root:\n  \
             sudo -E env \"PATH=$PATH\" cargo xtask {task}"
        )));
    }
    let missing = host::missing_from_kernel();
    if !missing.is_empty() {
        bail!(Unavailable(format!("This machine lacks:\n  {}", missing.join("\n  "))));
    }
    Ok(())
}

fn is_debian() -> bool {
    let text = fs::read_to_string("/etc/os-release").unwrap_or_default();
    host::finds_program("apt-get")
        && text.lines().any(|l| (l.starts_with("ID=") || l.starts_with("ID_LIKE=")) && l.contains("debian"))
        || text.lines().any(|l| l == "ID=ubuntu")
}

/// Checks everything and says so.
pub(crate) fn run() -> Result<()> {
    let term = Term::new();
    ensure()?;
    for need in &NEEDS {
        println!("  {} {}", term.good("✓"), need.what);
    }
    ensure_lab("demo")?;
    println!("  {} root, and a kernel that can", term.good("✓"));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_go_are_compared_as_numbers() {
        assert_eq!(go_version("go1.24.3"), Some((1, 24)));
        assert!(go_version("go1.9") < Some(MIN_GO) && go_version("go1.26.8") > Some(MIN_GO));
        assert_eq!(go_version("devel"), None);
    }
}
