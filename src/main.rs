//! The `deckswain` command.

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    deckswain::cli::main(deckswain::cli::Cli::parse())
}
