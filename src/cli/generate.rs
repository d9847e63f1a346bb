//! `deckswain completions` and `deckswain man`.

use std::io::Write as _;
use std::path::PathBuf;

use clap::{Args, Command};
use clap_complete::Shell;

use super::{EXIT_OK, Failed};

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  deckswain completions bash > /etc/bash_completion.d/deckswain\n  deckswain completions zsh > \"${fpath[1]}/_deckswain\"\n  deckswain completions fish > ~/.config/fish/completions/deckswain.fish"
)]
pub struct CompletionsOptions {
    /// The shell to complete in
    shell: Shell,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  deckswain man | man -l -\n  deckswain man --all /usr/local/share/man/man1"
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
    let failed = |error: std::io::Error| Failed::usage(format!("failed to write the manual: {error}"));
    if let Some(directory) = &options.all {
        clap_mangen::generate_to(command, directory).map_err(failed)?;
        return Ok(EXIT_OK);
    }
    let mut text = Vec::new();
    clap_mangen::Man::new(command).render(&mut text).map_err(failed)?;
    print(&text)
}

fn print(text: &[u8]) -> Result<u8, Failed> {
    // A reader that has gone, as `head` does, wants no more of it.
    let _ = std::io::stdout().lock().write_all(text);
    Ok(EXIT_OK)
}
