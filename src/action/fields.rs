//! Reading the fields of a JSON object one by one, so that a refusal can name its field.

use std::collections::BTreeMap;
use std::fmt;

use chrono::{DateTime, FixedOffset, SubsecRound, Utc};
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::value::RawValue;
use uuid::Uuid;

use super::{ATTRIBUTION_BYTES_LIMIT, DeckyUuid, Kind, MESSAGE_BYTES_LIMIT, NameError};

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
        Self { pointer, expected: expected.into() }
    }

    fn whole(expected: impl Into<String>) -> Self {
        Self { pointer: String::new(), expected: expected.into() }
    }
}

/// A message that is no valid action, with what could be read of it.
#[derive(Debug, Default)]
pub struct Invalid {
    /// JSON pointer to the offending field; empty for the whole document.
    pub pointer: String,
    /// What was expected there.
    pub expected: String,
    /// The action id, from the body or from `message_id`.
    pub action_id: Option<Uuid>,
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
            write!(f, "{}: {}", self.pointer.escape_debug(), self.expected)
        }
    }
}

impl std::error::Error for Invalid {}

/// The fields of one object, each taken once.
pub struct Fields<'a> {
    raw: BTreeMap<String, &'a RawValue>,
    glance: Invalid,
}

fn as_uuid(text: &str) -> Option<Uuid> {
    (text.len() == 36).then(|| Uuid::try_parse(text).ok()).flatten()
}

impl<'a> Fields<'a> {
    pub(super) fn parse(body: &'a [u8], message_id: Option<&str>) -> Result<Self, Box<Invalid>> {
        let mut glance = Invalid { action_id: message_id.and_then(as_uuid), ..Invalid::default() };
        let flaw = match Self::object(body) {
            Ok(raw) => {
                let mut fields = Self { raw, glance };
                fields.look_around();
                if body.len() <= MESSAGE_BYTES_LIMIT {
                    return Ok(fields);
                }
                glance = fields.glance;
                Flaw::whole(format!("expected at most {MESSAGE_BYTES_LIMIT} bytes, found {}", body.len()))
            }
            Err(flaw) => flaw,
        };
        Err(Box::new(Invalid { pointer: flaw.pointer, expected: flaw.expected, ..glance }))
    }

    fn object(body: &'a [u8]) -> Result<BTreeMap<String, &'a RawValue>, Flaw> {
        let text = std::str::from_utf8(body).map_err(|error| {
            Flaw::whole(format!("expected UTF-8, found another byte at offset {}", error.valid_up_to()))
        })?;
        serde_json::from_str(text).map_err(|error| {
            if serde_json::from_str::<IgnoredAny>(text).is_ok() {
                Flaw::whole("expected a JSON object")
            } else {
                Flaw::whole(format!("expected a JSON object: {error}"))
            }
        })
    }

    /// Reads what a result is addressed by, ahead of any check.
    fn look_around(&mut self) {
        let text =
            |name: &str| self.raw.get(name).and_then(|raw| serde_json::from_str::<String>(raw.get()).ok());
        let glance = Invalid {
            action_id: text("action_id").as_deref().and_then(as_uuid).or(self.glance.action_id),
            kind: text("kind").as_deref().and_then(kind_from),
            src_uuid: text("src_uuid").and_then(|t| DeckyUuid::parse(&t).ok()),
            dst_uuid: text("dst_uuid").and_then(|t| DeckyUuid::parse(&t).ok()),
            content_class: text("content_class").filter(|class| class.len() <= 256),
            attribution: self
                .raw
                .get("attribution")
                .filter(|raw| fits_attribution(raw))
                .map(|raw| (*raw).to_owned()),
            ..Invalid::default()
        };
        self.glance = glance;
    }

    pub(super) fn invalid(&mut self, flaw: Flaw) -> Box<Invalid> {
        Box::new(Invalid {
            pointer: flaw.pointer,
            expected: flaw.expected,
            ..std::mem::take(&mut self.glance)
        })
    }

    fn take<T: DeserializeOwned>(&mut self, name: &str, expected: &str) -> Result<Option<T>, Flaw> {
        let Some(raw) = self.raw.remove(name) else { return Ok(None) };
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

    pub(super) fn action_id(&mut self, message_id: Option<&str>) -> Result<Uuid, Flaw> {
        match self.text("action_id")? {
            Some(text) => as_uuid(&text).ok_or_else(|| Flaw::at("action_id", "expected a UUID")),
            None => message_id.and_then(as_uuid).ok_or_else(|| {
                Flaw::at("action_id", "expected a UUID here, or one as the AMQP property message_id")
            }),
        }
    }

    pub(super) fn attribution(&mut self) -> Result<Option<Box<RawValue>>, Flaw> {
        match self.raw.remove("attribution") {
            None => Ok(None),
            Some(raw) if raw.get() == "null" => Ok(None),
            Some(raw) if fits_attribution(raw) => Ok(Some(raw.to_owned())),
            Some(_) => Err(Flaw::at(
                "attribution",
                format!("expected an object of at most {ATTRIBUTION_BYTES_LIMIT} bytes, or null"),
            )),
        }
    }

    pub(super) fn none_left(&self, kind: Kind) -> Result<(), Flaw> {
        match self.raw.keys().next() {
            None => Ok(()),
            Some(name) => Err(Flaw::at(
                name,
                format!("expected no such field in an action of kind \"{}\"", kind.as_str()),
            )),
        }
    }
}

fn fits_attribution(raw: &RawValue) -> bool {
    raw.get().starts_with('{') && raw.get().len() <= ATTRIBUTION_BYTES_LIMIT
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
    let time = DateTime::parse_from_rfc3339(text).ok().filter(|_| strict)?;
    Some(time.trunc_subsecs(9))
}
