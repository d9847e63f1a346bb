//! From a decoded message to what came of it: refused, or run.

use std::sync::Arc;

use crate::action::{Action, Invalid};
use crate::cut::{MESSAGE_CHARS_MAX, cut};
use crate::driver::{Aborted, Attempt, Driver};
use crate::policy::Policy;
use crate::result::{ActivityResult, Disposition, Failure, FailureClass, Occasion, Outcome, WorkerIdentity};
use crate::subprocess::RunCommand;

/// A message with what came of it.
#[derive(Debug)]
pub enum Judged {
    /// No valid action.
    Invalid(Box<Invalid>),
    /// An action that was refused or run.
    Done(Arc<Action>, Outcome),
}

impl Judged {
    /// Why it failed, if it did.
    #[must_use]
    pub fn failure_class(&self) -> Option<FailureClass> {
        match self {
            Self::Invalid(_) => Some(FailureClass::Invalid),
            Self::Done(_, outcome) => outcome.failure.as_ref().map(|failure| failure.class),
        }
    }

    /// The failure in words; empty on success.
    #[must_use]
    pub fn failure_message(&self) -> String {
        match self {
            Self::Invalid(invalid) => cut(&invalid.to_string(), MESSAGE_CHARS_MAX).into_owned(),
            Self::Done(_, outcome) => {
                outcome.failure.as_ref().map(|failure| failure.message.clone()).unwrap_or_default()
            }
        }
    }

    /// The activity result.
    #[must_use]
    pub fn result(
        self,
        disposition: Disposition,
        occasion: Occasion,
        worker: &WorkerIdentity,
    ) -> ActivityResult {
        match self {
            Self::Invalid(invalid) => ActivityResult::invalid(&invalid, disposition, occasion, worker),
            Self::Done(action, outcome) => {
                ActivityResult::new(&action, outcome, disposition, occasion, worker)
            }
        }
    }
}

/// Runs the action if it is one and policy lets it; `Err` when the program stops at once.
pub async fn judge<R: RunCommand>(
    driver: &Driver<R>,
    policy: &Policy,
    decoded: Result<Arc<Action>, Box<Invalid>>,
    attempt: Attempt,
) -> Result<Judged, Aborted> {
    let action = match decoded {
        Ok(action) => action,
        Err(invalid) => return Ok(Judged::Invalid(invalid)),
    };
    let outcome = match policy.refusal(&action) {
        Some(message) => Outcome::not_run(&action, Failure::new(FailureClass::Refused, message)),
        None => driver.perform(&action, attempt).await?,
    };
    Ok(Judged::Done(action, outcome))
}
