//! Actions whose decky is not on this host: parked, handed on, or dead-lettered as unclaimed.

use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;
use tokio::time::sleep;
use tracing::{debug, info, warn};

use super::{Decoded, Pipeline};
use crate::action::{Action, Glance};
use crate::backoff::Backoff;
use crate::broker::{Delivery, Fate, Marker, Publish, PublishError, Settle};
use crate::driver::Aborted;
use crate::result::{FailureClass, Occasion};
use crate::subprocess::RunCommand;
use crate::worker::Judged;
use crate::worker::lanes::Alive;
use crate::worker::left::Left;
use crate::worker::local::Residence;
use crate::worker::outbox::Grounds;

/// An engine can tell that a container died and still list it as running.
const SECOND_LOOK_TIME: Duration = Duration::from_millis(300);
/// How often an action that may not be parked yet asks again.
const WAIT_INTERVAL: Duration = Duration::from_millis(200);
/// After how many times the marker that it waits for is sent again.
const WAITS_PER_MARKER: u32 = 25;

impl<R: RunCommand, P: Publish> Pipeline<R, P> {
    /// Whether an action is not to be run now, as its decky is away or earlier actions were parked.
    pub(super) fn is_left_behind<S: Settle>(&self, action: &Action, delivery: &Delivery<S>) -> bool {
        let Some(residence) = &self.residence else { return false };
        let decky = action.executing_decky();
        if self.is_answered_unrun(action) {
            return false;
        }
        // An action out of the parking queue goes back there with all after it when that queue is given up.
        if delivery.settle.is_parked() { residence.is_away(decky) } else { residence.parks(decky) }
    }

    /// Whether an action has its answer without being run.
    pub(super) fn is_answered_unrun(&self, action: &Action) -> bool {
        action.expires_at.is_some_and(|expires_at| expires_at <= Utc::now())
            || self.policy.refusal(action).is_some()
    }

    /// Whether an attempt may have failed because its decky's container is no longer here.
    pub fn asks_for_gone(&self, judged: &Judged) -> bool {
        self.residence.is_some() && judged.failure_class() == Some(FailureClass::Infrastructure)
    }

    /// Whether an attempt failed because its decky's container is no longer here.
    pub(super) async fn found_gone(&self, judged: &Judged) -> bool {
        let (Some(residence), Judged::Done(action, _)) = (&self.residence, judged) else { return false };
        if !self.asks_for_gone(judged) {
            return false;
        }
        let decky = action.executing_decky();
        for pause in [Duration::ZERO, SECOND_LOOK_TIME] {
            sleep(pause).await;
            if residence.is_away(decky) {
                return true;
            }
            // An engine that is down says nothing of the decky.
            let Ok(listed) = self.driver.list().await else { return false };
            if !listed.iter().any(|listed| listed.name == *decky && listed.is_running()) {
                info!(action.id = %action.id, decky.name = %decky, "not done: the container has gone");
                residence.note_gone(decky);
                return true;
            }
        }
        false
    }

    /// Parks an action of this host's own queue; one out of a parking queue goes back there when that is given up.
    pub(super) async fn leave_behind<S: Settle>(self: &Arc<Self>, delivery: Delivery<S>, alive: Alive) {
        if !delivery.settle.is_parked() {
            let host = self.options.topology.host();
            let own = self.options.topology.host_queue_name(host);
            self.send_on(delivery, &own, alive).await;
        }
    }

    /// Sends on a delivery that came through a host's `queue`: an action whose decky is away, or a marker.
    ///
    /// Each is confirmed before the next one of its lane, so that their order stays.
    pub async fn send_on<S: Settle>(self: &Arc<Self>, delivery: Delivery<S>, queue: &str, alive: Alive) {
        let (Some(residence), Some(host)) = (&self.residence, self.options.topology.host_of(queue)) else {
            return;
        };
        if let Some(marker) = Marker::read(&delivery.exchange, &delivery.properties) {
            return self.pass(residence, host, &marker, delivery).await;
        }
        let decoded: Decoded = self.decode(&delivery);
        let decky = match &decoded.action {
            Ok(action) if !self.is_answered_unrun(action) => action.executing_decky().as_str().to_owned(),
            _ => return Box::pin(self.take_alone(decoded, delivery, alive)).await,
        };
        drop(decoded);
        let (mut backoff, mut waits) = (Backoff::default(), 0_u32);
        while delivery.settle.is_current() {
            match residence.fate(host, &decky).await {
                Ok(Fate::Wait { first, number, claimer }) => {
                    waits += 1;
                    if waits.is_multiple_of(WAITS_PER_MARKER) {
                        let marker = Marker { decky: decky.clone(), number, claimer, via: first };
                        let _ = residence.send(&marker).await;
                    }
                    sleep(WAIT_INTERVAL).await;
                }
                Ok(fate) => match self.hand_over(&delivery, host, &decky, &fate).await {
                    Ok(left) => return self.settle_sent_on(delivery, left).await,
                    Err(_) => sleep(backoff.next_wait()).await,
                },
                Err(error) => {
                    debug!("{error}; asking again where an action for {decky} belongs");
                    sleep(backoff.next_wait()).await;
                }
            }
        }
    }

    /// Acks what another queue holds now; it may come back as the same message, so nothing is remembered of it.
    async fn settle_sent_on<S: Settle>(&self, delivery: Delivery<S>, left: Left) {
        self.tally.left(left);
        let acked = delivery.settle.ack().await;
        self.tally.settled(acked.is_ok());
        if let Err(error) = acked {
            debug!("{error}; the broker will deliver the message again");
        }
        self.settled.notify_one();
    }

    async fn hand_over<S>(
        &self,
        delivery: &Delivery<S>,
        host: &str,
        decky: &str,
        fate: &Fate,
    ) -> Result<Left, Aborted> {
        let topology = &self.options.topology;
        let id = Glance::at(&delivery.body).action_id;
        let queue = match fate {
            Fate::Park => topology.parking_queue(decky).name,
            Fate::HandOn(to) => topology.host_queue_name(to),
            Fate::Wait { .. } => return Err(Aborted),
            Fate::Unclaimed => {
                warn!(action.id = id, decky.name = decky, "dead-lettered: no host has the decky");
                let now = Utc::now();
                let attempt = delivery.properties.attempt();
                let occasion = Occasion {
                    attempt,
                    redelivered: delivery.redelivered,
                    started_at: now,
                    finished_at: now,
                };
                let grounds = Grounds { reason: "unclaimed", class: "", message: "no host has the decky" };
                let sent = self.outbox.dead_letter(delivery, grounds, occasion).await;
                return sent.map(|()| Left::DeadLetter).map_err(|_| Aborted);
            }
        };
        match self.outbox.hand_on(delivery, &queue).await {
            Ok(()) => {
                debug!(action.id = id, decky.name = decky, queue, "the decky is away: handed on");
                Ok(Left::HandBack)
            }
            Err(error) => {
                if let Some(residence) = &self.residence
                    && matches!(error, PublishError::Returned(_))
                {
                    residence.doubt(host, decky);
                }
                debug!(action.id = id, queue, "{error}; handing on again");
                Err(Aborted)
            }
        }
    }

    async fn pass<S: Settle>(
        &self,
        residence: &Residence,
        host: &str,
        marker: &Marker,
        delivery: Delivery<S>,
    ) {
        let mut backoff = Backoff::default();
        while delivery.settle.is_current() {
            match residence.pass(host, marker).await {
                Ok(true) => return self.settle_sent_on(delivery, Left::HandBack).await,
                Ok(false) => sleep(WAIT_INTERVAL).await,
                Err(error) => {
                    debug!("{error}; passing the marker of {} again", marker.decky);
                    sleep(backoff.next_wait()).await;
                }
            }
        }
    }
}
