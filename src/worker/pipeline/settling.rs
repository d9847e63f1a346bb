//! The one place that branches: what happened decides where a delivery goes; then comes its ack.

use std::sync::Arc;
use std::time::Instant;

use chrono::{DateTime, Utc};
use tokio::sync::watch;
use tracing::{debug, info, warn};
use uuid::Uuid;

use super::{Answered, Pipeline};
use crate::action::Glance;
use crate::broker::{Delivery, Publish, Settle};
use crate::driver::Aborted;
use crate::result::{Disposition, FailureClass, Occasion};
use crate::subprocess::RunCommand;
use crate::worker::Judged;
use crate::worker::engine::HandBack;
use crate::worker::left::Left;
use crate::worker::memory::{Ack, Answer, Seen, Successor};
use crate::worker::outbox::{Grounds, Unsent};

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
    Result(Arc<Answer>),
    /// The same of an earlier run.
    RepeatedResult(Arc<Answer>),
    /// The next attempt, first seen at this time.
    Retry(Replacing, DateTime<Utc>),
    /// The delivery as it is, after the delay of this attempt.
    Deferral(Replacing, u32),
    /// The delivery as it is, for other workers.
    HandBack(Replacing, HandBack),
    DeadLetter {
        replacing: Replacing,
        result: Arc<Answer>,
        reason: &'static str,
        class: &'static str,
        message: String,
        occasion: Occasion,
    },
    /// Nothing: its successor, of this kind, was sent when it was delivered before, or is being sent.
    Nothing(Uuid, Successor, watch::Receiver<bool>),
}

impl Outgoing {
    /// What tells of the confirm of the delivery's successor, where it is to have one.
    pub(super) fn into_replacing(self) -> Result<Replacing, Self> {
        match self {
            Self::Retry(replacing, _)
            | Self::Deferral(replacing, _)
            | Self::HandBack(replacing, _)
            | Self::DeadLetter { replacing, .. } => Ok(replacing),
            Self::Result(_) | Self::RepeatedResult(_) | Self::Nothing(..) => Err(self),
        }
    }
}

/// Tells whoever waits for it that the successor of a delivery is confirmed.
pub(super) type Replacing = watch::Sender<bool>;

impl<R: RunCommand, P: Publish> Pipeline<R, P> {
    /// Decides on the messages to send. The end of a delivery is remembered when this returns, before the lane
    /// goes on: a redelivery must not run again.
    pub(super) fn prepare<S>(&self, answered: Answered, seen: &Seen, delivery: &Delivery<S>) -> Outgoing {
        let now = Instant::now();
        let replacing = |by| self.memory.replacing(seen, by, now);
        let (judged, (started_at, finished_at)) = match answered {
            Answered::Now(judged, span) => (judged, span),
            Answered::Before(answer) => {
                info!(action.id = %answer.id, "duplicate delivery: stored result republished, action not run");
                return Outgoing::RepeatedResult(answer);
            }
            Answered::Replaced(by, confirmed) => {
                return Outgoing::Nothing(seen.key.submission.id, by, confirmed);
            }
            Answered::Behind(attempt) => return Outgoing::Deferral(replacing(Successor::Deferral), attempt),
            Answered::HandedBack(hand_back) => {
                return Outgoing::HandBack(replacing(Successor::HandBack), hand_back);
            }
            Answered::CircuitOpen(..) => return Outgoing::Retry(replacing(Successor::Retry), Utc::now()),
        };
        let attempt = delivery.properties.attempt();
        let occasion = Occasion { attempt, redelivered: delivery.redelivered, started_at, finished_at };
        log(&judged, occasion);
        let class = judged.failure_class();
        match dispose(class, attempt, self.options.attempts_max) {
            Disposal::Complete => {
                let answer = self.answer(judged, Disposition::Completed, occasion);
                if self.memory.answered(seen.key.submission, answer.clone(), now) {
                    warn!(action.id = %answer.id, "the id of an earlier action was used again with another body; both were run");
                }
                Outgoing::Result(answer)
            }
            Disposal::Retry => Outgoing::Retry(replacing(Successor::Retry), occasion.started_at),
            Disposal::DeadLetter(reason) => {
                let message = judged.failure_message();
                let class = class.map_or("", FailureClass::as_str);
                let result = self.answer(judged, Disposition::DeadLettered, occasion);
                let replacing = replacing(Successor::DeadLetter);
                Outgoing::DeadLetter { replacing, result, reason, class, message, occasion }
            }
        }
    }

    /// Publishes the messages of a delivery until they are confirmed; only the returned value lets it be acked.
    ///
    /// A retry or a dead letter that the broker refuses for its size is left to the broker to dead-letter.
    pub(super) async fn send<S: Settle>(
        &self,
        outgoing: Outgoing,
        delivery: &Delivery<S>,
    ) -> Result<Left, Aborted> {
        match self.try_send(outgoing, delivery).await {
            Ok(left) => Ok(left),
            Err(Unsent::Aborted) => Err(Aborted),
            Err(Unsent::TooLarge(why)) => {
                let id = Glance::at(&delivery.body).action_id;
                warn!(action.id = id, "message rejected, the broker dead-letters it: {why}");
                Ok(Left::BrokerDeadLetter)
            }
        }
    }

    async fn try_send<S: Settle>(&self, outgoing: Outgoing, delivery: &Delivery<S>) -> Result<Left, Unsent> {
        let delivered = &delivery.properties;
        match outgoing {
            Outgoing::Result(answer) => {
                self.outbox.result(&answer, delivered, delivery.redelivered).await?;
                Ok(Left::Result)
            }
            Outgoing::RepeatedResult(answer) => {
                self.outbox.result(&answer, delivered, delivery.redelivered).await?;
                Ok(Left::RepeatedResult)
            }
            Outgoing::Retry(replacing, seen_at) => {
                self.outbox.retry(delivery, seen_at).await?;
                replacing.send_replace(true);
                Ok(Left::Retry)
            }
            Outgoing::Deferral(replacing, after) => {
                self.outbox.deferral(delivery, after).await?;
                replacing.send_replace(true);
                Ok(Left::Deferral)
            }
            Outgoing::HandBack(replacing, hand_back) => {
                self.outbox.handed_back(delivery, &hand_back).await?;
                replacing.send_replace(true);
                Ok(Left::HandBack)
            }
            Outgoing::DeadLetter { replacing, result, reason, class, message, occasion } => {
                self.outbox.result(&result, delivered, delivery.redelivered).await?;
                let grounds = Grounds { reason, class, message: &message };
                self.outbox.dead_letter(delivery, grounds, occasion).await?;
                replacing.send_replace(true);
                Ok(Left::DeadLetter)
            }
            Outgoing::Nothing(id, by, mut confirmed) => {
                // Where it is given up this delivery is requeued as well.
                confirmed.wait_for(|confirmed| *confirmed).await.map_err(|_| Aborted)?;
                let in_place = match by {
                    Successor::Retry => "retry",
                    Successor::Deferral => "deferral",
                    Successor::HandBack => "hand-back",
                    Successor::DeadLetter => "dead letter",
                };
                info!(action.id = %id, attempt = delivered.attempt(), "duplicate delivery dropped: its {in_place} is published already");
                Ok(Left::Duplicate)
            }
        }
    }

    /// Acks a delivery, or rejects one that the broker is to dead-letter itself; on a lost connection it cannot be
    /// settled, and the broker delivers it again.
    pub(super) async fn settle<S: Settle>(&self, left: Left, seen: &Seen, delivery: Delivery<S>) {
        self.tally.left(left);
        let was_connected = delivery.settle.is_connected();
        let acked = match left {
            Left::BrokerDeadLetter => delivery.settle.reject().await,
            Left::Result
            | Left::RepeatedResult
            | Left::Retry
            | Left::Deferral
            | Left::HandBack
            | Left::DeadLetter
            | Left::Duplicate => delivery.settle.ack().await,
        };
        self.tally.settled(acked.is_ok());
        let now = Instant::now();
        let ack = match &acked {
            Ok(()) => Ack::Sent(now),
            Err(_) if was_connected => Ack::InDoubt(now),
            Err(_) => Ack::NotSent,
        };
        if let Err(error) = acked {
            // The service tells of the loss once, for all deliveries that it costs.
            debug!("{error}; the broker will deliver the action again");
        }
        match left {
            Left::Retry | Left::Deferral | Left::HandBack | Left::DeadLetter | Left::Duplicate => {
                self.memory.settled(seen, ack, now);
            }
            Left::Result | Left::RepeatedResult | Left::BrokerDeadLetter => {}
        }
        self.settled.notify_one();
    }

    /// The result as it is published.
    pub(super) fn answer(&self, judged: Judged, disposition: Disposition, occasion: Occasion) -> Arc<Answer> {
        let result = judged.result(disposition, occasion, &self.options.worker);
        let body = match serde_json::to_vec(&result) {
            Ok(body) => body,
            Err(error) => unreachable!("a result of strings and numbers has a JSON form: {error}"),
        };
        Arc::new(Answer {
            id: result.action_id,
            routing_key: result.routing_key().into(),
            finished_at: occasion.finished_at,
            body: body.into(),
        })
    }
}

fn log(judged: &Judged, occasion: Occasion) {
    let attempt = occasion.attempt;
    let duration_ms = (occasion.finished_at - occasion.started_at).num_milliseconds();
    match judged {
        Judged::Invalid(invalid) => {
            // Both are a publisher's words; a field has quotes, so they cannot pass for other fields.
            let (pointer, expected) = (invalid.pointer.as_str(), invalid.expected.as_str());
            warn!(action.id = %invalid.action_id, pointer, expected, "not a valid action");
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
