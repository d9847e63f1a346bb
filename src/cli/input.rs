//! Actions as they come from a file or a pipe.

use std::io::Read as _;
use std::path::Path;

use chrono::{SecondsFormat, Utc};
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use uuid::Uuid;

use super::Failed;
use crate::result::base64_text;

/// Reads a file, or standard input for `-`.
pub fn read_input(file: &Path) -> Result<String, Failed> {
    let mut bytes = Vec::new();
    let read = if file.as_os_str() == "-" {
        std::io::stdin().lock().read_to_end(&mut bytes)
    } else {
        std::fs::File::open(file).and_then(|mut opened| opened.read_to_end(&mut bytes))
    };
    read.map_err(|error| Failed::usage(format!("failed to read {}: {error}", file.display())))?;
    String::from_utf8(bytes).map_err(|error| {
        Failed::usage(format!("the input is not UTF-8 at byte {}", error.utf8_error().valid_up_to()))
    })
}

/// Takes one object, an array of them, or one after the other.
pub fn split(input: &str) -> Result<Vec<&RawValue>, Failed> {
    let not_json = |error: serde_json::Error| {
        Failed::usage(format!("the input is no JSON: {error}"))
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
        return Err(Failed::usage("the input holds no action")
            .hint("one JSON object, a JSON array, or one object a line"));
    }
    Ok(actions)
}

/// Gives an object an `action_id` where it has none; anything else is left for decoding to refuse.
pub fn with_action_id(raw: &RawValue) -> String {
    with_field(raw.get(), "action_id", || Uuid::new_v4().to_string())
}

/// Likewise `issued_at`.
pub fn with_issued_at(text: &str) -> String {
    with_field(text, "issued_at", || Utc::now().to_rfc3339_opts(SecondsFormat::Millis, true))
}

/// Carries a local file as `content_bytes`.
pub fn with_content_bytes(text: &str, path: &Path) -> Result<String, Failed> {
    let bytes = std::fs::read(path)
        .map_err(|error| Failed::usage(format!("failed to read {}: {error}", path.display())))?;
    let carried = with_field(text, "content_bytes", || base64_text(&bytes));
    match carried == text {
        true => Err(Failed::usage("the action has content_bytes of its own")
            .hint("leave it out, or leave out --file-bytes")),
        false => Ok(carried),
    }
}

/// Gives a JSON object a field that it does not have; anything else stays as it is.
pub fn with_field(text: &str, name: &str, value: impl FnOnce() -> String) -> String {
    match serde_json::from_str::<Map<String, Value>>(text) {
        Ok(object) if !object.contains_key(name) => {
            let rest = text.trim_start().trim_start_matches('{').trim_start();
            let comma = if rest.starts_with('}') { "" } else { "," };
            format!("{{\"{name}\":\"{}\"{comma}{rest}", value())
        }
        _ => text.to_owned(),
    }
}
