//! A worker whose engine is away, or never had a decky: nothing is tried in vain, and other workers go on.

mod support;

use serde_json::{Value, json};
use support::hosts::Host;
use support::{Inbox, OwnDecky, Peer, WorkerProcess, file, header, with};

/// Long delays: an attempt that is counted shows.
const RETRIES: [&str; 4] = ["--retry-delays", "1s,2s", "--max-attempts", "3"];

fn worker(peer: &Peer, client: &str) -> WorkerProcess {
    WorkerProcess::spawn(&peer.prefix, &[&RETRIES[..], &["--container-cli", client]].concat())
}

fn plant(decky: &str, n: usize) -> Value {
    with(file(decky, &format!("/srv/f{n}")), json!({"content": format!("content {n}")}))
}

/// Takes so many results, all of which are successes at the first attempt.
async fn take_at_the_first_attempt(results: &mut Inbox, count: usize) {
    for _ in 0..count {
        let result = results.next_json().await;
        assert_eq!((&result["success"], &result["attempt"]), (&json!(true), &json!(1)), "{result}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decky_that_no_host_has_ends_in_the_dead_letters_after_bounded_hand_backs() {
    let peer = Peer::connect().await;
    let hosts = [Host::with("one-of-them"), Host::with("another")];
    let delays = ["--retry-delays", "100ms,200ms", "--max-attempts", "2"];
    let mut workers = hosts.each_ref().map(|host| {
        WorkerProcess::spawn(&peer.prefix, &[&delays[..], &["--container-cli", &host.client()]].concat())
    });
    for worker in &mut workers {
        worker.wait_for_line("2 consumers share");
    }
    let id = peer.submit(plant("own-nowhere", 0)).await;
    let dead = peer.consume("dead").await.next().await;
    assert_eq!(header(&dead, "x-deckswain-reason").as_deref(), Some("attempts-exhausted"));
    let by = header(&dead, "x-deckswain-handed-back-by").expect("it was handed back");
    // While a worker opens its consumer further the broker counts one more, which can be one hand-back more.
    assert!((1..=2).contains(&by.split(',').count()), "each worker has it once at most: {by}");
    let result = peer.consume("results").await.next_json().await;
    assert_eq!((&result["action_id"], &result["attempt"]), (&json!(id), &json!(2)), "{result}");
    assert!(workers.into_iter().all(|worker| worker.stop() == 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_without_a_usable_engine_takes_nothing_until_the_engine_answers() {
    let decky = OwnDecky::start();
    let peer = Peer::connect().await;
    let (well, ill) = (Host::with(&decky.name), Host::with(&decky.name));
    ill.goes_away();
    let mut idle = worker(&peer, &ill.client());
    idle.wait_for_line("circuit open: the engine");
    let mut busy = worker(&peer, &well.client());
    busy.wait_for_line("consuming");
    for n in 0..60 {
        peer.submit(plant(&decky.name, n)).await;
    }
    take_at_the_first_attempt(&mut peer.consume("results").await, 60).await;
    assert_eq!(peer.count("dead").await, 0);
    ill.is_back();
    idle.wait_for_line("circuit closed: the engine");
    idle.wait_for_line("consuming");
    assert_eq!((idle.stop(), busy.stop()), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_goes_away_costs_no_action_an_attempt_and_other_workers_take_over() {
    let decky = OwnDecky::start();
    let peer = Peer::connect().await;
    let (well, ill) = (Host::with(&decky.name), Host::with(&decky.name));
    let mut workers = [worker(&peer, &ill.client()), worker(&peer, &well.client())];
    for worker in &mut workers {
        worker.wait_for_line("2 consumers share");
    }
    let mut results = peer.consume("results").await;
    ill.goes_away();
    for n in 0..60 {
        peer.submit(plant(&decky.name, n)).await;
    }
    workers[0].wait_for_line("circuit open: the engine");
    take_at_the_first_attempt(&mut results, 60).await;
    // The failures of its absence do not keep the decky's own circuit open.
    let [mut left, gone] = workers;
    assert_eq!(gone.stop(), 0);
    ill.is_back();
    left.wait_for_line("circuit closed: the engine");
    for n in 60..90 {
        peer.submit(plant(&decky.name, n)).await;
    }
    take_at_the_first_attempt(&mut results, 30).await;
    assert_eq!(peer.count("dead").await, 0);
    assert_eq!(left.stop(), 0);
}

#[test]
fn a_worker_ends_at_once_where_there_is_no_client_program() {
    let mut worker = WorkerProcess::spawn("none", &["--container-cli", "no-such-program"]);
    worker.wait_for_line("there is no program no-such-program");
    assert_eq!(worker.wait(), 2);
}
