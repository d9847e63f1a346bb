//! What goes to a terminal or a pipe.

use std::fmt::Display;
use std::io::{self, IsTerminal as _, Write as _};

use comfy_table::{ContentArrangement, Table, presets};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::escape::{self, plain};
use super::{Failed, log};

/// Data on standard output, a line at a time; silent once a write has failed.
#[derive(Debug, Default)]
pub struct Printer {
    failed: Option<io::Error>,
}

impl Printer {
    /// Whether nothing more can be written: the reader has gone, as `head` does, or the disk is full.
    pub fn is_done(&self) -> bool {
        self.failed.is_some()
    }

    pub fn line(&mut self, line: &str) {
        self.write(&[line.as_bytes(), b"\n"].concat());
    }

    /// A line of JSON. A program gets it as it is; on a terminal nothing in it steers or hides.
    pub fn json(&mut self, line: &str) {
        match io::stdout().is_terminal() {
            true => self.line(&escape::json(line)),
            false => self.line(line),
        }
    }

    pub fn write(&mut self, bytes: &[u8]) {
        if self.failed.is_none() {
            let mut stdout = io::stdout().lock();
            self.failed = stdout.write_all(bytes).and_then(|()| stdout.flush()).err();
        }
    }

    /// Tells whether all of it arrived; a reader that has gone wanted no more.
    pub fn end(self) -> Result<(), Failed> {
        match self.failed {
            Some(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                Err(Failed::to_write("standard output", &error))
            }
            _ => Ok(()),
        }
    }
}

/// A line for a person, on standard error; nobody need be there to read it.
pub fn say(line: impl Display) {
    log::write((plain(&line.to_string()) + "\n").as_bytes());
}

/// The same without an end of the line, for an answer to follow.
pub fn ask(question: &str) {
    log::write(plain(question).as_bytes());
}

/// A bar on standard error where that is a terminal; nothing elsewhere.
pub fn progress_bar(total: u64, what: &str) -> ProgressBar {
    let target = match io::stderr().is_terminal() {
        true => ProgressDrawTarget::stderr(),
        false => ProgressDrawTarget::hidden(),
    };
    let style = ProgressStyle::with_template("{msg} [{bar:30}] {pos} of {len}, {per_sec}");
    let bar = ProgressBar::with_draw_target(Some(total), target).with_message(what.to_owned());
    style.map_or_else(|_| bar.clone(), |style| bar.clone().with_style(style.progress_chars("=> ")))
}

/// A table without frames.
pub fn table(head: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(head);
    for row in rows {
        table.add_row(row.iter().map(|text| plain(text)));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_straight_columns_and_no_trailing_blanks() {
        let rows = [vec!["a".to_owned(), "b".to_owned()], vec!["longer".to_owned(), "c".to_owned()]];
        assert_eq!(table(&["x", "y"], rows), "x       y\na       b\nlonger  c\n");
    }
}
