//! Waiting longer after each failure, and not in step with the other workers.

use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

const FIRST: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(30);

/// The waits after failures in a row: from 0.2 s, half as long again each time, to 30 s.
///
/// The growth is gentle so that a wait is never longer than about half of the outage
/// so far: whoever comes back is found soon.
#[derive(Debug)]
pub struct Backoff(Duration);

impl Default for Backoff {
    fn default() -> Self {
        Self(FIRST)
    }
}

impl Backoff {
    /// The next wait, with up to half of it taken off at random.
    pub fn next_wait(&mut self) -> Duration {
        let full = self.0;
        self.0 = (full * 3 / 2).min(LONGEST);
        // The standard library seeds each of these anew; no better randomness is needed.
        let share = RandomState::new().hash_one(()) % 512;
        full - full * u32::try_from(share).unwrap_or(0) / 1024
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_half_a_minute_and_are_never_less_than_half_of_their_step() {
        let mut backoff = Backoff::default();
        let mut full = FIRST;
        for _ in 0..40 {
            let wait = backoff.next_wait();
            assert!(wait <= full && wait >= full / 2, "{wait:?} of {full:?}");
            full = (full * 3 / 2).min(LONGEST);
        }
        assert_eq!(full, LONGEST);
    }
}
