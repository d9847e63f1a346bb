//! The `deckswain` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    deckswain::cli::main()
}
