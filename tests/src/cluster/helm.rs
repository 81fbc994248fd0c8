//! Calls of Helm.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

/// Our chart.
pub const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/chart");

/// The lowest version that the chart takes. Without a cluster Helm assumes one that depends on how it was built.
const KUBERNETES: &str = "1.30";

/// The Helm on the search path. What it calls is the cluster that `KUBECONFIG` names.
#[derive(Debug, Clone, Copy)]
pub struct Helm;

impl Helm {
    /// Runs it and gives its standard output.
    pub fn run(self, arguments: &[&str]) -> Result<String> {
        self.finish(&mut Command::new("helm"), arguments)
    }

    /// Runs `helm`, which is Helm in some place.
    pub(super) fn finish(self, helm: &mut Command, arguments: &[&str]) -> Result<String> {
        let what = || format!("helm {}", arguments.join(" "));
        let output = helm.args(arguments).output().with_context(what)?;
        if !output.status.success() {
            let (said, told) = (String::from_utf8_lossy(&output.stderr), String::from_utf8_lossy(&output.stdout));
            bail!("{}: {}{}", what(), said.trim(), told.trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// What the chart becomes with files of values and settings such as `image.tag=x`.
    pub fn render(self, presets: &[&str], settings: &[&str]) -> Result<String> {
        let files: Vec<_> = presets.iter().map(|name| Path::new(CHART).join(name).display().to_string()).collect();
        let mut arguments =
            vec!["template", "loam", CHART, "--namespace", "istio-system", "--kube-version", KUBERNETES];
        arguments.extend(files.iter().flat_map(|file| ["--values", file]));
        arguments.extend(settings.iter().flat_map(|setting| ["--set", *setting]));
        self.run(&arguments)
    }
}
