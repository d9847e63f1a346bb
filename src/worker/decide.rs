//! The decision about a delivery, from this process's knowledge of it: the one place that tells a duplicate
//! from a new submission.
//!
//! The table stands in docs/protocol.md, section "Duplicates".

use std::sync::Arc;

use tokio::sync::watch;

use super::memory::{Ack, Answer, Known, Successor};

/// The decision about a delivery.
#[derive(Debug)]
pub enum Decision {
    /// It is run.
    Run,
    /// Its action's result is published again.
    Answer(Arc<Answer>),
    /// It is acked once its successor, published when it was delivered first, is confirmed.
    Drop {
        /// The kind of the successor.
        by: Successor,
        /// Turns true when that is confirmed.
        confirmed: watch::Receiver<bool>,
    },
}

/// Decides whether a delivery is run, answered or dropped.
///
/// A message that was replaced comes again only where its ack was lost, and then as a redelivery. An equal
/// message that is not redelivered was submitted anew, and so may be one of which the ack is known to have
/// arrived. Where both are possible the retry or the deferral that is still to come answers either; a dead
/// letter answers nobody, so the action is run.
#[must_use]
pub fn decide(known: Known, redelivered: bool) -> Decision {
    match known {
        Known::Nothing => Decision::Run,
        Known::Answered(answer) => Decision::Answer(answer),
        Known::Replaced { by, ack, confirmed } if redelivered => match (ack, by) {
            (Ack::Pending | Ack::NotSent, _)
            | (Ack::InDoubt(_), Successor::Retry | Successor::Deferral | Successor::HandBack) => {
                Decision::Drop { by, confirmed }
            }
            (Ack::InDoubt(_), Successor::DeadLetter) | (Ack::Sent(_), _) => Decision::Run,
        },
        Known::Replaced { .. } => Decision::Run,
    }
}

#[cfg(test)]
mod tests;
