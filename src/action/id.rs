//! The id of a message, also of one that names none.

use sha2::{Digest as _, Sha256};
use uuid::Uuid;

/// Reads a UUID with its hyphens; the only form that the schema takes.
pub fn as_uuid(text: &str) -> Option<Uuid> {
    (text.len() == 36).then(|| Uuid::try_parse(text).ok()).flatten()
}

/// Derives the id of a message that names none: a UUID (version 8) from the SHA-256 of its body.
///
/// The same body always has the same id, so a dead letter and the result of its refusal have one in common.
#[must_use]
pub fn derived_id(body: &[u8]) -> Uuid {
    let digest: [u8; 32] = Sha256::digest(body).into();
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest[..16]);
    uuid::Builder::from_custom_bytes(bytes).into_uuid()
}

/// The id that a message is answered under: its `action_id`, or `message_id`, or one that is derived.
#[must_use]
pub fn id_of(action_id: Option<&str>, message_id: Option<&str>, body: &[u8]) -> Uuid {
    action_id.and_then(as_uuid).or(message_id.and_then(as_uuid)).unwrap_or_else(|| derived_id(body))
}
