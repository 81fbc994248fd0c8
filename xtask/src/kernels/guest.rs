//! What is in a guest: a kernel with the modules that the lab needs, and an archive with the programs.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use loam_tests::bin;

use super::Test;
use super::archive::Apt;
use crate::images::layer::Layer;
use crate::images::{libraries, strip};

/// The first process.
const INIT: &str = include_str!("init.sh");

/// What lab, tests and `init.sh` call.
const TOOLS: [&str; 11] =
    ["sh", "mount", "mkdir", "cat", "uname", "ip", "ss", "unshare", "nsenter", "insmod", "getent"];

/// What the lab needs and distributions have as modules; what is built in is fine as well.
const MODULES: [&str; 6] = ["veth", "bridge", "inet_diag", "tcp_diag", "udp_diag", "af_packet_diag"];

/// The archive that every guest gets: programs with their libraries, tools, and which tests are to run.
pub(super) fn programs(programs: &[(String, PathBuf)], tests: &[Test]) -> Result<Vec<u8>> {
    let mut files = Layer::default();
    for directory in ["proc", "sys", "dev", "run", "tmp", "etc"] {
        files.directory(directory, 0o755);
    }
    let stripped = std::env::temp_dir().join(format!("loam-kernels-{}", std::process::id()));
    for (name, path) in programs {
        strip(path, &stripped)?;
        // Test programs look for the others one directory above their own.
        let is_ours = bin::PACKAGES.contains(&name.as_str());
        let to = if is_ours { format!("loam/{name}") } else { format!("loam/deps/{name}") };
        files.program(&to, &stripped)?;
        add_libraries(&mut files, path)?;
    }
    fs::remove_file(&stripped)?;
    for tool in TOOLS {
        let path = find(tool)?;
        files.program(&format!("bin/{tool}"), &path)?;
        add_libraries(&mut files, &path)?;
    }
    files.file("init", INIT, 0o755);
    let list: String = tests.iter().map(|test| format!("{} {}\n", test.program, test.name)).collect();
    files.file("tests", list, 0o644);
    Ok(cpio(&files))
}

fn add_libraries(files: &mut Layer, program: &Path) -> Result<()> {
    for library in libraries::of(program)? {
        files.program(&library.display().to_string(), &library)?;
    }
    Ok(())
}

/// The program `name` on this machine.
fn find(name: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    let found = dirs.map(|dir| dir.join(name)).find(|path| path.is_file());
    Ok(found.with_context(|| format!("there is no {name} on this machine"))?.canonicalize()?)
}

/// A kernel on disk.
#[derive(Debug)]
pub(super) struct Kernel {
    dir: PathBuf,
}

impl Kernel {
    pub(super) fn at(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// The kernel itself.
    pub(super) fn image(&self) -> PathBuf {
        self.dir.join("vmlinuz")
    }

    /// The archive with its modules.
    pub(super) fn modules(&self) -> PathBuf {
        self.dir.join("modules.cpio")
    }

    /// Whether both were fetched before.
    pub(super) fn is_there(&self) -> bool {
        self.image().exists() && self.modules().exists()
    }

    /// Takes both out of the kernel's packages.
    pub(super) fn fetch(&self, apt: &Apt, package: &str, release: &str) -> Result<()> {
        let whole = self.dir.join("whole");
        apt.extract(&apt.parts(package, release)?, &whole)?;
        // Newer packages have all of it below usr.
        let base = [whole.clone(), whole.join("usr")].into_iter().find(|base| base.join("lib/modules").is_dir());
        let base = base.with_context(|| format!("{package} has no modules"))?;
        let modules = base.join("lib/modules").join(release);
        let images = [whole.join("boot").join(format!("vmlinuz-{release}")), modules.join("vmlinuz")];
        let image = images.iter().find(|path| path.is_file()).with_context(|| format!("{package} has no kernel"))?;
        let depmod = Command::new("/sbin/depmod").arg("--basedir").arg(&base).arg(release).output();
        let depmod = depmod.context("start depmod")?;
        ensure!(depmod.status.success(), "depmod: {}", String::from_utf8_lossy(&depmod.stderr).trim());
        let read = |name: &str| fs::read_to_string(modules.join(name)).with_context(|| format!("read {name}"));
        let mut files = Layer::default();
        let mut list = String::new();
        for path in in_order(&read("modules.dep")?, &read("modules.builtin")?)? {
            let to = format!("modules/{}", path.rsplit('/').next().unwrap_or(&path));
            files.file(&to, fs::read(modules.join(&path)).with_context(|| format!("read {path}"))?, 0o644);
            list.push_str(&format!("/{to}\n"));
        }
        files.file("modules/list", list, 0o644);
        fs::write(self.modules(), cpio(&files))?;
        fs::copy(image, self.image())?;
        fs::remove_dir_all(&whole).map_err(Into::into)
    }
}

/// The files of the modules that are needed, each after those that it needs itself.
fn in_order(dependencies: &str, builtin: &str) -> Result<Vec<String>> {
    let is = |path: &str, module: &str| {
        let file = path.rsplit('/').next().unwrap_or(path);
        file.split('.').next().is_some_and(|stem| stem.replace('-', "_") == module)
    };
    let mut order: Vec<String> = Vec::new();
    let mut seen = BTreeSet::new();
    for module in MODULES {
        let line = dependencies.lines().filter_map(|line| line.split_once(':')).find(|(path, _)| is(path, module));
        match line {
            // What comes last in the line is needed first.
            Some((path, needed)) => {
                for path in needed.split_whitespace().rev().chain([path]) {
                    if seen.insert(path) {
                        order.push(path.to_owned());
                    }
                }
            }
            None if builtin.lines().any(|path| is(path, module)) => {}
            None => bail!("the kernel was built without {module}"),
        }
    }
    Ok(order)
}

/// An archive as the kernel unpacks it at its start ("newc", Documentation/driver-api/early-userspace/buffer-format).
fn cpio(files: &Layer) -> Vec<u8> {
    const DIRECTORY: u32 = 0o040_000;
    const REGULAR: u32 = 0o100_000;
    let mut bytes = Vec::new();
    for (number, (path, contents, mode)) in files.entries().enumerate() {
        let kind = if contents.is_some() { REGULAR } else { DIRECTORY };
        entry(&mut bytes, number as u32 + 1, path, contents.unwrap_or_default(), kind | mode);
    }
    entry(&mut bytes, 0, "TRAILER!!!", &[], 0);
    bytes
}

fn entry(bytes: &mut Vec<u8>, inode: u32, name: &str, contents: &[u8], mode: u32) {
    let (size, name_size) = (contents.len() as u32, name.len() as u32 + 1);
    // Inode, mode, user, group, links, time, size, two devices of two numbers each, length of the name, checksum.
    let fields = [inode, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
    bytes.extend(b"070701");
    bytes.extend(fields.iter().flat_map(|field| format!("{field:08x}").into_bytes()));
    bytes.extend(name.as_bytes());
    bytes.push(0);
    pad(bytes);
    bytes.extend(contents);
    pad(bytes);
}

/// Names and contents end at multiples of four.
fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_come_after_what_they_need_and_once() {
        let dependencies = "kernel/net/802/stp.ko: kernel/net/llc/llc.ko\nkernel/net/llc/llc.ko:\n\
                            kernel/net/bridge/bridge.ko.xz: kernel/net/802/stp.ko kernel/net/llc/llc.ko\n\
                            kernel/drivers/net/veth.ko:\nkernel/net/ipv4/inet_diag.ko:\n\
                            kernel/net/ipv4/tcp_diag.ko: kernel/net/ipv4/inet_diag.ko\n\
                            kernel/net/ipv4/udp_diag.ko: kernel/net/ipv4/inet_diag.ko\n";
        let order = in_order(dependencies, "kernel/net/packet/af_packet_diag.ko\n").unwrap();
        let names: Vec<_> = order.iter().map(|path| path.rsplit('/').next().unwrap_or_default()).collect();
        let expected = ["veth.ko", "llc.ko", "stp.ko", "bridge.ko.xz", "inet_diag.ko", "tcp_diag.ko", "udp_diag.ko"];
        assert_eq!(names, expected);
        let error = in_order(dependencies, "").unwrap_err().to_string();
        assert_eq!(error, "the kernel was built without af_packet_diag");
    }

    #[test]
    fn an_archive_begins_and_ends_as_the_kernel_expects_it() {
        let mut files = Layer::default();
        files.file("bin/sh", "#!", 0o755);
        let bytes = cpio(&files);
        assert!(bytes.starts_with(b"07070100000001000041ed"), "a directory comes before what is in it");
        assert!(bytes.len().is_multiple_of(4));
        let text = String::from_utf8_lossy(&bytes);
        assert!(text.contains("bin/sh\0\0\0\0#!\0\0\x30\x370701"), "{text}");
        assert!(text.trim_end_matches('\0').ends_with("TRAILER!!!"));
    }
}
