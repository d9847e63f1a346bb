//! A message's properties, and the part of them that goes on when the message is published again.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};

use super::amqp::ForeignValue;

/// Counts the attempts at an action, from 1.
pub const HEADER_ATTEMPT: &str = "x-deckswain-attempt";
/// When the action was first delivered to a worker, RFC 3339.
pub const HEADER_FIRST_SEEN: &str = "x-deckswain-first-seen";
/// Counts how often workers whose engine never had the action's decky gave it to others.
pub const HEADER_HANDED_BACK: &str = "x-deckswain-handed-back";
/// The workers that did so, by a random word each, with commas between.
pub const HEADER_HANDED_BACK_BY: &str = "x-deckswain-handed-back-by";

/// The trace that a message belongs to, as W3C has it.
pub const HEADER_TRACEPARENT: &str = "traceparent";
/// How often the action came back from the dead letters by a replay.
pub const HEADER_REPLAYS: &str = "x-deckswain-replays";

/// The publisher's `expiration`: as a property it would end the message in a delay queue or as a dead letter.
const HEADER_EXPIRATION: &str = "x-deckswain-expiration";
/// The publisher's `user_id`: the broker takes that property from its own user alone.
const HEADER_USER_ID: &str = "x-deckswain-user-id";
/// The publisher's `CC`: under that name the broker would route further copies.
const HEADER_CC: &str = "x-deckswain-cc";

/// The broker's name for further routing keys.
const CC: &str = "CC";
/// Headers by which the broker keeps count of one delivery, or of one death; each by its beginning.
const OF_BROKER: [&str; 5] =
    ["x-first-death-", "x-last-death-", "x-death", "x-delivery-count", "x-acquired-count"];
/// How often the action was sent to a delay queue without an attempt.
pub const HEADER_DEFERRALS: &str = "x-deckswain-deferrals";

/// The longest `traceparent` that a result repeats, in bytes: version 00 has 55, and later ones may add to it.
const TRACEPARENT_BYTES_MAX: usize = 256;

/// A header's value.
#[derive(Debug, Clone, PartialEq)]
pub enum HeaderValue {
    /// A string.
    Text(String),
    /// An integer of 64 bits.
    Integer(i64),
    /// A truth value.
    Boolean(bool),
    /// Any other value, which is only handed on.
    Foreign(ForeignValue),
}

impl HeaderValue {
    /// The text, if it is one.
    #[must_use]
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Integer(_) | Self::Boolean(_) | Self::Foreign(_) => None,
        }
    }

    /// The number, if it is an integer of any width.
    #[must_use]
    pub fn as_integer(&self) -> Option<i64> {
        match self {
            Self::Integer(integer) => Some(*integer),
            Self::Foreign(value) => value.as_integer(),
            Self::Text(_) | Self::Boolean(_) => None,
        }
    }

    /// The same value in JSON.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        match self {
            Self::Text(text) => text.as_str().into(),
            Self::Integer(integer) => (*integer).into(),
            Self::Boolean(value) => (*value).into(),
            Self::Foreign(value) => value.to_json(),
        }
    }
}

impl From<&str> for HeaderValue {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

/// A message's properties.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Properties {
    /// `message_id`.
    pub message_id: Option<String>,
    /// `correlation_id`.
    pub correlation_id: Option<String>,
    /// `reply_to`.
    pub reply_to: Option<String>,
    /// `content_type`.
    pub content_type: Option<String>,
    /// `content_encoding`.
    pub content_encoding: Option<String>,
    /// `type`.
    pub message_type: Option<String>,
    /// `app_id`.
    pub app_id: Option<String>,
    /// `user_id`; never written, as the broker takes it from its own user alone.
    pub user_id: Option<String>,
    /// `cluster_id`.
    pub cluster_id: Option<String>,
    /// `expiration`, in milliseconds as text.
    pub expiration: Option<String>,
    /// `priority`.
    pub priority: Option<u8>,
    /// `timestamp`, to the second.
    pub timestamp: Option<DateTime<Utc>>,
    /// `headers`.
    pub headers: BTreeMap<String, HeaderValue>,
    /// The latest of the broker's own dead-letterings, from its `x-death` header; never written.
    pub death: Option<Death>,
    /// Why the properties are not as they were published, where they are not: some cannot be read here.
    /// Such a message is never published anew, as that would change it.
    pub unreadable: Option<String>,
}

/// How the broker itself dead-lettered a message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Death {
    /// The broker's word: `delivery_limit`, `expired`, `maxlen` or `rejected`.
    pub reason: String,
    /// The queue it happened in.
    pub queue: String,
    /// When, to the second.
    pub at: Option<DateTime<Utc>>,
}

impl Properties {
    /// How often the action was replayed.
    #[must_use]
    pub fn replays(&self) -> i64 {
        self.headers.get(HEADER_REPLAYS).and_then(HeaderValue::as_integer).unwrap_or(0)
    }

    /// How often the action was handed back by workers whose engine never had its decky.
    #[must_use]
    pub fn hand_backs(&self) -> u32 {
        let count = self.headers.get(HEADER_HANDED_BACK).and_then(HeaderValue::as_integer);
        count.map_or(0, |count| u32::try_from(count).unwrap_or(u32::MAX))
    }

    /// The workers that handed the action back, with commas between.
    #[must_use]
    pub fn handed_back_by(&self) -> &str {
        self.headers.get(HEADER_HANDED_BACK_BY).and_then(HeaderValue::as_text).unwrap_or_default()
    }

    /// How often the action was sent to a delay queue without an attempt.
    #[must_use]
    pub fn deferrals(&self) -> i64 {
        self.headers.get(HEADER_DEFERRALS).and_then(HeaderValue::as_integer).unwrap_or(0)
    }

    /// The trace that the message belongs to; none where it is no text or longer than any trace's name.
    #[must_use]
    pub fn traceparent(&self) -> Option<&HeaderValue> {
        let traceparent = self.headers.get(HEADER_TRACEPARENT)?;
        traceparent.as_text().is_some_and(|text| text.len() <= TRACEPARENT_BYTES_MAX).then_some(traceparent)
    }

    /// Which attempt this delivery is, from 1.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        let attempt = self.headers.get(HEADER_ATTEMPT).and_then(HeaderValue::as_integer);
        attempt.and_then(|attempt| u32::try_from(attempt).ok()).unwrap_or(1).max(1)
    }

    /// The properties with which the same message is retried or dead-lettered: all but the broker's
    /// bookkeeping, with `expiration`, `user_id` and the header `CC` as headers that have no effect.
    #[must_use]
    pub fn carried_on(&self) -> Self {
        let mut carried = self.clone();
        carried.headers.retain(|name, _| !is_of_broker(name));
        let mut keep = |name: &str, value: Option<HeaderValue>| {
            if let Some(value) = value {
                carried.headers.insert(name.to_owned(), value);
            }
        };
        keep(HEADER_EXPIRATION, carried.expiration.take().map(HeaderValue::Text));
        keep(HEADER_USER_ID, carried.user_id.take().map(HeaderValue::Text));
        if let Some(cc) = carried.headers.remove(CC) {
            carried.headers.insert(HEADER_CC.to_owned(), cc);
        }
        carried.death = None;
        carried
    }

    /// The properties with which a dead letter is published as an action again: those carried on, with the
    /// publisher's `expiration` in force once more.
    #[must_use]
    pub fn replayed(&self) -> Self {
        let mut replayed = self.carried_on();
        if let Some(HeaderValue::Text(expiration)) = replayed.headers.remove(HEADER_EXPIRATION) {
            // The broker refuses any other text.
            let is_number = expiration.parse::<u32>().is_ok();
            replayed.expiration = is_number.then_some(expiration);
        }
        replayed
    }
}

/// Whether a header is the broker's own bookkeeping.
fn is_of_broker(name: &str) -> bool {
    OF_BROKER.iter().any(|own| name.starts_with(own))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_carried_on_without_what_would_have_an_effect_a_second_time() {
        let headers = [("x-death", "d"), ("x-delivery-count", "3"), ("CC", "elsewhere"), ("tenant", "t")];
        let properties = Properties {
            content_encoding: Some("gzip".to_owned()),
            expiration: Some("3600000".to_owned()),
            user_id: Some("planner".to_owned()),
            priority: Some(7),
            headers: headers.map(|(name, value)| (name.to_owned(), value.into())).into(),
            death: Some(Death::default()),
            ..Properties::default()
        };
        let carried = properties.carried_on();
        let kept = [
            ("tenant", "t"),
            ("x-deckswain-cc", "elsewhere"),
            ("x-deckswain-expiration", "3600000"),
            ("x-deckswain-user-id", "planner"),
        ];
        let kept = kept.map(|(name, value)| (name.to_owned(), HeaderValue::from(value)));
        assert_eq!(carried.headers, kept.into());
        assert_eq!((carried.expiration, carried.user_id, carried.death), (None, None, None));
        assert_eq!((carried.content_encoding.as_deref(), carried.priority), (Some("gzip"), Some(7)));
        let replayed = properties.carried_on().replayed();
        assert_eq!(replayed.expiration.as_deref(), Some("3600000"));
        assert_eq!(replayed.headers.len(), 3);
    }

    #[test]
    fn counts_are_read_from_integers_and_never_below_the_first_attempt() {
        let mut properties = Properties::default();
        assert_eq!((properties.attempt(), properties.replays()), (1, 0));
        for (value, attempt) in [(3, 3), (0, 1), (-1, 1), (i64::MAX, 1)] {
            properties.headers.insert(HEADER_ATTEMPT.to_owned(), HeaderValue::Integer(value));
            assert_eq!(properties.attempt(), attempt);
        }
    }
}
