//! What a file, an edit or a removal comes to: the one form that is run alone or in a batch.

use chrono::{DateTime, Utc};
use serde_json::json;

use super::script::{self, NewFile};
use super::secret::Names;
use super::{Attempt, DriverOptions, Run};
use crate::action::{Action, Edit, Look, Task};
use crate::realism::{ContentClass, next_body};
use crate::result::{Failure, FailureClass, Outcome, RESULT_CONTENT_BYTES_MAX, json_text_bytes, sha256_hex};

/// What was worked out of an action that changes one path.
pub struct Change {
    /// The body that an edit makes.
    new_body: Option<String>,
    /// Of the content; a removal has none.
    sha256: Option<String>,
    /// What the file may hold beforehand, if that matters: size and hex digest of each.
    expected: Option<String>,
}

impl Change {
    /// The change that an action asks for on an occasion; `Err` is the outcome of one that cannot be.
    pub fn of(action: &Action, Attempt { now, is_repeat }: Attempt) -> Result<Self, Outcome> {
        let (mut new_body, mut expected) = (None, None);
        let sha256 = match &action.task {
            Task::File(file) => Some(sha256_hex(&file.content)),
            Task::Edit(edit) => {
                let body = body_of(action, edit, now).map_err(|failure| Outcome::not_run(action, failure))?;
                let sha256 = sha256_hex(body.as_bytes());
                let previous = || {
                    let sha256_previous = sha256_hex(edit.previous_body.as_bytes());
                    let previous = format!("{} {sha256_previous}", edit.previous_body.len());
                    // The edit may have been made by a worker that had no time to say so.
                    if is_repeat { format!("{previous} {} {sha256}", body.len()) } else { previous }
                };
                expected = edit.expect_previous.then(previous);
                new_body = Some(body);
                Some(sha256)
            }
            Task::Remove(_) => None,
            Task::Traffic(_) | Task::Read(_) => {
                return Err(Outcome::not_run(
                    action,
                    Failure::new(FailureClass::Invalid, "no change to a path"),
                ));
            }
        };
        Ok(Self { new_body, sha256, expected })
    }

    /// From here on an edit also takes its own body for the previous one: it may have been made already.
    pub fn may_be_made(&mut self) {
        if let (Some(expected), Some(sha256), Some(body)) = (&mut self.expected, &self.sha256, &self.new_body)
            && !expected.contains(sha256.as_str())
        {
            *expected = format!("{expected} {} {sha256}", body.len());
        }
    }

    fn content<'a>(&'a self, action: &'a Action) -> (&'a [u8], Option<&'a Look>) {
        match &action.task {
            Task::File(file) => (&file.content, Some(&file.look)),
            Task::Edit(edit) => (self.new_body.as_deref().unwrap_or_default().as_bytes(), Some(&edit.look)),
            Task::Remove(_) | Task::Traffic(_) | Task::Read(_) => (&[], None),
        }
    }

    /// The call that makes it, with names drawn for it.
    pub fn call<'a>(
        &'a self,
        action: &'a Action,
        names: &'a Names,
        options: &DriverOptions,
    ) -> script::Call<'a> {
        let file = match self.content(action) {
            (_, None) => None,
            (content, Some(look)) => {
                let expected = self.expected.as_deref();
                Some(NewFile { content, look, fraction: fraction_of(action), expected })
            }
        };
        let (links, leftover_seconds) = (options.follow_links, options.leftover_age.as_secs());
        script::Call { path: path_of(action), names, links, leftover_seconds, file }
    }

    /// What the action came to, from what its command came to.
    pub fn outcome(&self, action: &Action, mut run: Run) -> Outcome {
        let decky = action.dst_name.as_str();
        let path = path_of(action);
        let (content, look) = self.content(action);
        if look.is_none() {
            let payload =
                json!({ "dst_decky": decky, "path": path, "rc": run.rc, "stderr": run.stderr_or_null() });
            return run.outcome(payload, None);
        }
        if run.rc == script::STATUS_CONFLICT && run.failure.is_some() {
            run.failure =
                Some(Failure::new(FailureClass::Conflict, "the file no longer holds previous_body"));
        }
        let mut payload = json!({
            "dst_decky": decky, "path": path, "bytes": content.len(),
            "rc": run.rc, "stderr": run.stderr_or_null(),
        });
        if let (Task::Edit(edit), Some(body), None) = (&action.task, &self.new_body, &run.failure) {
            payload["new_body_bytes"] = body.len().into();
            payload["new_body"] = body.as_str().into();
            payload["synthetic_file_uuid"] = edit.synthetic_file_uuid.as_str().into();
        }
        run.outcome(payload, self.sha256.clone())
    }
}

/// The fraction of a second of a file's time where the action's has none: real files have one, and the
/// same action twice leaves the same file.
fn fraction_of(action: &Action) -> u32 {
    const NANOSECONDS: u128 = 1_000_000_000;
    u32::try_from(action.id.as_u128() % (NANOSECONDS - 1) + 1).unwrap_or(1)
}

/// The path that a change is of.
pub fn path_of(action: &Action) -> &str {
    action.path().map(|path| path.as_str()).unwrap_or_default()
}

fn body_of(action: &Action, edit: &Edit, now: DateTime<Utc>) -> Result<String, Failure> {
    // `issued_at` has the offset of the planner's clock, which need not be the decky's.
    let when = edit.look.mtime.unwrap_or_else(|| action.issued_at.unwrap_or(now).fixed_offset());
    let (_, seed) = action.id.as_u64_pair();
    let class = edit.content_class.parse::<ContentClass>();
    let body = class
        .and_then(|class| next_body(class, &edit.persona, &edit.previous_body, when, seed))
        .map_err(|error| Failure::new(FailureClass::Unsupported, error.to_string()))?;
    // An edit that could not be told is not made. A control character takes six bytes in JSON.
    let bytes = json_text_bytes(&body);
    if bytes > RESULT_CONTENT_BYTES_MAX {
        let message = format!(
            "the new body takes {bytes} bytes as JSON, and a result has room for {RESULT_CONTENT_BYTES_MAX}"
        );
        return Err(Failure::new(FailureClass::Unsupported, message));
    }
    Ok(body)
}

#[cfg(test)]
mod tests {
    use chrono::{DateTime, Utc};
    use serde_json::json;

    use super::{Attempt, Change};
    use crate::action::{Action, CONTENT_BYTES_DEFAULT, CONTENT_BYTES_LIMIT, DecodeOptions};
    use crate::result::FailureClass;

    /// The line that an edit adds to `previous_body`.
    fn added_line(content_class: &str, previous_body: &str, times: serde_json::Value) -> String {
        let mut action = json!({
            "action_id": "00000000-0000-4000-8000-000000000007", "kind": "edit", "dst_uuid": "d-1",
            "dst_name": "web-01", "path": "/tmp/log", "persona": "alice", "content_class": content_class,
            "previous_body": previous_body, "synthetic_file_uuid": "f",
        });
        action.as_object_mut().unwrap().extend(times.as_object().unwrap().clone());
        let options = DecodeOptions { message_id: None, content_bytes_max: CONTENT_BYTES_DEFAULT };
        let action = Action::decode(action.to_string().as_bytes(), options).unwrap();
        let change = Change::of(&action, Attempt { now: DateTime::<Utc>::UNIX_EPOCH, is_repeat: false });
        let Ok(Change { new_body: Some(body), .. }) = change else { panic!("the edit has a body") };
        body.strip_prefix(previous_body).unwrap().to_owned()
    }

    #[test]
    fn an_edit_whose_new_body_no_result_could_carry_is_not_made() {
        let action = |controls: usize| {
            let action = json!({
                "action_id": "00000000-0000-4000-8000-000000000007", "kind": "edit", "dst_uuid": "d-1",
                "dst_name": "web-01", "path": "/tmp/log", "persona": "alice", "content_class": "note",
                "previous_body": "\u{1}".repeat(controls), "synthetic_file_uuid": "f",
            });
            let options = DecodeOptions { message_id: None, content_bytes_max: CONTENT_BYTES_LIMIT };
            Action::decode(action.to_string().as_bytes(), options).unwrap()
        };
        let occasion = Attempt { now: DateTime::<Utc>::UNIX_EPOCH, is_repeat: false };
        assert!(Change::of(&action(2_770_000), occasion).is_ok());
        let Err(outcome) = Change::of(&action(2_790_000), occasion) else { panic!("it is made") };
        assert_eq!(outcome.failure.unwrap().class, FailureClass::Unsupported);
    }

    #[test]
    fn an_edit_writes_its_clock_with_the_offset_of_mtime() {
        let cron = "Apr 17 20:05:01 web-01 CRON[812]: (root) CMD (/usr/bin/true)\n";
        let daemon = "Apr 17 20:05:01 web-01 systemd[1]: Started a.\n";
        let iso = "2026-04-17T18:05:01Z web-01 systemd[1]: Started a.\n";
        let note = "2026-04-17 moved the intranet\n";
        let berlin = || json!({"mtime": "2026-04-17T20:06:00+02:00", "issued_at": "2026-04-17T09:00:00Z"});
        let night = json!({"mtime": "2026-04-18T00:30:00+02:00"});
        let planner = json!({"issued_at": "2026-04-17T18:06:00+05:00"});
        for (class, body, times, clock) in [
            ("log_cron", cron, berlin(), "Apr 17 20:06:00 web-01 CRON["),
            ("log_daemon", daemon, berlin(), "Apr 17 20:06:00 web-01 systemd["),
            ("log_daemon", iso, berlin(), "2026-04-17T18:06:00Z web-01 systemd["),
            ("note", note, night, "2026-04-18 "),
            ("log_cron", cron, planner, "Apr 17 13:06:00 web-01 CRON["),
        ] {
            let line = added_line(class, body, times);
            assert!(line.starts_with(clock), "{class}: {line}");
        }
    }
}
