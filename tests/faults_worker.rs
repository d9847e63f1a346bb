//! The fault matrix, first row: the worker fails.

mod support;

use std::time::Instant;

use support::faults::{ACTIONS, Cell};
use support::proxy::Proxy;

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_when_the_worker_is_killed_before_the_run() {
    let mut cell = Cell::new("worker: SIGKILL before the run");
    // One decky, so that only the first of the prefetched actions begins.
    cell.deckies = 1;
    cell.engine.set("hang", "");
    let worker = cell.worker(&[]);
    cell.publish(ACTIONS).await;
    cell.engine.wait_for("begin", 1).await;
    cell.wait_for_count("actions", |ready| ready < ACTIONS - 8).await;
    assert_eq!(cell.engine.calls("begin").len(), 1);
    worker.kill();
    let cause_ended = Instant::now();
    cell.engine.clear("hang");
    let worker = cell.worker(&[]);
    cell.goes_on(cause_ended).await;
    let verdict = cell.end(vec![worker]).await;
    assert!(verdict.run_twice <= 1 && verdict.results_twice == 0 && verdict.dead.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_when_the_worker_is_killed_during_the_run() {
    let mut cell = Cell::new("worker: SIGKILL during the run");
    cell.engine.set("slow", "0.02");
    let mut worker = cell.worker(&[]);
    cell.publish(ACTIONS).await;
    for ended in [50, 120, 200] {
        cell.engine.wait_for("end", ended).await;
        worker.kill();
        worker = cell.worker(&[]);
    }
    cell.goes_on(Instant::now()).await;
    let verdict = cell.end(vec![worker]).await;
    assert!(verdict.dead.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_when_the_worker_is_killed_between_the_run_and_its_result() {
    let mut cell = Cell::new("worker: SIGKILL before the result");
    let mut worker = cell.worker(&["--no-results-queue"]);
    cell.publish(ACTIONS).await;
    worker.wait_for_line("returned the message");
    cell.engine.wait_for("end", 8).await;
    worker.kill();
    cell.bind_results().await;
    let cause_ended = Instant::now();
    let worker = cell.worker(&["--no-results-queue"]);
    cell.goes_on(cause_ended).await;
    let verdict = cell.end(vec![worker]).await;
    assert!(verdict.run_twice >= 1, "what had run was run again");
    assert!(verdict.dead.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_when_the_worker_is_killed_between_the_confirm_and_the_ack() {
    let mut cell = Cell::new("worker: SIGKILL before the ack");
    let proxy = Proxy::to(&cell.broker).await;
    cell.broker_of_worker = proxy.url.clone();
    cell.engine.set("hang", "");
    let worker = cell.worker(&[]);
    cell.publish(ACTIONS).await;
    cell.engine.wait_for("begin", 8).await;
    proxy.hold_acks();
    cell.engine.clear("hang");
    // As many results as deliveries are held: every one of them is confirmed, none is acked.
    cell.wait_for_count("results", |ready| ready >= 16).await;
    worker.kill();
    let cause_ended = Instant::now();
    // What the proxy holds is never let through: the next worker does without it.
    proxy.cut();
    cell.broker_of_worker = cell.broker.clone();
    let worker = cell.worker(&[]);
    cell.goes_on(cause_ended).await;
    let verdict = cell.end(vec![worker]).await;
    assert!(verdict.results_twice >= 8, "only {} results came twice", verdict.results_twice);
    assert!(verdict.dead.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_or_run_twice_when_the_worker_is_told_to_stop_under_load() {
    let mut cell = Cell::new("worker: SIGTERM under load");
    cell.engine.set("slow", "0.02");
    let worker = cell.worker(&[]);
    cell.publish(ACTIONS).await;
    cell.engine.wait_for("end", 50).await;
    assert_eq!(worker.stop(), 0);
    assert_eq!(cell.engine.calls("begin"), cell.engine.calls("end"), "what had begun was finished");
    assert!(cell.count("actions").await > 0, "the rest was given back");
    let cause_ended = Instant::now();
    let worker = cell.worker(&[]);
    cell.goes_on(cause_ended).await;
    let verdict = cell.end(vec![worker]).await;
    assert!(verdict.run_twice == 0 && verdict.results_twice == 0 && verdict.dead.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_the_worker_and_its_clients_and_gives_everything_back() {
    let mut cell = Cell::new("worker: SIGTERM twice");
    cell.engine.set("hang", "");
    let mut worker = cell.worker(&[]);
    cell.publish(ACTIONS).await;
    cell.engine.wait_for("begin", 8).await;
    worker.signal("-TERM");
    worker.wait_for_line("finishing what runs");
    worker.signal("-TERM");
    assert_eq!(worker.wait(), 0);
    assert_eq!(cell.engine.processes(), Vec::<String>::new());
    assert!(cell.engine.calls("end").is_empty());
    cell.wait_for_count("actions", |ready| ready == ACTIONS).await;
    let cause_ended = Instant::now();
    cell.engine.clear("hang");
    let worker = cell.worker(&[]);
    cell.goes_on(cause_ended).await;
    let verdict = cell.end(vec![worker]).await;
    assert!(verdict.results_twice == 0 && verdict.dead.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_action_that_kills_its_worker_is_dead_lettered_and_its_neighbours_are_not() {
    let mut cell = Cell::new("worker: poison");
    let worker = cell.worker(&[]);
    cell.engine.set("hang", "");
    let ids = cell.publish(ACTIONS).await;
    let poison = ids[ACTIONS / 2].clone();
    cell.engine.set("poison", cell.path(&poison));
    cell.engine.clear("hang");
    cell.restart_until_dead(worker, &[]).await.kill();
    let cause_ended = Instant::now();
    let worker = cell.worker(&[]);
    cell.goes_on(cause_ended).await;
    let verdict = cell.end(vec![worker]).await;
    assert_eq!(verdict.dead.keys().collect::<Vec<_>>(), [&poison]);
    let headers = verdict.dead[&poison].properties.headers().as_ref().unwrap();
    assert!(headers.inner().keys().any(|name| name.as_str() == "x-death"), "{headers:?}");
}
