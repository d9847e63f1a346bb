//! The edits of what people write: lists, notes, drafts, scripts.

use chrono::{DateTime, FixedOffset};

use super::draw::Draw;
use super::phrases::{self, fresh, phrase};
use super::{append_line, ended, holds_forbidden_word, line_ending};

/// What stands before the text of a list item.
struct Item<'a> {
    indent: &'a str,
    bullet: &'a str,
    /// The offset of the mark inside the line's box and the mark, where there is a box.
    mark: Option<(usize, u8)>,
}

fn item(line: &str) -> Option<Item<'_>> {
    let text = line.trim_start_matches([' ', '\t']);
    let indent = &line[..line.len() - text.len()];
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let bullet = match text.as_bytes().get(digits) {
        Some(b'-' | b'*' | b'+') if digits == 0 => &text[..1],
        Some(b'.' | b')') if (1..=6).contains(&digits) => &text[..=digits],
        _ => "",
    };
    let after = &text[bullet.len()..];
    let inner = if bullet.is_empty() { after } else { after.strip_prefix(' ')? };
    let mark = match inner.as_bytes() {
        [b'[', mark @ (b' ' | b'x' | b'X'), b']']
        | [b'[', mark @ (b' ' | b'x' | b'X'), b']', b' ' | b'\r' | b'\n', ..] => {
            Some((line.len() - inner.len() + 1, *mark))
        }
        _ => None,
    };
    (mark.is_some() || !bullet.is_empty()).then_some(Item { indent, bullet, mark })
}

/// The bullet that follows `bullet`: a number counts on.
fn next_bullet(bullet: &str) -> String {
    let number = bullet.trim_end_matches(['.', ')']);
    match number.parse::<u32>() {
        Ok(n) => format!("{}{}", n + 1, &bullet[number.len()..]),
        Err(_) => bullet.to_owned(),
    }
}

pub(super) fn todo(body: &str, draw: &mut Draw) -> String {
    let mut open = Vec::new();
    let mut checked = 'x';
    let mut last_box = None;
    let mut last_bullet = None;
    let mut at = 0;
    for line in body.split_inclusive('\n') {
        let end = at + line.len();
        if let Some(found) = item(line) {
            match found.mark {
                Some((offset, b' ')) => open.push(at + offset),
                Some((_, b'X')) => checked = 'X',
                Some(_) => checked = 'x',
                None => {}
            }
            let place = (found.indent, found.bullet, end);
            if found.mark.is_some() {
                last_box = Some(place);
            } else {
                last_bullet = Some(place);
            }
        }
        at = end;
    }
    let way = draw.between(1, 100);
    let mut out = body.to_owned();
    if !open.is_empty() && way <= 70 {
        let at = open[draw.index(open.len())];
        out.replace_range(at..=at, checked.encode_utf8(&mut [0; 4]));
    }
    if open.is_empty() || way > 35 {
        let (indent, bullet, end) = last_box.or(last_bullet).unwrap_or(("", "-", body.len()));
        let text = fresh(body, draw, |draw| phrase(phrases::TODO, draw));
        let gap = if bullet.is_empty() { "" } else { " " };
        let line = format!("{indent}{}{gap}[ ] {text}", next_bullet(bullet));
        let tail = out.split_off(end);
        let mut grown = ended(&out);
        grown.push_str(&line);
        grown.push_str(line_ending(body));
        grown.push_str(&tail);
        return grown;
    }
    out
}

fn last_line(body: &str) -> &str {
    body.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default()
}

pub(super) fn note(body: &str, persona: &str, when: DateTime<FixedOffset>, draw: &mut Draw) -> String {
    let last = last_line(body);
    let (mut lead, mut rest) = (String::new(), last);
    if let Some(found) = item(last).filter(|found| found.mark.is_none()) {
        lead = format!("{}{} ", found.indent, next_bullet(found.bullet));
        rest = last[found.indent.len() + found.bullet.len()..].trim_start();
    }
    let dated = rest.get(..10).is_some_and(|day| {
        day.bytes().enumerate().all(|(at, b)| if at == 4 || at == 7 { b == b'-' } else { b.is_ascii_digit() })
    });
    if dated {
        let tail = &rest[10..];
        let separator: String = tail.chars().take_while(|c| matches!(c, ' ' | ':' | '-')).take(4).collect();
        lead.push_str(&when.format("%Y-%m-%d").to_string());
        lead.push_str(if separator.is_empty() { " " } else { &separator });
    }
    let mut text = fresh(body, draw, |draw| phrase(phrases::NOTE, draw));
    if draw.chance(15)
        && let Some(name) = initials(persona)
    {
        text = format!("{text} ({name})");
    }
    append_line(body, &format!("{lead}{text}"))
}

pub(super) fn draft(body: &str, draw: &mut Draw) -> String {
    let mut paragraph = String::new();
    for (at, list) in phrases::DRAFT.iter().enumerate() {
        if at == 2 && draw.chance(40) {
            break;
        }
        if at > 0 {
            paragraph.push(' ');
        }
        paragraph.push_str(&fresh(body, draw, |draw| phrase(list, draw)));
    }
    let eol = line_ending(body);
    let widest = body.lines().map(str::len).max().unwrap_or(0);
    if (50..=80).contains(&widest) {
        paragraph = wrapped(&paragraph, eol);
    }
    let mut out = ended(body);
    if !last_is_blank(&out) {
        out.push_str(eol);
    }
    out.push_str(&paragraph);
    out.push_str(eol);
    out
}

fn last_is_blank(body: &str) -> bool {
    body.lines().next_back().is_none_or(|line| line.trim().is_empty())
}

fn wrapped(text: &str, eol: &str) -> String {
    let mut out = String::new();
    let mut width = 0;
    for word in text.split(' ') {
        if width > 0 && width + 1 + word.len() > 72 {
            out.push_str(eol);
            width = 0;
        } else if width > 0 {
            out.push(' ');
            width += 1;
        }
        out.push_str(word);
        width += word.len();
    }
    out
}

pub(super) fn script(body: &str, persona: &str, when: DateTime<FixedOffset>, draw: &mut Draw) -> String {
    let text = fresh(body, draw, |draw| phrase(phrases::SCRIPT, draw));
    let day = when.format("%Y-%m-%d");
    let signed = initials(persona).filter(|_| draw.chance(55));
    let line = match signed {
        Some(name) if draw.chance(70) => format!("# {day} {name}: {text}"),
        Some(name) => format!("# {text} ({name})"),
        None if draw.chance(30) => format!("# {day} {text}"),
        None => format!("# {text}"),
    };
    append_line(body, &line)
}

/// How the persona signs: the initials of a full name, or a login as it is.
fn initials(persona: &str) -> Option<String> {
    let start: String = persona.chars().take(128).collect();
    let words: Vec<&str> =
        start.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).collect();
    let name: String = match words[..] {
        [login] => login.chars().take(16).collect(),
        [_, _] | [_, _, _] => words.iter().filter_map(|word| word.chars().next()).collect(),
        _ => return None,
    };
    (!holds_forbidden_word(&name)).then(|| name.to_lowercase())
}
