//! Publishing with confirms, in order, in groups, over a pool of channels.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};

use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::protocol::{AMQPErrorKind, AMQPHardError};
use lapin::publisher_confirm::Confirmation;
use lapin::{Channel, Connection, ErrorKind};
use tokio::sync::{Mutex, mpsc};
use tokio::time::timeout;
use tracing::warn;

use super::group::{Waiting, publish_in_groups};
use super::returned::{Returned, note_returned};
use super::{
    ANSWER_TIME_MAX, FRAME_ERROR, NOT_FOUND, PRECONDITION_FAILED, answer, convert, declare_outgoing,
    no_answer, not_there, open, passive_exchange, reply_code, said, together,
};
use crate::broker::{BrokerError, Publication, Publish, PublishError, Topology};

/// How many idle channels are kept; more than this many publishes at once open channels of their own.
const IDLE_CHANNELS_MAX: usize = 64;

/// A worker's message whose body is larger goes out alone: the broker may refuse it for its size, and with
/// it all of its group.
const GROUPED_BODY_BYTES_MAX: usize = 16 * 1024;

/// How many messages of a sequence go out together at most: with 256 on the way the round trip to the
/// broker no longer counts.
const TOGETHER_MAX: usize = 256;
/// How many bytes of bodies: a line of 1 Mbit/s carries them within [`ANSWER_TIME_MAX`].
const TOGETHER_BYTES_MAX: usize = 1024 * 1024;

/// Where RabbitMQ's direct reply-to has its answers sent.
const DIRECT_REPLY_TO: &str = "amq.rabbitmq.reply-to.";

/// Publishes on a connection of its own, which it opens anew when it was lost.
///
/// Each channel has one group outstanding at a time: the client library can hand a returned message to
/// the confirm of another message, so a returned message is looked up in its group by its own properties.
#[derive(Clone)]
pub struct AmqpPublisher {
    url: Arc<str>,
    /// What to declare on a new connection.
    topology: Option<Arc<Topology>>,
    state: Arc<Mutex<State>>,
    distrusted: Arc<AtomicBool>,
    /// By exchange.
    groups: Arc<std::sync::Mutex<HashMap<String, mpsc::UnboundedSender<Waiting>>>>,
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
        Self { topology: Some(Arc::new(topology.clone())), ..Self::to_what_is_there(url) }
    }

    /// A publisher that leaves it to others to declare what it publishes to.
    #[must_use]
    pub fn to_what_is_there(url: &str) -> Self {
        let (state, distrusted, groups) = (Arc::default(), Arc::default(), Arc::default());
        Self { url: url.into(), topology: None, state, distrusted, groups }
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
                declare_outgoing(&connection, topology).await?;
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

impl AmqpPublisher {
    /// Publishes messages in their order on one channel and returns the outcome of each.
    ///
    /// When the channel or the connection fails, the messages without a confirm are published again one
    /// by one, in their order: the message to blame fails alone, and the others may arrive twice, under an
    /// equal `message_id`. When even that fails for want of a connection, the rest are not tried.
    pub async fn publish_in_order(&self, publications: &[Publication<'_>]) -> Vec<Result<(), PublishError>> {
        let mut outcomes = self.publish_together(publications).await;
        let is_failed = |outcome: &Result<(), PublishError>| matches!(outcome, Err(PublishError::Failed(_)));
        let failed: Vec<usize> = (0..outcomes.len()).filter(|index| is_failed(&outcomes[*index])).collect();
        let (Some(&first), 2..) = (failed.first(), publications.len()) else { return outcomes };
        if let Err(error) = &outcomes[first] {
            let (exchange, messages) = (publications[first].exchange, failed.len());
            warn!(exchange, messages, "a group of messages failed, publishing them one by one: {error}");
        }
        for (position, index) in failed.iter().enumerate() {
            let alone = std::slice::from_ref(&publications[*index]);
            let outcome = self.publish_together(alone).await.pop().unwrap_or(Err(PublishError::Nacked));
            if let Err(error) = &outcome
                && !error.is_of_the_message()
            {
                failed[position..].iter().for_each(|index| outcomes[*index] = Err(error.clone()));
                break;
            }
            outcomes[*index] = outcome;
        }
        outcomes
    }

    /// Publishes on one channel, all at once; returns the outcome of each.
    async fn publish_together(&self, publications: &[Publication<'_>]) -> Vec<Result<(), PublishError>> {
        let channel = match self.channel().await {
            Ok(channel) => channel,
            Err(error) => {
                // A broker that holds publishers back opens no channel for them either.
                let is_blocked = self.state.lock().await.is_blocked();
                let error = if is_blocked { late(true) } else { PublishError::Failed(error.to_string()) };
                return vec![Err(error); publications.len()];
            }
        };
        let publish = async |publication: &Publication<'_>| {
            let mandatory = !is_direct_reply(publication);
            let options = BasicPublishOptions { mandatory, ..BasicPublishOptions::default() };
            let Publication { exchange, routing_key, properties, body } = publication;
            let properties = convert::properties_to(properties);
            channel.basic_publish(exchange, routing_key, options, body, properties).await?.await
        };
        let answers = together(publications.iter().map(publish)).await;
        if answers.iter().all(Option::is_none) {
            self.distrust();
        }
        // A channel whose confirm is missing or wrong is thrown away with whatever may still arrive on it.
        if answers.iter().all(|answer| matches!(answer, Some(Ok(_)))) {
            self.give_back(channel).await;
        }
        self.judge(publications, answers).await
    }

    async fn judge(
        &self,
        publications: &[Publication<'_>],
        answers: Vec<Option<lapin::Result<Confirmation>>>,
    ) -> Vec<Result<(), PublishError>> {
        let is_blocked = answers.iter().any(Option::is_none) && self.state.lock().await.is_blocked();
        let is_alone = publications.len() == 1;
        let mut returned = Vec::new();
        let mut outcomes = Vec::with_capacity(answers.len());
        for answer in answers {
            outcomes.push(match answer {
                None => Err(late(is_blocked)),
                Some(Err(error)) if is_alone && is_for_its_size(&error) => {
                    Err(PublishError::TooLarge(said(&error)))
                }
                Some(Err(error)) if is_alone && is_refusal(&error) => {
                    Err(PublishError::Refused(said(&error)))
                }
                Some(Err(error)) => Err(PublishError::Failed(said(&error))),
                Some(Ok(confirmation)) => {
                    let is_taken = confirmation.is_ack();
                    returned.extend(confirmation.take_message());
                    if is_taken { Ok(()) } else { Err(PublishError::Nacked) }
                }
            });
        }
        note_returned(publications, returned.into_iter().map(Returned::from), &mut outcomes);
        let is_doubtful = |outcome: &Result<(), PublishError>| {
            matches!(
                outcome,
                Err(PublishError::Returned(_)
                    | PublishError::Refused(_)
                    | PublishError::TooLarge(_)
                    | PublishError::Failed(_))
            )
        };
        if outcomes.iter().any(is_doubtful) {
            self.doubt().await;
        }
        outcomes
    }

    /// Where messages for an exchange wait for each other.
    fn group(&self, exchange: &str) -> mpsc::UnboundedSender<Waiting> {
        let mut groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(group) = groups.get(exchange) {
            return group.clone();
        }
        let (sender, incoming) = mpsc::unbounded_channel();
        // It must not keep its own sender, or it would never end.
        let publisher = Self { groups: Arc::default(), ..self.clone() };
        tokio::spawn(publish_in_groups(publisher, incoming));
        groups.insert(exchange.to_owned(), sender.clone());
        sender
    }
}

/// How many messages from the front of a sequence, whose bodies have these lengths, go out together; at
/// least one.
#[must_use]
pub fn together_count(body_bytes: impl Iterator<Item = usize>) -> usize {
    let mut total = 0_usize;
    let fits = body_bytes.take(TOGETHER_MAX).take_while(|bytes| {
        total = total.saturating_add(*bytes);
        total <= TOGETHER_BYTES_MAX
    });
    fits.count().max(1)
}

impl Publish for AmqpPublisher {
    fn distrust(&self) {
        self.distrusted.store(true, Ordering::Relaxed);
    }

    async fn publish(&self, publication: Publication<'_>) -> Result<(), PublishError> {
        if publication.body.len() <= GROUPED_BODY_BYTES_MAX {
            let (waiting, told) = Waiting::new(&publication);
            if self.group(publication.exchange).send(waiting).is_ok()
                && let Ok(published) = told.await
            {
                return published;
            }
        }
        self.publish_together(&[publication]).await.pop().unwrap_or(Err(PublishError::Nacked))
    }
}

/// Whether the broker closed the channel or the connection because of the one message that was on its way.
fn is_refusal(error: &lapin::Error) -> bool {
    let ErrorKind::ProtocolError(error) = error.kind() else { return false };
    match error.kind() {
        AMQPErrorKind::Soft(_) => true,
        // An operator closed the connection, or the broker shuts down.
        AMQPErrorKind::Hard(AMQPHardError::CONNECTIONFORCED) => false,
        AMQPErrorKind::Hard(_) => true,
    }
}

/// Whether the broker refused the one message that was on its way for its size, or for that of its properties.
fn is_for_its_size(error: &lapin::Error) -> bool {
    match reply_code(error) {
        Some(PRECONDITION_FAILED) => said(error).contains("message size"),
        Some(FRAME_ERROR) => true,
        _ => false,
    }
}

/// Whether a message goes to whoever waits for it with RabbitMQ's direct reply-to: the broker returns such
/// a message where it is mandatory, though it arrives.
fn is_direct_reply(publication: &Publication<'_>) -> bool {
    publication.exchange.is_empty() && publication.routing_key.starts_with(DIRECT_REPLY_TO)
}

/// No confirm came in time.
fn late(is_blocked: bool) -> PublishError {
    let seconds = ANSWER_TIME_MAX.as_secs();
    if is_blocked { PublishError::Blocked(seconds) } else { PublishError::Unconfirmed(seconds) }
}
