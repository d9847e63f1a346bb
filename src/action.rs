//! The wire form of an action, checked into types that cannot hold an invalid value.
//!
//! Source of every limit: docs/protocol.md, section "The action".

mod attribution;
mod fields;
mod glance;
mod id;
mod names;
mod object;

use std::net::IpAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use chrono::{DateTime, FixedOffset, Utc};
use serde_json::value::RawValue;
use uuid::Uuid;

use fields::Fields;
pub use fields::Invalid;
pub use glance::Glance;
pub use id::id_of;
pub use names::{DeckyName, DeckyPath, DeckyUuid, FileMode, NameError, Owner};

/// The largest decoded content that the worker may be configured to take, in bytes.
pub const CONTENT_BYTES_LIMIT: usize = 12 * 1024 * 1024;
/// The default limit on decoded content, in bytes.
pub const CONTENT_BYTES_DEFAULT: usize = 4 * 1024 * 1024;
/// The largest message body that is decoded at all, in bytes (`RabbitMQ` 4 refuses larger ones).
pub const MESSAGE_BYTES_LIMIT: usize = 16 * 1024 * 1024;
/// How long an `attribution` may be, in bytes of JSON text.
pub const ATTRIBUTION_BYTES_LIMIT: usize = 16 * 1024;
/// How deep the objects and arrays of an `attribution` may nest, itself counted.
///
/// Common parsers give up at 128; a result adds one level and its readers may add some.
pub const ATTRIBUTION_DEPTH_LIMIT: usize = 64;
/// The size of an action's fields beside its content, in bytes: paths, attribution, and the like.
const FIELDS_BYTES_MAX: usize = 64 * 1024;
/// How long a `description` may be, in bytes.
pub const DESCRIPTION_BYTES_LIMIT: usize = 256;
/// How much of a file a `read` returns when the action names no limit, in bytes.
pub const READ_BYTES_DEFAULT: u64 = 1024 * 1024;

/// The largest message body that is decoded where content may have `content_bytes_max` bytes: the content
/// in base64, and the other fields.
#[must_use]
pub fn message_bytes_max(content_bytes_max: usize) -> usize {
    (content_bytes_max.div_ceil(3) * 4 + FIELDS_BYTES_MAX).min(MESSAGE_BYTES_LIMIT)
}

/// Returns the text without a byte order mark, which RFC 8259 lets a parser ignore.
#[must_use]
pub fn without_byte_order_mark(text: &[u8]) -> &[u8] {
    text.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(text)
}

/// One piece of synthetic activity, checked.
#[derive(Debug, Clone)]
pub struct Action {
    /// One id for every delivery of the action.
    pub id: Uuid,
    /// When the planner issued it.
    pub issued_at: Option<DateTime<Utc>>,
    /// After this instant it is not run.
    pub expires_at: Option<DateTime<Utc>>,
    /// What the result calls it.
    pub description: String,
    /// The planner's own words, echoed unread as the JSON text they came as.
    pub attribution: Option<Box<RawValue>>,
    /// The uuid of the destination decky.
    pub dst_uuid: DeckyUuid,
    /// The name of the destination decky.
    pub dst_name: DeckyName,
    /// What is to be done.
    pub task: Task,
}

/// What an action does, by kind.
#[derive(Debug, Clone)]
pub enum Task {
    /// Contact the destination's ssh port from the source.
    Traffic(Traffic),
    /// Plant a file.
    File(FilePlant),
    /// Change a file that the planner knows.
    Edit(Edit),
    /// Read a file.
    Read(Read),
    /// Remove a file.
    Remove(DeckyPath),
}

/// The fields of a `traffic` action.
#[derive(Debug, Clone)]
pub struct Traffic {
    /// The uuid of the decky that connects.
    pub src_uuid: DeckyUuid,
    /// The name of the decky that connects.
    pub src_name: DeckyName,
    /// Where it connects to.
    pub dst_ip: IpAddr,
}

/// How a planted file is to look.
#[derive(Debug, Clone)]
pub struct Look {
    /// Modification time, with the offset that it was sent with; `None` is the time of planting.
    pub mtime: Option<DateTime<FixedOffset>>,
    /// Permission bits.
    pub mode: FileMode,
    /// Owner; `None` leaves what the exec runs as.
    pub owner: Option<Owner>,
}

/// The fields of a `file` action.
#[derive(Debug, Clone)]
pub struct FilePlant {
    /// Where.
    pub path: DeckyPath,
    /// The exact bytes.
    pub content: Vec<u8>,
    /// Whose file it pretends to be.
    pub persona: String,
    /// What sort of text it is; free for a file.
    pub content_class: String,
    /// How it is to look.
    pub look: Look,
}

/// The fields of an `edit` action.
#[derive(Debug, Clone)]
pub struct Edit {
    /// Where.
    pub path: DeckyPath,
    /// Whose file it pretends to be.
    pub persona: String,
    /// Which editor to use; checked when the edit is made, not here.
    pub content_class: String,
    /// The body that the planner saw.
    pub previous_body: String,
    /// Apply only if the decky's file still holds `previous_body`.
    pub expect_previous: bool,
    /// The planner's id for the file, echoed.
    pub synthetic_file_uuid: String,
    /// How it is to look.
    pub look: Look,
}

/// The fields of a `read` action.
#[derive(Debug, Clone)]
pub struct Read {
    /// Which file.
    pub path: DeckyPath,
    /// More than this many bytes are cut.
    pub bytes_max: u64,
}

/// The five kinds of action.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// See [`Task::Traffic`].
    Traffic,
    /// See [`Task::File`].
    File,
    /// See [`Task::Edit`].
    Edit,
    /// See [`Task::Read`].
    Read,
    /// See [`Task::Remove`].
    Remove,
}

impl Kind {
    /// The word that stands on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Traffic => "traffic",
            Self::File => "file",
            Self::Edit => "edit",
            Self::Read => "read",
            Self::Remove => "remove",
        }
    }

    fn default_description(self) -> &'static str {
        match self {
            Self::Traffic => "tcp_connect:22",
            Self::File => "file:create",
            Self::Edit => "file:edit",
            Self::Read => "file:read",
            Self::Remove => "file:remove",
        }
    }
}

/// What decoding needs to know beside the body.
#[derive(Debug, Clone, Copy)]
pub struct DecodeOptions<'a> {
    /// The delivery's `message_id`, used where the body names no `action_id`.
    pub message_id: Option<&'a str>,
    /// The limit on decoded content, in bytes.
    pub content_bytes_max: usize,
}

impl Action {
    /// Decodes and checks one message body.
    ///
    /// `Err` names the offending field by JSON pointer and carries whatever could
    /// still be read of the action, so that a result can be addressed.
    pub fn decode(body: &[u8], options: DecodeOptions<'_>) -> Result<Self, Box<Invalid>> {
        let mut fields = Fields::parse(body, options)?;
        Self::from_fields(&mut fields, options).map_err(|flaw| fields.invalid(flaw))
    }

    fn from_fields(f: &mut Fields<'_>, options: DecodeOptions<'_>) -> Result<Self, fields::Flaw> {
        f.version()?;
        let kind = f.kind()?;
        let id = f.action_id()?;
        let issued_at = f.time("issued_at")?;
        let expires_at = f.time("expires_at")?;
        let description = f
            .text_within("description", DESCRIPTION_BYTES_LIMIT)?
            .unwrap_or_else(|| kind.default_description().to_owned());
        let attribution = f.attribution()?;
        let dst_uuid = f.required_as("dst_uuid", DeckyUuid::parse)?;
        let dst_name = f.required_as("dst_name", DeckyName::parse)?;
        let task = match kind {
            Kind::Traffic => Task::Traffic(Traffic::from_fields(f)?),
            Kind::File => Task::File(FilePlant::from_fields(f, options.content_bytes_max)?),
            Kind::Edit => Task::Edit(Edit::from_fields(f, options.content_bytes_max)?),
            Kind::Read => Task::Read(Read {
                path: f.required_as("path", DeckyPath::parse)?,
                bytes_max: f.integer("max_bytes", CONTENT_BYTES_LIMIT as u64)?.unwrap_or(READ_BYTES_DEFAULT),
            }),
            Kind::Remove => Task::Remove(f.required_as("path", DeckyPath::parse)?),
        };
        f.none_left(kind)?;
        Ok(Self { id, issued_at, expires_at, description, attribution, dst_uuid, dst_name, task })
    }

    /// The kind of the action.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self.task {
            Task::Traffic(_) => Kind::Traffic,
            Task::File(_) => Kind::File,
            Task::Edit(_) => Kind::Edit,
            Task::Read(_) => Kind::Read,
            Task::Remove(_) => Kind::Remove,
        }
    }

    /// The decky whose container runs the command.
    #[must_use]
    pub fn executing_decky(&self) -> &DeckyName {
        match &self.task {
            Task::Traffic(traffic) => &traffic.src_name,
            _ => &self.dst_name,
        }
    }

    /// The path that the action touches; none for traffic.
    #[must_use]
    pub fn path(&self) -> Option<&DeckyPath> {
        match &self.task {
            Task::Traffic(_) => None,
            Task::File(file) => Some(&file.path),
            Task::Edit(edit) => Some(&edit.path),
            Task::Read(read) => Some(&read.path),
            Task::Remove(path) => Some(path),
        }
    }

    /// The content class, for the kinds that have one.
    #[must_use]
    pub fn content_class(&self) -> Option<&str> {
        match &self.task {
            Task::File(file) => Some(&file.content_class),
            Task::Edit(edit) => Some(&edit.content_class),
            _ => None,
        }
    }

    /// The uuid of the connecting decky, for traffic.
    #[must_use]
    pub fn src_uuid(&self) -> Option<&DeckyUuid> {
        match &self.task {
            Task::Traffic(traffic) => Some(&traffic.src_uuid),
            _ => None,
        }
    }
}

impl Traffic {
    fn from_fields(f: &mut Fields<'_>) -> Result<Self, fields::Flaw> {
        f.protocol()?;
        Ok(Self {
            src_uuid: f.required_as("src_uuid", DeckyUuid::parse)?,
            src_name: f.required_as("src_name", DeckyName::parse)?,
            dst_ip: f.required_as("dst_ip", |text| {
                text.parse()
                    .map_err(|_| NameError("expected a literal IPv4 or IPv6 address, never a host name"))
            })?,
        })
    }
}

impl Look {
    fn from_fields(f: &mut Fields<'_>) -> Result<Self, fields::Flaw> {
        Ok(Self {
            mtime: f.time_with_offset("mtime")?,
            mode: f.optional_as("mode", FileMode::parse)?.unwrap_or_default(),
            owner: f.nullable_as("owner", Owner::parse)?,
        })
    }
}

impl FilePlant {
    fn from_fields(f: &mut Fields<'_>, bytes_max: usize) -> Result<Self, fields::Flaw> {
        let path = f.required_as("path", DeckyPath::parse)?;
        let text = f.text_within("content", bytes_max)?;
        let bytes = f.nullable_as("content_bytes", |text| {
            // The length is checked before decoding, so that an oversized body costs no second copy.
            if text.len() / 4 > bytes_max.div_ceil(3) {
                return Err(NameError("expected fewer bytes: the content is over the limit"));
            }
            STANDARD.decode(text).map_err(|_| {
                NameError("expected base64 (RFC 4648 standard alphabet, padded, no line breaks)")
            })
        })?;
        let content = bytes.unwrap_or_else(|| text.unwrap_or_default().into_bytes());
        if content.len() > bytes_max {
            return Err(fields::Flaw::at(
                "content_bytes",
                "expected fewer bytes: the content is over the limit",
            ));
        }
        Ok(Self {
            path,
            content,
            persona: f.text("persona")?.unwrap_or_default(),
            content_class: f.text("content_class")?.unwrap_or_else(|| "note".to_owned()),
            look: Look::from_fields(f)?,
        })
    }
}

impl Edit {
    fn from_fields(f: &mut Fields<'_>, bytes_max: usize) -> Result<Self, fields::Flaw> {
        Ok(Self {
            path: f.required_as("path", DeckyPath::parse)?,
            persona: f.required("persona")?,
            content_class: f.required("content_class")?,
            previous_body: {
                let body = f.text_within("previous_body", bytes_max)?;
                body.ok_or_else(|| {
                    fields::Flaw::at("previous_body", "expected a string, but the field is missing")
                })?
            },
            expect_previous: f.boolean("expect_previous")?.unwrap_or(false),
            synthetic_file_uuid: f.required("synthetic_file_uuid")?,
            look: Look::from_fields(f)?,
        })
    }
}
