//! What the worker needs of a broker, free of any client library.

mod amqp;
mod properties;
mod registry;
mod topology;

use std::future::Future;
use std::sync::Arc;

pub use amqp::{
    AmqpConsumer, AmqpPublisher, AmqpRegistry, AmqpSettle, BrokerAddress, ClaimRequest, Depth, Lacking,
    Permission, QueueWalk, ResultsTap, State, Unparked, inspect, lacking, together_count, without_password,
};
pub use properties::{
    Death, HEADER_ATTEMPT, HEADER_DEFERRALS, HEADER_FIRST_SEEN, HEADER_HANDED_BACK, HEADER_HANDED_BACK_BY,
    HEADER_REPLAYS, HEADER_TRACEPARENT, HeaderValue, Properties,
};
pub use registry::{Arrival, Claim, Fate, Marker, Passage, Registry};
pub use topology::HEADER_DELAY;
pub use topology::{
    Argument, Binding, Exchange, ExchangeType, Layout, Queue, RETRY_DELAYS, RetryRoute, Topology,
};

/// A message that a broker handed over, not yet settled.
#[derive(Debug)]
pub struct Delivery<S> {
    /// The message, byte for byte.
    pub body: Vec<u8>,
    /// Its properties.
    pub properties: Properties,
    /// Whether it may have been delivered before.
    pub redelivered: bool,
    /// Where it had been published.
    pub exchange: String,
    /// With which routing key.
    pub routing_key: String,
    /// The way to settle it.
    pub settle: S,
}

impl<S> Delivery<S> {
    /// Whether somebody may have worked on it before.
    #[must_use]
    pub fn is_repeat(&self) -> bool {
        // A deferred action may have been sent to a batch whose answers were lost with the engine.
        self.redelivered || self.properties.attempt() > 1 || self.properties.deferrals() > 0
    }
}

/// A message to be published, persistent and mandatory.
#[derive(Debug, Clone)]
pub struct Publication<'a> {
    /// The exchange; empty for the default exchange.
    pub exchange: &'a str,
    /// The routing key.
    pub routing_key: &'a str,
    /// The properties.
    pub properties: &'a Properties,
    /// The message.
    pub body: &'a [u8],
}

/// Why a message is not known to be safe with the broker.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PublishError {
    /// No queue takes it.
    #[error("the broker returned the message: {0}")]
    Returned(String),
    /// The broker would not take it.
    #[error("the broker refused the message (nack)")]
    Nacked,
    /// No confirm came in time.
    #[error("no confirm within {0} s")]
    Unconfirmed(u64),
    /// The same, and the broker had said that it holds all publishers back.
    #[error("no confirm within {0} s: the broker holds publishers back, it is short of memory or disk")]
    Blocked(u64),
    /// The broker closed the channel or the connection because of this message.
    #[error("the broker refused the message: {0}")]
    Refused(String),
    /// The broker takes no message of this size.
    #[error("the message is too large for the broker: {0}")]
    TooLarge(String),
    /// The connection or the channel failed.
    #[error("failed to publish: {0}")]
    Failed(String),
}

impl PublishError {
    /// Whether the message itself, or the place it was sent to, is to blame: others may still be taken.
    #[must_use]
    pub fn is_of_the_message(&self) -> bool {
        match self {
            Self::Returned(_) | Self::Nacked | Self::Refused(_) | Self::TooLarge(_) => true,
            Self::Unconfirmed(_) | Self::Blocked(_) | Self::Failed(_) => false,
        }
    }
}

/// Trouble with the broker, in words for a person.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {why}")]
pub struct Trouble {
    /// What failed.
    pub what: String,
    /// Why.
    pub why: String,
    /// What a person can do about it.
    pub hint: String,
}

/// Why the broker cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// Waiting does not help.
    #[error("{0}")]
    Refused(Trouble),
    /// The URL is none.
    #[error("{0}")]
    Address(Trouble),
    /// It may be back later.
    #[error("{0}")]
    Away(Trouble),
    /// The queue that was consumed from is gone: what was delivered from it will not be delivered again.
    #[error("lost the consumer: its queue was deleted")]
    QueueGone,
}

/// The seam on which messages go out.
pub trait Publish: Send + Sync + 'static {
    /// Publishes one message; `Ok` means that the broker confirmed it and a queue holds it.
    fn publish(&self, publication: Publication<'_>) -> impl Future<Output = Result<(), PublishError>> + Send;
    /// Tells that the broker was lost elsewhere: what is published next does not rely on an old connection.
    fn distrust(&self);
}

/// Tells of a consumer whether it holds as many deliveries as it may.
#[derive(Clone)]
pub struct Crowd(Arc<dyn Fn() -> bool + Send + Sync>);

impl Crowd {
    /// One that asks `is_full`.
    pub fn new(is_full: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(is_full))
    }

    /// Whether it is so now.
    #[must_use]
    pub fn is_full(&self) -> bool {
        (self.0)()
    }
}

/// The seam on which a delivery ends.
pub trait Settle: Send + Sync + 'static {
    /// Whether the delivery may still be begun: what was lost or given up is delivered again, perhaps to others.
    fn is_current(&self) -> bool;
    /// Whether an ack can still reach the broker: a delivery whose connection was lost is delivered again.
    fn is_connected(&self) -> bool;
    /// Whether the consumer holds as many deliveries as it may, so that others may wait with the broker.
    fn crowd(&self) -> Crowd;
    /// Whether the delivery came out of its decky's parking queue: it comes before all that was put off or comes
    /// by another way.
    fn is_parked(&self) -> bool {
        false
    }
    /// Tells the broker that it may forget the message.
    fn ack(self) -> impl Future<Output = Result<(), BrokerError>> + Send;
    /// Has the broker itself dead-letter the message, unchanged.
    fn reject(self) -> impl Future<Output = Result<(), BrokerError>> + Send;
}

/// The seam on which deliveries come in.
pub trait Consume: Send {
    /// How a delivery is settled.
    type Settle: Settle;

    /// The next delivery and its queue; `Err` ends the consumer, which must then be built anew.
    fn next(
        &mut self,
    ) -> impl Future<Output = Result<(Arc<str>, Delivery<Self::Settle>), BrokerError>> + Send;
    /// Asks for no further deliveries.
    fn cancel(&mut self) -> impl Future<Output = ()> + Send;
}
