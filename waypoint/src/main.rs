//! The L7 proxy in front of services.

use clap::Parser;
use loam_waypoint::config::{Config, Flags};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> std::process::ExitCode {
    let config = match Config::try_from(Flags::parse()) {
        Ok(config) => config,
        Err(mistakes) => return loam_rt::exit::usage("loam-waypoint", mistakes),
    };
    match loam_waypoint::app::run(config) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => loam_rt::exit::failure("loam-waypoint", &error),
    }
}
