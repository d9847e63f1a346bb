//! Actions of one decky that share an exec, taken from their lane as they are wanted.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::time::{Instant, sleep};

use super::memory::{Key, Seen};
use super::moves::Errand;
use super::pipeline::{Answered, Decoded, Pipeline};
use super::{Judged, lanes};
use crate::action::{Action, Glance};
use crate::broker::{Crowd, Delivery, Publish, Settle};
use crate::driver::{Batch, Next};
use crate::result::Outcome;
use crate::subprocess::RunCommand;

/// The largest body that may share an exec, in bytes; a larger one gains nothing by it.
const SHARED_BODY_BYTES_MAX: usize = 48 * 1024;

/// In this time a broker delivers what there was no room for before.
const DELIVERY_TIME: Duration = Duration::from_millis(25);
/// An exec waits no longer than this for room for further deliveries: a few starts of other execs.
const IDLE_TIME_MAX: Duration = Duration::from_secs(1);

/// A delivery in its lane. It is decoded when its turn comes, so that what waits is held once.
pub struct Waiting<S> {
    /// The decky whose container would run the command, unchecked; it names the lane.
    pub decky: String,
    /// Whether it may be worth its while to share an exec.
    pub may_share: bool,
    /// Whether it is run, or sent on.
    pub errand: Errand,
    /// When it was delivered.
    pub came_at: Instant,
    /// The delivery.
    pub delivery: Delivery<S>,
}

impl<S> Waiting<S> {
    /// Finds a delivery's lane; a body over the limit is not looked at, and is no action.
    pub fn new(delivery: Delivery<S>, body_bytes_max: usize) -> Self {
        let is_within = delivery.body.len() <= body_bytes_max;
        let glance = if is_within { Glance::at(&delivery.body) } else { Glance::default() };
        let may_share = matches!(glance.kind.as_str(), "file" | "edit" | "remove")
            && delivery.body.len() <= SHARED_BODY_BYTES_MAX;
        Self {
            decky: glance.executing_decky,
            may_share,
            errand: Errand::Run,
            came_at: Instant::now(),
            delivery,
        }
    }

    /// Has it sent on when its turn comes.
    pub fn send_on(&mut self, errand: Errand) {
        (self.errand, self.may_share) = (errand, false);
    }
}

/// The turn of a lane.
pub type Turn<S> = lanes::Turn<Waiting<S>>;

/// An attempt that failed, with its span of time.
pub type Failed<S> = (Judged, Seen, Delivery<S>, (DateTime<Utc>, DateTime<Utc>));

/// What shares the exec of a turn.
pub struct Company<'a, R, P, S> {
    pub pipeline: &'a Arc<Pipeline<R, P>>,
    pub turn: &'a Turn<S>,
    /// The one that the turn began with.
    pub first: Option<Ticket<S>>,
    /// What was taken from the lane and has to run alone.
    pub aside: Option<(Decoded, Delivery<S>)>,
    /// Attempts that failed, and perhaps as their container has gone.
    pub failed: Vec<Failed<S>>,
    /// What was given to the batch and not begun.
    pub not_begun: Vec<Delivery<S>>,
    /// The messages that were given to the batch and have no outcome yet.
    pub begun: HashSet<Key>,
    /// Whether more may wait with the broker than could be taken.
    pub crowd: Crowd,
    /// Since when there has been nothing to do.
    pub idle_since: Option<Instant>,
    /// Since when all that was done has been settled too.
    pub settled_since: Option<Instant>,
}

/// An action that was given to the batch, with the delivery that it came by.
pub type Ticket<S> = (Arc<Action>, Seen, Delivery<S>);

impl<R, P, S> Company<'_, R, P, S> {
    fn begin(&mut self, (action, seen, delivery): Ticket<S>) -> Next<Ticket<S>> {
        self.begun.insert(seen.key);
        let is_repeat = delivery.is_repeat();
        Next { action: action.clone(), ticket: (action, seen, delivery), is_repeat }
    }
}

impl<R: RunCommand, P: Publish, S: Settle + Sync> Batch for &mut Company<'_, R, P, S> {
    type Ticket = Ticket<S>;

    fn next(&mut self) -> Option<Next<Self::Ticket>> {
        if let Some(first) = self.first.take() {
            return Some(self.begin(first));
        }
        // What failed is looked into before anything else of the decky is begun.
        if self.aside.is_some() || !self.failed.is_empty() {
            return None;
        }
        let delivery = self.turn.next_if(|waiting| waiting.may_share)?.delivery;
        (self.idle_since, self.settled_since) = (None, None);
        let Decoded { seen, action } = self.pipeline.decode(&delivery);
        match action {
            // A redelivery of a running action is answered when that run ends.
            Ok(action)
                if !self.begun.contains(&seen.key) && self.pipeline.may_share(&action, &seen, &delivery) =>
            {
                Some(self.begin((action, seen, delivery)))
            }
            action => {
                self.aside = Some((Decoded { seen, action }, delivery));
                None
            }
        }
    }

    fn ahead_max(&self) -> usize {
        self.pipeline.ahead_max()
    }

    fn expected(&self) -> usize {
        self.turn.count(|waiting| waiting.may_share)
    }

    async fn wait(&mut self) -> bool {
        let idle_since = *self.idle_since.get_or_insert_with(Instant::now);
        while self.aside.is_none() {
            if let Some(may_share) = self.turn.peek(|waiting| waiting.may_share) {
                return may_share;
            }
            // Each result that is settled makes room for a delivery, and so does what others hold; without
            // either none need come.
            if self.turn.has_unsettled() || self.crowd.is_full() {
                self.settled_since = None;
            }
            let settled_since = *self.settled_since.get_or_insert_with(Instant::now);
            let is_over = settled_since.elapsed() >= DELIVERY_TIME || idle_since.elapsed() >= IDLE_TIME_MAX;
            if is_over || self.turn.is_wanted() {
                return false;
            }
            sleep(DELIVERY_TIME / 10).await;
        }
        false
    }

    fn may_begin(&self, (action, _, delivery): &Self::Ticket) -> bool {
        self.failed.is_empty() && delivery.settle.is_current() && self.pipeline.is_next(action)
    }

    fn done(
        &mut self,
        (action, seen, delivery): Self::Ticket,
        outcome: Outcome,
        span: (DateTime<Utc>, DateTime<Utc>),
    ) {
        self.begun.remove(&seen.key);
        let judged = Judged::Done(action, outcome);
        if self.pipeline.asks_for_gone(&judged) {
            self.failed.push((judged, seen, delivery, span));
            return;
        }
        self.pipeline.note(&judged, delivery.properties.attempt());
        self.pipeline.finish(Answered::Now(judged, span), seen, delivery, self.turn.alive());
    }

    fn not_begun(&mut self, (_, seen, delivery): Self::Ticket) {
        self.begun.remove(&seen.key);
        self.not_begun.push(delivery);
    }
}
