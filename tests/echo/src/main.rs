//! Entry of the suite's server and client.

use std::io::{self, Write as _};
use std::process::ExitCode;

use loam_echo::{Part, Program, client, server};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let program = Program::read(std::env::args_os()).unwrap_or_else(|error| error.exit());
    let done = match program.part {
        Part::Server(flags) => server::run(&flags).await,
        Part::Client(flags) => {
            client::run(&flags).await.and_then(|output| Ok(io::stdout().write_all(output.as_bytes())?))
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody is left to tell when this fails.
            let _ = writeln!(io::stderr(), "{error:#}");
            ExitCode::FAILURE
        }
    }
}
