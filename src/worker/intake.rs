//! Which queues are consumed, and how much of each at once.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep_until};
use tracing::info;

use super::company::Waiting;
use super::local::{Answer, Local, Residence, Start};
use super::share::{Partition, Step, steps};
use super::trial::{Admitted, Trial};
use super::weight::{Budget, Held, Step as Turn, Turns};
use crate::action::DeckyName;
use crate::broker::{AmqpConsumer, AmqpSettle, BrokerError, Delivery, Layout, Queue, Topology};

/// How often the partitions are shared out anew.
const SHARE_INTERVAL: Duration = Duration::from_secs(1);
/// A queue that gives nothing for so long at the start has nothing that brings a worker down.
const QUIET_TIME: Duration = Duration::from_millis(300);
/// What has run for so long brings no worker down, or none that could be kept up.
const TRIAL_TIME_MAX: Duration = Duration::from_secs(2);
/// How many deliveries of a parking queue, or of the queue of a dead host, are held at most. It is the same for all
/// workers that hold equally many in all: what one gives back in part goes behind what the next one has not taken.
const SIDE_PREFETCH_MAX: u16 = 8;

/// The deckies that run on this worker's engine; `None` until the engine has told.
pub type Residents = watch::Receiver<Option<BTreeSet<DeckyName>>>;

type Incoming = Delivery<AmqpSettle>;

/// Why the queues have to be looked at.
pub enum Cue {
    /// It is time to share out the partitions.
    Share,
    /// Deckies came or went, or their queues may be free by now.
    Residents,
    /// The registry of deckies answered.
    Registry(Answer),
    /// The queue that was opened last gives nothing, or what it gave runs on.
    Quiet,
}

/// Chooses the queues of one worker.
pub struct Intake {
    topology: Topology,
    /// How many deliveries may be held in all.
    prefetch: u16,
    residents: Option<Residents>,
    local: Option<Local>,
    /// The turns of partitions, where there are more than bodies of the largest size fit.
    turns: Option<Turns>,
    /// How many deliveries of the shared queue are held at most for now: what was delivered before may be
    /// what ended this process's predecessor, so at first they are taken one at a time, then ever more.
    window: u16,
    /// What is still to be opened.
    pending: VecDeque<Queue>,
    /// The queue that was opened last, as long as it has to show that it does no harm.
    trial: Option<Trial<AmqpSettle>>,
    quiet_at: Option<Instant>,
    shares: Interval,
    /// How much of each open queue is held at most.
    allotted: HashMap<String, u16>,
    /// Queues that another worker had when they were to be opened.
    later: Vec<Queue>,
    said: String,
}

impl Intake {
    /// An intake; `residents` and `residence` are needed where each host has its queue.
    pub fn new(
        topology: Topology,
        prefetch: u16,
        budget: Budget,
        residents: Option<Residents>,
        residence: Option<Arc<Residence>>,
    ) -> Self {
        let mut shares = interval(SHARE_INTERVAL);
        shares.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (pending, allotted) = (VecDeque::new(), HashMap::new());
        let (window, trial, quiet_at) = (1, None, None);
        let said = String::new();
        let local = residence.map(|residence| Local::new(&topology, residence));
        let turns = match topology.layout {
            Layout::Partitioned(count) if count > prefetch => Some(Turns::new(budget)),
            Layout::Partitioned(_) | Layout::Shared | Layout::Local => None,
        };
        Self {
            topology,
            prefetch,
            residents,
            local,
            turns,
            window,
            pending,
            trial,
            quiet_at,
            shares,
            allotted,
            later: Vec::new(),
            said,
        }
    }

    /// Begins with a new connection.
    pub async fn begin(&mut self, consumer: &mut AmqpConsumer) -> Result<(), BrokerError> {
        self.pending.clear();
        self.allotted.clear();
        self.said.clear();
        self.later.clear();
        (self.quiet_at, self.trial) = (None, None);
        if let Some(local) = &mut self.local {
            local.begin();
        }
        if let Some(turns) = &mut self.turns {
            turns.begin();
        }
        match self.topology.layout {
            Layout::Shared => {
                self.pending.extend(self.topology.action_queues());
                self.open_pending(consumer).await
            }
            // Nothing is held back yet.
            Layout::Partitioned(_) | Layout::Local => self.queue_freed(consumer).await,
        }
    }

    /// Drops the deliveries that are held back until the one before them has shown that it does no harm.
    pub fn drop_held(&mut self) {
        (self.quiet_at, self.trial) = (None, None);
        if let Some(local) = &mut self.local {
            local.drop_held();
        }
    }

    /// Waits until the queues have to be looked at; nothing is lost where this is cancelled.
    pub async fn cue(&mut self) -> Cue {
        let again = match self.topology.layout {
            Layout::Local => Cue::Residents,
            Layout::Shared | Layout::Partitioned(_) => Cue::Share,
        };
        let residents = async {
            let is_new = match &mut self.residents {
                Some(residents) => residents.changed().await.is_ok(),
                None => false,
            };
            if !is_new {
                std::future::pending::<()>().await;
            }
        };
        let news = async {
            match &mut self.local {
                Some(local) => local.news().await,
                None => std::future::pending().await,
            }
        };
        let quiet_at = self.quiet_at.unwrap_or_else(Instant::now);
        tokio::select! {
            _ = self.shares.tick(), if self.topology.layout != Layout::Shared => again,
            () = residents => Cue::Residents,
            news = news => news.map_or(Cue::Residents, Cue::Registry),
            () = sleep_until(quiet_at), if self.quiet_at.is_some() => Cue::Quiet,
        }
    }

    /// Takes and gives up queues as things are now; gives what was held back and may be run.
    pub async fn follow(
        &mut self,
        cue: Cue,
        consumer: &mut AmqpConsumer,
    ) -> Result<VecDeque<Incoming>, BrokerError> {
        let mut held = VecDeque::new();
        match cue {
            Cue::Share => self.share_out(consumer).await?,
            Cue::Residents => self.follow_residents(consumer).await?,
            Cue::Registry(answer) => {
                if let Some(local) = &mut self.local {
                    local.answered(answer);
                    local.note_emptied(consumer);
                }
                self.obey(consumer);
            }
            Cue::Quiet => {
                self.quiet_at = None;
                held = self.trial.take().map(Trial::into_held).unwrap_or_default();
            }
        }
        self.open_pending(consumer).await?;
        self.take_turns(consumer).await?;
        Ok(held)
    }

    /// Looks at the queues now that one that was given up is free.
    pub async fn queue_freed(&mut self, consumer: &mut AmqpConsumer) -> Result<(), BrokerError> {
        let cue = if self.residents.is_some() { Cue::Residents } else { Cue::Share };
        self.follow(cue, consumer).await.map(|_| ())
    }

    /// Whether it matters when deliveries are settled: fewer are taken at once than may be, as those that were
    /// delivered before may bring workers down; or partitions take turns; or a parking queue is being emptied.
    pub fn is_careful(&self) -> bool {
        match self.topology.layout {
            Layout::Shared => self.window < self.prefetch,
            Layout::Partitioned(_) => {
                self.trial.is_some() || self.turns.as_ref().is_some_and(Turns::are_taken)
            }
            Layout::Local => self.trial.is_some() || self.local.as_ref().is_some_and(Local::is_emptying),
        }
    }

    /// Gives what may be done now that this delivery came.
    pub async fn admit(
        &mut self,
        queue: &str,
        delivery: Incoming,
        consumer: &mut AmqpConsumer,
    ) -> Result<Option<Admitted<AmqpSettle>>, BrokerError> {
        if let Some(turns) = &mut self.turns
            && turns.delivered(queue, delivery.body.len())
        {
            self.take_turns(consumer).await?;
        }
        // No worker has been given what lies in a parking queue for the first time.
        if self.topology.parked_decky(queue).is_some()
            && !delivery.redelivered
            && self.trial.as_ref().is_some_and(|trial| trial.queue == queue && trial.is_untried())
        {
            (self.quiet_at, self.trial) = (None, None);
            self.open_pending(consumer).await?;
        }
        if let Some(trial) = self.trial.as_mut().filter(|trial| trial.queue == queue) {
            let admitted = trial.take(delivery);
            if admitted.is_some() {
                self.quiet_at = Some(Instant::now() + TRIAL_TIME_MAX);
            }
            return Ok(admitted);
        }
        if self.topology.layout == Layout::Shared && self.is_careful() && !delivery.redelivered {
            self.open_to(self.prefetch, consumer).await?;
        }
        Ok(Some(Admitted::Run(delivery)))
    }

    /// Takes more at once, now that a delivery was settled; gives what was held back and may be run.
    pub async fn open_further(
        &mut self,
        consumer: &mut AmqpConsumer,
    ) -> Result<VecDeque<Incoming>, BrokerError> {
        if self.topology.layout == Layout::Shared {
            self.open_to(self.window.saturating_mul(2), consumer).await?;
            return Ok(VecDeque::new());
        }
        if let Some(local) = &mut self.local {
            local.note_emptied(consumer);
        }
        self.take_turns(consumer).await?;
        let Some(trial) = &mut self.trial else { return Ok(VecDeque::new()) };
        let next = trial.advance(consumer.unsettled(&trial.queue));
        if !next.is_empty() {
            self.quiet_at = Some(Instant::now() + TRIAL_TIME_MAX);
        }
        if trial.is_over() {
            (self.quiet_at, self.trial) = (None, None);
            self.open_pending(consumer).await?;
        }
        Ok(next)
    }

    async fn open_to(&mut self, window: u16, consumer: &mut AmqpConsumer) -> Result<(), BrokerError> {
        let before = self.window;
        self.window = window.min(self.prefetch);
        let open: Vec<String> = consumer.queues().map(ToOwned::to_owned).collect();
        for queue in open {
            if before < self.window {
                consumer.open_up(&queue, self.window).await?;
            }
        }
        Ok(())
    }

    /// Opens what is to be opened, one after the other: the first delivery of each is on trial.
    async fn open_pending(&mut self, consumer: &mut AmqpConsumer) -> Result<(), BrokerError> {
        while self.trial.is_none()
            && let Some(queue) = self.pending.pop_front()
        {
            let has_room = self.turns.as_ref().is_none_or(|turns| turns.room(&held(consumer)) > 0);
            let prefetch = if has_room { self.allot(&queue.name) } else { 0 };
            if prefetch == 0 {
                // It is opened when another one is given up, or has had its turn.
                self.allotted.remove(&queue.name);
                self.pending.push_front(queue);
                break;
            }
            if self.topology.layout == Layout::Shared {
                consumer.open(&queue.name, prefetch.min(self.window)).await?;
                continue;
            }
            let depths = consumer.survey(std::slice::from_ref(&queue)).await?;
            if !consumer.open(&queue.name, prefetch).await? {
                self.allotted.remove(&queue.name);
                if self.local.as_mut().is_some_and(|local| local.not_opened(&queue.name)) {
                    self.later.push(queue);
                }
            } else if depths.iter().any(|depth| depth.messages > 0) {
                self.trial = Some(Trial::new(queue.name));
                self.quiet_at = Some(Instant::now() + QUIET_TIME);
            }
        }
        self.say(consumer);
        Ok(())
    }

    /// How many deliveries of a queue may be held at once.
    fn allot(&mut self, queue: &str) -> u16 {
        if self.turns.is_some() {
            self.allotted.insert(queue.to_owned(), 1);
            return 1;
        }
        let held: u16 = self.allotted.iter().filter(|(name, _)| *name != queue).map(|(_, held)| *held).sum();
        let left = self.prefetch.saturating_sub(held);
        let wanted = match self.topology.layout {
            Layout::Shared => self.prefetch,
            Layout::Partitioned(count) => self.prefetch / count.max(1),
            Layout::Local if queue == self.topology.host_queue_name(self.topology.host()) => {
                self.prefetch - self.prefetch / 4
            }
            Layout::Local => return self.allot_side(queue, left),
        };
        let allotted = wanted.max(1).min(left);
        self.allotted.insert(queue.to_owned(), allotted);
        allotted
    }

    /// The same for a parking queue or the queue of a dead host; 0 where it has to wait until another is given up.
    fn allot_side(&mut self, queue: &str, left: u16) -> u16 {
        let side = (self.prefetch / 16).clamp(1, SIDE_PREFETCH_MAX);
        // One place is kept for the queue of a dead host, without which no decky of it arrives.
        let kept = if self.topology.parked_decky(queue).is_some() { side } else { 0 };
        let is_alone = self.allotted.len() < 2;
        // With the least --memory one or two deliveries more are held than fit at worst.
        let is_free = left >= side + kept || is_alone || kept == 0;
        if is_free {
            self.allotted.insert(queue.to_owned(), side);
        }
        if is_free { side } else { 0 }
    }

    fn give_up(&mut self, queue: &str, consumer: &mut AmqpConsumer) {
        self.allotted.remove(queue);
        if self.trial.as_ref().is_some_and(|trial| trial.queue == queue) {
            (self.quiet_at, self.trial) = (None, None);
        }
        if let Some(turns) = &mut self.turns {
            turns.forget(queue);
        }
        consumer.withdraw(queue);
    }

    /// Pauses and resumes partitions as memory allows.
    async fn take_turns(&mut self, consumer: &mut AmqpConsumer) -> Result<(), BrokerError> {
        let Some(turns) = &mut self.turns else { return Ok(()) };
        for step in turns.steps(&held(consumer), self.pending.len()) {
            match step {
                Turn::Pause(queue) => consumer.pause(&queue),
                Turn::Resume(queue) => consumer.open_up(&queue, 1).await?,
            }
        }
        Ok(())
    }

    async fn share_out(&mut self, consumer: &mut AmqpConsumer) -> Result<(), BrokerError> {
        let queues = self.topology.action_queues();
        let Some(presence) = self.topology.workers_queue() else { return Ok(()) };
        let workers = consumer.survey(&[presence]).await?.first().map_or(1, |depth| depth.consumers);
        let depths = consumer.survey(&queues).await?;
        let mine: HashSet<&str> = consumer.queues().collect();
        let is_pending = |queue: &Queue| self.pending.iter().any(|pending| pending.name == queue.name);
        let partition = |(queue, depth): (&Queue, _)| Partition {
            is_mine: mine.contains(queue.name.as_str()) || is_pending(queue),
            depth,
        };
        if let Some(turns) = &mut self.turns {
            let lies = queues.iter().zip(&depths).filter(|(_, depth)| depth.messages > 0);
            let lies: HashSet<&str> = lies.map(|(queue, _)| queue.name.as_str()).collect();
            for queue in turns.pass_on(&held(consumer), |queue| lies.contains(queue), self.pending.len()) {
                consumer.pause(&queue);
            }
        }
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
        let (Some(residents), Some(local)) = (&mut self.residents, &mut self.local) else { return Ok(()) };
        let Some(deckies) = residents.borrow_and_update().clone() else { return Ok(()) };
        local.look(&deckies, consumer).await?;
        self.pending.extend(self.later.drain(..));
        self.obey(consumer);
        Ok(())
    }

    /// Opens and gives up the queues that the deckies of this host call for.
    fn obey(&mut self, consumer: &mut AmqpConsumer) {
        let Some(local) = &mut self.local else { return };
        let orders = std::mem::take(&mut local.orders);
        for name in orders.close {
            self.pending.retain(|queue| queue.name != name);
            self.later.retain(|queue| queue.name != name);
            self.give_up(&name, consumer);
        }
        for name in orders.open {
            let is_host = self.topology.host_of(&name).is_some();
            let queue = Queue { name, binding: None, arguments: Vec::new() };
            // Deckies arrive only once the queues of hosts have been read.
            if is_host { self.pending.push_front(queue) } else { self.pending.push_back(queue) }
        }
    }

    /// Takes a delivery to where it belongs; [`Intake::starts`] gives what may be begun.
    pub fn take(
        &mut self,
        delivery: Incoming,
        body_bytes_max: usize,
        consumer: &mut AmqpConsumer,
    ) -> Option<Start> {
        let waiting = Waiting::new(delivery, body_bytes_max);
        let Some(local) = &mut self.local else {
            return Some(Start { lane: waiting.decky.clone(), waiting });
        };
        local.take(waiting);
        self.obey(consumer);
        None
    }

    /// The deliveries that may be put into lanes, in the order in which they came.
    pub fn starts(&mut self) -> Vec<Start> {
        self.local.as_mut().map(|local| std::mem::take(&mut local.starts)).unwrap_or_default()
    }

    /// The deliveries that wait for a decky's arrival and fill the prefetch.
    pub fn take_held(
        &mut self,
        is_in_the_way: impl Fn(&Waiting<AmqpSettle>) -> bool,
    ) -> Vec<Waiting<AmqpSettle>> {
        self.local.as_mut().map(|local| local.take_held(is_in_the_way)).unwrap_or_default()
    }

    /// Tells what is consumed, when that has changed.
    fn say(&mut self, consumer: &AmqpConsumer) {
        let mut queues: Vec<&str> = consumer.queues().collect();
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
            Layout::Local => {
                let own = self.topology.host_queue_name(self.topology.host());
                let deckies = self.local.as_ref().map_or(0, Local::deckies);
                // Before the own queue is open nothing is ready.
                if !queues.contains(&own.as_str()) {
                    return;
                }
                format!("{own} for {deckies} deck{}", if deckies == 1 { "y" } else { "ies" })
            }
        };
        if says != self.said {
            info!("consuming from {says}");
            self.said = says;
        }
    }
}

/// The queues of this worker, and whether a delivery of each is held.
fn held(consumer: &AmqpConsumer) -> Vec<Held> {
    let queues = consumer.queues();
    queues.map(|queue| Held { queue: queue.to_owned(), is_held: consumer.unsettled(queue) > 0 }).collect()
}
