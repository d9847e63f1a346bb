//! What a user may do on the broker, asked without doing it.
//!
//! The broker checks a permission before it looks at the request's arguments. So each
//! request here carries an argument that it refuses: what is told apart is whether the
//! refusal is of the user (403) or of the argument (406).

use std::future::Future;

use lapin::options::{BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection};
use tokio::time::timeout;

use super::{
    ACCESS_REFUSED, ANSWER_TIME_MAX, NOT_FOUND, PRECONDITION_FAILED, answer, claim_of, declare_queue,
    explain, no_answer, open, reply_code,
};
use crate::broker::{BrokerError, Layout, Queue, Topology};

/// A permission of RabbitMQ's, by its own name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Permission {
    /// To declare it.
    Configure,
    /// To publish to it.
    Write,
    /// To consume from it.
    Read,
}

impl Permission {
    /// RabbitMQ's word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Configure => "configure",
            Self::Write => "write",
            Self::Read => "read",
        }
    }
}

/// A permission that a worker needs and its user lacks, and on what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lacking {
    /// The permission.
    pub permission: Permission,
    /// The exchange or queue; empty for the default exchange.
    pub on: String,
}

/// What a worker needs and its user may not do; nothing comes to be, and nothing is published or taken.
pub async fn lacking(url: &str, topology: &Topology) -> Result<Vec<Lacking>, BrokerError> {
    let connection = open(url, "deckswain check").await?;
    let mut lacking = Vec::new();
    let mut note = |permission, on: &str, allowed: bool| {
        if !allowed {
            lacking.push(Lacking { permission, on: on.to_owned() });
        }
    };
    for queue in topology.queues() {
        // What is there a worker need not declare.
        if !exists(&connection, &queue).await? {
            let may = ask(&connection, |channel| declare(channel, &queue.name)).await?;
            note(Permission::Configure, &queue.name, may);
        }
    }
    let retries = topology.retry_route(1).exchange;
    for exchange in [&topology.actions, &topology.results, &topology.dead, "", &retries] {
        note(Permission::Write, exchange, ask(&connection, |channel| publish(channel, exchange)).await?);
    }
    if topology.layout != Layout::Shared {
        for queue in topology.action_queues() {
            let claim = claim_of(&queue.name);
            note(Permission::Configure, &claim, ask(&connection, |channel| declare(channel, &claim)).await?);
        }
    }
    if topology.layout == Layout::Local {
        let decky = topology.parking_queue("permission").name;
        for name in [topology.presence(topology.host()), topology.registry_lock(), decky] {
            note(Permission::Configure, &name, ask(&connection, |channel| declare(channel, &name)).await?);
        }
        for name in [topology.local(), topology.parking_queue("permission").name] {
            let may = ask(&connection, |channel| consume(channel, &name)).await?;
            note(Permission::Read, &name, may);
        }
    }
    let read = topology.action_queues().into_iter().chain(topology.workers_queue());
    for queue in read.chain(topology.registry_queue()) {
        let may = ask(&connection, |channel| consume(channel, &queue.name)).await?;
        note(Permission::Read, &queue.name, may);
    }
    answer("close the connection", connection.close(200, "done")).await?;
    Ok(lacking)
}

async fn exists(connection: &Connection, queue: &Queue) -> Result<bool, BrokerError> {
    match timeout(ANSWER_TIME_MAX, declare_queue(connection, queue, true)).await {
        Ok(Ok(_)) => Ok(true),
        Ok(Err(error)) if matches!(reply_code(&error), Some(NOT_FOUND | ACCESS_REFUSED)) => Ok(false),
        Ok(Err(error)) => Err(explain("ask for permissions", &error)),
        Err(_) => Err(no_answer("ask for permissions", ANSWER_TIME_MAX)),
    }
}

async fn ask<F>(connection: &Connection, request: impl FnOnce(Channel) -> F) -> Result<bool, BrokerError>
where
    F: Future<Output = lapin::Result<()>>,
{
    let channel = answer("open a channel", connection.create_channel()).await?;
    match timeout(ANSWER_TIME_MAX, request(channel)).await {
        Ok(Err(error)) => match reply_code(&error) {
            Some(ACCESS_REFUSED) => Ok(false),
            // What is not there yet will be the worker's own.
            Some(PRECONDITION_FAILED | NOT_FOUND) => Ok(true),
            _ => Err(explain("ask for permissions", &error)),
        },
        Ok(Ok(())) => Ok(true),
        Err(_) => Err(no_answer("ask for permissions", ANSWER_TIME_MAX)),
    }
}

fn refused_argument(name: &str) -> FieldTable {
    let mut arguments = FieldTable::default();
    arguments.insert(name.into(), AMQPValue::LongString("no number".into()));
    arguments
}

async fn declare(channel: Channel, queue: &str) -> lapin::Result<()> {
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(queue, options, refused_argument("x-message-ttl")).await.map(|_| ())
}

async fn consume(channel: Channel, queue: &str) -> lapin::Result<()> {
    let options = BasicConsumeOptions::default();
    channel.basic_consume(queue, "", options, refused_argument("x-priority")).await.map(|_| ())
}

async fn publish(channel: Channel, exchange: &str) -> lapin::Result<()> {
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    let properties = BasicProperties::default().with_expiration("no number".into());
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    // Should a broker ever take it all the same, no queue has this key's name.
    let key = format!("permission.{}", uuid::Uuid::new_v4());
    channel.basic_publish(exchange, &key, options, b"", properties).await?.await.map(|_| ())
}
