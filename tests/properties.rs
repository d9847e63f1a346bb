//! A message's properties: kept on every way, and those that ask for too much.

mod support;

use futures_lite::StreamExt as _;
use lapin::BasicProperties;
use lapin::options::{BasicConsumeOptions, BasicPublishOptions};
use lapin::types::FieldTable;
use serde_json::json;
use support::faults::Cell;
use support::own_broker::OwnBroker;
use support::raw::{RawConnection, RawProperties, long, table, text as long_text};
use support::tool::{json_lines, text, tool};
use support::{WorkerProcess, alpha, fresh_directory, inside};
use tokio::time::timeout;
use uuid::Uuid;

/// What RabbitMQ 4 takes unless it is told otherwise, in bytes.
const MESSAGE_BYTES_MAX: usize = 16 * 1024 * 1024;

fn integer(value: i64) -> Vec<u8> {
    [b"l".to_vec(), value.to_be_bytes().to_vec()].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_property_is_kept_through_a_retry_a_dead_letter_and_a_replay() {
    let cell = Cell::new("properties: kept");
    cell.engine.set("container-stopped", "web-01-ssh");
    let worker = cell.worker(&["--max-attempts", "2", "--retry-delays", "1s"]);
    let id = Uuid::new_v4().to_string();
    let action =
        json!({"kind": "remove", "dst_uuid": "d-1", "dst_name": "web-01", "path": "/m/p", "action_id": id});
    let headers = [
        (&b"table"[..], [b"F".to_vec(), table(&[(b"tenant", long_text(b"x"))])].concat()),
        (b"list", [b"A".to_vec(), long(&integer(1))].concat()),
        (b"null", b"V".to_vec()),
        (b"bytes", long_text(b"\xff\xfe")),
        (b"narrow", b"b\x07".to_vec()),
        (b"time", [b"T".to_vec(), 7_u64.to_be_bytes().to_vec()].concat()),
        (b"decimal", b"D\x02\x00\x00\x00\x05".to_vec()),
        (b"float", [b"d".to_vec(), 0.5_f64.to_be_bytes().to_vec()].concat()),
    ];
    let kept = RawProperties::default()
        .short("content_encoding", b"gzip")
        .short("cluster_id", b"c")
        .short("correlation_id", b"mine")
        .priority(7)
        .headers(&headers);
    let copies = [b"A".to_vec(), long(&long_text(format!("{}.results", cell.prefix).as_bytes()))].concat();
    let replays = (&b"x-deckswain-replays"[..], integer(i64::MAX));
    let published = kept
        .clone()
        .short("expiration", b"3600000")
        .short("user_id", b"guest")
        .headers(&[headers.as_slice(), &[replays.clone(), (b"CC", copies)]].concat());
    let mut raw = RawConnection::open(&cell.broker);
    raw.publish(
        &format!("{}.actions", cell.prefix),
        b"decky.web-01",
        &published,
        action.to_string().as_bytes(),
    );
    cell.wait_for_count("dead", |dead| dead == 1).await;
    assert_eq!(worker.stop(), 0);
    assert_eq!(cell.count("results").await, 1, "no copy goes where CC says");

    let shown = json_lines(&tool(&cell, &["dead-letters", "show", "--json", &id])).remove(0);
    assert_eq!(shown["reason"], "attempts-exhausted");
    let told =
        json!({"content_encoding": "gzip", "cluster_id": "c", "correlation_id": "mine", "priority": "7"});
    assert_eq!(shown["properties"], told);
    for (name, value) in [
        ("table", json!({"tenant": "x"})),
        ("list", json!([1])),
        ("null", json!(null)),
        ("bytes", json!({"base64": "//4="})),
        ("decimal", json!("0.05")),
        ("x-deckswain-expiration", json!("3600000")),
        ("x-deckswain-user-id", json!("guest")),
        ("x-deckswain-cc", json!([format!("{}.results", cell.prefix)])),
    ] {
        assert_eq!(shown["headers"].get(name), Some(&value), "{name}");
    }

    assert!(tool(&cell, &["dead-letters", "replay", "--yes"]).status.success());
    let (properties, body) = raw.take(&format!("{}.actions", cell.prefix));
    assert_eq!(body, action.to_string().as_bytes());
    let replayed = kept.short("expiration", b"3600000");
    assert!(replayed.are_among(&properties));
    let counted = RawProperties::default().headers(&[replays]);
    assert!(counted.are_among(&properties), "the count ends where it can go no further");
    assert!(!text_of(&properties).contains("x-deckswain-reason"));
}

fn text_of(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_goes_to_a_direct_reply_queue_and_never_to_a_queue_of_the_workers() {
    let cell = Cell::new("properties: reply_to");
    let mut worker = cell.worker(&[]);
    let (connection, channel) = cell.connect().await;
    let consume = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
    let mut replies =
        channel.basic_consume("amq.rabbitmq.reply-to", "", consume, FieldTable::default()).await.unwrap();
    let own = format!("{}.dead", cell.prefix);
    for (n, reply_to) in ["amq.rabbitmq.reply-to", &own].into_iter().enumerate() {
        let action = json!({"kind": "remove", "dst_uuid": "d-1", "dst_name": "web-01", "path": format!("/m/{n}"),
            "action_id": Uuid::new_v4()});
        let properties = BasicProperties::default().with_reply_to(reply_to.into());
        let (exchange, body) = (format!("{}.actions", cell.prefix), action.to_string());
        let options = BasicPublishOptions::default();
        channel.basic_publish(&exchange, "decky.web-01", options, body.as_bytes(), properties).await.unwrap();
    }
    let reply = timeout(support::PATIENCE, replies.next()).await.expect("a reply").unwrap().unwrap();
    assert!(text_of(&reply.data).contains("\"success\":true"));
    let said = worker.wait_for_line("reply_to");
    assert!(said.contains("names a queue of the workers"), "the first word of a reply_to: {said}");
    cell.wait_for_count("results", |results| results == 2).await;
    assert_eq!((cell.count("dead").await, worker.stop()), (0, 0));
    connection.close(200, "done").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forged_attempt_skips_retries_of_its_own_action_alone() {
    let cell = Cell::new("properties: forged attempt");
    cell.engine.set("container-stopped", "web-01-ssh");
    let worker = cell.worker(&[]);
    let action = json!({"kind": "remove", "dst_uuid": "d-1", "dst_name": "web-01", "path": "/m/p", "action_id": Uuid::new_v4()});
    let forged = RawProperties::default().headers(&[(b"x-deckswain-attempt", integer(u32::MAX.into()))]);
    let mut raw = RawConnection::open(&cell.broker);
    raw.publish(&format!("{}.actions", cell.prefix), b"decky.web-01", &forged, action.to_string().as_bytes());
    cell.wait_for_count("dead", |dead| dead == 1).await;
    let letter = json_lines(&tool(&cell, &["dead-letters", "list", "--json"])).remove(0);
    assert_eq!((&letter["reason"], &letter["attempts"]), (&json!("attempts-exhausted"), &json!(u32::MAX)));
    assert_eq!((cell.count("results").await, worker.stop()), (1, 0));
}

/// Has the broker take messages of at most so many bytes on channels that are opened from here on.
fn limit(broker: &OwnBroker, bytes: usize) {
    let both = format!(
        "application:set_env(rabbit, max_message_size, {bytes}), persistent_term:put(max_message_size, {bytes})."
    );
    broker.ctl(&["eval", &both]);
    broker.ctl(&["close_all_connections", "a test"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_that_the_broker_does_not_take_for_its_size_becomes_a_failure_without_payload() {
    let broker = OwnBroker::start();
    let cell = Cell::on("properties: too large", &broker.url);
    limit(&broker, MESSAGE_BYTES_MAX);
    let directory = fresh_directory(&alpha());
    inside(&alpha(), &["sh", "-c", &format!("head -c 13000000 /dev/zero >{directory}/blob")]);
    let mut worker = WorkerProcess::start(&cell.prefix, &["--broker", &broker.url]);
    let read = |id: &str| {
        json!({"kind": "read", "action_id": id, "dst_uuid": "d-1", "dst_name": alpha(),
            "path": format!("{directory}/blob"), "max_bytes": 12_582_912, "attribution": {"n": 1}})
    };
    let ids = [Uuid::new_v4().to_string(), Uuid::new_v4().to_string()];
    let submit = |id: &str| {
        let submitted = support::tool::tool_fed(&cell, &["submit", "--wait"], &read(id).to_string());
        serde_json::from_str::<serde_json::Value>(&text(&submitted.stdout)).expect("a result")
    };
    let fits = submit(&ids[0]);
    assert_eq!((&fits["success"], &fits["payload"]["truncated"]), (&json!(true), &json!(true)));
    assert_eq!(fits["payload"]["bytes"], 12_484_608);

    limit(&broker, 1024 * 1024);
    worker.wait_for_line("consuming from");
    let too_large = submit(&ids[1]);
    assert_eq!(
        (&too_large["success"], &too_large["failure"]["class"]),
        (&json!(false), &json!("unsupported"))
    );
    let message = too_large["failure"]["message"].as_str().unwrap();
    assert!(message.contains("message size 16"), "{message}");
    assert_eq!(too_large["payload"], json!({"error": message}));
    assert_eq!((&too_large["attribution"], &too_large["action_id"]), (&json!({"n": 1}), &json!(ids[1])));
    cell.wait_for_count("actions", |actions| actions == 0).await;
    assert_eq!(worker.stop(), 0);
}
