use std::os::unix::fs::symlink;

use super::*;

const POD: &str = "0a1b2c3d-0000-4000-8000-000000000001";
const OTHER: &str = "0a1b2c3d-0000-4000-8000-000000000002";

/// A `/proc` made of files. A namespace is a file, and its number is the file's.
struct Machine(PathBuf);

impl Machine {
    fn new(name: &str) -> Self {
        let machine = Self(std::env::temp_dir().join(format!("loam-processes-{name}-{}", std::process::id())));
        let _ = fs::remove_dir_all(&machine.0);
        machine.process(1, "0::/init.scope", 1, "node");
        machine.process(7, "0::/system.slice/agent.service", 50, "node");
        symlink("7", machine.proc().join("self")).unwrap();
        machine
    }

    fn proc(&self) -> PathBuf {
        self.0.join("proc")
    }

    fn process(&self, pid: u32, cgroup: &str, started: u64, netns: &str) {
        let dir = self.proc().join(pid.to_string());
        for part in ["ns", "root/etc"] {
            fs::create_dir_all(dir.join(part)).unwrap();
        }
        let namespace = self.0.join(netns);
        if !namespace.exists() {
            fs::write(&namespace, "").unwrap();
        }
        symlink(&namespace, dir.join("ns/net")).unwrap();
        fs::write(dir.join("cgroup"), cgroup).unwrap();
        let fields = "0 ".repeat(18);
        fs::write(dir.join("stat"), format!("{pid} (a) b) S {fields}{started} 0 0\n")).unwrap();
    }

    fn of_pod(&self, pid: u32, started: u64, netns: &str) {
        self.process(pid, &format!("0::/../../pod{POD}/c\n"), started, netns);
    }

    fn find(&self) -> BTreeMap<Uid, Result<Found, HiddenError>> {
        Processes::new(self.proc()).find(&[POD.to_owned()].into())
    }

    /// The path of the pod's namespace below the machine's directory.
    fn netns(&self) -> Option<String> {
        let found = self.find().remove(POD)?.unwrap();
        Some(found.netns.strip_prefix(&self.0).unwrap().display().to_string())
    }

    fn resolv_conf(&self) -> io::Result<Option<String>> {
        self.find().remove(POD).unwrap().unwrap().resolv_conf()
    }

    fn file(&self, pid: u32) -> PathBuf {
        self.proc().join(format!("{pid}/root/etc/resolv.conf"))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_pod_is_where_its_oldest_process_is() {
    let machine = Machine::new("oldest");
    assert_eq!(machine.netns(), None);
    machine.process(40, &format!("0::/kubepods/pod{OTHER}/c"), 200, "other");
    machine.of_pod(50, 400, "inner");
    machine.of_pod(60, 300, "pods");
    assert_eq!(machine.netns().as_deref(), Some("proc/60/ns/net"));
    assert_eq!(machine.find().len(), 1);
}

#[test]
fn a_process_that_went_to_the_nodes_network_does_not_take_the_pod_there() {
    let machine = Machine::new("node");
    machine.of_pod(50, 300, "node");
    assert_eq!(machine.netns(), None);
    machine.of_pod(60, 400, "pods");
    assert_eq!(machine.netns().as_deref(), Some("proc/60/ns/net"));
}

#[test]
fn where_the_runtime_mounted_the_namespace_counts_for_more_than_a_process_that_may_end() {
    let machine = Machine::new("mounted");
    machine.of_pod(60, 300, "pods");
    let inode = fs::metadata(machine.0.join("pods")).unwrap().ino();
    let mounted = machine.proc().join("1/root/run/netns");
    fs::create_dir_all(&mounted).unwrap();
    let mountinfo = format!(
        "21 1 0:19 / /proc rw,nosuid shared:5 - proc proc rw\n\
         90 30 0:4 net:[{}] /run/netns/cni-other rw shared:9 - nsfs nsfs rw\n\
         91 30 0:4 net:[{inode}] /run/netns/cni-a rw shared:9 - nsfs nsfs rw\n",
        inode + 1
    );
    fs::write(machine.proc().join("1/mountinfo"), mountinfo).unwrap();
    // What is there is something else.
    fs::write(mounted.join("cni-a"), "").unwrap();
    assert_eq!(machine.netns().as_deref(), Some("proc/60/ns/net"));
    fs::remove_file(mounted.join("cni-a")).unwrap();
    fs::hard_link(machine.0.join("pods"), mounted.join("cni-a")).unwrap();
    assert_eq!(machine.netns().as_deref(), Some("proc/1/root/run/netns/cni-a"));
    assert_eq!(Processes::new(machine.proc()).mounted_at(inode), Some(mounted.join("cni-a")));
    assert_eq!(Processes::new(machine.proc()).mounted_at(inode + 1), None);
}

#[test]
fn what_the_pods_resolv_conf_says_is_read_once_it_is_there() {
    let machine = Machine::new("resolv");
    machine.of_pod(60, 300, "pods");
    assert_eq!(machine.resolv_conf().unwrap(), None);
    fs::write(machine.file(60), "nameserver 10.0.0.10\n").unwrap();
    assert_eq!(machine.resolv_conf().unwrap().as_deref(), Some("nameserver 10.0.0.10\n"));
    fs::write(machine.file(60), "x".repeat(1 << 20)).unwrap();
    assert_eq!(machine.resolv_conf().unwrap().unwrap().len() as u64, MAX_RESOLV_CONF_BYTES);
}

#[test]
fn a_resolv_conf_leads_nowhere_outside_the_pod_and_to_nothing_but_a_file() {
    let machine = Machine::new("hostile");
    machine.of_pod(60, 300, "pods");
    let (file, secret) = (machine.file(60), machine.0.join("secret"));
    fs::write(&secret, "secret").unwrap();
    let link = |to: &Path| {
        let _ = fs::remove_file(&file);
        symlink(to, &file).unwrap();
    };
    link(&secret);
    assert_eq!(machine.resolv_conf().unwrap(), None, "an absolute link stays within");
    link(Path::new("../../../../secret"));
    assert_eq!(machine.resolv_conf().unwrap(), None, "a relative one, too");
    link(Path::new("/run/names.conf"));
    fs::create_dir_all(machine.proc().join("60/root/run")).unwrap();
    fs::write(machine.proc().join("60/root/run/names.conf"), "nameserver 10.0.0.10\n").unwrap();
    assert!(machine.resolv_conf().unwrap().is_some(), "within the pod links are followed");
    link(&file);
    assert!(machine.resolv_conf().unwrap().is_none(), "there is no such directory in the pod");
    link(Path::new("resolv.conf"));
    assert!(machine.resolv_conf().is_err(), "a circle");
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    assert_eq!(machine.resolv_conf().unwrap_err().to_string(), "it is not a file");
    fs::remove_dir(&file).unwrap();
    // Opening a pipe to read it would wait for somebody who writes.
    let made = rustix::fs::mknodat(rustix::fs::CWD, &file, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0);
    made.unwrap();
    assert_eq!(machine.resolv_conf().unwrap_err().to_string(), "it is not a file");
}

#[test]
fn a_namespace_that_may_not_be_opened_is_told() {
    let machine = Machine::new("hidden");
    machine.of_pod(60, 300, "pods");
    let link = machine.proc().join("60/ns/net");
    fs::remove_file(&link).unwrap();
    symlink("net", &link).unwrap();
    let error = machine.find().remove(POD).unwrap().unwrap_err().to_string();
    assert!(error.contains("process 60") && error.contains("SYS_PTRACE"), "{error}");
}
