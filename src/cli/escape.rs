//! Text from deckies, publishers and the broker, made fit for a terminal.
//!
//! Control characters steer a terminal; marks that turn the direction of writing, invisible characters and
//! blanks that are not spaces make a text look like another one.

use std::borrow::Cow;
use std::fmt::Write as _;

/// How many characters of a cell are shown: the layout of a table takes time with each of them.
const CELL_CHARS_MAX: usize = 120;

/// How many combining marks may follow each other; living languages need two.
const MARKS_MAX: usize = 2;

/// How a character is written that is not shown as it is.
#[derive(Clone, Copy)]
enum Style {
    /// `\u{202e}`
    Rust,
    /// `\u202e`, in UTF-16 units: inside a JSON string it means the same character.
    Json,
}

/// `text` with everything escaped that a terminal would obey or hide.
pub fn plain(text: &str) -> String {
    escaped(text, Style::Rust)
}

/// The same for JSON text, which stays JSON and keeps its meaning.
pub fn json(text: &str) -> Cow<'_, str> {
    match text.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
        true => Cow::Borrowed(text),
        false => Cow::Owned(escaped(text, Style::Json)),
    }
}

/// The same for a cell of a table: cut when it is long, and blanks that could be taken for the gap between two
/// columns are escaped.
pub fn cell(text: &str) -> String {
    let mut cell = String::new();
    let mut marks = 0;
    let mut is_after_blank = true;
    let mut characters = text.chars().peekable();
    let mut length = 0;
    while let Some(character) = characters.next() {
        let is_edge = is_after_blank || characters.peek().is_none();
        let from = cell.len();
        if character == ' ' && is_edge {
            cell.push_str("\\u{20}");
        } else {
            push(&mut cell, character, &mut marks, Style::Rust);
        }
        is_after_blank = character == ' ';
        length += cell[from..].chars().count();
        if length > CELL_CHARS_MAX {
            cell.truncate(from);
            cell.push('…');
            break;
        }
    }
    cell
}

fn escaped(text: &str, style: Style) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut marks = 0;
    for character in text.chars() {
        push(&mut shown, character, &mut marks, style);
    }
    shown
}

/// Adds one character; `marks` counts the combining marks right before it.
fn push(shown: &mut String, character: char, marks: &mut usize, style: Style) {
    let is_shown = match sort(character) {
        Sort::Shown => {
            *marks = 0;
            true
        }
        Sort::Mark => {
            *marks += 1;
            *marks <= MARKS_MAX && !shown.is_empty()
        }
        Sort::Hidden => false,
    };
    if is_shown {
        shown.push(character);
        return;
    }
    // Writing to a String cannot fail.
    let _ = match style {
        Style::Rust => write!(shown, "{}", character.escape_unicode()),
        Style::Json => {
            let mut units = [0; 2];
            character.encode_utf16(&mut units).iter().try_for_each(|unit| write!(shown, "\\u{unit:04x}"))
        }
    };
}

enum Sort {
    Shown,
    /// Drawn over the character before it.
    Mark,
    /// Obeyed, invisible, or a blank that is not a space.
    Hidden,
}

fn sort(character: char) -> Sort {
    if character.is_ascii() {
        return if character.is_ascii_control() { Sort::Hidden } else { Sort::Shown };
    }
    if is_visibly_nothing(character) {
        return Sort::Hidden;
    }
    if character.escape_debug().len() == 1 {
        return Sort::Shown;
    }
    // `char` escapes combining marks like everything that cannot be printed; `str` takes them behind another
    // character.
    let behind = String::from_iter(['a', character]);
    match behind.escape_debug().count() {
        2 => Sort::Mark,
        _ => Sort::Hidden,
    }
}

/// Characters that Unicode counts as letters, symbols or marks, and that show nothing.
fn is_visibly_nothing(character: char) -> bool {
    matches!(
        character,
        // Fillers and blanks.
        '\u{115f}' | '\u{1160}' | '\u{3164}' | '\u{ffa0}' | '\u{2800}' | '\u{16fe4}' | '\u{1d159}'
            | '\u{13441}' | '\u{13442}' | '\u{17b4}' | '\u{17b5}' | '\u{34f}'
            // Variation selectors.
            | '\u{180b}'..='\u{180f}' | '\u{fe00}'..='\u{fe0f}' | '\u{e0100}'..='\u{e01ef}'
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every kind of character that steers, hides or is invisible, and none that is plain to see.
    const HIDDEN: &str = "\0\u{7}\t\n\r\u{1b}\u{7f}\u{85}\u{9b}\u{a0}\u{ad}\u{34f}\u{600}\u{61c}\u{6dd}\u{70f}\
        \u{115f}\u{1160}\u{1680}\u{17b4}\u{180b}\u{180e}\u{2000}\u{2003}\u{200b}\u{200c}\u{200d}\u{200e}\
        \u{200f}\u{2028}\u{2029}\u{202a}\u{202e}\u{202f}\u{205f}\u{2060}\u{2061}\u{2064}\u{2066}\u{2069}\
        \u{206f}\u{2800}\u{3000}\u{3164}\u{e000}\u{f8ff}\u{fdd0}\u{fe00}\u{fe0f}\u{feff}\u{ffa0}\u{fff9}\
        \u{fffe}\u{110bd}\u{13441}\u{1bca0}\u{1d159}\u{1d173}\u{e0001}\u{e0020}\u{e007f}\u{e0100}\
        \u{f0000}\u{10ffff}";

    #[test]
    fn nothing_steers_the_terminal_or_hides() {
        assert_eq!(plain("a\u{1b}[2J\n\u{202e}b é"), "a\\u{1b}[2J\\u{a}\\u{202e}b é");
        for character in HIDDEN.chars() {
            let shown = plain(&format!("a{character}b"));
            assert_eq!(shown, format!("a{}b", character.escape_unicode()));
        }
        for visible in ["\\u{1b}", "Ünïcode", "e\u{301}", "漢字", "עברית", "नमस्ते", "🙂", "''\"\""]
        {
            assert_eq!(plain(visible), visible);
        }
    }

    #[test]
    fn marks_do_not_pile_up() {
        assert_eq!(plain("a\u{301}\u{302}\u{303}b"), "a\u{301}\u{302}\\u{303}b");
        assert_eq!(plain("\u{301}a"), "\\u{301}a");
    }

    #[test]
    fn json_keeps_its_meaning() {
        let text = format!("{{\"{HIDDEN}\": \"🙂é \\u0007\"}}").replace(|c: char| c < ' ', "");
        let shown = json(&text);
        assert_eq!(plain(&shown), shown);
        let read = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
        assert_eq!(read(&shown), read(&text));
    }

    #[test]
    fn a_cell_is_short_and_holds_no_gap_between_columns() {
        assert_eq!(cell("/srv/a b"), "/srv/a b");
        assert_eq!(cell(" a   b "), "\\u{20}a \\u{20}\\u{20}b\\u{20}");
        assert_eq!(cell(&"x".repeat(120)), "x".repeat(120));
        assert_eq!(cell(&"x".repeat(121)), format!("{}…", "x".repeat(120)));
        assert!(cell(&"\u{202e}".repeat(1_000_000)).chars().count() <= CELL_CHARS_MAX + 1);
    }
}
