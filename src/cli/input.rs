//! Actions as they come from a file or a pipe.

use std::borrow::Cow;
use std::collections::HashMap;
use std::io::Read as _;
use std::path::Path;

use chrono::{SecondsFormat, Utc};
use serde::de::IgnoredAny;
use serde_json::value::RawValue;
use uuid::Uuid;

use super::Failed;
use crate::action::without_byte_order_mark;
use crate::result::base64_text;

/// Reads a file, or standard input for `-`.
pub fn read_input(file: &Path) -> Result<String, Failed> {
    let mut bytes = Vec::new();
    let read = if file.as_os_str() == "-" {
        std::io::stdin().lock().read_to_end(&mut bytes)
    } else {
        std::fs::File::open(file).and_then(|mut opened| opened.read_to_end(&mut bytes))
    };
    read.map_err(|error| Failed::to_read(file, &error))?;
    let marks = bytes.len() - without_byte_order_mark(&bytes).len();
    bytes.drain(..marks);
    String::from_utf8(bytes).map_err(|error| {
        Failed::usage("the input is no JSON")
            .why(format!("it is not UTF-8 at byte {}", error.utf8_error().valid_up_to()))
            .hint("a file's bytes travel as base64 in content_bytes; `submit --file-bytes` puts them there")
    })
}

/// Takes one object, an array of them, or one after the other.
pub fn split(input: &str) -> Result<Vec<&RawValue>, Failed> {
    let not_json = |error: serde_json::Error| {
        Failed::usage("the input is no JSON")
            .why(error)
            .hint("one JSON object, a JSON array, or one object a line; see `deckswain schema action`")
    };
    let mut actions = Vec::new();
    for value in serde_json::Deserializer::from_str(input).into_iter::<&RawValue>() {
        let value = value.map_err(not_json)?;
        if value.get().starts_with('[') {
            actions.extend(serde_json::from_str::<Vec<&RawValue>>(value.get()).map_err(not_json)?);
        } else {
            actions.push(value);
        }
    }
    if actions.is_empty() {
        return Err(Failed::usage("there is nothing to do")
            .why("the input holds no action")
            .hint("one JSON object, a JSON array, or one object a line"));
    }
    Ok(actions)
}

/// Gives an object an `action_id` where it has none; anything else is left for decoding to refuse.
pub fn with_action_id(raw: &RawValue) -> String {
    with_fields(raw.get(), [("action_id", new_action_id as fn() -> String)])
}

/// Likewise `issued_at`.
pub fn with_action_id_and_issued_at(raw: &RawValue) -> String {
    with_fields(raw.get(), [("issued_at", now as fn() -> String), ("action_id", new_action_id)])
}

fn new_action_id() -> String {
    Uuid::new_v4().to_string()
}

fn now() -> String {
    Utc::now().to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// Carries a local file as `content_bytes`.
pub fn with_content_bytes(text: &str, path: &Path) -> Result<String, Failed> {
    let bytes = std::fs::read(path).map_err(|error| Failed::to_read(path, &error))?;
    let carried = with_fields(text, [("content_bytes", || base64_text(&bytes))]);
    match carried == text {
        true => Err(Failed::usage("--file-bytes cannot be used")
            .why("the action has content_bytes of its own")
            .hint("leave one of them out")),
        false => Ok(carried),
    }
}

/// Gives a JSON object those of the string fields that it does not have; anything else stays as it is.
pub fn with_fields<V: FnOnce() -> String, const N: usize>(text: &str, fields: [(&str, V); N]) -> String {
    let Ok(object) = serde_json::from_str::<HashMap<Cow<'_, str>, IgnoredAny>>(text) else {
        return text.to_owned();
    };
    let mut text = text.to_owned();
    let mut is_empty = object.is_empty();
    for (name, value) in fields {
        if !object.contains_key(name) {
            let rest = text.trim_start().trim_start_matches('{').trim_start();
            let comma = if is_empty { "" } else { "," };
            let value = serde_json::Value::from(value());
            text = format!("{{\"{name}\":{value}{comma}{rest}");
            is_empty = false;
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::with_fields;

    #[test]
    fn an_object_is_given_the_fields_that_it_lacks_and_nothing_else_changes() {
        let value = || "1".to_owned();
        let given = |text: &str| with_fields(text, [("a", value), ("b", value)]);
        assert_eq!(given(r#" { "b" : 0.10, "c":[] }"#), r#"{"a":"1","b" : 0.10, "c":[] }"#);
        assert_eq!(with_fields("{}", [("a", || "\",\"kind\":\"".to_owned())]), r#"{"a":"\",\"kind\":\""}"#);
        assert_eq!(given("{ }"), r#"{"b":"1","a":"1"}"#);
        assert_eq!(given("[1]"), "[1]");
        assert_eq!(given(r#"{"a":1,"b":2}"#), r#"{"a":1,"b":2}"#);
    }
}
