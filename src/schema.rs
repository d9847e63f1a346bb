//! The JSON Schemas (2020-12) of what goes in and what comes out, compiled in.

/// The schema of an action.
pub const ACTION: &str = include_str!("../schemas/action.schema.json");
/// The schema of an activity result.
pub const ACTIVITY_RESULT: &str = include_str!("../schemas/activity-result.schema.json");
