//! Properties, from and to the client library's form.

use chrono::DateTime;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};

use crate::broker::{Death, HeaderValue, Properties};

/// AMQP's `delivery_mode` of a message that outlives a restart of the broker.
const PERSISTENT: u8 = 2;

pub fn properties_from(from: &BasicProperties) -> Properties {
    let text = |value: &Option<lapin::types::ShortString>| value.as_ref().map(ToString::to_string);
    let headers = from.headers().iter().flat_map(FieldTable::inner).filter_map(|(name, value)| {
        let value = match value {
            AMQPValue::LongString(text) => {
                HeaderValue::Text(String::from_utf8_lossy(text.as_bytes()).into_owned())
            }
            AMQPValue::ShortString(text) => HeaderValue::Text(text.to_string()),
            AMQPValue::Boolean(value) => HeaderValue::Boolean(*value),
            AMQPValue::ShortShortInt(value) => HeaderValue::Integer((*value).into()),
            AMQPValue::ShortShortUInt(value) => HeaderValue::Integer((*value).into()),
            AMQPValue::ShortInt(value) => HeaderValue::Integer((*value).into()),
            AMQPValue::ShortUInt(value) => HeaderValue::Integer((*value).into()),
            AMQPValue::LongInt(value) => HeaderValue::Integer((*value).into()),
            AMQPValue::LongUInt(value) => HeaderValue::Integer((*value).into()),
            AMQPValue::LongLongInt(value) => HeaderValue::Integer(*value),
            _ => return None,
        };
        Some((name.to_string(), value))
    });
    Properties {
        message_id: text(from.message_id()),
        correlation_id: text(from.correlation_id()),
        reply_to: text(from.reply_to()),
        content_type: text(from.content_type()),
        message_type: text(from.kind()),
        app_id: text(from.app_id()),
        timestamp: from.timestamp().and_then(|t| DateTime::from_timestamp(i64::try_from(t).ok()?, 0)),
        headers: headers.collect(),
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
        Some(AMQPValue::Timestamp(seconds)) => DateTime::from_timestamp(i64::try_from(*seconds).ok()?, 0),
        _ => None,
    };
    Some(Death { reason: text("reason"), queue: text("queue"), at })
}

pub fn properties_to(from: &Properties) -> BasicProperties {
    let mut headers = FieldTable::default();
    for (name, value) in &from.headers {
        let value = match value {
            HeaderValue::Text(text) => AMQPValue::LongString(text.as_str().into()),
            HeaderValue::Integer(integer) => AMQPValue::LongLongInt(*integer),
            HeaderValue::Boolean(value) => AMQPValue::Boolean(*value),
        };
        headers.insert(name.as_str().into(), value);
    }
    let mut to = BasicProperties::default().with_delivery_mode(PERSISTENT).with_headers(headers);
    if let Some(value) = &from.message_id {
        to = to.with_message_id(value.as_str().into());
    }
    if let Some(value) = &from.correlation_id {
        to = to.with_correlation_id(value.as_str().into());
    }
    if let Some(value) = &from.reply_to {
        to = to.with_reply_to(value.as_str().into());
    }
    if let Some(value) = &from.content_type {
        to = to.with_content_type(value.as_str().into());
    }
    if let Some(value) = &from.message_type {
        to = to.with_type(value.as_str().into());
    }
    if let Some(value) = &from.app_id {
        to = to.with_app_id(value.as_str().into());
    }
    if let Some(seconds) = from.timestamp.and_then(|time| u64::try_from(time.timestamp()).ok()) {
        to = to.with_timestamp(seconds);
    }
    to
}
