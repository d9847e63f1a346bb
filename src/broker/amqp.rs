//! The broker over AMQP 0-9-1; the one module that names `lapin`.

mod address;
mod consumer;
mod convert;
mod declare;
mod group;
mod guard;
mod inspect;
mod permissions;
mod publisher;
mod registry;
mod returned;
mod settle;
mod tap;
mod tls;
mod walk;

use std::future::Future;
use std::time::Duration;

use futures_lite::future::poll_once;
use lapin::{Connection, ConnectionProperties, ErrorKind};
use tokio::time::{Instant, timeout, timeout_at};

use super::{BrokerError, Trouble};
pub use address::{BrokerAddress, without_password};
pub use consumer::{AmqpConsumer, Depth};
use consumer::{claim_of, is_claimed};
pub use convert::ForeignValue;
use declare::{
    bind_exchanges, bring_about, declare, declare_exchange, declare_outgoing, declare_queue,
    passive_exchange, take_over,
};
use guard::{Flaws, GuardedReactor};
pub use inspect::{State, inspect};
pub use permissions::{Lacking, Permission, lacking};
pub use publisher::{AmqpPublisher, together_count};
pub use registry::{AmqpRegistry, ClaimRequest, Unparked};
pub use settle::AmqpSettle;
use settle::{Source, delivery_from};
pub use tap::ResultsTap;
use tls::Tls;
pub use walk::QueueWalk;

/// How long any single answer of the broker may take.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(10);
/// How long the answer to "are you there?" may take: a worker is to consume again within 10 s.
const CHECK_TIME_MAX: Duration = Duration::from_secs(5);
/// Bytes of a frame that a worker keeps free of a delivery's properties, for the headers that it adds when it
/// retries or dead-letters the message: a message of 1 KiB, an exchange, a routing key, and the rest.
const OWN_HEADERS_BYTES_MAX: u32 = 4 * 1024;

const ACCESS_REFUSED: u16 = 403;
const NOT_FOUND: u16 = 404;
const RESOURCE_LOCKED: u16 = 405;
const PRECONDITION_FAILED: u16 = 406;
const FRAME_ERROR: u16 = 501;

/// Waits for the broker's answer, but not for ever.
async fn answer<T>(what: &str, asked: impl Future<Output = lapin::Result<T>>) -> Result<T, BrokerError> {
    match timeout(ANSWER_TIME_MAX, asked).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(explain(what, &error)),
        Err(_) => Err(no_answer(what, ANSWER_TIME_MAX)),
    }
}

/// Begins all before it waits for any of them, so that what they send goes out together; `None` is what
/// had no answer in time.
async fn together<T>(
    asked: impl Iterator<Item = impl Future<Output = lapin::Result<T>>>,
) -> Vec<Option<lapin::Result<T>>> {
    let deadline = Instant::now() + ANSWER_TIME_MAX;
    let mut begun = Vec::new();
    for mut ask in asked.map(Box::pin) {
        begun.push((poll_once(&mut ask).await, ask));
    }
    let mut answers = Vec::with_capacity(begun.len());
    for (answer, ask) in begun {
        answers.push(match answer {
            Some(answer) => Some(answer),
            None => timeout_at(deadline, ask).await.ok(),
        });
    }
    answers
}

fn no_answer(what: &str, time_max: Duration) -> BrokerError {
    let why = format!("no answer within {} s", time_max.as_secs());
    away(
        format!("failed to {what}"),
        why,
        "is it RabbitMQ that listens there, and is it alive? `rabbitmqctl status`",
    )
}

fn away(what: impl Into<String>, why: impl Into<String>, hint: &str) -> BrokerError {
    BrokerError::Away(Trouble { what: what.into(), why: why.into(), hint: hint.to_owned() })
}

fn refused(what: impl Into<String>, why: impl Into<String>, hint: &str) -> BrokerError {
    BrokerError::Refused(Trouble { what: what.into(), why: why.into(), hint: hint.to_owned() })
}

/// An exchange or queue that a command needs is not there.
fn not_there(what: &str, name: &str) -> BrokerError {
    refused(
        format!("there is no {what} {name}"),
        "the broker knows none of that name in this virtual host",
        "is --prefix right? A worker makes it when it starts; so does `deckswain topology --declare`",
    )
}

fn reply_code(error: &lapin::Error) -> Option<u16> {
    match error.kind() {
        ErrorKind::ProtocolError(error) => Some(error.get_id()),
        _ => None,
    }
}

fn explain(what: &str, error: &lapin::Error) -> BrokerError {
    let what = format!("failed to {what}");
    if let ErrorKind::IOError(io) = error.kind() {
        return explain_io(what, io);
    }
    let hint = match (error.kind(), reply_code(error)) {
        // RabbitMQ 3 says so with 503 and closes the connection, RabbitMQ 4 with 406.
        (_, Some(503 | PRECONDITION_FAILED)) if said(error).contains("exchange type") => {
            "on the broker's host: `rabbitmq-plugins enable rabbitmq_consistent_hash_exchange`"
        }
        (ErrorKind::InvalidProtocolVersion(_) | ErrorKind::ParsingError(_), _) => {
            "is it RabbitMQ that listens there? Its port is 5672; one that wants TLS, such as 5671, needs amqps://"
        }
        (_, Some(403)) => {
            "check the user, the password and the user's permissions (`rabbitmqctl list_permissions`)"
        }
        (_, Some(406)) => {
            "something of that name exists with other arguments: `deckswain topology` shows them; delete it, or choose another --prefix"
        }
        (_, Some(530)) => {
            "check the virtual host in --broker: `/` is written %2f; `rabbitmqctl list_vhosts` shows them"
        }
        _ => return away(what, said(error), "is the broker up? `rabbitmqctl status`"),
    };
    refused(what, said(error), hint)
}

/// The broker's own words, without the client's around them.
fn said(error: &lapin::Error) -> String {
    match error.kind() {
        ErrorKind::ProtocolError(error) => error.get_message().to_string(),
        ErrorKind::IOError(error) => error.to_string(),
        ErrorKind::ParsingError(_) => "what answers there does not speak AMQP 0-9-1".to_owned(),
        _ => error.to_string(),
    }
}

fn explain_io(what: String, error: &std::io::Error) -> BrokerError {
    let why = error.to_string();
    match error.kind() {
        std::io::ErrorKind::ConnectionAborted
        | std::io::ErrorKind::ConnectionReset
        | std::io::ErrorKind::UnexpectedEof => away(
            what,
            why,
            "is it RabbitMQ that listens there? A port that wants TLS, such as 5671, needs amqps://",
        ),
        std::io::ErrorKind::ConnectionRefused => away(
            what,
            why,
            "start RabbitMQ, or name the right host and port with --broker or DECKSWAIN_BROKER",
        ),
        _ => away(what, why, "check the host and the port in --broker or DECKSWAIN_BROKER"),
    }
}

/// Opens one connection; `Err` tells what cannot get better by waiting from what can.
async fn open(url: &str, name: &str) -> Result<Connection, BrokerError> {
    open_to_read(url, name, 0).await.map(|(connection, _)| connection)
}

/// Opens one, and tells which of its deliveries have properties that cannot be read, or that leave less than
/// `kept_free` bytes of a frame.
async fn open_to_read(url: &str, name: &str, kept_free: u32) -> Result<(Connection, Flaws), BrokerError> {
    let address = BrokerAddress::of(url)?;
    let tls = Tls::of(&address)?;
    let flaws = Flaws::default();
    let what = format!("connect to the broker at {}", address.endpoint());
    let properties = ConnectionProperties::default()
        .with_connection_name(name.into())
        .with_executor(tokio_executor_trait::Tokio::current())
        .with_reactor(GuardedReactor::new(address.frame_bytes_max(), kept_free, flaws.clone()));
    let time_max = address.connection_timeout().unwrap_or(ANSWER_TIME_MAX);
    let connect =
        Connection::connector(address.to_uri(), Box::new(tls::dial(tls.clone(), time_max)), properties);
    match timeout(time_max, connect).await {
        Ok(Ok(connection)) => Ok((connection, flaws)),
        Ok(Err(error)) => Err(explain_connect(&what, &error, &address, tls.as_ref())),
        Err(_) => Err(no_answer(&what, time_max)),
    }
}

fn explain_connect(
    what: &str,
    error: &lapin::Error,
    address: &BrokerAddress,
    tls: Option<&Tls>,
) -> BrokerError {
    if let (Some(tls), ErrorKind::IOError(io)) = (tls, error.kind())
        && let Some(told) = tls.explain(&format!("failed to {what}"), io)
    {
        return told;
    }
    if address.is_external() && reply_code(error) == Some(ACCESS_REFUSED) {
        return refused(
            format!("failed to {what}"),
            said(error),
            "EXTERNAL takes the user from the client certificate: `rabbitmq-plugins enable rabbitmq_auth_mechanism_ssl`, `auth_mechanisms.N = EXTERNAL` and a user of the certificate's name",
        );
    }
    explain(what, error)
}
