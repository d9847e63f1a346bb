//! The first deliveries of a queue that is for one consumer at a time: one may be what ended the last one.

use std::collections::VecDeque;

use crate::broker::{Delivery, HeaderValue, Settle};

/// A queue's first delivery that has been delivered so often, and with no worker living to answer it, is
/// not run again. It is well below the limit at which the broker gives up all that was delivered with it.
const DELIVERIES_MAX: i64 = 10;

/// How often the broker has delivered a message before, in its own count.
const HEADER_DELIVERY_COUNT: &str = "x-delivery-count";

/// Lets one delivery of a queue through, then two when that has been settled, then four and so on, in the
/// order in which they came: so what stands before one that brings workers down is soon done with, and
/// that one comes first.
///
/// All of it is taken from the broker, though: what goes back to a queue that still holds something given
/// back before goes behind that.
pub struct Trial<S> {
    /// The queue.
    pub queue: String,
    /// How many are let through at once; none has been at first.
    window: usize,
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
        Self { queue, window: 0, held: VecDeque::new() }
    }

    /// Takes a delivery; gives what may be done now.
    pub fn take(&mut self, delivery: Delivery<S>) -> Option<Admitted<S>> {
        if self.window > 0 {
            self.held.push_back(delivery);
            return None;
        }
        self.window = 1;
        Some(if deliveries(&delivery) >= DELIVERIES_MAX {
            Admitted::Bury(delivery)
        } else {
            Admitted::Run(delivery)
        })
    }

    /// What may be run next, if of the `unsettled` ones all are held back here.
    pub fn advance(&mut self, unsettled: usize) -> VecDeque<Delivery<S>> {
        if self.window == 0 || unsettled > self.held.len() {
            return VecDeque::new();
        }
        self.window *= 2;
        self.held.drain(..self.window.min(self.held.len())).collect()
    }

    /// Whether more than one was let through, and nothing is held back any more.
    pub fn is_over(&self) -> bool {
        self.window > 1 && self.held.is_empty()
    }

    /// Whether nothing has come yet.
    pub fn is_untried(&self) -> bool {
        self.window == 0
    }

    /// What was held back.
    pub fn into_held(self) -> VecDeque<Delivery<S>> {
        self.held
    }
}

fn deliveries<S>(delivery: &Delivery<S>) -> i64 {
    let count = delivery.properties.headers.get(HEADER_DELIVERY_COUNT).and_then(HeaderValue::as_integer);
    count.unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::{BrokerError, Crowd, Properties};

    struct Nothing;

    impl Settle for Nothing {
        fn is_current(&self) -> bool {
            true
        }

        fn is_connected(&self) -> bool {
            true
        }

        fn crowd(&self) -> Crowd {
            Crowd::new(|| false)
        }

        async fn ack(self) -> Result<(), BrokerError> {
            Ok(())
        }

        async fn reject(self) -> Result<(), BrokerError> {
            Ok(())
        }
    }

    fn delivery(routing_key: &str, delivered_before: i64) -> Delivery<Nothing> {
        let mut properties = Properties::default();
        properties.headers.insert(HEADER_DELIVERY_COUNT.to_owned(), HeaderValue::Integer(delivered_before));
        Delivery {
            body: Vec::new(),
            properties,
            redelivered: delivered_before > 0,
            exchange: String::new(),
            routing_key: routing_key.to_owned(),
            settle: Nothing,
        }
    }

    #[test]
    fn the_first_runs_alone_then_two_then_four_each_when_those_before_have_been_settled() {
        let mut trial = Trial::new("q".to_owned());
        let keys = |deliveries: VecDeque<Delivery<Nothing>>| {
            deliveries.into_iter().map(|delivery| delivery.routing_key).collect::<String>()
        };
        assert!(trial.advance(0).is_empty() && !trial.is_over(), "nothing has been tried");
        assert!(
            matches!(trial.take(delivery("a", 3)), Some(Admitted::Run(first)) if first.routing_key == "a")
        );
        for key in ["b", "c", "d", "e"] {
            assert!(trial.take(delivery(key, 30)).is_none());
        }
        assert_eq!(keys(trial.advance(5)), "", "the first is not settled");
        assert_eq!(keys(trial.advance(4)), "bc");
        assert_eq!(keys(trial.advance(3)), "", "one of two is not settled");
        assert!(!trial.is_over());
        assert_eq!(keys(trial.advance(2)), "de");
        assert!(trial.is_over());
    }

    #[test]
    fn a_first_one_that_nobody_lived_to_answer_is_given_up() {
        let mut trial = Trial::new("q".to_owned());
        assert!(matches!(trial.take(delivery("a", DELIVERIES_MAX)), Some(Admitted::Bury(_))));
    }
}
