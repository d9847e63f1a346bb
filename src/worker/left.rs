//! The traces that deliveries leave: no delivery is acked without one.

use std::sync::atomic::{AtomicU64, Ordering};

use tracing::info;

/// The trace of a delivery, confirmed by the broker or said in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// The result of its run.
    Result,
    /// The result of an earlier run, published again.
    RepeatedResult,
    /// Its next attempt.
    Retry,
    /// The same attempt, for later.
    Deferral,
    /// The same attempt, for other workers.
    HandBack,
    /// A dead letter, and before it a result.
    DeadLetter,
    /// A result, and the message itself, which the broker dead-letters.
    BrokerDeadLetter,
    /// A log line: it was a duplicate whose retry, deferral or dead letter is confirmed.
    Duplicate,
}

/// Counts traces and settlements: acks, and rejects of messages that the broker dead-letters.
#[derive(Debug, Default)]
pub struct Tally {
    settled: AtomicU64,
    unsettled: AtomicU64,
    results: AtomicU64,
    repeated_results: AtomicU64,
    retries: AtomicU64,
    deferrals: AtomicU64,
    hand_backs: AtomicU64,
    dead_letters: AtomicU64,
    broker_dead_letters: AtomicU64,
    duplicates: AtomicU64,
}

impl Tally {
    /// Counts the trace of a delivery.
    pub fn left(&self, left: Left) {
        let count = match left {
            Left::Result => &self.results,
            Left::RepeatedResult => &self.repeated_results,
            Left::Retry => &self.retries,
            Left::Deferral => &self.deferrals,
            Left::HandBack => &self.hand_backs,
            Left::DeadLetter => &self.dead_letters,
            Left::BrokerDeadLetter => &self.broker_dead_letters,
            Left::Duplicate => &self.duplicates,
        };
        count.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a settlement: sent, or not because the connection was lost.
    pub fn settled(&self, is_sent: bool) {
        let count = if is_sent { &self.settled } else { &self.unsettled };
        count.fetch_add(1, Ordering::Relaxed);
    }
}

impl Tally {
    /// Logs the counts; the traces add up to the settlements.
    pub fn log(&self) {
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        info!(
            settled = count(&self.settled),
            unsettled = count(&self.unsettled),
            results = count(&self.results),
            repeated_results = count(&self.repeated_results),
            retries = count(&self.retries),
            deferrals = count(&self.deferrals),
            hand_backs = count(&self.hand_backs),
            dead_letters = count(&self.dead_letters),
            broker_dead_letters = count(&self.broker_dead_letters),
            duplicates = count(&self.duplicates),
            "stopped"
        );
    }
}
