//! Going through a queue without taking from it.

use std::sync::Arc;
use std::time::Duration;

use futures_lite::StreamExt as _;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Connection, Consumer};
use tokio::time::{Instant, sleep, timeout};

use super::{
    ANSWER_TIME_MAX, AmqpSettle, Flaws, NOT_FOUND, Source, answer, away, declare_queue, delivery_from,
    no_answer, not_there, open_to_read, reply_code, said,
};
use crate::broker::{BrokerError, Delivery, Queue};

/// Messages that one channel holds; few channels for many messages, few messages on their way at once.
const HELD_PER_CHANNEL_MAX: u16 = 2000;
/// After so long without a message it is asked whether there are any left: others may have taken them.
const QUIET_TIME: Duration = Duration::from_millis(500);
/// After so many of these with nothing left in the queue others have taken the rest.
const QUIET_TIMES_MAX: u8 = 3;

/// How long the queue may take until what was given back is there again.
const GIVING_BACK_TIME_MAX: Duration = Duration::from_secs(2);

/// A walk over the messages that a queue held when it began, oldest first.
///
/// Each message is held until the walk ends; [`QueueWalk::end`] gives back what was not acked, in its order.
pub struct QueueWalk {
    connection: Connection,
    flaws: Flaws,
    queue: Queue,
    channels: Vec<Channel>,
    consumer: Option<Consumer>,
    on_channel: u16,
    closing: bool,
    left: u32,
    seen: u32,
    /// How often in a row nothing came, and nothing was left in the queue.
    quiet_times: u8,
    source: Arc<Source>,
}

impl QueueWalk {
    /// Begins a walk; `Err` also where the queue is not as `queue` says, since looking into one that
    /// counts deliveries would in the end destroy what it holds.
    pub async fn begin(url: &str, queue: &Queue) -> Result<Self, BrokerError> {
        let (connection, flaws) = open_to_read(url, "deckswain browse", 0).await?;
        let left = count(&connection, queue).await?;
        let (channels, consumer) = (Vec::new(), None);
        Ok(Self {
            connection,
            flaws,
            queue: queue.clone(),
            channels,
            consumer,
            on_channel: 0,
            closing: false,
            left,
            seen: 0,
            quiet_times: 0,
            source: Source::new(&queue.name, false, HELD_PER_CHANNEL_MAX),
        })
    }

    /// How many messages are still to come.
    #[must_use]
    pub fn left(&self) -> u32 {
        self.left
    }

    /// The next message; `None` when all that was there has been seen, or was taken by others.
    pub async fn next(&mut self) -> Result<Option<Delivery<AmqpSettle>>, BrokerError> {
        while self.left > 0 {
            if self.consumer.is_none() {
                self.consumer = Some(self.consume().await?);
                (self.on_channel, self.closing) = (0, false);
            }
            // A consumer whose deliveries are acked would be given others in their place, for ever.
            if self.on_channel >= HELD_PER_CHANNEL_MAX && !self.closing {
                self.cancel().await?;
                self.closing = true;
            }
            let Some(consumer) = &mut self.consumer else { continue };
            match timeout(QUIET_TIME, consumer.next()).await {
                Ok(Some(Ok(delivery))) => {
                    self.left -= 1;
                    self.seen += 1;
                    self.quiet_times = 0;
                    self.on_channel = self.on_channel.saturating_add(1);
                    let channel = self.channels.last().map(Channel::id);
                    let flaw = channel.and_then(|id| self.flaws.take(id, delivery.delivery_tag));
                    return Ok(Some(delivery_from(delivery, &self.source, flaw)));
                }
                Ok(Some(Err(error))) => {
                    let what = format!("failed to read {}", self.queue.name);
                    return Err(away(what, said(&error), "is the broker up?"));
                }
                Ok(None) if self.closing => self.consumer = None,
                Ok(None) => return Err(BrokerError::QueueGone),
                Err(_) if self.ready().await? > 0 => self.quiet_times = 0,
                // What a busy broker has sent is not in the queue any more, and may not be here yet.
                Err(_) if self.quiet_times < QUIET_TIMES_MAX => self.quiet_times += 1,
                Err(_) => self.left = 0,
            }
        }
        Ok(None)
    }

    async fn cancel(&mut self) -> Result<(), BrokerError> {
        let (Some(channel), Some(consumer)) = (self.channels.last(), &self.consumer) else { return Ok(()) };
        let tag = consumer.tag();
        answer("stop reading", channel.basic_cancel(tag.as_str(), BasicCancelOptions::default())).await
    }

    async fn consume(&mut self) -> Result<Consumer, BrokerError> {
        let channel = answer("open a channel", self.connection.create_channel()).await?;
        let prefetch = HELD_PER_CHANNEL_MAX;
        answer("set the prefetch", channel.basic_qos(prefetch, BasicQosOptions::default())).await?;
        let consume = channel.basic_consume(
            &self.queue.name,
            "",
            BasicConsumeOptions::default(),
            FieldTable::default(),
        );
        let consumer = answer(&format!("read {}", self.queue.name), consume).await?;
        self.channels.push(channel);
        Ok(consumer)
    }

    async fn ready(&self) -> Result<u32, BrokerError> {
        answer(&format!("look at {}", self.queue.name), declare_queue(&self.connection, &self.queue, true))
            .await
    }

    /// Gives back all but the `removed` messages that were acked, in their order, and ends.
    pub async fn end(mut self, removed: u32) -> Result<(), BrokerError> {
        // A consumer that is left would be given what the other channels give back.
        if !self.closing {
            self.cancel().await?;
        }
        // One channel after the other: what is given back first is delivered first again.
        for channel in &self.channels {
            // Closing keeps the order; a nack of many messages at once does not, on RabbitMQ 3.10 and 4.0.
            answer("give back what was read", channel.close(200, "done")).await?;
        }
        // The queue takes them back a moment later, and who looks next is to find them. Another
        // consumer may be quicker, so this is not waited for without end.
        let given_back = self.seen.saturating_sub(removed);
        let deadline = Instant::now() + GIVING_BACK_TIME_MAX;
        while self.ready().await? < given_back && Instant::now() < deadline {
            sleep(Duration::from_millis(10)).await;
        }
        answer("close the connection", self.connection.close(200, "done")).await
    }
}

/// How many messages wait; a queue that differs from `queue` or is not there is refused.
async fn count(connection: &Connection, queue: &Queue) -> Result<u32, BrokerError> {
    let declare = |passive| declare_queue(connection, queue, passive);
    // Passively first, so that a misspelt prefix leaves no queue behind.
    let what = format!("look at {}", queue.name);
    match timeout(ANSWER_TIME_MAX, declare(true)).await {
        Ok(Err(error)) if reply_code(&error) == Some(NOT_FOUND) => Err(not_there("queue", &queue.name)),
        Ok(looked) => {
            answer(&what, std::future::ready(looked)).await?;
            answer(&what, declare(false)).await
        }
        Err(_) => Err(no_answer(&what, ANSWER_TIME_MAX)),
    }
}
