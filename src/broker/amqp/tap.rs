//! Results, watched through a queue of one's own.

use futures_lite::StreamExt as _;
use lapin::options::{BasicConsumeOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{ChannelId, FieldTable};
use lapin::{Connection, Consumer};
use tokio::time::timeout;

use super::{
    ANSWER_TIME_MAX, Flaws, NOT_FOUND, answer, away, no_answer, not_there, open_to_read, reply_code, said,
};
use crate::broker::{BrokerError, Topology, Trouble};

/// A private copy of the results from the moment it is opened; it takes nothing from anyone.
pub struct ResultsTap {
    /// The private queue lives as long as its connection.
    connection: Connection,
    /// The deliveries that were mended: their bodies are as they were published, and are shown.
    flaws: Flaws,
    channel: ChannelId,
    consumer: Consumer,
}

impl ResultsTap {
    /// Opens a tap on all results whose routing key matches `key`.
    pub async fn open(url: &str, topology: &Topology, key: &str) -> Result<Self, BrokerError> {
        let opened = Self::begin(url, topology, key).await;
        opened.map_err(|error| name_permissions(error, &topology.results))
    }

    async fn begin(url: &str, topology: &Topology, key: &str) -> Result<Self, BrokerError> {
        let (connection, flaws) = open_to_read(url, "deckswain results", 0).await?;
        let channel = answer("open a channel", connection.create_channel()).await?;
        let options =
            QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
        let queue =
            answer("declare a private queue", channel.queue_declare("", options, FieldTable::default()))
                .await?;
        let (queue, exchange) = (queue.name().as_str(), topology.results.as_str());
        let bind =
            channel.queue_bind(queue, exchange, key, QueueBindOptions::default(), FieldTable::default());
        let what = format!("bind a private queue to {exchange}");
        match timeout(ANSWER_TIME_MAX, bind).await {
            Ok(Err(error)) if reply_code(&error) == Some(NOT_FOUND) => {
                return Err(not_there("exchange", exchange));
            }
            Ok(bound) => answer(&what, std::future::ready(bound)).await?,
            Err(_) => return Err(no_answer(&what, ANSWER_TIME_MAX)),
        }
        let consume = BasicConsumeOptions { no_ack: true, exclusive: true, ..BasicConsumeOptions::default() };
        let consumer =
            answer("watch the results", channel.basic_consume(queue, "", consume, FieldTable::default()))
                .await?;
        Ok(Self { connection, flaws, channel: channel.id(), consumer })
    }

    /// The next result's JSON text; `Err` when the connection was lost.
    pub async fn next(&mut self) -> Result<Vec<u8>, BrokerError> {
        match self.consumer.next().await {
            Some(Ok(delivery)) => {
                self.flaws.take(self.channel, delivery.delivery_tag);
                Ok(delivery.data)
            }
            Some(Err(error)) => Err(away("lost the results", said(&error), "is the broker up?")),
            None => Err(away("lost the results", "the broker ended them", "is the broker up?")),
        }
    }

    /// Closes the connection, and its queue with it.
    pub async fn close(self) {
        let _ = answer("close the connection", self.connection.close(200, "done")).await;
    }
}

/// Names the permissions that watching needs, where the user lacks one of them.
fn name_permissions(error: BrokerError, exchange: &str) -> BrokerError {
    match error {
        BrokerError::Refused(trouble) if trouble.why.contains("access to") => BrokerError::Refused(Trouble {
            hint: format!(
                "watching results goes by a private queue: configure and write on ^amq\\.gen-, read on that and on {exchange}; see docs/operations.md"
            ),
            ..trouble
        }),
        error => error,
    }
}
