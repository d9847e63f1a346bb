//! What goes out: results, retries and dead letters, each published until the broker has confirmed it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, SecondsFormat, Utc};
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{error, info, warn};

use crate::backoff::Backoff;
use crate::broker::{
    Delivery, HEADER_ATTEMPT, HEADER_DEFERRALS, HEADER_FIRST_SEEN, HEADER_HANDED_BACK, HEADER_HANDED_BACK_BY,
    HeaderValue, Properties, Publication, Publish, PublishError, Topology,
};
use crate::cut::{MESSAGE_CHARS_MAX, cut};
use crate::driver::Aborted;
use crate::result::Occasion;
use crate::worker::engine::HandBack;
use crate::worker::memory::Answer;

/// How much of a failure message a dead letter's headers hold, in bytes.
const MESSAGE_BYTES_MAX: usize = 1024;
/// So many hand-backs take the shortest delay; after that the worker that has the decky is busy.
const HAND_BACKS_SOON: u32 = 10;
/// Over how long further hand-backs of an action are spread, in milliseconds. The broker delivers in turn: two
/// actions that are published together could go to the wrong one of two workers each time.
const HAND_BACK_SPREAD_MS: u64 = 250;

/// Publishes what follows from deliveries.
pub struct Outbox<P> {
    publisher: P,
    topology: Topology,
    worker_id: String,
    abort: watch::Receiver<bool>,
    waiting: AtomicUsize,
    /// The results that are on their way, by their place in memory; each tells whether it was confirmed.
    on_their_way: Mutex<HashMap<usize, watch::Receiver<bool>>>,
}

/// Why a message was not published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unsent {
    /// The program stops at once.
    Aborted,
    /// The broker takes no message of this size; in its words.
    TooLarge(String),
}

impl From<Aborted> for Unsent {
    fn from(Aborted: Aborted) -> Self {
        Self::Aborted
    }
}

/// Why an action is given up.
pub struct Grounds<'a> {
    pub reason: &'a str,
    pub class: &'a str,
    pub message: &'a str,
}

impl<P: Publish> Outbox<P> {
    pub fn new(publisher: P, topology: Topology, worker_id: String, abort: watch::Receiver<bool>) -> Self {
        let (waiting, on_their_way) = (AtomicUsize::new(0), Mutex::default());
        Self { publisher, topology, worker_id, abort, waiting, on_their_way }
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
    ///
    /// A result that is on its way is not sent a second time for a redelivery of its action.
    pub async fn result(
        &self,
        answer: &Arc<Answer>,
        delivered: &Properties,
        redelivered: bool,
    ) -> Result<(), Aborted> {
        let place = Arc::as_ptr(answer).addr();
        let (confirmed, confirm) = watch::channel(false);
        while let Some(mut before) = self.begin(place, &confirm) {
            // Another submission may ask for its own copy, or have its own correlation id.
            if !redelivered {
                return self.send_result(answer, delivered).await;
            }
            if before.wait_for(|confirmed| *confirmed).await.is_ok() {
                return Ok(());
            }
        }
        let on_its_way = OnItsWay { outbox: self, place };
        let sent = self.send_result(answer, delivered).await;
        confirmed.send_replace(sent.is_ok());
        drop(on_its_way);
        sent
    }

    /// Marks a result as being on its way; gives what tells of it where it is already.
    fn begin(&self, place: usize, confirm: &watch::Receiver<bool>) -> Option<watch::Receiver<bool>> {
        match self.on_their_way().entry(place) {
            Entry::Occupied(before) => Some(before.get().clone()),
            Entry::Vacant(free) => {
                free.insert(confirm.clone());
                None
            }
        }
    }

    fn on_their_way(&self) -> MutexGuard<'_, HashMap<usize, watch::Receiver<bool>>> {
        self.on_their_way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn send_result(&self, answer: &Answer, delivered: &Properties) -> Result<(), Aborted> {
        let refused = match self.publish_result(answer, delivered).await {
            Err(Unsent::TooLarge(why)) => why,
            Ok(()) => return Ok(()),
            Err(Unsent::Aborted) => return Err(Aborted),
        };
        warn!(action.id = %answer.id, "the result is published without its payload: {refused}");
        match self.publish_result(&answer.without_payload(&refused), delivered).await {
            Err(Unsent::TooLarge(why)) => {
                error!(action.id = %answer.id, "the result is given up, the broker does not take it: {why}");
                Ok(())
            }
            Ok(()) => Ok(()),
            Err(Unsent::Aborted) => Err(Aborted),
        }
    }

    /// Publishes a result until it is confirmed, and then a copy of it.
    async fn publish_result(&self, answer: &Answer, delivered: &Properties) -> Result<(), Unsent> {
        let (properties, body) = (&answer.properties(delivered), &*answer.body);
        let (exchange, routing_key) = (self.topology.results.as_str(), &*answer.routing_key);
        self.publish_until_confirmed(Publication { exchange, routing_key, properties, body }).await?;
        let Some(reply_to) = &delivered.reply_to else { return Ok(()) };
        if self.topology.owns(reply_to) {
            warn!(action.id = %answer.id, reply_to, "no copy of the result is sent: its reply_to names a queue of the workers");
            return Ok(());
        }
        let copy = Publication { exchange: "", routing_key: reply_to, properties, body };
        // Who asked for the copy may be gone by now; the result itself is safe.
        if let Err(error) = self.publisher.publish(copy).await {
            warn!(action.id = %answer.id, reply_to, "no copy of the result reached its reply_to: {error}");
        }
        Ok(())
    }

    /// Publishes the next attempt to the delay queue that follows this one.
    pub async fn retry<S>(&self, delivery: &Delivery<S>, seen_at: DateTime<Utc>) -> Result<(), Unsent> {
        let attempt = delivery.properties.attempt();
        let mut properties = delivery.properties.carried_on();
        let next = HeaderValue::Integer(i64::from(attempt) + 1);
        properties.headers.insert(HEADER_ATTEMPT.to_owned(), next);
        self.delayed(delivery, properties, attempt, seen_at).await
    }

    /// Publishes the same attempt to the delay queue that follows the given attempt.
    pub async fn deferral<S>(&self, delivery: &Delivery<S>, after: u32) -> Result<(), Unsent> {
        let mut properties = delivery.properties.carried_on();
        let attempt = HeaderValue::Integer(properties.attempt().into());
        properties.headers.insert(HEADER_ATTEMPT.to_owned(), attempt);
        let deferrals = HeaderValue::Integer(properties.deferrals().saturating_add(1));
        properties.headers.insert(HEADER_DEFERRALS.to_owned(), deferrals);
        self.delayed(delivery, properties, after, Utc::now()).await
    }

    async fn delayed<S>(
        &self,
        delivery: &Delivery<S>,
        mut properties: Properties,
        after: u32,
        seen_at: DateTime<Utc>,
    ) -> Result<(), Unsent> {
        properties
            .headers
            .entry(HEADER_FIRST_SEEN.to_owned())
            .or_insert_with(|| HeaderValue::Text(rfc3339(seen_at)));
        self.to_delay_queue(delivery, properties, after).await
    }

    /// Publishes an action to the delay queue of an attempt.
    async fn to_delay_queue<S>(
        &self,
        delivery: &Delivery<S>,
        mut properties: Properties,
        after: u32,
    ) -> Result<(), Unsent> {
        let route = self.topology.retry_route(after);
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

    /// Gives an action to other workers, later and without counting an attempt.
    pub async fn handed_back<S>(&self, delivery: &Delivery<S>, hand_back: &HandBack) -> Result<(), Unsent> {
        let mut properties = delivery.properties.carried_on();
        let mut tell = |name: &str, value| properties.headers.insert(name.to_owned(), value);
        tell(HEADER_HANDED_BACK, HeaderValue::Integer(hand_back.count.into()));
        tell(HEADER_HANDED_BACK_BY, HeaderValue::Text(hand_back.by.clone()));
        if hand_back.count > 1 {
            // The standard library seeds each of these anew; no better randomness is needed.
            let spread = RandomState::new().hash_one(()) % HAND_BACK_SPREAD_MS;
            sleep(Duration::from_millis(spread)).await;
        }
        let after = if hand_back.count <= HAND_BACKS_SOON { 1 } else { 2 };
        self.to_delay_queue(delivery, properties, after).await
    }

    /// Publishes an action as it is to a queue, once.
    pub async fn hand_on<S>(&self, delivery: &Delivery<S>, queue: &str) -> Result<(), PublishError> {
        let (properties, body) = (&delivery.properties, delivery.body.as_slice());
        self.publisher.publish(Publication { exchange: "", routing_key: queue, properties, body }).await
    }

    /// Publishes an action that is given up, byte for byte, with what there is to say of it.
    pub async fn dead_letter<S>(
        &self,
        delivery: &Delivery<S>,
        grounds: Grounds<'_>,
        occasion: Occasion,
    ) -> Result<(), Unsent> {
        let mut properties = delivery.properties.carried_on();
        let mut tell = |name: &str, value: HeaderValue| {
            properties.headers.insert(format!("x-deckswain-{name}"), value);
        };
        tell("reason", grounds.reason.into());
        tell("class", grounds.class.into());
        tell("message", within(&cut(grounds.message, MESSAGE_CHARS_MAX), MESSAGE_BYTES_MAX).into());
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
    /// A message that is too large for the broker is not tried again.
    async fn publish_until_confirmed(&self, publication: Publication<'_>) -> Result<(), Unsent> {
        let error = match self.publisher.publish(publication.clone()).await {
            Ok(()) => return Ok(()),
            Err(PublishError::TooLarge(why)) => return Err(Unsent::TooLarge(why)),
            Err(error) => error,
        };
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

    async fn publish_with_backoff(&self, publication: Publication<'_>) -> Result<(), Unsent> {
        let mut backoff = Backoff::default();
        let mut abort = self.abort.clone();
        loop {
            let pause = tokio::time::sleep(backoff.next_wait());
            tokio::select! {
                () = pause => {}
                Ok(_) = abort.wait_for(|abort| *abort) => return Err(Unsent::Aborted),
            }
            match self.publisher.publish(publication.clone()).await {
                Ok(()) => return Ok(()),
                Err(PublishError::TooLarge(why)) => return Err(Unsent::TooLarge(why)),
                Err(_) => {}
            }
        }
    }
}

/// A result until it has been sent or given up.
struct OnItsWay<'a, P: Publish> {
    outbox: &'a Outbox<P>,
    place: usize,
}

impl<P: Publish> Drop for OnItsWay<'_, P> {
    fn drop(&mut self) {
        self.outbox.on_their_way().remove(&self.place);
    }
}

/// The beginning of a text, of at most so many bytes.
fn within(text: &str, bytes_max: usize) -> &str {
    let end = (0..=bytes_max.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
    &text[..end.unwrap_or(0)]
}

fn rfc3339(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Millis, true)
}

#[cfg(test)]
mod tests {
    use tokio::sync::Semaphore;
    use uuid::Uuid;

    use super::*;
    use crate::broker::{Layout, RETRY_DELAYS};

    /// Counts what is published, each when it is let through.
    #[derive(Clone)]
    struct Gate(Arc<(Semaphore, AtomicUsize)>);

    impl Publish for Gate {
        async fn publish(&self, _publication: Publication<'_>) -> Result<(), PublishError> {
            self.0.1.fetch_add(1, Ordering::SeqCst);
            self.0.0.acquire().await.map_err(|_| PublishError::Nacked)?.forget();
            Ok(())
        }

        fn distrust(&self) {}
    }

    #[tokio::test]
    async fn a_result_that_is_on_its_way_is_not_sent_a_second_time_and_one_that_has_arrived_is() {
        let gate = Gate(Arc::new((Semaphore::new(0), AtomicUsize::new(0))));
        let topology = Topology::new("t", Layout::Shared, true, &RETRY_DELAYS);
        let (_abort, aborted) = watch::channel(false);
        let outbox = Outbox::new(gate.clone(), topology, "w".to_owned(), aborted);
        let answer = Arc::new(Answer {
            id: Uuid::nil(),
            routing_key: "k".into(),
            finished_at: DateTime::UNIX_EPOCH,
            body: b"{}".as_slice().into(),
        });
        let sent = || gate.0.1.load(Ordering::SeqCst);
        let delivered = Properties::default();
        let send = || Box::pin(outbox.result(&answer, &delivered, true));
        let (mut first, mut second, mut given_up) = (send(), send(), send());
        let is_over = async |sending: &mut _| futures_lite::future::poll_once(sending).await.is_some();
        assert!(!is_over(&mut first).await && !is_over(&mut second).await && sent() == 1);
        gate.0.0.add_permits(1);
        assert!(first.await.is_ok() && second.await.is_ok() && sent() == 1);
        // It is in no memory but this process's that it has arrived, so whoever asks is answered.
        assert!(!is_over(&mut given_up).await && sent() == 2);
        let mut submitted_anew = Box::pin(outbox.result(&answer, &delivered, false));
        assert!(!is_over(&mut submitted_anew).await && sent() == 3, "it may ask for a copy of its own");
        drop((given_up, submitted_anew));
        gate.0.0.add_permits(1);
        assert!(send().await.is_ok() && sent() == 4);
    }
}
