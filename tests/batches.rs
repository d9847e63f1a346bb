//! Several changes by one exec: each comes to what it would have come to alone.

mod support;

use std::process::Command;
use std::sync::Arc;

use chrono::Utc;
use deckswain::action::{Action, DeckyName, DecodeOptions};
use deckswain::driver::{Attempt, Driver, DriverOptions, can_share};
use deckswain::result::{ContainerProcess, FailureClass};
use deckswain::subprocess::{HostCommands, TURNS_AHEAD};
use serde_json::{Value, json};
use support::batch::{All, Done};
use support::{OwnDecky, docker, file, fresh_directory, inside, with};
use uuid::Uuid;

fn driver(timeout: &str) -> Driver<HostCommands> {
    driver_with("docker", timeout)
}

fn driver_with(container_cli: &str, timeout: &str) -> Driver<HostCommands> {
    let options = DriverOptions {
        container_cli: container_cli.to_owned(),
        container_suffix: "-ssh".to_owned(),
        time_max: humantime::parse_duration(timeout).unwrap(),
        fleet: "a-test".to_owned(),
        follow_links: true,
        leftover_age: deckswain::driver::LEFTOVER_AGE,
    };
    Driver::new(options, HostCommands)
}

fn decoded(actions: &[Value]) -> Vec<Action> {
    let decode = |(at, action): (usize, &Value)| {
        let id = Uuid::from_u128(at as u128 + 1).to_string();
        let options = DecodeOptions { message_id: Some(&id), content_bytes_max: 1 << 20 };
        Action::decode(action.to_string().as_bytes(), options).unwrap()
    };
    actions.iter().enumerate().map(decode).collect()
}

async fn batched(driver: &Driver<HostCommands>, actions: &[Action]) -> Vec<Done> {
    let mut done = Vec::new();
    let waiting = actions.iter().cloned().map(Arc::new).enumerate().collect();
    driver.perform_batch(All { waiting, done: &mut done, done_max: usize::MAX }).await.unwrap();
    done.sort_by_key(|ended| ended.index);
    assert_eq!(
        done.iter().map(|ended| ended.index).collect::<Vec<_>>(),
        (0..actions.len()).collect::<Vec<_>>()
    );
    done
}

/// Plants of all sorts into `directory`, some of which fail.
fn mixed(decky: &str, directory: &str) -> Vec<Value> {
    let at = |name: &str| file(decky, &format!("{directory}/{name}"));
    let every_byte: Vec<u8> = (0..=255).collect();
    let base64 = deckswain::result::base64_text(&every_byte);
    let edit = |name: &str, previous: &str, expect: bool| {
        with(
            at(name),
            json!({"kind": "edit", "persona": "alice", "content_class": "todo", "previous_body": previous,
                "synthetic_file_uuid": "f-1", "expect_previous": expect, "issued_at": "2026-01-01T00:00:00Z",
                "action_id": "00000000-0000-4000-8000-000000000009"}),
        )
    };
    vec![
        with(at("plain"), json!({"content": "a\nb\\n'c' $(id) `id` \"d\"\n\n"})),
        with(at("bytes"), json!({"content_bytes": base64})),
        with(at("empty"), json!({"content": ""})),
        with(at("a b/ü Á 'q' \\ $x/deep"), json!({"content": "x", "owner": "alice:alice", "mode": "0600"})),
        with(at("old"), json!({"content": "x", "mtime": "2026-04-17T18:05:00+02:00", "mode": "0777"})),
        with(at("nobody's"), json!({"content": "x", "owner": "no-such-user"})),
        with(at("new/nobody's"), json!({"content": "x", "owner": "no-such-user"})),
        with(at("plain/below"), json!({"content": "x"})),
        with(at("folder"), json!({"content": "x"})),
        with(at("link"), json!({"content": "through?"})),
        edit("plain", "- [ ] a\n", true),
        edit("todo", "- [ ] a\n", true),
        edit("unseen", "- [ ] a\n", false),
        edit("todo", "- [ ] a\n", true),
        with(at("new folder/below/it"), json!({"content": "x", "owner": "alice"})),
        with(at("not at all"), json!({"content": "x", "mtime": "1969-12-31T23:59:58Z", "owner": "7:8"})),
        with(at("bytes"), json!({"kind": "remove"})),
        with(at("folder"), json!({"kind": "remove"})),
        with(at("none"), json!({"kind": "remove"})),
    ]
}

fn prepared(decky: &str) -> String {
    let directory = fresh_directory(decky);
    let set_up = "mkdir folder; ln -s folder link; printf -- '- [ ] a\\n' >todo";
    inside(decky, &["sh", "-c", &format!("cd {directory} && {set_up}")]);
    directory
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_leaves_and_reports_what_the_same_actions_do_alone() {
    leaves_the_same(OwnDecky::start()).await;
    leaves_the_same(without_python()).await;
}

async fn leaves_the_same(decky: OwnDecky) {
    let driver = driver("8s");
    let (alone, together) = (prepared(&decky.name), prepared(&decky.name));
    let mut outcomes = Vec::new();
    for action in decoded(&mixed(&decky.name, &alone)) {
        outcomes.push(driver.perform(&action, Attempt { now: Utc::now(), is_repeat: true }).await.unwrap());
    }
    let actions = decoded(&mixed(&decky.name, &together));
    assert!(actions.iter().all(can_share));
    let done = batched(&driver, &actions).await;
    for (one, other) in outcomes.iter().zip(&done) {
        let payload = one.payload.to_string().replace(&alone, &together);
        // The shell counts its lines, and a script of one plant has others than that of a batch.
        let plain = |text: &str| {
            text.split(": ").filter(|word| !word.starts_with("line ")).collect::<Vec<_>>().join(": ")
        };
        assert_eq!(plain(&payload), plain(&other.outcome.payload.to_string()));
        assert_eq!(one.content_sha256, other.outcome.content_sha256);
        let class =
            |failure: &Option<deckswain::result::Failure>| failure.as_ref().map(|failure| failure.class);
        assert_eq!(class(&one.failure), class(&other.outcome.failure), "{}", other.outcome.payload);
    }
    assert!(done.iter().filter(|ended| ended.outcome.failure.is_some()).count() >= 5);
    let listed = |directory: &str| {
        let list = "find . ! -name . -printf '%p %y %m %u %g %s %T@ %l\\n' | grep -v '^./folder d' | sort; find . -type f | sort | xargs -d '\\n' sha256sum";
        let text =
            String::from_utf8(inside(&decky.name, &["sh", "-c", &format!("cd {directory} && {list}")]))
                .unwrap();
        // The time of what has no mtime of its own is the time of its plant.
        let fields = |line: &str| {
            line.rsplit_once(' ').map_or(line.to_owned(), |(head, link)| {
                let (rest, time) = head.rsplit_once(' ').unwrap_or((head, ""));
                format!("{rest} {} {link}", if time.starts_with("1776") { time } else { "" })
            })
        };
        text.lines().map(fields).collect::<Vec<_>>()
    };
    assert_eq!(listed(&alone), listed(&together));
    assert!(listed(&together).iter().all(|line| !line.contains("sed")), "nothing is left behind");
    assert_eq!(decky.processes(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_hangs_is_ended_on_both_sides_and_the_rest_go_on() {
    hangs(OwnDecky::start()).await;
    hangs(without_python()).await;
}

/// A decky whose batches are for the shell alone.
fn without_python() -> OwnDecky {
    let decky = OwnDecky::start();
    inside(&decky.name, &["sh", "-c", "rm $(command -v python3)"]);
    decky
}

async fn hangs(decky: OwnDecky) {
    let directory = fresh_directory(&decky.name);
    // The owner of one plant makes chown hang.
    let put = "mv /usr/bin/chown /usr/bin/chown.real; printf '#!/bin/sh\\ncase $2 in games) sleep 600 ;; *) exec chown.real \"$@\" ;; esac\\n' \
               >/usr/bin/chown; chmod +x /usr/bin/chown";
    inside(&decky.name, &["sh", "-c", put]);
    let actions: Vec<Value> = (0..6)
        .map(|n| {
            // The quote makes it one for the shell, where python would do the rest.
            let (owner, quote) = if n == 2 || n == 4 { ("games", "'") } else { ("alice", "") };
            with(
                file(&decky.name, &format!("{directory}/f{n}{quote}")),
                json!({"content": "x", "owner": owner}),
            )
        })
        .collect();
    let done = batched(&driver("2s"), &decoded(&actions)).await;
    for ended in &done {
        let class = ended.outcome.failure.as_ref().map(|failure| failure.class);
        if ended.index == 2 || ended.index == 4 {
            assert_eq!(class, Some(FailureClass::Timeout));
            assert_eq!(ended.outcome.payload["rc"], 124);
            assert_eq!(ended.outcome.container_process, Some(ContainerProcess::Gone));
        } else {
            assert_eq!(class, None, "{}", ended.outcome.payload);
        }
    }
    let left = String::from_utf8(inside(&decky.name, &["ls", "-A", &directory])).unwrap();
    assert_eq!(left.split_whitespace().collect::<Vec<_>>(), ["f0", "f1", "f3", "f5"]);
    assert_eq!(decky.processes(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_breaks_the_framing_costs_only_its_own_decky_and_each_action_still_has_its_outcome() {
    let decky = OwnDecky::start();
    let directory = fresh_directory(&decky.name);
    inside(&decky.name, &["sh", "-c", "rm $(command -v python3)"]);
    // A chmod that kills the shell it runs under, once in three calls.
    let put = "mv /usr/bin/chmod /usr/bin/chmod.real; printf '#!/bin/sh\\necho 0123456789abcdef 0 0\\necho x >>/srv/calls\\n\
               [ $(($(wc -l </srv/calls) %% 3)) != 0 ] || kill -9 $(ps -o ppid= -p $PPID 2>/dev/null || cut -d\" \" -f4 /proc/$PPID/stat)\\n\
               exec chmod.real \"$@\"\\n' >/usr/bin/chmod; chmod.real +x /usr/bin/chmod";
    inside(&decky.name, &["sh", "-c", put]);
    let actions: Vec<Value> = (0..7)
        .map(|n| with(file(&decky.name, &format!("{directory}/f{n}")), json!({"content": "x"})))
        .collect();
    let done = batched(&driver("8s"), &decoded(&actions)).await;
    assert_eq!(done.len(), 7);
    assert!(done.iter().filter(|ended| ended.outcome.failure.is_none()).count() >= 4);
    assert_eq!(decky.processes(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn where_python_does_not_do_what_it_should_the_shell_does_it() {
    let decky = OwnDecky::start();
    let directory = fresh_directory(&decky.name);
    let put = "p=$(command -v python3); rm $p; printf '#!/bin/sh\necho no >&2; exit 1\n' >$p; chmod +x $p";
    inside(&decky.name, &["sh", "-c", put]);
    let actions: Vec<Value> = (0..20)
        .map(|n| with(file(&decky.name, &format!("{directory}/f{n:02}")), json!({"content": "x"})))
        .collect();
    let done = batched(&driver("8s"), &decoded(&actions)).await;
    assert!(done.iter().all(|ended| ended.outcome.failure.is_none()));
    let left = String::from_utf8(inside(&decky.name, &["ls", "-A", &directory])).unwrap();
    assert_eq!(left.lines().count(), 20, "{left}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_worker_of_the_fleet_left_in_a_decky_is_ended_and_nothing_else_is() {
    let decky = OwnDecky::start();
    inside(&decky.name, &["sh", "-c", "mkfifo /srv/never"]);
    docker(&["exec", "-d", &decky.container(), "sleep", "600"]);
    let read = with(file(&decky.name, "/srv/never"), json!({"kind": "read"}));
    let (other, action) = (driver("60s"), decoded(&[read]).remove(0));
    let attempt = Attempt { now: Utc::now(), is_repeat: false };
    let hanging = tokio::spawn(async move { other.perform(&action, attempt).await });
    let is_there = |what: &str| decky.processes().iter().any(|process| process.ends_with(what));
    support::wait_until("it hangs", || is_there(" sh"));
    driver("8s").clear(&DeckyName::parse(&decky.name).unwrap()).await;
    assert!(!is_there(" sh") && is_there(" sleep 600"), "{:?}", decky.processes());
    let outcome = hanging.await.unwrap().unwrap();
    assert_eq!(outcome.failure.map(|failure| failure.class), Some(FailureClass::Command));
}

#[tokio::test(flavor = "multi_thread")]
async fn plants_of_several_workers_into_one_directory_each_leave_their_own_bytes() {
    let decky = without_python();
    let directory = fresh_directory(&decky.name);
    // Every plant stays half done for a second, so that all of them meet.
    let put = "mv /usr/bin/chmod /usr/bin/chmod.real; printf '#!/bin/sh\nsleep 1\nexec chmod.real \"$@\"\n' \
               >/usr/bin/chmod; chmod.real +x /usr/bin/chmod";
    inside(&decky.name, &["sh", "-c", put]);
    let plants = ["AAAA", "B", "CCCC"].map(|content| {
        let path = format!("{directory}/{content}");
        let action = decoded(&[with(file(&decky.name, &path), json!({"content": content, "mode": "0755"}))]);
        tokio::spawn(async move {
            let attempt = Attempt { now: Utc::now(), is_repeat: false };
            let outcome = driver("20s").perform(&action[0], attempt).await.unwrap();
            (content, path, outcome)
        })
    });
    for plant in plants {
        let (content, path, outcome) = plant.await.unwrap();
        assert_eq!(outcome.failure, None, "{}", outcome.payload);
        assert_eq!(inside(&decky.name, &["cat", &path]), content.as_bytes());
    }
    let left = String::from_utf8(inside(&decky.name, &["ls", "-A", &directory])).unwrap();
    assert_eq!(left.split_whitespace().collect::<Vec<_>>(), ["AAAA", "B", "CCCC"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_container_all_of_a_batch_fail_as_they_would_alone() {
    let stopped = support::part("DECKSWAIN_TEST_STOPPED");
    let actions = decoded(&[
        file(&stopped, "/srv/a"),
        file(&stopped, "/srv/b"),
        with(file(&stopped, "/srv/c"), json!({"kind": "remove"})),
    ]);
    let alone =
        driver("8s").perform(&actions[1], Attempt { now: Utc::now(), is_repeat: true }).await.unwrap();
    let done = batched(&driver("8s"), &actions).await;
    assert!(done.iter().all(|ended| ended.outcome.failure == alone.failure));
    assert_eq!(done[1].outcome.payload, alone.payload);
}

/// The same script, run by each shell on this host.
#[test]
fn the_script_works_in_dash_bash_and_busybox() {
    for shell in [&["dash"][..], &["bash", "--posix"], &["bash"], &["busybox", "sh"]] {
        let folder = tempfile::tempdir().unwrap();
        let calls = folder.path().join("calls");
        // A client that runs what it is given to run inside, here.
        let client = folder.path().join("client");
        let script = format!(
            "#!/bin/sh\necho x >>{}\nwhile [ \"$1\" != sh ]; do shift; done\nshift\nexec {} \"$@\"\n",
            calls.display(),
            shell.join(" ")
        );
        std::fs::write(&client, script).unwrap();
        assert!(Command::new("chmod").arg("+x").arg(&client).status().unwrap().success());
        let driver = driver_with(client.to_str().unwrap(), "20s");
        let directory = folder.path().join("in");
        let every_byte: Vec<u8> = (0..=255).cycle().take(20_000).collect();
        let action = |name: &str, fields: Value| {
            with(file("web-01", &format!("{}/{name}", directory.display())), fields)
        };
        let base64 = deckswain::result::base64_text(&every_byte);
        let actions = decoded(&[
            action("Á b/bytes", json!({"content_bytes": base64, "mode": "0601"})),
            action("text", json!({"content": "a\\nb\n'c'\r\n\t$x", "mtime": "2026-04-17T18:05:00+02:00"})),
            action("text/below", json!({"content": "x"})),
        ]);
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let done = runtime.block_on(batched(&driver, &actions));
        assert_eq!(done[0].outcome.failure, None, "{shell:?}: {}", done[0].outcome.payload);
        assert_eq!(done[1].outcome.failure, None, "{shell:?}: {}", done[1].outcome.payload);
        assert!(done[2].outcome.failure.is_some(), "{shell:?}");
        assert_eq!(std::fs::read(directory.join("Á b/bytes")).unwrap(), every_byte, "{shell:?}");
        assert_eq!(std::fs::read(directory.join("text")).unwrap(), b"a\\nb\n'c'\r\n\t$x", "{shell:?}");
        let look = Command::new("stat").args(["-c", "%a %Y"]).arg(directory.join("text")).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&look.stdout).trim(), "644 1776441900", "{shell:?}");
        assert_eq!(std::fs::read_to_string(&calls).unwrap().lines().count(), 1, "one exec");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_not_to_go_on_begins_no_more_and_tells_of_what_it_did() {
    let decky = support::alpha();
    let directory = fresh_directory(&decky);
    let actions: Vec<Value> = (0..100).map(|n| file(&decky, &format!("{directory}/f{n:02}"))).collect();
    let waiting = decoded(&actions).into_iter().map(Arc::new).enumerate().collect();
    let mut done = Vec::new();
    driver("8s").perform_batch(All { waiting, done: &mut done, done_max: 5 }).await.unwrap();
    assert!(done.iter().enumerate().all(|(at, ended)| ended.index == at && ended.outcome.failure.is_none()));
    let told = done.len();
    assert!((5..=5 + TURNS_AHEAD).contains(&told), "{told}");
    let left = String::from_utf8(inside(&decky, &["ls", "-A", &directory])).unwrap();
    assert_eq!(left.lines().count(), told, "what was done was told of");
}
