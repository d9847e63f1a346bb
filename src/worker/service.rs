//! Consuming: connect, take deliveries into their lanes, connect again whenever the broker was lost.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tracing::{info, warn};

use crate::action::Glance;
use crate::backoff::Backoff;
use crate::broker::{
    AmqpConsumer, AmqpPublisher, AmqpSettle, BrokerError, Consume as _, Delivery, Topology, connect,
};
use crate::subprocess::RunCommand;
use crate::worker::Pipeline;
use crate::worker::lanes::{Lanes, Work};

/// How often the broker is asked for a sign of life.
const CHECK_INTERVAL: Duration = Duration::from_secs(3);
/// How long the ending of what runs may take when stopping at once: both ways of ending inside a decky.
const ABORT_TIME_MAX: Duration = Duration::from_secs(7);
/// A consumer that lived this long was no failed attempt to connect.
const STEADY_TIME: Duration = Duration::from_secs(5);

/// How the service consumes.
#[derive(Debug, Clone)]
pub struct ServiceOptions {
    /// The broker's URL.
    pub broker_url: String,
    /// The names on the broker.
    pub topology: Topology,
    /// How many deckies are worked on at once.
    pub concurrency: u16,
    /// How many deliveries are held at once.
    pub prefetch: u16,
    /// How long what runs may go on after the first request to stop.
    pub grace: Duration,
}

/// How far the service has been asked to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// Not at all.
    No,
    /// Finish what runs.
    Finish,
    /// End what runs.
    AtOnce,
}

/// A worker as it runs.
pub struct Service<R: RunCommand> {
    options: ServiceOptions,
    pipeline: Arc<Pipeline<R, AmqpPublisher>>,
    abort: watch::Sender<bool>,
    stop: watch::Receiver<Stop>,
    lanes: Lanes<Turn<R>>,
    /// Whether this process has settled a delivery: until then a redelivered one may be what ended its predecessor.
    proven: bool,
}

impl<R: RunCommand> Service<R> {
    /// A service over `pipeline`, which `abort` cuts short.
    pub fn new(
        options: ServiceOptions,
        pipeline: Arc<Pipeline<R, AmqpPublisher>>,
        abort: watch::Sender<bool>,
        stop: watch::Receiver<Stop>,
    ) -> Self {
        let lanes = Lanes::new(Arc::new(Turn(pipeline.clone())), options.concurrency.into());
        Self { options, pipeline, abort, stop, lanes, proven: false }
    }

    /// Consumes until told to stop; `Err` is what cannot get better by waiting, found before anything was consumed.
    pub async fn serve(mut self) -> Result<(), BrokerError> {
        let mut backoff = Backoff::default();
        let mut said = String::new();
        let mut ever_connected = false;
        while *self.stop.borrow() == Stop::No {
            let began = tokio::time::Instant::now();
            let lost = match self.consume().await {
                Ended::Stopped => return Ok(()),
                Ended::NotConnected(error @ (BrokerError::Refused(_) | BrokerError::Address(_)))
                    if !ever_connected =>
                {
                    return Err(error);
                }
                Ended::NotConnected(error) => error.to_string(),
                Ended::Lost(error) => {
                    ever_connected = true;
                    if !matches!(error, BrokerError::QueueGone) {
                        // The broker delivers again what has not begun.
                        self.lanes.forget_waiting();
                        self.pipeline.take_back();
                    }
                    self.pipeline.distrust_broker();
                    if began.elapsed() > STEADY_TIME {
                        backoff = Backoff::default();
                        said.clear();
                    }
                    error.to_string()
                }
            };
            if lost != said {
                warn!("{lost}; connecting again until the broker answers");
                said = lost;
            }
            let mut stop = self.stop.clone();
            tokio::select! {
                () = sleep(backoff.next_wait()) => {}
                _ = stop.wait_for(|stop| *stop != Stop::No) => {}
            }
        }
        self.drain().await;
        Ok(())
    }

    /// One life of a consumer.
    async fn consume(&mut self) -> Ended {
        let prefetch = if self.proven { self.options.prefetch } else { 1 };
        let mut stop = self.stop.clone();
        let connected = tokio::select! {
            connected = connect(&self.options.broker_url, &self.options.topology, prefetch) => connected,
            _ = stop.wait_for(|stop| *stop != Stop::No) => {
                self.drain().await;
                return Ended::Stopped;
            }
        };
        let mut consumer = match connected {
            Ok(consumer) => consumer,
            Err(error) => return Ended::NotConnected(error),
        };
        info!("consuming from {}", self.options.topology.actions);
        match self.take_deliveries(&mut consumer).await {
            Ok(()) => {
                consumer.cancel().await;
                self.drain().await;
                consumer.close().await;
                Ended::Stopped
            }
            Err(error) => {
                // A mute broker does not answer a close either, and the next connection need not wait for it.
                tokio::spawn(consumer.close());
                Ended::Lost(error)
            }
        }
    }

    async fn take_deliveries(&mut self, consumer: &mut AmqpConsumer) -> Result<(), BrokerError> {
        let mut stop = self.stop.clone();
        let mut stop_check = self.stop.clone();
        let mut checks = interval(CHECK_INTERVAL);
        checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let pipeline = self.pipeline.clone();
        loop {
            tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop != Stop::No) => return Ok(()),
                () = pipeline.settled().notified(), if !self.proven => self.open_up(consumer).await?,
                next = consumer.next() => {
                    let delivery = next?;
                    if !self.proven && !delivery.redelivered {
                        self.open_up(consumer).await?;
                    } else if !self.proven {
                        warn!("the first delivery has been delivered before: taking one at a time until one is settled");
                    }
                    let waiting = Waiting::new(delivery);
                    self.lanes.push(waiting.decky.clone(), waiting);
                }
                _ = checks.tick() => tokio::select! {
                    checked = consumer.check() => checked?,
                    _ = stop_check.wait_for(|stop| *stop != Stop::No) => return Ok(()),
                },
            }
        }
    }

    async fn open_up(&mut self, consumer: &mut AmqpConsumer) -> Result<(), BrokerError> {
        self.proven = true;
        consumer.open_up(self.options.prefetch).await
    }

    /// Finishes what runs within the grace; after that, or when asked again, ends it on both sides.
    async fn drain(&mut self) {
        info!("stopping: finishing what runs");
        self.pipeline.take_back();
        let mut stop = self.stop.clone();
        let finished = tokio::select! {
            finished = timeout(self.options.grace, self.lanes.finish()) => finished.is_ok(),
            _ = stop.wait_for(|stop| *stop == Stop::AtOnce) => false,
        };
        if finished {
            return;
        }
        warn!(
            waiting = self.pipeline.waiting(),
            "stopping at once: what runs is ended and goes back to its queue"
        );
        self.abort.send_replace(true);
        if timeout(ABORT_TIME_MAX, self.lanes.finish()).await.is_err() {
            self.lanes.abort().await;
        }
    }
}

/// The largest body that may wait for company, in bytes; a larger one gains nothing by it.
const SHARED_BODY_BYTES_MAX: usize = 48 * 1024;
/// How many actions share an exec at most, and how many bytes of bodies.
const SHARED_ACTIONS_MAX: usize = 256;
const SHARED_BYTES_MAX: usize = 1024 * 1024;

/// A delivery in its lane. It is decoded when its turn comes, so that what waits is held once.
struct Waiting {
    decky: String,
    may_share: bool,
    delivery: Delivery<AmqpSettle>,
}

impl Waiting {
    fn new(delivery: Delivery<AmqpSettle>) -> Self {
        let glance = Glance::at(&delivery.body);
        let may_share = matches!(glance.kind.as_str(), "file" | "edit" | "remove")
            && delivery.body.len() <= SHARED_BODY_BYTES_MAX;
        Self { decky: glance.executing_decky, may_share, delivery }
    }
}

/// What the lanes are for.
struct Turn<R>(Arc<Pipeline<R, AmqpPublisher>>);

impl<R: RunCommand> Work for Turn<R> {
    type Item = Waiting;

    fn joins(&self, taken: &[Waiting], next: &Waiting) -> bool {
        let bytes: usize = taken.iter().map(|waiting| waiting.delivery.body.len()).sum();
        next.may_share
            && taken.last().is_none_or(|waiting| waiting.may_share)
            && taken.len() < SHARED_ACTIONS_MAX
            && bytes + next.delivery.body.len() <= SHARED_BYTES_MAX
    }

    async fn work(&self, items: Vec<Waiting>) {
        self.0.clone().process_all(items.into_iter().map(|waiting| waiting.delivery).collect()).await;
    }
}

/// How the life of a consumer ended.
enum Ended {
    Stopped,
    NotConnected(BrokerError),
    Lost(BrokerError),
}
