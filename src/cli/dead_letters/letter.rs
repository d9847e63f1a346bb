//! What a dead letter tells of itself.

use std::fmt::Write as _;
use std::hash::{BuildHasher as _, RandomState};

use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{DeadLetter, body};
use crate::action::{Glance, id_of, without_byte_order_mark};
use crate::broker::{
    Death, HEADER_ATTEMPT, HEADER_DELAY, HEADER_FIRST_SEEN, HEADER_HANDED_BACK, HEADER_REPLAYS, HeaderValue,
    Properties,
};
use crate::cli::escape::{self, plain};
use crate::cli::input::with_fields;
use crate::result::base64_text;

/// The headers that a worker writes on a dead letter, without `x-deckswain-`.
const OURS: [&str; 8] =
    ["reason", "class", "message", "attempts", "worker", "died-at", "exchange", "routing-key"];

/// A dead letter without its content.
#[derive(Debug)]
pub struct Letter {
    pub died_at: Option<DateTime<Utc>>,
    reason: String,
    pub class: String,
    message: String,
    pub kind: String,
    pub decky: String,
    path: String,
    attempts: Option<i64>,
    replays: i64,
    pub action_id: String,
    /// Whether some of its properties cannot be read, and so not be published again.
    pub is_unreadable: bool,
    /// The id that its result has, also where the message names none.
    result_id: Uuid,
}

impl Letter {
    pub const HEAD: [&str; 8] = ["WHEN", "REASON", "CLASS", "KIND", "DECKY", "PATH", "ATTEMPTS", "ACTION ID"];

    pub fn of(delivery: &DeadLetter) -> Self {
        let glance = Glance::at(&delivery.body);
        let properties = &delivery.properties;
        let text =
            |name: &str| ours(delivery, name).and_then(HeaderValue::as_text).unwrap_or_default().to_owned();
        let (mut reason, mut message) = (text("reason"), text("message"));
        let mut died_at = DateTime::parse_from_rfc3339(&text("died-at")).ok().map(|at| at.to_utc());
        if let Some(death) = &properties.death {
            (reason, message) = (death.reason.replace('_', "-"), in_words(death));
            died_at = death.at;
        }
        if let Some(flaw) = &properties.unreadable {
            message = format!("{message}{}{flaw}", if message.is_empty() { "" } else { ": " });
        }
        // The broker hands on what no decky's queue is bound for just as it was published.
        if reason.is_empty() && delivery.exchange.ends_with(".actions") {
            reason = "unclaimed".to_owned();
            message = "no worker has taken actions for its decky".to_owned();
            died_at = properties.timestamp;
        }
        let attempts = ours(delivery, "attempts").and_then(HeaderValue::as_integer);
        let message_id = properties.message_id.as_deref();
        let result_id = id_of(Some(&glance.action_id), message_id, &delivery.body);
        let named =
            [&*glance.action_id, message_id.unwrap_or_default()].into_iter().find(|id| !id.is_empty());
        let action_id = named.map_or_else(|| result_id.to_string(), ToOwned::to_owned);
        Self {
            died_at,
            reason,
            class: text("class"),
            message,
            kind: glance.kind,
            decky: glance.executing_decky,
            path: glance.path,
            attempts,
            replays: properties.replays(),
            action_id,
            is_unreadable: properties.unreadable.is_some(),
            result_id,
        }
    }

    /// Whether it is the dead letter of this action, by the id that it names or that its result has.
    pub fn is_of(&self, id: &str) -> bool {
        self.action_id == id || self.result_id.to_string() == id
    }

    /// Tells this letter from others, also where its message is no action.
    pub fn fingerprint(&self, delivery: &DeadLetter, hasher: &RandomState) -> u64 {
        hasher.hash_one((&self.action_id, self.died_at, self.replays, &self.reason, &delivery.body))
    }

    pub fn row(&self) -> Vec<String> {
        let or_dash = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
        vec![
            self.died_at.map_or("-".to_owned(), |at| at.to_rfc3339_opts(SecondsFormat::Secs, true)),
            or_dash(&self.reason),
            or_dash(&self.class),
            or_dash(&self.kind),
            or_dash(&self.decky),
            or_dash(&self.path),
            self.attempts.map_or("-".to_owned(), |attempts| attempts.to_string()),
            or_dash(&self.action_id),
        ]
    }

    pub fn to_json(&self) -> Value {
        json!({
            "died_at": self.died_at.map(|at| at.to_rfc3339_opts(SecondsFormat::Millis, true)),
            "reason": self.reason, "class": self.class, "message": self.message, "kind": self.kind,
            "decky": self.decky, "path": self.path, "attempts": self.attempts, "replays": self.replays,
            "action_id": self.action_id,
        })
    }

    /// One line of JSON with the headers and the body, whose text stays as it came.
    pub fn to_json_whole(&self, delivery: &DeadLetter) -> String {
        let mut whole = self.to_json();
        let headers = delivery.properties.headers.iter().map(|(name, value)| (name.clone(), value.to_json()));
        whole["headers"] = Value::Object(headers.collect());
        let properties = named(&delivery.properties).into_iter();
        whole["properties"] = properties.map(|(name, value)| (name.to_owned(), Value::from(value))).collect();
        let (name, body) = match json_of(delivery) {
            Some(body) => ("body", body::in_one_line(body)),
            None => ("body_base64", Value::from(base64_text(&delivery.body)).to_string()),
        };
        let whole = whole.to_string();
        let fields = whole.strip_suffix('}').unwrap_or(&whole);
        format!("{fields},\"{name}\":{body}}}")
    }

    /// The same for a person.
    pub fn text(&self, delivery: &DeadLetter) -> String {
        let mut text = String::new();
        for (name, value) in Self::HEAD.iter().zip(self.row()) {
            let _ = writeln!(text, "{:<12}{}", name.to_lowercase(), plain(&value));
        }
        let _ =
            writeln!(text, "{:<12}{}\n{:<12}{}", "message", plain(&self.message), "replays", self.replays);
        let properties = named(&delivery.properties);
        if !properties.is_empty() {
            text.push_str("properties\n");
        }
        for (name, value) in properties {
            let _ = writeln!(text, "  {name}: {}", plain(&value));
        }
        text.push_str("headers\n");
        for (name, value) in &delivery.properties.headers {
            let _ = writeln!(text, "  {}: {}", plain(name), plain(&value.to_json().to_string()));
        }
        text.push_str("body\n");
        match json_of(delivery) {
            Some(body) => body::in_lines(body).lines().for_each(|line| {
                let _ = writeln!(text, "  {}", escape::json(line));
            }),
            None => String::from_utf8_lossy(&delivery.body).lines().for_each(|line| {
                let _ = writeln!(text, "  {}", plain(line));
            }),
        }
        text.trim_end().to_owned()
    }

    /// The action as `submit` reads it; `None` where the body is no JSON object.
    pub fn to_submit(&self, delivery: &DeadLetter) -> Option<String> {
        let body = json_of(delivery).filter(|body| body.starts_with('{'))?;
        Some(with_fields(body, [("action_id", || self.result_id.to_string())]))
    }
}

/// The body where it is JSON, without the blanks around it.
fn json_of(delivery: &DeadLetter) -> Option<&str> {
    serde_json::from_slice::<&RawValue>(without_byte_order_mark(&delivery.body)).ok().map(RawValue::get)
}

/// The properties that are there, by AMQP's name.
fn named(properties: &Properties) -> Vec<(&'static str, String)> {
    let texts = [
        ("message_id", &properties.message_id),
        ("correlation_id", &properties.correlation_id),
        ("reply_to", &properties.reply_to),
        ("content_type", &properties.content_type),
        ("content_encoding", &properties.content_encoding),
        ("type", &properties.message_type),
        ("app_id", &properties.app_id),
        ("user_id", &properties.user_id),
        ("cluster_id", &properties.cluster_id),
        ("expiration", &properties.expiration),
    ];
    let mut named: Vec<_> =
        texts.into_iter().filter_map(|(name, text)| Some((name, text.clone()?))).collect();
    named.extend(properties.priority.map(|priority| ("priority", priority.to_string())));
    named.extend(properties.timestamp.map(|at| ("timestamp", at.to_rfc3339_opts(SecondsFormat::Secs, true))));
    named
}

/// A header that a worker wrote when it dead-lettered the message; none where the broker did so itself, as
/// then whoever published the message may have written it.
fn ours<'a>(delivery: &'a DeadLetter, name: &str) -> Option<&'a HeaderValue> {
    let is_of_worker = delivery.properties.death.is_none() && !delivery.exchange.ends_with(".actions");
    let header = delivery.properties.headers.get(&format!("x-deckswain-{name}"));
    header.filter(|_| is_of_worker)
}

/// What the broker's own word means.
fn in_words(death: &Death) -> String {
    let queue = &death.queue;
    match death.reason.as_str() {
        "delivery_limit" => format!(
            "{queue} delivered it as often as it may, and no worker lived to answer: it may bring its worker down"
        ),
        "expired" => format!("it lay in {queue} for longer than it may"),
        "maxlen" => format!("{queue} was full"),
        "rejected" => format!("a consumer of {queue} rejected it"),
        other => format!("the broker says {other:?} of {queue}"),
    }
}

/// The routing key and the properties of an action that is tried anew.
pub fn to_replay(delivery: &DeadLetter) -> (String, Properties) {
    // The action itself says it best: a retry may have come by a queue's name.
    let routing_key = Glance::at(&delivery.body).routing_key().unwrap_or_else(|| {
        let given = ours(delivery, "routing-key").and_then(HeaderValue::as_text);
        given.unwrap_or(&delivery.routing_key).to_owned()
    });
    let mut properties = delivery.properties.replayed();
    let replays = properties.replays().saturating_add(1);
    properties.headers.retain(|name, _| !is_bookkeeping(name));
    properties.headers.insert(HEADER_REPLAYS.to_owned(), HeaderValue::Integer(replays));
    (routing_key, properties)
}

fn is_bookkeeping(name: &str) -> bool {
    let of_ours = name.strip_prefix("x-deckswain-").is_some_and(|name| OURS.contains(&name));
    of_ours
        || [HEADER_ATTEMPT, HEADER_FIRST_SEEN, HEADER_DELAY].contains(&name)
        || name.starts_with(HEADER_HANDED_BACK)
}
