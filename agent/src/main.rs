//! `loam-agent`: reads the command line and starts what it asks for.

use std::process::ExitCode;

use clap::Parser as _;
use loam_agent::config::{Cli, Command};
use loam_agent::{app, cleanup, keeper, status};

const PROGRAM: &str = "loam-agent";

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if error.use_stderr() => return loam_rt::exit::usage(PROGRAM, [error.render()]),
        // What was asked for: help or the version.
        Err(error) => error.exit(),
    };
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => loam_rt::exit::failure(PROGRAM, &error),
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    if !matches!(cli.command, Command::Status(_)) {
        loam_rt::telemetry::init(cli.log_format, &cli.log)?;
    }
    let runtime = || tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    match cli.command {
        Command::Run(config) => runtime()?.block_on(app::run(config)),
        Command::Cleanup(config) => runtime()?.block_on(cleanup::run(&config)),
        Command::AwaitCleanup(config) => runtime()?.block_on(cleanup::everywhere::run(&config)),
        Command::Rest => runtime()?.block_on(cleanup::everywhere::rest()),
        Command::Keeper(config) => keeper::run(config),
        Command::Status(config) => status::print(&config),
    }
}
