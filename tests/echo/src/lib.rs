//! What the conformance suite of the Gateway API runs in its pods: a server that tells what it saw of each request, and
//! a client that the suite starts there. It reads their output with regular expressions, so the words are its own.

pub mod answer;
pub mod client;
pub mod grpc;
pub mod server;
pub mod tls;

use std::ffi::OsString;
use std::path::Path;

use clap::{Parser, Subcommand};

/// Server and client of the conformance suite.
#[derive(Debug, Parser)]
#[command(name = "loam-echo", disable_version_flag = true)]
pub struct Program {
    /// Which of the two.
    #[command(subcommand)]
    pub part: Part,
}

/// The two programs in one.
#[derive(Debug, Subcommand)]
pub enum Part {
    /// Answers each request with what it saw of it
    Server(server::Flags),
    /// Sends requests and prints what came back
    Client(client::Flags),
}

impl Program {
    /// Reads a command line that begins with the program's name: `server` and `client`, as images link it, choose the part.
    pub fn read(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        let mut arguments: Vec<OsString> = arguments.into_iter().collect();
        let called = arguments.first().and_then(|path| Path::new(path).file_name()).map(OsString::from);
        if let Some(part) = called.filter(|name| name == "server" || name == "client") {
            arguments.insert(1, part);
        }
        Self::try_parse_from(arguments)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Program, clap::Error> {
        Program::read(line.split(' ').map(OsString::from))
    }

    #[test]
    fn the_name_by_which_it_is_called_chooses_the_part() {
        for line in ["client http://echo", "/usr/local/bin/client http://echo", "loam-echo client http://echo"] {
            assert!(matches!(read(line), Ok(Program { part: Part::Client(_) })), "{line}");
        }
        for line in ["server", "/usr/local/bin/server --port=8080", "loam-echo server"] {
            assert!(matches!(read(line), Ok(Program { part: Part::Server(_) })), "{line}");
        }
        assert!(read("loam-echo").is_err());
    }
}
