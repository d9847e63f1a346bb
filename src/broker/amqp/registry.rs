//! The registry as it lies on the broker: read and changed by one worker at a time.

use std::future::Future;
use std::time::Duration;

use lapin::options::{
    BasicAckOptions, BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, QueueBindOptions,
    QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::publisher_confirm::Confirmation;
use lapin::types::FieldTable;
use lapin::{Channel, Connection};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};

use super::declare::{move_between, table};
use super::{
    Flaws, RESOURCE_LOCKED, answer, away, convert, explain, is_claimed, no_answer, open_to_read, reply_code,
    together,
};
use crate::broker::{BrokerError, Claim, Fate, Marker, Passage, Registry, Topology};

/// How long the lock is waited for: a claim of 1,000 deckies takes about a second.
const LOCK_TIME_MAX: Duration = Duration::from_secs(60);
const LOCK_INTERVAL: Duration = Duration::from_millis(20);
/// How long an empty registry queue is looked at before it counts as a new one: a message that a killed worker
/// had taken out returns within that time.
const EMPTY_TIME_MAX: Duration = Duration::from_secs(1);

/// A connection of its own, on which the lock is held and bindings are made: it cannot lose the one and keep the other.
pub struct AmqpRegistry {
    url: String,
    topology: Topology,
    connection: Mutex<Option<(Connection, Flaws)>>,
}

/// The registry while it is locked.
pub struct Change<'a> {
    connection: &'a Connection,
    flaws: &'a Flaws,
    channel: Channel,
    topology: &'a Topology,
    /// The lists; they are written when the change says so.
    pub registry: Registry,
    taken_out: Vec<u64>,
}

/// Whether a decky's parking queue is needed no longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unparked {
    /// It is empty, and the registry says so.
    Done,
    /// It holds messages.
    NotEmpty,
    /// Another claim has been made since.
    Superseded,
}

/// A decky to be claimed.
#[derive(Debug, Clone)]
pub struct ClaimRequest {
    /// Its name.
    pub decky: String,
    /// Whether this worker has parked actions of it.
    pub is_parked: bool,
    /// Whether another live host that has it keeps it.
    pub yields: bool,
}

impl AmqpRegistry {
    /// A registry that connects when it is first needed.
    #[must_use]
    pub fn new(url: &str, topology: &Topology) -> Self {
        Self { url: url.to_owned(), topology: topology.clone(), connection: Mutex::default() }
    }

    /// Does one change under the lock.
    async fn change<T>(
        &self,
        change: impl AsyncFnOnce(&mut Change<'_>) -> Result<T, BrokerError>,
    ) -> Result<T, BrokerError> {
        let mut kept = self.connection.lock().await;
        let (connection, flaws) = match kept.take().filter(|(connection, _)| connection.status().connected())
        {
            Some(kept) => kept,
            None => open_to_read(&self.url, "deckswain registry", 0).await?,
        };
        let lock = self.topology.registry_lock();
        let channel = take_lock(&connection, &lock).await?;
        let registry = Registry::default();
        let taken_out = Vec::new();
        let mut locked = Change {
            connection: &connection,
            flaws: &flaws,
            channel,
            topology: &self.topology,
            registry,
            taken_out,
        };
        let changed = async {
            locked.read().await?;
            let changed = change(&mut locked).await?;
            let release = locked.channel.queue_delete(&lock, QueueDeleteOptions::default());
            answer("free the registry", release).await?;
            answer("close a channel", locked.channel.close(200, "done")).await?;
            Ok(changed)
        }
        .await;
        // Where anything failed the connection goes, and with it the lock.
        match &changed {
            Ok(_) => *kept = Some((connection, flaws)),
            Err(_) => drop(answer("close the connection", connection.close(200, "failed")).await),
        }
        changed
    }

    /// Claims deckies for this host; `None` where another host keeps one.
    pub async fn claim(
        &self,
        requests: &[ClaimRequest],
    ) -> Result<Vec<(String, Option<Claim>)>, BrokerError> {
        self.change(async |change| change.claim(requests).await).await
    }

    /// Notes that deckies that were claimed are gone.
    pub async fn leave(&self, deckies: &[String]) -> Result<(), BrokerError> {
        self.change(async |change| {
            for decky in deckies {
                change.registry.leave(change.topology.host(), decky);
            }
            change.write().await
        })
        .await
    }

    /// Tells where an action goes that came through the queue of `host`, and makes the parking queue where it needs one.
    pub async fn fate(&self, host: &str, decky: &str) -> Result<Fate, BrokerError> {
        self.change(async |change| {
            let fate = change.registry.fate(host, decky);
            change.write().await?;
            match &fate {
                Fate::Park => change.make_parking(vec![decky]).await?,
                Fate::Wait { .. } | Fate::HandOn(_) | Fate::Unclaimed => {}
            }
            Ok(fate)
        })
        .await
    }

    /// Passes a marker out of the queue of `host` into the parking queue; `false` where it has to wait.
    pub async fn pass(&self, host: &str, marker: &Marker) -> Result<bool, BrokerError> {
        self.change(async |change| {
            let decky = &marker.decky;
            let passage = change.registry.ends(host, decky, marker.number);
            let is_over = passage != Passage::Waits;
            if is_over && change.registry.is_current(decky, marker.number) {
                change.make_parking(vec![decky]).await?;
                change.publish(vec![(change.topology.parking_queue(decky).name, marker.clone())]).await?;
            }
            if passage == Passage::Ends {
                change.registry.end_first(decky);
            }
            change.write().await?;
            Ok(is_over)
        })
        .await
    }

    /// Sends the marker of a decky's last claim anew.
    pub async fn send(&self, marker: &Marker) -> Result<(), BrokerError> {
        self.change(async |change| {
            let queue = change.topology.host_queue_name(&marker.via);
            change.publish(vec![(queue, marker.clone())]).await?;
            change.write().await
        })
        .await
    }

    /// Reads and perhaps changes the lists.
    pub async fn with<T>(&self, change: impl FnOnce(&mut Registry, &str) -> T) -> Result<T, BrokerError> {
        self.change(async |locked| {
            let changed = change(&mut locked.registry, locked.topology.host());
            locked.write().await?;
            Ok(changed)
        })
        .await
    }

    /// Notes that the parking queue of a decky that has arrived is empty, if it is.
    pub async fn unpark(&self, decky: &str, number: u64) -> Result<Unparked, BrokerError> {
        self.change(async |change| {
            let name = change.topology.parking_queue(decky).name;
            let options =
                QueueDeclareOptions { passive: true, durable: true, ..QueueDeclareOptions::default() };
            let look = change.channel.queue_declare(&name, options, FieldTable::default());
            let unparked = if answer(&format!("look at {name}"), look).await?.message_count() > 0 {
                Unparked::NotEmpty
            } else if change.registry.unpark(change.topology.host(), decky, number) {
                Unparked::Done
            } else {
                Unparked::Superseded
            };
            change.write().await?;
            Ok(unparked)
        })
        .await
    }

    /// Takes a decky that has gone for good off the registry and unbinds it.
    pub async fn forget(&self, decky: &str) -> Result<(), BrokerError> {
        self.change(async |change| {
            let host = change.topology.host();
            if change.registry.forget(host, decky) {
                change.unbind(vec![(change.topology.host_queue_name(host), decky.to_owned())]).await?;
            }
            change.write().await
        })
        .await
    }

    /// Closes the connection.
    pub async fn close(&self) {
        if let Some((connection, _)) = self.connection.lock().await.take() {
            let _ = answer("close the connection", connection.close(200, "done")).await;
        }
    }
}

async fn take_lock(connection: &Connection, lock: &str) -> Result<Channel, BrokerError> {
    let began = Instant::now();
    loop {
        let channel = answer("open a channel", connection.create_channel()).await?;
        let options = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
        match channel.queue_declare(lock, options, FieldTable::default()).await {
            Ok(_) => {
                let confirms = channel.confirm_select(ConfirmSelectOptions::default());
                answer("turn confirms on", confirms).await?;
                return Ok(channel);
            }
            Err(error) if reply_code(&error) == Some(RESOURCE_LOCKED) => {}
            Err(error) => return Err(explain("lock the registry", &error)),
        }
        if began.elapsed() > LOCK_TIME_MAX {
            return Err(no_answer("lock the registry", LOCK_TIME_MAX));
        }
        sleep(LOCK_INTERVAL).await;
    }
}

impl Change<'_> {
    /// Takes all messages out of the registry queue; the highest version counts.
    async fn read(&mut self) -> Result<(), BrokerError> {
        let Some(queue) = self.topology.registry_queue() else { return Ok(()) };
        let began = Instant::now();
        loop {
            let get = self.channel.basic_get(queue.name.as_str(), BasicGetOptions::default());
            match answer("read the registry", get).await? {
                Some(message) => {
                    self.taken_out.push(message.delivery.delivery_tag);
                    match serde_json::from_slice::<Registry>(&message.delivery.data) {
                        Ok(registry) if registry.version >= self.registry.version => self.registry = registry,
                        Ok(_) => {}
                        Err(error) => {
                            let why =
                                format!("{} holds a message that is not a registry: {error}", queue.name);
                            return Err(away(
                                "failed to read the registry",
                                why,
                                "purge that queue and restart all workers",
                            ));
                        }
                    }
                }
                None if self.taken_out.is_empty() && began.elapsed() < EMPTY_TIME_MAX => {
                    sleep(LOCK_INTERVAL * 5).await;
                }
                None => return Ok(()),
            }
        }
    }

    /// Puts the lists back, as a new version.
    async fn write(&mut self) -> Result<(), BrokerError> {
        let Some(queue) = self.topology.registry_queue() else { return Ok(()) };
        self.registry.begin_change();
        let body = serde_json::to_vec(&self.registry)
            .unwrap_or_else(|error| unreachable!("maps of strings and numbers have a JSON form: {error}"));
        let properties = convert::properties_to(&crate::broker::Properties::default());
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let publish = async {
            self.channel.basic_publish("", queue.name.as_str(), options, &body, properties).await?.await
        };
        match answer("write the registry", publish).await? {
            Confirmation::Ack(None) => {}
            _ => {
                return Err(away(
                    "failed to write the registry",
                    "the broker did not take it",
                    "is the broker well?",
                ));
            }
        }
        for tag in std::mem::take(&mut self.taken_out) {
            answer("write the registry", self.channel.basic_ack(tag, BasicAckOptions::default())).await?;
        }
        Ok(())
    }

    async fn claim(
        &mut self,
        requests: &[ClaimRequest],
    ) -> Result<Vec<(String, Option<Claim>)>, BrokerError> {
        let topology = self.topology;
        let (host, own_queue) = (topology.host(), topology.host_queue_name(topology.host()));
        self.registry.begin_change();
        let unknown: Vec<&str> = requests
            .iter()
            .map(|request| request.decky.as_str())
            .filter(|decky| !self.registry.knows(decky))
            .collect();
        let former = self.former_queues(&unknown).await?;
        let mut claims = Vec::new();
        for ClaimRequest { decky, is_parked, yields } in requests {
            let keeper = self.registry.keeper(host, decky).filter(|_| *yields).map(ToOwned::to_owned);
            let is_kept = match keeper {
                Some(keeper) => is_claimed(self.connection, &topology.presence(&keeper)).await?,
                None => false,
            };
            let is_parked = *is_parked || former.contains(decky);
            let claim = (!is_kept).then(|| self.registry.claim(host, decky, is_parked));
            claims.push((decky.clone(), claim));
        }
        self.write().await?;
        let made = |claims: &[(String, Option<Claim>)]| {
            claims
                .iter()
                .filter_map(|(decky, claim)| Some((decky.clone(), claim.clone()?)))
                .collect::<Vec<_>>()
        };
        let made = made(&claims);
        let arriving = made.iter().filter(|(_, claim)| claim.arrives());
        self.make_parking(arriving.map(|(decky, _)| decky.as_str()).collect()).await?;
        let marker = |decky: &str, claim: &Claim, via: &str| {
            let (decky, claimer) = (decky.to_owned(), host.to_owned());
            (
                topology.host_queue_name(via),
                Marker { decky, number: claim.number, claimer, via: via.to_owned() },
            )
        };
        let own = made.iter().filter(|(_, claim)| claim.own_marker);
        self.publish(own.map(|(decky, claim)| marker(decky, claim, host)).collect()).await?;
        self.bind(&own_queue, made.iter().map(|(decky, _)| decky.as_str()).collect()).await?;
        let others =
            || made.iter().flat_map(|(decky, claim)| claim.others.iter().map(move |to| (decky, claim, to)));
        self.unbind(others().map(|(decky, _, to)| (topology.host_queue_name(to), decky.clone())).collect())
            .await?;
        self.publish(others().map(|(decky, claim, to)| marker(decky, claim, to)).collect()).await?;
        for decky in &former {
            self.empty_former(decky).await?;
        }
        Ok(claims)
    }

    async fn make_parking(&self, deckies: Vec<&str>) -> Result<(), BrokerError> {
        let declare = async |decky: &str| {
            let queue = self.topology.parking_queue(decky);
            let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
            self.channel.queue_declare(&queue.name, options, table(&queue.arguments)).await
        };
        all("make parking queues", deckies.into_iter().map(declare)).await.map(|_| ())
    }

    /// Publishes markers to queues by name; one whose queue is gone needs none.
    async fn publish(&self, markers: Vec<(String, Marker)>) -> Result<Vec<String>, BrokerError> {
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let publish = async |(queue, marker): &(String, Marker)| {
            let properties = convert::properties_to(&marker.properties());
            self.channel.basic_publish("", queue.as_str(), options, b"", properties).await?.await
        };
        let mut returned = Vec::new();
        for confirmation in all("send markers", markers.iter().map(publish)).await? {
            if let Some(message) = confirmation.take_message() {
                returned.push(message.delivery.routing_key.to_string());
            }
        }
        Ok(returned)
    }

    async fn bind(&self, queue: &str, deckies: Vec<&str>) -> Result<(), BrokerError> {
        let exchange = self.topology.local();
        let bind = async |decky: &str| {
            let (key, options) = (Topology::decky_key(decky), QueueBindOptions::default());
            let exchange = exchange.as_str();
            self.channel.queue_bind(queue, exchange, key.as_str(), options, FieldTable::default()).await
        };
        all("bind deckies", deckies.into_iter().map(bind)).await.map(|_| ())
    }

    async fn unbind(&self, bindings: Vec<(String, String)>) -> Result<(), BrokerError> {
        let exchange = self.topology.local();
        let unbind = async |(queue, decky): &(String, String)| {
            let key = Topology::decky_key(decky);
            let (queue, exchange) = (queue.as_str(), exchange.as_str());
            self.channel.queue_unbind(queue, exchange, key.as_str(), FieldTable::default()).await
        };
        all("unbind deckies", bindings.iter().map(unbind)).await.map(|_| ())
    }

    /// The deckies that still have the queue of their own that version 0.1 gave them.
    async fn former_queues(&self, deckies: &[&str]) -> Result<Vec<String>, BrokerError> {
        let probe = |decky: &&str| {
            let marker =
                Marker { decky: (*decky).to_owned(), number: 0, claimer: String::new(), via: String::new() };
            (self.topology.former_decky_queue(decky), marker)
        };
        let returned = self.publish(deckies.iter().map(probe).collect()).await?;
        let has_one = |decky: &&&str| !returned.contains(&self.topology.former_decky_queue(decky));
        Ok(deckies.iter().filter(has_one).map(|decky| (*decky).to_owned()).collect())
    }

    /// Moves the actions of such a queue into the parking queue, and deletes it.
    async fn empty_former(&self, decky: &str) -> Result<(), BrokerError> {
        let queue = self.topology.former_decky_queue(decky);
        self.unbind(vec![(queue.clone(), decky.to_owned())]).await?;
        let parking = self.topology.parking_queue(decky).name;
        move_between(self.connection, &queue, &parking, self.flaws).await?;
        let delete = self.channel.queue_delete(queue.as_str(), QueueDeleteOptions::default());
        answer(&format!("delete {queue}"), delete).await.map(|_| ())
    }
}

/// The answers to requests that go out together.
async fn all<T>(
    what: &str,
    asked: impl Iterator<Item = impl Future<Output = lapin::Result<T>>>,
) -> Result<Vec<T>, BrokerError> {
    let answers = together(asked).await.into_iter();
    let answers = answers.map(|answer| match answer {
        Some(answer) => answer.map_err(|error| explain(what, &error)),
        None => Err(no_answer(what, super::ANSWER_TIME_MAX)),
    });
    answers.collect()
}
