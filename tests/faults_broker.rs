//! The fault matrix, second row: the broker fails.

mod support;

use std::time::{Duration, Instant};

use lapin::ExchangeKind;
use lapin::options::{ExchangeDeclareOptions, ExchangeDeleteOptions, QueueDeleteOptions};
use lapin::types::FieldTable;
use support::PATIENCE;
use support::faults::{ACTIONS, Cell};
use support::own_broker::OwnBroker;
use tokio::time::sleep;

/// How long the broker stays frozen; the figure.
const FROZEN: Duration = Duration::from_secs(20);
/// How long the memory alarm lasts.
const ALARM: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_when_all_connections_are_closed() {
    let broker = OwnBroker::start();
    let mut cell = Cell::on("broker: all connections closed", &broker.url);
    cell.engine.set("slow", "0.1");
    let mut worker = cell.worker(&[]);
    cell.publish(ACTIONS).await;
    for ended in [30, 120] {
        cell.engine.wait_for("end", ended).await;
        broker.ctl(&["close_all_connections", "a test"]);
        worker.wait_for_line("consuming from");
    }
    broker.ctl(&["close_all_connections", "a test"]);
    cell.goes_on(Instant::now()).await;
    let verdict = cell.end(vec![worker]).await;
    assert!(verdict.run_twice == 0 && verdict.dead.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_when_the_broker_is_killed_and_started_again() {
    let broker = OwnBroker::start();
    let mut cell = Cell::on("broker: kill -9 and restart", &broker.url);
    cell.engine.set("slow", "0.02");
    let worker = cell.worker(&[]);
    cell.publish(ACTIONS).await;
    cell.engine.wait_for("end", 80).await;
    broker.kill();
    broker.up();
    cell.goes_on(Instant::now()).await;
    let verdict = cell.end(vec![worker]).await;
    assert!(verdict.run_twice == 0 && verdict.dead.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_when_the_broker_is_frozen_for_a_while() {
    let broker = OwnBroker::start();
    let mut cell = Cell::on("broker: frozen for 20 s", &broker.url);
    cell.engine.set("slow", "0.02");
    let worker = cell.worker(&[]);
    cell.publish(ACTIONS).await;
    cell.engine.wait_for("end", 80).await;
    broker.freeze();
    sleep(FROZEN).await;
    broker.thaw();
    cell.goes_on(Instant::now()).await;
    let verdict = cell.end(vec![worker]).await;
    assert!(verdict.run_twice == 0 && verdict.dead.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_under_a_memory_alarm() {
    let broker = OwnBroker::start();
    let mut cell = Cell::on("broker: memory alarm for 10 s", &broker.url);
    cell.engine.set("slow", "0.1");
    let mut worker = cell.worker(&[]);
    cell.publish(ACTIONS).await;
    cell.engine.wait_for("end", 20).await;
    broker.memory_alarm(true);
    sleep(ALARM).await;
    worker.wait_for_line("no confirm within");
    broker.memory_alarm(false);
    cell.goes_on(Instant::now()).await;
    let verdict = cell.end(vec![worker]).await;
    assert!(verdict.run_twice == 0 && verdict.dead.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_runs_is_answered_though_its_queue_was_deleted_and_declared_again() {
    let mut cell = Cell::new("broker: the actions queue deleted");
    let mut worker = cell.worker(&["--concurrency", "50", "--memory", "4GiB"]);
    for _ in 0..ACTIONS / 50 {
        cell.engine.set("hang", "");
        cell.publish(50).await;
        cell.engine.wait_for("begin", 8).await;
        // What lies in a queue is deleted with it; what the worker holds is not.
        cell.wait_for_count("actions", |ready| ready == 0).await;
        let (connection, channel) = cell.connect().await;
        let name = format!("{}.actions", cell.prefix);
        channel.queue_delete(&name, QueueDeleteOptions::default()).await.unwrap();
        connection.close(200, "done").await.unwrap();
        cell.engine.clear("hang");
        worker.wait_for_line("consuming from");
    }
    cell.goes_on(Instant::now()).await;
    let verdict = cell.end(vec![worker]).await;
    assert!(verdict.run_twice == 0 && verdict.results_twice == 0 && verdict.dead.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn results_wait_for_an_exchange_that_routes_them() {
    let mut cell = Cell::new("broker: results unroutable for a while");
    let mut worker = cell.worker(&["--no-results-queue"]);
    cell.publish(ACTIONS).await;
    worker.wait_for_line("returned the message");
    let before = cell.engine.calls("end").len();
    assert!(before < ACTIONS, "the worker goes on without a place for its results: {before} ran");
    cell.bind_results().await;
    let cause_ended = Instant::now();
    worker.wait_for_line("none waits");
    cell.goes_on(cause_ended).await;
    let verdict = cell.end(vec![worker]).await;
    assert!(verdict.run_twice == 0 && verdict.results_twice == 0 && verdict.dead.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_results_exchange_that_is_deleted_is_declared_again() {
    let mut cell = Cell::new("broker: the results exchange deleted");
    cell.engine.set("slow", "0.02");
    let mut worker = cell.worker(&[]);
    cell.publish(ACTIONS).await;
    let name = format!("{}.results", cell.prefix);
    for ended in [60, 120, 180] {
        cell.engine.wait_for("end", ended).await;
        // It is there again after the last time.
        let began = Instant::now();
        while !delete_exchange(&cell, &name).await {
            assert!(began.elapsed() < PATIENCE, "the exchange is not declared again");
        }
    }
    worker.wait_for_line("NOT_FOUND");
    cell.goes_on(Instant::now()).await;
    let verdict = cell.end(vec![worker]).await;
    assert!(verdict.run_twice == 0 && verdict.dead.is_empty());
}

/// Deletes an exchange; `false` where there is none.
async fn delete_exchange(cell: &Cell, name: &str) -> bool {
    let (connection, channel) = cell.connect().await;
    let passive = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
    let look = channel.exchange_declare(name, ExchangeKind::Topic, passive, FieldTable::default());
    let is_there = look.await.is_ok();
    if is_there {
        channel.exchange_delete(name, ExchangeDeleteOptions::default()).await.unwrap();
    }
    connection.close(200, "done").await.unwrap();
    is_there
}
