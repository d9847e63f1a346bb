//! The fault matrix, third row: the network between worker and broker fails.

mod support;

use std::time::{Duration, Instant};

use support::faults::{ACTIONS, Cell};
use support::proxy::Proxy;

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_when_the_connections_are_cut() {
    let mut cell = Cell::new("network: cut, four times");
    let proxy = Proxy::to(&cell.broker).await;
    cell.broker_of_worker = proxy.url.clone();
    cell.engine.set("slow", "0.05");
    let mut worker = cell.worker(&[]);
    cell.publish(ACTIONS).await;
    for ended in [20, 60, 100] {
        cell.engine.wait_for("end", ended).await;
        proxy.cut();
        worker.wait_for_line("consuming from");
    }
    proxy.cut();
    cell.goes_on(Instant::now()).await;
    let verdict = cell.end(vec![worker]).await;
    assert!(verdict.run_twice == 0 && verdict.dead.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_or_repeated_when_everything_is_late() {
    let mut cell = Cell::new("network: delayed by 200 ms");
    let proxy = Proxy::to(&cell.broker).await;
    cell.broker_of_worker = proxy.url.clone();
    let worker = cell.worker(&[]);
    proxy.delay(Duration::from_millis(200));
    cell.publish(ACTIONS).await;
    cell.engine.wait_for("end", ACTIONS).await;
    proxy.delay(Duration::ZERO);
    cell.goes_on(Instant::now()).await;
    let verdict = cell.end(vec![worker]).await;
    assert!(verdict.run_twice == 0 && verdict.results_twice == 0 && verdict.dead.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_when_the_connections_fall_silent_and_stay_open() {
    let mut cell = Cell::new("network: half-open");
    let proxy = Proxy::to(&cell.broker).await;
    cell.broker_of_worker = proxy.url.clone();
    cell.engine.set("slow", "0.05");
    let mut worker = cell.worker(&[]);
    cell.publish(ACTIONS).await;
    cell.engine.wait_for("end", 60).await;
    proxy.fall_silent();
    worker.wait_for_line("connecting again until the broker answers");
    proxy.serve_new_connections();
    cell.goes_on(Instant::now()).await;
    let verdict = cell.end(vec![worker]).await;
    assert!(verdict.run_twice == 0 && verdict.dead.is_empty());
}
