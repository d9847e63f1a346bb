//! How a command fails: what, why, what to try, and the exit status.

use std::io;
use std::path::Path;

use super::output::say;
use super::{EXIT_BROKER, EXIT_INTERNAL, EXIT_USAGE};
use crate::broker::BrokerError;

/// A command's failure, in words for a person, with the status to end with.
#[derive(Debug)]
pub struct Failed {
    pub(super) status: u8,
    pub(super) what: String,
    pub(super) why: Option<String>,
    pub(super) hint: Option<String>,
}

impl Failed {
    pub(super) fn new(status: u8, what: impl Into<String>) -> Self {
        Self { status, what: what.into(), why: None, hint: None }
    }

    pub(super) fn usage(what: impl Into<String>) -> Self {
        Self::new(EXIT_USAGE, what)
    }

    pub(super) fn internal(what: impl Into<String>) -> Self {
        Self::new(EXIT_INTERNAL, what)
    }

    pub(super) fn why(mut self, why: impl ToString) -> Self {
        self.why = Some(why.to_string());
        self
    }

    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// A file of the user's that cannot be read.
    pub(super) fn to_read(path: &Path, error: &io::Error) -> Self {
        let hint = match error.kind() {
            io::ErrorKind::NotFound => "check the path",
            io::ErrorKind::PermissionDenied => "its permissions have to let this user read it",
            _ => "name a file that can be read",
        };
        Self::usage(format!("failed to read {}", path.display())).why(error).hint(hint)
    }

    /// Output that does not arrive: a full disk, most often.
    pub(super) fn to_write(where_to: &str, error: &io::Error) -> Self {
        let hint = match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "make room there, and run it again",
            _ => "see that it can be written to, and run it again",
        };
        Self::internal(format!("failed to write to {where_to}")).why(error).hint(hint)
    }

    /// Says it on standard error: a line for what, why, and what to try.
    pub(super) fn say(&self) {
        say(format_args!("error: {}", self.what));
        if let Some(why) = &self.why {
            say(format_args!("  why: {why}"));
        }
        if let Some(hint) = &self.hint {
            say(format_args!("  try: {hint}"));
        }
    }
}

impl From<BrokerError> for Failed {
    fn from(error: BrokerError) -> Self {
        match error {
            BrokerError::Refused(trouble) | BrokerError::Away(trouble) => {
                Self::new(EXIT_BROKER, trouble.what).why(trouble.why).hint(trouble.hint)
            }
            BrokerError::Address(trouble) => Self::usage(trouble.what).why(trouble.why).hint(trouble.hint),
            BrokerError::QueueGone => Self::new(EXIT_BROKER, "lost the queue that was read")
                .why("it was deleted meanwhile")
                .hint("`deckswain topology` shows what is there"),
        }
    }
}
