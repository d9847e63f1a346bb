//! `check`: every part of the set-up, as it is and as it goes wrong.

mod support;

use std::collections::BTreeSet;

use lapin::options::QueueDeleteOptions;
use serde_json::{Value, json};
use support::faults::Cell;
use support::own_broker::User;
use support::tool::{bury, command, json_lines, text, tool, tool_fed};
use support::{OwnDecky, alpha, docker, inside, part};

/// The lines, by what they are about.
fn checked(cell: &Cell, arguments: &[&str]) -> (i32, Vec<Value>) {
    let output = command(cell, &[&["check", "--json"], arguments].concat())
        .env("DECKSWAIN_CONTAINER_CLI", "docker")
        .output()
        .unwrap();
    let lines = text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    (output.status.code().unwrap(), lines)
}

fn of<'a>(lines: &'a [Value], check: &str) -> Vec<&'a Value> {
    lines.iter().filter(|line| line["check"] == check).collect()
}

fn holds(line: &Value, status: &str, says: &str) {
    let message = line["message"].as_str().unwrap();
    assert!(line["status"] == status && message.contains(says), "{line}");
    assert_eq!(line["next"].is_null(), status == "ok", "{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_set_up_that_works_has_no_failure_and_looking_leaves_nothing_behind() {
    let cell = Cell::new("check: all well");
    let (status, lines) = checked(&cell, &[]);
    assert_eq!(status, 0, "{lines:#?}");
    holds(of(&lines, "topology")[0], "warning", "11 of 11 exchanges and queues are missing");
    assert_eq!(tool(&cell, &["topology"]).status.code(), Some(1), "nothing was declared");
    assert_eq!(cell.worker(&[]).stop(), 0);
    let decky = alpha();
    let (status, lines) = checked(&cell, &["--decky", &decky]);
    assert_eq!(status, 0, "{lines:#?}");
    for (check, says) in [
        ("settings", "at once"),
        ("broker", "virtual host /, as guest"),
        ("topology", "all 11 exchanges and queues"),
        ("permissions", "may publish and consume; a worker has nothing to declare"),
        ("engine", "version"),
        (decky.as_str(), "every kind"),
    ] {
        holds(of(&lines, check)[0], "ok", says);
    }
    let stopped = part("DECKSWAIN_TEST_STOPPED");
    assert!(of(&lines, "deckies").iter().any(|line| line["message"].as_str().unwrap().contains(&stopped)));
    assert_eq!(
        (cell.count("actions").await, cell.count("results").await, cell.count("dead").await),
        (0, 0, 0)
    );
    let (status, lines) = checked(&cell, &["--decky", &stopped, "--decky", "nobody"]);
    assert_eq!(status, 1);
    holds(of(&lines, &stopped)[0], "failure", "not running");
    holds(of(&lines, "nobody")[0], "failure", "no container nobody-ssh");
}

#[test]
fn what_a_decky_lacks_is_named_with_what_needs_it_and_no_file_changes() {
    let decky = OwnDecky::start();
    let cell = Cell::new("check: tools");
    inside(&decky.name, &["sh", "-c", "rm /usr/bin/base64; printf '#!/bin/sh\\nexit 1\\n' >/usr/bin/touch"]);
    docker(&["exec", &decky.container(), "rm", "/usr/bin/python3"]);
    let files = || {
        let changed = text(&docker(&["diff", &decky.container()]).stdout);
        changed.lines().map(ToOwned::to_owned).collect::<BTreeSet<_>>()
    };
    let before = files();
    let (status, lines) = checked(&cell, &["--decky", &decky.name]);
    assert_eq!(status, 1);
    let about = of(&lines, &decky.name);
    for (line, says) in about.iter().zip([
        "no working base64, which file",
        "no working touch, which file",
        "no working python3, which traffic",
    ]) {
        holds(line, "failure", says);
    }
    assert_eq!(about.len(), 3, "{about:#?}");
    assert_eq!(files(), before);
    assert_eq!(decky.processes(), Vec::<String>::new());
}

#[test]
fn settings_that_contradict_each_other_are_told_together() {
    let cell = Cell::new("check: settings");
    let broker = "amqp://guest:x@broker.invalid/%2f";
    let (status, lines) = checked(
        &cell,
        &[
            "--timeout",
            "40s",
            "--deny-decky",
            "web-*",
            "--decky",
            "web-01",
            "--retry-delays",
            "5s,1s",
            "--broker",
            broker,
        ],
    );
    assert_eq!(status, 1);
    let said: Vec<&str> =
        of(&lines, "settings").iter().map(|line| line["message"].as_str().unwrap()).collect();
    for says in [
        "--grace is shorter",
        "the policy lets no action touch web-01",
        "a later retry",
        "in clear",
        "the user guest",
    ] {
        assert!(said.iter().any(|said| said.contains(says)), "{says}: {said:#?}");
    }
    holds(of(&lines, "broker")[0], "failure", "failed to connect to the broker at broker.invalid:5672");
    assert!(of(&lines, "permissions").is_empty(), "nothing is said of what was not looked at");
}

#[tokio::test(flavor = "multi_thread")]
async fn permissions_that_a_worker_lacks_are_named_and_one_with_the_least_works() {
    let mut cell = Cell::new("check: permissions");
    let user = User::named(&format!("u-{}", cell.prefix));
    let prefix = cell.prefix.clone();
    user.may("^$", "^$", "^$");
    let limited = user.url(&cell.broker);
    let (status, lines) = checked(&cell, &["--broker", &limited]);
    assert_eq!(status, 1);
    let lacking = of(&lines, "permissions");
    holds(
        lacking[0],
        "failure",
        &format!("lacks configure on {prefix}.dead, {prefix}.results, {prefix}.actions, "),
    );
    holds(
        lacking[1],
        "failure",
        &format!("lacks write on {prefix}.actions, {prefix}.results, {prefix}.dead, amq.default"),
    );
    holds(lacking[2], "failure", &format!("lacks read on {prefix}.actions"));

    // As docs/operations.md gives them.
    assert!(tool(&cell, &["topology", "--declare"]).status.success());
    user.may(
        "^$",
        &format!(r"^{prefix}\.(results|dead|actions)$|^amq\.default$"),
        &format!(r"^{prefix}\.actions$"),
    );
    let (status, lines) = checked(&cell, &["--broker", &limited]);
    assert_eq!(status, 0, "{lines:#?}");
    holds(of(&lines, "topology")[0], "ok", "may not compare");
    holds(of(&lines, "permissions")[0], "ok", "has nothing to declare");
    cell.broker_of_worker = limited;
    let worker = cell.worker(&[]);
    let action = json!({"kind": "remove", "dst_uuid": "d-1", "dst_name": "web-01", "path": "/m/1"});
    assert_eq!(json_lines(&tool_fed(&cell, &["submit", "--wait"], &action.to_string()))[0]["success"], true);
    assert_eq!(worker.stop(), 0);

    // A queue that is missing does not come by waiting.
    let (connection, channel) = cell.connect().await;
    let retry = format!("{prefix}.retry.5s");
    channel.queue_delete(&retry, QueueDeleteOptions::default()).await.unwrap();
    connection.close(200, "done").await.unwrap();
    let mut worker = cell.worker_starting(&[]);
    worker.wait_for_line(&format!("failed to declare queue {retry}"));
    worker.wait_for_line("it is missing, and this user may not declare it");
    assert_eq!(worker.wait(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn planner_watcher_and_operator_need_no_more_than_the_documented_permissions() {
    let mut cell = Cell::new("check: least permissions");
    let user = User::named(&format!("l-{}", cell.prefix));
    let prefix = cell.prefix.clone();
    assert_eq!(cell.worker(&[]).stop(), 0);
    bury(&cell, 3).await;
    cell.broker = user.url(&cell.broker);
    let action =
        json!({"kind": "remove", "dst_uuid": "d-1", "dst_name": "web-01", "path": "/m/1"}).to_string();

    // The planner.
    user.may("^$", &format!(r"^{prefix}\.actions$"), "^$");
    assert!(tool_fed(&cell, &["submit"], &action).status.success());
    let watching = tool_fed(&cell, &["submit", "--wait"], &action);
    assert_eq!(watching.status.code(), Some(3));
    let said = text(&watching.stderr);
    assert!(
        said.contains(&format!(r"configure and write on ^amq\.gen-, read on that and on {prefix}.results")),
        "{said}"
    );

    // The watcher; with the planner's permissions on top, `submit --wait`.
    let write = format!(r"^{prefix}\.actions$|^amq\.gen-");
    user.may(r"^amq\.gen-", &write, &format!(r"^amq\.gen-|^{prefix}\.results$"));
    let waited = tool_fed(&cell, &["submit", "--wait", "--wait-timeout", "100ms"], &action);
    let said = text(&waited.stderr);
    assert!(waited.status.code() == Some(1) && said.contains("no result of"), "{said}");

    // The operator.
    let dead = format!(r"^{prefix}\.dead$");
    user.may(&dead, &format!(r"^{prefix}\.actions$"), &dead);
    assert_eq!(json_lines(&tool(&cell, &["dead-letters", "list", "--json"])).len(), 3);
    let replayed = tool(&cell, &["dead-letters", "replay", "--yes"]);
    assert!(replayed.status.success(), "{}", text(&replayed.stderr));
}
