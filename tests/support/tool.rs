//! The commands around the queue, run as a user runs them.

use std::io::Write as _;
use std::process::{Child, Command, Output, Stdio};

use lapin::BasicProperties;
use lapin::options::{BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, QueueBindOptions};
use lapin::types::{AMQPValue, FieldTable};
use serde_json::{Value, json};
use uuid::Uuid;

use super::faults::Cell;

/// `deckswain` with these arguments, on the cell's broker and under its prefix.
pub fn command(cell: &Cell, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_deckswain"));
    command.args(arguments).env("DECKSWAIN_BROKER", &cell.broker).env("DECKSWAIN_PREFIX", &cell.prefix);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

pub fn tool(cell: &Cell, arguments: &[&str]) -> Output {
    command(cell, arguments).output().unwrap()
}

/// The same with this on its standard input.
pub fn tool_fed(cell: &Cell, arguments: &[&str], input: &str) -> Output {
    let mut child: Child = command(cell, arguments).stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_owned();
    let feeding = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().unwrap();
    feeding.join().unwrap().unwrap();
    output
}

/// `deckswain` on the broker of the whole suite.
pub fn on_suite(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_deckswain")).args(arguments).stdin(Stdio::null()).output().unwrap()
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// What a command that succeeds prints, by the line.
pub fn lines(output: &Output) -> Vec<String> {
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout).lines().map(ToOwned::to_owned).collect()
}

pub fn json_lines(output: &Output) -> Vec<Value> {
    lines(output).iter().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The actions in one of the cell's queues, first to last; they are taken from it.
pub async fn actions_in(cell: &Cell, queue: &str) -> Vec<Value> {
    let (connection, channel) = cell.connect().await;
    let name = format!("{}.{queue}", cell.prefix);
    let mut actions = Vec::new();
    while let Some(got) = channel.basic_get(&name, BasicGetOptions { no_ack: true }).await.unwrap() {
        actions.push(serde_json::from_slice(&got.delivery.data).unwrap());
    }
    connection.close(200, "done").await.unwrap();
    actions
}

/// Binds the cell's actions queue for the deckies `web-00` to `web-09`, but for one of them.
pub async fn unbind_decky(cell: &Cell, decky: &str) {
    let (connection, channel) = cell.connect().await;
    let name = format!("{}.actions", cell.prefix);
    let none = FieldTable::default;
    for other in (0..10).map(|n| format!("web-{n:02}")).filter(|other| other != decky) {
        let (key, bind) = (format!("decky.{other}"), QueueBindOptions::default());
        channel.queue_bind(&name, &name, &key, bind, none()).await.unwrap();
    }
    channel.queue_unbind(&name, &name, "#", none()).await.unwrap();
    connection.close(200, "done").await.unwrap();
}

/// Puts so many dead letters into the cell as a worker would; gives their action ids, oldest first.
pub async fn bury(cell: &Cell, count: usize) -> Vec<String> {
    let (connection, channel) = cell.connect().await;
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    let exchange = format!("{}.dead", cell.prefix);
    let mut ids = Vec::new();
    for n in 0..count {
        let id = Uuid::new_v4().to_string();
        let decky = format!("web-{:02}", n % 10);
        let body = json!({"kind": "remove", "dst_uuid": "d-1", "dst_name": decky, "path": format!("/m/{n:05}"), "action_id": id});
        let mut headers = FieldTable::default();
        let class = if n % 2 == 0 { "infrastructure" } else { "timeout" };
        let died_at = format!("2026-01-01T{:02}:{:02}:{:02}.000Z", n / 3600, n / 60 % 60, n % 60);
        let told = [
            ("x-deckswain-reason", "attempts-exhausted"),
            ("x-deckswain-class", class),
            ("x-deckswain-message", "no such container"),
            ("x-deckswain-worker", "w-1"),
            ("x-deckswain-died-at", &died_at),
            ("x-deckswain-exchange", &cell.prefix),
            ("x-deckswain-routing-key", &format!("decky.{decky}")),
        ];
        for (name, value) in told {
            headers.insert(name.into(), AMQPValue::LongString(value.into()));
        }
        headers.insert("x-deckswain-attempts".into(), AMQPValue::LongLongInt(5));
        headers.insert("x-deckswain-attempt".into(), AMQPValue::LongLongInt(5));
        let properties = BasicProperties::default()
            .with_delivery_mode(2)
            .with_message_id(id.as_str().into())
            .with_headers(headers);
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        channel
            .basic_publish(&exchange, "decky.x", options, body.to_string().as_bytes(), properties)
            .await
            .unwrap();
        ids.push(id);
    }
    assert!(channel.wait_for_confirms().await.unwrap().is_empty());
    connection.close(200, "done").await.unwrap();
    ids
}
