//! Many workers: shared out partitions, deckies of one's own engine, and what nobody takes.

mod support;

use std::collections::HashSet;
use std::time::{Duration, Instant};

use lapin::options::BasicPublishOptions;
use lapin::{BasicProperties, Channel};
use serde_json::{Value, json};
use support::faults::Cell;
use support::own_broker::OwnBroker;
use support::tool::{on_suite, text, tool};
use support::{OwnDecky, PATIENCE, Peer, WorkerProcess, alpha, docker, file, fresh_directory, inside, with};
use uuid::Uuid;

/// Publishes an action with the routing key that its decky calls for.
async fn publish(channel: &Channel, prefix: &str, action: &Value) -> String {
    let id = Uuid::new_v4().to_string();
    let body = with(action.clone(), json!({"action_id": id})).to_string();
    let key = format!("decky.{}", action["dst_name"].as_str().unwrap());
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let properties = BasicProperties::default().with_delivery_mode(2);
    let exchange = format!("{prefix}.actions");
    channel.basic_publish(&exchange, &key, options, body.as_bytes(), properties).await.unwrap();
    id
}

/// Waits until the worker says that it consumes from so many partitions.
fn wait_for_share(worker: &mut WorkerProcess, share: usize) {
    worker.wait_for_line(&format!("consuming from {share} of "));
}

/// Waits until the worker says that it consumes for so many deckies of its host.
fn wait_for_deckies(worker: &mut WorkerProcess, deckies: usize) {
    worker.wait_for_line(&format!(" for {deckies} deck"));
}

/// A decky that keeps a record of every plant, in the order in which the files appeared.
fn recording() -> OwnDecky {
    let decky = OwnDecky::start();
    // Without python each plant is renamed by this program.
    let put = "rm $(command -v python3); mv /usr/bin/mv /usr/bin/mv.real; \
               printf '#!/bin/sh\\nread -r n <\"$3\"; echo $n >>/srv/record; exec mv.real \"$@\"\\n' >/usr/bin/mv; \
               chmod +x /usr/bin/mv";
    inside(&decky.name, &["sh", "-c", put]);
    decky
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_edits_keep_their_order_while_workers_are_killed_and_added() {
    const EDITS: usize = 500;
    let deckies: Vec<OwnDecky> = std::iter::repeat_with(recording).take(20).collect();
    let peer = Peer::connect().await;
    let options = ["--partitions", "8", "--content-max", "65536", "--retry-delays", "1s"];
    let mut workers = vec![WorkerProcess::start(&peer.prefix, &options)];
    let mut ids = HashSet::new();
    for n in 1..=EDITS {
        for decky in &deckies {
            let edit = json!({"kind": "edit", "dst_uuid": "d-1", "dst_name": decky.name, "path": "/srv/notes",
                "persona": "alice", "content_class": "note", "previous_body": format!("{n}\n"),
                "synthetic_file_uuid": "f-1"});
            ids.insert(publish(&peer.channel, &peer.prefix, &edit).await);
        }
    }
    assert!(peer.channel.wait_for_confirms().await.unwrap().is_empty());
    let (mut results, mut killed, total) = (peer.consume("results").await, 0, ids.len());
    let (mut seen, mut repeated) = (0, 0);
    while !ids.is_empty() {
        let result = results.next_json().await;
        seen += 1;
        repeated += usize::from(!ids.remove(result["action_id"].as_str().unwrap()));
        assert_eq!(result["success"], true, "{result}");
        // Every so often the oldest worker is killed, and one or two are added.
        if total - ids.len() >= (killed + 1) * 2000 && killed < 4 {
            workers.push(WorkerProcess::start(&peer.prefix, &options));
            if killed % 2 == 0 {
                workers.push(WorkerProcess::start(&peer.prefix, &options));
            }
            workers.remove(0).signal("-KILL");
            killed += 1;
        }
    }
    assert_eq!(killed, 4);
    let mut plants = 0;
    for decky in &deckies {
        let record = String::from_utf8(inside(&decky.name, &["cat", "/srv/record"])).unwrap();
        let numbers: Vec<usize> = record.lines().map(|line| line.parse().unwrap()).collect();
        assert_eq!((numbers.first(), numbers.last()), (Some(&1), Some(&EDITS)));
        // What was not known to be done is done again, from there on in order; nothing is ever left out.
        assert!(numbers.windows(2).all(|pair| pair[1] <= pair[0] + 1), "{numbers:?}");
        let shown = String::from_utf8(inside(&decky.name, &["head", "-n", "1", "/srv/notes"])).unwrap();
        assert_eq!(shown.trim(), EDITS.to_string());
        plants += numbers.len();
    }
    println!("{total} edits: {plants} plants, {seen} results, {repeated} of them repeated");
    for worker in workers {
        assert_eq!(worker.stop(), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_are_shared_out_and_taken_over() {
    let mut cell = Cell::new("scaling: partitions");
    cell.queues = (0..6).map(|n| format!("partition.{n}")).collect();
    let mut first = cell.worker(&["--partitions", "6"]);
    let mut second = cell.worker_starting(&["--partitions", "6"]);
    wait_for_share(&mut second, 3);
    wait_for_share(&mut first, 3);
    let mut third = cell.worker_starting(&["--partitions", "6"]);
    for worker in [&mut first, &mut second, &mut third] {
        wait_for_share(worker, 2);
    }
    cell.engine.set("slow", "0.01");
    cell.publish(300).await;
    cell.engine.wait_for("end", 50).await;
    first.kill();
    assert_eq!(second.stop(), 0);
    wait_for_share(&mut third, 6);
    let verdict = cell.end(vec![third]).await;
    assert!(verdict.dead.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn large_bodies_in_all_of_64_partitions_stay_within_the_default_memory() {
    const DEFAULT_MEMORY_KIB: u64 = 256 * 1024;
    const ALLOWANCE_KIB: u64 = 40_000;
    let mut cell = Cell::new("scaling: large bodies, 64 partitions");
    cell.queues = (0..64).map(|n| format!("partition.{n}")).collect();
    (cell.partitions, cell.deckies) = (Some(64), 64);
    let mut worker = cell.worker_starting(&["--partitions", "64", "--timeout", "2m", "--grace", "2m"]);
    wait_for_share(&mut worker, 64);
    cell.publish(64).await;
    cell.engine.wait_for("end", 64).await;
    // Nothing comes to its end while bodies come into all partitions.
    cell.engine.set("hang", "");
    cell.publish_long(64, 4 * 1024 * 1024 - 1000).await;
    cell.publish(64).await;
    cell.engine.clear("hang");
    cell.engine.wait_for("end", 192).await;
    let peak_kib = worker.memory_peak_kib();
    println!("peak: {peak_kib} KiB");
    assert!(peak_kib < DEFAULT_MEMORY_KIB + ALLOWANCE_KIB, "{peak_kib} KiB");
    let verdict = cell.end(vec![worker]).await;
    assert!(verdict.run_twice == 0 && verdict.results_twice == 0 && verdict.dead.is_empty());
    for decky in 0..64 {
        let order = cell_order(&verdict.begun, 64, decky);
        assert!(order.len() == 3 && order.is_sorted(), "{order:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_action_that_kills_its_worker_takes_no_other_of_its_partition_with_it() {
    let mut cell = Cell::new("scaling: poison in a partition");
    cell.queues = (0..2).map(|n| format!("partition.{n}")).collect();
    let options = ["--partitions", "2"];
    let worker = cell.worker(&options);
    cell.engine.set("hang", "");
    let ids = cell.publish(100).await;
    let poison = ids[50].clone();
    cell.engine.set("poison", cell.path(&poison));
    cell.engine.clear("hang");
    let worker = cell.restart_until_dead(worker, &options).await;
    let verdict = cell.end(vec![worker]).await;
    assert_eq!(verdict.dead.keys().collect::<Vec<_>>(), [&poison]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_in_the_shared_queue_moves_when_partitions_take_its_place() {
    let mut cell = Cell::new("scaling: from shared to partitions");
    cell.queues.extend((0..4).map(|n| format!("partition.{n}")));
    assert!(tool(&cell, &["topology", "--declare"]).status.success());
    cell.publish(100).await;
    let worker = cell.worker(&["--partitions", "4"]);
    cell.publish(100).await;
    let refused = |arguments: &[&str], holds: &str| {
        let output = tool(&cell, &[&["worker"], arguments].concat());
        assert_eq!(output.status.code(), Some(3));
        assert!(text(&output.stderr).contains(holds), "{}", text(&output.stderr));
    };
    refused(&[], "is used by workers with --partitions");
    refused(&["--local"], "is used by workers with --partitions");
    refused(&["--partitions", "2"], "has more partitions than --partitions says");
    let verdict = cell.end(vec![worker]).await;
    assert!(verdict.run_twice == 0 && verdict.dead.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_without_the_plugin_is_told_how_to_get_it() {
    let broker = OwnBroker::start_without_plugins();
    let cell = Cell::on("scaling: no plugin", &broker.url);
    let output = tool(&cell, &["worker", "--partitions", "4"]);
    assert_eq!(output.status.code(), Some(3));
    let said = text(&output.stderr);
    assert!(said.contains("rabbitmq-plugins enable rabbitmq_consistent_hash_exchange"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decky_that_hangs_holds_up_no_other() {
    let mut cell = Cell::new("scaling: one decky hangs");
    cell.engine.set("hang-in", "web-03-ssh");
    // Fewer places than the decky that hangs has actions.
    let worker = cell.worker(&["--memory", "150MiB", "--retry-delays", "500ms"]);
    cell.publish(600).await;
    cell.engine.wait_for("end", 540).await;
    cell.engine.clear("hang-in");
    let verdict = cell.end(vec![worker]).await;
    assert!(verdict.run_twice == 0 && verdict.results_twice == 0 && verdict.dead.is_empty());
    let order = cell_order(&verdict.begun, 10, 3);
    assert_eq!(order.len(), 60);
    assert!(order.is_sorted(), "what was put off kept its order: {order:?}");
}

/// The numbers of the actions of one of a cell's deckies, as they began.
fn cell_order(begun: &[String], deckies: usize, decky: usize) -> Vec<usize> {
    let numbers = begun.iter().map(|path| path.rsplit('/').next().unwrap().parse::<usize>().unwrap());
    numbers.filter(|number| number % deckies == decky).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_local_worker_takes_what_is_for_the_deckies_of_its_engine_as_they_come_and_go() {
    let peer = Peer::connect().await;
    let guest = format!("own-{}", &Uuid::new_v4().simple().to_string()[..8]);
    let pattern = format!("{},{guest}", alpha());
    let mut worker = WorkerProcess::spawn(&peer.prefix, &["--local", "--allow-decky", &pattern]);
    wait_for_deckies(&mut worker, 1);
    let mut results = peer.bind_results("#").await;
    let directory = fresh_directory(&alpha());
    let here = publish(&peer.channel, &peer.prefix, &file(&alpha(), &format!("{directory}/a"))).await;
    assert_eq!(results.next_json().await["action_id"], here.as_str());
    // Nobody has this one yet.
    let early = publish(&peer.channel, &peer.prefix, &file(&guest, "/srv/early")).await;
    assert!(peer.channel.wait_for_confirms().await.unwrap().is_empty(), "it has a place");
    let listed = listed(&peer.prefix);
    assert_eq!((listed.len(), listed[0]["reason"].as_str()), (1, Some("unclaimed")));
    assert_eq!(listed[0]["action_id"], early.as_str());

    let decky = OwnDecky::start_as(&guest, "-ssh");
    wait_for_deckies(&mut worker, 2);
    let replayed = on_suite(&["dead-letters", "replay", "--yes", "--prefix", &peer.prefix]);
    assert!(replayed.status.success());
    assert_eq!(results.next_json().await["action_id"], early.as_str());
    assert_eq!(inside(&guest, &["cat", "/srv/early"]), b"");

    docker(&["stop", "-t", "0", &decky.container()]);
    wait_for_deckies(&mut worker, 1);
    let late = publish(&peer.channel, &peer.prefix, &file(&guest, "/srv/late")).await;
    assert!(peer.channel.wait_for_confirms().await.unwrap().is_empty(), "its host's queue keeps it");
    wait_for_parked(&peer, &guest).await;
    docker(&["start", &decky.container()]);
    let result = results.next_json().await;
    assert_eq!(
        (result["action_id"].as_str(), result["success"].as_bool()),
        (Some(late.as_str()), Some(true))
    );
    assert_eq!(worker.stop(), 0);
}

/// The numbers without those that ran before.
fn first_runs(numbers: &[usize]) -> Vec<usize> {
    let mut seen = HashSet::new();
    numbers.iter().copied().filter(|number| seen.insert(*number)).collect()
}

/// Waits until an action of the decky is parked.
async fn wait_for_parked(peer: &Peer, decky: &str) {
    let began = Instant::now();
    let queue = format!("parked.{decky}");
    while !peer.exists(&queue).await || peer.count(&queue).await == 0 {
        assert!(began.elapsed() < PATIENCE, "nothing is parked for {decky}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decky_that_moves_between_hosts_under_load_keeps_the_order_of_its_actions() {
    let mut cell = Cell::new("scaling: a decky moves 20 times");
    cell.queues = vec!["host.a".to_owned(), "host.b".to_owned(), "parked.web-01".to_owned()];
    cell.deckies = 3;
    let mut a = cell.worker_of("a", &["web-00", "web-01"], &[]);
    let mut b = cell.worker_of("b", &["web-02"], &[]);
    wait_for_deckies(&mut a, 2);
    wait_for_deckies(&mut b, 1);
    let mut published = 0;
    for n in 0..20 {
        cell.publish(30).await;
        published += 30;
        let is_at_a = n % 2 == 0;
        // Now and then it is on neither host for a while.
        cell.engine
            .set_deckies(if is_at_a { "a" } else { "b" }, if is_at_a { &["web-00"] } else { &["web-02"] });
        if n % 5 == 0 {
            cell.publish(30).await;
            published += 30;
        }
        let (to, deckies) = if is_at_a { ("b", ["web-02", "web-01"]) } else { ("a", ["web-00", "web-01"]) };
        cell.engine.set_deckies(to, &deckies);
        // Some moves follow at once, others when what was published has been done.
        if n % 3 == 0 {
            cell.engine.wait_for("end", published).await;
        }
    }
    let verdict = cell.end(vec![a, b]).await;
    assert!(verdict.dead.is_empty());
    let numbers = first_runs(&cell_order(&verdict.begun, 3, 1));
    assert_eq!(numbers.len(), published / 3);
    assert!(numbers.is_sorted(), "{numbers:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_local_worker_serves_hundreds_of_deckies() {
    let mut cell = Cell::new("scaling: 300 deckies of one host");
    cell.queues = vec!["host.a".to_owned()];
    cell.deckies = 300;
    let names: Vec<String> = (0..300).map(|n| format!("web-{n:02}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut worker = cell.worker_of("a", &names, &[]);
    wait_for_deckies(&mut worker, 300);
    cell.publish(600).await;
    let verdict = cell.end(vec![worker]).await;
    assert!(verdict.run_twice == 0 && verdict.results_twice == 0 && verdict.dead.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_dies_leaves_its_queue_to_others() {
    let mut cell = Cell::new("scaling: a host dies");
    cell.queues = vec!["host.a".to_owned(), "host.b".to_owned()];
    let names: Vec<String> = (0..10).map(|n| format!("web-{n:02}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut a = cell.worker_of("a", &names, &[]);
    let mut b = cell.worker_of("b", &["elsewhere"], &[]);
    wait_for_deckies(&mut a, 10);
    wait_for_deckies(&mut b, 1);
    // A second worker of the host waits for the first one's end.
    let mut standby = cell.worker_of("b", &["elsewhere"], &[]);
    standby.wait_for_line("standing by");
    cell.engine.set("slow", "0.02");
    cell.publish(300).await;
    cell.engine.wait_for("end", 50).await;
    a.kill();
    cell.engine.clear("slow");
    cell.engine.set_deckies("a", &[]);
    cell.engine.set_deckies("b", &names);
    cell.publish(100).await;
    let verdict = cell.end(vec![b, standby]).await;
    assert!(verdict.dead.is_empty());
    for decky in 0..10 {
        // The actions that ran when the worker was killed run again.
        let numbers = first_runs(&cell_order(&verdict.begun, 10, decky));
        assert!(numbers.len() == 40 && numbers.is_sorted(), "{numbers:?}");
    }
}

fn listed(prefix: &str) -> Vec<Value> {
    let output = on_suite(&["dead-letters", "list", "--json", "--prefix", prefix]);
    text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}
