//! What goes to a terminal or a pipe.

use std::io::{self, IsTerminal as _, Write as _};

use comfy_table::{ContentArrangement, Table, presets};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::Failed;

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
        table.add_row(row.iter().map(|cell| plain(cell)));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
}

/// What comes out of a decky is hostile: nothing in it may steer a terminal.
pub fn plain(text: &str) -> String {
    text.chars()
        .flat_map(|character| match is_harmless(character) {
            true => vec![character],
            false => character.escape_unicode().collect(),
        })
        .collect()
}

/// Marks that turn the direction of writing hide text as well as control characters do.
fn is_harmless(character: char) -> bool {
    !character.is_control()
        && !matches!(character, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_a_cell_steers_the_terminal() {
        assert_eq!(plain("a\u{1b}[2J\n\u{202e}b é"), "a\\u{1b}[2J\\u{a}\\u{202e}b é");
    }

    #[test]
    fn a_table_has_straight_columns_and_no_trailing_blanks() {
        let rows = [vec!["a".to_owned(), "b".to_owned()], vec!["longer".to_owned(), "c".to_owned()]];
        assert_eq!(table(&["x", "y"], rows), "x       y\na       b\nlonger  c\n");
    }
}
