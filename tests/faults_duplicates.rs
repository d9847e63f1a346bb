//! The fault matrix: actions that come more than once, by the broker's doing or by a planner's.

mod support;

use std::collections::{HashMap, HashSet};

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use serde_json::{Value, json};
use support::faults::Cell;
use support::proxy::Proxy;
use support::tool::{json_lines, text, tool, tool_fed};
use support::{OwnDecky, Peer, WorkerProcess, docker, file, header, with};
use uuid::Uuid;

/// A worker of this prefix on the cell's scripted engine.
fn worker_of(peer: &Peer, cell: &Cell, arguments: &[&str]) -> WorkerProcess {
    let client = cell.engine.client();
    let own = ["--container-cli", client.to_str().unwrap(), "--retry-delays", "1s", "--max-attempts", "2"];
    WorkerProcess::start(&peer.prefix, &[&own, arguments].concat())
}

#[tokio::test]
async fn an_action_that_is_submitted_again_is_run_or_answered_with_its_own_result() {
    let (peer, cell) = (Peer::connect().await, Cell::new("submitted again"));
    let worker = worker_of(&peer, &cell, &[]);
    let (mut results, mut dead) = (peer.consume("results").await, peer.consume("dead").await);
    let id = Uuid::new_v4().to_string();
    let action = |path: &str| {
        json!({"kind": "remove", "dst_uuid": "d-1", "dst_name": "web-01", "path": path, "action_id": id})
            .to_string()
    };
    let submit = async |path: &str| peer.publish(action(path).as_bytes(), BasicProperties::default()).await;
    let begun = |path: &str| cell.engine.calls("begin").get(path).copied().unwrap_or_default();

    // Tried, tried again and given up.
    cell.engine.set("container-stopped", "web-01-ssh");
    submit("/m/a").await;
    let result = results.next_json().await;
    assert_eq!((&result["attempt"], &result["disposition"]), (&json!(2), &json!("dead_lettered")));
    assert_eq!(header(&dead.next().await, "x-deckswain-attempts").as_deref(), Some("LongLongInt(2)"));
    // Submitted again as it was, it is run: it fails once more, and succeeds at its second attempt.
    submit("/m/a").await;
    let refused = || cell.engine.calls("refused").values().sum::<usize>();
    support::wait_until("the first attempt fails", || refused() >= 3);
    cell.engine.clear("container-stopped");
    let result = results.next_json().await;
    assert_eq!((&result["attempt"], &result["success"]), (&json!(2), &json!(true)));
    assert_eq!(begun("/m/a"), 1);
    // Submitted once more, it is answered, and not run; each submission has its own correlation id.
    let properties = BasicProperties::default().with_correlation_id("c-2".into());
    peer.publish(action("/m/a").as_bytes(), properties).await;
    let again = results.next().await;
    assert_eq!(serde_json::from_slice::<Value>(&again.data).unwrap(), result);
    assert_eq!(again.properties.correlation_id().as_ref().unwrap().as_str(), "c-2");
    assert_eq!(begun("/m/a"), 1);
    // Another body under the id is another action, and each is answered with its own result.
    submit("/m/b").await;
    assert_eq!(results.next_json().await["payload"]["path"], "/m/b");
    submit("/m/a").await;
    assert_eq!(results.next_json().await, result);
    submit("/m/b").await;
    assert_eq!(results.next_json().await["payload"]["path"], "/m/b");
    assert_eq!((begun("/m/a"), begun("/m/b")), (1, 1));
    // A replay runs anew.
    let mut headers = FieldTable::default();
    headers.insert("x-deckswain-replays".into(), AMQPValue::LongLongInt(1));
    let properties = BasicProperties::default().with_headers(headers);
    peer.publish(action("/m/a").as_bytes(), properties).await;
    assert_ne!(results.next_json().await["finished_at"], result["finished_at"]);
    assert_eq!(begun("/m/a"), 2);
    assert_eq!(worker.stop(), 0);
    for queue in ["actions", "results", "dead", "retry.1s"] {
        assert_eq!(peer.count(queue).await, 0, "{queue}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delivery_given_back_while_its_action_fails_makes_each_attempt_once_and_one_dead_letter() {
    let mut cell = Cell::new("network: cut while each attempt fails");
    let proxy = Proxy::to(&cell.broker).await;
    cell.broker_of_worker = proxy.url.clone();
    cell.engine.set("hang", "");
    cell.queues.push("retry.1s".to_owned());
    let mut worker =
        cell.worker(&["--timeout", "2s", "--grace", "20s", "--max-attempts", "2", "--retry-delays", "1s"]);
    let id = cell.publish(1).await.remove(0);
    let path = cell.path(&id).to_owned();
    for attempt in [1, 2] {
        let begun = || cell.engine.calls("begin").get(&path).copied().unwrap_or_default();
        support::wait_until("the attempt begins", || begun() == attempt);
        proxy.cut();
        worker.wait_for_line("consuming from");
        worker.wait_for_line("duplicate delivery dropped");
    }
    cell.engine.clear("hang");
    cell.goes_on(std::time::Instant::now()).await;
    let verdict = cell.end(vec![worker]).await;
    assert_eq!(verdict.begun.iter().filter(|begun| **begun == path).count(), 2, "each attempt once");
    assert_eq!((verdict.dead.len(), verdict.dead_twice, verdict.results_twice), (1, 0, 0));
}

/// How many actions the cell below has: each has to fail twice before it is exported.
const EXPORTED: usize = 30;

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_that_are_exported_and_submitted_again_are_all_run_and_hold_their_own_bytes() {
    let cell = Cell::new("planner: exported, submitted again");
    // One that is not there at all would be looked for at other workers first.
    let decky = OwnDecky::start();
    assert!(docker(&["stop", "-t", "0", &decky.container()]).status.success());
    let usual = ["--broker", &cell.broker, "--retry-delays", "1s", "--max-attempts", "2"];
    let workers = [(), ()].map(|()| WorkerProcess::start(&cell.prefix, &usual));
    let content = |n: usize| format!("{n} {}\n", "x".repeat(n * 97));
    let actions: Vec<Value> = (0..EXPORTED)
        .map(|n| with(file(&decky.name, &format!("/srv/late/f{n}")), json!({"content": content(n)})))
        .collect();
    let input = Value::from(actions).to_string();
    let submit = |input: &str| {
        let output = tool_fed(&cell, &["submit", "--wait", "--wait-timeout", "50s", "-"], input);
        (output.status.code(), text(&output.stderr), text(&output.stdout))
    };
    let (status, said, _) = submit(&input);
    assert!(status == Some(1) && said.contains(&format!("{EXPORTED} failed, 0 without")), "{said}");

    assert!(docker(&["start", &decky.container()]).status.success());
    let exported = text(&tool(&cell, &["dead-letters", "export"]).stdout);
    let (status, said, printed) = submit(&exported);
    assert!(
        status == Some(0) && said.contains(&format!("{EXPORTED} succeeded, 0 failed, 0 without")),
        "{said}"
    );
    let results: Vec<Value> = printed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    // And once more: with two workers each is answered or run, and it is as if nothing had happened.
    let (status, said, _) = submit(&exported);
    assert!(
        status == Some(0) && said.contains(&format!("{EXPORTED} succeeded, 0 failed, 0 without")),
        "{said}"
    );

    let letters = json_lines(&tool(&cell, &["dead-letters", "list", "--json"]));
    let dead: HashSet<&str> = letters.iter().map(|letter| letter["action_id"].as_str().unwrap()).collect();
    let done: HashMap<&str, &Value> =
        results.iter().map(|result| (result["action_id"].as_str().unwrap(), result)).collect();
    assert_eq!((letters.len(), dead.len(), done.len()), (EXPORTED, EXPORTED, EXPORTED));
    assert!(dead.iter().all(|id| done.contains_key(id)), "the same ids");
    for n in 0..EXPORTED {
        let path = format!("/srv/late/f{n}");
        let held = docker(&["exec", &decky.container(), "cat", &path]).stdout;
        assert_eq!(text(&held), content(n), "{path}");
    }
    for worker in workers {
        assert_eq!(worker.stop(), 0);
    }
    for queue in ["actions", "retry.1s"] {
        assert_eq!(cell.count(queue).await, 0, "{queue}");
    }
    assert_eq!(cell.count("results").await, 3 * EXPORTED, "one result for each submission");
}
