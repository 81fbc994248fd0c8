//! The first process of a Kubernetes node: it gives itself a root directory of its own, starts the node's services,
//! starts them again when they end, and reaps. It is killed, never asked to go: so ends a machine whose power fails.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use loam_tests::cluster::{Boot, Step};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_change, mount_remount, unmount,
};
use rustix::process::{WaitOptions, pivot_root, wait};

/// Between two looks at whether something is there yet.
const PAUSE: Duration = Duration::from_millis(50);
/// Before a service that ended is started again, so that one that cannot run does not keep the machine busy.
const RESTART: Duration = Duration::from_secs(1);
/// Search path on the node.
const SEARCH_PATH: &str = "/kubernetes:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Never returns unless it fails.
pub(crate) fn run(boot: &Path) -> Result<()> {
    let boot: Boot = serde_json::from_slice(&fs::read(boot)?).context("read the boot file")?;
    let root = boot.dir.join("root");
    fs::create_dir_all(&root)?;
    build_root(&boot, &root).context("build the root directory")?;
    change_root(&root).context("change to the root directory")?;
    fs::write("/proc/sys/kernel/hostname", &boot.name)?;
    let mut services = Vec::new();
    for step in boot.steps {
        match step {
            Step::Serve { name, argv } => {
                let pid = serve(&name, &argv)?;
                services.push((pid, name, argv));
            }
            Step::Await(path) => {
                while !path.exists() {
                    std::thread::sleep(PAUSE);
                }
            }
            Step::Import(dir) => import(&dir)?,
        }
    }
    loop {
        let Ok(Some((pid, _))) = wait(WaitOptions::empty()) else { continue };
        let pid = pid.as_raw_nonzero().get();
        if let Some((running, name, argv)) = services.iter_mut().find(|(running, ..)| *running == pid) {
            std::thread::sleep(RESTART);
            *running = serve(name, argv)?;
        }
    }
}

/// A file system of a type of its own.
fn make(kind: &str, target: &Path, data: &str) -> Result<()> {
    fs::create_dir_all(target).with_context(|| format!("make {}", target.display()))?;
    let data = std::ffi::CString::new(data)?;
    mount(kind, target, kind, MountFlags::empty(), Some(data.as_c_str()))
        .with_context(|| format!("mount {kind} at {}", target.display()))
}

/// A directory of the machine, or one of the node's.
fn bind(source: &Path, target: &Path) -> Result<()> {
    fs::create_dir_all(target).with_context(|| format!("make {}", target.display()))?;
    mount_bind(source, target).with_context(|| format!("show {} at {}", source.display(), target.display()))
}

fn bind_read_only(source: &Path, target: &Path) -> Result<()> {
    bind(source, target)?;
    mount_remount(target, MountFlags::BIND | MountFlags::RDONLY, "")
        .with_context(|| format!("make {} read-only", target.display()))
}

fn build_root(boot: &Boot, root: &Path) -> Result<()> {
    make("tmpfs", root, "mode=755")?;
    bind_read_only(Path::new("/usr"), &root.join("usr"))?;
    for name in ["bin", "sbin", "lib", "lib32", "lib64", "libx32"] {
        let path = Path::new("/").join(name);
        match fs::read_link(&path) {
            Ok(target) => symlink(target, root.join(name))?,
            Err(_) if path.is_dir() => bind_read_only(&path, &root.join(name))?,
            Err(_) => {}
        }
    }
    for (source, target) in &boot.shown {
        bind_read_only(source, &root.join(target.trim_start_matches('/')))?;
    }
    let (upper, lower) = (boot.dir.join("etc"), boot.dir.join("etc-work"));
    make(
        "overlay",
        &root.join("etc"),
        &format!("lowerdir=/etc,upperdir={},workdir={}", upper.display(), lower.display()),
    )?;
    for name in ["var", "opt"] {
        bind(&boot.dir.join(name), &root.join(name))?;
    }
    for name in ["root", "home", "mnt", "srv"] {
        fs::create_dir_all(root.join(name))?;
    }
    make("tmpfs", &root.join("tmp"), "mode=1777")?;
    make("tmpfs", &root.join("run"), "mode=755")?;
    for name in ["lock", "netns"] {
        fs::create_dir(root.join("run").join(name))?;
    }
    bind(Path::new("/dev"), &root.join("dev"))?;
    make("tmpfs", &root.join("dev/shm"), "mode=1777")?;
    make("devpts", &root.join("dev/pts"), "newinstance,mode=620,ptmxmode=666")?;
    make("proc", &root.join("proc"), "")?;
    for (index, (name, value)) in boot.parameters.iter().enumerate() {
        let file = boot.dir.join("parameters").join(index.to_string());
        fs::write(&file, format!("{value}\n"))?;
        let target = root.join("proc/sys").join(name);
        mount_bind(&file, &target).with_context(|| format!("cover {}", target.display()))?;
    }
    make("sysfs", &root.join("sys"), "")?;
    cgroups(boot, &root.join("sys/fs/cgroup"))?;
    make("bpf", &root.join("sys/fs/bpf"), "mode=700")?;
    // Not every kernel has them, and nothing here needs them.
    for (kind, target) in [("tracefs", "sys/kernel/tracing"), ("securityfs", "sys/kernel/security")] {
        let _ = mount(kind, root.join(target), kind, MountFlags::empty(), None);
    }
    Ok(())
}

/// The node's own groups, as the machine has its: v2 alone, or v2 beside the hierarchies of v1.
fn cgroups(boot: &Boot, target: &Path) -> Result<()> {
    if boot.legacy.is_empty() {
        return make("cgroup2", target, "");
    }
    make("tmpfs", target, "mode=755")?;
    make("cgroup2", &target.join("unified"), "")?;
    for (name, options) in &boot.legacy {
        make("cgroup", &target.join(name), options)?;
        for part in options.split(',').filter(|part| *part != name && !part.contains("name=") && *part != "none") {
            symlink(name, target.join(part))?;
        }
    }
    Ok(())
}

/// Makes `root` the root directory; what the machine had mounted is gone for us, not only covered: whoever looks for
/// cgroup2 in the table of mounts must find the node's.
fn change_root(root: &Path) -> Result<()> {
    std::env::set_current_dir(root)?;
    pivot_root(".", ".").context("pivot_root")?;
    unmount(".", UnmountFlags::DETACH).context("let go of the machine's root directory")?;
    std::env::set_current_dir("/")?;
    // Volumes and network namespaces made later must reach the pods that ask for it.
    mount_change("/", MountPropagationFlags::SHARED | MountPropagationFlags::REC).context("share mounts")?;
    Ok(())
}

/// Starts a service in cgroups of its own: probes are told from other connections by the cgroup of the kubelet.
fn serve(name: &str, argv: &[String]) -> Result<i32> {
    let log = File::options().create(true).append(true).open(format!("/var/log/{name}.log"))?;
    let mut command = Command::new("/proc/self/exe");
    command.arg("exec");
    for group in hierarchies() {
        let group = group.join(name);
        fs::create_dir_all(&group).with_context(|| format!("make the cgroup {}", group.display()))?;
        command.arg("--cgroup").arg(group);
    }
    let child = command
        .arg("--")
        .args(argv)
        .env_clear()
        .env("PATH", SEARCH_PATH)
        .env("HOME", "/root")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .process_group(0)
        .spawn()
        .with_context(|| format!("start {name}"))?;
    Ok(i32::try_from(child.id())?)
}

/// Where the node's hierarchies are mounted.
fn hierarchies() -> Vec<PathBuf> {
    let top = PathBuf::from("/sys/fs/cgroup");
    if top.join("cgroup.procs").exists() {
        return vec![top];
    }
    let entries = fs::read_dir(top).into_iter().flatten().flatten();
    entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()).collect()
}

/// Gives the images of a directory to containerd.
fn import(dir: &Path) -> Result<()> {
    let mut images: Vec<_> = fs::read_dir(dir)?.flatten().map(|e| e.path()).collect();
    images.sort();
    for image in images {
        let imported = Command::new("ctr")
            .args(["--namespace", "k8s.io", "images", "import"])
            .arg(&image)
            .env("PATH", SEARCH_PATH)
            .output()
            .context("start ctr")?;
        if !imported.status.success() {
            bail!("import {}: {}", image.display(), String::from_utf8_lossy(&imported.stderr).trim());
        }
    }
    Ok(())
}
