//! The controller of the mesh: `loam-controller` serves, `loam-controller token` prints a token for a node.

use std::io::Write;
use std::process::ExitCode;

use loam_controller::app;
use loam_controller::config::{Command, Refused, Serve, parse};
use loam_rt::exit;
use loam_rt::shutdown::Shutdown;
use loam_rt::telemetry::{self, InitError, Telemetry};

/// Gives the memory of a burst back: reading a large mesh takes several times what keeping it does.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const PROGRAM: &str = "loam-controller";

fn main() -> ExitCode {
    let done = match parse(std::env::args_os()) {
        Ok(Command::Serve(config)) => match telemetry::init(config.log_format, &config.log_filter) {
            Ok(telemetry) => serve(*config, &telemetry),
            Err(InitError::Filter(mistake)) => return exit::usage(PROGRAM, [mistake]),
            Err(error) => Err(error.into()),
        },
        Ok(Command::Token(config)) => app::token(&config).and_then(|token| print(&format!("{token}\n"))),
        Err(Refused::Told(text)) => print(&text),
        Err(Refused::Mistakes(mistakes)) => return exit::usage(PROGRAM, mistakes),
    };
    done.map_or_else(|error| exit::failure(PROGRAM, &error), |()| ExitCode::SUCCESS)
}

#[tokio::main]
async fn serve(config: Serve, telemetry: &Telemetry) -> anyhow::Result<()> {
    let mut shutdown = Shutdown::on_signals()?;
    let mut running = tokio::select! {
        running = app::start(config, Some(telemetry.filter())) => running?,
        // An API server that does not answer may keep it waiting.
        cause = shutdown.asked() => {
            tracing::info!(?cause, "controller ends before it serves");
            return Ok(());
        }
    };
    tokio::select! {
        cause = shutdown.asked() => tracing::info!(?cause, "controller ends"),
        error = running.failed() => return Err(error),
    }
    running.end().await;
    Ok(())
}

fn print(text: &str) -> anyhow::Result<()> {
    Ok(std::io::stdout().write_all(text.as_bytes())?)
}
