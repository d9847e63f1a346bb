//! The fault matrix: containers that are restarted while they work, and hosts with engines of their own.

mod support;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};
use support::faults::add_row;
use support::hosts::Host;
use support::{OwnDecky, PATIENCE, Peer, WorkerProcess, docker, file, inside, wait_until, with};

/// How many actions each cell publishes.
const ACTIONS: usize = 300;

/// The n-th action and its content; some are too large to share an exec.
fn plant(deckies: &[OwnDecky], n: usize) -> (Value, String) {
    let content = format!("content {n}\n").repeat(if n.is_multiple_of(10) { 4000 } else { 1 + n % 50 });
    let decky = &deckies[n % deckies.len()].name;
    (with(file(decky, &format!("/srv/m/f{n}")), json!({"content": content})), content)
}

async fn publish(peer: &Peer, deckies: &[OwnDecky]) -> HashMap<String, String> {
    let mut contents = HashMap::new();
    for n in 0..ACTIONS {
        let (action, content) = plant(deckies, n);
        let id = peer.submit(action).await;
        contents.insert(id, deckswain::result::sha256_hex(content.as_bytes()));
    }
    contents
}

/// Takes results until there is one of each action; each is a success and tells its own action's bytes.
async fn collect(peer: &Peer, contents: &HashMap<String, String>) -> Vec<Value> {
    let mut inbox = peer.consume("results").await;
    let (mut missing, mut results): (HashSet<&String>, _) = (contents.keys().collect(), Vec::new());
    while !missing.is_empty() {
        let result = inbox.next_json().await;
        let id = result["action_id"].as_str().unwrap();
        assert_eq!(result["success"], true, "{result}");
        assert_eq!(result["content_sha256"], contents[id].as_str());
        missing.remove(&id.to_owned());
        results.push(result);
    }
    assert_eq!((peer.count("dead").await, peer.count("actions").await), (0, 0));
    results
}

/// Every file holds its own action's bytes.
fn check_files(deckies: &[OwnDecky]) {
    for (at, decky) in deckies.iter().enumerate() {
        let listed = inside(&decky.name, &["sh", "-c", "cd /srv/m && sha256sum f*"]);
        let listed = String::from_utf8(listed).unwrap();
        let mut held: Vec<&str> = listed.lines().collect();
        let mut expected: Vec<String> = (at..ACTIONS)
            .step_by(deckies.len())
            .map(|n| {
                let sum = deckswain::result::sha256_hex(plant(deckies, n).1.as_bytes());
                format!("{sum}  f{n}")
            })
            .collect();
        held.sort_unstable();
        expected.sort_unstable();
        assert_eq!(held, expected, "{}", decky.name);
    }
}

fn row(name: &str, results: usize) {
    add_row(name, [ACTIONS, ACTIONS, 0, 0, results - ACTIONS], "-");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_while_containers_are_restarted_under_load() {
    let deckies: Arc<Vec<OwnDecky>> = Arc::new((0..3).map(|_| OwnDecky::start()).collect());
    let peer = Peer::connect().await;
    let retries = ["--retry-delays", "500ms,1s,2s", "--max-attempts", "20", "--container-cli", "docker"];
    let mut worker = WorkerProcess::start(&peer.prefix, &retries);
    let is_over = Arc::new(AtomicBool::new(false));
    let restarting = {
        let (deckies, is_over) = (deckies.clone(), is_over.clone());
        std::thread::spawn(move || {
            let mut restarts = 0;
            while restarts < 3 || (restarts < 6 && !is_over.load(Ordering::Relaxed)) {
                let decky = &deckies[restarts % deckies.len()];
                assert!(docker(&["restart", "-t", "0", &decky.container()]).status.success());
                restarts += 1;
            }
        })
    };
    let contents = publish(&peer, &deckies).await;
    worker.wait_for_line("class=\"infrastructure\"");
    let results = collect(&peer, &contents).await;
    is_over.store(true, Ordering::Relaxed);
    restarting.join().unwrap();
    assert_eq!(worker.stop(), 0);
    for decky in deckies.iter() {
        wait_until("the decky is back", || docker(&["exec", &decky.container(), "true"]).status.success());
    }
    check_files(&deckies);
    row("containers: restarted under load", results.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hosts_share_a_queue_and_each_action_is_done_where_its_decky_is_at_its_first_attempt() {
    let deckies = [OwnDecky::start(), OwnDecky::start()];
    let peer = Peer::connect().await;
    let hosts = deckies.each_ref().map(|decky| Host::with(&decky.name));
    let mut workers = hosts.each_ref().map(|host| {
        let retries = ["--retry-delays", "1s,2s", "--max-attempts", "3"];
        WorkerProcess::spawn(&peer.prefix, &[&retries[..], &["--container-cli", &host.client()]].concat())
    });
    for worker in &mut workers {
        worker.wait_for_line("2 consumers share");
    }
    let contents = publish(&peer, &deckies).await;
    let results = tokio::time::timeout(PATIENCE * 2, collect(&peer, &contents)).await.expect("all results");
    assert!(results.iter().all(|result| result["attempt"] == 1), "no attempt is counted");
    assert_eq!(results.len(), ACTIONS, "none twice");
    assert!(workers.into_iter().all(|worker| worker.stop() == 0));
    check_files(&deckies);
    row("hosts: two engines on the shared queue", results.len());
}
