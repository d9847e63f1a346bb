//! The demo's own client: `scripts/demo` runs it against its private broker.
//!
//! `demo actions PREFIX WEB DB DB_IP QUIET_IP` publishes a handful of actions and prints a
//! table of their results; exit 0 when each came out as it should. `demo dead-letters PREFIX`
//! prints what lies in the dead letters. The broker's URL is read from `DECKSWAIN_BROKER`.

use std::collections::HashMap;
use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use chrono::{SecondsFormat, TimeDelta, Utc};
use lapin::options::{BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions};
use lapin::publisher_confirm::Confirmation;
use lapin::types::{AMQPValue, ShortString};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

type Outcome<T> = Result<T, Box<dyn Error>>;

const RESULTS_TIME_MAX: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(50);

#[tokio::main]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let ran = match arguments[..] {
        ["actions", prefix, web, db, db_ip, quiet_ip] => {
            let fleet = Fleet { web, db, db_ip, quiet_ip };
            timeout(RESULTS_TIME_MAX * 2, actions(prefix, &fleet)).await
        }
        ["dead-letters", prefix] => timeout(RESULTS_TIME_MAX, dead_letters(prefix)).await,
        _ => {
            eprintln!("usage: demo actions PREFIX WEB DB DB_IP QUIET_IP | dead-letters PREFIX");
            return ExitCode::from(2);
        }
    };
    match ran {
        Ok(Ok(true)) => ExitCode::SUCCESS,
        Ok(Ok(false)) => ExitCode::FAILURE,
        Ok(Err(error)) => {
            eprintln!("demo: {error}");
            ExitCode::FAILURE
        }
        Err(_) => {
            eprintln!("demo: the broker did not answer in time");
            ExitCode::FAILURE
        }
    }
}

struct Fleet<'a> {
    web: &'a str,
    db: &'a str,
    db_ip: &'a str,
    quiet_ip: &'a str,
}

/// An action, the decky that executes it, what a person calls it and whether it should succeed.
struct Step {
    action: Value,
    decky: String,
    label: &'static str,
    succeeds: bool,
}

fn steps(fleet: &Fleet<'_>) -> Vec<Step> {
    let web = fleet.web;
    let db = fleet.db;
    let days_ago = |days: i64, minutes: i64| {
        let then = Utc::now() - TimeDelta::days(days) - TimeDelta::minutes(minutes);
        then.to_rfc3339_opts(SecondsFormat::Secs, true)
    };
    let probe = |ip: &str| {
        json!({"kind": "traffic", "protocol": "ssh", "dst_ip": ip, "src_uuid": "web", "src_name": web,
            "dst_uuid": "db", "dst_name": db})
    };
    let todo = "# This week\n- [x] rotate the backup disks\n- [ ] renew the wildcard certificate\n\
        - [ ] ask Priya about the staging quota\n";
    let mut pdf = b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n".to_vec();
    pdf.extend((0..=255u8).rev().cycle().take(2048));
    vec![
        step(web, "probe db's sshd", true, probe(fleet.db_ip)),
        step(web, "probe a closed port", false, probe(fleet.quiet_ip)),
        step(
            web,
            "plant text",
            true,
            json!({"kind": "file", "dst_uuid": "web", "dst_name": web,
                "path": "/home/alice/notes/meeting notes.txt", "content": "Budget: café on Tuesday, 14:00\n",
                "persona": "alice", "content_class": "note", "mtime": days_ago(3, 95), "owner": "alice:alice"}),
        ),
        step(
            web,
            "plant a binary",
            true,
            json!({"kind": "file", "dst_uuid": "web", "dst_name": web,
                "path": "/home/alice/Documents/Q3 forecast.pdf", "content_bytes": STANDARD.encode(&pdf),
                "persona": "alice", "content_class": "canary_honeydoc_pdf", "mode": "0600",
                "mtime": days_ago(21, 410), "owner": "alice:alice", "attribution": {"token": "demo-1"}}),
        ),
        step(
            web,
            "plant a to-do list",
            true,
            json!({"kind": "file", "dst_uuid": "web", "dst_name": web, "path": "/home/alice/todo.md",
                "content": todo, "persona": "alice", "content_class": "todo", "mtime": days_ago(6, 33),
                "owner": "alice:alice"}),
        ),
        step(
            web,
            "edit it, backdated",
            true,
            json!({"kind": "edit", "dst_uuid": "web", "dst_name": web, "path": "/home/alice/todo.md",
                "previous_body": todo, "expect_previous": true, "persona": "alice", "content_class": "todo",
                "mtime": days_ago(1, 125), "owner": "alice:alice",
                "synthetic_file_uuid": Uuid::new_v4().to_string()}),
        ),
        step(
            web,
            "read it back",
            true,
            json!({"kind": "read", "dst_uuid": "web", "dst_name": web, "path": "/home/alice/todo.md"}),
        ),
        step(
            db,
            "plant a script",
            true,
            json!({"kind": "file", "dst_uuid": "db", "dst_name": db, "path": "/srv/backup/nightly.sh",
                "content": "#!/bin/sh\nset -eu\nexec pg_dump app > /srv/backup/app.sql\n", "mode": "0755",
                "persona": "root", "content_class": "script", "mtime": days_ago(48, 700)}),
        ),
        step(
            db,
            "plant a scratch file",
            true,
            json!({"kind": "file", "dst_uuid": "db", "dst_name": db, "path": "/tmp/export.csv",
                "content": "id,name\n"}),
        ),
        step(
            db,
            "remove it",
            true,
            json!({"kind": "remove", "dst_uuid": "db", "dst_name": db, "path": "/tmp/export.csv"}),
        ),
        step(
            db,
            "an invalid path",
            false,
            json!({"kind": "file", "dst_uuid": "db", "dst_name": db, "path": "notes/todo.md",
                "content": "never planted\n"}),
        ),
    ]
}

fn step(decky: &str, label: &'static str, succeeds: bool, mut action: Value) -> Step {
    action["version"] = json!(1);
    action["action_id"] = json!(Uuid::new_v4().to_string());
    Step { action, decky: decky.to_owned(), label, succeeds }
}

async fn actions(prefix: &str, fleet: &Fleet<'_>) -> Outcome<bool> {
    let connection = connect().await?;
    let channel = connection.create_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    let steps = steps(fleet);
    for step in &steps {
        publish(&channel, prefix, step).await?;
    }
    println!("published {} actions to {prefix}.actions\n", steps.len());
    let results = collect(&channel, &format!("{prefix}.results"), steps.len()).await?;
    println!("What came back from {prefix}.results:\n");
    let mut rows = vec![row(["action", "decky", "kind", "outcome", "disposition", "ms", "detail"])];
    let mut as_expected = true;
    for step in &steps {
        let Some(result) = step.action["action_id"].as_str().and_then(|id| results.get(id)) else {
            rows.push(row([step.label, &step.decky, "", "NO RESULT", "", "", ""]));
            as_expected = false;
            continue;
        };
        as_expected &= result["success"] == step.succeeds;
        let outcome = match result["failure"]["class"].as_str() {
            Some(class) => format!("failed: {class}"),
            None => "ok".to_owned(),
        };
        let duration_ms = result["duration_ms"].to_string();
        let kind = text(&result["kind"]);
        let disposition = text(&result["disposition"]);
        let detail = detail(result);
        rows.push(row([step.label, &step.decky, &kind, &outcome, &disposition, &duration_ms, &detail]));
    }
    print_table(&rows);
    connection.close(200, "done").await?;
    if !as_expected {
        eprintln!("demo: not every action came out as it should");
    }
    Ok(as_expected)
}

async fn connect() -> Outcome<Connection> {
    let url = std::env::var("DECKSWAIN_BROKER")?;
    let properties = ConnectionProperties::default()
        .with_executor(tokio_executor_trait::Tokio::current())
        .with_reactor(tokio_reactor_trait::Tokio::current());
    Ok(timeout(Duration::from_secs(10), Connection::connect(&url, properties)).await??)
}

async fn publish(channel: &Channel, prefix: &str, step: &Step) -> Outcome<()> {
    let properties = BasicProperties::default()
        .with_content_type("application/json".into())
        .with_delivery_mode(2)
        .with_message_id(text(&step.action["action_id"]).into());
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let exchange = format!("{prefix}.actions");
    let routing_key = format!("decky.{}", step.decky);
    let body = serde_json::to_vec(&step.action)?;
    match channel.basic_publish(&exchange, &routing_key, options, &body, properties).await?.await? {
        Confirmation::Ack(None) => Ok(()),
        _ => Err(format!("{exchange} took no message for {routing_key}").into()),
    }
}

/// Takes results from the queue until `expected` have come or the time is up.
async fn collect(channel: &Channel, queue: &str, expected: usize) -> Outcome<HashMap<String, Value>> {
    let mut results = HashMap::new();
    let end = Instant::now() + RESULTS_TIME_MAX;
    while results.len() < expected && Instant::now() < end {
        match channel.basic_get(queue, BasicGetOptions { no_ack: true }).await? {
            Some(message) => {
                let result: Value = serde_json::from_slice(&message.delivery.data)?;
                results.insert(text(&result["action_id"]), result);
            }
            None => sleep(POLL_INTERVAL).await,
        }
    }
    Ok(results)
}

async fn dead_letters(prefix: &str) -> Outcome<bool> {
    let connection = connect().await?;
    let channel = connection.create_channel().await?;
    println!("What lies in {prefix}.dead:\n");
    let mut rows = vec![row(["reason", "class", "attempts", "message", "body", "", ""])];
    // Nothing is acked: the messages return to the queue when the connection closes.
    while let Some(message) =
        channel.basic_get(&format!("{prefix}.dead"), BasicGetOptions { no_ack: false }).await?
    {
        let header = |name: &str| {
            let key = ShortString::from(format!("x-deckswain-{name}"));
            let headers = message.delivery.properties.headers().as_ref();
            headers.and_then(|headers| headers.inner().get(&key)).map_or_else(String::new, header_text)
        };
        let body = String::from_utf8_lossy(&message.delivery.data);
        rows.push(row([
            &header("reason"),
            &header("class"),
            &header("attempts"),
            &header("message"),
            &shortened(&body, 40),
            "",
            "",
        ]));
    }
    print_table(&rows);
    let found = rows.len() > 1;
    connection.close(200, "done").await?;
    Ok(found)
}

fn header_text(value: &AMQPValue) -> String {
    match value {
        AMQPValue::LongString(text) => text.to_string(),
        AMQPValue::LongLongInt(number) => number.to_string(),
        AMQPValue::LongInt(number) => number.to_string(),
        other => format!("{other:?}"),
    }
}

/// What a person wants to know of a result: the failure, the banner, or the file.
fn detail(result: &Value) -> String {
    let payload = &result["payload"];
    if let Some(message) = result["failure"]["message"].as_str() {
        return shortened(message, 64);
    }
    if let Some(banner) = payload["banner"].as_str() {
        return shortened(banner, 64);
    }
    let bytes = match &payload["new_body_bytes"] {
        Value::Number(number) => format!(", now {number} bytes"),
        _ => payload["bytes"].as_u64().map_or_else(String::new, |bytes| format!(", {bytes} bytes")),
    };
    format!("{}{bytes}", text(&payload["path"]))
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// At most `length` characters, none of which a terminal would obey.
fn shortened(text: &str, length: usize) -> String {
    let mut short: String =
        text.chars().take(length).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    if text.chars().count() > length {
        short.push('…');
    }
    short
}

fn row(cells: [&str; 7]) -> [String; 7] {
    cells.map(ToOwned::to_owned)
}

fn print_table(rows: &[[String; 7]]) {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..7).map(width).collect();
    for row in rows {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:<width$}")).collect();
        println!("  {}", cells.join("  ").trim_end());
    }
    println!();
}
