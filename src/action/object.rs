//! One JSON object, split into the fields that an action may have.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::fields::Flaw;
use super::without_byte_order_mark;
use crate::cut::{NAME_CHARS_MAX, cut};

/// The names of all fields of all kinds of action.
const NAMES: [&str; 25] = [
    "version",
    "kind",
    "action_id",
    "issued_at",
    "expires_at",
    "description",
    "attribution",
    "dst_uuid",
    "dst_name",
    "src_uuid",
    "src_name",
    "dst_ip",
    "protocol",
    "path",
    "content",
    "content_bytes",
    "persona",
    "content_class",
    "mtime",
    "mode",
    "owner",
    "previous_body",
    "expect_previous",
    "synthetic_file_uuid",
    "max_bytes",
];

/// The fields of an object as they stand in it.
#[derive(Default)]
pub struct Object<'a> {
    /// Each that any action may have, once.
    pub fields: Vec<Field<'a>>,
    /// The first name that no action has, cut.
    pub unknown: Option<String>,
    /// The first name that came more than once; its field is left out.
    pub repeated: Option<String>,
}

/// One field, not parsed any further.
pub struct Field<'a> {
    pub name: &'static str,
    pub raw: &'a RawValue,
    pub is_taken: bool,
}

impl<'a> Object<'a> {
    pub fn parse(body: &'a [u8]) -> Result<Self, Flaw> {
        let text = std::str::from_utf8(without_byte_order_mark(body)).map_err(|error| {
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

    pub fn get(&self, name: &str) -> Option<&Field<'a>> {
        self.fields.iter().find(|field| field.name == name)
    }

    fn put(&mut self, name: &'static str, raw: &'a RawValue) {
        if self.repeated.as_deref() == Some(name) {
            return;
        }
        match self.fields.iter().position(|field| field.name == name) {
            None => self.fields.push(Field { name, raw, is_taken: false }),
            Some(at) => {
                self.fields.swap_remove(at);
                self.repeated.get_or_insert_with(|| name.to_owned());
            }
        }
    }
}

impl<'de> Deserialize<'de> for Object<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;

        impl<'de> Visitor<'de> for Fields {
            type Value = Object<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object<'de>, A::Error> {
                let mut object = Object { fields: Vec::with_capacity(12), ..Object::default() };
                while let Some(name) = map.next_key::<Name>()? {
                    match name {
                        Name::Known(name) => object.put(name, map.next_value()?),
                        Name::Unknown(name) => {
                            map.next_value::<IgnoredAny>()?;
                            object.unknown.get_or_insert(name);
                        }
                    }
                }
                Ok(object)
            }
        }

        deserializer.deserialize_map(Fields)
    }
}

/// A field's name; of one that no action has only the beginning is kept.
enum Name {
    Known(&'static str),
    Unknown(String),
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Known;

        impl Visitor<'_> for Known {
            type Value = Name;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a name")
            }

            fn visit_str<E>(self, name: &str) -> Result<Name, E> {
                Ok(match NAMES.into_iter().find(|known| *known == name) {
                    Some(known) => Name::Known(known),
                    None => Name::Unknown(cut(name, NAME_CHARS_MAX).into_owned()),
                })
            }
        }

        deserializer.deserialize_str(Known)
    }
}
