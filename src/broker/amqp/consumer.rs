//! Deliveries of one or more queues, each by a channel of its own.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_lite::StreamExt as _;
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicQosOptions, QueueDeclareOptions,
    QueueDeleteOptions,
};
use lapin::types::{ChannelId, DeliveryTag, FieldTable};
use lapin::{Channel, Connection, Consumer};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tracing::{debug, warn};

use super::settle::{AmqpSettle, Life, Source, delivery_from};
use super::{
    ANSWER_TIME_MAX, CHECK_TIME_MAX, Flaws, NOT_FOUND, OWN_HEADERS_BYTES_MAX, RESOURCE_LOCKED, answer, away,
    bind_exchanges, bring_about, declare, explain, no_answer, open_to_read, reply_code, said, take_over,
};
use crate::broker::{BrokerError, Consume, Delivery, Layout, Queue, Topology};

/// Takes deliveries from the queues that it is told to.
///
/// Publishing has a connection of its own, as a broker under a memory alarm blocks a
/// connection that publishes as a whole, acks on it too.
pub struct AmqpConsumer {
    connection: Connection,
    /// The deliveries whose properties cannot be read.
    flaws: Flaws,
    /// For what is asked beside the deliveries.
    asking: Channel,
    /// A queue that is there as long as the topology is.
    landmark: String,
    /// Whether each queue is for one consumer at a time. RabbitMQ sees to that, but it hands a second one
    /// that waits for its turn what comes after the first one's deliveries before it hands it those. So
    /// none ever waits: a queue is claimed first, and consumed when it has no other consumer.
    is_exclusive: bool,
    /// Told when a queue that was given up is free for others.
    freed: Arc<Notify>,
    /// Holds the consumer that the other workers count.
    presence: Option<JoinHandle<()>>,
    feeds: HashMap<String, Feed>,
    topology: Topology,
    sender: mpsc::UnboundedSender<Event>,
    events: mpsc::UnboundedReceiver<Event>,
}

/// One queue that is consumed.
struct Feed {
    channel: Channel,
    tag: String,
    source: Arc<Source>,
    /// Set while this program itself ends the consumer.
    cancelling: Arc<AtomicBool>,
    forwarding: JoinHandle<()>,
}

enum Event {
    Delivery(Arc<str>, Box<Delivery<AmqpSettle>>),
    Ended(Arc<str>, BrokerError),
}

/// What a queue holds, and how many consume from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Depth {
    /// How many messages wait.
    pub messages: u32,
    /// How many consumers there are, on all connections.
    pub consumers: u32,
}

impl AmqpConsumer {
    /// Connects and brings about what the topology names; nothing is consumed yet.
    pub async fn connect(url: &str, topology: &Topology) -> Result<Self, BrokerError> {
        let (connection, flaws) = open_to_read(url, "deckswain consume", OWN_HEADERS_BYTES_MAX).await?;
        declare(&connection, topology).await?;
        bind_exchanges(&connection, topology).await?;
        take_over(&connection, topology, &flaws).await?;
        let asking = answer("open a channel", connection.create_channel()).await?;
        let presence = match topology.workers_queue() {
            Some(queue) => {
                let (consumer, flaws, channel) =
                    (consume(&asking, &queue.name).await?, flaws.clone(), asking.id());
                Some(tokio::spawn(be_present(consumer, move |tag| flaws.take(channel, tag))))
            }
            None => None,
        };
        let landmark = match topology.layout {
            Layout::Shared => topology.actions.clone(),
            Layout::Partitioned(_) | Layout::Local => topology.dead.clone(),
        };
        let (sender, events) = mpsc::unbounded_channel();
        let feeds = HashMap::new();
        let (is_exclusive, freed) = (topology.layout != Layout::Shared, Arc::default());
        let topology = topology.clone();
        Ok(Self {
            connection,
            flaws,
            asking,
            landmark,
            is_exclusive,
            freed,
            presence,
            feeds,
            topology,
            sender,
            events,
        })
    }

    /// Declares a queue and binds it.
    pub async fn bring_about(&self, queue: &Queue) -> Result<(), BrokerError> {
        bring_about(&self.connection, queue).await
    }

    /// Consumes from a queue, at most `prefetch` deliveries at once; `false` where another has it.
    pub async fn open(&mut self, queue: &str, prefetch: u16) -> Result<bool, BrokerError> {
        if self.is_exclusive && !self.claim(queue).await? {
            return Ok(false);
        }
        let channel = answer("open a channel", self.connection.create_channel()).await?;
        answer("set the prefetch", channel.basic_qos(prefetch, BasicQosOptions::default())).await?;
        let consumer = consume(&channel, queue).await?;
        let (source, cancelling) =
            (Source::new(queue, self.is_parking(queue), prefetch), Arc::new(AtomicBool::new(false)));
        let tag = consumer.tag().to_string();
        let forwarding = self.forward(queue, channel.id(), consumer, &source, &cancelling);
        let feed = Feed { channel, tag, source, cancelling, forwarding };
        self.feeds.insert(queue.to_owned(), feed);
        Ok(true)
    }

    /// Claims a queue by a queue of its own that only one connection can have; says whether it is to be had.
    pub async fn claim(&self, queue: &str) -> Result<bool, BrokerError> {
        if !self.declare_exclusive(&claim_of(queue)).await? {
            return Ok(false);
        }
        let what = format!("claim {queue}");
        let channel = answer("open a channel", self.connection.create_channel()).await?;
        // A consumer whose connection has just been lost may still be there, with its deliveries.
        let look = channel.queue_declare(queue, passive(), FieldTable::default());
        let is_free = answer(&what, look).await?.consumer_count() == 0;
        answer("close a channel", channel.close(200, "done")).await?;
        Ok(is_free)
    }

    /// Declares an exclusive queue; says whether this connection has it.
    pub async fn declare_exclusive(&self, name: &str) -> Result<bool, BrokerError> {
        let what = format!("declare {name}");
        let channel = answer("open a channel", self.connection.create_channel()).await?;
        let options = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
        let declared = channel.queue_declare(name, options, FieldTable::default());
        match timeout(ANSWER_TIME_MAX, declared).await {
            Ok(Err(error)) if reply_code(&error) == Some(RESOURCE_LOCKED) => return Ok(false),
            Ok(declared) => answer(&what, std::future::ready(declared)).await?,
            Err(_) => return Err(no_answer(&what, ANSWER_TIME_MAX)),
        };
        answer("close a channel", channel.close(200, "done")).await?;
        Ok(true)
    }

    /// Whether an exclusive queue exists, on whatever connection.
    pub async fn is_claimed(&self, name: &str) -> Result<bool, BrokerError> {
        is_claimed(&self.connection, name).await
    }

    /// What a queue holds that may not be there.
    pub async fn look(&self, queue: &str) -> Result<Option<Depth>, BrokerError> {
        let channel = answer("open a channel", self.connection.create_channel()).await?;
        let what = format!("look at {queue}");
        match timeout(ANSWER_TIME_MAX, channel.queue_declare(queue, passive(), FieldTable::default())).await {
            Ok(Ok(declared)) => {
                answer("close a channel", channel.close(200, "done")).await?;
                let (messages, consumers) = (declared.message_count(), declared.consumer_count());
                Ok(Some(Depth { messages, consumers }))
            }
            Ok(Err(error)) if reply_code(&error) == Some(NOT_FOUND) => Ok(None),
            Ok(Err(error)) => Err(explain(&what, &error)),
            Err(_) => Err(no_answer(&what, ANSWER_TIME_MAX)),
        }
    }

    fn is_parking(&self, queue: &str) -> bool {
        self.topology.parked_decky(queue).is_some()
    }

    fn forward(
        &self,
        queue: &str,
        channel: ChannelId,
        consumer: Consumer,
        source: &Arc<Source>,
        cancelling: &Arc<AtomicBool>,
    ) -> JoinHandle<()> {
        let (queue, source, cancelling) = (Arc::from(queue), source.clone(), cancelling.clone());
        let (flaws, events) = (self.flaws.clone(), self.sender.clone());
        let flaw_of = move |tag| flaws.take(channel, tag);
        tokio::spawn(forward(queue, consumer, flaw_of, source, cancelling, events))
    }

    /// Asks for up to `prefetch` deliveries of an open queue at once from here on.
    ///
    /// A quorum queue takes a new limit only from a new consumer.
    pub async fn open_up(&mut self, queue: &str, prefetch: u16) -> Result<(), BrokerError> {
        let Some(mut feed) = self.feeds.remove(queue) else { return Ok(()) };
        feed.cancel().await;
        // What was on its way when the old consumer ended is handed out before anything new.
        let _ = timeout(ANSWER_TIME_MAX, &mut feed.forwarding).await;
        feed.cancelling.store(false, Ordering::Relaxed);
        answer("set the prefetch", feed.channel.basic_qos(prefetch, BasicQosOptions::default())).await?;
        let consumer = consume(&feed.channel, queue).await?;
        feed.tag = consumer.tag().to_string();
        feed.source.prefetch.store(prefetch.into(), Ordering::Relaxed);
        feed.forwarding = self.forward(queue, feed.channel.id(), consumer, &feed.source, &feed.cancelling);
        self.feeds.insert(queue.to_owned(), feed);
        Ok(())
    }

    /// Takes no more deliveries of an open queue for now, until [`Self::open_up`]; its deliveries are still
    /// settled, and the queue stays claimed. Waits for no answer.
    pub fn pause(&self, queue: &str) {
        let Some(feed) = self.feeds.get(queue) else { return };
        feed.cancelling.store(true, Ordering::Relaxed);
        let (channel, tag) = (feed.channel.clone(), feed.tag.clone());
        tokio::spawn(async move {
            let cancel = channel.basic_cancel(tag.as_str(), BasicCancelOptions::default());
            // Where this fails the consumer is gone already.
            let _ = timeout(ANSWER_TIME_MAX, cancel).await;
        });
    }

    /// How many deliveries of a queue have come and are not settled.
    pub fn unsettled(&self, queue: &str) -> usize {
        self.feeds.get(queue).map_or(0, |feed| feed.source.life.receiver_count())
    }

    /// The queues that are consumed.
    pub fn queues(&self) -> impl Iterator<Item = &str> {
        self.feeds.keys().map(String::as_str)
    }

    /// Gives a queue up to others: what has begun is still settled, then the rest goes back, in its order,
    /// and only then the queue is free.
    pub fn withdraw(&mut self, queue: &str) {
        let Some(feed) = self.feeds.remove(queue) else { return };
        feed.end(Life::Withdrawn);
        let (queue, claim) = (queue.to_owned(), claim_of(queue));
        let (asking, freed) = (self.asking.clone(), self.freed.clone());
        tokio::spawn(async move {
            // Each delivery that is not settled or dropped yet looks at this.
            feed.source.life.closed().await;
            feed.close(&queue).await;
            let release = asking.queue_delete(&claim, QueueDeleteOptions::default());
            // With the connection the claim is gone too.
            let _ = timeout(ANSWER_TIME_MAX, release).await;
            freed.notify_one();
        });
    }

    /// Ends the consuming of all queues; deliveries that have come may still be begun and settled.
    pub async fn cease(&mut self) {
        for feed in self.feeds.values_mut() {
            feed.cancel().await;
            let _ = timeout(ANSWER_TIME_MAX, &mut feed.forwarding).await;
        }
    }

    /// Is told when a queue that was given up is free.
    pub fn freed(&self) -> Arc<Notify> {
        self.freed.clone()
    }

    /// What queues hold, and how many consume from them.
    pub async fn survey(&self, queues: &[Queue]) -> Result<Vec<Depth>, BrokerError> {
        let mut depths = Vec::with_capacity(queues.len());
        for queue in queues {
            let look = self.asking.queue_declare(&queue.name, passive(), FieldTable::default());
            let declared = answer(&format!("look at {}", queue.name), look).await?;
            depths.push(Depth { messages: declared.message_count(), consumers: declared.consumer_count() });
        }
        Ok(depths)
    }

    /// Asks the broker for a sign of life: of a peer that went mute nobody is told. Returns how many workers
    /// consume the queue that is asked about, which is the shared one where there is one.
    pub async fn check(&self) -> Result<u32, BrokerError> {
        let look = self.asking.queue_declare(&self.landmark, passive(), FieldTable::default());
        match timeout(CHECK_TIME_MAX, look).await {
            Ok(Ok(queue)) => Ok(queue.consumer_count()),
            Ok(Err(error)) if reply_code(&error) == Some(NOT_FOUND) => Err(BrokerError::QueueGone),
            Ok(Err(error)) => Err(explain("hear from the broker", &error)),
            Err(_) => Err(no_answer("hear from the broker", CHECK_TIME_MAX)),
        }
    }

    /// Tells the deliveries what `error` means for them.
    pub fn lose(&mut self, error: &BrokerError) {
        for (queue, feed) in &self.feeds {
            let is_gone = matches!(error, BrokerError::QueueGone) && *queue == self.landmark;
            feed.end(if is_gone { Life::Orphaned } else { Life::Lost });
        }
    }

    /// Closes the connection; what is not settled goes back to its queue.
    pub async fn close(self) {
        // The channels first: the connection's close can overtake acks. A broker that no longer
        // answers has dropped the connection, or soon will.
        let closing = self.feeds.into_iter().map(|(queue, feed)| async move { feed.close(&queue).await });
        let mut closing: tokio::task::JoinSet<()> = closing.collect();
        while closing.join_next().await.is_some() {}
        if let Some(presence) = self.presence {
            presence.abort();
        }
        let _ = timeout(ANSWER_TIME_MAX, self.connection.close(200, "done")).await;
    }
}

impl Feed {
    /// Tells the deliveries what has become of their consumer; who has none to lose is told nothing.
    fn end(&self, end: Life) {
        self.source.life.send_if_modified(|life| {
            let is_news = match *life {
                Life::Current => true,
                Life::Withdrawn => end == Life::Lost,
                Life::Lost | Life::Orphaned => false,
            };
            if is_news {
                *life = end;
            }
            is_news
        });
    }

    async fn cancel(&self) {
        self.cancelling.store(true, Ordering::Relaxed);
        let cancel = self.channel.basic_cancel(self.tag.as_str(), BasicCancelOptions::default());
        // Where this fails the consumer is gone already.
        let _ = timeout(ANSWER_TIME_MAX, cancel).await;
    }

    async fn close(self, queue: &str) {
        self.cancelling.store(true, Ordering::Relaxed);
        // Its answer shows that the broker has seen the acks before it.
        let seen = self.channel.queue_declare(queue, passive(), FieldTable::default());
        let _ = timeout(ANSWER_TIME_MAX, seen).await;
        if timeout(ANSWER_TIME_MAX, self.channel.close(200, "done")).await.is_err() {
            debug!("no answer to the end of consuming from {queue}");
        }
        self.end(Life::Lost);
        self.forwarding.abort();
    }
}

fn passive() -> QueueDeclareOptions {
    QueueDeclareOptions { passive: true, durable: true, ..QueueDeclareOptions::default() }
}

/// The queue whose one owner may consume from `queue`.
pub fn claim_of(queue: &str) -> String {
    format!("{queue}.claim")
}

/// Whether an exclusive queue exists, on whatever connection.
pub async fn is_claimed(connection: &Connection, name: &str) -> Result<bool, BrokerError> {
    let what = format!("look at {name}");
    let channel = answer("open a channel", connection.create_channel()).await?;
    match timeout(ANSWER_TIME_MAX, channel.queue_declare(name, passive(), FieldTable::default())).await {
        Ok(Ok(_)) => answer("close a channel", channel.close(200, "done")).await.map(|()| true),
        Ok(Err(error)) if reply_code(&error) == Some(RESOURCE_LOCKED) => Ok(true),
        Ok(Err(error)) if reply_code(&error) == Some(NOT_FOUND) => Ok(false),
        Ok(Err(error)) => Err(explain(&what, &error)),
        Err(_) => Err(no_answer(&what, ANSWER_TIME_MAX)),
    }
}

async fn consume(channel: &Channel, queue: &str) -> Result<Consumer, BrokerError> {
    let consume = channel.basic_consume(queue, "", BasicConsumeOptions::default(), FieldTable::default());
    answer(&format!("consume from {queue}"), consume).await
}

/// Consumes from the queue that workers are counted by; it is to hold no message, so any is removed.
async fn be_present(mut consumer: Consumer, flaw_of: impl Fn(DeliveryTag) -> Option<String>) {
    let mut is_told = false;
    while let Some(Ok(message)) = consumer.next().await {
        if !std::mem::replace(&mut is_told, true) {
            warn!(queue = %consumer.queue(), "removing messages: nothing reads them from this queue");
        }
        // Also forgotten where it cannot be read.
        flaw_of(message.delivery_tag);
        let _ = message.ack(BasicAckOptions::default()).await;
    }
}

/// Hands on what a consumer gets, until it ends.
async fn forward(
    queue: Arc<str>,
    mut consumer: Consumer,
    flaw_of: impl Fn(DeliveryTag) -> Option<String>,
    source: Arc<Source>,
    cancelling: Arc<AtomicBool>,
    events: mpsc::UnboundedSender<Event>,
) {
    let error = loop {
        match consumer.next().await {
            Some(Ok(delivery)) => {
                let flaw = flaw_of(delivery.delivery_tag);
                // Of a queue that is given up nothing more is begun.
                if source.is(Life::Current) {
                    let delivery = Box::new(delivery_from(delivery, &source, flaw));
                    let _ = events.send(Event::Delivery(queue.clone(), delivery));
                }
            }
            Some(Err(error)) => break away("lost the consumer", said(&error), "is the broker up?"),
            // The broker cancels a consumer when its queue is deleted.
            None => break BrokerError::QueueGone,
        }
    };
    if !cancelling.load(Ordering::Relaxed) && source.is(Life::Current) {
        let _ = events.send(Event::Ended(queue, error));
    }
}

impl Consume for AmqpConsumer {
    type Settle = AmqpSettle;

    async fn next(&mut self) -> Result<(Arc<str>, Delivery<AmqpSettle>), BrokerError> {
        loop {
            // This holds a sender itself, so there always is another event.
            match self.events.recv().await {
                Some(Event::Delivery(queue, delivery)) => return Ok((queue, *delivery)),
                Some(Event::Ended(queue, error)) => {
                    let Some(feed) = self.feeds.get(&*queue) else { continue };
                    if matches!(error, BrokerError::QueueGone) {
                        feed.end(Life::Orphaned);
                    }
                    return Err(error);
                }
                None => std::future::pending().await,
            }
        }
    }

    async fn cancel(&mut self) {
        for feed in self.feeds.values() {
            feed.end(Life::Withdrawn);
        }
        for feed in self.feeds.values().filter(|_| !self.is_exclusive) {
            feed.cancel().await;
        }
    }
}
