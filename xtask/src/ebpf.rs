//! Builds the kernel programs into `ebpf/prebuilt`, byte for byte the same from any directory, and checks that what is
//! committed there is what the source gives.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio, exit};

use anyhow::{Context as _, Result, bail, ensure};

/// The compiler, its standard library's source and LLVM, as Debian packages them: one set that fits together, while
/// the compiler of the rest of the workspace has no source or another LLVM.
const PACKAGES: [&str; 4] = ["rustc-web", "rust-web-src", "cargo-web", "llvm-22-dev"];
const CARGO: &str = "/usr/bin/cargo";
const RUSTC: &str = "/usr/bin/rustc";
const LLVM: &str = "/usr/lib/llvm-22";
const LINKER: &str = "0.13.0";
const OBJECT: &str = "loam.o";
const SUM: &str = "loam.o.sha256";
/// Which tools made the committed object: others may make other bytes from the same source.
const TOOLS: &str = "loam.o.tools";
/// `EX_UNAVAILABLE` of sysexits.h: something that is needed is not installed.
const EXIT_UNAVAILABLE: i32 = 69;

/// Builds the object and its checksum into `ebpf/prebuilt`. With `check` compares them with what is there instead.
pub(crate) fn build(root: &Path, check: bool) -> Result<()> {
    let root = root.canonicalize().with_context(|| format!("find {}", root.display()))?;
    prepare()?;
    let target = target_dir(&root);
    let made = compile(&root, &target)?;
    let prebuilt = root.join("ebpf/prebuilt");
    let committed = prebuilt.join(OBJECT);
    let tools = tools()?;
    if !check {
        fs::create_dir_all(&prebuilt)?;
        fs::copy(&made, &committed).with_context(|| format!("write {}", committed.display()))?;
        fs::write(prebuilt.join(SUM), sum_line(&made)?)?;
        fs::write(prebuilt.join(TOOLS), &tools)?;
        return say(&format!("wrote {} ({} bytes)", committed.display(), fs::metadata(&committed)?.len()));
    }
    let (new, old) = (fs::read(&made)?, fs::read(&committed).with_context(|| format!("read {}", committed.display()))?);
    if new != old {
        let by = fs::read_to_string(prebuilt.join(TOOLS)).unwrap_or_default();
        let hint = match by == tools {
            true => "run `cargo xtask ebpf` and commit what it writes".to_owned(),
            false => format!("the committed one was made with\n{by}and this machine has\n{tools}"),
        };
        bail!(
            "{} ({} bytes) is not what the source gives ({} bytes): {hint}",
            committed.display(),
            old.len(),
            new.len()
        );
    }
    let sum = fs::read_to_string(prebuilt.join(SUM)).unwrap_or_default();
    ensure!(sum == sum_line(&made)?, "{SUM} is not the checksum of {OBJECT}: run `cargo xtask ebpf`");
    say(&format!("{} is what the source gives", committed.display()))
}

/// Where cargo puts what it builds: shared with the rest of the workspace, but in a directory of its own.
fn target_dir(root: &Path) -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => root.join(dir).join("ebpf"),
        None => root.join("target/ebpf"),
    }
}

fn compile(root: &Path, target: &Path) -> Result<PathBuf> {
    // The sources must be on disk before the flags are made, which name where they are.
    run(cargo(root, target)?.args(["fetch", "--locked"]))?;
    let flags = flags(root)?.join("\x1f");
    let mut build = cargo(root, target)?;
    build.env("CARGO_ENCODED_RUSTFLAGS", flags).args(["build", "--release", "--locked", "--quiet"]);
    run(&mut build)?;
    let linked = target.join("bpfel-unknown-none/release/loam");
    let stripped = target.join(OBJECT);
    // Takes DWARF away and leaves BTF, which the kernel needs.
    run(Command::new(format!("{LLVM}/bin/llvm-strip")).arg("-g").arg("-o").arg(&stripped).arg(&linked))?;
    Ok(stripped)
}

/// BTF with lines needs debug information; the remapped prefixes keep this machine's directories out of it.
fn flags(root: &Path) -> Result<Vec<String>> {
    let mut flags = vec!["-Cdebuginfo=2".into(), "-Clink-arg=--btf".into(), remap(root, ".")?];
    let sources = cargo_home()?.join("registry/src");
    for registry in fs::read_dir(&sources).with_context(|| format!("list {}", sources.display()))? {
        flags.push(remap(&registry?.path(), "/crates")?);
    }
    Ok(flags)
}

fn remap(from: &Path, to: &str) -> Result<String> {
    let from = from.to_str().with_context(|| format!("{} is not UTF-8", from.display()))?;
    Ok(format!("--remap-path-prefix={from}={to}"))
}

/// Where the source of the standard library is.
fn library() -> Result<PathBuf> {
    let sysroot = output(Command::new(RUSTC).args(["--print", "sysroot"]))?;
    Ok(Path::new(sysroot.trim()).join("lib/rustlib/src/rust"))
}

/// Cargo for the programs, with nothing in its environment that would change what comes out.
fn cargo(root: &Path, target: &Path) -> Result<Command> {
    let mut cargo = Command::new(CARGO);
    for (name, _) in std::env::vars_os() {
        let name_str = name.to_string_lossy();
        let changes = ["CARGO_PROFILE_", "CARGO_BUILD_", "CARGO_TARGET_", "CARGO_UNSTABLE_", "RUSTC", "RUSTFLAGS"];
        if changes.iter().any(|prefix| name_str.starts_with(prefix)) || name_str == "RUSTUP_TOOLCHAIN" {
            cargo.env_remove(&name);
        }
    }
    cargo.current_dir(root.join("ebpf/programs"));
    cargo.env("CARGO_TARGET_DIR", target).env("RUSTC", RUSTC).env("PATH", path()?);
    // core is built from source with a released compiler, which has to be asked twice.
    cargo.env("RUSTC_BOOTSTRAP", "1");
    Ok(cargo)
}

/// The search path, with the place where cargo installs the linker.
fn path() -> Result<OsString> {
    let before = std::env::var_os("PATH").unwrap_or_default();
    let dirs = [cargo_home()?.join("bin")].into_iter().chain(std::env::split_paths(&before));
    Ok(std::env::join_paths(dirs)?)
}

fn cargo_home() -> Result<PathBuf> {
    if let Some(home) = std::env::var_os("CARGO_HOME") {
        return Ok(home.into());
    }
    let home = std::env::var_os("HOME").context("neither CARGO_HOME nor HOME is set")?;
    Ok(Path::new(&home).join(".cargo"))
}

/// Installs what is missing, or says how and ends with status 69.
fn prepare() -> Result<()> {
    if !(has_packages() || is_root() && Path::new("/usr/bin/apt-get").exists() && install_packages()?) {
        unavailable(&format!("apt-get install --no-install-recommends {}", PACKAGES.join(" ")))?;
    }
    if !has_linker()? {
        let mut install = Command::new(CARGO);
        install.args(["install", "bpf-linker", "--version", LINKER, "--locked", "--force"]);
        install.args(["--no-default-features", "--features", "llvm-22"]);
        install.env("LLVM_PREFIX", LLVM).env("RUSTC", RUSTC).env_remove("CARGO_TARGET_DIR");
        install.env_remove("RUSTUP_TOOLCHAIN");
        say("the linker bpf-linker is missing: installing it takes a minute or two")?;
        if !install.status().is_ok_and(|status| status.success()) {
            unavailable(&format!(
                "LLVM_PREFIX={LLVM} RUSTC={RUSTC} {CARGO} install bpf-linker --version {LINKER} --locked --force \
                 --no-default-features --features llvm-22"
            ))?;
        }
    }
    Ok(())
}

fn has_packages() -> bool {
    let strip = format!("{LLVM}/bin/llvm-strip");
    let tools = [CARGO, RUSTC, strip.as_str()];
    tools.iter().all(|tool| Path::new(tool).exists())
        && library().is_ok_and(|library| library.join("library/Cargo.lock").exists())
}

fn install_packages() -> Result<bool> {
    say(&format!("installing {}", PACKAGES.join(", ")))?;
    let apt = |args: &[&str]| {
        let mut apt = Command::new("/usr/bin/apt-get");
        apt.env("DEBIAN_FRONTEND", "noninteractive").args(args).stdout(Stdio::null());
        apt.status().is_ok_and(|status| status.success())
    };
    let install: Vec<_> = ["install", "-y", "-q", "--no-install-recommends"].into_iter().chain(PACKAGES).collect();
    Ok((apt(&install) || (apt(&["update", "-q"]) && apt(&install))) && has_packages())
}

fn has_linker() -> Result<bool> {
    let version = output(Command::new("bpf-linker").arg("--version").env("PATH", path()?));
    Ok(version.is_ok_and(|version| version.split_whitespace().nth(1) == Some(LINKER)))
}

fn is_root() -> bool {
    output(Command::new("id").arg("-u")).is_ok_and(|uid| uid.trim() == "0")
}

/// The versions that decide what comes out.
fn tools() -> Result<String> {
    let strip = output(Command::new(format!("{LLVM}/bin/llvm-strip")).arg("--version"))?;
    let llvm = strip.lines().find(|line| line.contains("LLVM version")).unwrap_or_default().trim();
    let rustc = output(Command::new(RUSTC).arg("--version"))?;
    Ok(format!("{}\nbpf-linker {LINKER}\n{llvm}\n", rustc.trim()))
}

fn sum_line(object: &Path) -> Result<String> {
    let sum = output(Command::new("sha256sum").arg(object))?;
    let sum = sum.split_whitespace().next().context("sha256sum printed nothing")?;
    Ok(format!("{sum}  {OBJECT}\n"))
}

fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("start {}", command.get_program().display()))?;
    ensure!(status.success(), "{} failed: {status}", command.get_program().display());
    Ok(())
}

fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("start {}", command.get_program().display()))?;
    ensure!(output.status.success(), "{} failed: {}", command.get_program().display(), output.status);
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn unavailable(command: &str) -> Result<()> {
    say(&format!("the toolchain of the kernel programs is missing; this installs it, as root:\n  {command}"))?;
    exit(EXIT_UNAVAILABLE)
}

fn say(text: &str) -> Result<()> {
    writeln!(io::stderr(), "{text}").context("write to standard error")
}
