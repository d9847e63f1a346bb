//! What this process has finished, so that a delivery seen again is answered and not run again.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::broker::{HEADER_TRACEPARENT, HeaderValue, Properties};

/// How many deliveries are remembered.
const ENTRIES_MAX: usize = 10_000;
/// How many bytes of results are remembered, with all that belongs to them.
const BYTES_MAX: usize = 2 * 1024 * 1024;
/// What a result takes beside its text: routing key, other fields, and the places in the tables here.
const OVERHEAD_BYTES: usize = 400;
/// How long: twice RabbitMQ's own limit of 30 minutes for a delivery that is not acked.
const AGE_MAX: Duration = Duration::from_secs(3600);

/// One delivery of an action, for all its redeliveries: the id, how often it was replayed, which attempt it is.
pub type Key = (Uuid, i64, u32);

/// A result as it is published, in as few pieces as may be: thousands of them are kept.
#[derive(Debug)]
pub struct Answer {
    /// The action's id.
    pub id: Uuid,
    /// The routing key.
    pub routing_key: Box<str>,
    /// The delivery's, where it has one.
    pub correlation_id: Option<Box<str>>,
    /// The action's `traceparent`.
    pub traceparent: Option<HeaderValue>,
    /// When it was finished.
    pub finished_at: DateTime<Utc>,
    /// The JSON text.
    pub body: Box<[u8]>,
}

impl Answer {
    /// The properties that it is published with.
    pub fn properties(&self) -> Properties {
        let id = self.id.to_string();
        let correlation_id = self.correlation_id.as_deref().unwrap_or(&id).to_owned();
        let traceparent = self.traceparent.clone().map(|value| (HEADER_TRACEPARENT.to_owned(), value));
        Properties {
            correlation_id: Some(correlation_id),
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

/// What became of a delivery.
#[derive(Debug, Clone)]
pub enum Finished {
    /// It has a result.
    Answered(Arc<Answer>),
    /// Its next attempt waits in a delay queue.
    Retried,
}

/// The memory; bounded by count, bytes and age.
#[derive(Debug, Default)]
pub struct Memory(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    entries: HashMap<Key, Finished>,
    order: VecDeque<(Instant, Key)>,
    bytes: usize,
}

impl Memory {
    /// What became of the delivery, if it is remembered.
    #[must_use]
    pub fn recall(&self, key: Key) -> Option<Finished> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).entries.get(&key).cloned()
    }

    /// Remembers what became of a delivery, and forgets what is too old or too much.
    pub fn remember(&self, key: Key, finished: Finished, now: Instant) {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = bytes_of(&finished);
        // One huge result would push out all others; running its read again does no harm.
        if bytes > BYTES_MAX / 8 || inner.entries.contains_key(&key) {
            return;
        }
        inner.bytes += bytes;
        inner.entries.insert(key, finished);
        inner.order.push_back((now, key));
        while let Some((when, oldest)) = inner.order.front().copied() {
            let too_much = inner.entries.len() > ENTRIES_MAX || inner.bytes > BYTES_MAX;
            if !too_much && now.duration_since(when) <= AGE_MAX {
                break;
            }
            inner.order.pop_front();
            if let Some(forgotten) = inner.entries.remove(&oldest) {
                inner.bytes -= bytes_of(&forgotten);
            }
        }
    }
}

fn bytes_of(finished: &Finished) -> usize {
    match finished {
        Finished::Answered(answer) => answer.body.len() + OVERHEAD_BYTES,
        Finished::Retried => OVERHEAD_BYTES / 4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: usize) -> Key {
        (Uuid::from_u128(n as u128), 0, 1)
    }

    fn answer(bytes: usize) -> Finished {
        Finished::Answered(Arc::new(Answer {
            id: Uuid::nil(),
            routing_key: "".into(),
            correlation_id: None,
            traceparent: None,
            finished_at: DateTime::UNIX_EPOCH,
            body: vec![0; bytes].into(),
        }))
    }

    #[test]
    fn the_oldest_goes_when_there_are_too_many_too_large_or_too_old() {
        let memory = Memory::default();
        let now = Instant::now();
        for n in 0..=ENTRIES_MAX {
            memory.remember(key(n), Finished::Retried, now);
        }
        assert!(memory.recall(key(0)).is_none());
        assert!(memory.recall(key(1)).is_some());
        memory.remember(key(ENTRIES_MAX + 1), Finished::Retried, now + AGE_MAX + Duration::from_secs(1));
        assert!(memory.recall(key(ENTRIES_MAX)).is_none());
        for n in 0..9 {
            memory.remember(key(n), answer(BYTES_MAX / 8 - OVERHEAD_BYTES), now + AGE_MAX);
        }
        assert!(memory.recall(key(0)).is_none());
        assert!(memory.recall(key(8)).is_some());
        memory.remember(key(10), answer(BYTES_MAX), now + AGE_MAX);
        assert!(memory.recall(key(10)).is_none());
    }

    #[test]
    fn another_attempt_or_a_replay_is_another_delivery() {
        let memory = Memory::default();
        memory.remember(key(1), Finished::Retried, Instant::now());
        let (id, replays, attempt) = key(1);
        assert!(memory.recall((id, replays, attempt + 1)).is_none());
        assert!(memory.recall((id, replays + 1, attempt)).is_none());
    }
}
