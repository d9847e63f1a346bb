//! Consuming: connect, take deliveries into their lanes, connect again whenever the broker was lost.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tracing::{info, warn};

use crate::backoff::Backoff;
use crate::broker::{
    AmqpConsumer, AmqpPublisher, AmqpSettle, BrokerError, Consume as _, Delivery, Layout, Settle as _,
    Topology,
};
use crate::subprocess::RunCommand;
use crate::worker::Pipeline;
use crate::worker::company::{Turn, Waiting};
use crate::worker::intake::{Intake, Residents};
use crate::worker::lanes::{Lanes, Work};
use crate::worker::local::{Residence, Start};
use crate::worker::moves::Errand;
use crate::worker::trial::Admitted;
use crate::worker::weight::Budget;

/// How often the broker is asked for a sign of life.
const CHECK_INTERVAL: Duration = Duration::from_secs(3);
/// How often it is looked whether a decky hangs.
const SWEEP_INTERVAL: Duration = Duration::from_millis(500);
/// A decky where nothing has moved for so long gives way to others; an engine with much to start needs seconds.
const STUCK_TIME: Duration = Duration::from_secs(4);
/// How long the actions of a decky that arrives keep their places, which others may need: an action that is put off
/// follows later ones if its decky moves again. A dead host is known after 10 s, and its queue is drained after that.
const ARRIVAL_TIME_MAX: Duration = Duration::from_secs(20);
/// How long the ending of what runs may take when stopping at once: both ways of ending inside a decky.
const ABORT_TIME_MAX: Duration = Duration::from_secs(7);
/// A consumer that lived this long was no failed attempt to connect.
const STEADY_TIME: Duration = Duration::from_secs(5);
/// How long running actions may continue once the engine is away, before their deliveries are requeued.
const PAUSE_TIME_MAX: Duration = Duration::from_secs(30);
/// How often it is looked whether all of them have been settled.
const SETTLED_INTERVAL: Duration = Duration::from_millis(20);

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
    /// The memory that the bodies of deliveries may take.
    pub budget: Budget,
    /// How many may wait for one decky, each for all before it to run out of time.
    pub waiting_max: usize,
    /// How long what runs may go on after the first request to stop.
    pub grace: Duration,
}

/// How far the service has been asked to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd)]
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
    lanes: Lanes<Take<R>>,
    intake: Intake,
}

impl<R: RunCommand> Service<R> {
    /// A service over `pipeline`, which `abort` cuts short; `residents` and `residence` are needed where each host has its queue.
    pub fn new(
        options: ServiceOptions,
        pipeline: Arc<Pipeline<R, AmqpPublisher>>,
        abort: watch::Sender<bool>,
        stop: watch::Receiver<Stop>,
        residents: Option<Residents>,
        residence: Option<Arc<Residence>>,
    ) -> Self {
        let lanes = Lanes::new(Arc::new(Take(pipeline.clone())), options.concurrency.into());
        let intake =
            Intake::new(options.topology.clone(), options.prefetch, options.budget, residents, residence);
        Self { options, pipeline, abort, stop, lanes, intake }
    }

    /// Consumes until told to stop; `Err` is what cannot get better by waiting, found before anything was consumed.
    pub async fn serve(mut self) -> Result<(), BrokerError> {
        let served = self.consume_again_and_again().await;
        if served.is_ok() {
            self.pipeline.tally().log();
        }
        served
    }

    async fn consume_again_and_again(&mut self) -> Result<(), BrokerError> {
        let mut backoff = Backoff::default();
        let mut said = String::new();
        let mut ever_connected = false;
        let mut watching = JoinSet::new();
        let pipeline = self.pipeline.clone();
        watching.spawn(async move { pipeline.supervise_engine().await });
        let mut circuit = self.pipeline.engine().subscribe();
        while *self.stop.borrow() == Stop::No {
            let mut stop = self.stop.clone();
            tokio::select! {
                () = turned(&mut circuit, false) => {}
                () = asked(&mut stop, Stop::Finish) => break,
            }
            let began = tokio::time::Instant::now();
            let lost = match self.consume().await {
                Ended::Stopped => return Ok(()),
                Ended::Paused => {
                    ever_connected = true;
                    continue;
                }
                Ended::NotConnected(error @ (BrokerError::Refused(_) | BrokerError::Address(_)))
                    if !ever_connected =>
                {
                    return Err(error);
                }
                Ended::NotConnected(error) => error.to_string(),
                Ended::Lost(error) => {
                    ever_connected = true;
                    // The broker delivers again what has not begun.
                    self.lanes.forget_waiting(|waiting| !waiting.delivery.settle.is_current());
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
                () = asked(&mut stop, Stop::Finish) => {}
            }
        }
        self.drain().await;
        Ok(())
    }

    /// One life of a consumer.
    async fn consume(&mut self) -> Ended {
        let mut stop = self.stop.clone();
        let connected = tokio::select! {
            connected = AmqpConsumer::connect(&self.options.broker_url, &self.options.topology) => connected,
            () = asked(&mut stop, Stop::Finish) => {
                self.drain().await;
                return Ended::Stopped;
            }
        };
        let mut consumer = match connected {
            Ok(consumer) => consumer,
            Err(error) => return Ended::NotConnected(error),
        };
        let begun = self.intake.begin(&mut consumer).await;
        let ended = match begun {
            Ok(()) => self.take_deliveries(&mut consumer).await,
            Err(error) => return Ended::NotConnected(error),
        };
        match ended {
            Ok(Until::Stop) => {
                consumer.cancel().await;
                self.drain().await;
                consumer.close().await;
                Ended::Stopped
            }
            Ok(Until::EngineAway) => {
                self.pause(&mut consumer).await;
                consumer.close().await;
                Ended::Paused
            }
            Err(error) => {
                consumer.lose(&error);
                // A mute broker does not answer a close either, and the next connection need not wait for it.
                tokio::spawn(consumer.close());
                Ended::Lost(error)
            }
        }
    }

    async fn take_deliveries(&mut self, consumer: &mut AmqpConsumer) -> Result<Until, BrokerError> {
        let mut circuit = self.pipeline.engine().subscribe();
        let mut stop = self.stop.clone();
        let mut stop_check = self.stop.clone();
        let mut checks = interval(CHECK_INTERVAL);
        checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut sweeps = interval(SWEEP_INTERVAL);
        sweeps.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (pipeline, freed) = (self.pipeline.clone(), consumer.freed());
        pipeline.forget_clearances();
        loop {
            tokio::select! {
                biased;
                () = asked(&mut stop, Stop::Finish) => return Ok(Until::Stop),
                () = turned(&mut circuit, true) => return Ok(Until::EngineAway),
                () = pipeline.settled().notified(), if self.intake.is_careful() => {
                    self.open_further(consumer).await?;
                }
                () = freed.notified() => self.intake.queue_freed(consumer).await?,
                cue = self.intake.cue() => {
                    for delivery in self.intake.follow(cue, consumer).await? {
                        self.begin(delivery, consumer);
                    }
                    self.start();
                    // What was given up goes back to its queue once nothing here holds it any more.
                    self.lanes.forget_waiting(|waiting| !waiting.delivery.settle.is_current());
                }
                next = consumer.next() => {
                    let (queue, delivery) = next?;
                    if delivery.properties.unreadable.is_some() {
                        pipeline.reject_unreadable(delivery, self.lanes.alive());
                        continue;
                    }
                    match self.intake.admit(&queue, delivery, consumer).await? {
                        Some(Admitted::Run(delivery)) => self.begin(delivery, consumer),
                        Some(Admitted::Bury(delivery)) => pipeline.bury(delivery, self.lanes.alive()),
                        // The one before it may have been settled already.
                        None => self.open_further(consumer).await?,
                    }
                }
                _ = sweeps.tick() => self.put_off_stuck().await,
                _ = checks.tick() => tokio::select! {
                    checked = consumer.check() => self.note_workers(checked?),
                    () = asked(&mut stop_check, Stop::Finish) => return Ok(Until::Stop),
                },
            }
        }
    }

    async fn open_further(&mut self, consumer: &mut AmqpConsumer) -> Result<(), BrokerError> {
        for delivery in self.intake.open_further(consumer).await? {
            self.begin(delivery, consumer);
        }
        Ok(())
    }

    /// Takes a delivery to its lane.
    fn begin(&mut self, delivery: Delivery<AmqpSettle>, consumer: &mut AmqpConsumer) {
        if !delivery.settle.is_current() {
            return;
        }
        if let Some(Start { lane, waiting }) =
            self.intake.take(delivery, self.pipeline.body_bytes_max(), consumer)
        {
            self.lanes.push(lane, waiting);
        }
        self.start();
    }

    fn start(&mut self) {
        for Start { lane, waiting } in self.intake.starts() {
            self.lanes.push(lane, waiting);
        }
    }

    /// Other workers of the shared queue may have deckies that this one's engine never had.
    fn note_workers(&self, workers: u32) {
        if self.options.topology.layout == Layout::Shared && self.pipeline.engine().note_workers(workers) {
            info!(workers, "{workers} consumers share {}", self.options.topology.actions);
        }
    }

    /// Ends the consuming while the engine is away: unstarted deliveries of the shared queue are deferred,
    /// which costs them nothing; those of a queue with an order go back to it as they were.
    async fn pause(&mut self, consumer: &mut AmqpConsumer) {
        if self.options.topology.layout == Layout::Shared {
            consumer.cease().await;
        } else {
            consumer.cancel().await;
            self.intake.drop_held();
            self.lanes.forget_waiting(|waiting| !waiting.delivery.settle.is_current());
        }
        let mut stop = self.stop.clone();
        let mut looks = interval(SETTLED_INTERVAL);
        let is_over = sleep(PAUSE_TIME_MAX);
        tokio::pin!(is_over);
        loop {
            tokio::select! {
                next = consumer.next() => match next {
                    Ok((_, delivery)) => self.begin(delivery, consumer),
                    Err(_) => return,
                },
                _ = looks.tick() => {
                    if consumer.queues().all(|queue| consumer.unsettled(queue) == 0) {
                        return;
                    }
                }
                () = asked(&mut stop, Stop::Finish) => return,
                () = &mut is_over => return,
            }
        }
    }

    /// Frees prefetch capacity held by a stuck decky so that other deckies can use it.
    async fn put_off_stuck(&mut self) {
        let holds_up = |waiting: &Waiting<AmqpSettle>| waiting.delivery.settle.crowd().is_full();
        let is_run = |waiting: &Waiting<AmqpSettle>| waiting.errand == Errand::Run;
        let mut stuck = self.lanes.take_stuck(STUCK_TIME, holds_up, is_run, self.options.waiting_max);
        let has_waited_long = |waiting: &Waiting<AmqpSettle>| waiting.came_at.elapsed() >= ARRIVAL_TIME_MAX;
        stuck.extend(self.intake.take_held(|waiting| has_waited_long(waiting) && holds_up(waiting)));
        for waiting in stuck {
            self.pipeline.put_off(waiting.delivery, self.lanes.alive()).await;
        }
    }

    /// Finishes what runs within the grace; after that, or when asked again, ends it on both sides.
    async fn drain(&mut self) {
        info!("stopping: finishing what runs");
        let mut stop = self.stop.clone();
        let finished = tokio::select! {
            finished = timeout(self.options.grace, self.lanes.finish()) => finished.is_ok(),
            () = asked(&mut stop, Stop::AtOnce) => false,
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

/// Waits until the service has been asked to stop this much.
async fn asked(stop: &mut watch::Receiver<Stop>, least: Stop) {
    // Who could ask is never gone before the service.
    let _ = stop.wait_for(|stop| *stop >= least).await;
}

/// Waits until the engine's circuit is open, or closed.
async fn turned(circuit: &mut watch::Receiver<bool>, open: bool) {
    // The circuit is a part of the pipeline.
    let _ = circuit.wait_for(|is_open| *is_open == open).await;
}

/// What the lanes are for.
struct Take<R>(Arc<Pipeline<R, AmqpPublisher>>);

impl<R: RunCommand> Work for Take<R> {
    type Item = Waiting<AmqpSettle>;

    async fn work(&self, first: Waiting<AmqpSettle>, turn: Turn<AmqpSettle>) {
        match first.errand {
            Errand::Run => self.0.clone().take(first.delivery, turn).await,
            Errand::Park | Errand::Pass => {
                let queue = first.delivery.settle.queue();
                self.0.clone().send_on(first.delivery, &queue, turn.alive()).await;
            }
        }
    }
}

/// Why no further deliveries are taken.
enum Until {
    Stop,
    EngineAway,
}

/// How the life of a consumer ended.
enum Ended {
    Stopped,
    /// The engine is away.
    Paused,
    NotConnected(BrokerError),
    Lost(BrokerError),
}
