//! The deckies of this worker's host: claimed when they appear, parked while they are away, and the queues of
//! hosts that are dead.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tracing::{debug, info, warn};

use super::company::Waiting;
use super::moves::{Effect, Errand, Moves, Places, Request};
use crate::action::DeckyName;
use crate::backoff::Backoff;
use crate::broker::{
    AmqpConsumer, AmqpRegistry, AmqpSettle, Arrival, BrokerError, Claim, ClaimRequest, Fate, Marker,
    Topology, Unparked,
};

/// A host without a worker for so long is dead: a worker that is started again needs less.
const DEAD_TIME: Duration = Duration::from_secs(10);
/// How often the registry is asked which hosts there are.
const HOSTS_INTERVAL: Duration = Duration::from_secs(60);
/// After how long without an action a decky that is away is taken off the registry; its parking queue is empty by then.
const FORGET_TIME: Duration = Duration::from_secs(11 * 60);
/// How many deckies are claimed in one change of the registry: others wait meanwhile.
const CLAIMS_MAX: usize = 1000;

/// The deckies of a host as the lanes see them.
pub struct Residence {
    places: Arc<Places>,
    registry: AmqpRegistry,
    /// Host and decky: actions that came through that host's queue may be parked.
    parkable: Mutex<HashSet<(String, String)>>,
    gone: Notify,
}

impl Residence {
    #[must_use]
    pub fn new(url: &str, topology: &Topology) -> Self {
        Self {
            places: Arc::default(),
            registry: AmqpRegistry::new(url, topology),
            parkable: Mutex::default(),
            gone: Notify::new(),
        }
    }

    /// Whether an action whose turn has come is to be parked.
    pub fn parks(&self, decky: &DeckyName) -> bool {
        self.places.parks(decky.as_str())
    }

    /// Whether a decky's container is known to be away.
    pub fn is_away(&self, decky: &DeckyName) -> bool {
        self.places.is_away(decky.as_str())
    }

    /// Notes that the engine no longer has a decky's container.
    pub fn note_gone(&self, decky: &DeckyName) {
        self.places.note_gone(decky.as_str());
        self.gone.notify_one();
    }

    /// Where an action goes that came through the queue of `host`.
    pub async fn fate(&self, host: &str, decky: &str) -> Result<Fate, BrokerError> {
        let place = (host.to_owned(), decky.to_owned());
        if self.parkable.lock().unwrap_or_else(PoisonError::into_inner).contains(&place) {
            return Ok(Fate::Park);
        }
        let fate = self.registry.fate(host, decky).await?;
        if fate == Fate::Park {
            self.parkable.lock().unwrap_or_else(PoisonError::into_inner).insert(place);
        }
        Ok(fate)
    }

    /// Forgets that a decky's actions may be parked without a look at the registry.
    pub fn doubt(&self, host: &str, decky: &str) {
        let place = (host.to_owned(), decky.to_owned());
        self.parkable.lock().unwrap_or_else(PoisonError::into_inner).remove(&place);
    }

    /// Passes a marker on; `false` where it has to wait.
    pub async fn pass(&self, host: &str, marker: &Marker) -> Result<bool, BrokerError> {
        self.doubt(host, &marker.decky);
        self.registry.pass(host, marker).await
    }

    /// Sends a marker whose claimer may be gone anew.
    pub async fn send(&self, marker: &Marker) -> Result<(), BrokerError> {
        self.registry.send(marker).await
    }

    /// Closes the registry's connection.
    pub async fn close(&self) {
        self.registry.close().await;
    }
}

type Held = Waiting<AmqpSettle>;

/// A delivery for a lane.
pub struct Start {
    /// The lane.
    pub lane: String,
    /// The delivery.
    pub waiting: Held,
}

enum Ask {
    Begin(BTreeSet<String>),
    Claim(Vec<ClaimRequest>),
    Leave(Vec<String>),
    Progress(String, u64),
    Unpark(String, u64),
    Forget(String),
    Hosts,
}

/// What the registry said.
pub enum Answer {
    Hosts(Vec<String>),
    Claimed(Vec<(String, Option<Claim>)>),
    Progressed(String, u64, Arrival),
    Unparked(String, u64, Unparked),
}

/// What the intake does for it.
#[derive(Default)]
pub struct Orders {
    /// Queues to open.
    pub open: Vec<String>,
    /// Queues to give up.
    pub close: Vec<String>,
}

/// How far the worker of a host has come since it connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Readiness {
    /// Another worker of the host may be there, or one that drains its queue.
    Waiting,
    /// The registry is asked.
    Claiming,
    /// The host's queue is consumed from.
    Ready,
}

/// The hosts beside this one.
#[derive(Debug, Default)]
struct Neighbour {
    unattended_since: Option<Instant>,
    is_drained: bool,
}

/// This worker's side of the layout.
pub struct Local {
    topology: Topology,
    residence: Arc<Residence>,
    moves: Moves<Held>,
    effects: Vec<Effect<Held>>,
    asks: mpsc::UnboundedSender<Ask>,
    answers: mpsc::UnboundedReceiver<Answer>,
    registrar: JoinHandle<()>,
    readiness: Readiness,
    has_said_standby: bool,
    neighbours: HashMap<String, Neighbour>,
    hosts_asked_at: Instant,
    /// The deckies whose parking queues are given up once their deliveries are settled.
    emptying: Vec<(String, u64)>,
    /// Since when deckies that were claimed have been away.
    away_since: HashMap<String, Instant>,
    pub starts: Vec<Start>,
    pub orders: Orders,
}

impl Drop for Local {
    fn drop(&mut self) {
        self.registrar.abort();
    }
}

impl Local {
    pub fn new(topology: &Topology, residence: Arc<Residence>) -> Self {
        let (asks, answers, registrar) = start_registrar(&residence);
        Self {
            topology: topology.clone(),
            moves: Moves::new(topology.host(), residence.places.clone()),
            effects: Vec::new(),
            residence,
            asks,
            answers,
            registrar,
            readiness: Readiness::Waiting,
            has_said_standby: false,
            neighbours: HashMap::new(),
            hosts_asked_at: Instant::now(),
            emptying: Vec::new(),
            away_since: HashMap::new(),
            starts: Vec::new(),
            orders: Orders::default(),
        }
    }

    /// Begins with a new connection.
    pub fn begin(&mut self) {
        self.registrar.abort();
        (self.asks, self.answers, self.registrar) = start_registrar(&self.residence);
        self.moves.begin();
        self.residence.parkable.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.readiness = Readiness::Waiting;
        self.neighbours.clear();
        self.emptying.clear();
        self.effects.clear();
        self.starts.clear();
        self.orders = Orders::default();
    }

    fn ask(&self, ask: Ask) {
        // The registrar ends with this.
        let _ = self.asks.send(ask);
    }

    /// Waits for an answer of the registry, or for a decky that was found gone.
    pub async fn news(&mut self) -> Option<Answer> {
        tokio::select! {
            answer = self.answers.recv() => answer,
            () = self.residence.gone.notified() => None,
        }
    }

    /// Takes a delivery of any queue, in the order in which it came.
    pub fn take(&mut self, mut waiting: Held) {
        let queue = waiting.delivery.settle.queue();
        let delivery = &mut waiting.delivery;
        let marker = Marker::read(&delivery.exchange, &delivery.properties);
        let decky = marker.as_ref().map_or(&waiting.decky, |marker| &marker.decky).clone();
        if marker.is_none() && delivery.exchange.is_empty() {
            // It was published to the queue by name; where it belongs is told by its decky.
            delivery.exchange.clone_from(&self.topology.actions);
            delivery.routing_key = Topology::decky_key(&decky);
        }
        if self.topology.parked_decky(&queue).is_some() {
            match marker {
                Some(marker) => {
                    self.moves.parked_marker(&decky, marker.number, &marker.via, &mut self.effects);
                    tokio::spawn(ack(waiting));
                }
                None => self.effects.push(Effect::Push(decky, Errand::Run, waiting)),
            }
        } else if self.topology.host_of(&queue) != Some(self.topology.host()) {
            waiting.send_on(if marker.is_some() { Errand::Pass } else { Errand::Park });
            self.starts.push(Start { lane: format!("{queue}/{decky}"), waiting });
        } else if let Some(marker) = marker {
            let (number, claimer) = (marker.number, marker.claimer.as_str());
            self.moves.direct_marker(&decky, number, claimer, waiting, &mut self.effects);
        } else if DeckyName::parse(&decky).is_err() {
            self.effects.push(Effect::Push(decky, Errand::Run, waiting));
        } else {
            self.away_since.entry(decky.clone()).and_modify(|since| *since = Instant::now());
            self.moves.direct(&decky, waiting, &mut self.effects);
        }
        self.apply();
    }

    fn apply(&mut self) {
        for effect in std::mem::take(&mut self.effects) {
            match effect {
                Effect::Push(decky, errand, mut waiting) => {
                    if errand != Errand::Run {
                        waiting.send_on(errand);
                    }
                    self.starts.push(Start { lane: decky, waiting });
                }
                Effect::Open(decky) => {
                    debug!(decky.name = decky, "arriving: earlier actions come first");
                    self.orders.open.push(self.topology.parking_queue(&decky).name);
                }
                Effect::Close(decky) => {
                    self.emptying.retain(|(emptying, _)| *emptying != decky);
                    self.orders.close.push(self.topology.parking_queue(&decky).name);
                }
                Effect::Progress(decky, number) => self.ask(Ask::Progress(decky, number)),
                Effect::Arrived(decky, number) => {
                    debug!(decky.name = decky, "arrived");
                    self.emptying.push((decky, number));
                }
            }
        }
    }

    /// Takes an answer of the registry.
    pub fn answered(&mut self, answer: Answer) {
        match answer {
            Answer::Hosts(hosts) => {
                let own = self.topology.host().to_owned();
                for host in hosts.into_iter().filter(|host| *host != own) {
                    self.neighbours.entry(host).or_default();
                }
            }
            Answer::Claimed(claims) => {
                for (decky, claim) in &claims {
                    self.moves.claimed(decky, claim.as_ref(), &mut self.effects);
                    for other in claim.iter().flat_map(|claim| &claim.others) {
                        self.neighbours.entry(other.clone()).or_default();
                    }
                }
                self.be_ready();
            }
            Answer::Progressed(decky, number, arrival) => {
                self.moves.progressed(&decky, number, &arrival, &mut self.effects);
            }
            Answer::Unparked(decky, number, unparked) => match unparked {
                Unparked::Done => {
                    self.moves.closed(&decky);
                    self.orders.close.push(self.topology.parking_queue(&decky).name);
                }
                Unparked::NotEmpty => self.emptying.push((decky, number)),
                // Its parking queue is given up with the decky.
                Unparked::Superseded => {}
            },
        }
        self.apply();
    }

    fn be_ready(&mut self) {
        if self.readiness == Readiness::Claiming {
            self.readiness = Readiness::Ready;
            self.orders.open.push(self.topology.host_queue_name(self.topology.host()));
        }
    }

    /// Follows the engine, and looks after the queues; about once a second.
    pub async fn look(
        &mut self,
        residents: &BTreeSet<DeckyName>,
        consumer: &mut AmqpConsumer,
    ) -> Result<(), BrokerError> {
        if self.readiness == Readiness::Waiting && !self.take_office(residents, consumer).await? {
            return Ok(());
        }
        let requests = self.moves.follow(residents.iter().map(DeckyName::as_str), &mut self.effects);
        let is_settled = requests.is_empty();
        self.request(requests, residents);
        if is_settled {
            self.be_ready();
        }
        self.apply();
        self.note_emptied(consumer);
        self.look_after_neighbours(consumer).await
    }

    /// Whether parking queues are given up once their deliveries are settled.
    pub fn is_emptying(&self) -> bool {
        !self.emptying.is_empty()
    }

    /// Looks which of them are.
    pub fn note_emptied(&mut self, consumer: &AmqpConsumer) {
        let emptied =
            |(decky, _): &(String, u64)| consumer.unsettled(&self.topology.parking_queue(decky).name) == 0;
        let (done, emptying): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.emptying).into_iter().partition(emptied);
        self.emptying = emptying;
        for (decky, number) in done {
            self.ask(Ask::Unpark(decky, number));
        }
    }

    /// Makes sure that this is the one worker of its host, and that nobody drains its queue.
    async fn take_office(
        &mut self,
        residents: &BTreeSet<DeckyName>,
        consumer: &AmqpConsumer,
    ) -> Result<bool, BrokerError> {
        let host = self.topology.host();
        if !consumer.declare_exclusive(&self.topology.presence(host)).await? {
            if !std::mem::replace(&mut self.has_said_standby, true) {
                info!(host, "standing by: another worker serves this host");
            }
            return Ok(false);
        }
        if !consumer.claim(&self.topology.host_queue_name(host)).await? {
            return Ok(false);
        }
        self.has_said_standby = false;
        self.readiness = Readiness::Claiming;
        self.ask(Ask::Begin(residents.iter().map(|decky| decky.as_str().to_owned()).collect()));
        Ok(true)
    }

    fn request(&mut self, requests: Vec<Request>, residents: &BTreeSet<DeckyName>) {
        let (mut claims, mut leaves) = (Vec::new(), Vec::new());
        for request in requests {
            match request {
                Request::Claim { decky, is_parked, yields } => {
                    self.away_since.remove(&decky);
                    claims.push(ClaimRequest { decky, is_parked, yields });
                }
                Request::Leave(decky) => {
                    self.away_since.insert(decky.clone(), Instant::now());
                    leaves.push(decky);
                }
            }
        }
        if !leaves.is_empty() {
            self.ask(Ask::Leave(leaves));
        }
        while !claims.is_empty() {
            let rest = claims.split_off(claims.len().min(CLAIMS_MAX));
            self.ask(Ask::Claim(std::mem::replace(&mut claims, rest)));
        }
        let is_over = |(decky, since): (&String, &Instant)| {
            let is_here = residents.iter().any(|resident| resident.as_str() == decky);
            (!is_here && since.elapsed() >= FORGET_TIME).then(|| decky.clone())
        };
        for decky in self.away_since.iter().filter_map(is_over).collect::<Vec<_>>() {
            info!(decky.name = decky, "gone for good: its binding is removed");
            self.away_since.remove(&decky);
            self.moves.forget(&decky);
            self.residence.doubt(self.topology.host(), &decky);
            self.ask(Ask::Forget(decky));
        }
    }

    /// Drains the queues of hosts that are dead, one at a time.
    async fn look_after_neighbours(&mut self, consumer: &mut AmqpConsumer) -> Result<(), BrokerError> {
        if self.hosts_asked_at.elapsed() >= HOSTS_INTERVAL {
            self.hosts_asked_at = Instant::now();
            self.ask(Ask::Hosts);
        }
        let mut is_draining = self.neighbours.values().any(|neighbour| neighbour.is_drained);
        for (host, neighbour) in &mut self.neighbours {
            let queue = self.topology.host_queue_name(host);
            let Some(depth) = consumer.look(&queue).await? else { continue };
            if neighbour.is_drained {
                let is_empty = depth.messages == 0 && consumer.unsettled(&queue) == 0;
                if is_empty || consumer.is_claimed(&self.topology.presence(host)).await? {
                    *neighbour = Neighbour::default();
                    self.orders.close.push(queue);
                }
                continue;
            }
            let is_attended = depth.consumers > 0 || depth.messages == 0;
            if is_attended || consumer.is_claimed(&self.topology.presence(host)).await? {
                neighbour.unattended_since = None;
                continue;
            }
            let since = *neighbour.unattended_since.get_or_insert_with(Instant::now);
            if since.elapsed() >= DEAD_TIME && !is_draining {
                warn!(host, messages = depth.messages, "draining the queue of a host without a worker");
                (is_draining, neighbour.is_drained) = (true, true);
                self.orders.open.push(queue);
            }
        }
        Ok(())
    }

    /// Notes that a queue could not be opened: another worker has it.
    pub fn not_opened(&mut self, queue: &str) -> bool {
        match self.topology.host_of(queue) {
            Some(host) if host != self.topology.host() => {
                self.neighbours.remove(host);
                self.neighbours.insert(host.to_owned(), Neighbour::default());
                false
            }
            _ => true,
        }
    }

    /// The deliveries that are held for deckies that arrive, where they fill the prefetch.
    pub fn take_held(&mut self, is_in_the_way: impl Fn(&Held) -> bool) -> Vec<Held> {
        self.moves.take_held(is_in_the_way)
    }

    /// Drops the deliveries that are held: the broker delivers them again.
    pub fn drop_held(&mut self) {
        drop(self.moves.take_held(|_| true));
    }

    /// How many deckies are here.
    pub fn deckies(&self) -> usize {
        self.moves.here()
    }
}

async fn ack(waiting: Held) {
    use crate::broker::Settle as _;
    if let Err(error) = waiting.delivery.settle.ack().await {
        debug!("{error}; the broker will deliver the marker again");
    }
}

type Registrar = (mpsc::UnboundedSender<Ask>, mpsc::UnboundedReceiver<Answer>, JoinHandle<()>);

fn start_registrar(residence: &Arc<Residence>) -> Registrar {
    let (asks, asked) = mpsc::unbounded_channel();
    let (answer, answers) = mpsc::unbounded_channel();
    (asks, answers, tokio::spawn(serve(residence.clone(), asked, answer)))
}

/// Asks the registry, one change after the other, each until it succeeds.
async fn serve(
    residence: Arc<Residence>,
    mut asked: mpsc::UnboundedReceiver<Ask>,
    answers: mpsc::UnboundedSender<Answer>,
) {
    while let Some(ask) = asked.recv().await {
        let mut backoff = Backoff::default();
        let answer = loop {
            match answer(&residence.registry, &ask).await {
                Ok(answer) => break answer,
                Err(error) => {
                    warn!("{error}; asking the registry again");
                    sleep(backoff.next_wait()).await;
                }
            }
        };
        if let Some(answer) = answer
            && answers.send(answer).is_err()
        {
            return;
        }
    }
}

async fn answer(registry: &AmqpRegistry, ask: &Ask) -> Result<Option<Answer>, BrokerError> {
    Ok(match ask {
        Ask::Begin(residents) => {
            let begin = registry.with(|registry, host| {
                registry.leave_absent(host, residents);
                registry.hosts()
            });
            Some(Answer::Hosts(begin.await?))
        }
        Ask::Hosts => Some(Answer::Hosts(registry.with(|registry, _| registry.hosts()).await?)),
        Ask::Claim(requests) => Some(Answer::Claimed(registry.claim(requests).await?)),
        Ask::Leave(deckies) => registry.leave(deckies).await.map(|()| None)?,
        Ask::Progress(decky, number) => {
            let arrival = registry.with(|registry, host| registry.arrival(host, decky, *number)).await?;
            Some(Answer::Progressed(decky.clone(), *number, arrival))
        }
        Ask::Unpark(decky, number) => {
            Some(Answer::Unparked(decky.clone(), *number, registry.unpark(decky, *number).await?))
        }
        Ask::Forget(decky) => registry.forget(decky).await.map(|()| None)?,
    })
}
