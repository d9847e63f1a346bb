//! Decoding: what is taken, what is refused, and how a refusal is worded.

use deckswain::action::{Action, CONTENT_BYTES_DEFAULT, DecodeOptions, Invalid, MESSAGE_BYTES_LIMIT, Task};
use serde_json::{Value, json};

const ID: &str = "0b8f5f0e-7a53-4be0-9c64-3b1d6a1f2c55";

fn decode(body: &[u8]) -> Result<Action, Box<Invalid>> {
    Action::decode(body, DecodeOptions { message_id: None, content_bytes_max: CONTENT_BYTES_DEFAULT })
}

fn file_with(field: &str, value: Value) -> Vec<u8> {
    let mut action = json!({"action_id": ID, "kind": "file", "dst_uuid": "d-1", "dst_name": "web-01",
        "path": "/home/alice/notes.txt", "attribution": {"token": 7}});
    action[field] = value;
    action.to_string().into_bytes()
}

fn refusal(body: &[u8]) -> Box<Invalid> {
    decode(body).expect_err("the message is refused")
}

#[test]
fn content_bytes_win_over_content_even_when_they_are_empty() {
    let mut action: Value = serde_json::from_slice(&file_with("content", json!("text"))).unwrap();
    action["content_bytes"] = json!("");
    let Task::File(file) = decode(action.to_string().as_bytes()).unwrap().task else { panic!("a file") };
    assert_eq!(file.content, b"");
}

#[test]
fn a_flaw_is_named_by_json_pointer_and_the_result_can_still_be_addressed() {
    for (field, value) in [
        ("version", json!(2)),
        ("kind", json!("dance")),
        ("path", json!("home/alice")),
        ("path", json!("/home/../etc/passwd")),
        ("path", json!("/home/a\u{0}b")),
        ("path", json!("/home/alice/")),
        ("path", json!(format!("/{}", "a".repeat(256)))),
        ("dst_name", json!("-rm")),
        ("content_bytes", json!("-_-_")),
        ("content_bytes", json!("YQ")),
        ("content_bytes", json!("YWJj\nYWJj")),
        ("mode", json!("1777")),
        ("mode", json!(420)),
        ("mtime", json!("2026-04-20 11:30:00Z")),
        ("description", json!("x".repeat(257))),
        ("frobnicate", json!(1)),
        ("dst_ip", json!("10.0.0.1")),
        ("content", json!("x".repeat(CONTENT_BYTES_DEFAULT + 1))),
    ] {
        let invalid = refusal(&file_with(field, value));
        assert_eq!(invalid.pointer, format!("/{field}"));
        assert!(invalid.expected.starts_with("expected "), "{}", invalid.expected);
        assert_eq!(invalid.action_id.map(|id| id.to_string()).as_deref(), Some(ID));
        assert_eq!(invalid.attribution.as_ref().map(|raw| raw.get()), Some("{\"token\":7}"));
    }
}

#[test]
fn what_is_no_json_object_is_refused_as_a_whole() {
    for body in [&b"not json"[..], b"[]", b"\"text\"", b"", b"{\"kind\":\"\xff\"}"] {
        assert_eq!(refusal(body).pointer, "");
    }
}

#[test]
fn a_message_over_sixteen_mebibytes_is_refused_with_its_id() {
    let invalid = refusal(&file_with("content", json!("x".repeat(MESSAGE_BYTES_LIMIT + 1024 * 1024))));
    assert_eq!(invalid.pointer, "");
    assert!(invalid.action_id.is_some());
}

#[test]
fn the_message_id_stands_in_for_a_missing_action_id() {
    let mut action: Value = serde_json::from_slice(&file_with("content", json!("text"))).unwrap();
    action.as_object_mut().unwrap().remove("action_id");
    let body = action.to_string();
    let with = |message_id| DecodeOptions { message_id, content_bytes_max: CONTENT_BYTES_DEFAULT };
    assert_eq!(Action::decode(body.as_bytes(), with(Some(ID))).unwrap().id.to_string(), ID);
    assert_eq!(Action::decode(body.as_bytes(), with(Some("7"))).unwrap_err().pointer, "/action_id");
}
