//! `results`, `topology`, `config`, `completions` and `man`, as a user runs them.

mod support;

use std::fs::Permissions;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};

use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use serde_json::{Value, json};
use support::faults::Cell;
use support::proxy::Proxy;
use support::tool::{command, json_lines, lines, text, tool, tool_fed};

fn remove(decky: &str, path: &str) -> Value {
    json!({"kind": "remove", "dst_uuid": "d-1", "dst_name": decky, "path": path})
}

#[tokio::test(flavor = "multi_thread")]
async fn results_are_shown_as_they_come_and_filters_narrow_them() {
    let cell = Cell::new("results");
    cell.engine.set("container-stopped", "db-01-ssh");
    let worker = cell.worker(&["--max-attempts", "1"]);
    let watch = |arguments: &[&str]| {
        let mut child = command(&cell, &[&["results"], arguments].concat()).spawn().unwrap();
        let mut said = BufReader::new(child.stderr.take().unwrap()).lines();
        assert_eq!(said.next().unwrap().unwrap(), format!("watching {}.results", cell.prefix));
        child
    };
    let all = watch(&["--limit", "3"]);
    let failed = watch(&["--failed", "--json", "--limit", "1"]);
    let web = watch(&["--decky", "web-*", "--kind", "remove", "--json", "--limit", "2"]);
    let actions =
        json!([remove("web-01", "/m/1"), remove("db-01", "/m/2"), remove("web-02", "/m/\u{202e}3")]);
    assert!(tool_fed(&cell, &["submit"], &actions.to_string()).status.success());

    let table = lines(&all.wait_with_output().unwrap());
    assert_eq!(
        table[0].split_whitespace().collect::<Vec<_>>(),
        ["TIME", "KIND", "DECKY", "OUTCOME", "MS", "WHAT"]
    );
    let told = |row: &str| table.iter().any(|line| line.contains(row));
    assert!(told("remove   web-01            ok  ") && told("file:remove /m/1"), "{table:#?}");
    assert!(told("remove   db-01             infrastructure  "), "{table:#?}");
    assert!(told("file:remove /m/\\u{202e}3"), "{table:#?}");
    let failed = json_lines(&failed.wait_with_output().unwrap());
    assert_eq!(failed[0]["payload"]["dst_decky"], "db-01");
    let web = json_lines(&web.wait_with_output().unwrap());
    assert!(web.iter().all(|result| result["success"] == true));
    assert_eq!(worker.stop(), 0);
    assert_eq!(cell.count("results").await, 3, "nobody's results were taken");
}

#[tokio::test(flavor = "multi_thread")]
async fn results_go_on_after_the_connection_was_lost_and_say_so() {
    let cell = Cell::new("results: cut");
    let worker = cell.worker(&[]);
    let proxy = Proxy::to(&cell.broker).await;
    let mut watching = command(&cell, &["results", "--json", "--limit", "1"])
        .env("DECKSWAIN_BROKER", &proxy.url)
        .spawn()
        .unwrap();
    let mut said = BufReader::new(watching.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(said.next().unwrap().starts_with("watching "));
    proxy.cut();
    assert!(said.next().unwrap().ends_with("; connecting again"));
    assert!(said.any(|line| line.starts_with("watching again ")));
    assert!(tool_fed(&cell, &["submit"], &remove("web-01", "/m/1").to_string()).status.success());
    assert_eq!(json_lines(&watching.wait_with_output().unwrap()).len(), 1);
    assert_eq!(worker.stop(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn topology_tells_what_is_missing_declares_it_and_explains_what_differs() {
    let cell = Cell::new("topology");
    let states = |arguments: &[&str]| {
        let output = tool(&cell, &[&["topology", "--json"], arguments].concat());
        let lines = text(&output.stdout)
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect::<Vec<Value>>();
        (output.status.code().unwrap(), lines)
    };
    let all =
        |lines: &[Value], state: &str| lines.len() == 11 && lines.iter().all(|line| line["state"] == state);
    let (code, missing) = states(&[]);
    assert!(code == 1 && all(&missing, "missing"), "{missing:?}");
    let (code, made) = states(&["--declare"]);
    assert!(code == 0 && all(&made, "ok"), "{made:?}");
    let (code, there) = states(&[]);
    assert!(code == 0 && all(&there, "ok"), "{there:?}");
    // A worker finds what was declared to its taste.
    assert_eq!(cell.worker(&[]).stop(), 0);

    let other = Cell::new("topology: other arguments");
    let (connection, channel) = other.connect().await;
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(&format!("{}.dead", other.prefix), options, FieldTable::default()).await.unwrap();
    connection.close(200, "done").await.unwrap();
    let differing = tool(&other, &["topology", "--declare"]);
    assert_eq!(differing.status.code(), Some(1));
    assert!(
        text(&differing.stdout).contains("differs: inequivalent arg 'x-queue-type'"),
        "{}",
        text(&differing.stdout)
    );
    assert!(text(&differing.stderr).contains("rabbitmqctl delete_queue"));
}

fn in_folder(folder: &std::path::Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_deckswain"));
    command.args(arguments).current_dir(folder).env_clear();
    command
}

#[test]
fn a_flag_wins_over_the_environment_that_over_the_file_and_that_over_the_default() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(
        folder.path().join("deckswain.toml"),
        "timeout = '3s'\nprefix = 'from-file'\nmax_attempts = 7\nallow-decky = ['web-*', 'db-*']\n",
    )
    .unwrap();
    std::fs::write(folder.path().join("secret"), "amqp://u:hidden@h/%2f\n").unwrap();
    let mut shown = in_folder(folder.path(), &["config", "--json", "--timeout", "5s"]);
    let shown = shown
        .env("DECKSWAIN_PREFIX", "from-env")
        .env("DECKSWAIN_TIMEOUT", "4s")
        .env("DECKSWAIN_BROKER_FILE", "secret");
    let settings = json_lines(&shown.output().unwrap()).remove(0);
    let setting =
        |name: &str| (settings[name]["value"].as_str().unwrap(), settings[name]["source"].as_str().unwrap());
    assert_eq!(setting("timeout"), ("5s", "flag"));
    assert_eq!(setting("prefix"), ("from-env", "environment DECKSWAIN_PREFIX"));
    assert_eq!(setting("max-attempts"), ("7", "file deckswain.toml"));
    assert_eq!(setting("allow-decky"), ("web-*,db-*", "file deckswain.toml"));
    assert_eq!(setting("container-cli"), ("docker", "default"));
    assert_eq!(setting("broker"), ("amqp://u:***@h/%2f", "file secret"));
}

#[test]
fn a_key_that_nobody_knows_is_refused_with_the_nearest_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mine.toml");
    for (content, says) in [
        ("max_attempt = 3", "try: \"max-attempts\""),
        ("timeout = 'soon'", "invalid value 'soon' for '--timeout"),
        ("prefix = {a = 1}", "prefix is neither"),
        ("prefix", "is no TOML"),
    ] {
        std::fs::write(&path, content).unwrap();
        let refused = in_folder(folder.path(), &["config", "--config", "mine.toml"]).output().unwrap();
        assert_eq!(refused.status.code(), Some(2), "{content}");
        assert!(text(&refused.stderr).contains(says), "{content}: {}", text(&refused.stderr));
    }
    for (name, arguments) in
        [("mine.toml", &["config", "--config", "mine.toml"][..]), ("deckswain.toml", &["config"])]
    {
        let path = folder.path().join(name);
        std::fs::write(&path, "container-cli = '/tmp/evil'\n").unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o666)).unwrap();
        let refused = in_folder(folder.path(), arguments).output().unwrap();
        assert_eq!(refused.status.code(), Some(2), "{name}");
        assert!(
            text(&refused.stderr).contains("its mode 0666 lets others write to it"),
            "{}",
            text(&refused.stderr)
        );
        std::fs::remove_file(&path).unwrap();
    }
    let missing = in_folder(folder.path(), &["config", "--config=none.toml"]).output().unwrap();
    assert!(text(&missing.stderr).contains("failed to read none.toml"));
    let misspelt = in_folder(folder.path(), &["wroker"]).output().unwrap();
    assert!(text(&misspelt.stderr).contains("'worker'"));
}

#[test]
fn completions_are_scripts_and_the_manual_has_a_page_a_command() {
    let folder = tempfile::tempdir().unwrap();
    let mut bash = Command::new("bash").arg("-n").stdin(Stdio::piped()).spawn().unwrap();
    let script = in_folder(folder.path(), &["completions", "bash"]).output().unwrap().stdout;
    bash.stdin.take().unwrap().write_all(&script).unwrap();
    assert!(bash.wait().unwrap().success());
    for shell in ["bash", "zsh", "fish"] {
        let script = in_folder(folder.path(), &["completions", shell]).output().unwrap();
        assert!(text(&script.stdout).contains("dead-letters"), "{shell}");
    }
    let page = in_folder(folder.path(), &["man"]).output().unwrap();
    assert!(text(&page.stdout).contains(".TH deckswain 1"));
    assert!(in_folder(folder.path(), &["man", "--all", "."]).status().unwrap().success());
    assert!(folder.path().join("deckswain-dead-letters-replay.1").exists());
}
