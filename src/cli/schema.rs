//! `deckswain schema`.

use clap::{Args, ValueEnum};

use super::output::Printer;
use super::{EXIT_OK, Failed};
use crate::schema;

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  deckswain schema action > action.schema.json")]
pub struct Options {
    /// Which of the two
    #[arg(value_enum)]
    of: Which,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Which {
    /// What the worker takes
    Action,
    /// What it answers
    Result,
}

pub fn run(options: &Options) -> Result<u8, Failed> {
    let text = match options.of {
        Which::Action => schema::ACTION,
        Which::Result => schema::ACTIVITY_RESULT,
    };
    let mut printer = Printer::default();
    printer.write(text.as_bytes());
    printer.end().map(|()| EXIT_OK)
}
