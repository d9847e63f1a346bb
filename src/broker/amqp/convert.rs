//! Properties, from and to the client library's form.

use chrono::{DateTime, SecondsFormat};
use lapin::BasicProperties;
use lapin::types::{AMQPValue, DecimalValue, FieldTable, ShortString};
use serde_json::{Value, json};

use crate::broker::{Death, HeaderValue, Properties};
use crate::result::base64_text;

/// AMQP's `delivery_mode` of a message that outlives a restart of the broker.
const PERSISTENT: u8 = 2;

/// A header's value of a type that this program only hands on, kept as it came.
#[derive(Debug, Clone, PartialEq)]
pub struct ForeignValue(AMQPValue);

impl ForeignValue {
    /// The number, if it is an integer of fewer than 64 bits.
    #[must_use]
    pub fn as_integer(&self) -> Option<i64> {
        match self.0 {
            AMQPValue::ShortShortInt(value) => Some(value.into()),
            AMQPValue::ShortShortUInt(value) => Some(value.into()),
            AMQPValue::ShortInt(value) => Some(value.into()),
            AMQPValue::ShortUInt(value) => Some(value.into()),
            AMQPValue::LongInt(value) => Some(value.into()),
            AMQPValue::LongUInt(value) => Some(value.into()),
            _ => None,
        }
    }

    /// The same value in JSON: bytes as `{"base64": ...}`, a time as RFC 3339, a decimal as a string.
    #[must_use]
    pub fn to_json(&self) -> Value {
        json_of(&self.0)
    }
}

fn json_of(value: &AMQPValue) -> Value {
    match value {
        AMQPValue::Boolean(value) => (*value).into(),
        AMQPValue::ShortShortInt(value) => (*value).into(),
        AMQPValue::ShortShortUInt(value) => (*value).into(),
        AMQPValue::ShortInt(value) => (*value).into(),
        AMQPValue::ShortUInt(value) => (*value).into(),
        AMQPValue::LongInt(value) => (*value).into(),
        AMQPValue::LongUInt(value) => (*value).into(),
        AMQPValue::LongLongInt(value) => (*value).into(),
        AMQPValue::Float(value) => finite_or_text((*value).into()),
        AMQPValue::Double(value) => finite_or_text(*value),
        AMQPValue::DecimalValue(value) => decimal(value).into(),
        AMQPValue::ShortString(text) => text.as_str().into(),
        AMQPValue::LongString(text) => match std::str::from_utf8(text.as_bytes()) {
            Ok(text) => text.into(),
            Err(_) => json!({ "base64": base64_text(text.as_bytes()) }),
        },
        AMQPValue::FieldArray(values) => values.as_slice().iter().map(json_of).collect(),
        AMQPValue::Timestamp(seconds) => time_of(*seconds)
            .map_or_else(|| (*seconds).into(), |time| time.to_rfc3339_opts(SecondsFormat::Secs, true).into()),
        AMQPValue::FieldTable(table) => {
            table.inner().iter().map(|(name, value)| (name.to_string(), json_of(value))).collect()
        }
        AMQPValue::ByteArray(bytes) => json!({ "base64": base64_text(bytes.as_slice()) }),
        AMQPValue::Void => Value::Null,
    }
}

fn finite_or_text(value: f64) -> Value {
    serde_json::Number::from_f64(value).map_or_else(|| value.to_string().into(), Value::Number)
}

/// Writes the digits with the point before the last `scale` of them.
fn decimal(decimal: &DecimalValue) -> String {
    let scale = usize::from(decimal.scale);
    let digits = format!("{:0>width$}", decimal.value, width = scale + 1);
    let (whole, fraction) = digits.split_at(digits.len() - scale);
    if scale == 0 { whole.to_owned() } else { format!("{whole}.{fraction}") }
}

fn time_of(seconds: u64) -> Option<DateTime<chrono::Utc>> {
    DateTime::from_timestamp(i64::try_from(seconds).ok()?, 0)
}

fn header_from(value: &AMQPValue) -> HeaderValue {
    match value {
        AMQPValue::Boolean(value) => HeaderValue::Boolean(*value),
        AMQPValue::LongLongInt(value) => HeaderValue::Integer(*value),
        AMQPValue::LongString(text) => match std::str::from_utf8(text.as_bytes()) {
            Ok(text) => HeaderValue::Text(text.to_owned()),
            Err(_) => HeaderValue::Foreign(ForeignValue(value.clone())),
        },
        _ => HeaderValue::Foreign(ForeignValue(value.clone())),
    }
}

pub fn properties_from(from: &BasicProperties) -> Properties {
    let text = |value: &Option<ShortString>| value.as_ref().map(ToString::to_string);
    let headers = from.headers().iter().flat_map(FieldTable::inner);
    Properties {
        message_id: text(from.message_id()),
        correlation_id: text(from.correlation_id()),
        reply_to: text(from.reply_to()),
        content_type: text(from.content_type()),
        content_encoding: text(from.content_encoding()),
        message_type: text(from.kind()),
        app_id: text(from.app_id()),
        user_id: text(from.user_id()),
        cluster_id: text(from.cluster_id()),
        expiration: text(from.expiration()),
        priority: *from.priority(),
        timestamp: from.timestamp().and_then(time_of),
        headers: headers.map(|(name, value)| (name.to_string(), header_from(value))).collect(),
        death: from.headers().as_ref().and_then(death_from),
        unreadable: None,
    }
}

/// The broker puts the latest death first.
fn death_from(headers: &FieldTable) -> Option<Death> {
    let AMQPValue::FieldArray(deaths) = headers.inner().get("x-death")? else { return None };
    let Some(AMQPValue::FieldTable(latest)) = deaths.as_slice().first() else { return None };
    let text = |name: &str| match latest.inner().get(name) {
        Some(AMQPValue::LongString(text)) => String::from_utf8_lossy(text.as_bytes()).into_owned(),
        _ => String::new(),
    };
    let at = match latest.inner().get("time") {
        Some(AMQPValue::Timestamp(seconds)) => time_of(*seconds),
        _ => None,
    };
    Some(Death { reason: text("reason"), queue: text("queue"), at })
}

fn header_to(value: &HeaderValue) -> AMQPValue {
    match value {
        HeaderValue::Text(text) => AMQPValue::LongString(text.as_str().into()),
        HeaderValue::Integer(integer) => AMQPValue::LongLongInt(*integer),
        HeaderValue::Boolean(value) => AMQPValue::Boolean(*value),
        HeaderValue::Foreign(value) => value.0.clone(),
    }
}

pub fn properties_to(from: &Properties) -> BasicProperties {
    let mut headers = FieldTable::default();
    for (name, value) in &from.headers {
        headers.insert(name.as_str().into(), header_to(value));
    }
    let mut to = BasicProperties::default().with_delivery_mode(PERSISTENT).with_headers(headers);
    type With = fn(BasicProperties, ShortString) -> BasicProperties;
    let texts: [(&Option<String>, With); 9] = [
        (&from.message_id, BasicProperties::with_message_id),
        (&from.correlation_id, BasicProperties::with_correlation_id),
        (&from.reply_to, BasicProperties::with_reply_to),
        (&from.content_type, BasicProperties::with_content_type),
        (&from.content_encoding, BasicProperties::with_content_encoding),
        (&from.message_type, BasicProperties::with_type),
        (&from.app_id, BasicProperties::with_app_id),
        (&from.cluster_id, BasicProperties::with_cluster_id),
        (&from.expiration, BasicProperties::with_expiration),
    ];
    for (text, with) in texts {
        if let Some(text) = text {
            to = with(to, text.as_str().into());
        }
    }
    if let Some(priority) = from.priority {
        to = to.with_priority(priority);
    }
    if let Some(seconds) = from.timestamp.and_then(|time| u64::try_from(time.timestamp()).ok()) {
        to = to.with_timestamp(seconds);
    }
    to
}

#[cfg(test)]
mod tests {
    use lapin::types::FieldArray;

    use super::*;

    #[test]
    fn headers_of_every_type_come_back_as_they_were() {
        let mut inner = FieldTable::default();
        inner.insert("bytes".into(), AMQPValue::ByteArray(vec![0xff].into()));
        let values = [
            AMQPValue::Boolean(true),
            AMQPValue::ShortShortInt(-1),
            AMQPValue::ShortShortUInt(1),
            AMQPValue::ShortInt(-2),
            AMQPValue::ShortUInt(2),
            AMQPValue::LongInt(-3),
            AMQPValue::LongUInt(3),
            AMQPValue::LongLongInt(i64::MIN),
            AMQPValue::Float(0.5),
            AMQPValue::Double(f64::INFINITY),
            AMQPValue::DecimalValue(DecimalValue { scale: 2, value: 5 }),
            AMQPValue::LongString("text".into()),
            AMQPValue::LongString(vec![0xff, 0xfe].into()),
            AMQPValue::FieldArray(FieldArray::from(vec![AMQPValue::Void, AMQPValue::LongLongInt(1)])),
            AMQPValue::Timestamp(0),
            AMQPValue::Timestamp(u64::MAX),
            AMQPValue::FieldTable(inner),
            AMQPValue::Void,
        ];
        let mut headers = FieldTable::default();
        for (number, value) in values.into_iter().enumerate() {
            headers.insert(format!("{number:02}").into(), value);
        }
        let before = BasicProperties::default()
            .with_headers(headers)
            .with_delivery_mode(PERSISTENT)
            .with_content_encoding("gzip".into())
            .with_priority(7)
            .with_cluster_id("c".into())
            .with_expiration("1000".into());
        let read = properties_from(&before);
        assert_eq!(properties_to(&read), before);
        let shown: Vec<String> = read.headers.values().map(|value| value.to_json().to_string()).collect();
        let expected = [
            "true",
            "-1",
            "1",
            "-2",
            "2",
            "-3",
            "3",
            "-9223372036854775808",
            "0.5",
            r#""inf""#,
            r#""0.05""#,
            r#""text""#,
            r#"{"base64":"//4="}"#,
            "[null,1]",
            r#""1970-01-01T00:00:00Z""#,
            "18446744073709551615",
            r#"{"bytes":{"base64":"/w=="}}"#,
            "null",
        ];
        assert_eq!(shown, expected);
    }

    #[test]
    fn the_users_name_is_not_published_in_the_name_of_another() {
        let read = properties_from(&BasicProperties::default().with_user_id("planner".into()));
        assert_eq!(read.user_id.as_deref(), Some("planner"));
        assert!(properties_to(&read).user_id().is_none());
    }
}
