//! What goes out in one group with others, on a real broker.

mod support;

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Instant;

use deckswain::broker::{AmqpPublisher, Properties, Publication, Publish as _, PublishError};
use lapin::ExchangeKind;
use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable};
use support::own_broker::{User, rabbitmqctl};
use support::{PATIENCE, Peer, part};
use tokio::task::JoinSet;

const COUNT: usize = 200;

/// An exchange whose messages for `good.#` a queue takes, and that queue; both go with their owner.
async fn place(peer: &Peer) -> (String, String) {
    let (exchange, queue) = (format!("{}.x", peer.prefix), format!("{}.q", peer.prefix));
    let (channel, none) = (&peer.channel, FieldTable::default);
    let options = ExchangeDeclareOptions { auto_delete: true, ..ExchangeDeclareOptions::default() };
    channel.exchange_declare(&exchange, ExchangeKind::Topic, options, none()).await.expect("declared");
    let options = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(&queue, options, none()).await.expect("declared");
    channel
        .queue_bind(&queue, &exchange, "good.#", QueueBindOptions::default(), none())
        .await
        .expect("bound");
    (exchange, queue)
}

/// Publishes all at once; tells by number what became of each.
async fn publish_all(
    publisher: &AmqpPublisher,
    exchange: &str,
    keys: impl Iterator<Item = &'static str>,
) -> Vec<(usize, Result<(), PublishError>)> {
    let mut publishing = JoinSet::new();
    for (n, key) in keys.enumerate() {
        let (publisher, exchange) = (publisher.clone(), exchange.to_owned());
        // That two are alike is no reason to take one for the other.
        publishing.spawn(async move { (n, publish(&publisher, &exchange, key, n / 2).await) });
    }
    publishing.join_all().await
}

async fn publish(
    publisher: &AmqpPublisher,
    exchange: &str,
    routing_key: &str,
    n: usize,
) -> Result<(), PublishError> {
    let (properties, body) = (&Properties::default(), n.to_string());
    publisher.publish(Publication { exchange, routing_key, properties, body: body.as_bytes() }).await
}

/// Every third is to be `bad`.
fn keys() -> impl Iterator<Item = &'static str> {
    (0..COUNT).map(|n| if n % 3 == 0 { "bad" } else { "good.one" })
}

async fn count(peer: &Peer, queue: &str) -> u32 {
    let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    peer.channel.queue_declare(queue, options, FieldTable::default()).await.expect("answered").message_count()
}

async fn bodies(peer: &Peer, queue: &str) -> Vec<usize> {
    let mut bodies = bodies_in_order(peer, queue).await;
    bodies.sort_unstable();
    bodies
}

async fn bodies_in_order(peer: &Peer, queue: &str) -> Vec<usize> {
    let mut bodies = Vec::new();
    while let Some(got) = peer.channel.basic_get(queue, Default::default()).await.expect("answered") {
        bodies.push(String::from_utf8_lossy(&got.delivery.data).parse().expect("a number"));
    }
    bodies
}

fn good() -> impl Iterator<Item = usize> {
    (0..COUNT).filter(|n| n % 3 != 0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_no_queue_takes_is_told_from_those_that_went_out_with_it() {
    let peer = Peer::connect().await;
    let (exchange, queue) = place(&peer).await;
    let publisher = AmqpPublisher::to_what_is_there(&part("DECKSWAIN_BROKER"));
    for (n, published) in publish_all(&publisher, &exchange, keys()).await {
        match published {
            Ok(()) => assert_ne!(n % 3, 0, "{n} is in no queue"),
            Err(PublishError::Returned(_)) => assert_eq!(n % 3, 0, "{n} is in a queue"),
            Err(error) => panic!("{n}: {error}"),
        }
    }
    assert_eq!(bodies(&peer, &queue).await, good().map(|n| n / 2).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_ends_the_channel_costs_no_other() {
    let peer = Peer::connect().await;
    let (exchange, queue) = place(&peer).await;
    let user = User::named(&format!("u-{}", peer.prefix));
    user.may("^$", ".*", "^$");
    user.may_on(&exchange, "^good", "^$");
    let publisher = AmqpPublisher::to_what_is_there(&user.url(&part("DECKSWAIN_BROKER")));
    for (n, published) in publish_all(&publisher, &exchange, keys()).await {
        match published {
            Ok(()) => assert_ne!(n % 3, 0, "{n} is not allowed"),
            Err(PublishError::Refused(why)) => {
                assert!(n % 3 == 0 && why.contains("ACCESS_REFUSED"), "{n}: {why}");
            }
            Err(error) => panic!("{n}: {error}"),
        }
    }
    // What was taken before the channel ended may be there twice.
    let arrived: BTreeSet<usize> = bodies(&peer, &queue).await.into_iter().collect();
    assert_eq!(arrived, good().map(|n| n / 2).collect());
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_after_one_that_ends_the_channel_keep_their_order() {
    let peer = Peer::connect().await;
    let (exchange, queue) = place(&peer).await;
    let user = User::named(&format!("o-{}", peer.prefix));
    user.may("^$", ".*", "^$");
    user.may_on(&exchange, "^good", "^$");
    let publisher = AmqpPublisher::to_what_is_there(&user.url(&part("DECKSWAIN_BROKER")));
    let (properties, numbers) = (Properties::default(), (0..COUNT).map(|n| n.to_string()));
    let numbers: Vec<String> = numbers.collect();
    let publications: Vec<_> = keys()
        .zip(&numbers)
        .map(|(routing_key, body)| Publication {
            exchange: &exchange,
            routing_key,
            properties: &properties,
            body: body.as_bytes(),
        })
        .collect();
    let published = publisher.publish_in_order(&publications).await;
    for (n, published) in published.iter().enumerate() {
        let is_refused = matches!(published, Err(PublishError::Refused(_)));
        assert!(if n % 3 == 0 { is_refused } else { published.is_ok() }, "{n}: {published:?}");
    }
    // Messages without a confirm from before the channel ended may be there twice.
    let mut arrived = bodies_in_order(&peer, &queue).await;
    let mut seen = BTreeSet::new();
    arrived.retain(|n| seen.insert(*n));
    assert_eq!(arrived, good().collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_does_not_confirm_holds_up_no_other() {
    let peer = Peer::connect().await;
    let (exchange, queue) = place(&peer).await;
    let mute = MuteQueue::bound(&peer, &exchange, "mute").await;
    let publisher = AmqpPublisher::to_what_is_there(&part("DECKSWAIN_BROKER"));
    // RabbitMQ has a channel wait for the queue when it first publishes there.
    publish(&publisher, &exchange, "mute", 0).await.expect("it still answers");
    mute.tell("suspend");
    let (sender, to) = (publisher.clone(), exchange.clone());
    let keys = (0..20).map(|n| if n == 10 { "mute" } else { "good.one" });
    let together = tokio::spawn(async move { publish_all(&sender, &to, keys).await });
    // What comes once they are all out is in no group with the one that is not confirmed.
    let began = Instant::now();
    while count(&peer, &queue).await < 19 {
        assert!(began.elapsed() < PATIENCE, "never so many in the queue");
    }
    publish(&publisher, &exchange, "good.one", 10).await.expect("the other queue takes it");
    assert!(!together.is_finished(), "the mute queue has answered");
    for (n, published) in together.await.expect("no panic") {
        match published {
            Ok(()) => assert_ne!(n, 10),
            Err(PublishError::Unconfirmed(_)) => assert_eq!(n, 10),
            Err(error) => panic!("{n}: {error}"),
        }
    }
    let expected: Vec<usize> = (0..20).filter(|n| *n != 10).map(|n| n / 2).chain([10]).collect();
    assert_eq!(bodies(&peer, &queue).await, expected, "each is there once");
    mute.delete(&peer).await;
}

/// A quorum queue that is to take messages without an answer, as one does that has lost its majority.
struct MuteQueue(String);

impl MuteQueue {
    async fn bound(peer: &Peer, exchange: &str, key: &str) -> Self {
        let (channel, name) = (&peer.channel, format!("{}.mute", peer.prefix));
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
        channel.queue_declare(&name, options, arguments).await.expect("declared");
        let bind = QueueBindOptions::default();
        channel.queue_bind(&name, exchange, key, bind, FieldTable::default()).await.expect("bound");
        Self(name)
    }

    /// `suspend` or `resume`.
    fn tell(&self, what: &str) {
        let ctl = part("DECKSWAIN_TEST_RABBITMQCTL");
        rabbitmqctl(Path::new(&ctl), &["eval", &format!("sys:{what}('%2F_{}').", self.0)]);
    }

    async fn delete(self, peer: &Peer) {
        self.tell("resume");
        peer.channel.queue_delete(&self.0, QueueDeleteOptions::default()).await.expect("deleted");
    }
}
