//! `submit`: checked, published, waited for.

mod support;

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::Stdio;

use lapin::options::QueueDeleteOptions;
use serde_json::{Value, json};
use support::PATIENCE;
use support::faults::Cell;
use support::proxy::Proxy;
use support::tool::{actions_in, command, json_lines, text, tool_fed, unbind_decky};

fn remove(n: usize) -> Value {
    json!({"kind": "remove", "dst_uuid": "d-1", "dst_name": format!("web-{:02}", n % 10), "path": format!("/m/{n:05}")})
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_actions_go_out_each_with_an_id_and_a_time() {
    let cell = Cell::new("submit: many");
    assert_eq!(cell.worker(&[]).stop(), 0);
    let input: String = (0..10_000).map(|n| remove(n).to_string() + "\n").collect();
    let taken = json_lines(&tool_fed(&cell, &["submit"], &input));
    let ids: BTreeSet<&str> = taken.iter().map(|line| line["action_id"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), 10_000);
    assert!(taken.iter().all(|line| line["issued_at"].is_string()));
    assert_eq!(cell.count("actions").await, 10_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_invalid_action_keeps_all_of_them_back() {
    let cell = Cell::new("submit: invalid");
    assert_eq!(cell.worker(&[]).stop(), 0);
    let input = json!([remove(1), {"kind": "remove", "dst_uuid": "d-1", "dst_name": "web-01", "path": "relative"}, remove(2)]);
    let refused = tool_fed(&cell, &["submit"], &input.to_string());
    assert_eq!(refused.status.code(), Some(2));
    let said = text(&refused.stderr);
    assert!(said.contains("action 2: /path:") && said.contains("nothing was published"), "{said}");
    assert!(refused.stdout.is_empty());
    assert_eq!(cell.count("actions").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_prints_the_results_and_ends_as_run_does() {
    let cell = Cell::new("submit: wait");
    let worker = cell.worker(&["--max-attempts", "1"]);
    let input: String = (0..20).map(|n| remove(n).to_string() + "\n").collect();
    let results = json_lines(&tool_fed(&cell, &["submit", "--wait"], &input));
    assert_eq!(results.len(), 20);
    assert!(results.iter().all(|result| result["success"] == true));
    cell.engine.set("engine-stopped", "");
    let failed = tool_fed(&cell, &["submit", "--wait"], &remove(1).to_string());
    assert_eq!(failed.status.code(), Some(1));
    let result: Value = serde_json::from_slice(&failed.stdout).unwrap();
    assert_eq!(result["failure"]["class"], "infrastructure");
    cell.engine.clear("engine-stopped");
    cell.engine.set("hang", "");
    let late = tool_fed(&cell, &["submit", "--wait", "--wait-timeout", "100ms"], &remove(2).to_string());
    assert_eq!(late.status.code(), Some(1));
    assert!(text(&late.stderr).contains("within 100ms"));
    cell.engine.clear("hang");
    assert_eq!(worker.stop(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_local_file_travels_as_content_bytes() {
    let cell = Cell::new("submit: file bytes");
    let worker = cell.worker(&[]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("card.pdf");
    std::fs::write(&path, [0xff, 0x00, 0x25]).unwrap();
    let path = path.to_str().unwrap();
    let action = json!({"kind": "file", "dst_uuid": "d-1", "dst_name": "web-01", "path": "/m/card.pdf"});
    let result =
        json_lines(&tool_fed(&cell, &["submit", "--wait", "--file-bytes", path], &action.to_string()))
            .remove(0);
    let printed = std::process::Command::new("sha256sum").arg(path).output().unwrap();
    assert_eq!(result["content_sha256"], text(&printed.stdout)[..64]);
    let two = tool_fed(&cell, &["submit", "--file-bytes", path], &json!([remove(1), remove(2)]).to_string());
    assert_eq!(two.status.code(), Some(2));
    assert_eq!(worker.stop(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_exchange_nothing_is_published() {
    let cell = Cell::new("submit: no exchange");
    let input = json!([remove(1), remove(2)]);
    let refused = tool_fed(&cell, &["submit"], &input.to_string());
    assert_eq!(refused.status.code(), Some(3));
    let said = text(&refused.stderr);
    assert!(said.contains(&format!("there is no exchange {}.actions", cell.prefix)), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_queue_takes_is_named_one_by_one() {
    let cell = Cell::new("submit: no queue");
    assert_eq!(cell.worker(&[]).stop(), 0);
    let (connection, channel) = cell.connect().await;
    let queue = format!("{}.actions", cell.prefix);
    channel.queue_delete(&queue, QueueDeleteOptions::default()).await.unwrap();
    connection.close(200, "done").await.unwrap();
    let refused = tool_fed(&cell, &["submit"], &json!([remove(1), remove(2)]).to_string());
    assert_eq!(refused.status.code(), Some(3));
    let said = text(&refused.stderr);
    assert_eq!(said.matches("error: not taken: ").count(), 2, "{said}");
    assert!(
        said.contains("submitted 0 of 2") && said.contains("why: the broker returned the message: NO_ROUTE"),
        "{said}"
    );
}

/// The number that each of these actions has by its path.
fn numbers(actions: &[Value]) -> Vec<usize> {
    actions.iter().map(|action| action["path"].as_str().unwrap()[3..].parse().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn actions_keep_the_order_of_the_input_though_no_queue_takes_some_of_them() {
    let cell = Cell::new("submit: order");
    assert_eq!(cell.worker(&[]).stop(), 0);
    unbind_decky(&cell, "web-03").await;
    let large = "x".repeat(40_000);
    let input = (0..1000).map(|n| {
        let mut action = remove(n);
        if n % 50 == 7 {
            action["kind"] = "file".into();
            action["content"] = large.as_str().into();
        }
        action.to_string() + "\n"
    });
    let submitted = tool_fed(&cell, &["submit"], &input.collect::<String>());
    assert_eq!(submitted.status.code(), Some(3));
    let said = text(&submitted.stderr);
    assert_eq!(said.matches("the broker returned the message: NO_ROUTE").count(), 101, "{said}");
    assert!(said.contains("submitted 900 of 1000"), "{said}");
    let expected: Vec<usize> = (0..1000).filter(|n| n % 10 != 3).collect();
    assert_eq!(numbers(&actions_in(&cell, "actions").await), expected);
    assert_eq!(text(&submitted.stdout).lines().count(), 900);
}

#[tokio::test(flavor = "multi_thread")]
async fn actions_keep_their_order_over_a_lost_connection() {
    let mut cell = Cell::new("submit: connection lost");
    assert_eq!(cell.worker(&[]).stop(), 0);
    let direct = cell.broker.clone();
    let proxy = Proxy::to(&direct).await;
    cell.broker.clone_from(&proxy.url);
    let mut submit = command(&cell, &["submit"]).stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = submit.stdin.take().unwrap();
    let feeding = std::thread::spawn(move || {
        (0..4000).for_each(|n| writeln!(stdin, "{}", remove(n)).unwrap());
    });
    let mut taken = BufReader::new(submit.stdout.take().unwrap()).lines();
    let first = taken.next().unwrap().unwrap();
    proxy.cut();
    let taken = 1 + tokio::task::spawn_blocking(move || taken.count()).await.unwrap();
    feeding.join().unwrap();
    let ended = tokio::time::timeout(PATIENCE, async { submit.wait().unwrap() }).await.unwrap();
    assert_eq!(ended.code(), Some(0), "it connects again: {first}");
    assert_eq!(taken, 4000);
    cell.broker = direct;
    let mut arrived = numbers(&actions_in(&cell, "actions").await);
    // Actions without a confirm when the connection was lost were sent again.
    let mut seen = BTreeSet::new();
    arrived.retain(|n| seen.insert(*n));
    assert_eq!(arrived, (0..4000).collect::<Vec<_>>());
}
