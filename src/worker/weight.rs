//! Keeps `--memory` where a worker consumes more partitions than bodies of the largest size fit: pure.
//!
//! Each partition has a prefetch of one, and may bring a largest body as long as it is consumed. Bodies that
//! are held count with their real lengths. Only as many partitions are consumed as fit by that; they take turns,
//! those with messages first. Deliveries are never given back, so order holds.

use std::collections::{HashMap, HashSet, VecDeque};

/// The bound on the memory that bodies take.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    /// The bound, in bytes.
    pub memory_bytes: usize,
    /// How many actions run at once.
    pub running: usize,
    /// The largest body, in bytes.
    pub body_bytes_max: usize,
    /// The decoded content and the newly encoded message of one that runs, in bytes at most.
    pub copies_bytes_max: usize,
}

impl Budget {
    /// The memory that bodies of these lengths take, in bytes: each is held once, and the largest ones run,
    /// where the content is decoded and the message is encoded anew.
    fn weight(&self, mut lengths: Vec<usize>) -> usize {
        lengths.sort_unstable_by(|a, b| b.cmp(a));
        // Text is as long as its part of the body, and a third longer as base64.
        let copies = lengths.iter().map(|length| (length + length / 3 * 4).min(self.copies_bytes_max));
        lengths.iter().sum::<usize>() + copies.take(self.running).sum::<usize>()
    }

    /// How many further bodies of the largest size fit, `most` at most.
    fn room(&self, held: &[usize], most: usize) -> usize {
        let fits = |count: usize| {
            let further = std::iter::repeat_n(self.body_bytes_max, count);
            self.weight(held.iter().copied().chain(further).collect()) <= self.memory_bytes
        };
        let counts: Vec<usize> = (1..=most).collect();
        counts.partition_point(|count| fits(*count))
    }
}

/// A partition that this worker has.
#[derive(Debug, Clone)]
pub struct Held {
    /// The queue's name.
    pub queue: String,
    /// Whether a delivery of it is not settled yet.
    pub is_held: bool,
}

/// A change to a partition that this worker keeps in any case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Take nothing more from it.
    Pause(String),
    /// Consume from it again.
    Resume(String),
}

/// Decides which of a worker's partitions are consumed.
#[derive(Debug)]
pub struct Turns {
    budget: Budget,
    /// The last body of each queue, in bytes.
    lengths: HashMap<String, usize>,
    /// The queues that are paused, in the order of their turns.
    line: VecDeque<String>,
    /// The queues in which messages may wait.
    ready: HashSet<String>,
}

impl Turns {
    /// Turns in which all partitions are consumed so far.
    pub fn new(budget: Budget) -> Self {
        Self { budget, lengths: HashMap::new(), line: VecDeque::new(), ready: HashSet::new() }
    }

    /// Begins with a new connection.
    pub fn begin(&mut self) {
        self.line.clear();
        self.lengths.clear();
        self.ready.clear();
    }

    /// Forgets a queue that was given up.
    pub fn forget(&mut self, queue: &str) {
        self.line.retain(|waiting| waiting != queue);
        self.lengths.remove(queue);
        self.ready.remove(queue);
    }

    /// Whether partitions take turns.
    pub fn are_taken(&self) -> bool {
        !self.line.is_empty()
    }

    /// Notes a delivery; says whether the queues have to be looked at.
    pub fn delivered(&mut self, queue: &str, bytes: usize) -> bool {
        match self.lengths.get_mut(queue) {
            Some(length) => *length = bytes,
            None => drop(self.lengths.insert(queue.to_owned(), bytes)),
        }
        self.are_taken()
    }

    /// How many more queues may be consumed; below zero where it is too many already.
    pub fn room(&self, queues: &[Held]) -> isize {
        let (paused, consumed): (Vec<&Held>, Vec<&Held>) =
            queues.iter().partition(|held| self.line.contains(&held.queue));
        // What a queue that is consumed holds makes way for a largest body at any time.
        let lengths = paused.into_iter().filter(|held| held.is_held);
        let lengths = lengths.map(|held| self.lengths.get(&held.queue).copied());
        let lengths: Vec<usize> =
            lengths.map(|length| length.unwrap_or(self.budget.body_bytes_max)).collect();
        // One more than it has itself: it may be about to have one more.
        let room = self.budget.room(&lengths, queues.len() + 1);
        // A body over the limit is taken too, alone.
        let room = room.max(usize::from(lengths.is_empty()));
        room.cast_signed() - consumed.len().cast_signed()
    }

    /// The queues that are consumed, and hold a delivery or not.
    fn consumed(&self, queues: &[Held], is_held: bool) -> Vec<String> {
        let consumed =
            queues.iter().filter(|held| held.is_held == is_held && !self.line.contains(&held.queue));
        consumed.map(|held| held.queue.clone()).collect()
    }

    /// The next steps; `unopened` queues have not been opened yet.
    pub fn steps(&mut self, queues: &[Held], unopened: usize) -> Vec<Step> {
        let held: HashSet<&str> =
            queues.iter().filter(|held| held.is_held).map(|held| held.queue.as_str()).collect();
        let due = self.line.iter().filter(|queue| self.is_due(queue, &held)).count() + unopened;
        let wanted = due.saturating_sub(self.room(queues).max(0).unsigned_abs());
        // These had their turn; more of theirs may wait.
        let mut paused: Vec<String> = self.consumed(queues, true).into_iter().take(wanted).collect();
        self.line.extend(paused.iter().cloned());
        let mut room = self.room(queues);
        let surplus = self.consumed(queues, false).into_iter().rev().take(room.min(0).unsigned_abs());
        paused.extend(surplus);
        for queue in &paused {
            self.ready.insert(queue.clone());
            if !self.line.contains(queue) {
                self.line.push_back(queue.clone());
            }
        }
        let mut steps: Vec<Step> = paused.into_iter().map(Step::Pause).collect();
        while room > 0
            && let Some(at) = self.line.iter().position(|queue| self.is_due(queue, &held))
            && let Some(queue) = self.line.remove(at)
        {
            self.ready.remove(&queue);
            steps.push(Step::Resume(queue));
            room -= 1;
        }
        steps
    }

    /// Whether a queue that is paused may have a message, and none of it is held.
    fn is_due(&self, queue: &str, held: &HashSet<&str>) -> bool {
        self.ready.contains(queue) && !held.contains(queue)
    }

    /// Ends the turns of empty queues that others wait for, and returns those to pause: queues that have
    /// messages, and `unopened` ones, come before them.
    pub fn pass_on(
        &mut self,
        queues: &[Held],
        has_messages: impl Fn(&str) -> bool,
        unopened: usize,
    ) -> Vec<String> {
        self.ready.retain(|queue| has_messages(queue));
        self.ready.extend(self.line.iter().filter(|queue| has_messages(queue)).cloned());
        let held: HashSet<&str> =
            queues.iter().filter(|held| held.is_held).map(|held| held.queue.as_str()).collect();
        let due = self.line.iter().filter(|queue| self.is_due(queue, &held)).count();
        let wanted = (due + unopened).saturating_sub(self.room(queues).max(0).unsigned_abs());
        let empty = self.consumed(queues, false).into_iter().filter(|queue| !has_messages(queue));
        let empty: Vec<String> = empty.take(wanted).collect();
        self.line.extend(empty.iter().cloned());
        empty
    }
}

#[cfg(test)]
mod tests;
