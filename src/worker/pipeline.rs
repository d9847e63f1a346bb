//! The one place that branches: what happened decides where the delivery goes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use chrono::{DateTime, SecondsFormat, Utc};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tracing::{debug, info, warn};

use crate::action::{Action, DecodeOptions, Invalid};
use crate::backoff::Backoff;
use crate::broker::{
    Delivery, HEADER_ATTEMPT, HEADER_FIRST_SEEN, HeaderValue, Properties, Publication, Publish, Settle,
    Topology,
};
use crate::driver::{Aborted, Done, Driver, can_share};
use crate::policy::Policy;
use crate::result::{ActivityResult, Disposition, FailureClass, Occasion, WorkerIdentity};
use crate::subprocess::RunCommand;
use crate::worker::breaker::Breakers;
use crate::worker::memory::{Answer, Finished, Key, Memory};
use crate::worker::order::Order;
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
    /// The limit on decoded content, in bytes.
    pub content_bytes_max: usize,
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
    settled: Notify,
    /// Counts how often what had not begun was taken back.
    recalls: AtomicUsize,
    order: Order,
    breakers: Breakers,
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
            settled: Notify::new(),
            recalls: AtomicUsize::new(0),
            order: Order::default(),
            breakers: Breakers::default(),
        }
    }

    /// How many messages wait for the broker to take them.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Has nothing begun any more of what [`Pipeline::process_all`] was given so far.
    pub fn take_back(&self) {
        self.recalls.fetch_add(1, Ordering::Relaxed);
    }

    /// Tells that the broker was lost.
    pub fn distrust_broker(&self) {
        self.publisher.distrust();
    }

    /// Is told whenever a delivery has been settled.
    pub fn settled(&self) -> &Notify {
        &self.settled
    }

    /// Runs, publishes and settles one delivery; returns when the broker has all of it.
    async fn process<S: Settle>(&self, decoded: Result<Arc<Action>, Box<Invalid>>, delivery: Delivery<S>) {
        let key = decoded.as_ref().ok().map(|action| key_of(action, &delivery));
        let answered = match key.and_then(|key| self.memory.recall(key)) {
            Some(Finished::Answered(answer)) => {
                info!(action.id = %answer.properties.message_id.as_deref().unwrap_or_default(), "seen again: answered, not run");
                self.publish_answer(&answer, &delivery.properties).await
            }
            Some(Finished::Retried) => Ok(()),
            None => match decoded.as_ref().ok().and_then(|action| self.hindrance(action, &delivery)) {
                Some(Hindrance::Behind(attempt)) => self.put_off(decoded.ok(), &delivery, attempt).await,
                Some(Hindrance::Paused) => self.retry(decoded.ok(), &delivery, key).await,
                None => {
                    let started_at = Utc::now();
                    match judge(&self.driver, &self.policy, decoded, started_at).await {
                        Ok(judged) => {
                            self.note(&judged, delivery.properties.attempt());
                            self.dispose(judged, &delivery, key, (started_at, Utc::now())).await
                        }
                        Err(aborted) => Err(aborted),
                    }
                }
            },
        };
        self.settle(answered, delivery).await;
    }

    /// Why the action cannot be tried now, if it cannot.
    fn hindrance<S>(&self, action: &Action, delivery: &Delivery<S>) -> Option<Hindrance> {
        // What is not to be run at all has its answer at once.
        let is_over = action.expires_at.is_some_and(|expires_at| expires_at <= Utc::now());
        if is_over || self.policy.refusal(action).is_some() {
            return None;
        }
        let now = Instant::now();
        if let Err(attempt) = self.order.is_next(action, now) {
            return Some(Hindrance::Behind(attempt));
        }
        // The last attempt is always made: nothing is given up that was not tried.
        let is_last = delivery.properties.attempt() >= self.options.attempts_max;
        (!is_last && !self.breakers.may_try(action.executing_decky(), now)).then_some(Hindrance::Paused)
    }

    /// Has the action come again with the one before it on its path, as the attempt that it is.
    async fn put_off<S>(
        &self,
        action: Option<Arc<Action>>,
        delivery: &Delivery<S>,
        attempt_before: u32,
    ) -> Result<(), Aborted> {
        if let Some(action) = &action {
            debug!(action.id = %action.id, "put off: an earlier action on its path is tried again first");
            let delay = self.options.topology.retry_delay(attempt_before);
            self.order.waits(action, attempt_before, delay, Instant::now());
        }
        let queue = self.options.topology.retry_queue(attempt_before);
        self.publish_delayed(delivery, &queue, delivery.properties.attempt(), Utc::now()).await
    }

    /// Counts an attempt that was not made, on a decky that is left in peace.
    async fn retry<S>(
        &self,
        action: Option<Arc<Action>>,
        delivery: &Delivery<S>,
        key: Option<Key>,
    ) -> Result<(), Aborted> {
        let attempt = delivery.properties.attempt();
        if let Some(action) = &action {
            debug!(action.id = %action.id, decky.name = %action.executing_decky(), attempt, "not tried: the decky is left in peace");
            let delay = self.options.topology.retry_delay(attempt);
            self.order.waits(action, attempt, delay, Instant::now());
        }
        self.publish_retry(delivery, attempt, Utc::now()).await?;
        self.remember(key, Finished::Retried);
        Ok(())
    }

    /// Keeps the order of paths and the state of deckies; before anything else on them is begun.
    fn note(&self, judged: &Judged, attempt: u32) {
        let Judged::Done(action, outcome) = judged else { return };
        let decky = action.executing_decky();
        let class = outcome.failure.as_ref().map(|failure| failure.class);
        match class {
            Some(FailureClass::Infrastructure) => {
                if let Some(pause) = self.breakers.failed(decky, Instant::now()) {
                    warn!(decky.name = %decky, "left in peace for {} s: nothing can be done there", pause.as_secs());
                }
            }
            // These say nothing of the decky.
            Some(
                FailureClass::Refused
                | FailureClass::Expired
                | FailureClass::Unsupported
                | FailureClass::Timeout,
            ) => {}
            _ => {
                if self.breakers.worked(decky) {
                    info!(decky.name = %decky, "works again");
                }
            }
        }
        match dispose(class, attempt, self.options.attempts_max) {
            Disposal::Retry => {
                let delay = self.options.topology.retry_delay(attempt);
                self.order.waits(action, attempt, delay, Instant::now());
            }
            Disposal::Complete | Disposal::DeadLetter(_) => self.order.ended(action),
        }
    }

    /// A delivery that is not settled goes back to its queue with its channel.
    async fn settle<S: Settle>(&self, answered: Result<(), Aborted>, delivery: Delivery<S>) {
        if answered.is_err() {
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
        key: Option<Key>,
        (started_at, finished_at): (DateTime<Utc>, DateTime<Utc>),
    ) -> Result<(), Aborted> {
        let properties = &delivery.properties;
        let attempt = properties.attempt();
        let occasion = Occasion { attempt, redelivered: delivery.redelivered, started_at, finished_at };
        log(&judged, occasion);
        let class = judged.failure_class();
        match dispose(class, attempt, self.options.attempts_max) {
            Disposal::Complete => {
                self.publish_result(judged, Disposition::Completed, occasion, properties, key).await
            }
            Disposal::Retry => {
                self.publish_retry(delivery, attempt, occasion.started_at).await?;
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

    async fn publish_retry<S>(
        &self,
        delivery: &Delivery<S>,
        attempt: u32,
        seen_at: DateTime<Utc>,
    ) -> Result<(), Aborted> {
        let queue = self.options.topology.retry_queue(attempt);
        self.publish_delayed(delivery, &queue, attempt + 1, seen_at).await
    }

    async fn publish_delayed<S>(
        &self,
        delivery: &Delivery<S>,
        queue: &str,
        next_attempt: u32,
        seen_at: DateTime<Utc>,
    ) -> Result<(), Aborted> {
        let mut properties = delivery.properties.clone();
        properties.headers.insert(HEADER_ATTEMPT.to_owned(), HeaderValue::Integer(next_attempt.into()));
        properties
            .headers
            .entry(HEADER_FIRST_SEEN.to_owned())
            .or_insert_with(|| HeaderValue::Text(rfc3339(seen_at)));
        let publication =
            Publication { exchange: "", routing_key: queue, properties: &properties, body: &delivery.body };
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

impl<R: RunCommand, P: Publish> Pipeline<R, P> {
    /// Takes deliveries of one decky to their settlement, in their order; those that can share an exec do.
    pub async fn process_all<S: Settle + Sync>(self: Arc<Self>, deliveries: Vec<Delivery<S>>) {
        let recalls = self.recalls.load(Ordering::Relaxed);
        let mut together: Vec<Shared<S>> = Vec::new();
        for delivery in deliveries {
            let decode = DecodeOptions {
                message_id: delivery.properties.message_id.as_deref(),
                content_bytes_max: self.options.content_bytes_max,
            };
            match Action::decode(&delivery.body, decode) {
                Ok(action) if self.may_share(&action, &delivery, &together) => {
                    let key = key_of(&action, &delivery);
                    together.push(Shared { action: Arc::new(action), key, delivery });
                }
                decoded => {
                    let decoded = decoded.map(Arc::new);
                    self.clone().process_together(std::mem::take(&mut together), recalls).await;
                    if self.recalls.load(Ordering::Relaxed) != recalls {
                        return;
                    }
                    self.process(decoded, delivery).await;
                }
            }
        }
        self.process_together(together, recalls).await;
    }

    fn may_share<S>(&self, action: &Action, delivery: &Delivery<S>, together: &[Shared<S>]) -> bool {
        let key = key_of(action, delivery);
        can_share(action)
            && self.policy.refusal(action).is_none()
            && action.expires_at.is_none_or(|expires_at| expires_at > Utc::now())
            && self.memory.recall(key).is_none()
            && self.order.is_next(action, Instant::now()).is_ok()
            && together.iter().all(|shared| shared.key != key)
    }

    async fn process_together<S: Settle + Sync>(self: Arc<Self>, shared: Vec<Shared<S>>, recalls: usize) {
        let Some(decky) = shared.first().map(|shared| shared.action.executing_decky().clone()) else {
            return;
        };
        // One that waits alone runs as it always did; and of a decky that is left in peace each is put off.
        if shared.len() == 1 || !self.breakers.may_try(&decky, Instant::now()) {
            return self.process_each(shared, recalls).await;
        }
        let actions: Vec<Arc<Action>> = shared.iter().map(|shared| shared.action.clone()).collect();
        let actions: Vec<&Action> = actions.iter().map(AsRef::as_ref).collect();
        let mut shared: Vec<Option<Shared<S>>> = shared.into_iter().map(Some).collect();
        // Results are published while the batch goes on.
        let mut finishing = JoinSet::new();
        let done = |done: Done| {
            let Some(Shared { action, delivery, key }) = shared.get_mut(done.index).and_then(Option::take)
            else {
                return;
            };
            let judged = Judged::Done(action, done.outcome);
            self.note(&judged, delivery.properties.attempt());
            let pipeline = self.clone();
            finishing.spawn(async move {
                let answered = pipeline.dispose(judged, &delivery, Some(key), done.span).await;
                pipeline.settle(answered, delivery).await;
            });
        };
        let may_begin = |action: &Action| {
            self.recalls.load(Ordering::Relaxed) == recalls
                && self.order.is_next(action, Instant::now()).is_ok()
        };
        let performed = self.driver.perform_batch(&actions, Utc::now(), may_begin, done).await;
        while finishing.join_next().await.is_some() {}
        if performed.is_ok() {
            self.process_each(shared.into_iter().flatten().collect(), recalls).await;
        }
    }

    /// One after the other; what is taken back meanwhile is not settled, and goes back to its queue.
    async fn process_each<S: Settle>(&self, shared: Vec<Shared<S>>, recalls: usize) {
        for Shared { action, delivery, .. } in shared {
            if self.recalls.load(Ordering::Relaxed) != recalls {
                return;
            }
            self.process(Ok(action), delivery).await;
        }
    }
}

/// Why an action cannot be tried now.
enum Hindrance {
    /// One before it on its path waits since its attempt of this number.
    Behind(u32),
    /// Its decky is left in peace.
    Paused,
}

/// An action that shares an exec with others.
struct Shared<S> {
    action: Arc<Action>,
    delivery: Delivery<S>,
    key: Key,
}

fn key_of<S>(action: &Action, delivery: &Delivery<S>) -> Key {
    (action.id, delivery.properties.replays(), delivery.properties.attempt())
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
