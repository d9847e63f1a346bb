//! One lane a decky: its actions run in order; different deckies run in parallel.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;

/// What is done with the items of a lane.
pub trait Work: Send + Sync + 'static {
    /// What waits in a lane.
    type Item: Send + 'static;

    /// Works on what came to the head of a lane, and on as much of what waits behind it as it takes.
    fn work(&self, first: Self::Item, turn: Turn<Self::Item>) -> impl Future<Output = ()> + Send;
}

/// A lane's turn: what waits behind the item that it began with.
pub struct Turn<I> {
    lane: String,
    lanes: Shared<I>,
    alive: Alive,
    /// Shared with what is still to be done for items that have been taken.
    unsettled: Arc<()>,
    concurrency: usize,
    /// Given back when the turn ends.
    _slot: OwnedSemaphorePermit,
}

/// Holds up the end of the lanes while it is there.
#[derive(Clone)]
pub struct Alive {
    /// Nothing is ever sent: the receiver hears when the last sender is gone.
    _sender: mpsc::Sender<()>,
    _turn: Option<Arc<()>>,
}

impl<I> Turn<I> {
    /// The next item, if it is `wanted`; else it stays for another turn.
    pub fn next_if(&self, wanted: impl FnOnce(&I) -> bool) -> Option<I> {
        let mut waiting = lock(&self.lanes);
        let lane = waiting.lanes.get_mut(&self.lane)?;
        lane.moved_at = Instant::now();
        if lane.queue.front().is_some_and(wanted) { lane.queue.pop_front() } else { None }
    }

    /// How many of the items at the head of what waits are `wanted`.
    pub fn count(&self, wanted: impl Fn(&I) -> bool) -> usize {
        let waiting = lock(&self.lanes);
        waiting
            .lanes
            .get(&self.lane)
            .map_or(0, |lane| lane.queue.iter().take_while(|item| wanted(item)).count())
    }

    /// Lets the lanes end only after what is still to be done for items that have been taken.
    pub fn alive(&self) -> Alive {
        if let Some(lane) = lock(&self.lanes).lanes.get_mut(&self.lane) {
            lane.moved_at = Instant::now();
        }
        Alive { _turn: Some(self.unsettled.clone()), ..self.alive.clone() }
    }

    /// Whether others wait for the slot that this turn has.
    pub fn is_wanted(&self) -> bool {
        lock(&self.lanes).lanes.len() > self.concurrency
    }

    /// Whether there still is something to be done for items that have been taken.
    pub fn has_unsettled(&self) -> bool {
        Arc::strong_count(&self.unsettled) > 1
    }

    /// What `look` says of the next item; `None` where none waits.
    pub fn peek<T>(&self, look: impl FnOnce(&I) -> T) -> Option<T> {
        lock(&self.lanes).lanes.get(&self.lane)?.queue.front().map(look)
    }
}

/// The lanes that have items.
pub struct Lanes<W: Work> {
    work: Arc<W>,
    waiting: Shared<W::Item>,
    slots: Arc<Semaphore>,
    concurrency: usize,
    running: JoinSet<()>,
    alive: Alive,
    ended: mpsc::Receiver<()>,
}

type Shared<I> = Arc<Mutex<Waiting<I>>>;

struct Waiting<I> {
    lanes: HashMap<String, Lane<I>>,
    closed: bool,
}

struct Lane<I> {
    queue: VecDeque<I>,
    /// Whether it has a slot.
    is_running: bool,
    /// When something was begun or came to its end there.
    moved_at: Instant,
}

fn lock<I>(waiting: &Shared<I>) -> MutexGuard<'_, Waiting<I>> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<W: Work> Lanes<W> {
    /// Lanes of which at most `concurrency` are worked on at once.
    #[must_use]
    pub fn new(work: Arc<W>, concurrency: usize) -> Self {
        let waiting = Waiting { lanes: HashMap::new(), closed: false };
        let (sender, ended) = mpsc::channel(1);
        Self {
            work,
            waiting: Arc::new(Mutex::new(waiting)),
            slots: Arc::new(Semaphore::new(concurrency)),
            concurrency,
            running: JoinSet::new(),
            alive: Alive { _sender: sender, _turn: None },
            ended,
        }
    }

    /// Puts an item at the end of a lane.
    pub fn push(&mut self, lane: String, item: W::Item) {
        while self.running.try_join_next().is_some() {}
        let mut waiting = lock(&self.waiting);
        if waiting.closed {
            return;
        }
        if let Some(lane) = waiting.lanes.get_mut(&lane) {
            lane.queue.push_back(item);
            return;
        }
        let fresh = Lane { queue: VecDeque::from([item]), is_running: false, moved_at: Instant::now() };
        waiting.lanes.insert(lane.clone(), fresh);
        drop(waiting);
        let (work, waiting, slots) = (self.work.clone(), self.waiting.clone(), self.slots.clone());
        let concurrency = self.concurrency;
        // Boxed, as the runtime's own allocations of this size leave memory in pieces too small to use.
        self.running.spawn(Box::pin(run_lane(lane, work, waiting, slots, concurrency, self.alive.clone())));
    }

    /// Takes what waits in lanes where nothing has moved for `time`, in its order; of each lane all that
    /// `may_wait`, or as many as are too much where nothing is held up by them.
    pub fn take_stuck(
        &self,
        time: Duration,
        is_holding_up: impl Fn(&W::Item) -> bool,
        may_wait: impl Fn(&W::Item) -> bool,
        waiting_max: usize,
    ) -> Vec<W::Item> {
        let mut taken = Vec::new();
        for lane in lock(&self.waiting).lanes.values_mut() {
            let is_stuck = lane.is_running && lane.moved_at.elapsed() >= time;
            let Some(first) = lane.queue.front().filter(|_| is_stuck) else { continue };
            let kept = if is_holding_up(first) { 0 } else { waiting_max };
            let end = lane.queue.iter().take_while(|item| may_wait(item)).count();
            taken.extend(lane.queue.drain(kept.min(end)..end));
        }
        taken
    }

    /// Lets the lanes end only after what is still to be done for items that were taken from them.
    pub fn alive(&self) -> Alive {
        self.alive.clone()
    }

    /// Drops what has not started and `is_lost`; what runs goes on.
    pub fn forget_waiting(&mut self, is_lost: impl Fn(&W::Item) -> bool) {
        let mut dropped: Vec<VecDeque<W::Item>> = Vec::new();
        let mut waiting = lock(&self.waiting);
        for lane in waiting.lanes.values_mut() {
            let (lost, kept) = std::mem::take(&mut lane.queue).into_iter().partition(&is_lost);
            lane.queue = kept;
            dropped.push(lost);
        }
        drop(waiting);
        drop(dropped);
    }

    /// Drops what has not started and waits for what has.
    pub async fn finish(&mut self) {
        let dropped = {
            let mut waiting = lock(&self.waiting);
            waiting.closed = true;
            std::mem::take(&mut waiting.lanes)
        };
        drop(dropped);
        let (sender, _) = mpsc::channel(1);
        self.alive = Alive { _sender: sender, _turn: None };
        while self.ended.recv().await.is_some() {}
    }

    /// Ends what runs where it stands.
    pub async fn abort(&mut self) {
        self.running.shutdown().await;
    }
}

async fn run_lane<W: Work>(
    lane: String,
    work: Arc<W>,
    lanes: Shared<W::Item>,
    slots: Arc<Semaphore>,
    concurrency: usize,
    alive: Alive,
) {
    loop {
        {
            let mut waiting = lock(&lanes);
            if waiting.lanes.get(&lane).is_none_or(|lane| lane.queue.is_empty()) {
                waiting.lanes.remove(&lane);
                return;
            }
        }
        // What has arrived with the first item is to be there when its turn begins.
        tokio::task::yield_now().await;
        // The semaphore is never closed.
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        let first = lock(&lanes).lanes.get_mut(&lane).and_then(|lane| {
            (lane.is_running, lane.moved_at) = (true, Instant::now());
            lane.queue.pop_front()
        });
        if let Some(first) = first {
            let (alive, unsettled) = (alive.clone(), Arc::new(()));
            let turn =
                Turn { lane: lane.clone(), lanes: lanes.clone(), alive, unsettled, concurrency, _slot: slot };
            work.work(first, turn).await;
        }
        if let Some(lane) = lock(&lanes).lanes.get_mut(&lane) {
            lane.is_running = false;
        }
    }
}
