//! The worker on a real broker and real deckies.

mod support;

use std::collections::HashSet;

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use support::tool::{json_lines, on_suite};
use support::{Peer, WorkerProcess, alpha, beta, file, fresh_directory, header, inside, part, with};
use uuid::Uuid;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

#[tokio::test]
async fn a_result_carries_what_the_canary_worker_needs() {
    let peer = Peer::connect().await;
    let _worker = WorkerProcess::start(&peer.prefix, &["--worker-id", "w-7"]);
    let mut canaries = peer.bind_results("activity.*.canary.#").await;
    let mut replies = peer.bind_results("nothing.at.all").await;
    let directory = fresh_directory(&alpha());
    let bytes: Vec<u8> = (0..=255).collect();
    let id = Uuid::new_v4().to_string();
    let action = with(
        file(&alpha(), &format!("{directory}/q3.pdf")),
        json!({"content_bytes": STANDARD.encode(&bytes), "content_class": "canary_honeydoc_pdf",
               "attribution": {"token": "t-1", "exact": 1.10}}),
    );
    let mut headers = FieldTable::default();
    headers.insert("traceparent".into(), AMQPValue::LongString("00-aa-bb-01".into()));
    let properties = BasicProperties::default()
        .with_message_id(id.as_str().into())
        .with_correlation_id("c-1".into())
        .with_headers(headers);
    peer.publish(action.to_string().as_bytes(), properties).await;

    let delivery = canaries.next().await;
    let result: Value = serde_json::from_slice(&delivery.data).unwrap();
    assert_eq!(delivery.routing_key.as_str(), "activity.file.canary.ok.d-1");
    assert_eq!(delivery.properties.message_id().as_ref().unwrap().as_str(), id);
    assert_eq!(delivery.properties.correlation_id().as_ref().unwrap().as_str(), "c-1");
    assert_eq!(delivery.properties.kind().as_ref().unwrap().as_str(), "activity.result");
    assert_eq!(delivery.properties.content_type().as_ref().unwrap().as_str(), "application/json");
    assert_eq!(*delivery.properties.delivery_mode(), Some(2));
    assert!(delivery.properties.timestamp().is_some());
    assert_eq!(header(&delivery, "traceparent").as_deref(), Some("00-aa-bb-01"));
    assert_eq!(result["action_id"], id);
    assert_eq!(result["success"], true);
    assert_eq!(result["disposition"], "completed");
    assert_eq!(result["attempt"], 1);
    assert_eq!(result["worker"]["id"], "w-7");
    assert_eq!(result["content_sha256"], hex(&bytes));
    assert!(String::from_utf8_lossy(&delivery.data).contains(r#""attribution":{"exact":1.1,"token":"t-1"}"#));
    assert_eq!(inside(&alpha(), &["cat", &format!("{directory}/q3.pdf")]), bytes);

    let reply = Uuid::new_v4().to_string();
    let action = with(file(&alpha(), &format!("{directory}/b")), json!({"action_id": reply}));
    let queue = replies.queue();
    let properties = BasicProperties::default().with_reply_to(queue.as_str().into());
    peer.publish(action.to_string().as_bytes(), properties).await;
    assert_eq!(replies.next_json().await["action_id"], reply);
}

#[tokio::test]
async fn what_is_no_action_lies_in_the_dead_letters_byte_for_byte_and_the_worker_goes_on() {
    let peer = Peer::connect().await;
    let worker = WorkerProcess::start(&peer.prefix, &[]);
    let mut results = peer.consume("results").await;
    let mut dead = peer.consume("dead").await;
    let id = Uuid::new_v4().to_string();
    let valid = with(file(&alpha(), "/tmp/x"), json!({"action_id": id}));
    let flawed = |fields: Value| with(valid.clone(), fields).to_string().into_bytes();
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (flawed(json!({"kind": "dance"})), "/kind"),
        (flawed(json!({"mtime": 7})), "/mtime"),
        (flawed(json!({"pth": "/tmp/x"})), "/pth"),
        (flawed(json!({"content_bytes": "_-_-"})), "/content_bytes"),
        (flawed(json!({"content_bytes": "YQ"})), "/content_bytes"),
        (flawed(json!({"content_bytes": "YWJj\nYWJj"})), "/content_bytes"),
        (flawed(json!({"path": "tmp/x"})), "/path"),
        (flawed(json!({"path": "/tmp/../x"})), "/path"),
        (flawed(json!({"path": "/tmp/\u{0}"})), "/path"),
        (flawed(json!({"dst_name": "-v"})), "/dst_name"),
        (flawed(json!({"content": "x".repeat(4 * 1024 * 1024 + 1)})), "/content"),
        (flawed(json!({"content": "x".repeat(17 * 1024 * 1024)})), "the message"),
        (
            json!({"action_id": id, "kind": "traffic", "src_uuid": "a", "src_name": "a", "dst_uuid": "b",
                   "dst_name": "b", "dst_ip": "localhost"})
            .to_string()
            .into_bytes(),
            "/dst_ip",
        ),
    ];
    for (body, pointer) in cases {
        // A body over the limit is not looked at: its id is known by its message_id.
        peer.publish(&body, BasicProperties::default().with_message_id(id.as_str().into())).await;
        let result = results.next_json().await;
        assert_eq!(result["action_id"], id);
        assert_eq!(result["failure"]["class"], "invalid");
        assert_eq!(result["disposition"], "dead_lettered");
        let message = result["failure"]["message"].as_str().unwrap();
        assert!(message.starts_with(&format!("{pointer}: expected")), "{message}");
        let letter = dead.next().await;
        assert!(letter.data == body, "{pointer}: the dead letter is the message");
        assert_eq!(header(&letter, "x-deckswain-reason").as_deref(), Some("invalid"));
        assert_eq!(header(&letter, "x-deckswain-message").as_deref(), Some(message));
    }
    // A name of 4 MB, each character of which is longer where it is escaped, does not travel.
    let named = flawed(json!({"\u{202e}".repeat(1_400_000): 1}));
    peer.publish(&named, BasicProperties::default()).await;
    let result = results.next().await.data;
    assert!(result.len() < 4096 && String::from_utf8_lossy(&result).contains("expected no such field"));
    let letter = dead.next().await;
    assert!(letter.data == named && header(&letter, "x-deckswain-message").unwrap().chars().count() <= 512);
    // Without an id it is answered under one that follows from its body.
    for body in [&b"not json"[..], b"[1]", b"{\"kind\":\"file\",\"path\":\"\xff\"}", b""] {
        peer.publish(body, BasicProperties::default()).await;
        assert_eq!(results.next_json().await["failure"]["class"], "invalid");
        assert_eq!(dead.next().await.data, body);
    }
    let directory = fresh_directory(&alpha());
    let id = peer.submit(file(&alpha(), &format!("{directory}/after"))).await;
    assert_eq!(results.next_json().await["action_id"], id);
    assert_eq!(worker.stop(), 0);
}

#[tokio::test]
async fn an_action_without_an_id_is_answered_and_found_among_the_dead_letters_by_that_answer() {
    let peer = Peer::connect().await;
    let worker = WorkerProcess::start(&peer.prefix, &[]);
    let mut results = peer.consume("results").await;
    let path = format!("{}/f", fresh_directory(&alpha()));
    let action = with(file(&alpha(), &path), json!({"attribution": {"token": "t-9"}}));
    peer.publish(action.to_string().as_bytes(), BasicProperties::default()).await;
    let result = results.next_json().await;
    assert!(result["failure"]["message"].as_str().unwrap().starts_with("/action_id: expected a UUID here"));
    assert_eq!(result["attribution"]["token"], "t-9");
    let id = result["action_id"].as_str().unwrap();
    support::wait_until("it is a dead letter", || {
        on_suite(&["dead-letters", "show", "--prefix", &peer.prefix, id]).status.success()
    });
    let letters =
        json_lines(&on_suite(&["dead-letters", "list", "--json", "--prefix", &peer.prefix, "--id", id]));
    assert_eq!(letters[0]["action_id"], id);
    // What `export` writes has the id, so that it can be submitted.
    let exported = json_lines(&on_suite(&["dead-letters", "export", "--prefix", &peer.prefix])).remove(0);
    peer.publish(exported.to_string().as_bytes(), BasicProperties::default()).await;
    let result = results.next_json().await;
    assert_eq!((&result["action_id"], &result["success"]), (&json!(id), &json!(true)));
    assert_eq!(worker.stop(), 0);
}

#[tokio::test]
async fn two_hundred_mixed_actions_give_one_result_each_in_little_memory() {
    let peer = Peer::connect().await;
    let worker = WorkerProcess::start(&peer.prefix, &["--timeout", "30s", "--grace", "60s"]);
    let mut results = peer.consume("results").await;
    let directory = fresh_directory(&alpha());
    inside(&beta(), &["mkdir", "-p", &directory]);
    let mut ids = HashSet::new();
    let deckies = [alpha(), beta()];
    for i in 0..200 {
        let path = format!("{directory}/{i}");
        let base = json!({"dst_uuid": "d-1", "dst_name": deckies[i % 2], "path": path});
        let action = match i % 5 {
            0 | 1 => with(base, json!({"kind": "file", "content": format!("line {i}\n")})),
            2 => with(
                base,
                json!({"kind": "edit", "persona": "alice", "content_class": "note", "previous_body": "a\n",
                       "synthetic_file_uuid": "s-1"}),
            ),
            3 => with(base, json!({"kind": "read", "path": "/etc/hostname"})),
            _ => with(base, json!({"kind": "remove"})),
        };
        ids.insert(peer.submit(action).await);
    }
    for _ in 0..200 {
        let result = results.next_json().await;
        assert_eq!(result["success"], true, "{result}");
        assert!(ids.remove(result["action_id"].as_str().unwrap()), "each action has one result");
    }
    assert!(ids.is_empty());
    let memory_kib = worker.memory_peak_kib();
    println!("peak resident memory: {memory_kib} KiB");
    assert!(memory_kib < 40 * 1024, "{memory_kib} KiB");
    assert_eq!(worker.stop(), 0);
    assert_eq!(peer.count("actions").await, 0);
    assert_eq!(peer.count("results").await, 0);
}

#[tokio::test]
async fn three_mebibytes_arrive_with_an_equal_digest() {
    let peer = Peer::connect().await;
    let _worker = WorkerProcess::start(&peer.prefix, &["--timeout", "30s"]);
    let mut results = peer.consume("results").await;
    let mut bytes = Vec::with_capacity(3 * 1024 * 1024);
    while bytes.len() < 3 * 1024 * 1024 {
        bytes.extend_from_slice(Uuid::new_v4().as_bytes());
    }
    let path = format!("{}/blob", fresh_directory(&alpha()));
    peer.submit(with(file(&alpha(), &path), json!({"content_bytes": STANDARD.encode(&bytes)}))).await;
    let result = results.next_json().await;
    assert_eq!(result["success"], true, "{result}");
    assert_eq!(result["content_sha256"], hex(&bytes));
    let there = String::from_utf8(inside(&alpha(), &["sha256sum", &path])).unwrap();
    assert!(there.starts_with(&hex(&bytes)));
}

#[tokio::test]
async fn an_action_is_not_acked_before_its_result_is_in_a_queue() {
    let peer = Peer::connect().await;
    let mut worker = WorkerProcess::start(&peer.prefix, &["--no-results-queue"]);
    let path = format!("{}/f", fresh_directory(&alpha()));
    let id = peer.submit(file(&alpha(), &path)).await;
    worker.wait_for_line("returned the message");
    // The worker dies; had it acked, the action would be gone.
    worker.signal("-KILL");
    drop(worker);
    let _second = WorkerProcess::start(&peer.prefix, &["--no-results-queue"]);
    let mut results = peer.bind_results("#").await;
    let result = results.next_json().await;
    assert_eq!(result["action_id"], id);
    assert_eq!(result["redelivered"], true);
}

#[tokio::test]
async fn an_action_for_a_stopped_decky_is_tried_again_and_then_dead_lettered_with_a_result() {
    let peer = Peer::connect().await;
    let _worker = WorkerProcess::start(&peer.prefix, &["--max-attempts", "2"]);
    let mut results = peer.consume("results").await;
    let mut dead = peer.consume("dead").await;
    for decky in [part("DECKSWAIN_TEST_STOPPED"), "never-was".to_owned()] {
        let id = peer.submit(file(&decky, "/tmp/f")).await;
        let result = results.next_json().await;
        assert_eq!(result["action_id"], id);
        assert_eq!(result["attempt"], 2);
        assert_eq!(result["failure"]["class"], "infrastructure");
        assert_eq!(result["disposition"], "dead_lettered");
        let letter = dead.next().await;
        assert_eq!(header(&letter, "x-deckswain-reason").as_deref(), Some("attempts-exhausted"));
        assert_eq!(serde_json::from_slice::<Value>(&letter.data).unwrap()["action_id"], id);
    }
}

#[tokio::test]
async fn what_policy_forbids_is_refused_and_dead_lettered_unrun() {
    let peer = Peer::connect().await;
    let _worker = WorkerProcess::start(&peer.prefix, &["--deny-path", "/etc/**"]);
    let mut results = peer.consume("results").await;
    let mut dead = peer.consume("dead").await;
    peer.submit(file(&alpha(), "/etc//deep/hosts.deny")).await;
    let result = results.next_json().await;
    assert_eq!(result["failure"]["class"], "refused");
    assert_eq!(result["disposition"], "dead_lettered");
    assert_eq!(header(&dead.next().await, "x-deckswain-class").as_deref(), Some("refused"));
}

#[tokio::test]
async fn an_expired_action_is_not_run() {
    let peer = Peer::connect().await;
    let _worker = WorkerProcess::start(&peer.prefix, &[]);
    let mut results = peer.consume("results").await;
    let expired = json!({"expires_at": "2020-01-01T00:00:00Z"});
    peer.submit(with(file("never-was", "/tmp/f"), expired)).await;
    let result = results.next_json().await;
    assert_eq!(result["failure"]["class"], "expired");
    assert_eq!(result["disposition"], "completed");
}

#[tokio::test]
async fn on_sigterm_the_worker_finishes_what_it_runs_and_gives_the_rest_back() {
    let peer = Peer::connect().await;
    let folder = tempfile::tempdir().unwrap();
    let client = folder.path().join("client");
    let (begun, go) = (folder.path().join("begun"), folder.path().join("go"));
    // A client that says that it has begun and then waits to be let go.
    let script = format!(
        "#!/bin/sh\n[ \"$1\" = exec ] || exit 0\necho >>'{}'\nwhile [ ! -e '{}' ]; do sleep 0.05; done\n",
        begun.display(),
        go.display()
    );
    std::fs::write(&client, script).unwrap();
    assert!(std::process::Command::new("chmod").arg("+x").arg(&client).status().unwrap().success());
    let client = client.to_str().unwrap();
    let mut worker = WorkerProcess::start(
        &peer.prefix,
        &["--container-cli", client, "--concurrency", "1", "--timeout", "25s"],
    );
    // Each of these has an exec of its own.
    let read = with(file("web-01", "/tmp/a"), json!({"kind": "read"}));
    let first = peer.submit(read.clone()).await;
    for _ in 0..3 {
        peer.submit(read.clone()).await;
    }
    let polled = tokio::time::timeout(support::PATIENCE, async {
        while !begun.exists() {
            tokio::task::yield_now().await;
        }
    });
    polled.await.expect("the first action begins");
    worker.signal("-TERM");
    worker.wait_for_line("finishing what runs");
    std::fs::write(&go, "").unwrap();
    assert_eq!(worker.wait(), 0);
    let mut results = peer.consume("results").await;
    assert_eq!(results.next_json().await["action_id"], first);
    assert_eq!(std::fs::read(&begun).unwrap().len(), 1, "nothing else was begun");
    assert_eq!(peer.count("actions").await, 3);
}

#[tokio::test]
async fn what_waiting_cannot_mend_ends_the_worker_with_a_hint() {
    let broker = part("DECKSWAIN_BROKER");
    for (url, word) in [
        (broker.replace("guest:guest", "guest:wrong"), "password"),
        (broker.replace("%2f", "no-such-place"), "virtual host"),
    ] {
        let mut worker = WorkerProcess::spawn("t", &["--broker", &url]);
        let line = worker.wait_for_line("try:");
        assert!(line.contains(word), "{line}");
        assert_eq!(worker.wait(), 3);
    }
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
