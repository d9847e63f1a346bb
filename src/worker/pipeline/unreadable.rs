//! Messages whose properties cannot be read: answered where they can be, and left to the broker to dead-letter.

use std::sync::Arc;

use chrono::Utc;
use tracing::{debug, warn};

use super::Pipeline;
use crate::action::{Action, Invalid};
use crate::broker::{Delivery, Properties, Publish, Settle};
use crate::result::{Disposition, Occasion};
use crate::subprocess::RunCommand;
use crate::worker::Judged;
use crate::worker::lanes::Alive;
use crate::worker::left::Left;

impl<R: RunCommand, P: Publish> Pipeline<R, P> {
    /// Publishes a failure, and has the broker dead-letter the message.
    ///
    /// The broker alone has the message as it was published, so it keeps all its bytes.
    pub fn reject_unreadable<S: Settle + Sync>(self: &Arc<Self>, delivery: Delivery<S>, alive: Alive) {
        let flaw = delivery.properties.unreadable.clone().unwrap_or_default();
        let invalid = invalid_of(
            self.decode(&delivery).action,
            format!("expected properties that can be read: {flaw}"),
        );
        warn!(
            action.id = %invalid.action_id,
            exchange = delivery.exchange,
            routing_key = delivery.routing_key,
            body_bytes = delivery.body.len(),
            "message rejected, the broker dead-letters it: {flaw}"
        );
        let now = Utc::now();
        let (attempt, redelivered) = (delivery.properties.attempt(), delivery.redelivered);
        let occasion = Occasion { attempt, redelivered, started_at: now, finished_at: now };
        // The other properties may be mended, and an address that was mended is another one.
        let properties = Properties::default();
        let judged = Judged::Invalid(Box::new(invalid));
        let answer = self.answer(judged, Disposition::DeadLettered, occasion);
        let pipeline = self.clone();
        tokio::spawn(async move {
            if pipeline.outbox.result(&answer, &properties, redelivered).await.is_err() {
                return;
            }
            pipeline.tally.left(Left::BrokerDeadLetter);
            let rejected = delivery.settle.reject().await;
            pipeline.tally.settled(rejected.is_ok());
            if let Err(error) = rejected {
                debug!("{error}; the broker will deliver the message again");
            }
            pipeline.settled.notify_one();
            drop(alive);
        });
    }
}

/// The body's own words with `flaw` in place of any of its own.
fn invalid_of(action: Result<Arc<Action>, Box<Invalid>>, flaw: String) -> Invalid {
    let known = match action {
        Ok(action) => Invalid {
            pointer: String::new(),
            expected: String::new(),
            action_id: action.id,
            kind: Some(action.kind()),
            src_uuid: action.src_uuid().cloned(),
            dst_uuid: Some(action.dst_uuid.clone()),
            content_class: action.content_class().map(ToOwned::to_owned),
            attribution: action.attribution.clone(),
        },
        Err(invalid) => *invalid,
    };
    Invalid { pointer: String::new(), expected: flaw, ..known }
}
