//! Calls of the API server that cost what the API server takes: to start kubectl takes longer than what is measured.

use std::io::{BufRead, BufReader, Read, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::CALL;

/// The API server of the cluster that `KUBECONFIG` names, in the clear at a port of this machine.
#[derive(Debug)]
pub struct Api {
    proxy: Child,
    address: SocketAddr,
}

impl Api {
    /// Opens the port.
    pub fn open() -> Result<Self> {
        let proxy = Command::new("kubectl").args(["proxy", "--port=0"]).stdout(Stdio::piped()).spawn();
        let mut proxy = proxy.context("start kubectl")?;
        let output = proxy.stdout.take();
        let mut api = Self { proxy, address: SocketAddr::from(([127, 0, 0, 1], 0)) };
        let mut line = String::new();
        BufReader::new(output.context("kubectl has no output")?).read_line(&mut line)?;
        // Starting to serve on 127.0.0.1:40123
        let local = line.split_whitespace().find_map(|word| word.parse().ok());
        api.address = local.with_context(|| format!("kubectl said {line:?}"))?;
        Ok(api)
    }

    /// Makes an object in the collection at `path`.
    pub fn create(&self, path: &str, object: &Value) -> Result<()> {
        exchange(self.address, "POST", path, Some(("application/json", object))).map(drop)
    }

    /// Merges a patch into the object at `path`.
    pub fn merge(&self, path: &str, patch: &Value) -> Result<()> {
        exchange(self.address, "PATCH", path, Some(("application/merge-patch+json", patch))).map(drop)
    }

    /// Watches the collection at `path` from what it is now on.
    pub fn watch(&self, path: &str) -> Result<Watch> {
        let mut answer = ask(self.address, "GET", &format!("{path}?watch=true"), None)?;
        head(&mut answer).with_context(|| format!("watch {path}"))?;
        Ok(Watch(answer))
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        // After its end neither does anything.
        let _ = self.proxy.kill();
        let _ = self.proxy.wait();
    }
}

/// Changes of a collection, as they come.
#[derive(Debug)]
pub struct Watch(BufReader<TcpStream>);

impl Watch {
    /// The next object that was made or changed, or is gone; an error when none comes in the time of a call.
    pub fn change(&mut self) -> Result<Value> {
        let mut line = String::new();
        self.0.read_line(&mut line).context("wait for a change")?;
        let mut event: Value = serde_json::from_str(&line).with_context(|| format!("read the change {line:?}"))?;
        Ok(event["object"].take())
    }
}

/// What an HTTP server at `address` has at `path`, as JSON.
pub fn get_json(address: SocketAddr, path: &str) -> Result<Value> {
    Ok(serde_json::from_str(&exchange(address, "GET", path, None)?)?)
}

/// One request; the body of its answer, if that is a success.
fn exchange(address: SocketAddr, method: &str, path: &str, body: Option<(&str, &Value)>) -> Result<String> {
    let mut answer = ask(address, method, path, body)?;
    head(&mut answer).with_context(|| format!("{method} {path}"))?;
    let mut text = String::new();
    answer.read_to_string(&mut text)?;
    Ok(text)
}

/// Sends a request in HTTP/1.0, whose answers come in one piece and end with the connection.
fn ask(address: SocketAddr, method: &str, path: &str, body: Option<(&str, &Value)>) -> Result<BufReader<TcpStream>> {
    let mut stream = TcpStream::connect(address).with_context(|| format!("connect to {address}"))?;
    stream.set_read_timeout(Some(CALL))?;
    let mut request = format!("{method} {path} HTTP/1.0\r\nHost: localhost\r\n");
    match body {
        Some((kind, value)) => {
            let text = value.to_string();
            request.push_str(&format!("Content-Type: {kind}\r\nContent-Length: {}\r\n\r\n{text}", text.len()));
        }
        None => request.push_str("\r\n"),
    }
    stream.write_all(request.as_bytes())?;
    Ok(BufReader::new(stream))
}

/// Reads the head of an answer; an error unless it is a success.
fn head(answer: &mut BufReader<TcpStream>) -> Result<()> {
    let mut status = String::new();
    answer.read_line(&mut status)?;
    let mut line = String::new();
    while answer.read_line(&mut line)? > 2 {
        line.clear();
    }
    if status.split(' ').nth(1).is_some_and(|code| code.starts_with('2')) {
        return Ok(());
    }
    let mut why = String::new();
    answer.read_to_string(&mut why)?;
    bail!("{}: {}", status.trim(), why.trim())
}
