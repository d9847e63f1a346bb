//! Failures of the engine: deferred while it is away, handed back where another worker's engine has the decky.

use std::sync::Arc;
use std::time::Instant;

use tracing::{debug, info};

use super::settling::Outgoing;
use super::{Answered, Pipeline};
use crate::action::Action;
use crate::broker::{Delivery, Layout, Publish};
use crate::result::FailureClass;
use crate::subprocess::RunCommand;
use crate::worker::Judged;
use crate::worker::engine::HandBack;
use crate::worker::memory::{Seen, Successor};

/// A failure that may be the engine's rather than the container's.
pub(super) struct Suspected {
    action: Arc<Action>,
    was_begun: bool,
    began_at: Instant,
    failed_at: Instant,
}

impl Suspected {
    /// The suspicion that an answer raises, if it raises one.
    pub(super) fn of(answered: &Answered) -> Option<Self> {
        match answered {
            Answered::Now(Judged::Done(action, outcome), (started_at, finished_at)) => {
                let failure = outcome.failure.as_ref()?;
                if !matches!(failure.class, FailureClass::Infrastructure | FailureClass::Timeout) {
                    return None;
                }
                let failed_at = Instant::now();
                let took = (*finished_at - *started_at).to_std().unwrap_or_default();
                let began_at = failed_at.checked_sub(took).unwrap_or(failed_at);
                Some(Self { action: action.clone(), was_begun: outcome.was_begun, began_at, failed_at })
            }
            // The failures that opened the decky's circuit may have been the engine's.
            Answered::CircuitOpen(action, failed_at) => {
                let (began_at, failed_at) = (*failed_at, *failed_at);
                Some(Self { action: action.clone(), was_begun: false, began_at, failed_at })
            }
            Answered::Now(Judged::Invalid(_), _)
            | Answered::Before(_)
            | Answered::Replaced(..)
            | Answered::Behind(_)
            | Answered::HandedBack(_) => None,
        }
    }
}

impl<R: RunCommand, P: Publish> Pipeline<R, P> {
    /// Why an action is not even tried here for now: the engine is away, or never had the decky.
    pub(super) fn engine_hindrance<S>(
        &self,
        action: &Action,
        delivery: &Delivery<S>,
        now: Instant,
    ) -> Option<Answered> {
        if self.engine.is_open() {
            self.keep_order(action, now);
            return Some(Answered::Behind(1));
        }
        let hand_back = self.hand_back(action, delivery).filter(|_| self.engine.is_fresh(now))?;
        debug!(action.id = %action.id, decky.name = %action.executing_decky(), count = hand_back.count, "handed back untried: this engine has no such decky");
        Some(Answered::HandedBack(hand_back))
    }

    /// Looks at the engine after a failure.
    ///
    /// An action that was not begun does not count an attempt if the engine is or was away, or never had the
    /// decky and others may.
    pub(super) async fn reconsider<S>(
        &self,
        suspected: Option<Suspected>,
        outgoing: Outgoing,
        seen: &Seen,
        delivery: &Delivery<S>,
    ) -> Outgoing {
        let Some(Suspected { action, was_begun, began_at, failed_at }) = suspected else { return outgoing };
        self.engine.look_after(&self.driver, failed_at).await;
        let (id, decky) = (action.id, action.executing_decky());
        let was_away = self.engine.was_away_since(began_at);
        if was_away {
            // Failures of the engine say nothing of the decky.
            self.breakers.close(decky);
        }
        if was_begun {
            return outgoing;
        }
        if was_away {
            info!(action.id = %id, decky.name = %decky, "deferred: the engine does not answer");
            self.order.ended(&action);
            self.keep_order(&action, Instant::now());
            return match outgoing.into_replacing() {
                Ok(replacing) => {
                    self.memory.replacing_otherwise(seen, Successor::Deferral);
                    Outgoing::Deferral(replacing, 1)
                }
                Err(outgoing) => outgoing,
            };
        }
        let Some(hand_back) = self.hand_back(&action, delivery) else { return outgoing };
        let replacing = match outgoing.into_replacing() {
            Ok(replacing) => replacing,
            Err(outgoing) => return outgoing,
        };
        self.memory.replacing_otherwise(seen, Successor::HandBack);
        self.order.ended(&action);
        info!(action.id = %id, decky.name = %decky, count = hand_back.count, "handed back: this engine has no such decky");
        Outgoing::HandBack(replacing, hand_back)
    }

    /// Lets no later action of its decky overtake a deferred one, unless another worker is likely to perform that.
    fn keep_order(&self, action: &Action, now: Instant) {
        if !self.engine.has_others() {
            self.order.waits_for_decky(action, self.options.topology.retry_delay(1), now);
        }
    }

    /// The action's next hand-back, where it can be handed back to other workers.
    pub(super) fn hand_back<S>(&self, action: &Action, delivery: &Delivery<S>) -> Option<HandBack> {
        let is_elsewhere = self.options.topology.layout == Layout::Shared
            && self.engine.is_elsewhere(action.executing_decky());
        if !is_elsewhere {
            return None;
        }
        self.engine.next_hand_back(delivery.properties.hand_backs(), delivery.properties.handed_back_by())
    }
}
