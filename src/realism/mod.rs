//! Content classes and the next body of a file: pure, the clock and the seed are handed in.

mod class;
mod draw;
mod phrases;
mod prose;
mod syslog;
#[cfg(test)]
mod tests;

use chrono::{DateTime, FixedOffset};

pub use class::ContentClass;

use draw::Draw;

/// Why there is no next body.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EditError {
    /// No content class has this name.
    #[error("unknown content_class: {}", quoted(.0))]
    UnknownClass(String),
    /// Files of this class are never edited.
    #[error("content_class={0} does not support edits")]
    NoEditor(ContentClass),
}

/// The body of the file after one more edit by its owner.
///
/// The same arguments always give the same body; time and memory are linear in `previous_body`.
/// `Ok` is the whole new body, with the line endings of the old one and never fewer lines.
/// Clocks and dates in the added text have the offset of `when`, or the offset that the log's own lines show.
///
/// # Errors
///
/// [`EditError::NoEditor`] where files of this class are not edited.
pub fn next_body(
    class: ContentClass,
    persona: &str,
    previous_body: &str,
    when: DateTime<FixedOffset>,
    seed: u64,
) -> Result<String, EditError> {
    let mut draw = Draw::new(seed);
    let body = previous_body;
    match class {
        ContentClass::Todo => Ok(prose::todo(body, &mut draw)),
        ContentClass::Note => Ok(prose::note(body, persona, when, &mut draw)),
        ContentClass::Draft => Ok(prose::draft(body, &mut draw)),
        ContentClass::Script => Ok(prose::script(body, persona, when, &mut draw)),
        ContentClass::LogCron => Ok(syslog::cron(body, when, &mut draw)),
        ContentClass::LogDaemon => Ok(syslog::daemon(body, when, &mut draw)),
        ContentClass::CacheTmp
        | ContentClass::Email
        | ContentClass::CanaryAwsCreds
        | ContentClass::CanaryEnvFile
        | ContentClass::CanaryGitConfig
        | ContentClass::CanarySshKey
        | ContentClass::CanaryHoneydoc
        | ContentClass::CanaryHoneydocDocx
        | ContentClass::CanaryHoneydocPdf
        | ContentClass::CanaryMysqlDump => Err(EditError::NoEditor(class)),
    }
}

/// The line ending that `body` uses.
fn line_ending(body: &str) -> &'static str {
    match body.rfind('\n') {
        Some(at) if body[..at].ends_with('\r') => "\r\n",
        _ => "\n",
    }
}

/// `body`, ended by a line ending where it has text after its last one.
fn ended(body: &str) -> String {
    let mut out = String::with_capacity(body.len() + 512);
    out.push_str(body);
    if !body.is_empty() && !body.ends_with('\n') {
        out.push_str(if body.ends_with('\r') { "\n" } else { line_ending(body) });
    }
    out
}

fn append_line(body: &str, line: &str) -> String {
    let mut out = ended(body);
    out.push_str(line);
    out.push_str(line_ending(body));
    out
}

fn holds_forbidden_word(text: &str) -> bool {
    let text = text.to_ascii_lowercase();
    ["decnet", "deckswain", "decky", "honeypot"].iter().any(|word| text.contains(word))
}

/// `text` as Python's `repr` shows it.
fn quoted(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut out = String::from(quote);
    for c in text.chars() {
        let code = u32::from(c);
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => out.extend(['\\', c]),
            c if !is_unprintable(c) => out.push(c),
            _ if code <= 0xff => out.extend([format!("\\x{code:02x}")]),
            _ if code <= 0xffff => out.extend([format!("\\u{code:04x}")]),
            _ => out.extend([format!("\\U{code:08x}")]),
        }
    }
    out.push(quote);
    out
}

fn is_unprintable(c: char) -> bool {
    c.is_control()
        || (c.is_whitespace() && c != ' ')
        || matches!(u32::from(c), 0xad | 0x200b..=0x200f | 0x202a..=0x202e | 0x2060..=0x206f
            | 0xe000..=0xf8ff | 0xfeff | 0xfff9..=0xfffb | 0xe0000..=0x0010_ffff)
}
