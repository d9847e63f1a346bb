//! The deckies of one host as they come, go and move: which of their actions run, wait or are parked.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::broker::{Arrival, Claim};

/// How many looks at the engine a decky has to be there for, after an attempt found it gone.
const LOOKS_AFTER_GONE: u8 = 2;
/// After how many looks the registry is asked whether another host has let a decky go.
const LOOKS_WHILE_LOST: u8 = 5;
/// After how many looks the registry is asked whether a decky that is to arrive still may.
const LOOKS_WHILE_ARRIVING: u8 = 10;

/// What is done with a delivery when its turn in its lane comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Errand {
    /// It is run, if its decky is still here.
    Run,
    /// It is parked or handed on.
    Park,
    /// It is a marker, and follows the actions that were parked before it.
    Pass,
}

/// What is to be done next.
#[derive(Debug, PartialEq, Eq)]
pub enum Effect<T> {
    /// Put the delivery into the decky's lane.
    Push(String, Errand, T),
    /// Consume from the decky's parking queue.
    Open(String),
    /// Consume from it no longer; unsettled deliveries go back.
    Close(String),
    /// Ask the registry how far the claim has come.
    Progress(String, u64),
    /// The decky has arrived: its parking queue is empty once its deliveries are settled.
    Arrived(String, u64),
}

/// What the registry is asked for, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// To claim a decky.
    Claim {
        decky: String,
        /// Whether this worker has parked actions of it.
        is_parked: bool,
        /// Whether it is left to another host that has it.
        yields: bool,
    },
    /// To note that a decky that was claimed is gone.
    Leave(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Stage {
    /// No container here.
    Away { looks: u8 },
    /// Another host has claimed it though its container is here.
    Lost { looks: u8 },
    /// The registry is being changed.
    Claiming,
    /// Earlier actions come first: those of other queues, parked.
    Arriving {
        number: u64,
        /// Whether the own queue still holds actions older than the claim.
        has_older: bool,
        /// The hosts through whose queues markers are still to come.
        awaits: BTreeSet<String>,
        looks: u8,
    },
    /// Its actions run.
    Here { number: u64 },
}

#[derive(Debug)]
struct Place {
    stage: Stage,
    /// Whether actions were parked since it was here last.
    is_parked: bool,
    /// Whether it was claimed, and the registry has not been told that it is gone.
    is_claimed: bool,
}

const ABSENT: Place = Place { stage: Stage::Away { looks: 0 }, is_parked: false, is_claimed: false };

/// The stages of all deckies, shared with the lanes.
#[derive(Debug, Default)]
pub struct Places(Mutex<HashMap<String, Place>>);

impl Places {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Place>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether an action whose turn has come is to be parked, and so all after it until the decky is here again.
    pub fn parks(&self, decky: &str) -> bool {
        let mut places = self.lock();
        let Some(place) = places.get_mut(decky) else { return true };
        match &place.stage {
            Stage::Away { .. } | Stage::Lost { .. } => {
                place.is_parked = true;
                true
            }
            Stage::Claiming | Stage::Arriving { .. } => place.is_parked,
            Stage::Here { .. } => false,
        }
    }

    /// Whether a decky's container is known to be away, or another host has claimed it.
    pub fn is_away(&self, decky: &str) -> bool {
        let places = self.lock();
        places.get(decky).is_none_or(|place| matches!(place.stage, Stage::Away { .. } | Stage::Lost { .. }))
    }

    /// Notes that the engine no longer has a decky's container.
    pub fn note_gone(&self, decky: &str) {
        let mut places = self.lock();
        if let Some(place) = places.get_mut(decky) {
            place.stage = Stage::Away { looks: LOOKS_AFTER_GONE };
            place.is_parked = true;
        }
    }
}

/// The deckies of one worker, and the deliveries that it holds until they have arrived.
#[derive(Debug)]
pub struct Moves<T> {
    host: String,
    places: Arc<Places>,
    held: BTreeMap<String, VecDeque<T>>,
    /// The deckies whose parking queues are consumed from.
    open: BTreeSet<String>,
}

type Effects<T> = Vec<Effect<T>>;

impl<T> Moves<T> {
    pub fn new(host: &str, places: Arc<Places>) -> Self {
        Self { host: host.to_owned(), places, held: BTreeMap::new(), open: BTreeSet::new() }
    }

    /// Begins anew with a new connection: no delivery of the old one may be begun any more.
    pub fn begin(&mut self) {
        self.held.clear();
        self.open.clear();
        for place in self.places.lock().values_mut() {
            place.stage = Stage::Away { looks: 0 };
        }
    }

    /// Follows the engine; gives the requests to the registry.
    pub fn follow<'a>(
        &mut self,
        residents: impl Iterator<Item = &'a str>,
        effects: &mut Effects<T>,
    ) -> Vec<Request> {
        let residents: BTreeSet<&str> = residents.collect();
        let mut requests = Vec::new();
        let places = self.places.clone();
        let mut places = places.lock();
        for (decky, place) in places.iter_mut() {
            if !residents.contains(decky.as_str()) {
                place.stage = Stage::Away { looks: 0 };
            }
            if matches!(place.stage, Stage::Away { .. }) {
                place.is_parked |= self.leave(decky, effects);
                if std::mem::take(&mut place.is_claimed) {
                    requests.push(Request::Leave(decky.clone()));
                }
            }
        }
        for name in residents {
            let place = places.entry(name.to_owned()).or_insert(ABSENT);
            let yields = matches!(place.stage, Stage::Lost { .. });
            match &mut place.stage {
                Stage::Away { looks: 0 } | Stage::Lost { looks: 0 } => {
                    place.stage = Stage::Claiming;
                    place.is_claimed = true;
                    let (decky, is_parked) = (name.to_owned(), place.is_parked);
                    requests.push(Request::Claim { decky, is_parked, yields });
                }
                Stage::Away { looks } | Stage::Lost { looks } => *looks -= 1,
                Stage::Arriving { looks: looks @ 0, number, .. } => {
                    *looks = LOOKS_WHILE_ARRIVING;
                    effects.push(Effect::Progress(name.to_owned(), *number));
                }
                Stage::Arriving { looks, .. } => *looks -= 1,
                Stage::Claiming | Stage::Here { .. } => {}
            }
        }
        requests
    }

    /// Has the held deliveries parked; says whether there were any.
    fn leave(&mut self, decky: &str, effects: &mut Effects<T>) -> bool {
        if self.open.remove(decky) {
            effects.push(Effect::Close(decky.to_owned()));
        }
        let held = self.held.remove(decky).unwrap_or_default();
        let had_some = !held.is_empty();
        effects.extend(held.into_iter().map(|item| Effect::Push(decky.to_owned(), Errand::Park, item)));
        had_some
    }

    fn release(&mut self, decky: &str, effects: &mut Effects<T>) {
        let held = self.held.remove(decky).unwrap_or_default();
        effects.extend(held.into_iter().map(|item| Effect::Push(decky.to_owned(), Errand::Run, item)));
    }

    /// Takes the registry's answer to a claim; `None` where another host keeps the decky.
    pub fn claimed(&mut self, decky: &str, claim: Option<&Claim>, effects: &mut Effects<T>) {
        let places = self.places.clone();
        let mut places = places.lock();
        let Some(place) = places.get_mut(decky) else { return };
        if place.stage != Stage::Claiming {
            return;
        }
        let Some(claim) = claim else {
            place.stage = Stage::Lost { looks: LOOKS_WHILE_LOST };
            place.is_parked |= self.leave(decky, effects);
            return;
        };
        let number = claim.number;
        if !claim.arrives() {
            (place.stage, place.is_parked) = (Stage::Here { number }, false);
            self.release(decky, effects);
            return;
        }
        let own = claim.own_marker;
        let looks = LOOKS_WHILE_ARRIVING;
        let mut awaits: BTreeSet<String> = claim.others.iter().cloned().collect();
        awaits.extend(own.then(|| self.host.clone()));
        place.stage = Stage::Arriving { number, has_older: own, awaits, looks };
        if own {
            place.is_parked |= self.leave(decky, effects);
        }
        if self.open.insert(decky.to_owned()) {
            effects.push(Effect::Open(decky.to_owned()));
        }
    }

    /// Takes an action that came through the host's own queue.
    pub fn direct(&mut self, decky: &str, item: T, effects: &mut Effects<T>) {
        let places = self.places.clone();
        let mut places = places.lock();
        let place = places.entry(decky.to_owned()).or_insert(ABSENT);
        let errand = match &place.stage {
            Stage::Claiming | Stage::Arriving { has_older: false, .. } => {
                self.held.entry(decky.to_owned()).or_default().push_back(item);
                return;
            }
            Stage::Away { .. } | Stage::Lost { .. } => {
                // A lane may have found it gone since, with earlier ones still held.
                self.leave(decky, effects);
                place.is_parked = true;
                Errand::Park
            }
            Stage::Arriving { has_older: true, .. } => {
                place.is_parked = true;
                Errand::Park
            }
            Stage::Here { .. } => Errand::Run,
        };
        effects.push(Effect::Push(decky.to_owned(), errand, item));
    }

    /// Takes a marker of `claimer`'s claim that came through the host's own queue.
    pub fn direct_marker(
        &mut self,
        decky: &str,
        number: u64,
        claimer: &str,
        item: T,
        effects: &mut Effects<T>,
    ) {
        let places = self.places.clone();
        let mut places = places.lock();
        if let Some(place) = places.get_mut(decky) {
            let is_others = claimer != self.host;
            match &mut place.stage {
                Stage::Arriving { number: own, has_older, .. } if !is_others && *own == number => {
                    *has_older = false;
                }
                Stage::Arriving { number: own, .. } | Stage::Here { number: own }
                    if is_others && *own < number =>
                {
                    place.stage = Stage::Lost { looks: LOOKS_WHILE_LOST };
                    place.is_parked |= self.leave(decky, effects);
                }
                // Everything that came before it is of an earlier stay.
                Stage::Claiming | Stage::Away { .. } | Stage::Lost { .. } => {
                    place.is_parked |= self.leave(decky, effects);
                }
                Stage::Arriving { .. } | Stage::Here { .. } => {}
            }
        }
        effects.push(Effect::Push(decky.to_owned(), Errand::Pass, item));
    }

    /// Takes a marker that came out of a parking queue, sent by a claim of this host or another through `via`.
    pub fn parked_marker(&mut self, decky: &str, number: u64, via: &str, effects: &mut Effects<T>) {
        let places = self.places.clone();
        let mut places = places.lock();
        let Some(place) = places.get_mut(decky) else { return };
        if let Stage::Arriving { number: own, awaits, .. } = &mut place.stage {
            if *own == number {
                awaits.remove(via);
            }
            effects.push(Effect::Progress(decky.to_owned(), *own));
        }
    }

    /// Takes the registry's word on how far a claim has come.
    pub fn progressed(&mut self, decky: &str, number: u64, arrival: &Arrival, effects: &mut Effects<T>) {
        let places = self.places.clone();
        let mut places = places.lock();
        let Some(place) = places.get_mut(decky) else { return };
        let Stage::Arriving { number: own, awaits, .. } = &place.stage else { return };
        if *own != number {
            return;
        }
        match arrival {
            Arrival::Lost => {
                place.stage = Stage::Lost { looks: LOOKS_WHILE_LOST };
                place.is_parked |= self.leave(decky, effects);
            }
            Arrival::Complete if awaits.is_empty() => {
                (place.stage, place.is_parked) = (Stage::Here { number }, false);
                self.release(decky, effects);
                effects.push(Effect::Arrived(decky.to_owned(), number));
            }
            Arrival::Complete | Arrival::UnderWay => {}
        }
    }

    /// Forgets a decky that has gone for good.
    pub fn forget(&mut self, decky: &str) {
        self.places.lock().remove(decky);
    }

    /// Notes that the parking queue of a decky is consumed from no longer.
    pub fn closed(&mut self, decky: &str) {
        self.open.remove(decky);
    }

    /// The deliveries that are held and `is_in_the_way`, in the order in which they came.
    pub fn take_held(&mut self, is_in_the_way: impl Fn(&T) -> bool) -> Vec<T> {
        let mut taken = Vec::new();
        for held in self.held.values_mut() {
            if held.front().is_some_and(&is_in_the_way) {
                taken.extend(held.drain(..));
            }
        }
        taken
    }

    /// How many deckies are here.
    pub fn here(&self) -> usize {
        let is_here = |place: &&Place| matches!(place.stage, Stage::Here { .. } | Stage::Arriving { .. });
        self.places.lock().values().filter(is_here).count()
    }
}

#[cfg(test)]
mod tests;
