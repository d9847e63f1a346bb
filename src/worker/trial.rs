//! The first delivery of a queue that is for one consumer at a time: it may be what ended the last one.

use std::collections::VecDeque;

use crate::broker::{Delivery, HeaderValue, Settle};

/// A queue's first delivery that has been delivered so often, and with no worker living to answer it, is
/// not run again. It is well below the limit at which the broker gives up all that was delivered with it.
const DELIVERIES_MAX: i64 = 10;

/// How often the broker has delivered a message before, in its own count.
const HEADER_DELIVERY_COUNT: &str = "x-delivery-count";

/// Holds back what comes from a queue until its first delivery has been settled, in the order in which it came.
///
/// All of it is taken from the broker, though: what goes back to a queue that still holds something given
/// back before goes behind that.
pub struct Trial<S> {
    /// The queue.
    pub queue: String,
    has_begun: bool,
    held: VecDeque<Delivery<S>>,
}

/// What is to be done with a delivery.
pub enum Admitted<S> {
    /// It is to be run.
    Run(Delivery<S>),
    /// It is to be given up unrun.
    Bury(Delivery<S>),
}

impl<S: Settle> Trial<S> {
    pub fn new(queue: String) -> Self {
        Self { queue, has_begun: false, held: VecDeque::new() }
    }

    /// Takes a delivery; gives what may be done now.
    pub fn take(&mut self, delivery: Delivery<S>) -> Option<Admitted<S>> {
        if self.has_begun {
            self.held.push_back(delivery);
            return None;
        }
        self.has_begun = true;
        Some(if deliveries(&delivery) >= DELIVERIES_MAX {
            Admitted::Bury(delivery)
        } else {
            Admitted::Run(delivery)
        })
    }

    /// Whether a delivery has been run, and of the `unsettled` ones all are held back here.
    pub fn is_over(&self, unsettled: usize) -> bool {
        self.has_begun && unsettled <= self.held.len()
    }

    /// What was held back.
    pub fn into_held(self) -> VecDeque<Delivery<S>> {
        self.held
    }
}

fn deliveries<S>(delivery: &Delivery<S>) -> i64 {
    match delivery.properties.headers.get(HEADER_DELIVERY_COUNT) {
        Some(HeaderValue::Integer(count)) => *count,
        _ => 0,
    }
}
