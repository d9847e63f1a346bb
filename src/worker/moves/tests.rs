//! Random moves, crashes and deliveries over queues in memory.

use std::collections::{HashMap, HashSet};

use proptest::prelude::*;

use super::*;
use crate::broker::{Fate, Passage, Registry};

const HOSTS: [&str; 3] = ["a", "b", "c"];
const DECKIES: [&str; 2] = ["x", "y"];

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Message {
    Action(&'static str, u32),
    Marker { decky: &'static str, number: u64, claimer: usize, via: usize },
}

impl Message {
    fn decky(&self) -> &'static str {
        match self {
            Self::Action(decky, _) | Self::Marker { decky, .. } => decky,
        }
    }
}

/// A delivery: where it came from, and in which place.
#[derive(Debug, Clone)]
struct Item {
    queue: Queue,
    place: u64,
    message: Message,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Queue {
    Host(usize),
    Parking(&'static str),
}

/// A queue keeps its messages by place; what is delivered stays until it is acked.
#[derive(Debug, Default)]
struct Stored {
    messages: BTreeMap<u64, Message>,
    delivered: HashMap<u64, usize>,
}

struct Host {
    moves: Moves<Item>,
    places: Arc<Places>,
    alive: bool,
    is_new: bool,
    /// Where claims that wait for the lock stand.
    wanted: VecDeque<Request>,
    /// By lane; an own queue's lane is named for the decky, a dead host's for both.
    lanes: BTreeMap<(usize, &'static str), VecDeque<(Errand, Item)>>,
    open: HashSet<&'static str>,
    closing: HashSet<&'static str>,
}

struct World {
    registry: Registry,
    bound: HashMap<&'static str, HashSet<usize>>,
    queues: HashMap<Queue, Stored>,
    containers: HashMap<&'static str, Option<usize>>,
    hosts: Vec<Host>,
    next_place: u64,
    published: HashMap<&'static str, u32>,
    run: HashMap<&'static str, Vec<u32>>,
    waits: usize,
}

fn known(decky: &str) -> &'static str {
    DECKIES.into_iter().find(|known| *known == decky).expect("one of them")
}

fn number_of(host: &str) -> usize {
    HOSTS.into_iter().position(|known| known == host).expect("one of them")
}

impl World {
    fn new() -> Self {
        let host = |host: &&'static str| {
            let places = Arc::new(Places::default());
            Host {
                moves: Moves::new(host, places.clone()),
                places,
                alive: true,
                is_new: true,
                wanted: VecDeque::new(),
                lanes: BTreeMap::new(),
                open: HashSet::new(),
                closing: HashSet::new(),
            }
        };
        Self {
            registry: Registry::default(),
            bound: HashMap::new(),
            queues: HashMap::new(),
            containers: HashMap::new(),
            hosts: HOSTS.iter().map(host).collect(),
            next_place: 0,
            published: HashMap::new(),
            run: HashMap::new(),
            waits: 0,
        }
    }

    fn store(&mut self, queue: Queue, message: Message) {
        self.next_place += 1;
        self.queues.entry(queue).or_default().messages.insert(self.next_place, message);
    }

    fn publish(&mut self, decky: &'static str) {
        let bound = self.bound.get(decky).cloned().unwrap_or_default();
        if bound.is_empty() {
            return;
        }
        let count = self.published.entry(decky).or_default();
        *count += 1;
        let message = Message::Action(decky, *count);
        for host in bound {
            self.store(Queue::Host(host), message.clone());
        }
    }

    /// Gives the next message of a queue that no other host consumes from.
    fn deliver(&mut self, to: usize, queue: Queue) -> Option<Item> {
        let stored = self.queues.get_mut(&queue)?;
        if stored.delivered.values().any(|holder| *holder != to) {
            return None;
        }
        let next = stored.messages.iter().find(|(place, _)| !stored.delivered.contains_key(place));
        let (place, message) = next.map(|(place, message)| (*place, message.clone()))?;
        stored.delivered.insert(place, to);
        Some(Item { queue, place, message })
    }

    fn ack(&mut self, item: &Item) {
        let stored = self.queues.get_mut(&item.queue).expect("it came from there");
        assert!(stored.delivered.remove(&item.place).is_some(), "acked once: {item:?}");
        stored.messages.remove(&item.place);
    }

    fn apply(&mut self, at: usize, effects: Vec<Effect<Item>>) {
        for effect in effects {
            let host = &mut self.hosts[at];
            match effect {
                Effect::Push(decky, errand, item) => {
                    host.lanes.entry((at, known(&decky))).or_default().push_back((errand, item));
                }
                Effect::Open(decky) => {
                    host.open.insert(known(&decky));
                }
                Effect::Close(decky) => self.close(at, known(&decky)),
                Effect::Progress(decky, number) => {
                    let arrival = self.registry.arrival(HOSTS[at], &decky, number);
                    let mut effects = Vec::new();
                    self.hosts[at].moves.progressed(&decky, number, &arrival, &mut effects);
                    self.apply(at, effects);
                }
                Effect::Arrived(decky, _) => {
                    host.closing.insert(known(&decky));
                }
            }
        }
    }

    /// What is not settled goes back.
    fn close(&mut self, at: usize, decky: &'static str) {
        let host = &mut self.hosts[at];
        host.open.remove(decky);
        host.closing.remove(decky);
        let parking = Queue::Parking(decky);
        if let Some(lane) = host.lanes.get_mut(&(at, decky)) {
            lane.retain(|(_, item)| item.queue != parking);
        }
        if let Some(stored) = self.queues.get_mut(&parking) {
            stored.delivered.retain(|_, holder| *holder != at);
        }
    }

    /// The emptied parking queue is closed once all its deliveries are settled.
    fn end_arrivals(&mut self, at: usize) {
        for decky in self.hosts[at].closing.clone() {
            let stored = self.queues.entry(Queue::Parking(decky)).or_default();
            if !stored.messages.is_empty() {
                continue;
            }
            let stage = self.hosts[at].places.lock()[decky].stage.clone();
            if let Stage::Here { number } = stage
                && self.registry.unpark(HOSTS[at], decky, number)
            {
                self.hosts[at].moves.closed(decky);
                self.close(at, decky);
            }
        }
    }

    fn look(&mut self, at: usize) {
        let here: Vec<&str> =
            DECKIES.into_iter().filter(|decky| self.containers.get(decky) == Some(&Some(at))).collect();
        if std::mem::take(&mut self.hosts[at].is_new) {
            let here = here.iter().map(|decky| (*decky).to_owned()).collect();
            self.registry.leave_absent(HOSTS[at], &here);
        }
        let mut effects = Vec::new();
        let wanted = self.hosts[at].moves.follow(here.into_iter(), &mut effects);
        self.hosts[at].wanted.extend(wanted);
        self.apply(at, effects);
    }

    /// One claim under the lock; with `crash` it breaks off after so many steps, and with `publish` actions come midway.
    fn claim(&mut self, at: usize, crash: Option<u8>, publish: bool) {
        let (decky, is_parked, yields) = match self.hosts[at].wanted.pop_front() {
            Some(Request::Claim { decky, is_parked, yields }) => (known(&decky), is_parked, yields),
            Some(Request::Leave(decky)) => return self.registry.leave(HOSTS[at], &decky),
            None => return,
        };
        self.registry.begin_change();
        if yields
            && self.registry.keeper(HOSTS[at], decky).is_some_and(|host| self.hosts[number_of(host)].alive)
        {
            let mut effects = Vec::new();
            self.hosts[at].moves.claimed(decky, None, &mut effects);
            return self.apply(at, effects);
        }
        let claim = self.registry.claim(HOSTS[at], decky, is_parked);
        let number = claim.number;
        let marker = |via| Message::Marker { decky, number, claimer: at, via };
        for step in 0..4 {
            if crash == Some(step) {
                return self.crash(at);
            }
            match step {
                0 if claim.own_marker => self.store(Queue::Host(at), marker(at)),
                1 => {
                    self.bound.entry(decky).or_default().insert(at);
                    if publish {
                        self.publish(decky);
                    }
                }
                2 => self.bound.entry(decky).or_default().retain(|host| *host == at),
                3 => claim.others.iter().for_each(|to| {
                    let to = number_of(to);
                    self.store(Queue::Host(to), marker(to));
                }),
                _ => {}
            }
        }
        let mut effects = Vec::new();
        self.hosts[at].moves.claimed(decky, Some(&claim), &mut effects);
        self.apply(at, effects);
    }

    fn take(&mut self, at: usize, queue: Queue) -> bool {
        let Some(item) = self.deliver(at, queue) else { return false };
        let (decky, mut effects) = (item.message.decky(), Vec::new());
        match (queue, &item.message) {
            (Queue::Host(from), message) if from != at => {
                let errand = if matches!(message, Message::Action(..)) { Errand::Park } else { Errand::Pass };
                self.hosts[at].lanes.entry((from, decky)).or_default().push_back((errand, item));
            }
            (Queue::Host(_), Message::Action(..)) => self.hosts[at].moves.direct(decky, item, &mut effects),
            (Queue::Host(_), &Message::Marker { number, claimer, .. }) => {
                self.hosts[at].moves.direct_marker(decky, number, HOSTS[claimer], item, &mut effects);
            }
            (Queue::Parking(_), Message::Action(..)) => {
                effects.push(Effect::Push(decky.to_owned(), Errand::Run, item));
            }
            (Queue::Parking(_), &Message::Marker { number, via, .. }) => {
                self.ack(&item);
                self.hosts[at].moves.parked_marker(decky, number, HOSTS[via], &mut effects);
            }
        }
        self.apply(at, effects);
        true
    }

    fn step_lane(&mut self, at: usize, lane: (usize, &'static str), crash: bool) -> bool {
        let host = &mut self.hosts[at];
        let Some(&(errand, ref item)) = host.lanes.get(&lane).and_then(VecDeque::front) else { return false };
        let (item, decky) = (item.clone(), lane.1);
        let is_from_parking = item.queue == Queue::Parking(decky);
        let has_container = self.containers.get(decky) == Some(&Some(at));
        let errand = match errand {
            Errand::Run if is_from_parking => Errand::Run,
            Errand::Run if host.places.parks(decky) => Errand::Park,
            errand => errand,
        };
        if errand == Errand::Run {
            if has_container {
                let Message::Action(_, n) = item.message else { panic!("a marker does not run") };
                self.run.entry(decky).or_default().push(n);
            } else {
                host.places.note_gone(decky);
                // What was parked before goes back to its queue, the rest is parked.
                return if is_from_parking { true } else { self.step_lane(at, lane, crash) };
            }
        } else {
            let from = HOSTS[lane.0];
            let number = match item.message {
                Message::Marker { number, .. } => Some(number),
                Message::Action(..) => None,
            };
            let passage = number.map(|number| self.registry.ends(from, decky, number));
            let fate = self.registry.fate(from, decky);
            if let (Some(Passage::Waits), _) | (None, Fate::Wait { .. }) = (passage, &fate) {
                self.waits += 1;
                if let Fate::Wait { first, number, claimer } = fate
                    && self.waits.is_multiple_of(10)
                {
                    let (via, claimer) = (number_of(&first), number_of(&claimer));
                    self.store(Queue::Host(via), Message::Marker { decky, number, claimer, via });
                }
                return false;
            }
            if let (Some(number), Some(passage)) = (number, passage) {
                if self.registry.is_current(decky, number) {
                    self.store(Queue::Parking(decky), item.message.clone());
                }
                if passage == Passage::Ends {
                    self.registry.end_first(decky);
                }
            } else {
                match fate {
                    Fate::HandOn(to) => self.store(Queue::Host(number_of(&to)), item.message.clone()),
                    _ => self.store(Queue::Parking(decky), item.message.clone()),
                }
            }
        }
        if crash {
            self.crash(at);
            return true;
        }
        self.hosts[at].lanes.get_mut(&lane).expect("it has one").pop_front();
        self.ack(&item);
        true
    }

    fn crash(&mut self, at: usize) {
        let host = &mut self.hosts[at];
        host.places = Arc::new(Places::default());
        host.moves = Moves::new(HOSTS[at], host.places.clone());
        (host.alive, host.is_new) = (false, true);
        host.wanted.clear();
        host.lanes.clear();
        host.open.clear();
        host.closing.clear();
        for stored in self.queues.values_mut() {
            stored.delivered.retain(|_, holder| *holder != at);
        }
    }

    /// A host begins once whoever took its place has given its queue back.
    fn revive(&mut self, at: usize) {
        if self.hosts[at].alive {
            return;
        }
        for host in &mut self.hosts {
            host.lanes.retain(|(from, _), _| *from != at);
        }
        if let Some(stored) = self.queues.get_mut(&Queue::Host(at)) {
            stored.delivered.clear();
        }
        self.hosts[at].alive = true;
    }

    /// Everything that a live host can do, once; says whether anything came of it.
    fn turn(&mut self, at: usize) -> bool {
        if !self.hosts[at].alive {
            return false;
        }
        self.look(at);
        let mut is_busy = !self.hosts[at].wanted.is_empty();
        self.claim(at, None, false);
        let mut queues: Vec<Queue> = self.hosts[at].open.iter().map(|decky| Queue::Parking(decky)).collect();
        queues.push(Queue::Host(at));
        queues.extend((0..HOSTS.len()).filter(|other| !self.hosts[*other].alive).map(Queue::Host));
        for queue in queues {
            is_busy |= self.take(at, queue);
        }
        for lane in self.hosts[at].lanes.keys().copied().collect::<Vec<_>>() {
            is_busy |= self.step_lane(at, lane, false);
        }
        self.end_arrivals(at);
        is_busy
    }

    fn step(&mut self, what: u8, at: usize, decky: &'static str, detail: u8) {
        match what {
            0..=3 => self.publish(decky),
            4 => {
                let to = match detail % 8 {
                    0 => None,
                    n => Some(usize::from(n) % HOSTS.len()),
                };
                self.containers.insert(decky, to);
            }
            5 if detail < 40 => self.crash(at),
            5 => self.revive(at),
            _ if !self.hosts[at].alive => {}
            6 | 7 => self.look(at),
            8 => self.claim(at, (detail < 40).then_some(detail % 4), detail.is_multiple_of(2)),
            9..=11 => {
                self.take(at, Queue::Host(at));
            }
            12 if self.hosts[at].open.contains(decky) => {
                self.take(at, Queue::Parking(decky));
            }
            13 => {
                let other = usize::from(detail) % HOSTS.len();
                if !self.hosts[other].alive {
                    self.take(at, Queue::Host(other));
                }
            }
            14 => self.end_arrivals(at),
            _ => {
                let lanes: Vec<_> = self.hosts[at].lanes.keys().copied().collect();
                if let Some(lane) = lanes.get(usize::from(detail) % lanes.len().max(1)) {
                    self.step_lane(at, *lane, detail > 240);
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, max_shrink_iters: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn no_action_is_lost_and_the_order_of_each_decky_holds(
        steps in prop::collection::vec((0_u8..20, 0_usize..3, 0_usize..2, any::<u8>()), 1..250)
    ) {
        let mut world = World::new();
        for (n, decky) in DECKIES.into_iter().enumerate() {
            world.containers.insert(decky, Some(n));
        }
        for n in 0..20 {
            world.turn(n % 2);
        }
        for (what, at, decky, detail) in steps {
            world.step(what, at, DECKIES[decky], detail);
        }
        // In the end each decky runs somewhere, and all hosts but perhaps one are alive.
        for decky in DECKIES {
            let at = world.containers[decky].unwrap_or(1);
            world.containers.insert(decky, Some(at));
            world.revive(at);
        }
        let mut quiet = 0;
        for round in 0.. {
            prop_assert!(round < 20_000, "never at rest");
            let busy = (0..HOSTS.len()).filter(|at| world.turn(*at)).count();
            quiet = if busy > 0 { 0 } else { quiet + 1 };
            if quiet > 60 {
                break;
            }
        }
        for (decky, published) in &world.published {
            let mut first_runs = Vec::new();
            for n in &world.run.get(decky).cloned().unwrap_or_default() {
                if !first_runs.contains(n) {
                    first_runs.push(*n);
                }
            }
            prop_assert_eq!(first_runs, (1..=*published).collect::<Vec<u32>>(), "{}", decky);
        }
        for (queue, stored) in &world.queues {
            let mut actions = stored.messages.values().filter(|message| matches!(message, Message::Action(..)));
            prop_assert_eq!(actions.next(), None, "{:?}", queue);
        }
    }
}
