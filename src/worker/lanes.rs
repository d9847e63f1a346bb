//! One lane a decky: its actions run in order, one at a time; different deckies run in parallel.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Semaphore;
use tokio::task::JoinSet;

type Job = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The lanes that have work.
pub struct Lanes {
    waiting: Arc<Mutex<Waiting>>,
    slots: Arc<Semaphore>,
    running: JoinSet<()>,
}

#[derive(Default)]
struct Waiting {
    lanes: HashMap<String, VecDeque<Job>>,
    closed: bool,
}

impl Lanes {
    /// Lanes of which at most `concurrency` run at once.
    #[must_use]
    pub fn new(concurrency: usize) -> Self {
        Self {
            waiting: Arc::default(),
            slots: Arc::new(Semaphore::new(concurrency)),
            running: JoinSet::new(),
        }
    }

    /// Puts a job at the end of a lane.
    pub fn push(&mut self, lane: String, job: impl Future<Output = ()> + Send + 'static) {
        while self.running.try_join_next().is_some() {}
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.closed {
            return;
        }
        if let Some(queue) = waiting.lanes.get_mut(&lane) {
            queue.push_back(Box::pin(job));
            return;
        }
        waiting.lanes.insert(lane.clone(), VecDeque::from([Box::pin(job) as Job]));
        drop(waiting);
        self.running.spawn(run_lane(lane, self.waiting.clone(), self.slots.clone()));
    }

    /// Drops what has not started; what runs goes on.
    pub fn forget_waiting(&mut self) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let dropped: Vec<VecDeque<Job>> = waiting.lanes.values_mut().map(std::mem::take).collect();
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

async fn run_lane(lane: String, waiting: Arc<Mutex<Waiting>>, slots: Arc<Semaphore>) {
    loop {
        // The semaphore is never closed.
        let Ok(_slot) = slots.acquire().await else { return };
        let job = {
            let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
            match waiting.lanes.get_mut(&lane).and_then(VecDeque::pop_front) {
                Some(job) => job,
                None => {
                    waiting.lanes.remove(&lane);
                    return;
                }
            }
        };
        job.await;
    }
}
