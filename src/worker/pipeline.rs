//! The one place that branches: what happened decides where the delivery goes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use chrono::{DateTime, SecondsFormat, Utc};
use tokio::sync::watch;
use tracing::{debug, info, warn};

use crate::action::{Action, Invalid};
use crate::backoff::Backoff;
use crate::broker::{
    Delivery, HEADER_ATTEMPT, HEADER_FIRST_SEEN, HeaderValue, Properties, Publication, Publish, Settle,
    Topology,
};
use crate::driver::{Aborted, Driver};
use crate::policy::Policy;
use crate::result::{ActivityResult, Disposition, FailureClass, Occasion, WorkerIdentity};
use crate::subprocess::RunCommand;
use crate::worker::memory::{Answer, Finished, Key, Memory};
use crate::worker::{Judged, judge};

/// What the pipeline is told beside its parts.
#[derive(Debug, Clone)]
pub struct PipelineOptions {
    /// The names on the broker.
    pub topology: Topology,
    /// How often an action is tried in all.
    pub attempts_max: u32,
    /// Who this worker is.
    pub worker: WorkerIdentity,
}

/// Takes a decoded delivery to its settlement.
pub struct Pipeline<R, P> {
    driver: Driver<R>,
    policy: Policy,
    publisher: P,
    options: PipelineOptions,
    abort: watch::Receiver<bool>,
    memory: Memory,
    waiting: AtomicUsize,
}

/// Where a delivery goes.
enum Disposal {
    Complete,
    Retry,
    DeadLetter(&'static str),
}

fn dispose(failure: Option<FailureClass>, attempt: u32, attempts_max: u32) -> Disposal {
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
    /// A pipeline of the given parts, which leaves deliveries as they are once `abort` turns true.
    pub fn new(
        driver: Driver<R>,
        policy: Policy,
        publisher: P,
        options: PipelineOptions,
        abort: watch::Receiver<bool>,
    ) -> Self {
        let driver = driver.abort_when(abort.clone());
        Self {
            driver,
            policy,
            publisher,
            options,
            abort,
            memory: Memory::default(),
            waiting: AtomicUsize::new(0),
        }
    }

    /// How many messages wait for the broker to take them.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Tells that the broker was lost.
    pub fn distrust_broker(&self) {
        self.publisher.distrust();
    }

    /// Runs, publishes and settles one delivery; returns when the broker has all of it.
    pub async fn process<S: Settle>(&self, decoded: Result<Action, Box<Invalid>>, delivery: Delivery<S>) {
        // A delivery that is not settled goes back to its queue with its channel.
        let Ok(()) = self.answer(decoded, &delivery).await else { return };
        if let Err(error) = delivery.settle.ack().await {
            // The service tells of the loss once, for all deliveries that it costs.
            debug!("{error}; the broker will deliver the action again");
        }
    }

    async fn answer<S: Settle>(
        &self,
        decoded: Result<Action, Box<Invalid>>,
        delivery: &Delivery<S>,
    ) -> Result<(), Aborted> {
        let properties = &delivery.properties;
        let key = decoded.as_ref().ok().map(|action| (action.id, properties.replays(), properties.attempt()));
        match key.and_then(|key| self.memory.recall(key)) {
            Some(Finished::Answered(answer)) => {
                info!(action.id = %answer.properties.message_id.as_deref().unwrap_or_default(), "seen again: answered, not run");
                return self.publish_answer(&answer, properties).await;
            }
            Some(Finished::Retried) => return Ok(()),
            None => {}
        }
        let started_at = Utc::now();
        let judged = judge(&self.driver, &self.policy, decoded, started_at).await?;
        let attempt = properties.attempt();
        let occasion =
            Occasion { attempt, redelivered: delivery.redelivered, started_at, finished_at: Utc::now() };
        log(&judged, occasion);
        let class = judged.failure_class();
        match dispose(class, attempt, self.options.attempts_max) {
            Disposal::Complete => {
                self.publish_result(judged, Disposition::Completed, occasion, properties, key).await
            }
            Disposal::Retry => {
                self.publish_retry(delivery, occasion).await?;
                self.remember(key, Finished::Retried);
                Ok(())
            }
            Disposal::DeadLetter(reason) => {
                let message = judged.failure_message();
                self.publish_result(judged, Disposition::DeadLettered, occasion, properties, key).await?;
                let class = class.map_or("", FailureClass::as_str);
                self.publish_dead_letter(delivery, reason, class, &message, occasion).await
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
            routing_key: result.routing_key(),
            properties: result_properties(&result, occasion, delivered),
            body,
        });
        if disposition == Disposition::Completed {
            // From here on the action has been run: a redelivery must not run it again.
            self.remember(key, Finished::Answered(answer.clone()));
        }
        self.publish_answer(&answer, delivered).await
    }

    async fn publish_answer(&self, answer: &Answer, delivered: &Properties) -> Result<(), Aborted> {
        let Answer { routing_key, properties, body } = answer;
        let exchange = self.options.topology.results.as_str();
        self.publish_until_confirmed(Publication { exchange, routing_key, properties, body }).await?;
        if let Some(reply_to) = &delivered.reply_to {
            let copy = Publication { exchange: "", routing_key: reply_to, properties, body };
            // Who asked for the copy may be gone by now; the result itself is safe.
            if let Err(error) = self.publisher.publish(copy).await {
                let id = properties.message_id.as_deref().unwrap_or_default();
                warn!(action.id = id, "no copy of the result went to reply_to: {error}");
            }
        }
        Ok(())
    }

    async fn publish_retry<S>(&self, delivery: &Delivery<S>, occasion: Occasion) -> Result<(), Aborted> {
        let queue = self.options.topology.retry_queue(occasion.attempt);
        let mut properties = delivery.properties.clone();
        properties
            .headers
            .insert(HEADER_ATTEMPT.to_owned(), HeaderValue::Integer((occasion.attempt + 1).into()));
        properties
            .headers
            .entry(HEADER_FIRST_SEEN.to_owned())
            .or_insert_with(|| HeaderValue::Text(rfc3339(occasion.started_at)));
        let publication =
            Publication { exchange: "", routing_key: &queue, properties: &properties, body: &delivery.body };
        self.publish_until_confirmed(publication).await
    }

    async fn publish_dead_letter<S>(
        &self,
        delivery: &Delivery<S>,
        reason: &str,
        class: &str,
        message: &str,
        occasion: Occasion,
    ) -> Result<(), Aborted> {
        let mut properties = delivery.properties.clone();
        let mut tell = |name: &str, value: HeaderValue| {
            properties.headers.insert(format!("x-deckswain-{name}"), value);
        };
        tell("reason", reason.into());
        tell("class", class.into());
        tell("message", message.chars().take(1024).collect::<String>().as_str().into());
        tell("attempts", HeaderValue::Integer(occasion.attempt.into()));
        tell("worker", self.options.worker.id.as_str().into());
        tell("died-at", HeaderValue::Text(rfc3339(occasion.finished_at)));
        tell("exchange", delivery.exchange.as_str().into());
        tell("routing-key", delivery.routing_key.as_str().into());
        let publication = Publication {
            exchange: &self.options.topology.dead,
            routing_key: &delivery.routing_key,
            properties: &properties,
            body: &delivery.body,
        };
        self.publish_until_confirmed(publication).await
    }

    /// Publishes again and again until the broker has confirmed it: the delivery stays unacked meanwhile.
    async fn publish_until_confirmed(&self, publication: Publication<'_>) -> Result<(), Aborted> {
        let Err(error) = self.publisher.publish(publication.clone()).await else { return Ok(()) };
        // Said once for all that wait, not once an attempt.
        if self.waiting.fetch_add(1, Ordering::Relaxed) == 0 {
            warn!(exchange = publication.exchange, "{error}; trying again until the broker takes it");
        }
        let published = self.publish_with_backoff(publication).await;
        if self.waiting.fetch_sub(1, Ordering::Relaxed) == 1 && published.is_ok() {
            info!("the broker takes messages again: none waits");
        }
        published
    }

    async fn publish_with_backoff(&self, publication: Publication<'_>) -> Result<(), Aborted> {
        let mut backoff = Backoff::default();
        let mut abort = self.abort.clone();
        loop {
            let pause = tokio::time::sleep(backoff.next_wait());
            tokio::select! {
                () = pause => {}
                Ok(_) = abort.wait_for(|abort| *abort) => return Err(Aborted),
            }
            if self.publisher.publish(publication.clone()).await.is_ok() {
                return Ok(());
            }
        }
    }
}

fn rfc3339(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Millis, true)
}

fn result_properties(result: &ActivityResult, occasion: Occasion, delivered: &Properties) -> Properties {
    let id = result.action_id.to_string();
    let traceparent = delivered.headers.get_key_value("traceparent");
    Properties {
        correlation_id: Some(delivered.correlation_id.clone().unwrap_or_else(|| id.clone())),
        message_id: Some(id),
        reply_to: None,
        content_type: Some("application/json".to_owned()),
        message_type: Some("activity.result".to_owned()),
        app_id: Some("deckswain".to_owned()),
        timestamp: Some(occasion.finished_at),
        headers: traceparent.map(|(name, value)| (name.clone(), value.clone())).into_iter().collect(),
        death: None,
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
