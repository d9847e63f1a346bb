//! What came of an action, in the form that is published.

use std::collections::BTreeMap;

use base64::Engine as _;
use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Serialize, Serializer};
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::action::{Action, Invalid, Kind, Task};
use crate::cut::{MESSAGE_CHARS_MAX, cut};

/// The largest result in bytes: RabbitMQ 4 takes no larger message unless it is told to.
pub const RESULT_BYTES_MAX: usize = 16 * 1024 * 1024;
/// The part of a result that file content may take as JSON text; attribution, path and all other fields
/// stay well below the rest.
pub const RESULT_CONTENT_BYTES_MAX: usize = RESULT_BYTES_MAX - 128 * 1024;

/// Why an action failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureClass {
    /// The message is no valid action.
    Invalid,
    /// The content class is unknown or has no editor.
    Unsupported,
    /// It came after its `expires_at`.
    Expired,
    /// This worker's policy forbids it.
    Refused,
    /// The decky's file no longer holds `previous_body`.
    Conflict,
    /// The file to read is not there.
    NotFound,
    /// The command ran in the decky and failed.
    Command,
    /// It took longer than the limit.
    Timeout,
    /// The container, the engine or its client program is not there.
    Infrastructure,
}

impl FailureClass {
    /// The word that stands on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::Unsupported => "unsupported",
            Self::Expired => "expired",
            Self::Refused => "refused",
            Self::Conflict => "conflict",
            Self::NotFound => "not_found",
            Self::Command => "command",
            Self::Timeout => "timeout",
            Self::Infrastructure => "infrastructure",
        }
    }

    /// Whether another attempt may fare better.
    #[must_use]
    pub fn is_transient(self) -> bool {
        matches!(self, Self::Timeout | Self::Infrastructure)
    }
}

/// A failure's class and its words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// The class.
    pub class: FailureClass,
    /// What happened, for a person.
    pub message: String,
}

impl Failure {
    /// Makes a failure of `class` in the given words, which are cut.
    pub fn new(class: FailureClass, message: impl AsRef<str>) -> Self {
        Self { class, message: cut(message.as_ref(), MESSAGE_CHARS_MAX).into_owned() }
    }
}

/// Where the action ended up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Disposition {
    /// Settled; nothing more will happen.
    Completed,
    /// Lies in the dead letters.
    DeadLettered,
}

/// Whether what a timed-out action started inside the decky is known to have ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ContainerProcess {
    /// The decky reports that nothing of it runs.
    Gone,
    /// Nobody could tell.
    Unknown,
}

/// What the driver reports of one run, before the worker puts its frame around it.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The kind's payload.
    pub payload: Value,
    /// `None` is success.
    pub failure: Option<Failure>,
    /// Set after a timeout.
    pub container_process: Option<ContainerProcess>,
    /// Hex SHA-256 of the bytes that were to be planted.
    pub content_sha256: Option<String>,
    /// Whether its command may have begun in the decky.
    pub was_begun: bool,
}

impl Outcome {
    /// An outcome of an action that was not run, with the payload `{dst_decky, path, error}`.
    #[must_use]
    pub fn not_run(action: &Action, failure: Failure) -> Self {
        let mut payload = json!({ "dst_decky": action.dst_name.as_str(), "error": failure.message });
        if let Some(path) = action.path() {
            payload["path"] = path.as_str().into();
        }
        let content_sha256 = match &action.task {
            Task::File(file) => Some(sha256_hex(&file.content)),
            _ => None,
        };
        Self { payload, failure: Some(failure), container_process: None, content_sha256, was_begun: false }
    }
}

/// The bytes that a text takes as a JSON string, the quotes not counted.
#[must_use]
pub fn json_text_bytes(text: &str) -> usize {
    let bytes_of = |byte: u8| match byte {
        b'"' | b'\\' | b'\n' | b'\r' | b'\t' | 0x08 | 0x0c => 2,
        0x00..0x20 => r"\u0000".len(),
        _ => 1,
    };
    text.bytes().map(bytes_of).sum()
}

/// Lower-case hex SHA-256.
#[must_use]
pub fn sha256_hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    Sha256::digest(bytes).iter().fold(String::with_capacity(64), |mut hex, byte| {
        // Writing to a String cannot fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

/// Standard padded base64.
#[must_use]
pub fn base64_text(bytes: &[u8]) -> String {
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

/// Who ran the action.
#[derive(Debug, Clone, Serialize)]
pub struct WorkerIdentity {
    /// The worker's id, unique among the workers of a broker.
    pub id: String,
    /// The version of the program.
    pub version: &'static str,
}

impl WorkerIdentity {
    /// This program's version under the given id.
    #[must_use]
    pub fn new(id: String) -> Self {
        Self { id, version: env!("CARGO_PKG_VERSION") }
    }
}

/// A published result, given as its routing key and its JSON text, turned into a failure without a payload.
#[must_use]
pub fn without_payload(routing_key: &str, body: &[u8], why: &str) -> (Box<str>, Box<[u8]>) {
    let message = format!("the result has no payload, the broker does not take it: {why}");
    let failure = Failure::new(FailureClass::Unsupported, message.as_str());
    let mut fields: BTreeMap<String, Box<RawValue>> = serde_json::from_slice(body).unwrap_or_default();
    let mut set = |name: &str, value: Result<Box<RawValue>, serde_json::Error>| {
        if let Ok(value) = value {
            fields.insert(name.to_owned(), value);
        }
    };
    set("success", to_raw_value(&false));
    set("failure", to_raw_value(&failure));
    set("payload", to_raw_value(&json!({ "error": message })));
    let body = serde_json::to_vec(&fields).unwrap_or_default();
    (routing_key.replacen(".ok.", ".failed.", 1).into(), body.into())
}

/// When and how often an action was run.
#[derive(Debug, Clone, Copy)]
pub struct Occasion {
    /// Counts from 1.
    pub attempt: u32,
    /// The broker's redelivered flag.
    pub redelivered: bool,
    /// When work on it began.
    pub started_at: DateTime<Utc>,
    /// When work on it ended.
    pub finished_at: DateTime<Utc>,
}

/// The JSON object that is published for an action.
#[derive(Debug, Clone, Serialize)]
pub struct ActivityResult {
    version: u8,
    /// The action's id.
    pub action_id: Uuid,
    kind: Option<&'static str>,
    protocol: &'static str,
    action: Option<String>,
    /// Whether it did what it says.
    pub success: bool,
    payload: Value,
    /// Why it did not.
    pub failure: Option<Failure>,
    /// Where it ended up.
    pub disposition: Disposition,
    src_decky_uuid: Option<String>,
    dst_decky_uuid: Option<String>,
    content_class: Option<String>,
    content_sha256: Option<String>,
    attribution: Option<Box<RawValue>>,
    attempt: u32,
    redelivered: bool,
    #[serde(serialize_with = "milliseconds")]
    started_at: DateTime<Utc>,
    #[serde(serialize_with = "milliseconds")]
    finished_at: DateTime<Utc>,
    duration_ms: u64,
    container_process: Option<ContainerProcess>,
    worker: WorkerIdentity,
}

fn milliseconds<S: Serializer>(time: &DateTime<Utc>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&time.to_rfc3339_opts(SecondsFormat::Millis, true))
}

fn elapsed_ms(occasion: Occasion) -> u64 {
    u64::try_from((occasion.finished_at - occasion.started_at).num_milliseconds()).unwrap_or(0)
}

impl ActivityResult {
    /// The result of a checked action.
    #[must_use]
    pub fn new(
        action: &Action,
        outcome: Outcome,
        disposition: Disposition,
        occasion: Occasion,
        worker: &WorkerIdentity,
    ) -> Self {
        let described = match action.kind() {
            Kind::Traffic => format!("exec:{}", action.description),
            _ => action.description.clone(),
        };
        Self {
            version: 1,
            action_id: action.id,
            kind: Some(action.kind().as_str()),
            protocol: "ssh",
            action: Some(described),
            success: outcome.failure.is_none(),
            payload: outcome.payload,
            failure: outcome.failure,
            disposition,
            src_decky_uuid: action.src_uuid().map(ToString::to_string),
            dst_decky_uuid: Some(action.dst_uuid.to_string()),
            content_class: action.content_class().map(ToOwned::to_owned),
            content_sha256: outcome.content_sha256,
            attribution: action.attribution.clone(),
            attempt: occasion.attempt,
            redelivered: occasion.redelivered,
            started_at: occasion.started_at,
            finished_at: occasion.finished_at,
            duration_ms: elapsed_ms(occasion),
            container_process: outcome.container_process,
            worker: worker.clone(),
        }
    }

    /// The result of a message that is not a valid action.
    #[must_use]
    pub fn invalid(
        invalid: &Invalid,
        disposition: Disposition,
        occasion: Occasion,
        worker: &WorkerIdentity,
    ) -> Self {
        let failure = Failure::new(FailureClass::Invalid, invalid.to_string());
        Self {
            version: 1,
            action_id: invalid.action_id,
            kind: invalid.kind.map(Kind::as_str),
            protocol: "ssh",
            action: None,
            success: false,
            payload: json!({ "error": failure.message }),
            failure: Some(failure),
            disposition,
            src_decky_uuid: invalid.src_uuid.as_ref().map(ToString::to_string),
            dst_decky_uuid: invalid.dst_uuid.as_ref().map(ToString::to_string),
            content_class: invalid.content_class.clone(),
            content_sha256: None,
            attribution: invalid.attribution.clone(),
            attempt: occasion.attempt,
            redelivered: occasion.redelivered,
            started_at: occasion.started_at,
            finished_at: occasion.finished_at,
            duration_ms: elapsed_ms(occasion),
            container_process: None,
            worker: worker.clone(),
        }
    }

    /// `activity.<kind>.<canary|inert>.<ok|failed>.<dst_uuid>`.
    #[must_use]
    pub fn routing_key(&self) -> String {
        let canary = self.content_class.as_deref().is_some_and(|class| class.starts_with("canary_"));
        format!(
            "activity.{}.{}.{}.{}",
            self.kind.unwrap_or("unknown"),
            if canary { "canary" } else { "inert" },
            if self.success { "ok" } else { "failed" },
            self.dst_decky_uuid.as_deref().unwrap_or("unknown"),
        )
    }
}
