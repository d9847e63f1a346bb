//! Which queues are consumed, and how much of each at once.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep_until};
use tracing::{info, warn};

use super::share::{Partition, Step, steps};
use crate::action::DeckyName;
use crate::broker::{AmqpConsumer, BrokerError, Layout, Queue, Topology};

/// How often the partitions are shared out anew.
const SHARE_INTERVAL: Duration = Duration::from_secs(1);
/// A queue that gives nothing for so long at the start has nothing that brings a worker down.
const QUIET_TIME: Duration = Duration::from_millis(300);
/// At most so many deliveries are held of one decky's own queue: a batch's worth.
const DECKY_PREFETCH_MAX: u16 = 64;

/// The deckies that run on this worker's engine; `None` until the engine has told.
pub type Residents = watch::Receiver<Option<BTreeSet<DeckyName>>>;

/// Why the queues have to be looked at.
pub enum Cue {
    /// It is time to share out the partitions.
    Share,
    /// Deckies came or went.
    Residents,
    /// The queue that was opened last gives nothing.
    Quiet,
}

/// Chooses the queues of one worker.
pub struct Intake {
    topology: Topology,
    /// How many deliveries may be held in all.
    prefetch: u16,
    residents: Option<Residents>,
    /// How many deliveries of a queue are held at most for now: what was delivered before may be what ended
    /// this process's predecessor, so at first they are taken one at a time, then ever more.
    window: u16,
    /// What is still to be opened.
    pending: VecDeque<Queue>,
    quiet_at: Option<Instant>,
    shares: Interval,
    /// How much of each open queue is held at most.
    allotted: HashMap<String, u16>,
    said: String,
}

impl Intake {
    pub fn new(topology: Topology, prefetch: u16, residents: Option<Residents>) -> Self {
        let mut shares = interval(SHARE_INTERVAL);
        shares.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (pending, allotted) = (VecDeque::new(), HashMap::new());
        let (window, quiet_at, said) = (1, None, String::new());
        Self { topology, prefetch, residents, window, pending, quiet_at, shares, allotted, said }
    }

    /// Begins with a new connection.
    pub async fn begin(&mut self, consumer: &mut AmqpConsumer) -> Result<(), BrokerError> {
        self.pending.clear();
        self.allotted.clear();
        self.said.clear();
        self.quiet_at = None;
        match self.topology.layout {
            Layout::Shared => {
                self.pending.extend(self.topology.action_queues());
                self.open_pending(consumer).await
            }
            Layout::Partitioned(_) => self.follow(Cue::Share, consumer).await,
            Layout::Local => self.follow(Cue::Residents, consumer).await,
        }
    }

    /// Waits until the queues have to be looked at; nothing is lost where this is cancelled.
    pub async fn cue(&mut self) -> Cue {
        let is_partitioned = matches!(self.topology.layout, Layout::Partitioned(_));
        let residents = async {
            let is_new = match &mut self.residents {
                Some(residents) => residents.changed().await.is_ok(),
                None => false,
            };
            if !is_new {
                std::future::pending::<()>().await;
            }
        };
        let quiet_at = self.quiet_at.unwrap_or_else(Instant::now);
        tokio::select! {
            _ = self.shares.tick(), if is_partitioned => Cue::Share,
            () = residents => Cue::Residents,
            () = sleep_until(quiet_at), if self.quiet_at.is_some() => Cue::Quiet,
        }
    }

    /// Takes and gives up queues as things are now.
    pub async fn follow(&mut self, cue: Cue, consumer: &mut AmqpConsumer) -> Result<(), BrokerError> {
        match cue {
            Cue::Share => self.share_out(consumer).await?,
            Cue::Residents => self.follow_residents(consumer).await?,
            Cue::Quiet => self.quiet_at = None,
        }
        self.open_pending(consumer).await
    }

    /// Whether fewer are taken at once than may be.
    pub fn is_careful(&self) -> bool {
        self.window < self.prefetch
    }

    /// Takes twice as many at once, now that a delivery was settled.
    pub async fn open_further(&mut self, consumer: &mut AmqpConsumer) -> Result<(), BrokerError> {
        self.open_to(self.window.saturating_mul(2), consumer).await
    }

    /// Takes as many at once as may be, now that one came that nobody was given before.
    pub async fn open_up(&mut self, consumer: &mut AmqpConsumer) -> Result<(), BrokerError> {
        self.open_to(self.prefetch, consumer).await
    }

    async fn open_to(&mut self, window: u16, consumer: &mut AmqpConsumer) -> Result<(), BrokerError> {
        let before = self.window;
        self.window = window.min(self.prefetch);
        self.quiet_at = None;
        let open: Vec<String> = consumer.queues().map(|(queue, _)| queue.to_owned()).collect();
        for queue in open {
            let allotted = self.allot(&queue);
            if allotted.min(before) < allotted.min(self.window) {
                consumer.open_up(&queue, allotted.min(self.window)).await?;
            }
        }
        self.open_pending(consumer).await
    }

    /// Opens what is to be opened: all of it, or, with care, one after the other.
    async fn open_pending(&mut self, consumer: &mut AmqpConsumer) -> Result<(), BrokerError> {
        while self.quiet_at.is_none()
            && let Some(queue) = self.pending.pop_front()
        {
            let prefetch = self.allot(&queue.name);
            if prefetch == 0 {
                warn!(
                    "nothing is taken from {}: --memory allows no more than {} deliveries at once",
                    queue.name, self.prefetch
                );
                continue;
            }
            if !self.is_careful() {
                consumer.open(&queue.name, prefetch).await?;
                continue;
            }
            let depths = consumer.survey(std::slice::from_ref(&queue)).await?;
            consumer.open(&queue.name, prefetch.min(self.window)).await?;
            if depths.iter().any(|depth| depth.messages > 0) {
                self.quiet_at = Some(Instant::now() + QUIET_TIME);
            }
        }
        self.say(consumer);
        Ok(())
    }

    /// How many deliveries of a queue may be held at once.
    fn allot(&mut self, queue: &str) -> u16 {
        let held: u16 = self.allotted.iter().filter(|(name, _)| *name != queue).map(|(_, held)| *held).sum();
        let left = self.prefetch.saturating_sub(held);
        let wanted = match self.topology.layout {
            Layout::Shared => self.prefetch,
            Layout::Partitioned(count) => self.prefetch / count.max(1),
            Layout::Local => {
                // Half is kept for deckies that come later.
                let deckies =
                    self.residents.as_ref().and_then(|known| known.borrow().as_ref().map(BTreeSet::len));
                let deckies = u16::try_from(deckies.unwrap_or(0).max(1)).unwrap_or(u16::MAX);
                (self.prefetch / 2 / deckies).min(DECKY_PREFETCH_MAX)
            }
        };
        let allotted = wanted.max(1).min(left);
        self.allotted.insert(queue.to_owned(), allotted);
        allotted
    }

    fn give_up(&mut self, queue: &str, consumer: &mut AmqpConsumer) {
        self.allotted.remove(queue);
        consumer.withdraw(queue);
    }

    async fn share_out(&mut self, consumer: &mut AmqpConsumer) -> Result<(), BrokerError> {
        let queues = self.topology.action_queues();
        let Some(presence) = self.topology.workers_queue() else { return Ok(()) };
        let workers = consumer.survey(&[presence]).await?.first().map_or(1, |depth| depth.consumers);
        let depths = consumer.survey(&queues).await?;
        let mine: HashMap<&str, bool> = consumer.queues().collect();
        let is_pending = |queue: &Queue| self.pending.iter().any(|pending| pending.name == queue.name);
        let partition = |(queue, depth): (&Queue, _)| Partition {
            is_mine: mine.contains_key(queue.name.as_str()) || is_pending(queue),
            has_delivered: mine.get(queue.name.as_str()).copied().unwrap_or_default(),
            depth,
        };
        let partitions: Vec<Partition> = queues.iter().zip(depths).map(partition).collect();
        // The standard library seeds each of these anew; no better randomness is needed.
        let chance = RandomState::new().hash_one(());
        for step in steps(&partitions, workers, chance) {
            match step {
                Step::Take(at) => self.pending.push_back(queues[at].clone()),
                Step::GiveUp(at) => {
                    self.pending.retain(|pending| pending.name != queues[at].name);
                    self.give_up(&queues[at].name, consumer);
                }
            }
        }
        Ok(())
    }

    async fn follow_residents(&mut self, consumer: &mut AmqpConsumer) -> Result<(), BrokerError> {
        let Some(residents) = &mut self.residents else { return Ok(()) };
        let Some(deckies) = residents.borrow_and_update().clone() else { return Ok(()) };
        let queues: HashMap<String, Queue> = deckies
            .iter()
            .map(|decky| self.topology.decky_queue(decky))
            .map(|queue| (queue.name.clone(), queue))
            .collect();
        let open: Vec<String> = consumer.queues().map(|(queue, _)| queue.to_owned()).collect();
        for gone in open.iter().filter(|queue| !queues.contains_key(*queue)) {
            self.give_up(gone, consumer);
        }
        self.pending.retain(|queue| queues.contains_key(&queue.name));
        for (name, queue) in queues {
            if !open.contains(&name) && !self.pending.iter().any(|pending| pending.name == name) {
                consumer.bring_about(&queue).await?;
                self.pending.push_back(queue);
            }
        }
        Ok(())
    }

    /// Tells what is consumed, when that has changed.
    fn say(&mut self, consumer: &AmqpConsumer) {
        let mut queues: Vec<&str> = consumer.queues().map(|(queue, _)| queue).collect();
        queues.sort_unstable();
        let says = match self.topology.layout {
            Layout::Shared => queues.join(", "),
            Layout::Partitioned(count) => {
                let numbers: Vec<&str> = queues
                    .iter()
                    .filter_map(|queue| queue.rsplit_once('.').map(|(_, number)| number))
                    .collect();
                format!("{} of {count} partitions: {}", numbers.len(), numbers.join(" "))
            }
            Layout::Local => format!("the queues of {} deckies", queues.len()),
        };
        if says != self.said {
            info!("consuming from {says}");
            self.said = says;
        }
    }
}
