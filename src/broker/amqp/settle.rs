//! The end of a delivery, and whether it is still this program's.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use lapin::options::{BasicAckOptions, BasicRejectOptions};
use tokio::sync::watch;

use super::{answer, away, convert};
use crate::broker::{BrokerError, Crowd, Delivery, Properties, Settle};

/// What a delivery's consumer has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// It consumes.
    Current,
    /// It has been given up: what has not begun goes back to its queue, what has is still settled.
    Withdrawn,
    /// Its connection was lost: the broker delivers again what was not settled.
    Lost,
    /// Its queue was deleted: nobody delivers again what came from it.
    Orphaned,
}

impl Life {
    fn is_connected(self) -> bool {
        matches!(self, Self::Current | Self::Withdrawn)
    }
}

/// A consumer as its deliveries see it.
#[derive(Debug)]
pub struct Source {
    /// Each delivery that is held looks at this.
    pub life: watch::Sender<Life>,
    /// How many are held at most.
    pub prefetch: AtomicUsize,
    /// The queue's name.
    pub queue: Arc<str>,
    /// Whether that is the parking queue of a decky.
    pub is_parking: bool,
}

impl Source {
    pub fn new(queue: &str, is_parking: bool, prefetch: u16) -> Arc<Self> {
        Arc::new(Self {
            life: watch::Sender::new(Life::Current),
            prefetch: AtomicUsize::new(prefetch.into()),
            queue: queue.into(),
            is_parking,
        })
    }

    pub fn is(&self, life: Life) -> bool {
        *self.life.borrow() == life
    }
}

/// Settles one delivery on the channel that it came by.
#[derive(Debug)]
pub struct AmqpSettle {
    acker: lapin::acker::Acker,
    life: watch::Receiver<Life>,
    source: Arc<Source>,
}

/// A delivery of `source`; `flaw` tells why its properties are not as they were published.
pub fn delivery_from(
    delivery: lapin::message::Delivery,
    source: &Arc<Source>,
    flaw: Option<String>,
) -> Delivery<AmqpSettle> {
    let properties = convert::properties_from(&delivery.properties);
    Delivery {
        properties: Properties { unreadable: flaw, ..properties },
        body: delivery.data,
        redelivered: delivery.redelivered,
        exchange: delivery.exchange.to_string(),
        routing_key: delivery.routing_key.to_string(),
        settle: AmqpSettle { acker: delivery.acker, life: source.life.subscribe(), source: source.clone() },
    }
}

impl AmqpSettle {
    /// The queue that the delivery came from.
    pub fn queue(&self) -> Arc<str> {
        self.source.queue.clone()
    }
}

impl Settle for AmqpSettle {
    fn is_current(&self) -> bool {
        matches!(*self.life.borrow(), Life::Current | Life::Orphaned)
    }

    fn is_connected(&self) -> bool {
        self.life.borrow().is_connected()
    }

    fn crowd(&self) -> Crowd {
        let source = self.source.clone();
        Crowd::new(move || source.life.receiver_count() >= source.prefetch.load(Ordering::Relaxed))
    }

    fn is_parked(&self) -> bool {
        self.source.is_parking
    }

    async fn ack(mut self) -> Result<(), BrokerError> {
        let ack = async { self.acker.ack(BasicAckOptions::default()).await.map(|_| ()) };
        settle("ack a delivery", ack, &mut self.life).await
    }

    async fn reject(mut self) -> Result<(), BrokerError> {
        let reject = self.acker.reject(BasicRejectOptions { requeue: false });
        let reject = async { reject.await.map(|_| ()) };
        settle("reject a delivery", reject, &mut self.life).await
    }
}

/// Waits for `settling`; on a connection that was lost it is never answered.
async fn settle(
    what: &str,
    settling: impl Future<Output = lapin::Result<()>>,
    life: &mut watch::Receiver<Life>,
) -> Result<(), BrokerError> {
    tokio::select! {
        settled = answer(what, settling) => settled,
        _ = life.wait_for(|life| !life.is_connected()) => {
            Err(away(format!("failed to {what}"), "its connection was lost", "is the broker up?"))
        }
    }
}
