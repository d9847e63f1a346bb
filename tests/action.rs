//! Decoding: what is taken, what is refused, and how a refusal is worded.

use deckswain::action::{
    Action, CONTENT_BYTES_DEFAULT, CONTENT_BYTES_LIMIT, DecodeOptions, Glance, Invalid, MESSAGE_BYTES_LIMIT,
    Task, message_bytes_max,
};
use serde_json::{Value, json};

const ID: &str = "0b8f5f0e-7a53-4be0-9c64-3b1d6a1f2c55";

fn options(message_id: Option<&str>) -> DecodeOptions<'_> {
    DecodeOptions { message_id, content_bytes_max: CONTENT_BYTES_DEFAULT }
}

fn decode(body: &[u8]) -> Result<Action, Box<Invalid>> {
    Action::decode(body, options(None))
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
        assert_eq!(invalid.action_id.to_string(), ID);
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
fn a_body_over_what_the_content_limit_needs_is_refused_unread() {
    let most = message_bytes_max(CONTENT_BYTES_DEFAULT);
    let mut body = file_with("content", json!(""));
    body.resize(most, b' ');
    assert!(Action::decode(&body, options(None)).is_ok());
    body.push(b' ');
    let invalid = refusal(&body);
    assert_eq!((invalid.pointer.as_str(), invalid.kind), ("", None));
    assert_eq!(invalid.expected, format!("expected at most {most} bytes, found {}", most + 1));
    assert_ne!(invalid.action_id.to_string(), ID, "it is not parsed for an id");
    assert_eq!(Action::decode(&body, options(Some(ID))).unwrap_err().action_id.to_string(), ID);
    assert!(message_bytes_max(CONTENT_BYTES_LIMIT) <= MESSAGE_BYTES_LIMIT);
}

#[test]
fn a_field_that_comes_twice_is_refused_and_neither_of_its_values_counts() {
    let action = String::from_utf8(file_with("content", json!("x"))).unwrap();
    for (field, twice) in [
        ("/dst_name", r#""dst_name":"web-02""#),
        ("/dst_name", r#""dst_\u006eame":"web-02""#),
        ("/path", r#""path":"/b","path":"/c""#),
        ("/action_id", r#""action_id":"00000000-0000-4000-8000-000000000009""#),
    ] {
        let body = action.replacen('{', &format!("{{{twice},"), 1);
        let invalid = refusal(body.as_bytes());
        assert_eq!(invalid.pointer, field);
        assert_eq!(invalid.action_id.to_string() == ID, field != "/action_id");
    }
}

#[test]
fn a_byte_order_mark_is_passed_over() {
    let body = [b"\xEF\xBB\xBF".as_slice(), &file_with("content", json!("x"))].concat();
    assert_eq!(Action::decode(&body, options(None)).unwrap().id.to_string(), ID);
    assert_eq!(Glance::at(&body).executing_decky, "web-01");
    assert_eq!(refusal(b"\xEF\xBB\xBF[]").expected, "expected a JSON object");
}

#[test]
fn names_from_outside_are_cut_before_they_travel() {
    for name in ["\u{202e}".repeat(100_000), "x".repeat(100_000), "~/".repeat(100_000)] {
        let invalid = refusal(&file_with(&name, json!(1)));
        assert!(invalid.pointer.chars().count() <= 256, "{}", invalid.pointer.len());
        let said = invalid.to_string();
        assert!(said.chars().count() <= 512, "{}", said.len());
        assert!(said.ends_with("…: expected no such field in an action of kind \"file\""), "{said}");
    }
}

#[test]
fn an_attribution_that_common_parsers_give_up_on_is_refused() {
    let nested = |depth: usize| format!("{}{}", "{\"a\":".repeat(depth - 1) + "{}", "}".repeat(depth - 1));
    let with = |attribution: &str| {
        String::from_utf8(file_with("attribution", json!(null))).unwrap().replace("null", attribution)
    };
    let deepest = Action::decode(with(&nested(64)).as_bytes(), options(None)).unwrap();
    assert_eq!(deepest.attribution.unwrap().get(), nested(64));
    for attribution in [&nested(65), &nested(3000), r#"{"s":"\ud800"}"#, r#"{"s":"\udc00\ud800"}"#] {
        let invalid = refusal(with(attribution).as_bytes());
        assert_eq!(invalid.pointer, "/attribution");
        assert!(invalid.attribution.is_none(), "what is refused is not echoed");
    }
}

#[test]
fn a_message_without_an_id_has_one_that_follows_from_its_body() {
    let id = |body: &[u8]| refusal(body).action_id;
    assert_eq!(id(b"not json"), id(b"not json"));
    assert_ne!(id(b"not json"), id(b"not JSON"));
    assert_eq!(id(b"not json").get_version_num(), 8);
}

#[test]
fn the_message_id_stands_in_for_a_missing_action_id() {
    let mut action: Value = serde_json::from_slice(&file_with("content", json!("text"))).unwrap();
    action.as_object_mut().unwrap().remove("action_id");
    let body = action.to_string();
    assert_eq!(Action::decode(body.as_bytes(), options(Some(ID))).unwrap().id.to_string(), ID);
    assert_eq!(Action::decode(body.as_bytes(), options(Some("7"))).unwrap_err().pointer, "/action_id");
}
