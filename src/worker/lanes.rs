//! One lane a decky: its actions run in order; different deckies run in parallel.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// What is done with the items of a lane.
pub trait Work: Send + Sync + 'static {
    /// What waits in a lane.
    type Item: Send + 'static;

    /// Whether `next`, which waits behind `taken`, can be worked on together with it.
    fn joins(&self, taken: &[Self::Item], next: &Self::Item) -> bool;
    /// Works on what came to the head of a lane; at least one item.
    fn work(&self, items: Vec<Self::Item>) -> impl Future<Output = ()> + Send;
}

/// The lanes that have items.
pub struct Lanes<W: Work> {
    work: Arc<W>,
    waiting: Arc<Mutex<Waiting<W::Item>>>,
    slots: Arc<Semaphore>,
    running: JoinSet<()>,
}

struct Waiting<I> {
    lanes: HashMap<String, VecDeque<I>>,
    closed: bool,
}

impl<W: Work> Lanes<W> {
    /// Lanes of which at most `concurrency` are worked on at once.
    #[must_use]
    pub fn new(work: Arc<W>, concurrency: usize) -> Self {
        let waiting = Waiting { lanes: HashMap::new(), closed: false };
        Self {
            work,
            waiting: Arc::new(Mutex::new(waiting)),
            slots: Arc::new(Semaphore::new(concurrency)),
            running: JoinSet::new(),
        }
    }

    /// Puts an item at the end of a lane.
    pub fn push(&mut self, lane: String, item: W::Item) {
        while self.running.try_join_next().is_some() {}
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.closed {
            return;
        }
        if let Some(queue) = waiting.lanes.get_mut(&lane) {
            queue.push_back(item);
            return;
        }
        waiting.lanes.insert(lane.clone(), VecDeque::from([item]));
        drop(waiting);
        let (work, waiting, slots) = (self.work.clone(), self.waiting.clone(), self.slots.clone());
        self.running.spawn(run_lane(lane, work, waiting, slots));
    }

    /// Drops what has not started; what runs goes on.
    pub fn forget_waiting(&mut self) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let dropped: Vec<VecDeque<W::Item>> = waiting.lanes.values_mut().map(std::mem::take).collect();
        drop(waiting);
        drop(dropped);
    }

    /// Drops what has not started and waits for what has.
    pub async fn finish(&mut self) {
        let dropped = {
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            waiting.closed = true;
            std::mem::take(&mut waiting.lanes)
        };
        drop(dropped);
        while self.running.join_next().await.is_some() {}
    }

    /// Ends what runs where it stands.
    pub async fn abort(&mut self) {
        self.running.shutdown().await;
    }
}

async fn run_lane<W: Work>(
    lane: String,
    work: Arc<W>,
    waiting: Arc<Mutex<Waiting<W::Item>>>,
    slots: Arc<Semaphore>,
) {
    loop {
        // The semaphore is never closed.
        let Ok(_slot) = slots.acquire().await else { return };
        let items = {
            let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
            let items = waiting.lanes.get_mut(&lane).map(|queue| head(&*work, queue)).unwrap_or_default();
            if items.is_empty() {
                waiting.lanes.remove(&lane);
                return;
            }
            items
        };
        work.work(items).await;
    }
}

/// The first item, and those behind it that join it.
fn head<W: Work>(work: &W, queue: &mut VecDeque<W::Item>) -> Vec<W::Item> {
    let mut items: Vec<W::Item> = queue.pop_front().into_iter().collect();
    while queue.front().is_some_and(|next| work.joins(&items, next)) {
        items.extend(queue.pop_front());
    }
    items
}
