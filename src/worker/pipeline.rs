//! From a delivery to a run, or to an answer without one.

mod away;
mod engine;
mod readiness;
mod settling;
mod unreadable;

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use chrono::{DateTime, Utc};
use futures_lite::future::poll_once;
use tokio::sync::{Notify, watch};
use tracing::debug;

use engine::Suspected;

use crate::action::{Action, DeckyName, DecodeOptions, Invalid, message_bytes_max};
use crate::broker::{Delivery, Layout, Publish, Settle, Topology};
use crate::driver::{self, Aborted, Driver};
use crate::policy::Policy;
use crate::result::{Failure, FailureClass, Outcome, WorkerIdentity};
use crate::subprocess::RunCommand;
use crate::worker::breaker::Breakers;
use crate::worker::company::{Company, Ticket, Turn};
use crate::worker::decide::{Decision, decide};
use crate::worker::engine::{EngineWatch, HandBack};
use crate::worker::lanes::Alive;
use crate::worker::left::Tally;
use crate::worker::local::Residence;
use crate::worker::memory::{Answer, Memory, Seen, Successor};
use crate::worker::order::Order;
use crate::worker::outbox::Outbox;
use crate::worker::{Judged, judge};

/// What the pipeline is told beside its parts.
#[derive(Clone)]
pub struct PipelineOptions {
    /// The names on the broker.
    pub topology: Topology,
    /// How often an action is tried in all.
    pub attempts_max: u32,
    /// Who this worker is.
    pub worker: WorkerIdentity,
    /// The limit on decoded content, in bytes.
    pub content_bytes_max: usize,
    /// How many actions of one decky may be on their way into it at once.
    pub ahead_max: usize,
    /// The deckies of this host, where each host has its queue.
    pub residence: Option<Arc<Residence>>,
}

/// A delivery's message, checked and identified.
pub struct Decoded {
    /// By what its other deliveries are known.
    pub seen: Seen,
    /// Its action, if it is a valid one.
    pub action: Result<Arc<Action>, Box<Invalid>>,
}

/// Takes deliveries to their settlement.
pub struct Pipeline<R, P> {
    driver: Driver<R>,
    policy: Policy,
    outbox: Outbox<P>,
    options: PipelineOptions,
    residence: Option<Arc<Residence>>,
    memory: Memory,
    tally: Tally,
    settled: Notify,
    order: Order,
    breakers: Breakers,
    engine: EngineWatch,
    /// The deckies in which nothing of an earlier worker runs any more.
    clear: Mutex<HashSet<DeckyName>>,
}

impl<R: RunCommand, P: Publish> Pipeline<R, P> {
    /// A pipeline of the given parts, which leaves deliveries as they are once `abort` turns true.
    pub fn new(
        driver: Driver<R>,
        policy: Policy,
        publisher: P,
        options: PipelineOptions,
        abort: watch::Receiver<bool>,
    ) -> Self {
        let driver = driver.abort_when(abort.clone());
        let outbox = Outbox::new(publisher, options.topology.clone(), options.worker.id.clone(), abort);
        Self {
            driver,
            policy,
            outbox,
            residence: options.residence.clone(),
            options,
            memory: Memory::default(),
            tally: Tally::default(),
            settled: Notify::new(),
            order: Order::default(),
            breakers: Breakers::default(),
            engine: EngineWatch::default(),
            clear: Mutex::default(),
        }
    }

    /// Has each decky cleared again before its first redelivered action.
    pub fn forget_clearances(&self) {
        self.clear.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Ends what another worker left running in the decky: what it was told last must not come late.
    ///
    /// Where workers share a queue each may have something running there, and no order is promised.
    async fn clear<S>(&self, action: &Action, delivery: &Delivery<S>) {
        let decky = action.executing_decky();
        if self.options.topology.layout == Layout::Shared || !delivery.redelivered {
            return;
        }
        if self.clear.lock().unwrap_or_else(PoisonError::into_inner).insert(decky.clone()) {
            debug!(decky.name = %decky, "ending what an earlier worker may have left there");
            self.driver.clear(decky).await;
        }
    }

    /// How many messages wait for the broker to take them.
    pub fn waiting(&self) -> usize {
        self.outbox.waiting()
    }

    /// Tells that the broker was lost.
    pub fn distrust_broker(&self) {
        self.memory.connection_lost(Instant::now());
        self.outbox.distrust_broker();
    }

    /// The watch over the container engine.
    pub(super) fn engine(&self) -> &EngineWatch {
        &self.engine
    }

    /// Keeps an eye on the engine for as long as it is polled.
    pub async fn supervise_engine(&self) {
        self.engine.supervise(&self.driver).await;
    }

    /// The counts of what deliveries left behind, and of their acks.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Is told whenever a delivery has been settled.
    pub fn settled(&self) -> &Notify {
        &self.settled
    }

    /// The largest body that is looked at.
    pub fn body_bytes_max(&self) -> usize {
        message_bytes_max(self.options.content_bytes_max)
    }

    /// Checks a message's body.
    pub fn decode<S>(&self, delivery: &Delivery<S>) -> Decoded {
        let decode = DecodeOptions {
            message_id: delivery.properties.message_id.as_deref(),
            content_bytes_max: self.options.content_bytes_max,
        };
        let action = Action::decode(&delivery.body, decode).map(Arc::new);
        let id = match &action {
            Ok(action) => action.id,
            Err(invalid) => invalid.action_id,
        };
        Decoded { seen: self.memory.seen(id, delivery), action }
    }

    /// Runs what came to the head of a decky's lane, and with it what waits behind it and can share its exec.
    ///
    /// What a delivery comes to is published and settled beside the lane.
    pub async fn take<S: Settle + Sync>(self: Arc<Self>, first: Delivery<S>, turn: Turn<S>) {
        let Decoded { seen, action } = self.decode(&first);
        if let Ok(action) = &action {
            self.clear(action, &first).await;
        }
        let has_company = || turn.count(|waiting| waiting.may_share) > 0;
        match action {
            Ok(action)
                if self.may_share(&action, &seen, &first)
                    && has_company()
                    && self.breakers.may_try(action.executing_decky(), Instant::now()).is_ok() =>
            {
                self.take_together((action, seen, first), turn).await;
            }
            action => self.take_alone(Decoded { seen, action }, first, turn.alive()).await,
        }
    }

    async fn take_together<S: Settle + Sync>(self: Arc<Self>, first: Ticket<S>, turn: Turn<S>) {
        let mut company = Company {
            pipeline: &self,
            turn: &turn,
            crowd: first.2.settle.crowd(),
            first: Some(first),
            aside: None,
            failed: Vec::new(),
            not_begun: Vec::new(),
            begun: HashSet::new(),
            idle_since: None,
            settled_since: None,
        };
        // On immediate shutdown, actions without an outcome are requeued.
        let _ = self.driver.perform_batch(&mut company).await;
        let Company { aside, failed, not_begun, .. } = company;
        for (judged, seen, delivery, span) in failed {
            if self.found_gone(&judged).await {
                self.leave_behind(delivery, turn.alive()).await;
            } else {
                self.note(&judged, delivery.properties.attempt());
                self.finish(Answered::Now(judged, span), seen, delivery, turn.alive());
            }
        }
        for delivery in not_begun {
            self.take_alone(self.decode(&delivery), delivery, turn.alive()).await;
        }
        if let Some((decoded, delivery)) = aside {
            self.take_alone(decoded, delivery, turn.alive()).await;
        }
    }

    /// Runs one delivery, or answers it without a run.
    async fn take_alone<S: Settle>(self: &Arc<Self>, decoded: Decoded, delivery: Delivery<S>, alive: Alive) {
        if !delivery.settle.is_current() {
            return;
        }
        let Decoded { seen, action } = decoded;
        let answer = match self.decide(&seen) {
            Decision::Answer(answer) => Answered::Before(answer),
            Decision::Drop { by, confirmed } => Answered::Replaced(by, confirmed),
            Decision::Run if action.as_ref().is_ok_and(|action| self.is_left_behind(action, &delivery)) => {
                return self.leave_behind(delivery, alive).await;
            }
            Decision::Run => match self.hindrance(&action, &delivery) {
                Some(delay) => delay,
                None => {
                    let began = Utc::now();
                    let occasion = driver::Attempt { now: began, is_repeat: delivery.is_repeat() };
                    let judged = match judge(&self.driver, &self.policy, action, occasion).await {
                        Ok(judged) => judged,
                        Err(Aborted) => return,
                    };
                    // A container that has gone says nothing of the decky.
                    if self.found_gone(&judged).await {
                        return self.leave_behind(delivery, alive).await;
                    }
                    self.note(&judged, delivery.properties.attempt());
                    Answered::Now(judged, (began, Utc::now()))
                }
            },
        };
        self.finish(answer, seen, delivery, alive);
    }

    fn decide(&self, seen: &Seen) -> Decision {
        decide(self.memory.recall(seen, Instant::now()), seen.redelivered)
    }

    /// Gives up a delivery that was delivered again and again, and no worker lived to answer it.
    pub fn bury<S: Settle>(self: &Arc<Self>, delivery: Delivery<S>, alive: Alive) {
        let Decoded { seen, action } = self.decode(&delivery);
        let judged = match action {
            Ok(action) => {
                let message =
                    "it was delivered many times and no worker lived to answer: it may bring its worker down";
                let failure = Failure::new(FailureClass::Refused, message);
                let outcome = Outcome::not_run(&action, failure);
                Judged::Done(action, outcome)
            }
            Err(invalid) => Judged::Invalid(invalid),
        };
        let now = Utc::now();
        self.finish(Answered::Now(judged, (now, now)), seen, delivery, alive);
    }

    /// Defers a delivery that waits for a decky where nothing moves: others need its place.
    ///
    /// Its message is on its way when this returns, so that deferrals keep their order.
    pub async fn put_off<S: Settle>(self: &Arc<Self>, delivery: Delivery<S>, alive: Alive) {
        let Decoded { seen, action } = self.decode(&delivery);
        let pipeline = self.clone();
        let action = match action {
            Ok(action) if delivery.settle.is_current() && matches!(self.decide(&seen), Decision::Run) => {
                action
            }
            // A message that is not to be run keeps no place.
            action => {
                let decoded = Decoded { seen, action };
                tokio::spawn(async move { pipeline.take_alone(decoded, delivery, alive).await });
                return;
            }
        };
        debug!(action.id = %action.id, "deferred: nothing moves in its decky, and others need its place");
        let delay = self.options.topology.retry_delay(1);
        self.order.waits_for_decky(&action, delay, Instant::now());
        let outgoing = self.prepare(Answered::Behind(1), &seen, &delivery);
        let mut deferral = Box::pin(async move {
            if let Ok(left) = pipeline.send(outgoing, &delivery).await {
                pipeline.settle(left, &seen, delivery).await;
            }
            drop(alive);
        });
        if poll_once(&mut deferral).await.is_none() {
            tokio::spawn(deferral);
        }
    }

    /// How many actions of one decky may be on their way into it at once.
    pub fn ahead_max(&self) -> usize {
        self.options.ahead_max
    }

    /// Takes what a delivery came to where it belongs, and settles it, beside what is done next in its lane.
    pub fn finish<S: Settle + Sync>(
        self: &Arc<Self>,
        answered: Answered,
        seen: Seen,
        delivery: Delivery<S>,
        alive: Alive,
    ) {
        let pipeline = self.clone();
        let suspected = Suspected::of(&answered);
        let outgoing = self.prepare(answered, &seen, &delivery);
        // Boxed, as the runtime's own allocations of this size leave memory in pieces too small to use.
        tokio::spawn(Box::pin(async move {
            let outgoing = pipeline.reconsider(suspected, outgoing, &seen, &delivery).await;
            // A delivery that left nothing behind is requeued with its channel.
            if let Ok(left) = pipeline.send(outgoing, &delivery).await {
                pipeline.settle(left, &seen, delivery).await;
            }
            drop(alive);
        }));
    }
}

/// What a delivery came to.
pub enum Answered {
    /// This, in this span of time.
    Now(Judged, (DateTime<Utc>, DateTime<Utc>)),
    /// Its action has this result already, and was not run again.
    Before(Arc<Answer>),
    /// This was, or is being, published in its place when it came before; it was not run again.
    Replaced(Successor, watch::Receiver<bool>),
    /// One before it on its path waits since its attempt of this number; it comes again after that one.
    Behind(u32),
    /// Its decky is on another worker's engine.
    HandedBack(HandBack),
    /// The circuit of its decky has been open since a failure at this time: a retry without a try.
    CircuitOpen(Arc<Action>, Instant),
}
