//! The exchanges and queues, in one table.

mod hosts;

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

/// Names the delay that an action is to wait for, where retries go through an exchange.
///
/// A headers exchange does not look at names that begin with `x-`.
pub const HEADER_DELAY: &str = "deckswain-delay";

/// How the actions are shared out between workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// Any number of workers on one queue.
    Shared,
    /// So many queues, each with one active consumer; all actions of a decky go through the same one.
    Partitioned(u16),
    /// A queue for each host, which takes the actions for the deckies that run on its engine.
    Local,
}

/// An argument of a queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Argument {
    /// A string.
    Text(String),
    /// An integer.
    Integer(i64),
    /// A truth value.
    Boolean(bool),
}

/// The arguments of an exchange, a queue or a binding.
pub type Arguments = Vec<(&'static str, Argument)>;

/// What an exchange goes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExchangeType {
    /// The routing key's words.
    Topic,
    /// The message's headers.
    Headers,
    /// A hash of the routing key; a plugin of RabbitMQ's.
    ConsistentHash,
}

impl ExchangeType {
    /// The broker's name for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Topic => "topic",
            Self::Headers => "headers",
            Self::ConsistentHash => "x-consistent-hash",
        }
    }
}

/// A durable exchange.
#[derive(Debug, Clone)]
pub struct Exchange {
    /// Its name.
    pub name: String,
    /// Its type.
    pub kind: ExchangeType,
    /// Its arguments.
    pub arguments: Arguments,
    /// The exchange all of whose messages it takes.
    pub bound_to: Option<String>,
}

impl Exchange {
    /// A topic exchange.
    #[must_use]
    pub fn named(name: &str) -> Self {
        Self { name: name.to_owned(), kind: ExchangeType::Topic, arguments: Vec::new(), bound_to: None }
    }
}

/// What brings messages from an exchange into a queue.
#[derive(Debug, Clone)]
pub struct Binding {
    /// The exchange.
    pub exchange: String,
    /// The binding key: a pattern, or a weight.
    pub key: String,
    /// The arguments.
    pub arguments: Arguments,
}

impl Binding {
    fn new(exchange: &str, key: &str) -> Self {
        Self { exchange: exchange.to_owned(), key: key.to_owned(), arguments: Vec::new() }
    }
}

/// A durable quorum queue.
#[derive(Debug, Clone)]
pub struct Queue {
    /// Its name.
    pub name: String,
    /// Its binding; none where the default exchange serves it.
    pub binding: Option<Binding>,
    /// Its arguments, the type among them.
    pub arguments: Arguments,
}

/// Where a message is published so that it waits for its next attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetryRoute {
    /// The exchange; empty for the default exchange.
    pub exchange: String,
    /// The routing key, if it is not to be the action's own.
    pub routing_key: Option<String>,
    /// A header that the message needs.
    pub header: Option<(&'static str, String)>,
}

/// What the worker declares, by name.
#[derive(Debug, Clone)]
pub struct Topology {
    /// Topic exchange of the actions, and in the shared layout their queue.
    pub actions: String,
    /// Topic exchange, and queue unless turned off, of the results.
    pub results: String,
    /// Topic exchange and queue of the dead letters.
    pub dead: String,
    /// How the actions are shared out.
    pub layout: Layout,
    prefix: String,
    host: String,
    retry: String,
    retry_delays: Vec<Duration>,
    results_queue: bool,
}

impl Topology {
    /// The names that begin with `prefix`; retries need at least one delay.
    #[must_use]
    pub fn new(prefix: &str, layout: Layout, results_queue: bool, retry_delays: &[Duration]) -> Self {
        Self {
            actions: format!("{prefix}.actions"),
            results: format!("{prefix}.results"),
            dead: format!("{prefix}.dead"),
            layout,
            prefix: prefix.to_owned(),
            host: String::new(),
            retry: format!("{prefix}.retry"),
            retry_delays: retry_delays.to_vec(),
            results_queue,
        }
    }

    /// The names alone, for what only publishes or reads.
    #[must_use]
    pub fn of(prefix: &str) -> Self {
        Self::new(prefix, Layout::Shared, true, &RETRY_DELAYS)
    }

    /// What its names begin with.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Whether a queue of this name is the workers' own.
    #[must_use]
    pub fn owns(&self, queue: &str) -> bool {
        queue.strip_prefix(&self.prefix).is_some_and(|rest| rest.starts_with('.'))
    }

    /// The queue of the dead letters.
    #[must_use]
    pub fn dead_queue(&self) -> Queue {
        let mut dead = plain(&self.dead);
        dead.arguments.push(("x-delivery-limit", Argument::Integer(LOOKS_MAX)));
        dead
    }

    /// The durable exchanges, in the order in which they are declared.
    #[must_use]
    pub fn exchanges(&self) -> Vec<Exchange> {
        let exchange = |name: &str, kind| Exchange { kind, ..Exchange::named(name) };
        let topic = |name: &str| Exchange::named(name);
        let mut exchanges = vec![topic(&self.dead), topic(&self.results), topic(&self.actions)];
        let bound_to = Some(self.actions.clone());
        match self.layout {
            Layout::Shared => return exchanges,
            Layout::Partitioned(_) => {
                let kind = ExchangeType::ConsistentHash;
                exchanges.push(Exchange { bound_to, ..exchange(&self.partitions(), kind) });
            }
            Layout::Local => {
                // An action for a decky that no host queue is bound for goes on to the dead letters.
                let arguments = vec![("alternate-exchange", text(&self.dead))];
                exchanges.push(Exchange { bound_to, arguments, ..topic(&self.local()) });
            }
        }
        exchanges.push(exchange(&self.retry, ExchangeType::Headers));
        exchanges
    }

    fn partitions(&self) -> String {
        format!("{}.partitions", self.prefix)
    }

    /// Exchanges of other layouts, each with the option that makes it: beside them this one would
    /// have actions performed twice.
    #[must_use]
    pub fn exchanges_elsewhere(&self) -> Vec<(String, &'static str)> {
        let partitions = (self.partitions(), "--partitions");
        let local = (self.local(), "--local");
        match self.layout {
            Layout::Shared => vec![partitions, local],
            Layout::Partitioned(_) => vec![local],
            Layout::Local => vec![partitions],
        }
    }

    /// The first partition that is one too many: nobody here would consume from it.
    #[must_use]
    pub fn partition_beyond(&self) -> Option<String> {
        match self.layout {
            Layout::Partitioned(count) => Some(self.partition(count)),
            Layout::Shared | Layout::Local => None,
        }
    }

    /// The queue of the shared layout, where another layout is to take its place.
    #[must_use]
    pub fn queue_to_take_over(&self) -> Option<&str> {
        (self.layout != Layout::Shared).then_some(&self.actions)
    }

    fn partition(&self, number: u16) -> String {
        format!("{}.partition.{number}", self.prefix)
    }

    /// A queue that nothing is published to: its consumers are the workers that share out the partitions.
    #[must_use]
    pub fn workers_queue(&self) -> Option<Queue> {
        let is_partitioned = matches!(self.layout, Layout::Partitioned(_));
        is_partitioned.then(|| Queue {
            name: format!("{}.workers", self.prefix),
            binding: None,
            arguments: vec![("x-queue-type", text("quorum"))],
        })
    }

    /// The queues that actions are consumed from.
    #[must_use]
    pub fn action_queues(&self) -> Vec<Queue> {
        let mut arguments = self.action_arguments();
        match self.layout {
            Layout::Shared => {
                let binding = Some(Binding::new(&self.actions, "#"));
                vec![Queue { name: self.actions.clone(), binding, arguments }]
            }
            Layout::Partitioned(count) => {
                arguments.push(("x-single-active-consumer", Argument::Boolean(true)));
                let queue = |number| Queue {
                    name: self.partition(number),
                    // The exchange takes the key as a weight: all partitions get the same share.
                    binding: Some(Binding::new(&self.partitions(), "1")),
                    arguments: arguments.clone(),
                };
                (0..count).map(queue).collect()
            }
            Layout::Local => vec![self.host_queue(&self.host)],
        }
    }

    fn action_arguments(&self) -> Arguments {
        let mut arguments = dead_letter_to(&self.dead);
        arguments.push(("x-delivery-limit", Argument::Integer(20)));
        arguments
    }

    /// Where an action goes that has failed `attempt` times; the last delay serves all further ones.
    #[must_use]
    pub fn retry_route(&self, attempt: u32) -> RetryRoute {
        let delay = self.retry_delay(attempt);
        match self.layout {
            Layout::Shared => RetryRoute {
                exchange: String::new(),
                routing_key: Some(self.retry_queue_of(delay)),
                header: None,
            },
            // The routing key tells the decky, and has to come back with the action.
            Layout::Partitioned(_) | Layout::Local => RetryRoute {
                exchange: self.retry.clone(),
                routing_key: None,
                header: Some((HEADER_DELAY, in_short(delay))),
            },
        }
    }

    /// How long it waits there.
    #[must_use]
    pub fn retry_delay(&self, attempt: u32) -> Duration {
        let tier = usize::try_from(attempt.saturating_sub(1)).unwrap_or(usize::MAX);
        let last = self.retry_delays.len().saturating_sub(1);
        self.retry_delays.get(tier.min(last)).copied().unwrap_or_default()
    }

    fn retry_queue_of(&self, delay: Duration) -> String {
        format!("{}.{}", self.retry, in_short(delay))
    }

    /// The queues, in the order in which they are declared.
    #[must_use]
    pub fn queues(&self) -> Vec<Queue> {
        let mut queues = vec![self.dead_queue()];
        if self.results_queue {
            queues.push(plain(&self.results));
        }
        queues.extend(self.action_queues());
        queues.extend(self.workers_queue());
        queues.extend(self.registry_queue());
        for delay in &self.retry_delays {
            let mut arguments = dead_letter_to(&self.actions);
            let ttl_ms = i64::try_from(delay.as_millis()).unwrap_or(i64::MAX);
            arguments.push(("x-message-ttl", Argument::Integer(ttl_ms)));
            let mut binding = Binding::new(&self.retry, "");
            binding.arguments = vec![("x-match", text("all")), (HEADER_DELAY, text(&in_short(*delay)))];
            let binding = (self.layout != Layout::Shared).then_some(binding);
            queues.push(Queue { name: self.retry_queue_of(*delay), binding, arguments });
        }
        queues
    }

    /// Those of them that messages go into from workers.
    #[must_use]
    pub fn outgoing_queues(&self) -> Vec<Queue> {
        let incoming: Vec<String> = self.action_queues().into_iter().map(|queue| queue.name).collect();
        self.queues().into_iter().filter(|queue| !incoming.contains(&queue.name)).collect()
    }
}

fn in_short(delay: Duration) -> String {
    humantime::format_duration(delay).to_string().replace(' ', "")
}

/// At-least-once dead lettering needs both the strategy and the overflow behaviour.
fn dead_letter_to(exchange: &str) -> Arguments {
    vec![
        ("x-queue-type", text("quorum")),
        ("x-dead-letter-exchange", text(exchange)),
        ("x-dead-letter-strategy", text("at-least-once")),
        ("x-overflow", text("reject-publish")),
    ]
}

fn text(value: &str) -> Argument {
    Argument::Text(value.to_owned())
}

/// A quorum queue bound to the exchange of its name.
fn plain(name: &str) -> Queue {
    Queue {
        name: name.to_owned(),
        binding: Some(Binding::new(name, "#")),
        arguments: vec![("x-queue-type", text("quorum"))],
    }
}
