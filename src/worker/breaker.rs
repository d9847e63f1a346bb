//! Deckies that are left in peace for a while, because nothing can be done there.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::action::DeckyName;

/// After so many failures in a row a decky is left in peace.
const FAILURES_MAX: u32 = 3;
/// For how long at first; twice as long after each attempt that fails again.
const PAUSE_FIRST: Duration = Duration::from_secs(1);
/// The longest pause: a decky that is back is found within this.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// How many deckies are kept in mind; beyond that all of them get a fresh start.
const DECKIES_MAX: usize = 10_000;

/// What is known of the deckies that fail.
#[derive(Debug, Default)]
pub struct Breakers(Mutex<HashMap<DeckyName, Failing>>);

#[derive(Debug)]
struct Failing {
    in_a_row: u32,
    pause: Duration,
    until: Instant,
}

impl Breakers {
    /// Whether something may be tried on the decky; once in each pause's end it may, as a probe.
    pub fn may_try(&self, decky: &DeckyName, now: Instant) -> bool {
        let mut failing = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match failing.get_mut(decky) {
            Some(failing) if failing.in_a_row >= FAILURES_MAX => {
                if now < failing.until {
                    return false;
                }
                // Until the probe's end is known nothing else is tried.
                failing.until = now + failing.pause;
                true
            }
            _ => true,
        }
    }

    /// Notes that the engine or the container could not do its part; `Some` is the pause that begins with it.
    pub fn failed(&self, decky: &DeckyName, now: Instant) -> Option<Duration> {
        let mut failing = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if failing.len() >= DECKIES_MAX {
            failing.clear();
        }
        let fresh = Failing { in_a_row: 0, pause: PAUSE_FIRST, until: now };
        let failing = failing.entry(decky.clone()).or_insert(fresh);
        failing.in_a_row += 1;
        if failing.in_a_row < FAILURES_MAX {
            return None;
        }
        let pause = failing.pause;
        failing.until = now + pause;
        failing.pause = (pause * 2).min(PAUSE_MAX);
        Some(pause)
    }

    /// Notes that the decky did something; tells whether it had been paused.
    pub fn worked(&self, decky: &DeckyName) -> bool {
        let mut failing = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        failing.remove(decky).is_some_and(|failing| failing.in_a_row >= FAILURES_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decky_that_keeps_failing_is_tried_once_a_pause_until_it_works() {
        let (breakers, mut now) = (Breakers::default(), Instant::now());
        let decky = DeckyName::parse("web-01").expect("a name");
        let other = DeckyName::parse("web-02").expect("a name");
        assert_eq!((breakers.failed(&decky, now), breakers.failed(&decky, now)), (None, None));
        assert!(breakers.may_try(&decky, now));
        let mut pause = breakers.failed(&decky, now).expect("a pause");
        for _ in 0..6 {
            assert!(!breakers.may_try(&decky, now + pause / 2) && breakers.may_try(&other, now));
            now += pause;
            assert!(breakers.may_try(&decky, now), "a probe");
            assert!(!breakers.may_try(&decky, now), "one alone");
            let next = breakers.failed(&decky, now).expect("a longer pause");
            assert!(next > pause || next == PAUSE_MAX);
            pause = next;
        }
        assert!(breakers.worked(&decky) && breakers.may_try(&decky, now));
        assert!(!breakers.worked(&decky));
    }
}
