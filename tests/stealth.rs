//! Nothing that reaches a decky tells what put it there.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tempfile::TempDir;

const TELLING_WORDS: [&str; 4] = ["decnet", "deckswain", "decky", "honeypot"];
const EDITABLE: [&str; 6] = ["note", "todo", "draft", "script", "log_cron", "log_daemon"];

/// Answers a probe as an ssh server would; anything else it takes with success.
const OBLIGING: &str = "printf 'SSH-2.0-OpenSSH_9.2p1\\r\\n'";

/// Never answers an action; of the endings only the one by shell works, so that both are tried.
const SLEEPING: &str = r#"case "$*" in
*' python3 -IBSc '*) if grep -q SIGSTOP $n/stdin; then exit 127; fi;;
*' sh -c read'*) if grep -q 'kill -STOP' $n/stdin; then printf gone; exit; fi;;
esac
exec sleep 600"#;

/// How a command inside may be started: nothing in it tells what it does, or to which file.
const STARTS: [&[&str]; 4] = [
    &["sh"],
    &["sh", "-c", r#"read -r c;eval "$(printf %b "$c")""#],
    &["python3", "-IBSc", "import sys;exec(eval(sys.stdin.buffer.readline()))"],
    &[
        "sh",
        "-c",
        "command -v python3 >/dev/null 2>&1&&exec python3 -IBSc \
         \"import sys;exec(eval(sys.stdin.buffer.readline()))\";read -r c;read -r c;eval \"$(printf %b \"$c\")\"",
    ],
];

/// A container client that writes down what it is told.
struct Client {
    directory: TempDir,
}

/// One call of the client.
struct Call {
    argv: Vec<String>,
    stdin: Vec<u8>,
}

impl Client {
    fn that(behaviour: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let calls = directory.path().join("calls");
        std::fs::create_dir(&calls).unwrap();
        let script = format!(
            "#!/bin/sh\ncd '{}' || exit 99\nn=$(ls | wc -l)\nmkdir $n || exit 99\n\
             printf '%s\\0' \"$@\" >$n/argv\ncat >$n/stdin\n{behaviour}\n",
            calls.display()
        );
        let client = Self { directory };
        std::fs::write(client.program(), script).unwrap();
        std::fs::set_permissions(client.program(), std::fs::Permissions::from_mode(0o755)).unwrap();
        client
    }

    fn program(&self) -> PathBuf {
        self.directory.path().join("client")
    }

    fn run(&self, timeout: &str, actions: &[Value]) -> (Output, Vec<Value>) {
        let input = self.directory.path().join("actions");
        std::fs::write(&input, Value::from(actions).to_string()).unwrap();
        let ran = Command::new(env!("CARGO_BIN_EXE_deckswain"))
            .args(["run", "--timeout", timeout, "--container-cli"])
            .args([self.program(), input])
            .output()
            .unwrap();
        let results: Vec<Value> =
            ran.stdout.split(|&b| b == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect();
        assert_eq!(results.len(), actions.len(), "{}", String::from_utf8_lossy(&ran.stderr));
        (ran, results)
    }

    fn calls(&self) -> Vec<Call> {
        let call = |at: usize| {
            let directory: PathBuf = self.directory.path().join("calls").join(at.to_string());
            directory.exists().then(|| Call::recorded_in(&directory))
        };
        (0..).map_while(call).collect()
    }
}

impl Call {
    fn recorded_in(directory: &Path) -> Self {
        let argv = String::from_utf8(std::fs::read(directory.join("argv")).unwrap()).unwrap();
        let argv = argv.strip_suffix('\0').unwrap().split('\0').map(ToOwned::to_owned).collect();
        Self { argv, stdin: std::fs::read(directory.join("stdin")).unwrap() }
    }

    fn said(&self) -> String {
        String::from_utf8_lossy(&self.stdin).into_owned()
    }

    /// Everything that it carries into the decky, in lower case; base64 both as it is and decoded.
    fn texts(&self) -> Vec<String> {
        let last = self.stdin.split(|byte| *byte == b'\n').next_back().unwrap_or_default();
        let decoded = STANDARD.decode(last).unwrap_or_default();
        self.argv
            .iter()
            .map(String::as_bytes)
            .chain([self.stdin.as_slice(), decoded.as_slice()])
            .map(|bytes| String::from_utf8_lossy(bytes).to_lowercase())
            .collect()
    }

    /// The tag in its environment, once its command line has been found to hold nothing further.
    fn tag(&self) -> &str {
        let argv: Vec<&str> = self.argv.iter().map(String::as_str).collect();
        let ["exec", "-i", "-w", "/", "-e", tag, "web-01-ssh", inner @ ..] = &argv[..] else {
            panic!("{argv:?}")
        };
        assert!(STARTS.contains(&inner), "{inner:?}");
        let tag = tag.strip_prefix("XDG_SESSION_ID=").unwrap();
        assert!(tag.len() == 16 && tag.bytes().all(|digit| digit.is_ascii_hexdigit()), "{tag}");
        tag
    }

    fn ends_something(&self) -> bool {
        self.said().contains("STOP")
    }
}

fn assert_nothing_tells(calls: &[Call]) {
    for call in calls {
        for text in call.texts() {
            for word in TELLING_WORDS {
                assert!(!text.contains(word), "{word:?} reaches the decky: {text}");
            }
        }
    }
    // Anybody could work out a digest of public words.
    let public = deckswain::result::sha256_hex(b"deckswain web-01");
    let tags: Vec<&str> = calls.iter().map(Call::tag).collect();
    assert!(tags.iter().all(|tag| tag[..8] == tags[0][..8] && tag[..8] != public[..8]), "{tags:?}");
}

/// Text as a call holds it.
fn in_call(text: &str) -> String {
    let plain = text.replace('\\', "\\\\").replace('\n', "\\n").replace('\'', "\\0047");
    let byte =
        |byte: u8| if byte.is_ascii() { char::from(byte).to_string() } else { format!("\\0{byte:03o}") };
    format!(" '{}'", plain.bytes().map(byte).collect::<String>())
}

fn action(kind: &str, fields: Value) -> Value {
    let mut action = json!({"kind": kind, "action_id": "00000000-0000-4000-8000-000000000001",
        "dst_uuid": "d-1", "dst_name": "web-01", "description": "a deckswain honeypot decky of decnet",
        "attribution": {"decnet": "decky"}});
    if kind != "traffic" {
        action["path"] = json!("/home/alice/notes/a.txt");
    }
    action.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    action
}

fn traffic() -> Value {
    action(
        "traffic",
        json!({"src_uuid": "d-1", "src_name": "web-01", "dst_uuid": "d-2", "dst_name": "db-01",
        "dst_ip": "10.0.0.9"}),
    )
}

fn look() -> Value {
    json!({"mode": "0600", "owner": "alice:staff", "mtime": "2026-04-20T11:30:00Z"})
}

fn with(mut action: Value, fields: &Value) -> Value {
    action.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    action
}

/// An edit whose seed is `seed`; the uuid of the planner never leaves the host.
fn edit(class: &str, previous_body: &str, seed: u32) -> Value {
    action(
        "edit",
        json!({"action_id": format!("00000000-0000-4000-8000-{seed:012x}"), "persona": "alice",
        "content_class": class, "previous_body": previous_body, "synthetic_file_uuid": "decky-file",
        "expect_previous": seed.is_multiple_of(2)}),
    )
}

/// One of every kind, plain and with all its trimmings.
fn every_kind() -> Vec<Value> {
    let file = || action("file", json!({"content": "call back\n"}));
    vec![
        traffic(),
        file(),
        with(file(), &look()),
        with(file(), &json!({"content_bytes": "AAEC", "content_class": "canary_honeydoc"})),
        with(edit("note", "a\n", 1), &look()),
        action("read", json!({})),
        action("read", json!({"max_bytes": 10})),
        action("remove", json!({})),
    ]
}

#[test]
fn no_kind_of_action_tells_the_decky_what_it_is() {
    let client = Client::that(OBLIGING);
    let actions = every_kind();
    let (ran, results) = client.run("30s", &actions);
    assert_eq!(ran.status.code(), Some(0), "{results:#?}");
    let calls = client.calls();
    assert_eq!(calls.len(), actions.len());
    assert!(calls[1].said().contains(&in_call("call back\n")));
    assert!(calls[3].said().contains(" '\\0000\\0001\\0002'"));
    assert_nothing_tells(&calls);
}

#[test]
fn no_class_of_edit_tells_the_decky_what_it_is() {
    let bodies = [
        "",
        "- [ ] call back\n- [x] pay the rent\n",
        "Apr 20 11:30:00 mail CRON[1234]: (root) CMD (true)\n",
        "#!/bin/sh\necho done\n",
    ];
    let actions: Vec<Value> = EDITABLE
        .iter()
        .flat_map(|class| bodies.iter().map(move |body| (class, body)))
        .flat_map(|(class, body)| (1..=3).map(move |seed| edit(class, body, seed)))
        .collect();
    let client = Client::that(OBLIGING);
    let (ran, results) = client.run("30s", &actions);
    assert_eq!(ran.status.code(), Some(0), "{results:#?}");
    let calls = client.calls();
    assert_eq!(calls.len(), actions.len());
    for (call, result) in calls.iter().zip(&results) {
        let written = result["payload"]["new_body"].as_str().unwrap();
        assert!(!written.is_empty());
        assert!(call.said().contains(&in_call(written)), "{written}");
    }
    assert_nothing_tells(&calls);
}

#[test]
fn the_end_of_an_action_that_took_too_long_tells_the_decky_nothing() {
    let client = Client::that(SLEEPING);
    let actions = [
        traffic(),
        action("file", json!({"content": "x"})),
        edit("log_cron", "", 1),
        action("read", json!({})),
        action("remove", json!({})),
    ];
    // Long enough for the client to write down what it was told, on a busy machine too.
    let (ran, results) = client.run("1s", &actions);
    assert_eq!(ran.status.code(), Some(1));
    for result in &results {
        assert_eq!(result["failure"]["class"], "timeout", "{result:#}");
        assert_eq!(result["container_process"], "gone", "{result:#}");
    }
    let calls = client.calls();
    // A probe that hung has hung its python, so the shell is asked first, and that is enough.
    assert_eq!(calls.len(), 2 + (actions.len() - 1) * 3, "the action, then each way of ending it");
    let ends_by = |call: &Call, program: &str| call.ends_something() && call.argv[7] == program;
    assert!(ends_by(&calls[1], "sh"));
    for three in calls[2..].chunks(3) {
        assert!(ends_by(&three[1], "python3") && ends_by(&three[2], "sh"));
    }
    assert_nothing_tells(&calls);
}

#[test]
fn a_content_that_does_not_stand_in_its_call_follows_as_base64() {
    let client = Client::that(OBLIGING);
    let content = "a line of a long file\n".repeat(1000);
    client.run("30s", &[with(action("file", json!({"content": content})), &look())]);
    let calls = client.calls();
    let last = calls[0].stdin.split(|byte| *byte == b'\n').next_back().unwrap();
    assert_eq!(STANDARD.decode(last).unwrap(), content.as_bytes());
    assert_nothing_tells(&calls);
}

#[test]
fn looking_for_tools_tells_the_decky_nothing() {
    let client = Client::that("case $1 in ps) printf 'web-01-ssh\\tUp 1 minute\\n' ;; esac");
    let checked = Command::new(env!("CARGO_BIN_EXE_deckswain"))
        .args(["check", "--decky", "web-01", "--broker", "amqp://127.0.0.1:1/%2f", "--container-cli"])
        .arg(client.program())
        .output()
        .unwrap();
    assert_eq!(checked.status.code(), Some(1));
    let calls = client.calls();
    let calls: Vec<Call> = calls.into_iter().filter(|call| call.argv[0] == "exec").collect();
    assert!(calls.iter().any(|call| call.said().contains("touch -c")));
    assert_nothing_tells(&calls);
}
