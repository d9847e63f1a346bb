//! The texts that run inside a decky.
//!
//! They are kept to what dash, bash and busybox ash have in common.

use std::fmt::Write as _;

use crate::action::Look;

/// The exit status by which the plant says that the file holds something else than expected.
pub const STATUS_CONFLICT: i32 = 73;

/// Opens TCP 22 of its first argument and prints what answers.
pub const PROBE: &str = include_str!("probe.py");

/// Defines `p`: writes beside the target, sets the look, renames; on failure takes all of it back.
///
/// The length of what comes on standard input is checked, because a client that dies midway looks
/// like the end of the input.
const PLANT: &str = include_str!("plant.sh");

/// Runs the lines that come on standard input one by one; the first line is the batch's code.
///
/// After each it prints what the line said, then the code, the line's number from 0 and its status.
/// A line that did not arrive whole is not run: `read` fails on it. Its arguments are [`PLANT`] and, if
/// it may make use of python where there is one, [`BATCH_PYTHON`].
const BATCH: &str = include_str!("batch.sh");

/// The same for the same lines, at a tenth of the cost: it starts no program for a line whose change is
/// plain, and has the shell do whatever turns out not to be.
const BATCH_PYTHON: &str = include_str!("batch.py");

/// Quotes a word for a POSIX shell.
pub fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// One file to be written.
pub struct Plant<'a> {
    /// Where.
    pub path: &'a str,
    /// The directory of `path`.
    pub directory: &'a str,
    /// Letters and digits that no other plant uses.
    pub mark: &'a str,
    /// What the file is to hold.
    pub content: &'a [u8],
    /// Mode, owner and time.
    pub look: &'a Look,
    /// What the file must hold beforehand: one of these hex SHA-256, with blanks between.
    pub expected_sha256: Option<&'a str>,
}

impl Plant<'_> {
    /// The name beside the target that `sed -i` would use.
    pub fn temporary(&self) -> String {
        format!("{}/sed{}", self.directory.trim_end_matches('/'), &self.mark[..6])
    }

    /// A script that takes the content as base64 on standard input.
    pub fn script(&self) -> String {
        format!("{PLANT}{} {}\n", self.call(), self.content.len())
    }

    /// The same plant as one line of a batch, which holds the content.
    pub fn line(&self) -> String {
        format!("{} '' {}", self.call(), escape(self.content))
    }

    fn call(&self) -> String {
        let owner = self.look.owner.as_ref().map(|owner| owner.as_str()).unwrap_or_default();
        let stamp = self.look.mtime.map(|mtime| mtime.to_utc().format("%Y%m%d%H%M.%S").to_string());
        let expected = self.expected_sha256.unwrap_or_default();
        // A new file has at most 0666 less the mask: that alone makes most modes, and saves a process.
        let bits = self.look.mode.bits();
        let (mask, mode) = match bits & 0o111 == 0 && bits & 0o400 != 0 {
            true => (0o777 & !bits, String::new()),
            false => (0o077, self.look.mode.to_string()),
        };
        format!(
            "p {} {} {} '{mask:04o}' '{mode}' {} '{}' '{expected}'",
            quote(self.path),
            quote(self.directory),
            quote(&self.temporary()),
            quote(owner),
            stamp.unwrap_or_default(),
        )
    }
}

/// The line of a batch that removes a file.
pub fn removal(path: &str) -> String {
    format!("rm -f -- {}", quote(path))
}

/// The command of a batch.
pub fn batch(with_python: bool) -> [&'static str; 6] {
    ["sh", "-c", BATCH, "sh", PLANT, if with_python { BATCH_PYTHON } else { "" }]
}

/// Quotes bytes so that `printf %b` prints just them; no quote stands between the quotes.
fn escape(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() + bytes.len() / 4 + 2);
    text.push('\'');
    for byte in bytes {
        match byte {
            b'\n' => text.push_str("\\n"),
            b'\\' => text.push_str("\\\\"),
            b'\'' => text.push_str("\\0047"),
            b' '..=b'~' => text.push(char::from(*byte)),
            byte => {
                // Writing to a String cannot fail.
                let _ = write!(text, "\\0{byte:03o}");
            }
        }
    }
    text.push('\'');
    text
}

/// Ends every process that bears the mark, and what shares a session with it; says `gone` when none is left.
///
/// The mark and a file to remove come on standard input: in an argument they would match this very process.
pub const END_PYTHON: &str = include_str!("end.py");

/// The same for a decky without python, with what every shell has.
pub const END_SHELL: &str = include_str!("end.sh");
