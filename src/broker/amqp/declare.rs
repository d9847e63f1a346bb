//! Bringing about what the topology names.

use std::future::Future;

use lapin::options::{
    BasicAckOptions, BasicGetOptions, BasicPublishOptions, BasicRejectOptions, ConfirmSelectOptions,
    ExchangeBindOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::publisher_confirm::Confirmation;
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Connection, ExchangeKind};
use tokio::time::timeout;
use tracing::warn;

use super::{
    ACCESS_REFUSED, ANSWER_TIME_MAX, Flaws, NOT_FOUND, answer, away, convert, explain, no_answer, refused,
    reply_code,
};
use crate::action::Glance;
use crate::broker::{Argument, Binding, BrokerError, Exchange, ExchangeType, Marker, Queue, Topology};

/// Declares the exchanges and queues and binds the queues; what brings the actions in comes last,
/// with [`bind_exchanges`].
pub async fn declare(connection: &Connection, topology: &Topology) -> Result<(), BrokerError> {
    declare_with(connection, topology, &topology.queues()).await
}

/// The same without the queues that actions are consumed from. Where one was deleted its consumer is to
/// bring it about: if another does so first, RabbitMQ moves the consumer to the new queue and tells it nothing.
pub async fn declare_outgoing(connection: &Connection, topology: &Topology) -> Result<(), BrokerError> {
    declare_with(connection, topology, &topology.outgoing_queues()).await
}

async fn declare_with(
    connection: &Connection,
    topology: &Topology,
    queues: &[Queue],
) -> Result<(), BrokerError> {
    not_used_otherwise(connection, topology).await?;
    for exchange in &topology.exchanges() {
        let declare = |passive| declare_exchange(connection, exchange, passive);
        or_else_there(&format!("declare exchange {}", exchange.name), declare(false), declare(true)).await?;
    }
    for queue in queues {
        bring_about(connection, queue).await?;
    }
    Ok(())
}

/// Declares a queue and binds it.
pub async fn bring_about(connection: &Connection, queue: &Queue) -> Result<(), BrokerError> {
    let declare = |passive| async move { declare_queue(connection, queue, passive).await.map(|_| ()) };
    or_else_there(&format!("declare queue {}", queue.name), declare(false), declare(true)).await?;
    if let Some(binding) = &queue.binding {
        let bind = async {
            let channel = connection.create_channel().await?;
            let (options, arguments) = (QueueBindOptions::default(), table(&binding.arguments));
            channel.queue_bind(&queue.name, &binding.exchange, &binding.key, options, arguments).await?;
            channel.close(200, "done").await
        };
        // Who may not bind relies on what was bound by who may; what it publishes is mandatory.
        let what = format!("bind queue {} to {}", queue.name, binding.exchange);
        or_else_there(&what, bind, std::future::ready(Ok(()))).await?;
    }
    Ok(())
}

/// Binds the exchanges that take the actions on: from here on they come.
pub async fn bind_exchanges(connection: &Connection, topology: &Topology) -> Result<(), BrokerError> {
    for Exchange { name, bound_to, .. } in &topology.exchanges() {
        let Some(from) = bound_to else { continue };
        let bind = async {
            let channel = connection.create_channel().await?;
            let options = ExchangeBindOptions::default();
            channel.exchange_bind(name, from, "#", options, FieldTable::default()).await?;
            channel.close(200, "done").await
        };
        let what = format!("bind exchange {name} to {from}");
        or_else_there(&what, bind, std::future::ready(Ok(()))).await?;
    }
    Ok(())
}

/// Refuses a prefix that is used in another layout: each action would be performed in both.
async fn not_used_otherwise(connection: &Connection, topology: &Topology) -> Result<(), BrokerError> {
    let prefix = topology.prefix();
    for (name, option) in topology.exchanges_elsewhere() {
        if is_there(&name, passive_exchange(connection, &name)).await? {
            return Err(refused(
                format!("the prefix {prefix} is used by workers with {option}"),
                format!("there is an exchange {name}, and beside it every action would be performed twice"),
                "start all workers of a prefix the same way, or choose another --prefix; docs/operations.md says how to change over",
            ));
        }
    }
    if let Some(beyond) = topology.partition_beyond()
        && is_there(&beyond, passive_queue(connection, &beyond)).await?
    {
        return Err(refused(
            format!("the prefix {prefix} has more partitions than --partitions says"),
            format!("there is a queue {beyond}, and nobody would consume from it"),
            "give --partitions as many as were given before; docs/operations.md says how to have fewer",
        ));
    }
    Ok(())
}

async fn is_there(name: &str, look: impl Future<Output = lapin::Result<()>>) -> Result<bool, BrokerError> {
    match timeout(ANSWER_TIME_MAX, look).await {
        Ok(Ok(())) => Ok(true),
        Ok(Err(error)) if matches!(reply_code(&error), Some(NOT_FOUND | ACCESS_REFUSED)) => Ok(false),
        Ok(Err(error)) => Err(explain(&format!("look at {name}"), &error)),
        Err(_) => Err(no_answer(&format!("look at {name}"), ANSWER_TIME_MAX)),
    }
}

/// Takes the place of the shared queue, if there is one: nothing goes there any more, and what lies
/// there is published anew.
pub async fn take_over(
    connection: &Connection,
    topology: &Topology,
    flaws: &Flaws,
) -> Result<(), BrokerError> {
    let Some(queue) = topology.queue_to_take_over() else { return Ok(()) };
    if !is_there(queue, passive_queue(connection, queue)).await? {
        return Ok(());
    }
    let binding = Binding { exchange: topology.actions.clone(), key: "#".to_owned(), arguments: Vec::new() };
    unbind(connection, queue, &binding).await?;
    move_on(connection, queue, &topology.actions, None, flaws).await
}

/// Moves what lies in one queue into another.
pub async fn move_between(
    connection: &Connection,
    queue: &str,
    to: &str,
    flaws: &Flaws,
) -> Result<(), BrokerError> {
    move_on(connection, queue, "", Some(to), flaws).await
}

/// Ends a queue's binding.
async fn unbind(connection: &Connection, queue: &str, binding: &Binding) -> Result<(), BrokerError> {
    let unbind = async {
        let channel = connection.create_channel().await?;
        channel.queue_unbind(queue, &binding.exchange, &binding.key, table(&binding.arguments)).await?;
        channel.close(200, "done").await
    };
    answer(&format!("unbind queue {queue}"), unbind).await
}

/// Publishes what lies in a queue to an exchange, with `key` or the one that each action calls for; a message
/// leaves the queue once it is confirmed.
async fn move_on(
    connection: &Connection,
    queue: &str,
    exchange: &str,
    key: Option<&str>,
    flaws: &Flaws,
) -> Result<(), BrokerError> {
    let what = format!("move what lies in {queue}");
    let reading = answer(&what, connection.create_channel()).await?;
    let writing = answer(&what, connection.create_channel()).await?;
    answer(&what, writing.confirm_select(ConfirmSelectOptions::default())).await?;
    while let Some(message) = answer(&what, reading.basic_get(queue, BasicGetOptions::default())).await? {
        let delivery = message.delivery;
        // Published from here it would not be the same; the broker dead-letters it with all its bytes.
        if let Some(flaw) = flaws.take(reading.id(), delivery.delivery_tag) {
            warn!(queue, "message rejected, the broker dead-letters it: {flaw}");
            let reject = delivery.acker.reject(BasicRejectOptions { requeue: false });
            answer(&what, reject).await?;
            continue;
        }
        let own = Glance::at(&delivery.data).routing_key();
        let key = key.or(own.as_deref()).unwrap_or(delivery.routing_key.as_str());
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let publish = async {
            let properties = delivery.properties.clone();
            writing.basic_publish(exchange, key, options, &delivery.data, properties).await?.await
        };
        let is_marker =
            Marker::read(delivery.exchange.as_str(), &convert::properties_from(&delivery.properties))
                .is_some();
        let published = async { if is_marker { Ok(Confirmation::Ack(None)) } else { publish.await } };
        match answer(&what, published).await? {
            Confirmation::Ack(None) => {}
            _ => return Err(away(format!("failed to {what}"), "no queue takes it", "is the broker well?")),
        }
        answer(&what, delivery.acker.ack(BasicAckOptions::default())).await?;
    }
    answer(&what, reading.close(200, "done")).await?;
    answer(&what, writing.close(200, "done")).await
}

/// Declares an exchange, or only looks for it; on a channel of its own, as a refusal closes that.
pub async fn declare_exchange(
    connection: &Connection,
    exchange: &Exchange,
    passive: bool,
) -> lapin::Result<()> {
    let channel = connection.create_channel().await?;
    let options = ExchangeDeclareOptions { passive, durable: true, ..ExchangeDeclareOptions::default() };
    let kind = match exchange.kind {
        ExchangeType::Topic => ExchangeKind::Topic,
        ExchangeType::Headers => ExchangeKind::Headers,
        ExchangeType::ConsistentHash => ExchangeKind::Custom(exchange.kind.as_str().to_owned()),
    };
    channel.exchange_declare(&exchange.name, kind, options, table(&exchange.arguments)).await?;
    channel.close(200, "done").await
}

/// The same of a queue; gives how many of its messages wait.
pub async fn declare_queue(connection: &Connection, queue: &Queue, passive: bool) -> lapin::Result<u32> {
    let channel = connection.create_channel().await?;
    let options = QueueDeclareOptions { passive, durable: true, ..QueueDeclareOptions::default() };
    let declared = channel.queue_declare(&queue.name, options, table(&queue.arguments)).await?;
    channel.close(200, "done").await?;
    Ok(declared.message_count())
}

/// Looks for an exchange, whatever its type.
pub async fn passive_exchange(connection: &Connection, name: &str) -> lapin::Result<()> {
    let exchange = Exchange::named(name);
    declare_exchange(connection, &exchange, true).await
}

async fn passive_queue(connection: &Connection, name: &str) -> lapin::Result<()> {
    let queue = Queue { name: name.to_owned(), binding: None, arguments: Vec::new() };
    declare_queue(connection, &queue, true).await.map(|_| ())
}

/// Declares what is there or not there yet; whoever may not declare may still use what is there.
async fn or_else_there(
    what: &str,
    declare: impl Future<Output = lapin::Result<()>>,
    look: impl Future<Output = lapin::Result<()>>,
) -> Result<(), BrokerError> {
    match timeout(ANSWER_TIME_MAX, declare).await {
        Ok(Err(error)) if reply_code(&error) == Some(ACCESS_REFUSED) => look_instead(what, look).await,
        Ok(other) => answer(what, std::future::ready(other)).await,
        Err(_) => Err(no_answer(what, ANSWER_TIME_MAX)),
    }
}

/// Looks for something that the user may not declare; waiting does not bring it about.
async fn look_instead(what: &str, look: impl Future<Output = lapin::Result<()>>) -> Result<(), BrokerError> {
    match timeout(ANSWER_TIME_MAX, look).await {
        Ok(Err(error)) if reply_code(&error) == Some(NOT_FOUND) => Err(refused(
            format!("failed to {what}"),
            "it is missing, and this user may not declare it",
            "`deckswain topology --declare`, with the same settings, as a user who may",
        )),
        Ok(looked) => answer(what, std::future::ready(looked)).await,
        Err(_) => Err(no_answer(what, ANSWER_TIME_MAX)),
    }
}

pub fn table(arguments: &[(&'static str, Argument)]) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in arguments {
        let value = match value {
            Argument::Text(text) => AMQPValue::LongString(text.as_str().into()),
            Argument::Integer(integer) => AMQPValue::LongLongInt(*integer),
            Argument::Boolean(truth) => AMQPValue::Boolean(*truth),
        };
        table.insert((*name).into(), value);
    }
    table
}
