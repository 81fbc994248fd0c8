//! The programs of Kubernetes, built from the Go modules in `tests/cluster` and kept until these change.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use loam_tests::cluster::{PAUSE_IMAGE, Parts};

use crate::cached::{PROGRAMS, Recipe};
use crate::images;
use crate::images::layout::Image;
use crate::setup;
use crate::term::{Term, seconds};

/// The packages to build; a program has the last part of its package's name.
const PACKAGES: [&str; 10] = [
    "./coredns",
    "./etcd",
    "./pause",
    "helm.sh/helm/v3/cmd/helm",
    "k8s.io/kubernetes/cmd/kube-apiserver",
    "k8s.io/kubernetes/cmd/kube-controller-manager",
    "k8s.io/kubernetes/cmd/kube-proxy",
    "k8s.io/kubernetes/cmd/kube-scheduler",
    "k8s.io/kubernetes/cmd/kubectl",
    "k8s.io/kubernetes/cmd/kubelet",
];

/// Flags of `go build`.
const FLAGS: [&str; 2] = ["-trimpath", "-ldflags"];
/// Flags of the linker: without symbols and what a debugger reads.
const LINKER_FLAGS: &str = "-s -w";

/// The programs that run in pods, and their images' names in the cluster.
const IN_PODS: [(&str, &str); 2] = [("pause", PAUSE_IMAGE), ("coredns", "loam.test/coredns:1")];

/// Everything that a cluster is made from, built where it is not there yet.
pub(crate) fn ensure_built(term: Term) -> Result<Parts> {
    let source = crate::root().join("tests/cluster");
    let recipe = Recipe {
        place: "cluster",
        source: &source,
        files: &["go.mod", "go.sum", "coredns/main.go", "etcd/main.go", "pause/main.go"],
        how: &format!("{PACKAGES:?} {FLAGS:?} {LINKER_FLAGS}"),
    };
    let dir = recipe.ensure(|dir| build(term, &source, &dir.join(PROGRAMS)))?;
    Ok(Parts {
        programs: dir.join(PROGRAMS),
        images: dir.join("images"),
        manifests: source.join("manifests"),
        logs: images::directory("cluster-logs"),
    })
}

/// Writes the images that a node has from the start.
pub(crate) fn write_images(parts: &Parts) -> Result<()> {
    fs::create_dir_all(&parts.images)?;
    for (program, reference) in IN_PODS {
        let mut layer = images::base();
        layer.program(&format!("/{program}"), &parts.programs.join(program))?;
        let image = Image {
            reference: reference.to_owned(),
            layers: vec![layer],
            entrypoint: vec![format!("/{program}")],
            user: "0:0".into(),
        };
        image.write(&parts.images.join(format!("{program}.tar")))?;
    }
    Ok(())
}

fn build(term: Term, source: &Path, bin: &Path) -> Result<()> {
    setup::ensure_go()?;
    let start = Instant::now();
    println!("{}", term.dim("Building Kubernetes (the first time takes up to ten minutes) ..."));
    let version = kubernetes_version(source)?;
    let mut numbers = version.trim_start_matches('v').split('.');
    let (major, minor) = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
    let stamp = "k8s.io/component-base/version";
    let flags = format!(
        "{LINKER_FLAGS} -X {stamp}.gitVersion={version} -X {stamp}.gitMajor={major} -X {stamp}.gitMinor={minor}"
    );
    // One call: what they have in common is compiled once.
    let status = Command::new("go")
        .arg("build")
        .args(FLAGS)
        .args([&flags, "-o"])
        .arg(format!("{}/", bin.display()))
        .args(PACKAGES)
        .current_dir(source)
        .env("CGO_ENABLED", "0")
        .status()
        .context("start go")?;
    if !status.success() {
        bail!("go could not build Kubernetes; its modules are named in {}", source.join("go.mod").display());
    }
    println!("{}", term.dim(&format!("Built Kubernetes {version} in {}", seconds(start.elapsed()))));
    Ok(())
}

/// As `go.mod` says.
fn kubernetes_version(source: &Path) -> Result<String> {
    let text = fs::read_to_string(source.join("go.mod"))?;
    let found = text.lines().find_map(|l| l.trim().strip_prefix("k8s.io/kubernetes "));
    let version = found.context("go.mod names no version of Kubernetes")?.to_owned();
    ensure!(version.starts_with('v'), "go.mod names a strange version of Kubernetes: {version}");
    Ok(version)
}
