//! Messages that the client library cannot read: they are dead-lettered as they are, and others go on.

mod support;

use std::io::{BufRead as _, BufReader};
use std::time::Duration;

use serde_json::json;
use support::faults::{ACTIONS, Cell};
use support::raw::{RawConnection, RawProperties, long, table, text as long_text};
use support::tool::{command, json_lines, text, tool};
use tokio::time::timeout;
use uuid::Uuid;

/// Within so long of a message that cannot be read other actions go on.
const OTHERS_GO_ON_WITHIN: Duration = Duration::from_secs(5);

/// A message that cannot be read.
struct Poison {
    /// Words of its reason.
    told: String,
    id: String,
    routing_key: Vec<u8>,
    properties: RawProperties,
    body: Vec<u8>,
}

impl Poison {
    fn new(told: &str, properties: RawProperties) -> Self {
        let id = Uuid::new_v4().to_string();
        let body = json!({"kind": "remove", "dst_uuid": "d-1", "dst_name": "web-01", "path": "/m/p", "action_id": id});
        let routing_key = b"decky.web-01".to_vec();
        Self { told: told.to_owned(), id, routing_key, properties, body: body.to_string().into_bytes() }
    }
}

/// One message of each kind.
fn poisons() -> Vec<Poison> {
    let plain = || RawProperties::default().persistent();
    let is_free = |name: &&str| !["expiration", "user_id"].contains(name);
    let names = RawProperties::SHORT.into_iter().map(|(name, _)| name).filter(is_free);
    let mut poisons: Vec<Poison> = names
        .map(|name| Poison::new(&format!("{name} is not UTF-8"), plain().short(name, b"a\xff\xfe")))
        .collect();
    let nested =
        |depth: usize| (0..depth).fold(b"V".to_vec(), |value, _| [b"A".to_vec(), long(&value)].concat());
    let inner = [b"F".to_vec(), table(&[(b"\xff", b"V".to_vec())])].concat();
    let headers: [(&str, &[u8], Vec<u8>); 4] = [
        ("the name of header \"h\\\\xff\" is not UTF-8", b"h\xff", long_text(b"x")),
        ("header \"inner\" holds a name that is not UTF-8", b"inner", inner),
        ("header \"deep\" nests too deep", b"deep", nested(2500)),
        ("header \"wide\" is too large (40965 bytes)", b"wide", long_text(&vec![b'x'; 40 * 1024])),
    ];
    for (told, name, value) in headers {
        // A publisher can write what only a worker should.
        let forged = (&b"x-deckswain-reason"[..], long_text(b"refused"));
        poisons.push(Poison::new(told, plain().headers(&[forged, (name, value)])));
    }
    poisons.push(Poison {
        routing_key: b"decky.web-01.\xff".to_vec(),
        ..Poison::new("routing key is not UTF-8", plain())
    });
    poisons
}

fn of_kind(is_it: impl Fn(&str) -> bool) -> Vec<Poison> {
    let poisons: Vec<Poison> = poisons().into_iter().filter(|poison| is_it(&poison.told)).collect();
    assert!(!poisons.is_empty());
    poisons
}

fn publish(cell: &Cell, exchange: &str, poisons: &[Poison]) {
    let mut raw = RawConnection::open(&cell.broker);
    for Poison { routing_key, properties, body, .. } in poisons {
        raw.publish(&format!("{}.{exchange}", cell.prefix), routing_key, properties, body);
    }
}

/// Takes the dead letters, which are to be these, with all their bytes.
fn take_unchanged(cell: &Cell, poisons: &[Poison]) {
    let mut raw = RawConnection::open(&cell.broker);
    for _ in poisons {
        let (properties, body) = raw.take(&format!("{}.dead", cell.prefix));
        let poison = poisons.iter().find(|poison| poison.body == body).expect("a body as it was published");
        assert!(poison.properties.are_among(&properties), "{}", poison.told);
    }
}

/// Publishes poison among actions to a worker, and has it dead-lettered while the other actions go on.
async fn others_go_on(mut cell: Cell, arguments: &[&str], poisons: Vec<Poison>) {
    cell.engine.set("deckies", &(0..10).map(|n| format!("web-{n:02}-ssh\tUp 1 hour\n")).collect::<String>());
    let mut worker = cell.worker_starting(arguments);
    worker.wait_for_line(match arguments {
        ["--local", ..] => "for 10 deckies",
        ["--partitions", "4"] => "4 of 4 partitions",
        _ => "consuming from",
    });
    cell.publish(ACTIONS / 2).await;
    cell.engine.wait_for("end", ACTIONS / 2).await;
    publish(&cell, "actions", &poisons);
    let another = timeout(OTHERS_GO_ON_WITHIN, async {
        cell.publish(1).await;
        cell.engine.wait_for("end", ACTIONS / 2 + 1).await;
    });
    another.await.expect("the others go on");
    cell.publish(ACTIONS / 2 - 1).await;
    cell.wait_for_count("dead", |dead| dead == poisons.len()).await;
    worker.wait_for_line("message rejected, the broker dead-letters it");

    let letters = json_lines(&tool(&cell, &["dead-letters", "list", "--json"]));
    for Poison { told, id, .. } in &poisons {
        let letter = letters.iter().find(|letter| letter["action_id"] == id.as_str()).expect("it is listed");
        assert_eq!(letter["reason"], "rejected", "{letter}");
        assert!(letter["message"].as_str().unwrap().contains(told.as_str()), "{told}: {letter}");
    }
    take_unchanged(&cell, &poisons);
    // Each has a result, too.
    cell.wait_for_count("results", |results| results == ACTIONS + poisons.len()).await;
    let verdict = cell.end(vec![worker]).await;
    assert!(verdict.run_twice == 0 && verdict.results_twice == 0 && verdict.dead.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_to_a_message_with_a_40_kb_header() {
    let cell = Cell::new("message: a 40 KB header");
    others_go_on(cell, &[], of_kind(|told| told.contains("wide"))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_to_messages_with_bytes_in_each_short_string() {
    let cell = Cell::new("message: bytes in each short string");
    others_go_on(cell, &[], of_kind(|told| told.contains("UTF-8"))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_header_that_nests_deep_brings_no_worker_down() {
    let cell = Cell::new("message: a header that nests deep");
    others_go_on(cell, &[], of_kind(|told| told.contains("nests"))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_to_unreadable_messages_in_partitions() {
    let mut cell = Cell::new("message: unreadable, in partitions");
    cell.queues = (0..4).map(|n| format!("partition.{n}")).collect();
    others_go_on(cell, &["--partitions", "4"], poisons()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_to_unreadable_messages_in_the_queue_of_a_host() {
    let mut cell = Cell::new("message: unreadable, by host");
    cell.queues = vec!["host.h1".to_owned()];
    // A host's queue is not bound for a routing key that names none of its deckies.
    others_go_on(cell, &["--local", "--host", "h1"], of_kind(|told| !told.contains("routing key"))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unreadable_dead_letters_are_listed_and_shown_and_only_removed_when_told() {
    let cell = Cell::new("dead letters: unreadable");
    assert!(tool(&cell, &["topology", "--declare"]).status.success());
    let poisons = poisons();
    publish(&cell, "dead", &poisons);
    let readable = Poison::new("", RawProperties::default().persistent());
    publish(&cell, "dead", std::slice::from_ref(&readable));
    let count = poisons.len();
    let listed = json_lines(&tool(&cell, &["dead-letters", "list", "--json"]));
    assert_eq!(listed.len(), count + 1);
    for Poison { told, id, .. } in &poisons {
        let shown = text(&tool(&cell, &["dead-letters", "show", id]).stdout);
        assert!(shown.contains(told), "{told} is missing in:\n{shown}");
        assert!(shown.contains("/m/p"), "{shown}");
    }
    let exported = tool(&cell, &["dead-letters", "export"]);
    assert_eq!(json_lines(&exported).len(), count + 1);

    let replayed = tool(&cell, &["dead-letters", "replay", "--yes"]);
    let said = text(&replayed.stderr);
    assert_eq!(replayed.status.code(), Some(1), "{said}");
    assert!(said.contains("replay: 1 of 1 done"), "{said}");
    assert!(said.contains(&format!("{count} dead letters cannot be replayed")), "{said}");
    cell.wait_for_count("actions", |actions| actions == 1).await;
    cell.wait_for_count("dead", |dead| dead == count).await;

    let discarded = tool(&cell, &["dead-letters", "discard", "--id", &poisons[0].id, "--yes"]);
    assert!(discarded.status.success(), "{}", text(&discarded.stderr));
    cell.wait_for_count("dead", |dead| dead == count - 1).await;
    take_unchanged(&cell, &poisons[1..]);
}

#[tokio::test(flavor = "multi_thread")]
async fn unreadable_results_are_shown_like_others() {
    let cell = Cell::new("results: unreadable");
    assert!(tool(&cell, &["topology", "--declare"]).status.success());
    let poisons = poisons();
    let count = poisons.len().to_string();
    let mut watching = command(&cell, &["results", "--json", "--limit", &count]).spawn().unwrap();
    let mut said = BufReader::new(watching.stderr.take().unwrap()).lines();
    assert!(said.next().unwrap().unwrap().starts_with("watching"));
    let mut raw = RawConnection::open(&cell.broker);
    for Poison { properties, id, .. } in &poisons {
        let result = json!({"action_id": id, "success": true}).to_string();
        let exchange = format!("{}.results", cell.prefix);
        raw.publish(&exchange, b"activity.remove.inert.ok.d-1", properties, result.as_bytes());
    }
    let shown = json_lines(&watching.wait_with_output().unwrap());
    let ids: Vec<&str> = shown.iter().map(|result| result["action_id"].as_str().unwrap()).collect();
    assert_eq!(ids, poisons.iter().map(|poison| poison.id.as_str()).collect::<Vec<_>>());
}
