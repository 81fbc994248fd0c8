//! Where the kubelet of this node is: the cgroup by which its probes are told from what others dial.

use std::fs;
use std::path::{Component, Path, PathBuf};

/// What the kubelet's process is called.
const COMMAND: &str = "kubelet";

/// Why the kubelet's cgroup is not known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KubeletError {
    /// Perhaps it is part of another program, as in k3s, or processes of the node cannot be seen from here.
    #[error(
        "no process of this node is called {COMMAND}: run the agent with the node's processes in sight (hostPID), or \
         name the kubelet's cgroup with --kubelet-cgroup"
    )]
    NotRunning,
    /// It would not be known which one probes.
    #[error("processes {0} and {1} are both called {COMMAND}: name the kubelet's cgroup with --kubelet-cgroup")]
    Several(u32, u32),
    /// The mount does not show the whole hierarchy, or shows another one.
    #[error(
        "the kubelet (process {pid}) is in cgroup {cgroup}, which is not below {root}: mount the node's cgroup file \
         system there, or name the kubelet's cgroup with --kubelet-cgroup"
    )]
    NotFound {
        /// The kubelet.
        pid: u32,
        /// Its cgroup, as the kernel spells it for us.
        cgroup: String,
        /// Where it was looked for.
        root: PathBuf,
    },
}

/// Finds the kubelet's cgroup below `root`, where cgroup v2 is mounted, by the process's name in `proc`.
pub fn cgroup(proc: &Path, root: &Path) -> Result<PathBuf, KubeletError> {
    let pid = pid(proc)?;
    let spelled = fs::read_to_string(proc.join(pid.to_string()).join("cgroup")).unwrap_or_default();
    let unified = spelled.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or_default();
    let path = root.join(below(unified));
    // What the kernel spells may start at another place than the mount: the members have the last word.
    let members = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
    match members.lines().any(|member| member.parse() == Ok(pid)) {
        true => Ok(path),
        false => Err(KubeletError::NotFound { pid, cgroup: unified.to_owned(), root: root.into() }),
    }
}

/// The part of a cgroup's path below the root of all. Seen from a cgroup namespace, others begin with as many `..` as it
/// is deep.
fn below(cgroup: &str) -> PathBuf {
    let named = Path::new(cgroup).components().filter(|part| matches!(part, Component::Normal(_)));
    named.collect()
}

fn pid(proc: &Path) -> Result<u32, KubeletError> {
    let entries = fs::read_dir(proc).into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let is_kubelet = |pid: &u32| {
        fs::read_to_string(proc.join(pid.to_string()).join("comm")).is_ok_and(|command| command.trim_end() == COMMAND)
    };
    let mut found = pids.filter(is_kubelet);
    match (found.next(), found.next()) {
        (None, _) => Err(KubeletError::NotRunning),
        (Some(pid), None) => Ok(pid),
        (Some(one), Some(other)) => Err(KubeletError::Several(one.min(other), one.max(other))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A `/proc` and a cgroup mount, made of files.
    struct Machine(PathBuf);

    impl Machine {
        fn new(name: &str) -> Self {
            Self(std::env::temp_dir().join(format!("loam-kubelet-{name}-{}", std::process::id())))
        }

        fn process(&self, pid: u32, command: &str, cgroup: &str) {
            let dir = self.0.join("proc").join(pid.to_string());
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("comm"), format!("{command}\n")).unwrap();
            fs::write(dir.join("cgroup"), format!("1:name=systemd:/x\n0::{cgroup}\n")).unwrap();
        }

        fn cgroup(&self, path: &str, members: &str) {
            let dir = self.0.join("cgroup").join(path);
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("cgroup.procs"), members).unwrap();
        }

        fn find(&self) -> Result<PathBuf, KubeletError> {
            let found = cgroup(&self.0.join("proc"), &self.0.join("cgroup"))?;
            Ok(found.strip_prefix(self.0.join("cgroup")).unwrap().to_owned())
        }
    }

    impl Drop for Machine {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn the_kubelet_is_found_by_its_name_from_inside_and_outside_of_a_cgroup_namespace() {
        for spelled in ["/system.slice/kubelet.service", "/../../../system.slice/kubelet.service"] {
            let machine = Machine::new("found");
            machine.process(1, "systemd", "/init.scope");
            machine.process(42, "kubelet", spelled);
            machine.cgroup("system.slice/kubelet.service", "41\n42\n");
            assert_eq!(machine.find(), Ok("system.slice/kubelet.service".into()), "{spelled}");
        }
    }

    #[test]
    fn a_kubelet_that_cannot_be_told_apart_or_found_is_explained() {
        let machine = Machine::new("lost");
        machine.process(1, "systemd", "/init.scope");
        assert_eq!(machine.find(), Err(KubeletError::NotRunning));
        machine.process(42, "kubelet", "/kubelet.service");
        // The mount shows a cgroup of that name, and another process in it.
        machine.cgroup("kubelet.service", "7\n");
        let error = machine.find().unwrap_err().to_string();
        assert!(error.contains("/kubelet.service") && error.contains("--kubelet-cgroup"), "{error}");
        machine.process(43, "kubelet", "/kubelet.service");
        assert_eq!(machine.find(), Err(KubeletError::Several(42, 43)));
    }
}
