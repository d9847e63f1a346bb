//! Messages that go out together: one by one they cost the broker three to five times as much.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::publisher::AmqpPublisher;
use crate::broker::{Properties, Publication, PublishError};

/// How many go out together at most.
const GROUP_MAX: usize = 256;
/// How long a group holds up the next one at most.
const HOLD_TIME: Duration = Duration::from_millis(500);

/// A message that waits for its group.
pub struct Waiting {
    exchange: String,
    routing_key: String,
    properties: Properties,
    body: Vec<u8>,
    done: oneshot::Sender<Result<(), PublishError>>,
}

impl Waiting {
    /// A message, and where it is told what became of it.
    pub fn new(publication: &Publication<'_>) -> (Self, oneshot::Receiver<Result<(), PublishError>>) {
        let (done, told) = oneshot::channel();
        let waiting = Self {
            exchange: publication.exchange.to_owned(),
            routing_key: publication.routing_key.to_owned(),
            properties: publication.properties.clone(),
            body: publication.body.to_owned(),
            done,
        };
        (waiting, told)
    }

    fn publication(&self) -> Publication<'_> {
        let Self { exchange, routing_key, properties, body, done: _ } = self;
        Publication { exchange, routing_key, properties, body }
    }
}

/// Publishes the messages for one exchange in the order of their coming, a group at a time: messages that
/// come meanwhile are the next group, so that a message waits only for one that is on its way.
///
/// The order is kept while the broker confirms each group within [`HOLD_TIME`]; a group that is held up
/// longer no longer holds up the next one, which then goes by another channel.
pub async fn publish_in_groups(publisher: AmqpPublisher, mut incoming: mpsc::UnboundedReceiver<Waiting>) {
    let mut group = Vec::new();
    while incoming.recv_many(&mut group, GROUP_MAX).await > 0 {
        let publishing = tokio::spawn(publish_group(publisher.clone(), std::mem::take(&mut group)));
        // One queue that does not confirm must not hold up what goes to the others.
        let _ = timeout(HOLD_TIME, publishing).await;
    }
}

async fn publish_group(publisher: AmqpPublisher, group: Vec<Waiting>) {
    let publications: Vec<_> = group.iter().map(Waiting::publication).collect();
    let published = publisher.publish_in_order(&publications).await;
    for (waiting, published) in group.into_iter().zip(published) {
        // The caller may have stopped waiting.
        drop(waiting.done.send(published));
    }
}
