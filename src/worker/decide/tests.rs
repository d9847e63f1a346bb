use std::collections::HashMap;
use std::time::{Duration, Instant};

use chrono::DateTime;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use uuid::Uuid;

use super::*;
use crate::worker::memory::{Key, Memory, Seen, Submission};

#[test]
fn the_table_of_duplicates() {
    let (now, (_confirming, confirmed)) = (Instant::now(), watch::channel(true));
    let (pending, not_sent) = (Ack::Pending, Ack::NotSent);
    let (sent, in_doubt) = (Ack::Sent(now), Ack::InDoubt(now));
    let (retry, deferral, letter) = (Successor::Retry, Successor::Deferral, Successor::DeadLetter);
    let hand_back = Successor::HandBack;
    for (by, ack, is_dropped) in [
        (retry, pending, true),
        (retry, not_sent, true),
        (retry, in_doubt, true),
        (retry, sent, false),
        (deferral, pending, true),
        (deferral, not_sent, true),
        (deferral, in_doubt, true),
        (deferral, sent, false),
        (hand_back, pending, true),
        (hand_back, not_sent, true),
        (hand_back, in_doubt, true),
        (hand_back, sent, false),
        (letter, pending, true),
        (letter, not_sent, true),
        (letter, in_doubt, false),
        (letter, sent, false),
    ] {
        let replaced = || Known::Replaced { by, ack, confirmed: confirmed.clone() };
        assert_eq!(matches!(decide(replaced(), true), Decision::Drop { .. }), is_dropped, "{by:?} {ack:?}");
        assert!(matches!(decide(replaced(), false), Decision::Run), "a first delivery is a submission");
    }
    for redelivered in [false, true] {
        assert!(matches!(decide(Known::Nothing, redelivered), Decision::Run));
        assert!(matches!(decide(Known::Answered(answer(0)), redelivered), Decision::Answer(_)));
    }
}

/// Each is another body under the one id.
const BODIES: u64 = 2;

/// What happens in the model.
#[derive(Debug, Clone)]
enum Step {
    Submit(u64),
    /// A dead letter is submitted again, by its own id and as attempt 1.
    Resubmit(Index),
    /// A dead letter is replayed.
    Replay(Index),
    /// The next message is delivered.
    Deliver,
    /// A delivery begins or is answered.
    Begin(Index),
    /// A run ends.
    End(Index, Outcome),
    /// What waits in the delay queue goes back to the actions.
    Expire,
    /// The broker has seen all acks.
    Sync,
    /// The connection is lost, and with it the acks that the broker has not seen, or not all.
    Lose {
        acks_arrive: bool,
    },
    /// The worker is killed and another one starts.
    Crash,
    Wait,
}

#[derive(Debug, Clone, Copy)]
enum Outcome {
    Success,
    Failure,
    Deferral,
}

fn step() -> impl Strategy<Value = Step> {
    let index = any::<Index>;
    let outcome = prop_oneof![Just(Outcome::Success), Just(Outcome::Failure), Just(Outcome::Deferral)];
    prop_oneof![
        2 => (0..BODIES).prop_map(Step::Submit),
        2 => index().prop_map(Step::Resubmit),
        1 => index().prop_map(Step::Replay),
        6 => Just(Step::Deliver),
        6 => index().prop_map(Step::Begin),
        6 => (index(), outcome).prop_map(|(at, outcome)| Step::End(at, outcome)),
        2 => Just(Step::Expire),
        1 => Just(Step::Sync),
        3 => any::<bool>().prop_map(|acks_arrive| Step::Lose { acks_arrive }),
        1 => Just(Step::Crash),
        1 => Just(Step::Wait),
    ]
}

#[derive(Debug, Clone)]
struct Message {
    key: Key,
    redelivered: bool,
}

/// A delivery that the worker holds.
struct Held {
    message: Message,
    seen: Seen,
    is_lost: bool,
    is_running: bool,
    /// The worker has sent its ack, which the broker has not seen.
    is_acked: bool,
}

/// A broker with one worker, as far as duplicates go.
struct World {
    attempts_max: u32,
    memory: Memory,
    now: Instant,
    connection: u64,
    actions: Vec<Message>,
    delayed: Vec<Message>,
    dead: Vec<Message>,
    held: Vec<Held>,
    clock: usize,
    /// When each was submitted, and as what.
    submissions: Vec<(usize, Submission)>,
    /// When each had a result or a dead letter.
    ends: Vec<(usize, Submission)>,
    /// How many messages there were of each key; the worker cannot tell them apart.
    messages: HashMap<Key, usize>,
    /// How often each was run to its end.
    runs: HashMap<Key, usize>,
    /// Messages that the worker had when it was killed.
    crashed: Vec<Key>,
    /// Messages of which an ack was lost; they may be run again once their action has a dead letter.
    acks_lost: Vec<Key>,
    letters: Vec<Submission>,
}

fn answer(body: u64) -> Arc<Answer> {
    let body = body.to_be_bytes();
    let (id, routing_key, finished_at) = (Uuid::nil(), "".into(), DateTime::UNIX_EPOCH);
    Arc::new(Answer { id, routing_key, finished_at, body: Box::new(body) })
}

impl World {
    fn new(attempts_max: u32) -> Self {
        Self {
            attempts_max,
            memory: Memory::default(),
            now: Instant::now(),
            connection: 0,
            actions: Vec::new(),
            delayed: Vec::new(),
            dead: Vec::new(),
            held: Vec::new(),
            clock: 0,
            submissions: Vec::new(),
            ends: Vec::new(),
            messages: HashMap::new(),
            runs: HashMap::new(),
            crashed: Vec::new(),
            acks_lost: Vec::new(),
            letters: Vec::new(),
        }
    }

    fn message(&mut self, key: Key) -> Message {
        *self.messages.entry(key).or_default() += 1;
        Message { key, redelivered: false }
    }

    fn submit(&mut self, submission: Submission) {
        let message = self.message(Key { submission, attempt: 1, deferrals: 0 });
        self.submissions.push((self.clock, submission));
        self.actions.push(message);
    }

    fn step(&mut self, step: Step) {
        self.clock += 1;
        match step {
            Step::Submit(body) => self.submit(Submission { id: Uuid::nil(), replays: 0, body }),
            Step::Resubmit(at) if !self.dead.is_empty() => {
                let submission = at.get(&self.dead).key.submission;
                self.submit(submission);
            }
            Step::Replay(at) if !self.dead.is_empty() => {
                let letter = self.dead.swap_remove(at.index(self.dead.len()));
                let submission = letter.key.submission;
                self.submit(Submission { replays: submission.replays + 1, ..submission });
            }
            Step::Deliver if !self.actions.is_empty() => {
                let message = self.actions.remove(0);
                let seen =
                    Seen { key: message.key, redelivered: message.redelivered, connection: self.connection };
                let (is_lost, is_running, is_acked) = (false, false, false);
                self.held.push(Held { message, seen, is_lost, is_running, is_acked });
            }
            Step::Begin(at) if !self.held.is_empty() => self.begin(at.index(self.held.len())),
            Step::End(at, outcome) if !self.held.is_empty() => self.end(at.index(self.held.len()), outcome),
            Step::Expire => self.actions.append(&mut self.delayed),
            Step::Sync => self.held.retain(|held| !held.is_acked),
            Step::Lose { acks_arrive } => self.lose(acks_arrive),
            Step::Crash => {
                self.lose(false);
                let running: Vec<Held> = self.held.drain(..).collect();
                self.crashed.extend(running.iter().map(|held| held.message.key));
                self.crashed.extend(self.actions.iter().map(|message| message.key));
                self.memory = Memory::default();
                self.connection = 0;
            }
            // Acks arrive meanwhile, and what was given back is delivered before long.
            Step::Wait if self.actions.iter().all(|message| !message.redelivered) => {
                self.held.retain(|held| !held.is_acked);
                self.now += Duration::from_secs(20);
            }
            Step::Resubmit(_)
            | Step::Replay(_)
            | Step::Deliver
            | Step::Begin(_)
            | Step::End(..)
            | Step::Wait => {}
        }
    }

    /// What the broker has no ack of goes back to its queue; what runs goes on.
    fn lose(&mut self, acks_arrive: bool) {
        if acks_arrive {
            self.held.retain(|held| !held.is_acked);
        }
        self.connection += 1;
        self.memory.connection_lost(self.now);
        let mut given_back = Vec::new();
        for held in &mut self.held {
            if !std::mem::replace(&mut held.is_lost, true) {
                given_back.push(Message { redelivered: true, ..held.message.clone() });
            }
        }
        self.acks_lost.extend(self.held.iter().filter(|held| held.is_acked).map(|held| held.message.key));
        self.held.retain(|held| held.is_running && !held.is_acked);
        self.actions.splice(..0, given_back);
    }

    fn ack(&mut self, at: usize) {
        let (seen, is_lost) = (self.held[at].seen, self.held[at].is_lost);
        let ack = if is_lost { Ack::NotSent } else { Ack::Sent(self.now) };
        self.memory.settled(&seen, ack, self.now);
        if is_lost {
            self.held.remove(at);
        } else {
            (self.held[at].is_acked, self.held[at].is_running) = (true, false);
        }
    }

    fn begin(&mut self, at: usize) {
        let held = &self.held[at];
        // One lane: a message that runs has to end first.
        let is_busy = self.held.iter().any(|held| held.is_running);
        if is_busy || held.is_acked {
            return;
        }
        let submission = held.seen.key.submission;
        match decide(self.memory.recall(&held.seen, self.now), held.seen.redelivered) {
            Decision::Run => self.held[at].is_running = true,
            Decision::Answer(answer) => {
                assert_eq!(*answer.body, submission.body.to_be_bytes(), "the result of another body");
                self.ends.push((self.clock, submission));
                self.ack(at);
            }
            Decision::Drop { confirmed, .. } => {
                assert!(*confirmed.borrow(), "its successor is confirmed");
                self.ack(at);
            }
        }
    }

    fn end(&mut self, at: usize, outcome: Outcome) {
        if !self.held[at].is_running {
            return;
        }
        let seen = self.held[at].seen;
        let Key { submission, attempt, deferrals } = seen.key;
        if !matches!(outcome, Outcome::Deferral) {
            *self.runs.entry(seen.key).or_default() += 1;
        }
        let by = match outcome {
            Outcome::Success => {
                self.memory.answered(submission, answer(submission.body), self.now);
                self.ends.push((self.clock, submission));
                return self.ack(at);
            }
            Outcome::Deferral => Successor::Deferral,
            Outcome::Failure if attempt < self.attempts_max => Successor::Retry,
            Outcome::Failure => Successor::DeadLetter,
        };
        let confirming = self.memory.replacing(&seen, by, self.now);
        match by {
            Successor::Retry => {
                let message = self.message(Key { attempt: attempt + 1, ..seen.key });
                self.delayed.push(message);
            }
            Successor::Deferral | Successor::HandBack => {
                let message = self.message(Key { deferrals: deferrals + 1, ..seen.key });
                self.delayed.push(message);
            }
            Successor::DeadLetter => {
                self.dead.push(Message { key: seen.key, redelivered: false });
                self.ends.push((self.clock, submission));
                self.letters.push(submission);
            }
        }
        confirming.send_replace(true);
        self.ack(at);
    }

    /// Lets the worker go on until nothing is left to do.
    fn finish(&mut self) {
        for _ in 0..10_000 {
            self.step(Step::Sync);
            if self.held.is_empty() && self.actions.is_empty() && self.delayed.is_empty() {
                return;
            }
            self.step(Step::Expire);
            self.step(Step::Deliver);
            for at in 0..self.held.len() {
                self.begin(at.min(self.held.len() - 1));
                if let Some(at) = self.held.iter().position(|held| held.is_running) {
                    self.end(at, Outcome::Failure);
                }
                self.held.retain(|held| !held.is_acked);
                if self.held.is_empty() {
                    break;
                }
            }
        }
        panic!("the worker never gets done");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn every_submission_has_an_end_after_it_and_no_message_runs_twice_without_need(
        attempts_max in 1..=2_u32, steps in vec(step(), 1..80)
    ) {
        let mut world = World::new(attempts_max);
        for step in steps {
            world.step(step);
        }
        world.finish();
        for (at, submission) in &world.submissions {
            let is_ended = world.ends.iter().any(|(ended_at, of)| of == submission && ended_at >= at);
            prop_assert!(is_ended, "{submission:?} of {at} has no result and no dead letter after it");
        }
        for (key, runs) in &world.runs {
            let is_doubtful = world.acks_lost.contains(key) && world.letters.contains(&key.submission);
            let is_once = *runs <= world.messages[key] || is_doubtful || world.crashed.contains(key);
            prop_assert!(is_once, "{runs} runs of {} messages {key:?}", world.messages[key]);
        }
    }
}
