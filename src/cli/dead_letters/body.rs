//! The JSON text of a body laid out anew: numbers, strings, the order of keys and repeated keys stay as they came.

/// How far a line is indented for each object or array around it.
const INDENT: &str = "  ";

/// Deeper parts stay on one line: a hostile body must not grow beyond measure.
const INDENTS_MAX: usize = 16;

/// A part of a JSON text.
enum Token<'a> {
    Open(char),
    Close(char),
    Comma,
    Colon,
    /// A string, a number or a literal.
    Scalar(&'a str),
}

/// Lays out a valid JSON text with a line for each field or element.
pub fn in_lines(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    let mut depth = 0;
    let mut is_opened = false;
    for token in Tokens(json) {
        let is_first = std::mem::take(&mut is_opened);
        match token {
            Token::Close(bracket) => {
                depth -= 1;
                if !is_first {
                    new_line(&mut text, depth);
                }
                text.push(bracket);
                continue;
            }
            _ if is_first => new_line(&mut text, depth),
            _ => {}
        }
        match token {
            Token::Open(bracket) => {
                text.push(bracket);
                depth += 1;
                is_opened = true;
            }
            Token::Comma => {
                text.push(',');
                new_line(&mut text, depth);
            }
            Token::Colon => text.push_str(": "),
            Token::Scalar(scalar) => text.push_str(scalar),
            Token::Close(_) => {}
        }
    }
    text
}

fn new_line(text: &mut String, depth: usize) {
    if depth > INDENTS_MAX {
        return;
    }
    text.push('\n');
    for _ in 0..depth {
        text.push_str(INDENT);
    }
}

/// Lays out a valid JSON text as one line.
pub fn in_one_line(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for token in Tokens(json) {
        match token {
            Token::Open(bracket) | Token::Close(bracket) => text.push(bracket),
            Token::Comma => text.push(','),
            Token::Colon => text.push(':'),
            Token::Scalar(scalar) => text.push_str(scalar),
        }
    }
    text
}

/// The tokens of a valid JSON text.
struct Tokens<'a>(&'a str);

impl<'a> Iterator for Tokens<'a> {
    type Item = Token<'a>;

    fn next(&mut self) -> Option<Token<'a>> {
        let text = self.0.trim_start_matches([' ', '\t', '\r', '\n']);
        let first = text.chars().next()?;
        let length = match first {
            '"' => string_length(text),
            '{' | '}' | '[' | ']' | ',' | ':' => 1,
            _ => text.find([',', ':', '}', ']', ' ', '\t', '\r', '\n']).unwrap_or(text.len()),
        };
        let (token, rest) = text.split_at(length);
        self.0 = rest;
        Some(match first {
            '{' | '[' => Token::Open(first),
            '}' | ']' => Token::Close(first),
            ',' => Token::Comma,
            ':' => Token::Colon,
            _ => Token::Scalar(token),
        })
    }
}

/// The length of the string that `text` begins with, its quotes included.
fn string_length(text: &str) -> usize {
    let mut is_escaped = false;
    for (at, byte) in text.bytes().enumerate().skip(1) {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = true,
            b'"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_keeps_its_numbers_its_order_and_what_comes_twice() {
        let body = " {\"b\": 123456789012345678901234567890,\r\n\"a\":0.10, \"a\" : [ ],\"c\":[1e5,{ }, null],\"d\\\"{\":\"x, \\\\\"} ";
        let lines = "{\n  \"b\": 123456789012345678901234567890,\n  \"a\": 0.10,\n  \"a\": [],\n  \"c\": [\n    1e5,\n    {},\n    null\n  ],\n  \"d\\\"{\": \"x, \\\\\"\n}";
        assert_eq!(in_lines(body), lines);
        let line = "{\"b\":123456789012345678901234567890,\"a\":0.10,\"a\":[],\"c\":[1e5,{},null],\"d\\\"{\":\"x, \\\\\"}";
        assert_eq!(in_one_line(body), line);
        assert_eq!(in_one_line(lines), line);
        assert_eq!(in_lines(" -1.50 "), "-1.50");
        let deep = "[".repeat(100_000) + &"]".repeat(100_000);
        assert!(in_lines(&deep).len() < 2 * deep.len());
    }
}
