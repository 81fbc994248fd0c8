//! Calls of the API server by kubectl.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::{Helm, Seen};

/// kubectl with what it needs to find the cluster.
#[derive(Debug, Clone)]
pub struct Kubectl {
    program: PathBuf,
    kubeconfig: PathBuf,
    /// A process in the network namespace to be in; none is our own.
    within: Option<i32>,
}

impl Kubectl {
    /// One that calls from the network namespace of process `pid`.
    pub fn within(pid: i32, program: &Path, kubeconfig: &Path) -> Self {
        Self { program: program.to_owned(), kubeconfig: kubeconfig.to_owned(), within: Some(pid) }
    }

    /// The one on the search path, with the cluster that `KUBECONFIG` names: how a test calls.
    pub fn from_environment() -> Result<Self> {
        let kubeconfig =
            std::env::var_os("KUBECONFIG").context("KUBECONFIG is not set: run `cargo xtask test --ring e2e`")?;
        Ok(Self { program: "kubectl".into(), kubeconfig: kubeconfig.into(), within: None })
    }

    /// Runs it and gives its standard output.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        self.run_with_input(arguments, "")
    }

    /// Applies manifests.
    pub fn apply(&self, manifests: &str) -> Result<()> {
        self.run_with_input(&["apply", "--server-side", "--filename=-"], manifests).map(drop)
    }

    /// Runs the Helm that is beside it on the same cluster, and gives its standard output.
    pub fn helm(&self, arguments: &[&str]) -> Result<String> {
        let mut command = self.command(&self.program.with_file_name("helm"));
        command.env("KUBECONFIG", &self.kubeconfig);
        Helm.finish(&mut command, arguments)
    }

    /// Whether the cluster is one of ours, in whose network the calls are made.
    pub fn is_ours(&self) -> bool {
        self.within.is_some() || Seen::ours().is_ok()
    }

    /// `program` where it reaches the cluster.
    fn command(&self, program: &Path) -> Command {
        match self.within {
            Some(pid) => {
                let mut command = Command::new("nsenter");
                command.args(["--target", &pid.to_string(), "--net", "--"]).arg(program);
                command
            }
            None => Command::new(program),
        }
    }

    /// Runs it with a standard input.
    pub fn run_with_input(&self, arguments: &[&str], input: &str) -> Result<String> {
        let mut command = self.command(&self.program);
        let limit = format!("--request-timeout={}s", super::CALL.as_secs());
        command.arg("--kubeconfig").arg(&self.kubeconfig).arg(limit).args(arguments);
        let what = || format!("kubectl {}", arguments.join(" "));
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {}", self.program.display()))?;
        let mut stdin = child.stdin.take().context("kubectl has no input")?;
        let input = input.to_owned();
        // It may answer before it has read everything.
        let writing = std::thread::spawn(move || drop(stdin.write_all(input.as_bytes())));
        let output = child.wait_with_output().with_context(what)?;
        let _ = writing.join();
        if !output.status.success() {
            bail!("{}: {}", what(), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}
