//! Which host queues may hold actions of which decky; changed only under the registry's lock.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{HeaderValue, Properties};

/// The `type` of a marker.
const MARKER_TYPE: &str = "deckswain.marker";

/// The lists of all deckies.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registry {
    /// Grows with each change; the highest one counts.
    pub version: u64,
    deckies: BTreeMap<String, Entry>,
}

/// One decky.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    /// The hosts whose queues may hold its actions, the oldest first; the last one is bound.
    hosts: Vec<Holder>,
    /// Whether its parking queue may hold actions.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    parked: bool,
    /// Whether the last host has said that its container is gone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    left: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Holder {
    host: String,
    /// The number of its claim.
    since: u64,
}

/// What a claim of a decky came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// Its number, which its markers carry.
    pub number: u64,
    /// Other hosts, whose queues are to be unbound and then to be sent a marker each.
    pub others: Vec<String>,
    /// Whether the claimer's own queue may hold actions older than the claim: a marker goes there before the binding.
    pub own_marker: bool,
}

impl Claim {
    /// Whether earlier actions come first, from other queues or the parking queue.
    #[must_use]
    pub fn arrives(&self) -> bool {
        self.own_marker || !self.others.is_empty()
    }
}

/// Where an action goes whose decky is not served by the queue that it came through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// Into the decky's parking queue.
    Park,
    /// Nowhere yet: the queue of the host `first` still holds earlier actions. The marker of the last claim ends
    /// that; whoever waits for long sends it again, as its claimer may be gone.
    Wait {
        /// The host whose queue comes first.
        first: String,
        /// The number of the last claim.
        number: u64,
        /// The host that made it.
        claimer: String,
    },
    /// To the queue of this host.
    HandOn(String),
    /// No host has the decky.
    Unclaimed,
}

/// How a marker passes out of a host queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Passage {
    /// It ends the first stay.
    Ends,
    /// An older stay has to end first.
    Waits,
    /// Its stay has ended before.
    Over,
}

/// How far a decky has arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Arrival {
    /// No other queue holds its actions any more.
    Complete,
    /// The queue of another host still does.
    UnderWay,
    /// Another host has claimed it.
    Lost,
}

impl Registry {
    /// Begins a change: everything that it claims has the new version for number.
    pub fn begin_change(&mut self) {
        self.version += 1;
    }

    /// Whether a decky is listed.
    #[must_use]
    pub fn knows(&self, decky: &str) -> bool {
        self.deckies.contains_key(decky)
    }

    /// The hosts that are listed for any decky.
    #[must_use]
    pub fn hosts(&self) -> Vec<String> {
        let mut hosts: Vec<String> =
            self.deckies.values().flat_map(|entry| &entry.hosts).map(|holder| holder.host.clone()).collect();
        hosts.sort_unstable();
        hosts.dedup();
        hosts
    }

    /// Makes `host` the last one in the decky's list; `is_parked` where its actions are known to be parked.
    pub fn claim(&mut self, host: &str, decky: &str, is_parked: bool) -> Claim {
        let number = self.version;
        let entry = self.deckies.entry(decky.to_owned()).or_default();
        entry.parked |= is_parked;
        entry.left = false;
        // A worker that has actions of it on their way to the parking queue begins another stay.
        let is_new_stay = is_parked && entry.hosts.len() > 1;
        match entry.hosts.last_mut() {
            Some(last) if last.host == host && !is_new_stay => {
                // A claim begun anew has a number of its own: markers of the earlier one must not end it.
                last.since = number;
            }
            _ => entry.hosts.push(Holder { host: host.to_owned(), since: number }),
        }
        let before = &entry.hosts[..entry.hosts.len() - 1];
        entry.parked |= !before.is_empty();
        let mut others: Vec<String> = Vec::new();
        for holder in before.iter().filter(|holder| holder.host != host) {
            if !others.contains(&holder.host) {
                others.push(holder.host.clone());
            }
        }
        let own_marker =
            entry.parked && (before.is_empty() || before.iter().any(|holder| holder.host == host));
        Claim { number, others, own_marker }
    }

    /// Notes that the container of a decky that `host` has claimed is gone.
    pub fn leave(&mut self, host: &str, decky: &str) {
        let is_last = |entry: &&mut Entry| entry.hosts.last().is_some_and(|last| last.host == host);
        if let Some(entry) = self.deckies.get_mut(decky).filter(is_last) {
            entry.left = true;
        }
    }

    /// Notes the same of all deckies of `host` but those that are there now.
    pub fn leave_absent(&mut self, host: &str, residents: &BTreeSet<String>) {
        for (decky, entry) in &mut self.deckies {
            if !residents.contains(decky) && entry.hosts.last().is_some_and(|last| last.host == host) {
                entry.left = true;
            }
        }
    }

    /// The host that has a decky and has not said that it is gone there, if there is one other than `host`.
    #[must_use]
    pub fn keeper(&self, host: &str, decky: &str) -> Option<&str> {
        let entry = self.deckies.get(decky).filter(|entry| !entry.left)?;
        entry.hosts.last().map(|last| last.host.as_str()).filter(|last| *last != host)
    }

    /// Where an action goes that came through the queue of `host`, though its decky is not there.
    pub fn fate(&mut self, host: &str, decky: &str) -> Fate {
        let Some(entry) = self.deckies.get_mut(decky) else { return Fate::Unclaimed };
        match (entry.hosts.first(), entry.hosts.last()) {
            (Some(first), _) if first.host == host => {
                entry.parked = true;
                Fate::Park
            }
            (Some(first), Some(last)) if entry.hosts.iter().any(|holder| holder.host == host) => {
                Fate::Wait { first: first.host.clone(), number: last.since, claimer: last.host.clone() }
            }
            (_, Some(last)) => Fate::HandOn(last.host.clone()),
            (_, None) => Fate::Unclaimed,
        }
    }

    /// Whether a marker of the claim `number` still ends something: that claim is the last one.
    #[must_use]
    pub fn is_current(&self, decky: &str, number: u64) -> bool {
        let last = self.deckies.get(decky).and_then(|entry| entry.hosts.last());
        last.is_some_and(|last| last.since == number)
    }

    /// Whether the marker of the claim `number` that came through the queue of `host` ends the first stay of the list,
    /// has to wait for another one's end, or ends none.
    #[must_use]
    pub fn ends(&self, host: &str, decky: &str, number: u64) -> Passage {
        let Some(entry) = self.deckies.get(decky) else { return Passage::Over };
        // The last one has no end yet.
        let before = &entry.hosts[..entry.hosts.len().saturating_sub(1)];
        match before.iter().position(|holder| holder.host == host && holder.since < number) {
            Some(0) => Passage::Ends,
            Some(_) => Passage::Waits,
            None => Passage::Over,
        }
    }

    /// Takes the first stay off the list: its marker has been passed on.
    pub fn end_first(&mut self, decky: &str) {
        if let Some(entry) = self.deckies.get_mut(decky).filter(|entry| entry.hosts.len() > 1) {
            entry.hosts.remove(0);
        }
    }

    /// How far the claim `number` has come, now that one of its markers has come out of the parking queue.
    #[must_use]
    pub fn arrival(&self, host: &str, decky: &str, number: u64) -> Arrival {
        let Some(entry) = self.deckies.get(decky) else { return Arrival::Lost };
        match entry.hosts.last() {
            Some(last) if last.host == host && last.since == number => {}
            _ => return Arrival::Lost,
        }
        if entry.hosts.len() > 1 { Arrival::UnderWay } else { Arrival::Complete }
    }

    /// Notes that the parking queue of a decky that has arrived is empty; says whether it is.
    pub fn unpark(&mut self, host: &str, decky: &str, number: u64) -> bool {
        let is_complete = self.arrival(host, decky, number) == Arrival::Complete;
        if let Some(entry) = self.deckies.get_mut(decky).filter(|_| is_complete) {
            entry.parked = false;
        }
        is_complete
    }

    /// Takes a decky that has gone for good off the registry; says whether it was `host`'s alone.
    pub fn forget(&mut self, host: &str, decky: &str) -> bool {
        let is_own = self
            .deckies
            .get(decky)
            .is_some_and(|entry| entry.hosts.len() == 1 && entry.hosts[0].host == host);
        if is_own {
            self.deckies.remove(decky);
        }
        is_own
    }
}

/// A message that follows the actions of a decky out of a host queue and through the parking queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Marker {
    /// The decky.
    pub decky: String,
    /// The number of the claim that it was sent for.
    pub number: u64,
    /// The host that made the claim.
    pub claimer: String,
    /// The host through whose queue it was sent.
    pub via: String,
}

impl Marker {
    /// The properties of its message; the body is empty.
    #[must_use]
    pub fn properties(&self) -> Properties {
        let mut properties =
            Properties { message_type: Some(MARKER_TYPE.to_owned()), ..Properties::default() };
        let number = HeaderValue::Integer(i64::try_from(self.number).unwrap_or(i64::MAX));
        let texts = [("decky", &self.decky), ("claimer", &self.claimer), ("via", &self.via)];
        let texts = texts.map(|(name, value)| (name, HeaderValue::Text(value.clone())));
        for (name, value) in texts.into_iter().chain([("number", number)]) {
            properties.headers.insert(format!("deckswain-{name}"), value);
        }
        properties
    }

    /// Reads a marker; `None` where the message is not one.
    ///
    /// Markers are published to queues by name: a message that came through a named exchange is an action.
    #[must_use]
    pub fn read(exchange: &str, properties: &Properties) -> Option<Self> {
        if !exchange.is_empty() || properties.message_type.as_deref() != Some(MARKER_TYPE) {
            return None;
        }
        let header = |name: &str| properties.headers.get(&format!("deckswain-{name}"));
        let text = |name: &str| header(name).and_then(HeaderValue::as_text).map(ToOwned::to_owned);
        let number = match header("number") {
            Some(HeaderValue::Integer(number)) => u64::try_from(*number).ok()?,
            _ => return None,
        };
        Some(Self { decky: text("decky")?, number, claimer: text("claimer")?, via: text("via")? })
    }
}
