//! Text that a publisher or a decky chose, on the operator's terminal.

mod support;

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use lapin::BasicProperties;
use lapin::options::BasicPublishOptions;
use serde_json::{Value, json};
use support::faults::Cell;
use support::tool::{command, json_lines, lines, text, tool, tool_fed};

/// A new line on the screen, a text that runs backwards, one that hides, and a gap between columns.
const HOSTILE: &str = "/m/\u{9b}2J\u{202e}b\u{200b}c\u{e0041}  ok  d";

/// A cell with dead letters of these bodies, each with a `message_id` that is no action id.
async fn with_letters(bodies: &[&str]) -> Cell {
    let cell = Cell::new("hostile text");
    assert!(tool(&cell, &["topology", "--declare"]).status.success());
    let (connection, channel) = cell.connect().await;
    for body in bodies {
        let properties = BasicProperties::default().with_message_id("\",\"kind\":\"file".into());
        let (exchange, options) = (format!("{}.dead", cell.prefix), BasicPublishOptions::default());
        channel.basic_publish(&exchange, "x", options, body.as_bytes(), properties).await.unwrap();
    }
    cell.wait_for_count("dead", |dead| dead == bodies.len()).await;
    connection.close(200, "done").await.unwrap();
    cell
}

/// The output of the command at a terminal.
fn at_terminal(cell: &Cell, arguments: &str) -> String {
    let line = format!("{} {arguments}", env!("CARGO_BIN_EXE_deckswain"));
    let mut script = Command::new("script");
    script.args(["-qec", &line, "/dev/null"]).stdin(Stdio::null());
    script.env("DECKSWAIN_BROKER", &cell.broker).env("DECKSWAIN_PREFIX", &cell.prefix);
    text(&script.output().unwrap().stdout)
}

#[tokio::test(flavor = "multi_thread")]
async fn json_on_a_terminal_is_escaped_and_in_a_pipe_it_is_as_it_came() {
    let body =
        json!({"kind": "remove", "dst_uuid": "d-1", "dst_name": "web-01", "path": HOSTILE}).to_string();
    let cell = with_letters(&[&body]).await;
    let piped = text(&tool(&cell, &["dead-letters", "list", "--json"]).stdout);
    assert!(piped.contains(HOSTILE), "{piped}");
    for command in ["dead-letters list --json", "dead-letters export"] {
        let shown = at_terminal(&cell, command);
        assert!(shown.is_ascii(), "{command}: {shown:?}");
        let json = shown.lines().find(|line| line.starts_with('{')).unwrap();
        assert_eq!(serde_json::from_str::<Value>(json).unwrap()["path"], HOSTILE, "{command}");
    }
    let table = at_terminal(&cell, "dead-letters list");
    let path = "/m/\\u{9b}2J\\u{202e}b\\u{200b}c\\u{e0041} \\u{20}ok \\u{20}d  ";
    assert!(table.contains(path), "{table}");
}

#[tokio::test(flavor = "multi_thread")]
async fn show_keeps_the_text_of_a_body() {
    let body =
        "{\"z\": 123456789012345678901234567890, \"f\": 0.10, \"d\": 1, \"d\": 2, \"a\": \"\u{202e}\"}";
    let cell = with_letters(&[body]).await;
    let id = "\",\"kind\":\"file";
    let shown = text(&tool(&cell, &["dead-letters", "show", id]).stdout);
    let laid_out = "body\n  {\n    \"z\": 123456789012345678901234567890,\n    \"f\": 0.10,\n    \"d\": 1,\n    \"d\": 2,\n    \"a\": \"\\u202e\"\n  }\n";
    assert!(shown.ends_with(laid_out), "{shown}");
    let json = text(&tool(&cell, &["dead-letters", "show", "--json", id]).stdout);
    let as_it_came = body.replace(": ", ":").replace(", ", ",");
    assert!(json.ends_with(&format!(",\"body\":{as_it_came}}}\n")), "{json}");
    assert_eq!(json_lines(&tool(&cell, &["dead-letters", "show", "--json", id])).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn export_adds_no_field_that_the_message_id_spells() {
    let body = r#"{"kind": "remove", "dst_uuid": "d-1", "dst_name": "web-01", "path": "/m/1"}"#;
    let cell = with_letters(&[body]).await;
    let exported = text(&tool(&cell, &["dead-letters", "export"]).stdout);
    // An id of its own is added; the rest is as it came.
    assert!(exported.ends_with(&format!(",{}\n", &body[1..])) && !exported.contains("file"), "{exported}");
    assert!(tool_fed(&cell, &["submit"], &exported).status.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_action_forges_no_field_of_the_log() {
    let cell = Cell::new("hostile text: log");
    let mut worker = cell.worker(&[]);
    let (connection, channel) = cell.connect().await;
    let field = "x\u{1b}[2J\u{202e}\" action.id=1 attempt=9";
    let mut action = json!({"kind": "remove", "dst_uuid": "d-1", "dst_name": "web-01", "path": "/m/1"});
    action["action_id"] = "00000000-0000-4000-8000-000000000009".into();
    action[field] = 1.into();
    let (exchange, options) = (format!("{}.actions", cell.prefix), BasicPublishOptions::default());
    let body = action.to_string();
    let publish = channel.basic_publish(&exchange, "x", options, body.as_bytes(), BasicProperties::default());
    publish.await.unwrap();
    let line = worker.wait_for_line("not a valid action");
    let quoted = "pointer=\"/x\\u{1b}[2J\\u{202e}\\\" action.id=1 attempt=9\"";
    assert!(line.contains(quoted), "{line}");
    assert_eq!(worker.stop(), 0);
    connection.close(200, "done").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_letter_with_a_huge_path_does_not_hold_up_the_list() {
    let path = format!("/m/{}", "e\u{301}\u{202e}漢 ".repeat(400_000));
    let body = json!({"kind": "remove", "dst_uuid": "d-1", "dst_name": "web-01", "path": path}).to_string();
    let cell = with_letters(&[&body]).await;
    let began = Instant::now();
    let table = lines(&command(&cell, &["dead-letters", "list"]).output().unwrap());
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert!(table[1].contains("…  ") && table[1].chars().count() < 300, "{}", table[1]);
}
