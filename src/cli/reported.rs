//! An activity result as the commands read it: no more of it than they show.

use serde::Deserialize;

use super::output::say;

/// The fields that the commands show; everything else, as deep as it may be, is passed over unparsed.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Reported {
    pub action_id: Option<String>,
    pub kind: Option<String>,
    pub action: Option<String>,
    pub success: bool,
    pub failure: Option<ReportedFailure>,
    pub payload: ReportedPayload,
    pub finished_at: Option<String>,
    pub duration_ms: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct ReportedFailure {
    pub class: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct ReportedPayload {
    pub dst_decky: Option<String>,
    pub src_decky: Option<String>,
    pub path: Option<String>,
}

impl Reported {
    /// Reads a message of the results exchange; one that is not a result is said on standard error.
    pub fn read(body: &[u8]) -> Option<Self> {
        let result: Result<Self, _> = serde_json::from_slice(body);
        if let Err(why) = &result {
            say(format_args!("warning: a message among the results cannot be read: {why}"));
        }
        result.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_is_read_whatever_its_attribution_and_its_payload_hold() {
        let deep = format!("{}{}", "{\"a\":".repeat(5000), "1".to_owned() + &"}".repeat(5000));
        for odd in [deep.as_str(), r#"{"s":"\ud800"}"#, r#"{"n":1e999}"#, "[[[]]]", "null"] {
            let body = format!(
                r#"{{"action_id":"x","success":true,"attribution":{odd},"payload":{{"path":"/f","new":{odd}}}}}"#
            );
            let reported = Reported::read(body.as_bytes()).expect("a result");
            assert!(reported.success && reported.payload.path.as_deref() == Some("/f"), "{odd:.20}");
        }
        assert!(Reported::read(b"not json").is_none());
    }
}
