//! Readiness: whether an action may be begun now, and the marks that its outcome leaves for those after it.

use std::sync::Arc;
use std::time::Instant;

use chrono::Utc;
use tracing::{debug, info, warn};

use super::settling::{Disposal, dispose};
use super::{Answered, Pipeline};
use crate::action::{Action, Invalid};
use crate::broker::{Delivery, Publish, Settle};
use crate::driver::can_share;
use crate::result::FailureClass;
use crate::subprocess::RunCommand;
use crate::worker::Judged;
use crate::worker::breaker::Opened;
use crate::worker::decide::Decision;
use crate::worker::memory::Seen;

impl<R: RunCommand, P: Publish> Pipeline<R, P> {
    /// Whether an action can share an exec with others as things are.
    pub fn may_share<S: Settle>(&self, action: &Action, seen: &Seen, delivery: &Delivery<S>) -> bool {
        can_share(action)
            && delivery.settle.is_current()
            && !self.engine.is_open()
            && self.hand_back(action, delivery).is_none()
            && !self.is_left_behind(action, delivery)
            && self.policy.refusal(action).is_none()
            && action.expires_at.is_none_or(|expires_at| expires_at > Utc::now())
            && matches!(self.decide(seen), Decision::Run)
            && self.is_in_turn(action, delivery, Instant::now())
            && self.is_next(action)
    }

    /// Whether nothing that is tried again has to come before it.
    pub fn is_next(&self, action: &Action) -> bool {
        self.order.is_next_on_path(action, Instant::now()).is_ok()
    }

    /// Whether what was put off of its decky lets it through; what is tried again waits for its path alone.
    fn is_in_turn<S: Settle>(&self, action: &Action, delivery: &Delivery<S>, now: Instant) -> bool {
        delivery.settle.is_parked()
            || delivery.properties.attempt() > 1
            || self.order.is_next_of_decky(action, now)
    }

    /// Why the action cannot be tried now, if it cannot; it then comes again.
    pub(super) fn hindrance<S: Settle>(
        &self,
        action: &Result<Arc<Action>, Box<Invalid>>,
        delivery: &Delivery<S>,
    ) -> Option<Answered> {
        let action = action.as_ref().ok()?;
        // What is not to be run at all has its answer at once.
        let is_over = action.expires_at.is_some_and(|expires_at| expires_at <= Utc::now());
        if is_over || self.policy.refusal(action).is_some() {
            return None;
        }
        let (now, topology) = (Instant::now(), &self.options.topology);
        if let Some(answered) = self.engine_hindrance(action, delivery, now) {
            return Some(answered);
        }
        if !self.is_in_turn(action, delivery, now) {
            debug!(action.id = %action.id, "put off: earlier actions of its decky were");
            self.order.waits_for_decky(action, topology.retry_delay(1), now);
            return Some(Answered::Behind(1));
        }
        if let Err(attempt) = self.order.is_next_on_path(action, now) {
            debug!(action.id = %action.id, "put off: an earlier action on its path is tried again first");
            self.order.waits(action, attempt, topology.retry_delay(attempt), now);
            return Some(Answered::Behind(attempt));
        }
        // The last attempt is always made: nothing is given up that was not tried.
        let attempt = delivery.properties.attempt();
        if attempt >= self.options.attempts_max {
            return None;
        }
        let failed_at = self.breakers.may_try(action.executing_decky(), now).err()?;
        debug!(action.id = %action.id, decky.name = %action.executing_decky(), attempt, "not tried: the circuit of the decky is open");
        self.order.waits(action, attempt, topology.retry_delay(attempt), now);
        Some(Answered::CircuitOpen(action.clone(), failed_at))
    }

    /// Keeps the order of paths and the state of deckies; before anything else on them is begun.
    pub fn note(&self, judged: &Judged, attempt: u32) {
        let Judged::Done(action, outcome) = judged else { return };
        let decky = action.executing_decky();
        let class = outcome.failure.as_ref().map(|failure| failure.class);
        match class {
            // Of a decky that another worker's engine has, this one knows nothing.
            Some(FailureClass::Infrastructure) if self.engine.is_elsewhere(decky) => {}
            Some(FailureClass::Infrastructure) => {
                if let Some(Opened { pause, failures }) = self.breakers.failed(decky, Instant::now()) {
                    warn!(decky.name = %decky, "decky circuit open for {} s after {failures} consecutive failures", pause.as_secs());
                }
            }
            // These say nothing of the decky.
            Some(
                FailureClass::Refused
                | FailureClass::Expired
                | FailureClass::Unsupported
                | FailureClass::Timeout,
            ) => {}
            _ => {
                if self.breakers.close(decky) {
                    info!(decky.name = %decky, "decky circuit closed: commands run there again");
                }
            }
        }
        match dispose(class, attempt, self.options.attempts_max) {
            Disposal::Retry => {
                let delay = self.options.topology.retry_delay(attempt);
                self.order.waits(action, attempt, delay, Instant::now());
            }
            Disposal::Complete | Disposal::DeadLetter(_) => self.order.ended(action),
        }
    }
}
