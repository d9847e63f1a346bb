//! The deduplication cache: results and replaced messages, so that a duplicate delivery is not run again.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher as _, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use tokio::sync::watch;
use uuid::Uuid;

use crate::broker::{Delivery, HEADER_TRACEPARENT, Properties};
use crate::result::without_payload;

/// How many actions are remembered.
const ENTRIES_MAX: usize = 10_000;
/// How many bytes of results are remembered, with everything that belongs to them.
const BYTES_MAX: usize = 2 * 1024 * 1024;
/// The size of a remembered action beside its result's text: keys, other fields, places in the tables here.
const OVERHEAD_BYTES: usize = 400;
/// How long an action is remembered: twice RabbitMQ's own limit of 30 minutes for a delivery that is not acked.
const AGE_MAX: Duration = Duration::from_secs(3600);
/// An ack that was sent this long before the connection was lost has reached the broker: a peer that went
/// mute is noticed earlier.
const ACK_DOUBT_TIME: Duration = Duration::from_secs(15);
/// How long after a loss of the connection a redelivery may still be due to an ack that was lost with it.
const REDELIVERY_TIME_MAX: Duration = Duration::from_secs(60);
/// How many replaced messages of one action are remembered; the oldest is forgotten first.
const REPLACED_MAX: usize = 32;

/// An action as somebody submitted it: its id, how often it was replayed, and a digest of its body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Submission {
    pub id: Uuid,
    pub replays: i64,
    /// Keyed by a secret of this process, so that nobody can make two bodies alike.
    pub body: u64,
}

/// One message on the broker, for all its deliveries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key {
    pub submission: Submission,
    /// Counts from 1.
    pub attempt: u32,
    /// How often it was sent on without an attempt: deferred, or handed back.
    pub deferrals: i64,
}

/// One delivery of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    pub key: Key,
    /// The broker's flag.
    pub redelivered: bool,
    /// Which of this process's connections it came by, counted from 0.
    pub connection: u64,
}

/// A result as it is published, in as few pieces as may be: thousands of them are kept.
#[derive(Debug)]
pub struct Answer {
    /// The action's id.
    pub id: Uuid,
    /// The routing key.
    pub routing_key: Box<str>,
    /// When it was finished.
    pub finished_at: DateTime<Utc>,
    /// The JSON text.
    pub body: Box<[u8]>,
}

impl Answer {
    /// The failure that stands for a result which the broker does not take for its size, for the reason `why`.
    pub fn without_payload(&self, why: &str) -> Self {
        let (routing_key, body) = without_payload(&self.routing_key, &self.body, why);
        Self { id: self.id, routing_key, finished_at: self.finished_at, body }
    }

    /// The properties that it is published with in answer to a delivery with the given ones.
    pub fn properties(&self, delivered: &Properties) -> Properties {
        let id = self.id.to_string();
        let traceparent = delivered.traceparent();
        let traceparent = traceparent.map(|value| (HEADER_TRACEPARENT.to_owned(), value.clone()));
        Properties {
            correlation_id: Some(delivered.correlation_id.as_ref().unwrap_or(&id).clone()),
            message_id: Some(id),
            content_type: Some("application/json".to_owned()),
            message_type: Some("activity.result".to_owned()),
            app_id: Some("deckswain".to_owned()),
            timestamp: Some(self.finished_at),
            headers: traceparent.into_iter().collect(),
            ..Properties::default()
        }
    }
}

/// The message that is published in place of a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Successor {
    /// Its next attempt, in a delay queue.
    Retry,
    /// The same attempt, in a delay queue.
    Deferral,
    /// The same attempt, for other workers.
    HandBack,
    /// Its dead letter.
    DeadLetter,
}

/// The state of the ack of a delivery that was replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ack {
    /// The successor is being published, or the ack is being sent.
    Pending,
    /// It was sent at this time, on a connection that has not been lost since.
    Sent(Instant),
    /// It was sent, and the connection was lost at this time or a little earlier.
    InDoubt(Instant),
    /// The connection was lost before it was sent: the delivery comes again for certain.
    NotSent,
}

/// This process's knowledge of a delivery.
#[derive(Debug, Clone)]
pub enum Known {
    /// Nothing that concerns it.
    Nothing,
    /// The action has a result.
    Answered(Arc<Answer>),
    /// The message was replaced when it came by an earlier connection.
    Replaced {
        by: Successor,
        ack: Ack,
        /// Turns true when the successor is confirmed.
        confirmed: watch::Receiver<bool>,
    },
}

/// The cache; bounded by count, bytes and age.
#[derive(Debug, Default)]
pub struct Memory {
    inner: Mutex<Inner>,
    connection: AtomicU64,
    hasher: RandomState,
}

#[derive(Debug, Default)]
struct Inner {
    entries: HashMap<(Uuid, i64), Entry>,
    /// When each entry was made, or was renewed after a part of its time.
    order: VecDeque<(Instant, (Uuid, i64))>,
    bytes: usize,
}

/// The knowledge of one id at one count of replays.
#[derive(Debug)]
struct Entry {
    renewed_at: Instant,
    bodies: Vec<Body>,
}

#[derive(Debug)]
struct Body {
    digest: u64,
    answer: Option<Arc<Answer>>,
    replaced: Vec<Replaced>,
}

#[derive(Debug)]
struct Replaced {
    attempt: u32,
    deferrals: i64,
    by: Successor,
    connection: u64,
    ack: Ack,
    confirmed: watch::Receiver<bool>,
}

impl Memory {
    /// Identifies a delivery of the action with this id.
    pub fn seen<S>(&self, id: Uuid, delivery: &Delivery<S>) -> Seen {
        let properties = &delivery.properties;
        let body = self.hasher.hash_one(&*delivery.body);
        let submission = Submission { id, replays: properties.replays(), body };
        let deferrals = properties.deferrals().saturating_add(properties.hand_backs().into());
        Seen {
            key: Key { submission, attempt: properties.attempt(), deferrals },
            redelivered: delivery.redelivered,
            connection: self.connection.load(Ordering::Relaxed),
        }
    }

    /// Returns the knowledge that concerns the delivery.
    pub fn recall(&self, seen: &Seen, now: Instant) -> Known {
        let inner = self.lock();
        let Some(body) = inner.body(seen.key.submission) else { return Known::Nothing };
        if let Some(answer) = &body.answer {
            return Known::Answered(answer.clone());
        }
        match body.replaced.iter().find(|replaced| replaced.may_come_again_as(seen, now)) {
            Some(Replaced { by, ack, confirmed, .. }) => {
                Known::Replaced { by: *by, ack: *ack, confirmed: confirmed.clone() }
            }
            None => Known::Nothing,
        }
    }

    /// Remembers a result; returns whether the id had a result already, of another body.
    pub fn answered(&self, submission: Submission, answer: Arc<Answer>, now: Instant) -> bool {
        // One huge result would push out all others; running its action again does no harm.
        let is_kept = answer.body.len() <= BYTES_MAX / 8;
        let mut inner = self.lock();
        let is_id_reused = inner.entries.get(&(submission.id, submission.replays)).is_some_and(|entry| {
            entry.bodies.iter().any(|body| body.digest != submission.body && body.answer.is_some())
        });
        if is_kept {
            inner.change(submission, now, |body| {
                body.answer.get_or_insert(answer);
                // From here on each of its deliveries is answered.
                body.replaced.clear();
            });
        }
        is_id_reused
    }

    /// Remembers, before the lane goes on, that a successor is about to be published in place of a delivery.
    pub fn replacing(&self, seen: &Seen, by: Successor, now: Instant) -> watch::Sender<bool> {
        let (confirming, confirmed) = watch::channel(false);
        let Key { submission, attempt, deferrals } = seen.key;
        let replaced =
            Replaced { attempt, deferrals, by, connection: seen.connection, ack: Ack::Pending, confirmed };
        self.lock().change(submission, now, |body| {
            body.replaced.retain(|earlier| !earlier.is_obsolete(by, now));
            if body.replaced.len() >= REPLACED_MAX {
                body.replaced.remove(0);
            }
            body.replaced.push(replaced);
        });
        confirming
    }

    /// Notes that the successor of a delivery, which is not published yet, is of another kind.
    pub fn replacing_otherwise(&self, seen: &Seen, by: Successor) {
        let mut inner = self.lock();
        let Some(body) = inner.body_mut(seen.key.submission) else { return };
        if let Some(replaced) = body.replaced.iter_mut().find(|replaced| replaced.is_pending_of(seen)) {
            replaced.by = by;
        }
    }

    /// Notes the end of a delivery that was replaced, or that was dropped because it had been.
    pub fn settled(&self, seen: &Seen, ack: Ack, now: Instant) {
        let current = self.connection.load(Ordering::Relaxed);
        let mut inner = self.lock();
        let Some(body) = inner.body_mut(seen.key.submission) else { return };
        let its_own = body.replaced.iter().position(|replaced| replaced.is_pending_of(seen));
        let of_earlier = || body.replaced.iter().position(|replaced| replaced.may_come_again_as(seen, now));
        if let Some(at) = its_own.or_else(of_earlier) {
            body.replaced[at].connection = seen.connection;
            body.replaced[at].ack = match ack {
                Ack::Sent(_) if seen.connection < current => Ack::InDoubt(now),
                ack => ack,
            };
        }
    }

    /// Notes that the connection of all deliveries so far was lost.
    pub fn connection_lost(&self, now: Instant) {
        self.connection.fetch_add(1, Ordering::Relaxed);
        let mut inner = self.lock();
        let bodies = inner.entries.values_mut().flat_map(|entry| &mut entry.bodies);
        for replaced in bodies.flat_map(|body| &mut body.replaced) {
            if let Ack::Sent(at) = replaced.ack
                && now.saturating_duration_since(at) <= ACK_DOUBT_TIME
            {
                replaced.ack = Ack::InDoubt(now);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Replaced {
    fn is(&self, key: &Key) -> bool {
        self.attempt == key.attempt && self.deferrals == key.deferrals
    }

    /// Whether it is this very delivery, and not settled.
    fn is_pending_of(&self, seen: &Seen) -> bool {
        self.is(&seen.key) && self.connection == seen.connection && self.ack == Ack::Pending
    }

    /// Whether a delivery may be its redelivery: none comes by the connection that it was delivered by.
    fn may_come_again_as(&self, seen: &Seen, now: Instant) -> bool {
        self.is(&seen.key) && self.connection < seen.connection && self.may_come_again(now)
    }

    /// Whether its delivery may have been given back to the broker.
    fn may_come_again(&self, now: Instant) -> bool {
        // Where the successor was given up, nothing stands in its place: it is run again.
        let is_given_up = !*self.confirmed.borrow() && self.confirmed.has_changed().is_err();
        if is_given_up {
            return false;
        }
        match self.ack {
            Ack::Pending | Ack::NotSent => true,
            Ack::Sent(_) => false,
            Ack::InDoubt(lost_at) => now.saturating_duration_since(lost_at) <= REDELIVERY_TIME_MAX,
        }
    }

    /// Whether it need not be remembered once `next` has come of a later delivery of its action.
    fn is_obsolete(&self, next: Successor, now: Instant) -> bool {
        match (self.ack, next) {
            (Ack::Pending | Ack::NotSent, _) => false,
            (Ack::Sent(at), _) => now.saturating_duration_since(at) > ACK_DOUBT_TIME,
            // A dead letter is the end: an equal message may be a new submission from here on.
            (Ack::InDoubt(_), Successor::DeadLetter) => true,
            (Ack::InDoubt(_), Successor::Retry | Successor::Deferral | Successor::HandBack) => {
                !self.may_come_again(now)
            }
        }
    }
}

impl Inner {
    fn body(&self, submission: Submission) -> Option<&Body> {
        let entry = self.entries.get(&(submission.id, submission.replays))?;
        entry.bodies.iter().find(|body| body.digest == submission.body)
    }

    fn body_mut(&mut self, submission: Submission) -> Option<&mut Body> {
        let entry = self.entries.get_mut(&(submission.id, submission.replays))?;
        entry.bodies.iter_mut().find(|body| body.digest == submission.body)
    }

    /// Makes or changes the knowledge of a submission, and forgets the oldest where it is too old or too much.
    fn change(&mut self, submission: Submission, now: Instant, change: impl FnOnce(&mut Body)) {
        let key = (submission.id, submission.replays);
        let order = &mut self.order;
        let entry = self.entries.entry(key).or_insert_with(|| {
            order.push_back((now, key));
            Entry { renewed_at: now, bodies: Vec::with_capacity(1) }
        });
        if now.saturating_duration_since(entry.renewed_at) > AGE_MAX / 4 {
            entry.renewed_at = now;
            order.push_back((now, key));
        }
        let at = entry.bodies.iter().position(|body| body.digest == submission.body).unwrap_or_else(|| {
            entry.bodies.push(Body { digest: submission.body, answer: None, replaced: Vec::new() });
            self.bytes += OVERHEAD_BYTES;
            entry.bodies.len() - 1
        });
        let body = &mut entry.bodies[at];
        let before = body.bytes();
        change(body);
        self.bytes = self.bytes + body.bytes() - before;
        self.forget(now);
    }

    fn forget(&mut self, now: Instant) {
        while let Some((when, oldest)) = self.order.front().copied() {
            let too_much = self.entries.len() > ENTRIES_MAX || self.bytes > BYTES_MAX;
            if !too_much && now.saturating_duration_since(when) <= AGE_MAX {
                break;
            }
            self.order.pop_front();
            // One that was renewed has another place behind.
            if self.entries.get(&oldest).is_some_and(|entry| entry.renewed_at <= when)
                && let Some(forgotten) = self.entries.remove(&oldest)
            {
                self.bytes -=
                    forgotten.bodies.iter().map(|body| OVERHEAD_BYTES + body.bytes()).sum::<usize>();
            }
        }
    }
}

impl Body {
    fn bytes(&self) -> usize {
        let answer = self.answer.as_ref().map_or(0, |answer| answer.body.len());
        // The channel that tells of the confirm is counted with each.
        answer + self.replaced.len() * (size_of::<Replaced>() + OVERHEAD_BYTES / 2)
    }
}

#[cfg(test)]
mod tests;
