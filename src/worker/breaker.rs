//! The circuit breaker of each decky: open while its container, or the way to it, keeps failing.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::action::DeckyName;

/// After so many consecutive failures the circuit of a decky opens.
const FAILURES_MAX: u32 = 3;
/// How long it stays open at first; twice as long after each probe that fails.
const PAUSE_FIRST: Duration = Duration::from_secs(1);
/// The longest time that it stays open: a decky that is back is found within this.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// How many failing deckies are remembered; beyond that all circuits are closed.
const DECKIES_MAX: usize = 10_000;

/// The circuits of the deckies that fail.
#[derive(Debug, Default)]
pub struct Breakers(Mutex<HashMap<DeckyName, Failing>>);

#[derive(Debug)]
struct Failing {
    in_a_row: u32,
    failed_at: Instant,
    pause: Duration,
    until: Instant,
}

/// The opening of a circuit.
#[derive(Debug, PartialEq, Eq)]
pub struct Opened {
    /// How long it stays open.
    pub pause: Duration,
    /// The number of consecutive failures.
    pub failures: u32,
}

impl Breakers {
    /// Whether the circuit of the decky is closed, or half-open for one probe.
    ///
    /// # Errors
    /// It is open, since a failure that was noted at the returned time.
    pub fn may_try(&self, decky: &DeckyName, now: Instant) -> Result<(), Instant> {
        let mut failing = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match failing.get_mut(decky) {
            Some(failing) if failing.in_a_row >= FAILURES_MAX => {
                if now < failing.until {
                    return Err(failing.failed_at);
                }
                // Until the probe's end is known nothing else is tried.
                failing.until = now + failing.pause;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Notes a failure of the engine or the container; `Some` if it opens the circuit.
    pub fn failed(&self, decky: &DeckyName, now: Instant) -> Option<Opened> {
        let mut failing = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if failing.len() >= DECKIES_MAX {
            failing.clear();
        }
        let fresh = Failing { in_a_row: 0, failed_at: now, pause: PAUSE_FIRST, until: now };
        let failing = failing.entry(decky.clone()).or_insert(fresh);
        (failing.in_a_row, failing.failed_at) = (failing.in_a_row.saturating_add(1), now);
        if failing.in_a_row < FAILURES_MAX {
            return None;
        }
        let pause = failing.pause;
        failing.until = now + pause;
        failing.pause = (pause * 2).min(PAUSE_MAX);
        Some(Opened { pause, failures: failing.in_a_row })
    }

    /// Closes the circuit of the decky and forgets its failures; returns whether it was open.
    pub fn close(&self, decky: &DeckyName) -> bool {
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
        assert_eq!(breakers.may_try(&decky, now), Ok(()));
        let mut pause = PAUSE_FIRST;
        assert_eq!(breakers.failed(&decky, now), Some(Opened { pause, failures: 3 }));
        for _ in 0..6 {
            assert_eq!(breakers.may_try(&decky, now + pause / 2), Err(now), "since the latest failure");
            assert_eq!(breakers.may_try(&other, now), Ok(()));
            now += pause;
            assert_eq!(breakers.may_try(&decky, now), Ok(()), "a probe");
            assert!(breakers.may_try(&decky, now).is_err(), "one alone");
            let next = breakers.failed(&decky, now).expect("a longer pause").pause;
            assert!(next > pause || next == PAUSE_MAX);
            pause = next;
        }
        assert!(breakers.close(&decky) && breakers.may_try(&decky, now).is_ok());
        assert!(!breakers.close(&decky));
    }
}
