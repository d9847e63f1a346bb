//! Publishing with confirms over a pool of channels.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::publisher_confirm::Confirmation;
use lapin::{Channel, Connection};
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::{
    ANSWER_TIME_MAX, NOT_FOUND, answer, convert, declare, no_answer, not_there, open, passive_exchange,
    reply_code, said,
};
use crate::broker::{BrokerError, Publication, Publish, PublishError, Topology};

/// How many idle channels are kept; more than this many publishes at once open channels of their own.
const IDLE_CHANNELS_MAX: usize = 64;

/// Publishes on a connection of its own, which it opens anew when it was lost.
///
/// Each channel has one publish outstanding at a time: with more, the client library
/// can hand a returned message to the wrong confirm.
#[derive(Clone)]
pub struct AmqpPublisher {
    url: Arc<str>,
    /// What to declare on a new connection.
    topology: Option<Arc<Topology>>,
    state: Arc<Mutex<State>>,
    distrusted: Arc<AtomicBool>,
}

#[derive(Default)]
struct State {
    connection: Option<Arc<Connection>>,
    idle: Vec<Channel>,
    declared: bool,
}

impl State {
    fn is_blocked(&self) -> bool {
        self.connection.as_ref().is_some_and(|connection| connection.status().blocked())
    }
}

impl AmqpPublisher {
    /// A publisher that connects when it is first needed.
    #[must_use]
    pub fn new(url: &str, topology: &Topology) -> Self {
        Self {
            url: url.into(),
            topology: Some(Arc::new(topology.clone())),
            state: Arc::default(),
            distrusted: Arc::default(),
        }
    }

    /// A publisher that leaves it to others to declare what it publishes to.
    #[must_use]
    pub fn to_what_is_there(url: &str) -> Self {
        Self { url: url.into(), topology: None, state: Arc::default(), distrusted: Arc::default() }
    }

    async fn channel(&self) -> Result<Channel, BrokerError> {
        let mut state = self.state.lock().await;
        // A connection that the broker blocks is alive, and another one would be blocked as well.
        let blocked = state.is_blocked();
        if self.distrusted.swap(false, Ordering::Relaxed) && !blocked {
            *state = State::default();
        }
        state.idle.retain(|channel| channel.status().connected());
        if state.declared
            && let Some(channel) = state.idle.pop()
        {
            return Ok(channel);
        }
        let connection = match state.connection.take().filter(|connection| connection.status().connected()) {
            Some(connection) => connection,
            None => {
                state.declared = false;
                Arc::new(open(&self.url, "deckswain publish").await?)
            }
        };
        // Whatever fails here, the connection is kept only if it has answered all of it.
        if !state.declared {
            if let Some(topology) = &self.topology {
                declare(&connection, topology).await?;
            }
            state.declared = true;
        }
        state.connection = Some(connection.clone());
        // Under an alarm this is not answered, and those who wait beside must not wait one after the other.
        drop(state);
        let channel = match answer("open a channel", connection.create_channel()).await {
            Ok(channel) => channel,
            Err(error) => {
                self.distrust();
                return Err(error);
            }
        };
        answer("turn confirms on", channel.confirm_select(ConfirmSelectOptions::default())).await?;
        Ok(channel)
    }

    /// Connects and looks for an exchange; `Err` tells why it cannot be published to.
    pub async fn ready(&self, exchange: &str) -> Result<(), BrokerError> {
        let channel = self.channel().await?;
        self.give_back(channel).await;
        let state = self.state.lock().await;
        let Some(connection) = &state.connection else { return Ok(()) };
        match timeout(ANSWER_TIME_MAX, passive_exchange(connection, exchange)).await {
            Ok(Err(error)) if reply_code(&error) == Some(NOT_FOUND) => Err(not_there("exchange", exchange)),
            Ok(looked) => answer(&format!("look at {exchange}"), std::future::ready(looked)).await,
            Err(_) => Err(no_answer(&format!("look at {exchange}"), ANSWER_TIME_MAX)),
        }
    }

    /// Has the exchanges and queues looked after before the next publish.
    async fn doubt(&self) {
        self.state.lock().await.declared = false;
    }

    async fn give_back(&self, channel: Channel) {
        let mut state = self.state.lock().await;
        if state.idle.len() < IDLE_CHANNELS_MAX {
            state.idle.push(channel);
        }
    }

    /// Closes the connection.
    pub async fn close(&self) {
        if let Some(connection) = self.state.lock().await.connection.take() {
            // Under a memory alarm the close is never answered, and nothing is outstanding by now.
            let _ = timeout(ANSWER_TIME_MAX, connection.close(200, "done")).await;
        }
    }
}

impl Publish for AmqpPublisher {
    fn distrust(&self) {
        self.distrusted.store(true, Ordering::Relaxed);
    }

    async fn publish(&self, publication: Publication<'_>) -> Result<(), PublishError> {
        let channel = match self.channel().await {
            Ok(channel) => channel,
            // A broker that holds publishers back opens no channel for them either.
            Err(_) if self.state.lock().await.is_blocked() => {
                return Err(PublishError::Blocked(ANSWER_TIME_MAX.as_secs()));
            }
            Err(error) => return Err(PublishError::Failed(error.to_string())),
        };
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let properties = convert::properties_to(publication.properties);
        let published = timeout(ANSWER_TIME_MAX, async {
            let (exchange, routing_key) = (publication.exchange, publication.routing_key);
            channel.basic_publish(exchange, routing_key, options, publication.body, properties).await?.await
        })
        .await;
        // A channel whose confirm is missing or wrong is thrown away with whatever may still arrive on it.
        match published {
            Err(_) => {
                self.distrust();
                let blocked = self.state.lock().await.is_blocked();
                let seconds = ANSWER_TIME_MAX.as_secs();
                Err(if blocked { PublishError::Blocked(seconds) } else { PublishError::Unconfirmed(seconds) })
            }
            Ok(Err(error)) => {
                self.doubt().await;
                Err(PublishError::Failed(said(&error)))
            }
            Ok(Ok(Confirmation::Ack(returned))) => {
                self.give_back(channel).await;
                match returned {
                    None => Ok(()),
                    Some(message) => {
                        self.doubt().await;
                        Err(PublishError::Returned(message.reply_text.to_string()))
                    }
                }
            }
            Ok(Ok(_)) => {
                self.give_back(channel).await;
                Err(PublishError::Nacked)
            }
        }
    }
}
