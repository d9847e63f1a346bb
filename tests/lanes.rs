//! What waits for one decky: in one exec where it can be, in its order, and given back whole.

mod support;

use std::collections::HashSet;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use serde_json::json;
use support::faults::Cell;
use support::own_broker::OwnBroker;
use support::tool::{text, tool_fed};
use support::{OwnDecky, Peer, WorkerProcess, alpha, docker, file, fresh_directory, inside, with};

/// A client that keeps count of its execs.
fn counting_client(folder: &Path) -> String {
    let client = folder.join("client");
    let script = format!(
        "#!/bin/sh\necho \"$*\" | head -c 300 | tr '\\n' ' ' >>{0}/calls; echo >>{0}/calls\nexec docker \"$@\"\n",
        folder.display()
    );
    std::fs::write(&client, script).unwrap();
    assert!(Command::new("chmod").arg("+x").arg(&client).status().unwrap().success());
    client.to_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_costs_few_execs_keeps_its_order_and_one_that_waits_alone_runs_alone() {
    let peer = Peer::connect().await;
    let folder = tempfile::tempdir().unwrap();
    let client = counting_client(folder.path());
    assert_eq!(WorkerProcess::start(&peer.prefix, &[]).stop(), 0);
    let directory = fresh_directory(&alpha());
    let mut results = peer.bind_results("#").await;
    for n in 0..300 {
        // The last of each path is what stays.
        let path = format!("{directory}/f{}", n % 10);
        peer.submit(with(file(&alpha(), &path), json!({"content": format!("{n}\n")}))).await;
    }
    let worker = WorkerProcess::start(&peer.prefix, &["--container-cli", &client]);
    let mut seen = HashSet::new();
    while seen.len() < 300 {
        let result = results.next_json().await;
        assert_eq!(result["success"], true, "{result}");
        assert!(seen.insert(result["action_id"].as_str().unwrap().to_owned()), "each once");
    }
    let held = String::from_utf8(inside(&alpha(), &["sh", "-c", &format!("cat {directory}/f*")])).unwrap();
    assert_eq!(
        held.split_whitespace().map(ToOwned::to_owned).collect::<Vec<_>>(),
        (290..300).map(|n| n.to_string()).collect::<Vec<_>>()
    );
    let calls = || std::fs::read_to_string(folder.path().join("calls")).unwrap();
    let execs = calls().lines().count();
    assert!(execs <= 40, "{execs} execs for 300 plants");
    peer.submit(file(&alpha(), &format!("{directory}/alone"))).await;
    assert_eq!(results.next_json().await["success"], true);
    assert_eq!(calls().lines().count(), execs + 1);
    assert_eq!(peer.count("actions").await, 0);
    assert_eq!(worker.stop(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_later_action_on_the_same_path_does_not_overtake_one_that_is_tried_again() {
    let peer = Peer::connect().await;
    let decky = OwnDecky::start();
    let mut worker = WorkerProcess::start(&peer.prefix, &["--retry-delays", "2s"]);
    let mut results = peer.bind_results("#").await;
    let note = |n: usize| with(file(&decky.name, "/srv/note"), json!({"content": n.to_string()}));
    docker(&["stop", "-t", "0", &decky.container()]);
    let mut ids = vec![peer.submit(note(1)).await];
    worker.wait_for_line("failed: ");
    docker(&["start", &decky.container()]);
    for n in 2..5 {
        ids.push(peer.submit(note(n)).await);
    }
    let elsewhere = peer.submit(file(&decky.name, "/srv/other")).await;
    let mut order = Vec::new();
    while order.len() < 5 {
        let result = results.next_json().await;
        assert_eq!(result["success"], true, "{result}");
        order.push(result["action_id"].as_str().unwrap().to_owned());
    }
    assert_eq!(order.remove(0), elsewhere, "another path waits for nothing");
    assert_eq!(order[0], ids[0]);
    assert_eq!(inside(&decky.name, &["cat", "/srv/note"]), b"4");
    assert_eq!(worker.stop(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_circuit_of_a_decky_that_is_gone_opens_and_closes_once_it_is_back() {
    let mut cell = Cell::new("batches: breaker");
    cell.deckies = 1;
    cell.engine.set("container-stopped", "web-00-ssh");
    let mut worker =
        cell.worker(&["--retry-delays", "500ms", "--max-attempts", "1000", "--deny-path", "/denied"]);
    // One by one, so that none is spared an exec by sharing it.
    for _ in 0..30 {
        cell.publish(1).await;
    }
    worker.wait_for_line("decky circuit open for 4 s");
    // Each of 30 actions has been due several times by now; three failures and a probe a pause were tried.
    let tried = cell.engine.calls("refused").values().sum::<usize>();
    assert!(tried <= 12, "{tried}");
    let denied = with(file("web-00", "/denied"), json!({"kind": "remove"}));
    let refused = tool_fed(&cell, &["submit", "--wait"], &denied.to_string());
    assert!(
        text(&refused.stdout).contains(r#""class":"refused""#),
        "at once, though the circuit of the decky is open"
    );
    cell.engine.clear("container-stopped");
    worker.wait_for_line("decky circuit closed");
    cell.engine.wait_for("end", 30).await;
    let verdict = cell.end(vec![worker]).await;
    assert!(verdict.run_twice == 0 && verdict.dead.len() == 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_sent_ahead_to_a_decky_that_hangs_is_not_begun_once_the_worker_stops() {
    let mut cell = Cell::new("lanes: stopped while a decky hangs");
    cell.deckies = 1;
    cell.engine.set("hang", "");
    let worker = cell.worker(&["--timeout", "3s", "--max-attempts", "1"]);
    cell.publish(8).await;
    // The first ran alone and took all of its time; with the second all others have been sent.
    cell.engine.wait_for("begin", 2).await;
    assert_eq!(worker.stop(), 0);
    assert_eq!(cell.engine.begun().len(), 2);
    assert_eq!(cell.count("actions").await, 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_delivered_again_while_it_runs_does_not_run_a_second_time() {
    let broker = OwnBroker::start();
    let mut cell = Cell::on("lanes: delivered again while it runs", &broker.url);
    cell.deckies = 1;
    cell.engine.set("slow", "0.5");
    let mut worker = cell.worker(&[]);
    cell.publish(8).await;
    // The first ran alone; with the second all others have been sent, and are held up.
    cell.engine.wait_for("begin", 2).await;
    cell.engine.set("hang", "");
    broker.ctl(&["close_all_connections", "a test"]);
    worker.wait_for_line("consuming from");
    cell.wait_for_count("actions", |ready| ready == 0).await;
    cell.engine.clear("slow");
    cell.engine.clear("hang");
    cell.goes_on(Instant::now()).await;
    let verdict = cell.end(vec![worker]).await;
    assert!(verdict.run_twice == 0 && verdict.dead.is_empty());
}
