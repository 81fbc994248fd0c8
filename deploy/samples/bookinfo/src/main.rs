//! One program for all parts of the sample shop.

use std::process::ExitCode;

use clap::Parser;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    loam_bookinfo::app::run(loam_bookinfo::app::Flags::parse()).await
}
