//! The one place that branches: what happened decides where a delivery goes; then comes its ack.

use std::sync::Arc;
use std::time::Instant;

use chrono::{DateTime, Utc};
use tracing::{debug, info, warn};

use super::{Answered, Pipeline, key_of};
use crate::broker::{Delivery, HEADER_TRACEPARENT, Properties, Publish, Settle};
use crate::driver::Aborted;
use crate::result::{Disposition, FailureClass, Occasion};
use crate::subprocess::RunCommand;
use crate::worker::Judged;
use crate::worker::memory::{Answer, Finished, Key};
use crate::worker::outbox::Grounds;

/// Where a delivery goes.
pub enum Disposal {
    Complete,
    Retry,
    DeadLetter(&'static str),
}

pub fn dispose(failure: Option<FailureClass>, attempt: u32, attempts_max: u32) -> Disposal {
    match failure {
        None => Disposal::Complete,
        Some(FailureClass::Invalid) => Disposal::DeadLetter("invalid"),
        Some(FailureClass::Refused) => Disposal::DeadLetter("refused"),
        Some(class) if !class.is_transient() => Disposal::Complete,
        Some(_) if attempt < attempts_max => Disposal::Retry,
        Some(_) => Disposal::DeadLetter("attempts-exhausted"),
    }
}

/// What is to be sent before a delivery is settled.
pub(super) enum Outgoing {
    Nothing,
    Result(Arc<Answer>),
    /// The next attempt, and as what this one is remembered.
    Retry(Option<Key>, DateTime<Utc>),
    /// The delivery as it is, after the delay of this attempt.
    Delayed(u32),
    /// The delivery as it is, for other workers; the number of the hand-back.
    HandedBack(u32),
    DeadLetter {
        result: Option<Arc<Answer>>,
        reason: &'static str,
        class: &'static str,
        message: String,
        occasion: Occasion,
    },
}

impl<R: RunCommand, P: Publish> Pipeline<R, P> {
    /// Decides what is to be sent. What was finished is remembered when this returns, before the lane goes on:
    /// delivered again, it must not run again.
    pub(super) fn prepare<S>(&self, answered: Answered, delivery: &Delivery<S>) -> Outgoing {
        let (judged, (started_at, finished_at)) = match answered {
            Answered::Now(judged, span) => (judged, span),
            Answered::Before(Finished::Answered(answer)) => {
                info!(action.id = %answer.id, "seen again: answered, not run");
                return Outgoing::Result(answer);
            }
            Answered::Before(Finished::Retried) => return Outgoing::Nothing,
            Answered::Behind(attempt) => return Outgoing::Delayed(attempt),
            Answered::HandedBack(count) => return Outgoing::HandedBack(count),
            Answered::Untried(key) => return Outgoing::Retry(Some(key), Utc::now()),
        };
        let attempt = delivery.properties.attempt();
        let occasion = Occasion { attempt, redelivered: delivery.redelivered, started_at, finished_at };
        log(&judged, occasion);
        let key = match &judged {
            Judged::Done(action, _) => Some(key_of(action, delivery)),
            Judged::Invalid(_) => None,
        };
        let class = judged.failure_class();
        match dispose(class, attempt, self.options.attempts_max) {
            Disposal::Complete => {
                let answer = self.answer(judged, Disposition::Completed, occasion, &delivery.properties);
                let Some(answer) = answer else { return Outgoing::Nothing };
                self.remember(key, Finished::Answered(answer.clone()));
                Outgoing::Result(answer)
            }
            Disposal::Retry => Outgoing::Retry(key, occasion.started_at),
            Disposal::DeadLetter(reason) => {
                let message = judged.failure_message();
                let class = class.map_or("", FailureClass::as_str);
                let result = self.answer(judged, Disposition::DeadLettered, occasion, &delivery.properties);
                Outgoing::DeadLetter { result, reason, class, message, occasion }
            }
        }
    }

    pub(super) async fn send<S: Settle>(
        &self,
        outgoing: Outgoing,
        delivery: &Delivery<S>,
    ) -> Result<(), Aborted> {
        let attempt = delivery.properties.attempt();
        match outgoing {
            Outgoing::Nothing => Ok(()),
            Outgoing::Result(answer) => self.outbox.result(&answer, &delivery.properties).await,
            Outgoing::Retry(key, seen_at) => {
                self.outbox.delayed(delivery, attempt, attempt + 1, seen_at).await?;
                self.remember(key, Finished::Retried);
                Ok(())
            }
            Outgoing::HandedBack(count) => {
                self.outbox.handed_back(delivery, count, self.engine.hand_backs_max()).await
            }
            Outgoing::Delayed(after) => self.outbox.delayed(delivery, after, attempt, Utc::now()).await,
            Outgoing::DeadLetter { result, reason, class, message, occasion } => {
                if let Some(answer) = result {
                    self.outbox.result(&answer, &delivery.properties).await?;
                }
                let grounds = Grounds { reason, class, message: &message };
                self.outbox.dead_letter(delivery, grounds, occasion).await
            }
        }
    }

    /// A delivery that is not settled goes back to its queue with its channel.
    pub(super) async fn settle<S: Settle>(&self, sent: Result<(), Aborted>, delivery: Delivery<S>) {
        if sent.is_err() {
            return;
        }
        if let Err(error) = delivery.settle.ack().await {
            // The service tells of the loss once, for all deliveries that it costs.
            debug!("{error}; the broker will deliver the action again");
        }
        self.settled.notify_one();
    }

    fn remember(&self, key: Option<Key>, finished: Finished) {
        if let Some(key) = key {
            self.memory.remember(key, finished, Instant::now());
        }
    }

    /// The result as it is published; none where no action id could be read.
    pub(super) fn answer(
        &self,
        judged: Judged,
        disposition: Disposition,
        occasion: Occasion,
        delivered: &Properties,
    ) -> Option<Arc<Answer>> {
        let result = judged.result(disposition, occasion, &self.options.worker)?;
        let body = match serde_json::to_vec(&result) {
            Ok(body) => body,
            Err(error) => unreachable!("a result of strings and numbers has a JSON form: {error}"),
        };
        Some(Arc::new(Answer {
            id: result.action_id,
            routing_key: result.routing_key().into(),
            correlation_id: delivered.correlation_id.as_deref().map(Into::into),
            traceparent: delivered.headers.get(HEADER_TRACEPARENT).cloned(),
            finished_at: occasion.finished_at,
            body: body.into(),
        }))
    }
}

fn log(judged: &Judged, occasion: Occasion) {
    let attempt = occasion.attempt;
    let duration_ms = (occasion.finished_at - occasion.started_at).num_milliseconds();
    match judged {
        Judged::Invalid(invalid) => {
            let id = invalid.action_id.map(|id| id.to_string()).unwrap_or_default();
            warn!(action.id = id, "not an action: {invalid}");
        }
        Judged::Done(action, outcome) => {
            let (id, kind, decky) = (action.id, action.kind().as_str(), action.executing_decky());
            match &outcome.failure {
                None => {
                    info!(action.id = %id, action.kind = kind, decky.name = %decky, attempt, duration_ms, "done")
                }
                Some(failure) => warn!(
                    action.id = %id, action.kind = kind, decky.name = %decky, attempt, duration_ms,
                    class = failure.class.as_str(), "failed: {:?}", failure.message
                ),
            }
        }
    }
}
