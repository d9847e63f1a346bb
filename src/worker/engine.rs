//! The circuit breaker of this worker's container engine, and the deckies that the engine has shown.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{info, warn};
use uuid::Uuid;

use crate::action::DeckyName;
use crate::driver::{Driver, Listed, engine_hint};
use crate::result::Failure;
use crate::subprocess::RunCommand;

/// How long after a failed look at the engine the next one follows, at first and at most.
const PAUSE_FIRST: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// For how long a decky that the engine did not list is taken not to be there.
const LIST_TIME_MAX: Duration = Duration::from_secs(5);
/// How many deckies are remembered; beyond that only those of the latest list are.
const DECKIES_MAX: usize = 10_000;
/// How often an action is handed back at most, for as long as a worker that has its decky may be busy:
/// over an hour with the usual delays.
const HAND_BACKS_MAX: u32 = 1000;
/// How many workers are told apart in a message.
const WORKERS_MAX: usize = 64;
/// How many letters stand for a worker there.
const TOKEN_CHARS: usize = 8;

/// Watches the engine.
///
/// The circuit is open from the start until the engine has answered once, and again from a look that failed
/// until one that succeeds. While it is open nothing is begun.
#[derive(Debug)]
pub struct EngineWatch {
    open: watch::Sender<bool>,
    /// One look at a time.
    looking: tokio::sync::Mutex<()>,
    known: Mutex<Known>,
    /// Stands for this worker in the messages that it hands back.
    token: String,
}

/// The state of an action that goes to other workers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HandBack {
    /// How often it has been handed back, this time included.
    pub count: u32,
    /// The workers that did so, with commas between.
    pub by: String,
}

#[derive(Debug, Default)]
struct Known {
    /// The deckies that the engine has shown at any time, running or not.
    shown: HashSet<DeckyName>,
    /// When the latest look that succeeded began.
    listed_at: Option<Instant>,
    /// When the latest look began.
    looked_at: Option<Instant>,
    /// Since when the engine has not answered.
    away_since: Option<Instant>,
    /// When the look began that found the engine back, the last time that it was away.
    back_at: Option<Instant>,
    /// How many workers consume the shared queue, this one included.
    workers: u32,
}

impl Known {
    fn has_others(&self) -> bool {
        self.workers > 1
    }
}

impl Default for EngineWatch {
    fn default() -> Self {
        let (looking, known) = (tokio::sync::Mutex::default(), Mutex::default());
        let token = Uuid::new_v4().simple().to_string()[..TOKEN_CHARS].to_owned();
        Self { open: watch::Sender::new(true), looking, known, token }
    }
}

impl EngineWatch {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the engine does not answer.
    pub fn is_open(&self) -> bool {
        *self.open.borrow()
    }

    /// Whether the engine was away at any time since `began`, as far as its looks tell.
    pub fn was_away_since(&self, began: Instant) -> bool {
        self.is_open() || self.known().back_at.is_some_and(|back_at| back_at >= began)
    }

    /// Hears of each opening and closing.
    pub fn subscribe(&self) -> watch::Receiver<bool> {
        self.open.subscribe()
    }

    /// Looks at the engine until it answers, then again each time that the circuit has opened.
    pub async fn supervise<R: RunCommand>(&self, driver: &Driver<R>) {
        let mut open = self.subscribe();
        // The sender is a part of this.
        while open.wait_for(|open| *open).await.is_ok() {
            let mut pause = PAUSE_FIRST;
            loop {
                {
                    let _one = self.looking.lock().await;
                    self.look(driver).await;
                }
                if !self.is_open() {
                    break;
                }
                sleep(pause).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
        }
    }

    /// Looks at the engine once, unless that was done since the failure.
    pub async fn look_after<R: RunCommand>(&self, driver: &Driver<R>, failed_at: Instant) {
        let _one = self.looking.lock().await;
        if self.known().looked_at.is_none_or(|at| at < failed_at) {
            self.look(driver).await;
        }
    }

    async fn look<R: RunCommand>(&self, driver: &Driver<R>) {
        let began = Instant::now();
        match driver.list().await {
            Ok(listed) => self.answered(began, listed),
            Err(failure) => self.failed(began, &failure),
        }
    }

    fn answered(&self, began: Instant, listed: Vec<Listed>) {
        let away_since = {
            let mut known = self.known();
            known.looked_at = Some(began);
            known.listed_at = Some(began);
            if known.shown.len() + listed.len() > DECKIES_MAX {
                known.shown.clear();
            }
            known.shown.extend(listed.into_iter().map(|listed| listed.name));
            let away_since = known.away_since.take();
            if away_since.is_some() {
                known.back_at = Some(began);
            }
            away_since
        };
        if let Some(since) = away_since {
            info!("circuit closed: the engine answers after {} s", since.elapsed().as_secs());
        }
        self.open.send_if_modified(std::mem::take);
    }

    fn failed(&self, began: Instant, failure: &Failure) {
        let is_news = {
            let mut known = self.known();
            known.looked_at = Some(began);
            let is_news = known.away_since.is_none();
            known.away_since.get_or_insert(began);
            is_news
        };
        if is_news {
            warn!(
                hint = engine_hint(&failure.message),
                "circuit open: the engine does not answer, nothing is consumed until it does: {:?}",
                failure.message
            );
        }
        self.open.send_if_modified(|open| !std::mem::replace(open, true));
    }

    /// Notes how many workers consume the shared queue; says whether that is news.
    pub fn note_workers(&self, workers: u32) -> bool {
        std::mem::replace(&mut self.known().workers, workers) != workers
    }

    /// Whether other workers consume the shared queue.
    pub fn has_others(&self) -> bool {
        self.known().has_others()
    }

    /// Whether the engine has never had the decky and other workers may.
    pub fn is_elsewhere(&self, decky: &DeckyName) -> bool {
        let known = self.known();
        known.has_others() && !known.shown.contains(decky)
    }

    /// Whether the engine was asked so lately that a decky it has not shown need not be tried.
    pub fn is_fresh(&self, now: Instant) -> bool {
        self.known().listed_at.is_some_and(|at| now.duration_since(at) < LIST_TIME_MAX)
    }

    /// The next hand-back of an action; none where each of the workers has had it, for then none has its decky.
    pub fn next_hand_back(&self, count: u32, by: &str) -> Option<HandBack> {
        let workers = usize::try_from(self.known().workers).unwrap_or(usize::MAX).min(WORKERS_MAX);
        let count = count.checked_add(1).filter(|count| *count <= HAND_BACKS_MAX)?;
        if by.len() >= WORKERS_MAX * (TOKEN_CHARS + 1) {
            return None;
        }
        let before: HashSet<&str> = by.split(',').filter(|token| !token.is_empty()).collect();
        let is_known = before.contains(self.token.as_str());
        if before.len() + usize::from(!is_known) >= workers {
            return None;
        }
        let by = match (is_known, before.is_empty()) {
            (true, _) => by.to_owned(),
            (false, true) => self.token.clone(),
            (false, false) => format!("{by},{}", self.token),
        };
        Some(HandBack { count, by })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(name: &str) -> Listed {
        Listed { name: DeckyName::parse(name).expect("a name"), status: "Up 3 minutes".to_owned() }
    }

    #[test]
    fn the_circuit_is_closed_from_the_first_answer_to_the_first_failure() {
        let (watch, now) = (EngineWatch::default(), Instant::now());
        assert!(watch.is_open());
        watch.answered(now, Vec::new());
        assert!(!watch.is_open());
        let failure = Failure::new(crate::result::FailureClass::Infrastructure, "no answer");
        watch.failed(now, &failure);
        watch.failed(now, &failure);
        assert!(watch.is_open());
        watch.answered(now + PAUSE_FIRST, Vec::new());
        assert!(!watch.is_open());
        // An attempt that fails while another one's failure is looked into, and the engine is back by then.
        assert!(watch.was_away_since(now) && !watch.was_away_since(now + PAUSE_FIRST * 2));
    }

    #[test]
    fn a_decky_is_elsewhere_if_the_engine_never_showed_it_and_another_worker_consumes() {
        let (watch, now) = (EngineWatch::default(), Instant::now());
        let decky = |name: &str| DeckyName::parse(name).expect("a name");
        assert!(watch.note_workers(1) && !watch.is_elsewhere(&decky("web-01")));
        assert!(watch.note_workers(3) && !watch.note_workers(3));
        assert!(watch.is_elsewhere(&decky("web-01")) && !watch.is_fresh(now));
        watch.answered(now, vec![listed("web-01")]);
        assert!(!watch.is_elsewhere(&decky("web-01")) && watch.is_elsewhere(&decky("web-02")));
        assert!(watch.is_fresh(now) && !watch.is_fresh(now + LIST_TIME_MAX));
        // A container that is removed is still this engine's.
        watch.answered(now, Vec::new());
        assert!(!watch.is_elsewhere(&decky("web-01")));
    }

    #[test]
    fn an_action_is_handed_back_until_each_worker_has_had_it() {
        let watches = [EngineWatch::default(), EngineWatch::default(), EngineWatch::default()];
        watches.iter().for_each(|watch| assert!(watch.note_workers(3)));
        let first = watches[0].next_hand_back(0, "").expect("one");
        assert_eq!(first, HandBack { count: 1, by: watches[0].token.clone() });
        let again = watches[0].next_hand_back(first.count, &first.by).expect("one");
        assert_eq!((again.count, &again.by), (2, &first.by));
        let second = watches[1].next_hand_back(again.count, &again.by).expect("one");
        assert_eq!(watches[2].next_hand_back(second.count, &second.by), None);
        assert_eq!(watches[0].next_hand_back(HAND_BACKS_MAX, ""), None);
        assert_eq!(watches[0].next_hand_back(u32::MAX, &"x,".repeat(1 << 20)), None);
    }
}
