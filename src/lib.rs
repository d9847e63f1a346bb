//! deckswain takes actions from an AMQP queue, performs them on decoy hosts and
//! publishes what came of them.
//!
//! delivery -> decode and check -> policy -> lane of its decky -> driver ->
//! subprocess -> activity result -> publish, confirm -> settle

// They panic where the stream cannot be written; `cli` has writers that do not.
#![deny(clippy::print_stderr, clippy::print_stdout)]

pub mod action;
pub mod backoff;
pub mod broker;
pub mod cli;
pub mod cut;
pub mod driver;
pub mod policy;
pub mod realism;
pub mod result;
pub mod schema;
mod secret_file;
pub mod subprocess;
pub mod worker;
