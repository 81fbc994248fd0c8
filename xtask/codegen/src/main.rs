//! Compiles `crates/api/proto` into `crates/api/src/gen`. With `--check` nothing is written and the exit status says
//! whether the committed files are what the sources give.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::{fs, io::Write};

use anyhow::{Context, bail, ensure};

const SOURCES: [&str; 7] =
    ["workload.proto", "security.proto", "ca.proto", "discovery.proto", "core.proto", "status.proto", "http.proto"];

fn main() -> anyhow::Result<ExitCode> {
    let check = match std::env::args().nth(1).as_deref() {
        None => false,
        Some("--check") => true,
        Some(other) => bail!("unknown argument {other:?}; the only one is --check"),
    };
    let api = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../crates/api");
    let target = api.join("src/gen");
    let fresh = generate(&api.join("proto"))?;
    let present = read(&target)?;
    if fresh == present {
        return Ok(ExitCode::SUCCESS);
    }
    if check {
        let names = fresh.keys().chain(present.keys()).filter(|name| fresh.get(*name) != present.get(*name));
        let names: std::collections::BTreeSet<_> = names.map(String::as_str).collect();
        bail!("crates/api/src/gen is stale ({names:?}); run `cargo run -p xtask-codegen`");
    }
    fs::create_dir_all(&target).with_context(|| format!("create {}", target.display()))?;
    for name in present.keys().filter(|name| !fresh.contains_key(*name)) {
        fs::remove_file(target.join(name)).with_context(|| format!("remove {name}"))?;
    }
    for (name, text) in &fresh {
        fs::write(target.join(name), text).with_context(|| format!("write {name}"))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The files as they should be, by name.
fn generate(proto: &Path) -> anyhow::Result<BTreeMap<String, String>> {
    let out = Scratch::new()?;
    let descriptors = protox::compile(SOURCES, [proto]).context("compile the .proto files")?;
    tonic_prost_build::configure()
        .out_dir(&out.0)
        .build_transport(false)
        .bytes(".")
        // Sorted, so that the same message is always the same bytes: versions are hashes of them.
        .btree_map(".")
        .emit_rerun_if_changed(false)
        .compile_fds(descriptors)
        .context("generate code")?;
    let files = read(&out.0)?;
    files.into_iter().map(|(name, text)| Ok((name, format(&text)?))).collect()
}

fn read(directory: &Path) -> anyhow::Result<BTreeMap<String, String>> {
    let mut files = BTreeMap::new();
    if !directory.exists() {
        return Ok(files);
    }
    for entry in fs::read_dir(directory).with_context(|| format!("read {}", directory.display()))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        files.insert(name, fs::read_to_string(entry.path())?);
    }
    Ok(files)
}

/// As `cargo fmt` would leave it, so that formatting the workspace changes nothing.
fn format(text: &str) -> anyhow::Result<String> {
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../rustfmt.toml");
    let mut child = Command::new("rustfmt")
        .args(["--edition", "2024", "--config-path"])
        .arg(config)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("start rustfmt (rustup component add rustfmt)")?;
    let mut stdin = child.stdin.take().context("rustfmt has no input")?;
    let input = text.to_owned();
    let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output()?;
    writer.join().ok().context("write to rustfmt")??;
    ensure!(output.status.success(), "rustfmt refused generated code");
    Ok(String::from_utf8(output.stdout)?)
}

/// A directory that goes away with its value.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> anyhow::Result<Self> {
        let path = std::env::temp_dir().join(format!("loam-codegen-{}", std::process::id()));
        fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A left-over in the temporary directory harms nobody.
        let _ = fs::remove_dir_all(&self.0);
    }
}
