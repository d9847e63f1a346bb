//! Messages that go out together: one by one they cost the broker three to five times as much.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tracing::warn;

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
    /// Dropped where it has to be published alone.
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

/// Publishes what comes for one exchange, a group at a time: what comes meanwhile is the next group, so
/// that nothing waits where nothing is on its way.
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
    let published = publisher.publish_together(&publications).await;
    let had_company = group.len() > 1;
    let mut alone = None;
    for (waiting, published) in group.into_iter().zip(published) {
        match published {
            // Another one may be to blame: who waits publishes it alone when this is dropped.
            Err(error @ PublishError::Failed(_)) if had_company => {
                alone.get_or_insert((waiting.exchange, error, 0)).2 += 1;
            }
            // Who waited for it may be gone.
            published => drop(waiting.done.send(published)),
        }
    }
    if let Some((exchange, error, count)) = alone {
        warn!(exchange, "{error}; {count} messages that went out together go out one by one");
    }
}
