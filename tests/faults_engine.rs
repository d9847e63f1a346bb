//! The fault matrix, fourth row: the engine fails.

mod support;

use std::time::{Duration, Instant};

use support::faults::{ACTIONS, Cell};
use tokio::time::sleep;

/// How long the engine is stopped.
const STOPPED: Duration = Duration::from_secs(10);

const RETRIES: [&str; 4] = ["--retry-delays", "1s,2s,4s,8s", "--max-attempts", "6"];

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_while_the_client_program_is_missing() {
    let mut cell = Cell::new("engine: client program missing");
    cell.engine.set("slow", "0.02");
    let mut worker = cell.worker(&RETRIES);
    cell.publish(ACTIONS).await;
    cell.engine.wait_for("end", 80).await;
    cell.engine.missing(true);
    // The actions that are left stay in the queue, or come back to it, and cost no attempt.
    worker.wait_for_line("circuit open: the engine");
    cell.engine.missing(false);
    worker.wait_for_line("circuit closed: the engine");
    cell.goes_on(Instant::now()).await;
    let verdict = cell.end(vec![worker]).await;
    assert!(verdict.run_twice == 0 && verdict.results_twice == 0 && verdict.dead.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_while_the_engine_is_stopped() {
    let mut cell = Cell::new("engine: stopped for 10 s");
    cell.engine.set("slow", "0.02");
    let worker = cell.worker(&RETRIES);
    cell.publish(ACTIONS).await;
    cell.engine.wait_for("end", 80).await;
    cell.engine.set("engine-stopped", "");
    sleep(STOPPED).await;
    cell.engine.clear("engine-stopped");
    cell.goes_on(Instant::now()).await;
    let verdict = cell.end(vec![worker]).await;
    assert!(verdict.run_twice == 0 && verdict.results_twice == 0 && verdict.dead.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_container_holds_up_no_other_and_its_actions_are_done_once_it_runs() {
    let mut cell = Cell::new("engine: container stopped and started");
    cell.engine.set("container-stopped", "web-03-ssh");
    let worker = cell.worker(&RETRIES);
    cell.publish(ACTIONS).await;
    let others = ACTIONS - ACTIONS / cell.deckies;
    cell.engine.wait_for("end", others).await;
    assert_eq!(cell.engine.calls("begin").len(), others);
    cell.engine.clear("container-stopped");
    cell.goes_on(Instant::now()).await;
    let verdict = cell.end(vec![worker]).await;
    assert!(verdict.run_twice == 0 && verdict.results_twice == 0 && verdict.dead.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_engine_never_did_lies_in_the_dead_letters_and_has_a_result() {
    let mut cell = Cell::new("engine: stopped for good");
    cell.engine.set("engine-stopped", "");
    let worker = cell.worker(&["--retry-delays", "200ms,400ms", "--max-attempts", "3"]);
    cell.publish(ACTIONS).await;
    cell.wait_for_count("dead", |ready| ready == ACTIONS).await;
    cell.engine.clear("engine-stopped");
    cell.goes_on(Instant::now()).await;
    let verdict = cell.end(vec![worker]).await;
    assert!(verdict.results_twice == 0 && verdict.dead.len() == ACTIONS);
    let header =
        |name: &str| verdict.dead.values().filter_map(|dead| support::header(dead, name)).collect::<Vec<_>>();
    assert_eq!(header("x-deckswain-reason"), vec!["attempts-exhausted"; ACTIONS]);
    assert_eq!(header("x-deckswain-class"), vec!["infrastructure"; ACTIONS]);
}
