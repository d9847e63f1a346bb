use super::*;

const MEBIBYTE: usize = 1024 * 1024;
const LARGEST: usize = 4 * MEBIBYTE / 3 * 4 + 64 * 1024;
const BUDGET: Budget = Budget {
    memory_bytes: 256 * MEBIBYTE,
    running: 8,
    body_bytes_max: LARGEST,
    copies_bytes_max: 4 * MEBIBYTE + LARGEST,
};

/// A worker's partitions, and the broker's side of them.
struct Broker {
    turns: Turns,
    waiting: Vec<VecDeque<usize>>,
    held: Vec<Option<usize>>,
    is_paused: Vec<bool>,
    taken: Vec<usize>,
    steps: usize,
}

impl Broker {
    fn new(partitions: usize) -> Self {
        Self {
            turns: Turns::new(BUDGET),
            waiting: vec![VecDeque::new(); partitions],
            held: vec![None; partitions],
            is_paused: vec![false; partitions],
            taken: vec![0; partitions],
            steps: 0,
        }
    }

    fn queues(&self) -> Vec<Held> {
        let queues = self.held.iter().enumerate();
        queues.map(|(n, held)| Held { queue: n.to_string(), is_held: held.is_some() }).collect()
    }

    fn obey(&mut self, steps: Vec<Step>) {
        for step in steps {
            self.steps += 1;
            let (queue, is_paused) = match step {
                Step::Pause(queue) => (queue, true),
                Step::Resume(queue) => (queue, false),
            };
            let n: usize = queue.parse().unwrap();
            assert_ne!(self.is_paused[n], is_paused, "a step that changes nothing");
            assert!(is_paused || self.held[n].is_none(), "a queue has one delivery at a time");
            self.is_paused[n] = is_paused;
        }
    }

    fn balance(&mut self) {
        let steps = self.turns.steps(&self.queues(), 0);
        self.obey(steps);
    }

    /// Delivers all that may be delivered, one after the other.
    fn deliver(&mut self) {
        while let Some(n) = (0..self.held.len())
            .find(|&n| !self.is_paused[n] && self.held[n].is_none() && !self.waiting[n].is_empty())
        {
            let bytes = self.waiting[n].pop_front().unwrap();
            (self.held[n], self.taken[n]) = (Some(bytes), self.taken[n] + 1);
            if self.turns.delivered(&n.to_string(), bytes) {
                self.balance();
            }
        }
    }

    fn settle(&mut self, n: usize) {
        self.held[n] = None;
        if self.turns.are_taken() {
            self.balance();
        }
    }

    fn tick(&mut self) {
        let waiting = self.waiting.clone();
        let has_messages = |queue: &str| !waiting[queue.parse::<usize>().unwrap()].is_empty();
        let steps = self.turns.pass_on(&self.queues(), has_messages, 0);
        self.obey(steps.into_iter().map(Step::Pause).collect());
        self.balance();
    }
}

#[test]
fn bodies_take_their_length_and_those_that_run_their_copies() {
    let budget = Budget { memory_bytes: 1000, running: 1, body_bytes_max: 120, copies_bytes_max: 250 };
    assert_eq!(budget.weight(vec![30, 60, 30]), 60 + 60 + 80 + 30 + 30);
    assert_eq!(budget.room(&[], 64), 6, "370 for the one that runs, 120 for each other");
    assert_eq!((budget.room(&[700], 64), budget.room(&[400], 64)), (0, 2));
}

#[test]
fn any_mix_of_bodies_over_all_partitions_stays_within_memory_and_all_get_their_turn() {
    let mut broker = Broker::new(64);
    broker.balance();
    for waiting in &mut broker.waiting {
        waiting.extend([1000, LARGEST, LARGEST, 1000, LARGEST]);
    }
    let mut at_once_most = 0;
    broker.tick();
    for round in 0..10_000 {
        broker.deliver();
        let consumed = (0..64).filter(|&n| !broker.is_paused[n]);
        let held = (0..64).filter(|&n| broker.is_paused[n]).filter_map(|n| broker.held[n]);
        let worst = BUDGET.weight(held.chain(consumed.map(|_| LARGEST)).collect());
        assert!(worst <= BUDGET.memory_bytes, "{} MiB", worst / MEBIBYTE);
        at_once_most = at_once_most.max(broker.held.iter().flatten().count());
        match (0..64).map(|n| (n + round) % 64).find(|&n| broker.held[n].is_some()) {
            Some(n) => broker.settle(n),
            None if broker.waiting.iter().all(VecDeque::is_empty) => break,
            None => broker.tick(),
        }
        let (least, most) = (broker.taken.iter().min().unwrap(), broker.taken.iter().max().unwrap());
        assert!(most - least <= 3, "partitions take turns: {:?}", broker.taken);
    }
    assert!(broker.taken.iter().all(|taken| *taken == 5), "{:?}", broker.taken);
    assert!(at_once_most >= 32, "memory is made use of: {at_once_most}");
}

#[test]
fn turns_of_empty_partitions_pass_on_and_nothing_changes_while_all_are_empty() {
    let mut broker = Broker::new(64);
    broker.balance();
    broker.tick();
    let before = broker.steps;
    broker.tick();
    broker.tick();
    assert_eq!(broker.steps, before, "nothing waits anywhere");
    let paused = broker.is_paused.iter().position(|is_paused| *is_paused).unwrap();
    broker.waiting[paused].push_back(LARGEST);
    broker.tick();
    broker.deliver();
    assert!(broker.held[paused].is_some());
}

#[test]
fn a_body_over_the_limit_is_taken_alone() {
    let mut broker = Broker::new(64);
    broker.balance();
    broker.waiting[3].extend([300 * MEBIBYTE; 2]);
    broker.waiting[63].push_back(1000);
    for _ in 0..6 {
        broker.tick();
        broker.deliver();
        (0..64).for_each(|n| {
            if broker.held[n].is_some() {
                broker.settle(n);
            }
        });
    }
    assert!(broker.waiting.iter().all(VecDeque::is_empty));
}
