//! The program itself, run as a container runtime runs it, against an agent played by hand.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;

use loam_cni::ask::{Answer, Ask};
use serde_json::{Value, json};

struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("loam-cni-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn run(command: &str, socket: &Path) -> Output {
    let config = json!({
        "cniVersion": "1.1.0", "name": "pods", "type": "loam-cni", "socket": socket,
        "prevResult": {"cniVersion": "1.1.0", "ips": [{"address": "10.0.0.7/24"}]},
    });
    let mut child = Command::new(env!("CARGO_BIN_EXE_loam-cni"))
        .env("CNI_COMMAND", command)
        .env("CNI_CONTAINERID", "c1")
        .env("CNI_NETNS", "/proc/self/ns/net")
        .env("CNI_IFNAME", "eth0")
        .env("CNI_ARGS", "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;K8S_POD_UID=u-1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(config.to_string().as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn printed(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn a_sandbox_is_ready_when_the_agent_says_so() {
    let dir = Dir::new("ready");
    let socket = dir.0.join("cni.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let agent = thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line).unwrap();
        let answer = serde_json::to_string(&Answer::default()).unwrap();
        writeln!(&stream, "{answer}").unwrap();
        serde_json::from_str::<Ask>(&line).unwrap()
    });
    let output = run("ADD", &socket);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(printed(&output)["ips"][0]["address"], "10.0.0.7/24");
    assert!(matches!(agent.join().unwrap(), Ask::Add(sandbox) if sandbox.uid == "u-1"));
}

#[test]
fn without_an_agent_a_sandbox_fails_and_one_that_goes_does_not() {
    let dir = Dir::new("missing");
    let socket = dir.0.join("cni.sock");
    let output = run("ADD", &socket);
    assert!(!output.status.success());
    assert_eq!(printed(&output)["code"], 11);
    assert!(printed(&output)["msg"].as_str().unwrap().contains("Loam agent"), "{output:?}");
    let output = run("DEL", &socket);
    assert!(output.status.success() && output.stdout.is_empty(), "{output:?}");
    let output = run("VERSION", &socket);
    assert!(output.status.success());
    assert_eq!(printed(&output)["supportedVersions"][3], "1.1.0");
}
