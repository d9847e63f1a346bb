//! The exchanges and queues, in one table.

use std::time::Duration;

/// How long a failed action waits before its next attempt, by tier, unless set otherwise.
pub const RETRY_DELAYS: [Duration; 5] = [
    Duration::from_secs(1),
    Duration::from_secs(5),
    Duration::from_secs(30),
    Duration::from_secs(120),
    Duration::from_secs(600),
];

/// Looking into a quorum queue counts as a delivery of all that is in it, and RabbitMQ 4 throws a
/// message away after 20 deliveries unless the queue sets a limit of its own; RabbitMQ 3 knows no "none".
const LOOKS_MAX: i64 = 2_000_000_000;

/// An argument of a queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Argument {
    /// A string.
    Text(String),
    /// An integer.
    Integer(i64),
}

/// A durable quorum queue.
#[derive(Debug, Clone)]
pub struct Queue {
    /// Its name.
    pub name: String,
    /// The exchange it is bound to with `#`; none for the delay queues, which the default exchange serves.
    pub bound_to: Option<String>,
    /// Its arguments, the type among them.
    pub arguments: Vec<(&'static str, Argument)>,
}

/// What the worker declares, by name.
#[derive(Debug, Clone)]
pub struct Topology {
    /// Topic exchange and queue of the actions.
    pub actions: String,
    /// Topic exchange, and queue unless turned off, of the results.
    pub results: String,
    /// Topic exchange and queue of the dead letters.
    pub dead: String,
    retry: String,
    retry_delays: Vec<Duration>,
    results_queue: bool,
}

impl Topology {
    /// The names that begin with `prefix`; retries need at least one delay.
    #[must_use]
    pub fn new(prefix: &str, results_queue: bool, retry_delays: &[Duration]) -> Self {
        Self {
            actions: format!("{prefix}.actions"),
            results: format!("{prefix}.results"),
            dead: format!("{prefix}.dead"),
            retry: format!("{prefix}.retry"),
            retry_delays: retry_delays.to_vec(),
            results_queue,
        }
    }

    /// The names alone, for what only publishes or reads.
    #[must_use]
    pub fn of(prefix: &str) -> Self {
        Self::new(prefix, true, &RETRY_DELAYS)
    }

    /// The queue of the dead letters.
    #[must_use]
    pub fn dead_queue(&self) -> Queue {
        let mut dead = plain(&self.dead);
        dead.arguments.push(("x-delivery-limit", Argument::Integer(LOOKS_MAX)));
        dead
    }

    /// The durable topic exchanges, in the order in which they are declared.
    #[must_use]
    pub fn exchanges(&self) -> [&str; 3] {
        [&self.dead, &self.results, &self.actions]
    }

    /// The delay queue for what has failed `attempt` times; the last tier serves all further ones.
    #[must_use]
    pub fn retry_queue(&self, attempt: u32) -> String {
        self.retry_queue_of(self.retry_delay(attempt))
    }

    /// How long that queue holds a message.
    #[must_use]
    pub fn retry_delay(&self, attempt: u32) -> Duration {
        let tier = usize::try_from(attempt.saturating_sub(1)).unwrap_or(usize::MAX);
        let last = self.retry_delays.len().saturating_sub(1);
        self.retry_delays.get(tier.min(last)).copied().unwrap_or_default()
    }

    fn retry_queue_of(&self, delay: Duration) -> String {
        let name = humantime::format_duration(delay).to_string().replace(' ', "");
        format!("{}.{name}", self.retry)
    }

    /// The queues, in the order in which they are declared.
    #[must_use]
    pub fn queues(&self) -> Vec<Queue> {
        // At-least-once dead lettering needs both the strategy and the overflow behaviour.
        let dead_letter_to = |exchange: &str| {
            vec![
                ("x-queue-type", text("quorum")),
                ("x-dead-letter-exchange", text(exchange)),
                ("x-dead-letter-strategy", text("at-least-once")),
                ("x-overflow", text("reject-publish")),
            ]
        };
        let mut queues = vec![self.dead_queue()];
        if self.results_queue {
            queues.push(plain(&self.results));
        }
        let mut arguments = dead_letter_to(&self.dead);
        arguments.push(("x-delivery-limit", Argument::Integer(20)));
        queues.push(Queue { name: self.actions.clone(), bound_to: Some(self.actions.clone()), arguments });
        for delay in &self.retry_delays {
            let mut arguments = dead_letter_to(&self.actions);
            let ttl_ms = i64::try_from(delay.as_millis()).unwrap_or(i64::MAX);
            arguments.push(("x-message-ttl", Argument::Integer(ttl_ms)));
            queues.push(Queue { name: self.retry_queue_of(*delay), bound_to: None, arguments });
        }
        queues
    }
}

fn text(value: &str) -> Argument {
    Argument::Text(value.to_owned())
}

/// A quorum queue bound to the exchange of its name.
fn plain(name: &str) -> Queue {
    Queue {
        name: name.to_owned(),
        bound_to: Some(name.to_owned()),
        arguments: vec![("x-queue-type", text("quorum"))],
    }
}
