//! The broker over AMQP 0-9-1; the one module that names `lapin`.

mod convert;
mod inspect;
mod permissions;
mod publisher;
mod tap;
mod walk;

use std::collections::VecDeque;
use std::future::Future;
use std::net::IpAddr;
use std::time::Duration;

use futures_lite::StreamExt as _;
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicQosOptions, ExchangeDeclareOptions,
    QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::uri::{AMQPScheme, AMQPUri};
use lapin::{Channel, Connection, ConnectionProperties, Consumer, ErrorKind, ExchangeKind};
use tokio::sync::watch;
use tokio::time::timeout;

use super::{Argument, BrokerError, Consume, Delivery, Queue, Settle, Topology, Trouble};
pub use inspect::{State, inspect};
pub use permissions::{Lacking, Permission, lacking};
pub use publisher::AmqpPublisher;
pub use tap::ResultsTap;
pub use walk::QueueWalk;

/// How long any single answer of the broker may take.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(10);
/// How long the answer to "are you there?" may take: a worker is to consume again within 10 s.
const CHECK_TIME_MAX: Duration = Duration::from_secs(5);
/// Seconds between heartbeats where the URL does not say; a mute peer is given up after two.
///
/// The broker delivers anew what a connection held only when it has given that connection up.
const HEARTBEAT_SECONDS: u16 = 5;

const ACCESS_REFUSED: u16 = 403;
const NOT_FOUND: u16 = 404;
const PRECONDITION_FAILED: u16 = 406;

/// Waits for the broker's answer, but not for ever.
async fn answer<T>(what: &str, asked: impl Future<Output = lapin::Result<T>>) -> Result<T, BrokerError> {
    match timeout(ANSWER_TIME_MAX, asked).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(explain(what, &error)),
        Err(_) => Err(no_answer(what, ANSWER_TIME_MAX)),
    }
}

fn no_answer(what: &str, time_max: Duration) -> BrokerError {
    let why = format!("no answer within {} s", time_max.as_secs());
    away(
        format!("failed to {what}"),
        why,
        "is it RabbitMQ that listens there, and is it alive? `rabbitmqctl status`",
    )
}

fn away(what: impl Into<String>, why: impl Into<String>, hint: &str) -> BrokerError {
    BrokerError::Away(Trouble { what: what.into(), why: why.into(), hint: hint.to_owned() })
}

fn refused(what: impl Into<String>, why: impl Into<String>, hint: &str) -> BrokerError {
    BrokerError::Refused(Trouble { what: what.into(), why: why.into(), hint: hint.to_owned() })
}

/// An exchange or queue that a command needs is not there.
fn not_there(what: &str, name: &str) -> BrokerError {
    refused(
        format!("there is no {what} {name}"),
        "the broker knows none of that name in this virtual host",
        "is --prefix right? A worker makes it when it starts; so does `deckswain topology --declare`",
    )
}

fn reply_code(error: &lapin::Error) -> Option<u16> {
    match error.kind() {
        ErrorKind::ProtocolError(error) => Some(error.get_id()),
        _ => None,
    }
}

fn explain(what: &str, error: &lapin::Error) -> BrokerError {
    let what = format!("failed to {what}");
    if let ErrorKind::IOError(io) = error.kind() {
        return explain_io(what, io);
    }
    let hint = match (error.kind(), reply_code(error)) {
        (ErrorKind::InvalidProtocolVersion(_) | ErrorKind::ParsingError(_), _) => {
            "is it RabbitMQ that listens there? Its port is 5672; one that wants TLS, such as 5671, needs amqps://"
        }
        (_, Some(403)) => {
            "check the user, the password and the user's permissions (`rabbitmqctl list_permissions`)"
        }
        (_, Some(406)) => {
            "something of that name exists with other arguments: `deckswain topology` shows them; delete it, or choose another --prefix"
        }
        (_, Some(503)) => "the broker does not know the exchange type: a plugin may not be enabled",
        (_, Some(530)) => {
            "check the virtual host in --broker: `/` is written %2f; `rabbitmqctl list_vhosts` shows them"
        }
        _ => return away(what, said(error), "is the broker up? `rabbitmqctl status`"),
    };
    refused(what, said(error), hint)
}

/// The broker's own words, without the client's around them.
fn said(error: &lapin::Error) -> String {
    match error.kind() {
        ErrorKind::ProtocolError(error) => error.get_message().to_string(),
        ErrorKind::IOError(error) => error.to_string(),
        ErrorKind::ParsingError(_) => "what answers there does not speak AMQP 0-9-1".to_owned(),
        _ => error.to_string(),
    }
}

fn explain_io(what: String, error: &std::io::Error) -> BrokerError {
    let why = error.to_string();
    if why.contains("certificate") {
        return refused(
            what,
            why,
            "the broker's certificate has to be signed by an authority that this system trusts, for the host that --broker names; SSL_CERT_FILE can name further authorities",
        );
    }
    match error.kind() {
        // What is no TLS record is told as corrupt.
        std::io::ErrorKind::InvalidData => refused(
            what,
            format!("no TLS there: {why}"),
            "amqps:// wants a port that speaks TLS, RabbitMQ's is 5671; amqp:// goes to 5672",
        ),
        std::io::ErrorKind::ConnectionAborted
        | std::io::ErrorKind::ConnectionReset
        | std::io::ErrorKind::UnexpectedEof => away(
            what,
            why,
            "is it RabbitMQ that listens there? A port that wants TLS, such as 5671, needs amqps://",
        ),
        std::io::ErrorKind::ConnectionRefused => away(
            what,
            why,
            "start RabbitMQ, or name the right host and port with --broker or DECKSWAIN_BROKER",
        ),
        _ => away(what, why, "check the host and the port in --broker or DECKSWAIN_BROKER"),
    }
}

/// Opens one connection; `Err` tells what cannot get better by waiting from what can.
async fn open(url: &str, name: &str) -> Result<Connection, BrokerError> {
    let mut uri = parse(url)?;
    uri.query.heartbeat.get_or_insert(HEARTBEAT_SECONDS);
    let what = format!("connect to the broker at {}:{}", uri.authority.host, uri.authority.port);
    let properties = ConnectionProperties::default()
        .with_connection_name(name.into())
        .with_executor(tokio_executor_trait::Tokio::current())
        .with_reactor(tokio_reactor_trait::Tokio::current());
    answer(&what, Connection::connect_uri(uri, properties)).await
}

/// What a broker's URL says, but for the password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokerAddress {
    /// The host.
    pub host: String,
    /// The port.
    pub port: u16,
    /// The virtual host.
    pub vhost: String,
    /// The user.
    pub user: String,
    /// Whether it is `amqps`.
    pub tls: bool,
}

impl BrokerAddress {
    /// Parses a URL; `Err` where it is none of AMQP's.
    pub fn of(url: &str) -> Result<Self, BrokerError> {
        let uri = parse(url)?;
        Ok(Self {
            host: uri.authority.host,
            port: uri.authority.port,
            vhost: uri.vhost,
            user: uri.authority.userinfo.username,
            tls: uri.scheme == AMQPScheme::AMQPS,
        })
    }

    /// Whether what is sent there stays on this host.
    #[must_use]
    pub fn is_local(&self) -> bool {
        self.host == "localhost" || self.host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    }
}

fn parse(url: &str) -> Result<AMQPUri, BrokerError> {
    url.parse().map_err(|why: String| {
        let what = "--broker is no AMQP URL".to_owned();
        BrokerError::Address(Trouble {
            what,
            why,
            hint: "write it like amqp://user:password@host:5672/%2f".to_owned(),
        })
    })
}

/// Connects, declares what is missing, and starts to consume.
///
/// Publishing has a connection of its own, as a broker under a memory alarm blocks a
/// connection that publishes as a whole, acks on it too.
pub async fn connect(url: &str, topology: &Topology, prefetch: u16) -> Result<AmqpConsumer, BrokerError> {
    let connection = open(url, "deckswain consume").await?;
    declare(&connection, topology).await?;
    let channel = answer("open a channel", connection.create_channel()).await?;
    answer("set the prefetch", channel.basic_qos(prefetch, BasicQosOptions::default())).await?;
    let queue = topology.actions.clone();
    let consumer = consume(&channel, &queue).await?;
    let (life, _) = watch::channel(());
    Ok(AmqpConsumer { connection, channel, consumer, queue, held: VecDeque::new(), life })
}

async fn consume(channel: &Channel, queue: &str) -> Result<Consumer, BrokerError> {
    let consume = channel.basic_consume(queue, "", BasicConsumeOptions::default(), FieldTable::default());
    answer(&format!("consume from {queue}"), consume).await
}

async fn declare(connection: &Connection, topology: &Topology) -> Result<(), BrokerError> {
    for name in topology.exchanges() {
        let declare = |passive| declare_exchange(connection, name, passive);
        or_else_there(&format!("declare exchange {name}"), declare(false), declare(true)).await?;
    }
    for queue in &topology.queues() {
        let declare = |passive| async move { declare_queue(connection, queue, passive).await.map(|_| ()) };
        or_else_there(&format!("declare queue {}", queue.name), declare(false), declare(true)).await?;
        if let Some(exchange) = &queue.bound_to {
            let bind = async {
                let channel = connection.create_channel().await?;
                let options = QueueBindOptions::default();
                channel.queue_bind(&queue.name, exchange, "#", options, FieldTable::default()).await?;
                channel.close(200, "done").await
            };
            // Who may not bind relies on what was bound by who may; what it publishes is mandatory.
            let what = format!("bind queue {} to {exchange}", queue.name);
            or_else_there(&what, bind, std::future::ready(Ok(()))).await?;
        }
    }
    Ok(())
}

/// Declares an exchange, or only looks for it; on a channel of its own, as a refusal closes that.
async fn declare_exchange(connection: &Connection, name: &str, passive: bool) -> lapin::Result<()> {
    let channel = connection.create_channel().await?;
    let options = ExchangeDeclareOptions { passive, durable: true, ..ExchangeDeclareOptions::default() };
    channel.exchange_declare(name, ExchangeKind::Topic, options, FieldTable::default()).await?;
    channel.close(200, "done").await
}

/// The same of a queue; gives how many of its messages wait.
async fn declare_queue(connection: &Connection, queue: &Queue, passive: bool) -> lapin::Result<u32> {
    let channel = connection.create_channel().await?;
    let options = QueueDeclareOptions { passive, durable: true, ..QueueDeclareOptions::default() };
    let declared = channel.queue_declare(&queue.name, options, arguments(queue)).await?;
    channel.close(200, "done").await?;
    Ok(declared.message_count())
}

/// Declares what is there or not there yet; whoever may not declare may still use what is there.
async fn or_else_there(
    what: &str,
    declare: impl Future<Output = lapin::Result<()>>,
    look: impl Future<Output = lapin::Result<()>>,
) -> Result<(), BrokerError> {
    match timeout(ANSWER_TIME_MAX, declare).await {
        Ok(Err(error)) if reply_code(&error) == Some(ACCESS_REFUSED) => answer(what, look).await,
        Ok(other) => answer(what, std::future::ready(other)).await,
        Err(_) => Err(no_answer(what, ANSWER_TIME_MAX)),
    }
}

fn arguments(queue: &Queue) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in &queue.arguments {
        let value = match value {
            Argument::Text(text) => AMQPValue::LongString(text.as_str().into()),
            Argument::Integer(integer) => AMQPValue::LongLongInt(*integer),
        };
        table.insert((*name).into(), value);
    }
    table
}

/// Deliveries of the actions queue.
pub struct AmqpConsumer {
    connection: Connection,
    channel: Channel,
    consumer: Consumer,
    queue: String,
    held: VecDeque<Delivery<AmqpSettle>>,
    life: watch::Sender<()>,
}

/// Settles one delivery on the channel that it came by.
#[derive(Debug)]
pub struct AmqpSettle {
    acker: lapin::acker::Acker,
    /// Ends with the consumer: an ack on a connection that was lost is never answered.
    life: watch::Receiver<()>,
}

impl AmqpConsumer {
    /// Asks for up to `prefetch` deliveries at once from here on.
    ///
    /// A quorum queue takes a new limit only from a new consumer.
    pub async fn open_up(&mut self, prefetch: u16) -> Result<(), BrokerError> {
        self.cancel().await;
        // What was on its way when the old consumer ended is still to be handed out.
        while let Ok(Some(Ok(delivery))) = timeout(ANSWER_TIME_MAX, self.consumer.next()).await {
            let delivery = self.take(delivery);
            self.held.push_back(delivery);
        }
        answer("set the prefetch", self.channel.basic_qos(prefetch, BasicQosOptions::default())).await?;
        self.consumer = consume(&self.channel, &self.queue).await?;
        Ok(())
    }

    /// Asks the broker for a sign of life: of a peer that went mute nobody is told.
    pub async fn check(&self) -> Result<(), BrokerError> {
        let options = QueueDeclareOptions { passive: true, durable: true, ..QueueDeclareOptions::default() };
        let look = self.channel.queue_declare(&self.queue, options, FieldTable::default());
        match timeout(CHECK_TIME_MAX, look).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) if reply_code(&error) == Some(NOT_FOUND) => Err(BrokerError::QueueGone),
            Ok(Err(error)) => Err(explain("hear from the broker", &error)),
            Err(_) => Err(no_answer("hear from the broker", CHECK_TIME_MAX)),
        }
    }

    fn take(&self, delivery: lapin::message::Delivery) -> Delivery<AmqpSettle> {
        delivery_from(delivery, &self.life)
    }

    /// Closes the connection; what is not settled goes back to its queue.
    pub async fn close(self) {
        drop(self.life);
        // The channel first: the connection's close can overtake acks. A broker that no longer
        // answers has dropped the connection, or soon will.
        let _ = timeout(ANSWER_TIME_MAX, self.channel.close(200, "done")).await;
        let _ = timeout(ANSWER_TIME_MAX, self.connection.close(200, "done")).await;
    }
}

impl Consume for AmqpConsumer {
    type Settle = AmqpSettle;

    async fn next(&mut self) -> Result<Delivery<AmqpSettle>, BrokerError> {
        if let Some(delivery) = self.held.pop_front() {
            return Ok(delivery);
        }
        match self.consumer.next().await {
            Some(Ok(delivery)) => Ok(self.take(delivery)),
            Some(Err(error)) => Err(away("lost the consumer", said(&error), "is the broker up?")),
            // The broker cancels a consumer when its queue is deleted.
            None => Err(BrokerError::QueueGone),
        }
    }

    async fn cancel(&mut self) {
        let tag = self.consumer.tag();
        let cancel = self.channel.basic_cancel(tag.as_str(), BasicCancelOptions::default());
        // Where this fails the consumer is gone already.
        let _ = timeout(ANSWER_TIME_MAX, cancel).await;
    }
}

fn delivery_from(delivery: lapin::message::Delivery, life: &watch::Sender<()>) -> Delivery<AmqpSettle> {
    Delivery {
        properties: convert::properties_from(&delivery.properties),
        body: delivery.data,
        redelivered: delivery.redelivered,
        exchange: delivery.exchange.to_string(),
        routing_key: delivery.routing_key.to_string(),
        settle: AmqpSettle { acker: delivery.acker, life: life.subscribe() },
    }
}

impl Settle for AmqpSettle {
    async fn ack(mut self) -> Result<(), BrokerError> {
        let ack = async { self.acker.ack(BasicAckOptions::default()).await.map(|_| ()) };
        tokio::select! {
            acked = answer("ack a delivery", ack) => acked,
            _ = self.life.changed() => {
                Err(away("failed to ack a delivery", "its connection was lost", "is the broker up?"))
            }
        }
    }
}
