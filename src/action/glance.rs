//! The little of a message that tells where it goes.

use std::borrow::Cow;
use std::collections::HashMap;

use serde_json::value::RawValue;

use super::{DeckyName, without_byte_order_mark};

/// Some of an action's fields, unchecked; they are empty where the message is not an action.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Glance {
    /// `action_id`.
    pub action_id: String,
    /// `kind`.
    pub kind: String,
    /// `path`.
    pub path: String,
    /// The decky whose container would run the command.
    pub executing_decky: String,
}

impl Glance {
    /// The routing key that such an action is published with.
    #[must_use]
    pub fn routing_key(&self) -> Option<String> {
        DeckyName::parse(&self.executing_decky).ok().map(|decky| format!("decky.{decky}"))
    }

    /// Reads a message's fields; of a field that comes twice, which decoding refuses, the last counts.
    #[must_use]
    pub fn at(body: &[u8]) -> Self {
        let fields: HashMap<Cow<'_, str>, &RawValue> =
            serde_json::from_slice(without_byte_order_mark(body)).unwrap_or_default();
        let text = |name: &str| {
            let value = fields.get(name).and_then(|value| serde_json::from_str::<String>(value.get()).ok());
            value.unwrap_or_default()
        };
        let kind = text("kind");
        let executing_decky = text(if kind == "traffic" { "src_name" } else { "dst_name" });
        Self { action_id: text("action_id"), kind, path: text("path"), executing_decky }
    }
}
