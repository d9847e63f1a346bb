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

impl<R: RunCommand, P: Publish> Pipeline<R, P> {
    pub(super) async fn publish<S: Settle>(
        &self,
        answered: Answered,
        delivery: &Delivery<S>,
    ) -> Result<(), Aborted> {
        match answered {
            Answered::Now(judged, span) => self.dispose(judged, delivery, span).await,
            Answered::Before(Finished::Answered(answer)) => {
                info!(action.id = %answer.id, "seen again: answered, not run");
                self.outbox.result(&answer, &delivery.properties).await
            }
            Answered::Before(Finished::Retried) => Ok(()),
            Answered::Behind(attempt) => {
                let as_it_is = delivery.properties.attempt();
                self.outbox.delayed(delivery, attempt, as_it_is, Utc::now()).await
            }
            Answered::Untried(key) => self.retry(delivery, Some(key), Utc::now()).await,
        }
    }

    async fn retry<S>(
        &self,
        delivery: &Delivery<S>,
        key: Option<Key>,
        seen_at: DateTime<Utc>,
    ) -> Result<(), Aborted> {
        let attempt = delivery.properties.attempt();
        self.outbox.delayed(delivery, attempt, attempt + 1, seen_at).await?;
        self.remember(key, Finished::Retried);
        Ok(())
    }

    /// A delivery that is not settled goes back to its queue with its channel.
    pub(super) async fn settle<S: Settle>(&self, published: Result<(), Aborted>, delivery: Delivery<S>) {
        if published.is_err() {
            return;
        }
        if let Err(error) = delivery.settle.ack().await {
            // The service tells of the loss once, for all deliveries that it costs.
            debug!("{error}; the broker will deliver the action again");
        }
        self.settled.notify_one();
    }

    /// Takes what an action came to where it belongs; `span` is when its run began and ended.
    async fn dispose<S: Settle>(
        &self,
        judged: Judged,
        delivery: &Delivery<S>,
        (started_at, finished_at): (DateTime<Utc>, DateTime<Utc>),
    ) -> Result<(), Aborted> {
        let properties = &delivery.properties;
        let attempt = properties.attempt();
        let occasion = Occasion { attempt, redelivered: delivery.redelivered, started_at, finished_at };
        log(&judged, occasion);
        let key = match &judged {
            Judged::Done(action, _) => Some(key_of(action, delivery)),
            Judged::Invalid(_) => None,
        };
        let class = judged.failure_class();
        match dispose(class, attempt, self.options.attempts_max) {
            Disposal::Complete => {
                self.publish_result(judged, Disposition::Completed, occasion, properties, key).await
            }
            Disposal::Retry => self.retry(delivery, key, occasion.started_at).await,
            Disposal::DeadLetter(reason) => {
                let message = judged.failure_message();
                self.publish_result(judged, Disposition::DeadLettered, occasion, properties, key).await?;
                let class = class.map_or("", FailureClass::as_str);
                let grounds = Grounds { reason, class, message: &message };
                self.outbox.dead_letter(delivery, grounds, occasion).await
            }
        }
    }

    fn remember(&self, key: Option<Key>, finished: Finished) {
        if let Some(key) = key {
            self.memory.remember(key, finished, Instant::now());
        }
    }

    async fn publish_result(
        &self,
        judged: Judged,
        disposition: Disposition,
        occasion: Occasion,
        delivered: &Properties,
        key: Option<Key>,
    ) -> Result<(), Aborted> {
        let Some(result) = judged.result(disposition, occasion, &self.options.worker) else { return Ok(()) };
        let body = match serde_json::to_vec(&result) {
            Ok(body) => body,
            Err(error) => unreachable!("a result of strings and numbers has a JSON form: {error}"),
        };
        let answer = Arc::new(Answer {
            id: result.action_id,
            routing_key: result.routing_key().into(),
            correlation_id: delivered.correlation_id.as_deref().map(Into::into),
            traceparent: delivered.headers.get(HEADER_TRACEPARENT).cloned(),
            finished_at: occasion.finished_at,
            body: body.into(),
        });
        if disposition == Disposition::Completed {
            // From here on the action has been run: a redelivery must not run it again.
            self.remember(key, Finished::Answered(answer.clone()));
        }
        self.outbox.result(&answer, delivered).await
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
                    class = failure.class.as_str(), "failed: {}", failure.message
                ),
            }
        }
    }
}
