//! What a file, an edit or a removal comes to: the one form that is run alone or in a batch.

use std::borrow::Cow;

use chrono::{DateTime, Utc};
use serde_json::json;

use super::{Run, script};
use crate::action::{Action, Edit, Look, Task};
use crate::realism::{ContentClass, next_body};
use crate::result::{Failure, FailureClass, Outcome, sha256_hex};

/// A change to one path of a decky.
pub struct Change<'a> {
    pub path: &'a str,
    directory: &'a str,
    what: What<'a>,
}

enum What<'a> {
    Removal,
    Plant {
        content: Cow<'a, [u8]>,
        sha256: String,
        look: &'a Look,
        edit: Option<&'a Edit>,
        previous_sha256: Option<String>,
    },
}

impl<'a> Change<'a> {
    /// The change that an action asks for at the instant `now`; `Err` is the outcome of one that cannot be.
    pub fn of(action: &'a Action, now: DateTime<Utc>) -> Result<Self, Outcome> {
        let plant = |content: Cow<'a, [u8]>, look, edit, previous_sha256| {
            let sha256 = sha256_hex(&content);
            What::Plant { content, sha256, look, edit, previous_sha256 }
        };
        let (path, what) = match &action.task {
            Task::File(file) => (&file.path, plant(Cow::Borrowed(&file.content), &file.look, None, None)),
            Task::Edit(edit) => {
                let body = body_of(action, edit, now).map_err(|failure| Outcome::not_run(action, failure))?;
                let previous = edit.expect_previous.then(|| sha256_hex(edit.previous_body.as_bytes()));
                (&edit.path, plant(Cow::Owned(body.into_bytes()), &edit.look, Some(edit), previous))
            }
            Task::Remove(path) => (path, What::Removal),
            Task::Traffic(_) | Task::Read(_) => {
                return Err(Outcome::not_run(
                    action,
                    Failure::new(FailureClass::Invalid, "no change to a path"),
                ));
            }
        };
        Ok(Self { path: path.as_str(), directory: path.directory(), what })
    }

    /// The plant that it needs under the given mark; a removal needs none.
    pub fn plant<'b>(&'b self, mark: &'b str) -> Option<script::Plant<'b>> {
        let What::Plant { content, look, previous_sha256, .. } = &self.what else { return None };
        Some(script::Plant {
            path: self.path,
            directory: self.directory,
            mark,
            content,
            look,
            expected_sha256: previous_sha256.as_deref(),
        })
    }

    /// What the action came to, from what its command came to.
    pub fn outcome(&self, action: &Action, mut run: Run) -> Outcome {
        let decky = action.dst_name.as_str();
        let What::Plant { content, sha256, edit, .. } = &self.what else {
            let payload = json!({ "dst_decky": decky, "path": self.path, "rc": run.rc, "stderr": run.stderr_or_null() });
            return run.outcome(payload, None);
        };
        if run.rc == script::STATUS_CONFLICT && run.failure.is_some() {
            run.failure =
                Some(Failure::new(FailureClass::Conflict, "the file no longer holds previous_body"));
        }
        let mut payload = json!({
            "dst_decky": decky, "path": self.path, "bytes": content.len(),
            "rc": run.rc, "stderr": run.stderr_or_null(),
        });
        if let (Some(edit), None) = (edit, &run.failure) {
            payload["new_body_bytes"] = content.len().into();
            payload["new_body"] = String::from_utf8_lossy(content).into();
            payload["synthetic_file_uuid"] = edit.synthetic_file_uuid.as_str().into();
        }
        run.outcome(payload, Some(sha256.clone()))
    }
}

fn body_of(action: &Action, edit: &Edit, now: DateTime<Utc>) -> Result<String, Failure> {
    let when = edit.look.mtime.or(action.issued_at).unwrap_or(now);
    let (_, seed) = action.id.as_u64_pair();
    let class = edit.content_class.parse::<ContentClass>();
    class
        .and_then(|class| next_body(class, &edit.persona, &edit.previous_body, when, seed))
        .map_err(|error| Failure::new(FailureClass::Unsupported, error.to_string()))
}
