//! Reading the fields of a JSON object one by one, so that a refusal can name its field.

use std::fmt;

use chrono::{DateTime, FixedOffset, SubsecRound, Utc};
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use uuid::Uuid;

use super::id::{as_uuid, id_of};
use super::object::Object;
use super::{DeckyUuid, DecodeOptions, Kind, NameError, attribution, message_bytes_max};
use crate::cut::{NAME_CHARS_MAX, cut};

/// Where a document departs from the schema, and what was expected there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flaw {
    /// JSON pointer (RFC 6901) to the field; empty for the whole document.
    pub pointer: String,
    /// What was expected.
    pub expected: String,
}

impl Flaw {
    pub(super) fn at(field: &str, expected: impl Into<String>) -> Self {
        let pointer = format!("/{}", field.replace('~', "~0").replace('/', "~1"));
        Self { pointer: cut(&pointer, NAME_CHARS_MAX).into_owned(), expected: expected.into() }
    }

    pub(super) fn whole(expected: impl Into<String>) -> Self {
        Self { pointer: String::new(), expected: expected.into() }
    }
}

/// A message that is no valid action, with what could be read of it.
#[derive(Debug)]
pub struct Invalid {
    /// JSON pointer to the offending field; empty for the whole document.
    pub pointer: String,
    /// What was expected there.
    pub expected: String,
    /// The action id, from the body or from `message_id`, or derived from the body.
    pub action_id: Uuid,
    /// The kind, if it is one of the known ones.
    pub kind: Option<Kind>,
    /// The source decky's uuid, if valid.
    pub src_uuid: Option<DeckyUuid>,
    /// The destination decky's uuid, if valid.
    pub dst_uuid: Option<DeckyUuid>,
    /// The content class, if it is a string.
    pub content_class: Option<String>,
    /// The attribution, if it is an object within its limit.
    pub attribution: Option<Box<RawValue>>,
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.pointer.is_empty() {
            write!(f, "the message: {}", self.expected)
        } else {
            // Each character may take ten once it is escaped.
            let pointer = self.pointer.escape_debug().to_string();
            write!(f, "{}: {}", cut(&pointer, NAME_CHARS_MAX), self.expected)
        }
    }
}

impl std::error::Error for Invalid {}

/// The fields of one object, each taken once.
pub struct Fields<'a> {
    object: Object<'a>,
    body: &'a [u8],
    message_id: Option<&'a str>,
}

impl<'a> Fields<'a> {
    pub(super) fn parse(body: &'a [u8], options: DecodeOptions<'a>) -> Result<Self, Box<Invalid>> {
        let (message_id, bytes_max) = (options.message_id, message_bytes_max(options.content_bytes_max));
        // A body over the limit is not looked at: parsing it could cost many times its size.
        let (object, flaw) = if body.len() > bytes_max {
            let expected = format!("expected at most {bytes_max} bytes, found {}", body.len());
            (Object::default(), Some(Flaw::whole(expected)))
        } else {
            match Object::parse(body) {
                Ok(object) => {
                    let flaw = object.repeated.as_deref().map(|name| {
                        Flaw::at(name, "expected the field once: readers differ in which one counts")
                    });
                    (object, flaw)
                }
                Err(flaw) => (Object::default(), Some(flaw)),
            }
        };
        let fields = Self { object, body, message_id };
        match flaw {
            None => Ok(fields),
            Some(flaw) => Err(fields.invalid(flaw)),
        }
    }

    /// Refuses the message, with the fields by which a result is addressed, as far as they can be read.
    pub(super) fn invalid(&self, flaw: Flaw) -> Box<Invalid> {
        let raw = |name: &str| self.object.get(name).map(|field| field.raw.get());
        let text = |name: &str| raw(name).and_then(|raw| serde_json::from_str::<String>(raw).ok());
        Box::new(Invalid {
            pointer: flaw.pointer,
            expected: flaw.expected,
            action_id: id_of(text("action_id").as_deref(), self.message_id, self.body),
            kind: text("kind").as_deref().and_then(kind_from),
            src_uuid: text("src_uuid").and_then(|text| DeckyUuid::parse(&text).ok()),
            dst_uuid: text("dst_uuid").and_then(|text| DeckyUuid::parse(&text).ok()),
            content_class: text("content_class").filter(|class| class.len() <= 256),
            attribution: self
                .object
                .get("attribution")
                .filter(|field| attribution::flaw_in(field.raw.get()).is_none())
                .map(|field| field.raw.to_owned()),
        })
    }

    fn take_raw(&mut self, name: &str) -> Option<&'a RawValue> {
        let field = self.object.fields.iter_mut().find(|field| field.name == name)?;
        field.is_taken = true;
        Some(field.raw)
    }

    fn take<T: DeserializeOwned>(&mut self, name: &str, expected: &str) -> Result<Option<T>, Flaw> {
        let Some(raw) = self.take_raw(name) else { return Ok(None) };
        serde_json::from_str(raw.get()).map(Some).map_err(|_| Flaw::at(name, format!("expected {expected}")))
    }

    pub(super) fn text(&mut self, name: &str) -> Result<Option<String>, Flaw> {
        self.take(name, "a string")
    }

    pub(super) fn text_within(&mut self, name: &str, bytes_max: usize) -> Result<Option<String>, Flaw> {
        let text = self.text(name)?;
        match &text {
            Some(text) if text.len() > bytes_max => {
                Err(Flaw::at(name, format!("expected at most {bytes_max} bytes, found {}", text.len())))
            }
            _ => Ok(text),
        }
    }

    pub(super) fn required(&mut self, name: &str) -> Result<String, Flaw> {
        self.text(name)?.ok_or_else(|| Flaw::at(name, "expected a string, but the field is missing"))
    }

    pub(super) fn boolean(&mut self, name: &str) -> Result<Option<bool>, Flaw> {
        self.take(name, "true or false")
    }

    pub(super) fn required_as<T>(
        &mut self,
        name: &str,
        parse: impl FnOnce(&str) -> Result<T, NameError>,
    ) -> Result<T, Flaw> {
        parse(&self.required(name)?).map_err(|error| Flaw::at(name, error.0))
    }

    pub(super) fn optional_as<T>(
        &mut self,
        name: &str,
        parse: impl FnOnce(&str) -> Result<T, NameError>,
    ) -> Result<Option<T>, Flaw> {
        self.text(name)?.map(|text| parse(&text).map_err(|error| Flaw::at(name, error.0))).transpose()
    }

    pub(super) fn nullable_as<T>(
        &mut self,
        name: &str,
        parse: impl FnOnce(&str) -> Result<T, NameError>,
    ) -> Result<Option<T>, Flaw> {
        match self.take::<Option<String>>(name, "a string or null")?.flatten() {
            Some(text) => parse(&text).map(Some).map_err(|error| Flaw::at(name, error.0)),
            None => Ok(None),
        }
    }

    pub(super) fn time(&mut self, name: &str) -> Result<Option<DateTime<Utc>>, Flaw> {
        Ok(self.time_with_offset(name)?.map(|time| time.to_utc()))
    }

    pub(super) fn time_with_offset(&mut self, name: &str) -> Result<Option<DateTime<FixedOffset>>, Flaw> {
        self.nullable_as(name, |text| {
            time_from(text).ok_or(NameError("expected an RFC 3339 time such as 2026-04-20T11:30:00Z"))
        })
    }

    pub(super) fn integer(&mut self, name: &str, max: u64) -> Result<Option<u64>, Flaw> {
        let expected = format!("an integer from 0 to {max}");
        let number: Option<serde_json::Number> = self.take(name, &expected)?;
        number
            .map(|n| {
                integral(&n)
                    .filter(|n| *n <= max)
                    .ok_or_else(|| Flaw::at(name, format!("expected {expected}")))
            })
            .transpose()
    }

    pub(super) fn version(&mut self) -> Result<(), Flaw> {
        match self.integer("version", u64::MAX) {
            Ok(None | Some(1)) => Ok(()),
            _ => Err(Flaw::at("version", "expected 1")),
        }
    }

    pub(super) fn protocol(&mut self) -> Result<(), Flaw> {
        match self.text("protocol")?.as_deref() {
            None | Some("ssh") => Ok(()),
            Some(_) => Err(Flaw::at("protocol", "expected \"ssh\"")),
        }
    }

    pub(super) fn kind(&mut self) -> Result<Kind, Flaw> {
        kind_from(&self.required("kind")?).ok_or_else(|| {
            Flaw::at("kind", "expected one of \"traffic\", \"file\", \"edit\", \"read\", \"remove\"")
        })
    }

    pub(super) fn action_id(&mut self) -> Result<Uuid, Flaw> {
        match self.text("action_id")? {
            Some(text) => as_uuid(&text).ok_or_else(|| Flaw::at("action_id", "expected a UUID")),
            None => self.message_id.and_then(as_uuid).ok_or_else(|| {
                Flaw::at("action_id", "expected a UUID here, or one as the AMQP property message_id")
            }),
        }
    }

    pub(super) fn attribution(&mut self) -> Result<Option<Box<RawValue>>, Flaw> {
        match self.take_raw("attribution") {
            None => Ok(None),
            Some(raw) if raw.get() == "null" => Ok(None),
            Some(raw) => match attribution::flaw_in(raw.get()) {
                None => Ok(Some(raw.to_owned())),
                Some(expected) => Err(Flaw::at("attribution", expected)),
            },
        }
    }

    pub(super) fn none_left(&self, kind: Kind) -> Result<(), Flaw> {
        let of_other_kinds = self.object.fields.iter().find(|field| !field.is_taken).map(|field| field.name);
        match self.object.unknown.as_deref().or(of_other_kinds) {
            None => Ok(()),
            Some(name) => Err(Flaw::at(
                name,
                format!("expected no such field in an action of kind \"{}\"", kind.as_str()),
            )),
        }
    }
}

fn kind_from(text: &str) -> Option<Kind> {
    [Kind::Traffic, Kind::File, Kind::Edit, Kind::Read, Kind::Remove]
        .into_iter()
        .find(|kind| kind.as_str() == text)
}

/// JSON Schema counts `1.0` as an integer, and so does this.
fn integral(number: &serde_json::Number) -> Option<u64> {
    number.as_u64().or_else(|| {
        let float = number.as_f64()?;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "the guard keeps it in range"
        )]
        (float.fract() == 0.0 && (0.0..=9.0e15).contains(&float)).then_some(float as u64)
    })
}

/// RFC 3339 with upper-case `T` and `Z`; chrono alone would also take a blank for the `T`.
fn time_from(text: &str) -> Option<DateTime<FixedOffset>> {
    let strict = text.as_bytes().get(10) == Some(&b'T')
        && text.bytes().all(|b| b.is_ascii_digit() || b"-+:.TZ".contains(&b))
        && text.get(17..19).is_some_and(|seconds| seconds < "60");
    // In UTC the year could have fewer or more than four digits. By the day, as the schema can say it.
    let leaves_its_years = (text.starts_with("9999-12-31") && text.get(11..)?.contains('-'))
        || (text.starts_with("0000-01-01") && text.get(11..)?.contains('+'));
    let time = DateTime::parse_from_rfc3339(text).ok().filter(|_| strict && !leaves_its_years)?;
    Some(time.trunc_subsecs(9))
}
