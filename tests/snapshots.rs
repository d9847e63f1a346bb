//! What a user reads: every help text, every error, every table, held as it is.
//!
//! `INSTA_UPDATE=always cargo nextest run ...` writes the snapshots anew; read their difference.

mod support;

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::process::{Command, Output, Stdio};

use clap::CommandFactory as _;
use serde_json::json;
use support::faults::Cell;
use support::own_broker::OwnBroker;
use support::part;
use support::tool::{bury, command, text, tool, tool_fed};

/// Two deckies, one of them stopped; the other has no python.
const ENGINE: &str = r"#!/bin/sh
case $1 in
--version) echo 'Docker version 28.2.2, build e6534b4' ;;
ps) printf 'web-01-ssh\tUp 3 minutes\ndb-01-ssh\tExited (0) 2 hours ago\n' ;;
exec) printf '%s\n' base64 mkdir rmdir mv chmod wc stat touch chown sha256sum readlink head rm 'uid 0' ;;
esac
";

/// Checks a text against the snapshot of that name, but for what no two runs share.
fn holds(name: &str, shown: &str) {
    insta::with_settings!({
        prepend_module_to_snapshot => false,
        omit_expression => true,
        filters => vec![
            (r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", "[id]"),
            (r"\bf[0-9a-f]{10}\b", "[prefix]"),
            (r"127\.0\.0\.1:\d+", "127.0.0.1:[port]"),
            (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", "[time]"),
            (r#""duration_ms":\d+"#, r#""duration_ms":[ms]"#),
            (r#"("worker":\{"id":)"[^"]*""#, r#"$1"[worker]""#),
            (r"(?m)^\d\d:\d\d:\d\d", "[clock]"),
            (r" +\d+  file:", " [ms]  file:"),
            (r"unix://\S*docker\.sock", "unix://[socket]"),
            (r"/\S*/(nothing-there|client)\b", "[folder]/$1"),
            (r"(Docker|podman) version .*", "[engine's version]"),
            (r"\d+ deckies at once", "[n] deckies at once"),
            (r"Up \S+( \S+)?", "Up [time]"),
        ],
    }, {
        insta::assert_snapshot!(name, shown);
    });
}

/// The command line, what came out on either stream, and the exit status.
fn transcript(arguments: &[&str], output: &Output) -> String {
    let mut shown = format!("$ deckswain {}\n", arguments.join(" "));
    shown.push_str(&text(&output.stdout));
    for line in text(&output.stderr).lines() {
        let _ = writeln!(shown, "stderr: {line}");
    }
    let _ = writeln!(shown, "status: {}", output.status.code().expect("no signal ended it"));
    shown
}

/// `deckswain` in an environment that holds nothing.
fn bare(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_deckswain"));
    command.args(arguments).env_clear().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn bare_fed(arguments: &[&str], input: &[u8]) -> Output {
    let mut child = bare(arguments).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    child.wait_with_output().unwrap()
}

fn hold_help(command: &clap::Command, path: &[&str]) {
    let arguments = [path, &["--help"]].concat();
    let output = bare(&arguments).output().unwrap();
    holds(&["help", &path.join("-")].join("-"), &transcript(&arguments, &output));
    for subcommand in command.get_subcommands().filter(|command| command.get_name() != "help") {
        hold_help(subcommand, &[path, &[subcommand.get_name()]].concat());
    }
}

#[test]
fn every_help_text() {
    hold_help(&deckswain::cli::Cli::command(), &[]);
}

#[test]
fn errors_of_the_options() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("misspelt.toml"), "max_attempt = 3\n").unwrap();
    std::fs::write(folder.path().join("table.toml"), "prefix = {a = 1}\n").unwrap();
    std::fs::write(folder.path().join("no.toml"), "prefix\n").unwrap();
    let cases: &[(&str, &[&str])] = &[
        ("misspelt-command", &["wroker"]),
        ("misspelt-option", &["worker", "--concurency", "4"]),
        ("no-duration", &["worker", "--timeout", "soon"]),
        ("no-time-at-all", &["worker", "--timeout", "0s"]),
        ("grace-shorter-than-timeout", &["worker", "--timeout", "40s"]),
        ("timeout-too-long", &["worker", "--timeout", "26m", "--grace", "30m"]),
        ("memory-too-little", &["worker", "--memory", "10MiB"]),
        ("no-size", &["worker", "--memory", "plenty"]),
        ("content-too-large", &["run", "--content-max", "20000000"]),
        ("no-glob", &["run", "--allow-decky", "web-["]),
        ("no-amqp-url", &["topology", "--broker", "http://broker"]),
        ("no-decky-name", &["check", "--decky", "-x/y"]),
        ("unknown-key", &["config", "--config", "misspelt.toml"]),
        ("key-of-a-wrong-type", &["config", "--config", "table.toml"]),
        ("no-toml", &["config", "--config", "no.toml"]),
        ("no-settings-file", &["config", "--config", "none.toml"]),
        ("no-such-file", &["submit", "none.json"]),
        ("a-folder", &["submit", "."]),
    ];
    for (name, arguments) in cases {
        let output = bare(arguments).current_dir(folder.path()).output().unwrap();
        holds(&format!("error-{name}"), &transcript(arguments, &output));
    }
    let output = bare(&["schema", "action"]).env("DECKSWAIN_LOG", "x=y=z").stdout(Stdio::null()).output();
    holds("warning-log-filter", &transcript(&["schema", "action"], &output.unwrap()));
}

#[test]
fn errors_of_the_input() {
    let file =
        r#"{"kind":"file","dst_uuid":"d-1","dst_name":"web-01","path":"/x","content":"a","contents":"b"}"#;
    let cases: &[(&str, &[u8])] = &[
        ("input-no-json", b"remove /x"),
        ("input-empty", b""),
        ("input-no-utf-8", b"{\"kind\": \"\xff\"}"),
        ("input-unknown-field", file.as_bytes()),
        ("input-no-kind", br#"[{"dst_uuid":"d-1"}, {"kind":"reed"}]"#),
    ];
    for (name, input) in cases {
        holds(&format!("error-{name}"), &transcript(&["submit"], &bare_fed(&["submit"], input)));
    }
}

#[test]
fn errors_of_a_full_disk() {
    for arguments in [&["schema", "action"][..], &["config"], &["completions", "bash"], &["man"]] {
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let output = bare(arguments).stdout(full).output().unwrap();
        holds("error-disk-full", transcript(&[], &output).as_str());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_to_a_full_disk_fails_and_removes_nothing() {
    let cell = Cell::new("snapshots: full disk");
    assert_eq!(cell.worker(&[]).stop(), 0);
    bury(&cell, 3).await;
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let output = command(&cell, &["dead-letters", "export"]).stdout(full).output().unwrap();
    holds("error-disk-full", transcript(&[], &output).as_str());
    cell.wait_for_count("dead", |dead| dead == 3).await;
}

#[test]
fn errors_of_the_broker() {
    let broker = part("DECKSWAIN_BROKER");
    let (_, address) = broker.split_once('@').unwrap();
    let (host, _) = address.split_once('/').unwrap();
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let tls = TcpListener::bind("127.0.0.1:0").unwrap();
    let wants_tls = tls.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in tls.incoming() {
            let mut stream = stream.unwrap();
            // What is no TLS record is answered with a fatal alert: unexpected message.
            let _ = stream.read(&mut [0; 8]);
            let _ = stream.write_all(&[0x15, 3, 3, 0, 2, 2, 10]);
        }
    });
    for (name, url) in [
        ("broker-down", format!("amqp://guest:guest@{nobody}/%2f")),
        ("wrong-password", format!("amqp://guest:wrong@{address}")),
        ("no-vhost", format!("amqp://guest:guest@{host}/nope")),
        ("no-tls-there", format!("amqps://guest:guest@{address}")),
        ("tls-there", format!("amqp://guest:guest@{wants_tls}/%2f")),
    ] {
        let output = bare(&["submit"]).args(["--broker", &url, "schemas/examples/action-file.json"]).output();
        holds(&format!("error-{name}"), &transcript(&["submit"], &output.unwrap()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_of_what_is_not_on_the_broker() {
    let cell = Cell::new("snapshots: nothing declared");
    for (name, arguments) in [
        ("no-dead-letter-queue", &["dead-letters", "list"][..]),
        ("no-results-exchange", &["results"]),
        ("no-actions-exchange", &["submit", "schemas/examples/action-file.json"]),
    ] {
        holds(&format!("error-{name}"), &transcript(arguments, &tool(&cell, arguments)));
    }
    assert_eq!(cell.worker(&[]).stop(), 0);
    bury(&cell, 2).await;
    let unknown = "00000000-0000-4000-8000-000000000002";
    for (name, arguments) in [
        ("nobody-to-ask", &["dead-letters", "replay"][..]),
        ("no-such-dead-letter", &["dead-letters", "show", unknown]),
    ] {
        holds(&format!("error-{name}"), &transcript(arguments, &tool(&cell, arguments)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_error_of_a_broker_that_is_short_of_memory() {
    let broker = OwnBroker::start();
    let cell = Cell::on("snapshots: memory alarm", &broker.url);
    assert_eq!(cell.worker(&[]).stop(), 0);
    broker.memory_alarm(true);
    let arguments = ["submit", "schemas/examples/action-file.json"];
    let output = tool(&cell, &arguments);
    broker.memory_alarm(false);
    holds("error-memory-alarm", &transcript(&arguments, &output));
}

#[test]
fn errors_of_the_engine() {
    let folder = tempfile::tempdir().unwrap();
    let client = folder.path().join("client");
    let denied = "permission denied while trying to connect to the Docker daemon socket at unix:///var/run/docker.sock: \
                  Get \\\"http://%2Fvar%2Frun%2Fdocker.sock/v1.50/containers/json\\\": dial unix /var/run/docker.sock: connect: permission denied";
    std::fs::write(&client, format!("#!/bin/sh\necho \"{denied}\" >&2\nexit 1\n")).unwrap();
    assert!(Command::new("chmod").arg("+x").arg(&client).status().unwrap().success());
    let missing = folder.path().join("nothing-there");
    let action =
        json!({"kind": "read", "dst_uuid": "d-1", "dst_name": "no-such-decky", "path": "/etc/hostname"});
    for (name, client, socket) in [
        ("engine-down", "docker", Some("unix:///nowhere/docker.sock")),
        ("engine-forbidden", client.to_str().unwrap(), None),
        ("engine-client-missing", missing.to_str().unwrap(), None),
        ("no-container", "docker", None),
    ] {
        let mut run = Command::new(env!("CARGO_BIN_EXE_deckswain"));
        run.args(["run", "--container-cli", client])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        if let Some(socket) = socket {
            run.env("DOCKER_HOST", socket);
        }
        let mut child = run.spawn().unwrap();
        child.stdin.take().unwrap().write_all(action.to_string().as_bytes()).unwrap();
        holds(&format!("error-{name}"), &transcript(&["run"], &child.wait_with_output().unwrap()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tables() {
    let cell = Cell::new("snapshots: tables");
    let shown = |name: &str, arguments: &[&str]| {
        holds(&format!("table-{name}"), &transcript(arguments, &tool(&cell, arguments)));
    };
    shown("topology-missing", &["topology"]);
    shown("topology", &["topology", "--declare"]);
    shown("topology-json", &["topology", "--json"]);
    shown("no-dead-letters", &["dead-letters", "list"]);
    let buried = bury(&cell, 3).await;
    shown("dead-letters", &["dead-letters", "list"]);
    shown("dead-letters-json", &["dead-letters", "list", "--json"]);
    shown("dead-letter", &["dead-letters", "show", &buried[0]]);
    shown("dry-run", &["dead-letters", "replay", "--class", "timeout", "--dry-run"]);
    shown("replay", &["dead-letters", "replay", "--class", "timeout", "--yes"]);
    shown("export", &["dead-letters", "export", "--limit", "1"]);
    shown("discard", &["dead-letters", "discard", "--yes"]);
    let engine = tempfile::tempdir().unwrap();
    let client = engine.path().join("client");
    std::fs::write(&client, ENGINE).unwrap();
    assert!(Command::new("chmod").arg("+x").arg(&client).status().unwrap().success());
    for (name, arguments) in
        [("check", &["check", "--decky", "web-01"][..]), ("check-json", &["check", "--json"])]
    {
        let output = command(&cell, arguments).env("DECKSWAIN_CONTAINER_CLI", &client).output().unwrap();
        holds(&format!("table-{name}"), &transcript(arguments, &output));
    }
    let config = bare(&["config"]).output().unwrap();
    holds("table-config", &transcript(&["config"], &config));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_table_of_results() {
    let cell = Cell::new("snapshots: results");
    cell.engine.set("container-stopped", "db-01-ssh");
    let worker = cell.worker(&["--max-attempts", "1", "--concurrency", "1"]);
    let mut watching = command(&cell, &["results", "--limit", "2"]).spawn().unwrap();
    let mut said = String::new();
    BufReader::new(watching.stderr.as_mut().unwrap()).read_line(&mut said).unwrap();
    assert!(said.starts_with("watching "));
    let remove =
        |decky: &str| json!({"kind": "remove", "dst_uuid": "d-1", "dst_name": decky, "path": "/m/1"});
    for decky in ["web-01", "db-01"] {
        let waited = tool_fed(&cell, &["submit", "--wait"], &remove(decky).to_string());
        holds(&format!("table-submit-wait-{decky}"), &transcript(&["submit", "--wait"], &waited));
    }
    holds("table-results", &transcript(&["results"], &watching.wait_with_output().unwrap()));
    assert_eq!(worker.stop(), 0);
}
