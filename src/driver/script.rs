//! The texts that run inside a decky.
//!
//! They are kept to the parts that dash, bash and busybox ash have in common. All of them come on
//! standard input: any user of a decky may read the arguments of its processes.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::sync::LazyLock;

use super::secret::Names;
use crate::action::Look;

/// The exit status by which a plant says that the file holds something else than expected.
pub const STATUS_CONFLICT: i32 = 73;

/// Defines `p` and `r`, which plant and remove by names in directories that they have entered, and
/// runs the lines that follow on standard input.
const CHANGE: &str = include_str!("change.sh");

/// Does the same by descriptors, and starts no program for a line whose change is plain. The rest is for the shell.
const CHANGE_PYTHON: &str = include_str!("change.py");

/// Opens TCP 22 of the address on standard input and prints the line that begins with `SSH-`.
const PROBE: &str = include_str!("probe.py");

/// Defines `h`, which prints a file.
const READ: &str = include_str!("read.sh");

/// Defines it anew so that it follows no link.
const READ_WITHOUT_LINKS: &str = include_str!("read_unlinked.sh");

/// Ends every process that bears the tag, and all that share a session with it; says `gone` when none is left.
const END_PYTHON: &str = include_str!("end.py");

/// The same for a decky without python, with what every shell has.
const END_SHELL: &str = include_str!("end.sh");

/// Has a shell take its program from one line of standard input. A shell that reads its script there
/// may read ahead of the commands in it; `read` does not.
pub const SHELL: [&str; 3] = ["sh", "-c", r#"read -r c;eval "$(printf %b "$c")""#];

/// Has python take its program from one line of standard input.
pub const PYTHON: [&str; 3] = ["python3", "-IBSc", "import sys;exec(eval(sys.stdin.buffer.readline()))"];

/// Has python take the first line, or where there is none a shell the second one.
const EITHER: [&str; 3] = [
    "sh",
    "-c",
    concat!(
        "command -v python3 >/dev/null 2>&1&&exec python3 -IBSc ",
        r#""import sys;exec(eval(sys.stdin.buffer.readline()))";"#,
        r#"read -r c;read -r c;eval "$(printf %b "$c")""#
    ),
];

/// A shell that reads its script on standard input.
pub const SCRIPT: [&str; 1] = ["sh"];

/// What is sent of a text: no comments, and each level of indentation as one blank.
fn minified(text: &str) -> String {
    let mut lines = String::with_capacity(text.len());
    for line in text.lines() {
        let code = line.trim_start();
        if !code.is_empty() && !code.starts_with('#') {
            lines.extend(std::iter::repeat_n(' ', (line.len() - code.len()) / 4));
            lines.push_str(code);
            lines.push('\n');
        }
    }
    lines
}

/// A program as one line for [`PYTHON`].
fn python_line(text: &str) -> String {
    let text = minified(text).replace('\\', r"\\").replace('\'', r"\'").replace('\n', r"\n");
    format!("'{text}'\n")
}

/// A program as one line for [`SHELL`].
fn shell_line(text: &str) -> String {
    minified(text).replace('\\', r"\\").replace('\n', r"\n") + "\n"
}

/// Quotes a word for a POSIX shell; the word of a call may hold a line end, the call may not.
fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

fn quote_in_line(word: &str) -> String {
    quote(word).replace('\n', r#"'"$N"'"#)
}

/// The program of a change or of several: its command and the lines that it begins with.
pub fn changes(with_python: bool) -> ([&'static str; 3], &'static str) {
    static SHELL_LINE: LazyLock<String> = LazyLock::new(|| shell_line(CHANGE));
    static BOTH_LINES: LazyLock<String> = LazyLock::new(|| python_line(CHANGE_PYTHON) + &SHELL_LINE);
    if with_python { (EITHER, &BOTH_LINES) } else { (SHELL, &SHELL_LINE) }
}

/// What python is sent to open a connection to `address`.
pub fn probe(address: &str) -> String {
    python_line(PROBE) + address + "\n"
}

/// What a shell is sent to print up to `bytes` bytes of a file.
pub fn read(path: &str, bytes: u64, links: bool) -> String {
    let strict = if links { "" } else { READ_WITHOUT_LINKS };
    format!("{}h {} {bytes}\n", minified(&format!("{READ}{strict}")), quote(path))
}

/// The ways to end what bears a tag, and what each is sent. The tag is in no argument, where it would
/// match the process itself.
pub fn endings(tag: &str, leftover: Option<&Leftover>) -> [([&'static str; 3], String); 2] {
    let none = Leftover { directory: String::new(), outer: String::new(), inner: String::new() };
    let Leftover { directory, outer, inner } = leftover.unwrap_or(&none);
    let facts = format!("{tag}\n{outer}\n{inner}\n{directory}");
    [(PYTHON, python_line(END_PYTHON) + &facts), (SHELL, shell_line(END_SHELL) + &facts)]
}

/// Where a change that was ended may have left something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leftover {
    /// The directory.
    pub directory: String,
    /// The name in it.
    pub outer: String,
    /// The name below that.
    pub inner: String,
}

/// A change of one path.
pub struct Call<'a> {
    /// The path.
    pub path: &'a str,
    /// The names that it may use beside its target.
    pub names: &'a Names,
    /// Whether a link that only root could have made may be followed.
    pub links: bool,
    /// The age in seconds from which a leftover is removed.
    pub leftover_seconds: u64,
    /// The file that is to be there; none is to be there otherwise.
    pub file: Option<NewFile<'a>>,
}

/// A file to be written.
pub struct NewFile<'a> {
    /// What it is to hold.
    pub content: &'a [u8],
    /// Mode, owner and time.
    pub look: &'a Look,
    /// The fraction of the time where none was given, in nanoseconds.
    pub fraction: u32,
    /// What the file must hold beforehand: size and hex SHA-256 of each, with blanks between.
    pub expected: Option<&'a str>,
}

impl Call<'_> {
    /// The line of a batch, which holds the content.
    pub fn line(&self) -> String {
        let content = self.file.as_ref().map(|file| format!(" '' {}", escape(file.content)));
        self.words() + &content.unwrap_or_default() + "\n"
    }

    /// The line for a call whose content follows as base64 on standard input.
    pub fn line_before_content(&self) -> String {
        let bytes = self.file.as_ref().map(|file| format!(" '{}' ''", file.content.len()));
        self.words() + &bytes.unwrap_or_default() + "\n"
    }

    /// Where this leaves something when it is ended midway.
    pub fn leftover(&self) -> Leftover {
        let Names { outer, inner } = self.names.clone();
        Leftover { directory: self.directory().into_owned(), outer, inner }
    }

    /// The directory, with single slashes.
    fn directory(&self) -> Cow<'_, str> {
        match self.path.rsplit_once('/').map_or("", |(directory, _)| directory).trim_end_matches('/') {
            "" => "/".into(),
            directory if directory.contains("//") => {
                let parts: Vec<&str> = directory.split('/').filter(|part| !part.is_empty()).collect();
                format!("/{}", parts.join("/")).into()
            }
            directory => directory.into(),
        }
    }

    fn words(&self) -> String {
        let name = self.path.rsplit('/').next().unwrap_or_default();
        let Names { outer, inner } = self.names;
        let (call, links) = (if self.file.is_some() { "p" } else { "r" }, if self.links { "1" } else { "" });
        let place = format!(
            "{call} '{links}' {} {} '{outer}' '{inner} {}'",
            quote_in_line(&self.directory()),
            quote_in_line(name),
            self.leftover_seconds
        );
        let Some(file) = &self.file else { return place };
        let owner = file.look.owner.as_ref().map(|owner| owner.as_str()).unwrap_or_default();
        let (stamp, time) = file.time().unwrap_or_default();
        let expected = file.expected.unwrap_or_default();
        format!("{place} '{}' {} '{stamp}' '{time}' '{expected}'", file.look.mode, quote(owner))
    }
}

impl NewFile<'_> {
    /// The modification time in UTC, and in seconds since 1970.
    fn time(&self) -> Option<(String, String)> {
        let mtime = self.look.mtime?.to_utc();
        let fraction = match mtime.timestamp_subsec_nanos() {
            0 => self.fraction,
            sent => sent,
        };
        let stamp = format!("{}.{fraction:09}", mtime.format("%Y-%m-%d %H:%M:%S"));
        Some((stamp, format!("{}.{fraction:09}", mtime.timestamp())))
    }
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
