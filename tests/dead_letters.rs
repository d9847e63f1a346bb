//! Dead letters: looked into, replayed, discarded, exported.

mod support;

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use futures_lite::StreamExt as _;
use lapin::BasicProperties;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicPublishOptions};
use lapin::types::{AMQPValue, FieldTable};
use serde_json::{Value, json};
use support::faults::Cell;
use support::tool::{actions_in, bury, command, json_lines, lines, text, tool, tool_fed, unbind_decky};

/// A cell whose exchanges and queues a worker has declared and left.
fn declared(name: &str) -> Cell {
    let cell = Cell::new(name);
    assert_eq!(cell.worker(&[]).stop(), 0);
    cell
}

fn ids(letters: &[Value]) -> Vec<String> {
    letters.iter().map(|letter| letter["action_id"].as_str().unwrap().to_owned()).collect()
}

/// Takes all messages of a queue: the action's path, and its headers.
async fn drain(cell: &Cell, queue: &str) -> Vec<(Value, HashMap<String, AMQPValue>)> {
    let waiting = cell.count(queue).await;
    let (connection, channel) = cell.connect().await;
    let name = format!("{}.{queue}", cell.prefix);
    let consume = channel.basic_consume(&name, "", BasicConsumeOptions::default(), FieldTable::default());
    let mut consumer = consume.await.unwrap();
    let mut drained = Vec::new();
    while drained.len() < waiting {
        let delivery = consumer.next().await.unwrap().unwrap();
        delivery.ack(BasicAckOptions::default()).await.unwrap();
        let headers =
            delivery.properties.headers().as_ref().map(|headers| headers.inner().clone()).unwrap_or_default();
        let headers = headers.into_iter().map(|(name, value)| (name.to_string(), value)).collect();
        drained.push((serde_json::from_slice(&delivery.data).unwrap(), headers));
    }
    channel.close(200, "done").await.unwrap();
    connection.close(200, "done").await.unwrap();
    drained
}

#[tokio::test(flavor = "multi_thread")]
async fn looking_a_hundred_times_leaves_count_order_and_messages_as_they_were() {
    looks(300, 100).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn looking_at_more_than_one_channel_holds_leaves_them_as_they_were() {
    looks(4500, 3).await;
}

async fn looks(letters: usize, times: usize) {
    let cell = declared("dead letters: looking");
    let buried = bury(&cell, letters).await;
    let mut newest_first = buried.clone();
    newest_first.reverse();
    let first = tool(&cell, &["dead-letters", "list", "--json"]);
    assert_eq!(ids(&json_lines(&first)), newest_first);
    for _ in 1..times {
        assert!(tool(&cell, &["dead-letters", "list", "--json"]).stdout == first.stdout);
    }
    cell.wait_for_count("dead", |dead| dead == letters).await;
    let drained = drain(&cell, "dead").await;
    let left: Vec<Value> = drained.into_iter().map(|(body, _)| body["action_id"].clone()).collect();
    assert_eq!(left, buried);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_lists_the_newest_first_and_filters_narrow_it() {
    let cell = declared("dead letters: filters");
    let buried = bury(&cell, 40).await;
    let table = lines(&tool(&cell, &["dead-letters", "list", "--limit", "2"]));
    assert_eq!(
        table[0].split_whitespace().collect::<Vec<_>>().join(" "),
        "WHEN REASON CLASS KIND DECKY PATH ATTEMPTS ACTION ID"
    );
    let row = format!(
        "2026-01-01T00:00:39Z  attempts-exhausted  timeout         remove  web-09  /m/00039  5         {}",
        buried[39]
    );
    assert_eq!(table[1], row);
    assert_eq!(table.len(), 3);

    let listed = |filter: &[&str]| {
        let output = tool(&cell, &[&["dead-letters", "list", "--json"], filter].concat());
        let mut listed = ids(&json_lines(&output));
        listed.reverse();
        listed
    };
    let every = |wanted: fn(usize) -> bool| -> Vec<String> {
        buried.iter().enumerate().filter(|(n, _)| wanted(*n)).map(|(_, id)| id.clone()).collect()
    };
    assert_eq!(listed(&["--class", "timeout"]), every(|n| n % 2 == 1));
    assert_eq!(listed(&["--decky", "web-0[12]"]), every(|n| matches!(n % 10, 1 | 2)));
    assert_eq!(listed(&["--kind", "file"]), every(|_| false));
    assert_eq!(listed(&["--id", &buried[3], "--id", &buried[5]]), every(|n| n == 3 || n == 5));
    assert_eq!(
        listed(&["--since", "2026-01-01T00:00:10Z", "--until", "2026-01-01T00:00:12Z"]),
        every(|n| n == 10 || n == 11)
    );
    assert_eq!(listed(&["--since", "1s"]), every(|_| false));
    assert_eq!(listed(&["--limit", "5"]), every(|n| n >= 35));
}

#[tokio::test(flavor = "multi_thread")]
async fn show_tells_all_and_lets_no_byte_of_it_steer_the_terminal() {
    let mut cell = declared("dead letters: show");
    cell.deckies = 1;
    let id = uuid::Uuid::new_v4().to_string();
    let action = json!({"kind": "file", "dst_uuid": "d-1", "dst_name": "web-01", "path": "/a\u{1b}[2J/../b", "action_id": id});
    let refused = tool_fed(&cell, &["submit"], &action.to_string());
    assert_eq!(refused.status.code(), Some(2), "submit checks");
    let (connection, channel) = cell.connect().await;
    let exchange = format!("{}.actions", cell.prefix);
    let (body, options) = (action.to_string(), BasicPublishOptions::default());
    let publish = channel.basic_publish(
        &exchange,
        "decky.web-01",
        options,
        body.as_bytes(),
        BasicProperties::default(),
    );
    publish.await.unwrap();
    let worker = cell.worker(&[]);
    cell.wait_for_count("dead", |dead| dead == 1).await;
    assert_eq!(worker.stop(), 0);
    connection.close(200, "done").await.unwrap();

    let shown = text(&tool(&cell, &["dead-letters", "show", &id]).stdout);
    for told in
        ["reason      invalid", "class       invalid", "x-deckswain-message: \"", "\"dst_name\": \"web-01\""]
    {
        assert!(shown.contains(told), "{told} is missing in:\n{shown}");
    }
    assert!(!shown.contains('\u{1b}'));
    let whole = json_lines(&tool(&cell, &["dead-letters", "show", "--json", &id])).remove(0);
    assert_eq!(whole["body"], action);
    assert_eq!(whole["headers"]["x-deckswain-routing-key"], "decky.web-01");
    let missing = tool(&cell, &["dead-letters", "show", "none"]);
    assert_eq!(
        (missing.status.code(), text(&missing.stderr).contains("there is no dead letter of action none")),
        (Some(1), true)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn replay_publishes_the_original_anew_and_counts_itself() {
    let cell = declared("dead letters: replay");
    let buried = bury(&cell, 30).await;
    let asked = tool(&cell, &["dead-letters", "replay"]);
    assert_eq!(asked.status.code(), Some(2));
    assert!(text(&asked.stderr).contains("there is nobody to ask"));
    let dry = tool(&cell, &["dead-letters", "replay", "--dry-run"]);
    assert!(dry.status.success() && text(&dry.stderr).contains("would replay 30"));
    assert_eq!((cell.count("dead").await, cell.count("actions").await), (30, 0));

    let replayed = tool(&cell, &["dead-letters", "replay", "--class", "timeout", "--yes"]);
    assert!(text(&replayed.stderr).contains("replay: 15 of 15 done"));
    cell.wait_for_count("dead", |dead| dead == 15).await;
    let actions = drain(&cell, "actions").await;
    let replayed: BTreeSet<&str> =
        actions.iter().map(|(body, _)| body["action_id"].as_str().unwrap()).collect();
    assert_eq!(replayed, buried.iter().skip(1).step_by(2).map(String::as_str).collect());
    for (_, headers) in &actions {
        assert_eq!(headers.keys().collect::<Vec<_>>(), ["x-deckswain-replays"]);
        assert_eq!(headers["x-deckswain-replays"], AMQPValue::LongLongInt(1));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn replay_keeps_the_order_and_leaves_each_letter_that_comes_back() {
    let cell = declared("dead letters: replay in order");
    let buried = bury(&cell, 1000).await;
    unbind_decky(&cell, "web-03").await;
    let replayed = tool(&cell, &["dead-letters", "replay", "--yes"]);
    assert_eq!(replayed.status.code(), Some(3));
    let said = text(&replayed.stderr);
    assert!(said.contains("replay: 900 of 1000 done"), "{said}");
    let every = |wanted: fn(usize) -> bool| -> Vec<String> {
        buried.iter().enumerate().filter(|(n, _)| wanted(*n)).map(|(_, id)| id.clone()).collect()
    };
    let came_back = every(|n| n % 10 == 3);
    for id in &came_back {
        let line = format!("error: left where it is: {id}: the broker returned the message: NO_ROUTE");
        assert!(said.contains(&line), "{line} is missing in:\n{said}");
    }
    assert_eq!(ids(&actions_in(&cell, "actions").await), every(|n| n % 10 != 3));
    cell.wait_for_count("dead", |dead| dead == came_back.len()).await;
    assert_eq!(ids(&actions_in(&cell, "dead").await), came_back);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replayed_action_that_fails_again_comes_back_with_its_count() {
    let mut cell = declared("dead letters: replayed and failed again");
    cell.engine.set("engine-stopped", "");
    let worker = cell.worker(&["--max-attempts", "1"]);
    cell.publish(3).await;
    for replays in 0..3 {
        cell.wait_for_count("dead", |dead| dead == 3).await;
        let letters = json_lines(&tool(&cell, &["dead-letters", "list", "--json"]));
        assert!(
            letters.iter().all(|letter| letter["replays"] == replays && letter["attempts"] == 1),
            "{letters:?}"
        );
        let replayed = tool(&cell, &["dead-letters", "replay", "--yes"]);
        assert!(replayed.status.success(), "{}", text(&replayed.stderr));
    }
    cell.wait_for_count("dead", |dead| dead == 3).await;
    cell.engine.clear("engine-stopped");
    assert!(tool(&cell, &["dead-letters", "replay", "--yes"]).status.success());
    cell.engine.wait_for("end", 3).await;
    assert_eq!(worker.stop(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_that_is_killed_again_and_again_loses_none() {
    let cell = declared("dead letters: replay killed");
    let buried = bury(&cell, 3000).await;
    for n in 0..20_u64 {
        let mut replay = command(&cell, &["dead-letters", "replay", "--yes"]).spawn().unwrap();
        // The moments are spread over the start, the reading and the replaying; none of them is waited for.
        tokio::time::sleep(Duration::from_millis(20 + n * 37 % 400)).await;
        replay.kill().unwrap();
        replay.wait().unwrap();
    }
    // The broker gives back what the last one held when it has noticed that it is gone.
    let (mut replayed, mut publishes) = (BTreeSet::new(), 0);
    let began = std::time::Instant::now();
    while replayed.len() < buried.len() {
        assert!(began.elapsed() < support::PATIENCE, "{} of {} were replayed", replayed.len(), buried.len());
        assert!(tool(&cell, &["dead-letters", "replay", "--yes"]).status.success());
        let actions = drain(&cell, "actions").await;
        publishes += actions.len();
        replayed.extend(actions.into_iter().map(|(body, _)| body["action_id"].as_str().unwrap().to_owned()));
    }
    assert_eq!(replayed, buried.iter().cloned().collect());
    println!("{} of {} were replayed twice", publishes - buried.len(), buried.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn discard_removes_what_is_selected_and_export_writes_what_submit_reads() {
    let cell = declared("dead letters: discard and export");
    let buried = bury(&cell, 20).await;
    let exported = tool(&cell, &["dead-letters", "export", "--class", "timeout", "--limit", "4"]);
    let bodies = json_lines(&exported);
    assert_eq!(ids(&bodies).iter().collect::<Vec<_>>(), [&buried[1], &buried[3], &buried[5], &buried[7]]);
    let submitted = tool_fed(&cell, &["submit"], &text(&exported.stdout));
    assert_eq!(
        ids(&json_lines(&submitted)).into_iter().collect::<BTreeSet<_>>(),
        ids(&bodies).into_iter().collect()
    );
    assert_eq!(cell.count("actions").await, 4);
    assert!(tool(&cell, &["dead-letters", "discard", "--class", "timeout", "--yes"]).status.success());
    cell.wait_for_count("dead", |dead| dead == 10).await;
    let left = ids(&json_lines(&tool(&cell, &["dead-letters", "list", "--json"])));
    assert!(left.iter().all(|id| buried.iter().position(|buried| buried == id).unwrap() % 2 == 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_broker_gave_up_is_told_in_words() {
    let mut cell = declared("dead letters: poison");
    let id = cell.publish(1).await.remove(0);
    cell.engine.set("poison", cell.path(&id));
    let mut worker = cell.worker_starting(&[]);
    while cell.count("dead").await == 0 {
        if worker.has_ended() {
            worker = cell.worker_starting(&[]);
        }
    }
    worker.kill();
    let letter = json_lines(&tool(&cell, &["dead-letters", "list", "--json"])).remove(0);
    assert_eq!(letter["reason"], "delivery-limit");
    assert!(letter["message"].as_str().unwrap().contains("it may bring its worker down"));
    assert!(letter["died_at"].is_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_is_not_there_is_not_made_by_looking_for_it() {
    let cell = Cell::new("dead letters: no queue");
    for _ in 0..2 {
        let listed = tool(&cell, &["dead-letters", "list"]);
        assert_eq!(listed.status.code(), Some(3));
        assert!(text(&listed.stderr).contains("there is no queue"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn looking_while_a_worker_buries_and_a_replay_runs_loses_none() {
    let mut cell = Cell::new("dead letters: all at once");
    cell.engine.set("engine-stopped", "");
    let worker = cell.worker(&["--max-attempts", "1"]);
    cell.publish(300).await;
    let mut published = 300;
    // Each replay makes the worker bury again, while both look and more comes in.
    for _ in 0..10 {
        let mut replay =
            command(&cell, &["dead-letters", "replay", "--yes", "--rate", "400"]).spawn().unwrap();
        for _ in 0..10 {
            let listed = tool(&cell, &["dead-letters", "list", "--json"]);
            let listed = ids(&json_lines(&listed));
            assert_eq!(listed.iter().collect::<BTreeSet<_>>().len(), listed.len(), "none is shown twice");
        }
        cell.publish(20).await;
        published += 20;
        let _ = replay.wait().unwrap();
    }
    cell.wait_for_count("actions", |actions| actions == 0).await;
    cell.wait_for_count("dead", |dead| dead >= published).await;
    assert_eq!(worker.stop(), 0);
    let letters = drain(&cell, "dead").await;
    let left: BTreeSet<String> =
        letters.iter().map(|(body, _)| body["action_id"].as_str().unwrap().to_owned()).collect();
    assert_eq!((left.len(), letters.len()), (published, published));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_discard_that_was_confirmed_touches_nothing_that_came_later() {
    let cell = declared("dead letters: confirmed");
    let buried = bury(&cell, 3).await;
    let program = env!("CARGO_BIN_EXE_deckswain");
    // A terminal, as `script` makes one, is asked; the answer comes when more has been buried.
    let mut asked = std::process::Command::new("script")
        .args(["-qec", &format!("{program} dead-letters discard --kind remove"), "/dev/null"])
        .env("DECKSWAIN_BROKER", &cell.broker)
        .env("DECKSWAIN_PREFIX", &cell.prefix)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = Vec::new();
    let mut terminal = asked.stdout.take().unwrap();
    while !text(&said).contains("discard 3 dead letters? [y/N]") {
        let mut byte = [0];
        assert_eq!(std::io::Read::read(&mut terminal, &mut byte).unwrap(), 1, "{}", text(&said));
        said.push(byte[0]);
    }
    let later = bury(&cell, 2).await;
    std::io::Write::write_all(&mut asked.stdin.take().unwrap(), b"y\n").unwrap();
    assert!(asked.wait().unwrap().success());
    cell.wait_for_count("dead", |dead| dead == 2).await;
    let left: BTreeSet<String> =
        ids(&json_lines(&tool(&cell, &["dead-letters", "list", "--json"]))).into_iter().collect();
    assert_eq!(left, later.into_iter().collect());
    assert!(buried.iter().all(|id| !left.contains(id)));
}
