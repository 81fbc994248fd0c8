//! The conformance suite of the Gateway API, built from the Go module in `tests/conformance` and kept until that changes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::cached::{PROGRAMS, Recipe};
use crate::term::{Term, seconds};
use crate::{images, setup};

/// The file that says what is claimed.
pub(super) const OPTIONS: &str = "options.yaml";
/// The test program.
const PROGRAM: &str = "conformance.test";
/// Where the definitions of the API's resources are, below what is kept and in their module.
const DEFINITIONS: &str = "definitions";
const DEFINITIONS_IN_MODULE: &str = "config/crd/experimental";
/// What is among them for another tool.
const NO_DEFINITION: &str = "kustomization.yaml";
/// The modules of the API and of the suite.
const API: &str = "sigs.k8s.io/gateway-api";
const SUITE: &str = "sigs.k8s.io/gateway-api/conformance";

/// The built suite.
#[derive(Debug)]
pub(super) struct Suite {
    built: PathBuf,
    /// Directory of the options and of the waypoint's manifests.
    pub(super) source: PathBuf,
}

impl Suite {
    /// The test program.
    pub(super) fn program(&self) -> PathBuf {
        self.built.join(PROGRAMS).join(PROGRAM)
    }

    /// The directory of the definitions of the API's resources.
    pub(super) fn definitions(&self) -> PathBuf {
        self.built.join(DEFINITIONS)
    }

    /// The manifests of the waypoint.
    pub(super) fn waypoint(&self) -> PathBuf {
        self.source.join("waypoint.yaml")
    }
}

/// The suite, built where it is not there yet.
pub(super) fn ensure_built(term: Term) -> Result<Suite> {
    let source = crate::root().join("tests/conformance");
    let recipe = Recipe {
        place: "conformance",
        source: &source,
        files: &["go.mod", "go.sum", "conformance_test.go", OPTIONS],
        how: images::ECHO,
    };
    let built = recipe.ensure(|dir| build(term, &source, dir))?;
    Ok(Suite { built, source })
}

fn build(term: Term, source: &Path, dir: &Path) -> Result<()> {
    setup::ensure_go()?;
    let start = Instant::now();
    println!("{}", term.dim("Building the conformance suite (the first time takes some minutes) ..."));
    let program = dir.join(PROGRAMS).join(PROGRAM);
    let mut compile = go(source)?;
    compile.args(["test", "-c", "-trimpath", "-ldflags", "-s -w", "-o"]).arg(&program).arg(".");
    let status = compile.status().context("start go")?;
    ensure!(
        status.success(),
        "go could not build the suite; its modules are named in {}",
        source.join("go.mod").display()
    );
    check_options(source, &program)?;
    check_images(&module(source, SUITE)?)?;
    copy_definitions(&module(source, API)?, &dir.join(DEFINITIONS))?;
    println!("{}", term.dim(&format!("Built the conformance suite in {}", seconds(start.elapsed()))));
    Ok(())
}

/// Go of the version that the module asks for, which Go itself can fetch.
fn go(source: &Path) -> Result<Command> {
    let text = fs::read_to_string(source.join("go.mod")).context("read go.mod of the suite")?;
    let version = text.lines().find_map(|line| line.strip_prefix("go ")).context("go.mod names no version of Go")?;
    let mut command = Command::new("go");
    command.current_dir(source).env("GOTOOLCHAIN", format!("go{version}")).env("CGO_ENABLED", "0");
    Ok(command)
}

/// Where Go has a module.
fn module(source: &Path, name: &str) -> Result<PathBuf> {
    let output = go(source)?.args(["list", "-m", "-f", "{{.Dir}}", name]).output().context("start go")?;
    ensure!(output.status.success(), "go list {name}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(String::from_utf8_lossy(&output.stdout).trim().into())
}

/// The suite skips in silence what is not claimed, so what the options leave out is found here.
fn check_options(source: &Path, program: &Path) -> Result<()> {
    let mut check = Command::new(program);
    check.current_dir(source).arg("-test.run=^TestOptionsLeaveOutNoTestOfAMesh$");
    let output = check.output().context("start the suite")?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "{} leaves out tests of meshes:\n{}", source.join(OPTIONS).display(), said.trim());
    Ok(())
}

/// The manifests of the suite must ask for the image that we make, or its pods would wait for one that nobody has.
fn check_images(module: &Path) -> Result<()> {
    let path = module.join("mesh/manifests.yaml");
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let named = text.lines().filter_map(|line| line.trim().trim_start_matches("- ").strip_prefix("image:"));
    for image in named.map(str::trim) {
        ensure!(image == images::ECHO, "{} names the image {image}, and we make {}", path.display(), images::ECHO);
    }
    Ok(())
}

fn copy_definitions(module: &Path, to: &Path) -> Result<()> {
    let from = module.join(DEFINITIONS_IN_MODULE);
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(&from).with_context(|| format!("list {}", from.display()))? {
        let (path, name) = entry.map(|entry| (entry.path(), entry.file_name()))?;
        if name != NO_DEFINITION {
            // Not a copy of the file: those of a module may not be written, and nobody could take ours away.
            fs::write(to.join(name), fs::read(path)?)?;
        }
    }
    Ok(())
}
