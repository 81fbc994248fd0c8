//! A port of a pod on this machine.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};

/// A port of a pod of the cluster that `KUBECONFIG` names, forwarded for as long as this lives.
#[derive(Debug)]
pub struct Forward {
    kubectl: Child,
    address: SocketAddr,
}

impl Forward {
    /// Forwards `port` of the pod.
    pub fn to(namespace: &str, pod: &str, port: u16) -> Result<Self> {
        let mut kubectl = Command::new("kubectl")
            .args(["--namespace", namespace, "port-forward", pod, &format!(":{port}")])
            .stdout(Stdio::piped())
            .spawn()
            .context("start kubectl")?;
        let output = kubectl.stdout.take();
        // From here on kubectl ends with this value, whatever goes wrong.
        let mut forward = Self { kubectl, address: SocketAddr::from(([127, 0, 0, 1], 0)) };
        let mut output = BufReader::new(output.context("kubectl has no output")?);
        let mut line = String::new();
        output.read_line(&mut line)?;
        // Forwarding from 127.0.0.1:40123 -> 9080
        let local = line.split_whitespace().find_map(|word| word.parse().ok());
        forward.address = local.with_context(|| format!("kubectl said {line:?}"))?;
        // It dies when nobody listens to what it says about each connection.
        std::thread::spawn(move || std::io::copy(&mut output, &mut std::io::sink()));
        Ok(forward)
    }

    /// Where to connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        // After its end neither does anything.
        let _ = self.kubectl.kill();
        let _ = self.kubectl.wait();
    }
}
