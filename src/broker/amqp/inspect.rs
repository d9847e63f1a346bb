//! Whether the broker has what the topology names.

use std::future::Future;

use lapin::Connection;
use tokio::time::timeout;

use super::{
    ACCESS_REFUSED, ANSWER_TIME_MAX, NOT_FOUND, PRECONDITION_FAILED, answer, bind_exchanges, declare,
    declare_exchange, declare_queue, no_answer, open_to_read, reply_code, take_over,
};
use crate::broker::{BrokerError, Topology};

/// What became of one exchange or queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// It is there as it should be.
    Same,
    /// It is not there.
    Missing,
    /// It is there with other arguments, in the broker's words.
    Differs(String),
    /// It is there; its arguments are shown only to a user who may configure it.
    NotCompared,
}

/// Looks at every exchange, then every queue, in the topology's order; with `make` declares what is
/// missing first.
pub async fn inspect(url: &str, topology: &Topology, make: bool) -> Result<Vec<State>, BrokerError> {
    let (connection, flaws) = open_to_read(url, "deckswain topology", 0).await?;
    let mut states = look(&connection, topology).await?;
    // With something that differs nothing is declared: the rest would have to be mended with it.
    if make && !states.iter().any(|state| matches!(state, State::Differs(_))) {
        declare(&connection, topology).await?;
        bind_exchanges(&connection, topology).await?;
        take_over(&connection, topology, &flaws).await?;
        states = look(&connection, topology).await?;
    }
    answer("close the connection", connection.close(200, "done")).await?;
    Ok(states)
}

async fn look(connection: &Connection, topology: &Topology) -> Result<Vec<State>, BrokerError> {
    let mut states = Vec::new();
    for exchange in &topology.exchanges() {
        let declare = |passive| declare_exchange(connection, exchange, passive);
        states.push(state(&exchange.name, declare(true), declare(false)).await?);
    }
    for queue in &topology.queues() {
        let declare = |passive| async move { declare_queue(connection, queue, passive).await.map(|_| ()) };
        states.push(state(&queue.name, declare(true), declare(false)).await?);
    }
    Ok(states)
}

/// Only a declaration compares arguments, and it would make what is missing: so it is looked for first.
async fn state(
    name: &str,
    is_there: impl Future<Output = lapin::Result<()>>,
    is_same: impl Future<Output = lapin::Result<()>>,
) -> Result<State, BrokerError> {
    let what = format!("look at {name}");
    match timeout(ANSWER_TIME_MAX, is_there).await {
        Ok(Err(error)) if reply_code(&error) == Some(NOT_FOUND) => return Ok(State::Missing),
        Ok(other) => answer(&what, std::future::ready(other)).await?,
        Err(_) => return Err(no_answer(&what, ANSWER_TIME_MAX)),
    }
    match timeout(ANSWER_TIME_MAX, is_same).await {
        Ok(Err(error)) if reply_code(&error) == Some(PRECONDITION_FAILED) => {
            Ok(State::Differs(difference(&error.to_string())))
        }
        Ok(Err(error)) if reply_code(&error) == Some(ACCESS_REFUSED) => Ok(State::NotCompared),
        Ok(other) => answer(&what, std::future::ready(other)).await.map(|()| State::Same),
        Err(_) => Err(no_answer(&what, ANSWER_TIME_MAX)),
    }
}

/// The part of the broker's words that names the argument and both values.
fn difference(said: &str) -> String {
    let start = said.find("inequivalent arg").unwrap_or(0);
    said[start..].to_owned()
}
