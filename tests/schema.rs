//! The schemas and the program say the same of every document.

use std::cell::Cell;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use deckswain::action::{Action, CONTENT_BYTES_LIMIT, DecodeOptions};
use jsonschema::{Draft, Validator};
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};
use serde_json::{Map, Value, json};

const ID: &str = "0b8f5f0e-7a53-4be0-9c64-3b1d6a1f2c55";

fn schemas() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("schemas")
}

fn schema(name: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(schemas().join(name)).unwrap()).unwrap()
}

fn validator(name: &str) -> Validator {
    jsonschema::options()
        .with_draft(Draft::Draft202012)
        .should_validate_formats(true)
        .build(&schema(name))
        .unwrap()
}

/// The names and texts of the files in a directory whose names begin with `prefix`; never none.
fn examples(directory: &str, prefix: &str) -> Vec<(String, String)> {
    let mut found: Vec<_> = std::fs::read_dir(schemas().join(directory))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), path))
        .filter(|(name, path)| path.is_file() && name.starts_with(prefix))
        .map(|(name, path)| (name, std::fs::read_to_string(path).unwrap()))
        .collect();
    found.sort();
    assert!(!found.is_empty(), "no example begins with {prefix:?} in {directory}");
    found
}

/// The `message_id` stands in for the one thing that the schema leaves open.
fn decodes(text: &str) -> bool {
    let options = DecodeOptions { message_id: Some(ID), content_bytes_max: CONTENT_BYTES_LIMIT };
    Action::decode(text.as_bytes(), options).is_ok()
}

#[test]
fn the_schema_files_are_valid_schemas_of_the_2020_12_draft() {
    for name in ["action.schema.json", "activity-result.schema.json"] {
        let schema = schema(name);
        assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema", "{name}");
        assert!(jsonschema::draft202012::meta::is_valid(&schema), "{name}");
    }
}

#[test]
fn every_example_of_an_action_is_accepted_by_schema_and_program() {
    let schema = validator("action.schema.json");
    for (name, text) in examples("examples", "action-") {
        let document = serde_json::from_str(&text).unwrap();
        assert!(schema.is_valid(&document), "the schema refuses {name}");
        assert!(decodes(&text), "the program refuses {name}");
    }
}

#[test]
fn every_refused_example_is_refused_by_schema_and_program() {
    let schema = validator("action.schema.json");
    let refused = examples("examples/refused", "");
    assert!(refused.len() >= 60, "{} refused examples", refused.len());
    for (name, text) in refused {
        let document = serde_json::from_str(&text).unwrap();
        assert!(!schema.is_valid(&document), "the schema accepts {name}");
        assert!(!decodes(&text), "the program accepts {name}");
    }
}

#[test]
fn every_example_of_a_result_is_accepted_by_the_schema() {
    let schema = validator("activity-result.schema.json");
    for (name, text) in examples("examples", "result-") {
        let errors: Vec<_> = schema
            .iter_errors(&serde_json::from_str(&text).unwrap())
            .map(|error| error.to_string())
            .collect();
        assert!(errors.is_empty(), "{name}: {errors:?}");
    }
}

#[test]
fn the_schema_command_prints_the_files_byte_for_byte() {
    for (word, file) in [("action", "action.schema.json"), ("result", "activity-result.schema.json")] {
        let ran = Command::new(env!("CARGO_BIN_EXE_deckswain")).args(["schema", word]).output().unwrap();
        assert!(ran.status.success());
        assert!(ran.stdout == std::fs::read(schemas().join(file)).unwrap(), "{word}");
    }
}

#[test]
fn what_run_prints_is_a_result_by_the_schema() {
    let schema = validator("activity-result.schema.json");
    let actions: String = [examples("examples", "action-"), examples("examples/refused", "")]
        .concat()
        .iter()
        .map(|(_, text)| serde_json::from_str::<Value>(text).unwrap())
        .filter(Value::is_object)
        .map(|action| format!("{action}\n"))
        .collect();
    for client in ["true", "false", "/nonexistent/client"] {
        let lines = run(client, &actions);
        assert!(lines.len() >= 60, "{} results", lines.len());
        for line in lines {
            let result = serde_json::from_str(&line).unwrap();
            let errors: Vec<_> = schema.iter_errors(&result).map(|error| error.to_string()).collect();
            assert!(errors.is_empty(), "{line}: {errors:?}");
        }
    }
}

fn run(client: &str, actions: &str) -> Vec<String> {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("actions");
    std::fs::write(&file, actions).unwrap();
    let ran = Command::new(env!("CARGO_BIN_EXE_deckswain"))
        .args(["run", "--container-cli", client])
        .arg(file)
        .stderr(Stdio::null())
        .output()
        .unwrap();
    String::from_utf8(ran.stdout).unwrap().lines().map(ToOwned::to_owned).collect()
}

/// One change to a document.
#[derive(Debug, Clone)]
enum Mutation {
    Drop(Index),
    Rename(Index, &'static str),
    /// A value of the sort that the field wants, good or bad.
    Fill(Index, Index),
    /// A value of any sort, in any field that some kind has.
    Swap(&'static str, Value),
    /// A made-up text in a field that is there.
    Text(Index, String),
}

const FIELDS: [&str; 26] = [
    "version",
    "kind",
    "action_id",
    "issued_at",
    "expires_at",
    "description",
    "attribution",
    "src_uuid",
    "src_name",
    "dst_uuid",
    "dst_name",
    "dst_ip",
    "protocol",
    "path",
    "content",
    "content_bytes",
    "persona",
    "content_class",
    "mtime",
    "mode",
    "owner",
    "previous_body",
    "expect_previous",
    "synthetic_file_uuid",
    "max_bytes",
    "Path",
];

/// A valid action of each kind, with every field that the kind has.
fn whole_actions() -> Vec<Value> {
    let of = |kind: &str, rest: Value| {
        let mut action = json!({"version": 1, "kind": kind, "action_id": ID, "description": "x",
            "issued_at": "2026-04-20T11:30:00Z", "expires_at": null, "attribution": {"token": 7},
            "dst_uuid": "d-1", "dst_name": "web-01"});
        action.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
        action
    };
    vec![
        of(
            "traffic",
            json!({"src_uuid": "d-2", "src_name": "db-01", "dst_ip": "10.0.0.9", "protocol": "ssh"}),
        ),
        of(
            "file",
            json!({"path": "/home/alice/a", "content": "x", "content_bytes": "YWJj", "persona": "alice",
            "content_class": "note", "mtime": "2026-04-20T11:30:00+02:00", "mode": "0644", "owner": "alice"}),
        ),
        of(
            "edit",
            json!({"path": "/home/alice/a", "persona": "alice", "content_class": "note",
            "previous_body": "a\n", "expect_previous": true, "synthetic_file_uuid": "s-1",
            "mtime": null, "mode": "600", "owner": "1000:1000"}),
        ),
        of("read", json!({"path": "/home/alice/a", "max_bytes": 10})),
        of("remove", json!({"path": "/home/alice/a"})),
    ]
}

/// Values that fit the field, and values that only just do not.
fn pool(field: &str) -> Vec<Value> {
    let long = |count: usize| "a".repeat(count);
    match field {
        "version" => vec![json!(1), json!(1.0), json!(0), json!(2), json!(1.5), json!(-1), json!("1")],
        "kind" => {
            vec![json!("file"), json!("read"), json!("remove"), json!("edit"), json!("File"), json!("")]
        }
        "action_id" => vec![
            json!(ID),
            json!(ID.to_uppercase()),
            json!(ID.replace('-', "")),
            json!(format!("{ID}\n")),
            json!(format!("{{{ID}}}")),
            json!(format!("urn:uuid:{ID}")),
            json!("00000000-0000-0000-0000-000000000000"),
            json!("0b8f5f0e-7a53-4be0-9c643-b1d6a1f2c55"),
            json!("0b8f5f0e7a53-4be0-9c64-3b1d6-a1f2c55"),
            json!(""),
        ],
        "issued_at" | "expires_at" | "mtime" => {
            TIMES.iter().map(|time| json!(time)).chain([Value::Null]).collect()
        }
        "description" => vec![json!(""), json!(long(256)), json!(long(257)), json!("a\u{0}b")],
        "attribution" => {
            vec![json!({}), Value::Null, json!([]), json!({"a": {"b": [1, 1.5, null]}}), json!("{}")]
        }
        "src_uuid" | "dst_uuid" => vec![
            json!("d_1-A"),
            json!(long(64)),
            json!(long(65)),
            json!(""),
            json!("-"),
            json!("d.1"),
            json!("d1\n"),
        ],
        "src_name" | "dst_name" => vec![
            json!("a"),
            json!("0"),
            json!("a.b_c-"),
            json!(long(63)),
            json!(long(64)),
            json!(""),
            json!("-a"),
            json!(".a"),
            json!("_a"),
            json!("a\n"),
            json!("a b"),
            json!("a/b"),
        ],
        "dst_ip" => [
            "10.0.0.1",
            "::1",
            "fd00::12",
            "::",
            "::ffff:10.0.0.1",
            "1:2:3:4:5:6:7:8",
            "1::8:",
            "1:2",
            "fe80::1%eth0",
            "[::1]",
            "10.0.0",
            "10.0.0.01",
            "256.0.0.1",
            "10.0.0.1\n",
            " 10.0.0.1",
            "10.0.0.1/8",
            "::10.0.0.01",
            "1:2:3:4:5:6:7::",
            "12345::",
            "0.0.0.0",
            "localhost",
            "0x7f.1",
            "2130706433",
            "",
        ]
        .iter()
        .map(|address| json!(address))
        .collect(),
        "protocol" => vec![json!("ssh"), json!("SSH"), json!(""), json!("telnet")],
        "path" => PATHS
            .iter()
            .map(|path| json!(path))
            .chain([
                json!(format!("/{}", long(255))),
                json!(format!("/{}", long(256))),
                json!(format!("/a/..{}", long(253))),
                json!(format!("/a/..{}", long(254))),
                json!(format!("/a/.{}", long(254))),
                json!(format!("/a/.{}", long(255))),
                json!(format!("/{}", "a/".repeat(2048).trim_end_matches('/'))),
                json!("/a".repeat(2048)),
                json!(format!("{}b", "/a".repeat(2048))),
            ])
            .collect(),
        "content_bytes" => [
            "", "YQ==", "YWI=", "YWJj", "YQ", "YQ=", "YR==", "YWJ=", "Y===", "====", "-_-_", "++//",
            "YWJj\n", "YW Jj", "YQ==YQ==", "\n",
        ]
        .iter()
        .map(|text| json!(text))
        .chain([Value::Null])
        .collect(),
        "mode" => [
            "0644", "644", "0", "7", "77", "00", "000", "0000", "0777", "777", "1777", "00777", "0o644",
            "+644", "-644", "888", "", " 644", "644\n", "u+x",
        ]
        .iter()
        .map(|mode| json!(mode))
        .collect(),
        "owner" => [
            "alice",
            "alice:staff",
            "0",
            "1000:1000",
            "_apt",
            "a.b-c",
            "-a",
            ".a",
            "a:",
            ":a",
            "a:b:c",
            "a b",
            "",
            ":",
            "alice\n",
            "a/b",
            "a:-b",
            "alice$",
        ]
        .iter()
        .map(|owner| json!(owner))
        .chain([json!(long(32)), json!(long(33)), json!(format!("{}:{}", long(32), long(32))), Value::Null])
        .collect(),
        "expect_previous" => vec![json!(true), json!(false), json!("true"), json!(1), Value::Null],
        "max_bytes" => vec![
            json!(0),
            json!(1.0),
            json!(-0.0),
            json!(1.5),
            json!(-1),
            json!(12_582_912),
            json!(12_582_913),
            json!(12_582_912.0),
            json!(12_582_912.5),
            json!(1e300),
            json!(u64::MAX),
            json!(-1e300),
            json!(i64::MIN),
            json!("1"),
            Value::Null,
        ],
        _ => vec![json!(""), json!("text"), json!("a\u{0}b\n"), json!("note"), Value::Null],
    }
}

const TIMES: [&str; 38] = [
    "2026-04-20T11:30:00Z",
    "2026-04-20T11:30:00+02:00",
    "2026-04-20T11:30:00-00:00",
    "2026-04-20T11:30:00.5Z",
    "2026-04-20T11:30:00.123456789Z",
    "2026-04-20T11:30:00.1234567890123Z",
    "2024-02-29T00:00:00Z",
    "2023-02-29T00:00:00Z",
    "2000-02-29T00:00:00Z",
    "1900-02-29T00:00:00Z",
    "2026-04-31T00:00:00Z",
    "2026-13-01T00:00:00Z",
    "2026-00-01T00:00:00Z",
    "2026-01-00T00:00:00Z",
    "2026-04-20T24:00:00Z",
    "2026-04-20T23:59:60Z",
    "2026-04-20T23:59:61Z",
    "2026-04-20T23:60:00Z",
    "2026-04-20t11:30:00Z",
    "2026-04-20T11:30:00z",
    "2026-04-20 11:30:00Z",
    "2026-04-20T11:30:00",
    "2026-04-20T11:30Z",
    "2026-04-20T11:30:00+0200",
    "2026-04-20T11:30:00+02",
    "2026-04-20T11:30:00+23:59",
    "2026-04-20T11:30:00+24:00",
    "2026-04-20T11:30:00-02:60",
    "2026-04-20T11:30:00.Z",
    "2026-04-20T11:30:00,5Z",
    "2026-04-20T11:30:00Z\n",
    " 2026-04-20T11:30:00Z",
    "0000-01-01T00:00:00Z",
    "9999-12-31T23:59:59-23:59",
    "0000-01-01T00:00:00+23:59",
    "+2026-04-20T11:30:00Z",
    "1776684600",
    "",
];

const PATHS: [&str; 27] = [
    "/a", "/a/b", "/a//b", "//a", "/a b/c'd", "/a\nb", "/a\n", "/.a", "/..a", "/...", "/a/.b", "/a/..b",
    "/a/b..", "/a/b.", "/a/./b", "/a/../b", "/.", "/..", "/a/.", "/a/..", "/", "//", "/a/", "", "a", "./a",
    "/a\u{0}b",
];

fn one_of_each_type() -> [Value; 7] {
    [json!([]), json!({}), json!(7), json!(1.5), json!(true), json!("~"), Value::Null]
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let anything: Vec<Value> =
        FIELDS.iter().flat_map(|field| pool(field)).chain(one_of_each_type()).collect();
    let text = prop_oneof![
        "[a./ ~\\n-]{0,8}",
        "/[a./~]{0,8}",
        "[A-Da-d0-3+/=]{0,8}",
        "[0-8]{0,5}",
        "[a-z0-9:._-]{0,12}",
        "[0-9a-f:.]{1,12}",
        "20[0-9]{2}-[0-1][0-9]-[0-3][0-9]T[0-2][0-9]:[0-6][0-9]:[0-6][0-9](\\.[0-9]{1,10})?(Z|[+-][0-2][0-9]:[0-6][0-9])",
    ];
    prop_oneof![
        1 => any::<Index>().prop_map(Mutation::Drop),
        1 => (any::<Index>(), select(FIELDS.to_vec())).prop_map(|(at, name)| Mutation::Rename(at, name)),
        8 => (any::<Index>(), any::<Index>()).prop_map(|(at, value)| Mutation::Fill(at, value)),
        2 => (select(FIELDS.to_vec()), select(anything)).prop_map(|(name, value)| Mutation::Swap(name, value)),
        4 => (any::<Index>(), text).prop_map(|(at, text)| Mutation::Text(at, text)),
    ]
}

fn name_at(document: &Map<String, Value>, at: Index) -> Option<String> {
    (!document.is_empty()).then(|| document.keys().nth(at.index(document.len())).unwrap().clone())
}

fn apply(document: &mut Map<String, Value>, mutation: Mutation) {
    let (Mutation::Drop(at) | Mutation::Rename(at, _) | Mutation::Fill(at, _) | Mutation::Text(at, _)) =
        mutation
    else {
        if let Mutation::Swap(name, value) = mutation {
            document.insert(name.to_owned(), value);
        }
        return;
    };
    let Some(name) = name_at(document, at) else { return };
    match mutation {
        Mutation::Drop(_) => drop(document.remove(&name)),
        Mutation::Rename(_, new) => {
            let value = document.remove(&name).unwrap_or_default();
            document.insert(new.to_owned(), value);
        }
        Mutation::Fill(_, value) => drop(document.insert(name.clone(), value.get(&pool(&name)).clone())),
        Mutation::Text(_, text) => drop(document.insert(name, text.into())),
        Mutation::Swap(..) => {}
    }
}

#[test]
fn schema_and_program_agree_on_generated_documents() {
    let schema = validator("action.schema.json");
    let config = Config { cases: 6000, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let documents = (select(whole_actions()), proptest::collection::vec(mutation(), 0..=3));
    let (accepted, refused) = (Cell::new(0), Cell::new(0));
    let agreed = runner.run(&documents, |(mut document, mutations)| {
        for mutation in mutations {
            apply(document.as_object_mut().expect("an action is an object"), mutation);
        }
        let (by_schema, by_program) = (schema.is_valid(&document), decodes(&document.to_string()));
        if by_schema != by_program {
            let words = format!("schema accepts: {by_schema}, program accepts: {by_program}: {document}");
            return Err(TestCaseError::fail(words));
        }
        let count = if by_schema { &accepted } else { &refused };
        count.set(count.get() + 1);
        Ok(())
    });
    if let Err(disagreement) = agreed {
        panic!("{disagreement}");
    }
    assert!(accepted.get() > 1000 && refused.get() > 1000, "{accepted:?} accepted, {refused:?} refused");
}

#[test]
fn schema_and_program_agree_on_every_value_of_every_field() {
    let schema = validator("action.schema.json");
    let mut disagreements = Vec::new();
    for whole in whole_actions() {
        for name in FIELDS {
            for value in pool(name).into_iter().chain(one_of_each_type()) {
                let mut document = whole.clone();
                document[name] = value.clone();
                if schema.is_valid(&document) != decodes(&document.to_string()) {
                    disagreements.push(format!("{}: {name}: {value}", whole["kind"]));
                }
            }
        }
    }
    assert!(disagreements.is_empty(), "{disagreements:#?}");
}
