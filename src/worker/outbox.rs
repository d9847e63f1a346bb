//! What goes out: results, retries and dead letters, each published until the broker has confirmed it.

use std::sync::atomic::{AtomicUsize, Ordering};

use chrono::{DateTime, SecondsFormat, Utc};
use tokio::sync::watch;
use tracing::{info, warn};

use crate::backoff::Backoff;
use crate::broker::{
    Delivery, HEADER_ATTEMPT, HEADER_FIRST_SEEN, HeaderValue, Properties, Publication, Publish, Topology,
};
use crate::driver::Aborted;
use crate::result::Occasion;
use crate::worker::memory::Answer;

/// Publishes what follows from deliveries.
pub struct Outbox<P> {
    publisher: P,
    topology: Topology,
    worker_id: String,
    abort: watch::Receiver<bool>,
    waiting: AtomicUsize,
}

/// Why an action is given up.
pub struct Grounds<'a> {
    pub reason: &'a str,
    pub class: &'a str,
    pub message: &'a str,
}

impl<P: Publish> Outbox<P> {
    pub fn new(publisher: P, topology: Topology, worker_id: String, abort: watch::Receiver<bool>) -> Self {
        Self { publisher, topology, worker_id, abort, waiting: AtomicUsize::new(0) }
    }

    /// How many messages wait for the broker to take them.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Tells that the broker was lost.
    pub fn distrust_broker(&self) {
        self.publisher.distrust();
    }

    /// Publishes a result, and a copy of it to whoever asked for one.
    pub async fn result(&self, answer: &Answer, delivered: &Properties) -> Result<(), Aborted> {
        let (properties, body) = (&answer.properties(), &*answer.body);
        let (exchange, routing_key) = (self.topology.results.as_str(), &*answer.routing_key);
        self.publish_until_confirmed(Publication { exchange, routing_key, properties, body }).await?;
        if let Some(reply_to) = &delivered.reply_to {
            let copy = Publication { exchange: "", routing_key: reply_to, properties, body };
            // Who asked for the copy may be gone by now; the result itself is safe.
            if let Err(error) = self.publisher.publish(copy).await {
                warn!(action.id = %answer.id, "no copy of the result went to reply_to: {error}");
            }
        }
        Ok(())
    }

    /// Has an action come again after the delay that follows the given attempt, as the attempt `next_attempt`.
    pub async fn delayed<S>(
        &self,
        delivery: &Delivery<S>,
        attempt: u32,
        next_attempt: u32,
        seen_at: DateTime<Utc>,
    ) -> Result<(), Aborted> {
        let route = self.topology.retry_route(attempt);
        let mut properties = delivery.properties.clone();
        properties.headers.insert(HEADER_ATTEMPT.to_owned(), HeaderValue::Integer(next_attempt.into()));
        properties
            .headers
            .entry(HEADER_FIRST_SEEN.to_owned())
            .or_insert_with(|| HeaderValue::Text(rfc3339(seen_at)));
        if let Some((name, value)) = route.header {
            properties.headers.insert(name.to_owned(), HeaderValue::Text(value));
        }
        let publication = Publication {
            exchange: &route.exchange,
            routing_key: route.routing_key.as_deref().unwrap_or(&delivery.routing_key),
            properties: &properties,
            body: &delivery.body,
        };
        self.publish_until_confirmed(publication).await
    }

    /// Publishes an action that is given up, byte for byte, with what there is to say of it.
    pub async fn dead_letter<S>(
        &self,
        delivery: &Delivery<S>,
        grounds: Grounds<'_>,
        occasion: Occasion,
    ) -> Result<(), Aborted> {
        let mut properties = delivery.properties.clone();
        let mut tell = |name: &str, value: HeaderValue| {
            properties.headers.insert(format!("x-deckswain-{name}"), value);
        };
        tell("reason", grounds.reason.into());
        tell("class", grounds.class.into());
        tell("message", grounds.message.chars().take(1024).collect::<String>().as_str().into());
        tell("attempts", HeaderValue::Integer(occasion.attempt.into()));
        tell("worker", self.worker_id.as_str().into());
        tell("died-at", HeaderValue::Text(rfc3339(occasion.finished_at)));
        tell("exchange", delivery.exchange.as_str().into());
        tell("routing-key", delivery.routing_key.as_str().into());
        let publication = Publication {
            exchange: &self.topology.dead,
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
