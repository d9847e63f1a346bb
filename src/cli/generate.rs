//! `deckswain completions` and `deckswain man`.

use std::path::PathBuf;

use clap::{Args, Command};
use clap_complete::Shell;

use super::output::Printer;
use super::{EXIT_OK, Failed};

const COMPLETIONS_AFTER_HELP: &str = "\
Put it where the shell looks for completions, or load it at once:

Examples:
  source <(deckswain completions bash)
  deckswain completions zsh > _deckswain
  deckswain completions fish > deckswain.fish";

#[derive(Debug, Args)]
#[command(after_help = COMPLETIONS_AFTER_HELP)]
pub struct CompletionsOptions {
    /// The shell to complete in
    shell: Shell,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  deckswain man > deckswain.1\n  mkdir -p man1 && deckswain man --all man1"
)]
pub struct ManOptions {
    /// Write the pages of all commands into this directory
    #[arg(long, value_name = "DIRECTORY")]
    all: Option<PathBuf>,
}

pub fn completions(options: &CompletionsOptions, mut command: Command) -> Result<u8, Failed> {
    let mut text = Vec::new();
    clap_complete::generate(options.shell, &mut command, "deckswain", &mut text);
    print(&text)
}

pub fn man(options: &ManOptions, command: Command) -> Result<u8, Failed> {
    if let Some(directory) = &options.all {
        let failed = |error: std::io::Error| Failed::to_write(&directory.display().to_string(), &error);
        clap_mangen::generate_to(command, directory).map_err(failed)?;
        return Ok(EXIT_OK);
    }
    let mut text = Vec::new();
    let rendered = clap_mangen::Man::new(command).render(&mut text);
    rendered.map_err(|error| Failed::internal("failed to render the manual").why(error))?;
    print(&text)
}

fn print(text: &[u8]) -> Result<u8, Failed> {
    let mut printer = Printer::default();
    printer.write(text);
    printer.end().map(|()| EXIT_OK)
}
