//! Containers and engines that go away while an action runs: the failure is theirs, and each action has one outcome.

mod support;

use std::collections::VecDeque;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use deckswain::action::{Action, DecodeOptions};
use deckswain::driver::{Attempt, Batch, Driver, DriverOptions, Next};
use deckswain::result::{FailureClass, Outcome};
use deckswain::subprocess::{HostCommands, TURNS_AHEAD};
use serde_json::{Value, json};
use support::{OwnDecky, docker, file, fresh_directory, inside, wait_until, with};
use uuid::Uuid;

fn driver(container_cli: &str) -> Driver<HostCommands> {
    let options = DriverOptions {
        container_cli: container_cli.to_owned(),
        container_suffix: "-ssh".to_owned(),
        time_max: std::time::Duration::from_secs(20),
        fleet: "a-test".to_owned(),
        follow_links: true,
        leftover_age: deckswain::driver::LEFTOVER_AGE,
    };
    Driver::new(options, HostCommands)
}

fn decoded(action: &Value) -> Action {
    let id = Uuid::new_v4().to_string();
    let options = DecodeOptions { message_id: Some(&id), content_bytes_max: 1 << 20 };
    Action::decode(action.to_string().as_bytes(), options).unwrap()
}

fn attempt() -> Attempt {
    Attempt { now: Utc::now(), is_repeat: false }
}

fn class(outcome: &Outcome) -> Option<FailureClass> {
    outcome.failure.as_ref().map(|failure| failure.class)
}

/// The ways in which a container goes away.
const WAYS: [&[&str]; 4] = [&["restart", "-t", "0"], &["kill"], &["stop", "-t", "1"], &["rm", "-f"]];

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_goes_away_while_an_action_runs_is_a_failure_of_the_infrastructure() {
    let mut ways = tokio::task::JoinSet::new();
    for way in WAYS {
        ways.spawn_blocking(move || {
            let decky = OwnDecky::start();
            inside(&decky.name, &["mkfifo", "/srv/never"]);
            let read = decoded(&with(file(&decky.name, "/srv/never"), json!({"kind": "read"})));
            let running = std::thread::spawn(move || {
                let runtime = tokio::runtime::Runtime::new().unwrap();
                runtime.block_on(driver("docker").perform(&read, attempt())).unwrap()
            });
            wait_until("it hangs", || !decky.processes().is_empty());
            assert!(docker(&[way, &[&decky.container()]].concat()).status.success());
            let outcome = running.join().unwrap();
            assert_eq!(class(&outcome), Some(FailureClass::Infrastructure), "{way:?}: {outcome:?}");
        });
    }
    while let Some(ended) = ways.join_next().await {
        ended.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_is_killed_while_its_container_runs_on_is_a_failure_of_the_command() {
    let decky = OwnDecky::start();
    inside(&decky.name, &["mkfifo", "/srv/never"]);
    let read = decoded(&with(file(&decky.name, "/srv/never"), json!({"kind": "read"})));
    let running = tokio::spawn(async move { driver("docker").perform(&read, attempt()).await.unwrap() });
    wait_until("it hangs", || !decky.processes().is_empty());
    let kill = "for p in $(grep -lxE 'sh|head' /proc/[0-9]*/comm | cut -d/ -f3); do [ $p = $$ ] || kill -9 $p; done 2>/dev/null; true";
    inside(&decky.name, &["sh", "-c", kill]);
    let outcome = running.await.unwrap();
    assert_eq!((class(&outcome), &outcome.payload["rc"]), (Some(FailureClass::Command), &json!(137)));
}

/// Actions that are all there from the start, and their outcomes in the order in which they were told.
struct All<'a> {
    waiting: VecDeque<(usize, Arc<Action>)>,
    done: &'a mut Vec<(usize, Outcome)>,
}

impl Batch for All<'_> {
    type Ticket = usize;

    fn next(&mut self) -> Option<Next<usize>> {
        let (ticket, action) = self.waiting.pop_front()?;
        Some(Next { action, ticket, is_repeat: false })
    }

    fn ahead_max(&self) -> usize {
        TURNS_AHEAD
    }

    fn expected(&self) -> usize {
        self.waiting.len()
    }

    async fn wait(&mut self) -> bool {
        false
    }

    fn may_begin(&self, _index: &usize) -> bool {
        true
    }

    fn done(&mut self, index: usize, outcome: Outcome, _span: (DateTime<Utc>, DateTime<Utc>)) {
        self.done.push((index, outcome));
    }

    fn not_begun(&mut self, _index: usize) {}
}

/// Performs a batch of which the third line hangs until the container goes away in this way.
fn cut_off(way: &[&str]) -> (OwnDecky, String, Vec<(usize, Outcome)>) {
    let decky = OwnDecky::start();
    let directory = fresh_directory(&decky.name);
    // Without python each line is the shell's; the owner of one makes chown hang.
    let put = "rm $(command -v python3); mv /usr/bin/chown /usr/bin/chown.real; printf '#!/bin/sh\\ncase $2 in games) \
               [ -e /srv/hung ] || { >/srv/hung; sleep 600; } ;; *) exec chown.real \"$@\" ;; esac\\n' >/usr/bin/chown; chmod +x /usr/bin/chown";
    inside(&decky.name, &["sh", "-c", put]);
    let action = |n: usize| {
        let owner = if n == 2 { "games" } else { "alice" };
        let fields = json!({"content": format!("content {n}"), "owner": owner});
        decoded(&with(file(&decky.name, &format!("{directory}/f{n}")), fields))
    };
    let waiting: VecDeque<_> = (0..8).map(|n| (n, Arc::new(action(n)))).collect();
    let running = std::thread::spawn(move || {
        let mut done = Vec::new();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(driver("docker").perform_batch(All { waiting, done: &mut done })).unwrap();
        done
    });
    wait_until("it hangs", || decky.processes().iter().any(|process| process.contains("sleep 600")));
    assert!(docker(&[way, &[&decky.container()]].concat()).status.success());
    (decky, directory, running.join().unwrap())
}

#[test]
fn a_container_that_goes_away_under_a_batch_costs_each_action_one_attempt_and_keeps_their_order() {
    for way in [WAYS[0], WAYS[1]] {
        let (decky, directory, done) = cut_off(way);
        let order: Vec<usize> = done.iter().map(|(index, _)| *index).collect();
        assert_eq!(order, (0..8).collect::<Vec<_>>(), "one outcome each");
        for (index, outcome) in &done {
            let class = class(outcome);
            match index {
                0 | 1 => assert_eq!(class, None, "{outcome:?}"),
                2 => assert_eq!(class, Some(FailureClass::Infrastructure), "{outcome:?}"),
                // A container that is back in time has them.
                _ => assert!(matches!(class, None | Some(FailureClass::Infrastructure)), "{outcome:?}"),
            }
        }
        docker(&["start", &decky.container()]);
        for (index, outcome) in &done {
            if outcome.failure.is_none() {
                let held = inside(&decky.name, &["cat", &format!("{directory}/f{index}")]);
                assert_eq!(held, format!("content {index}").as_bytes());
            }
        }
    }
}

/// A client that prints what another one prints, and ends as that does.
fn stand_in(folder: &tempfile::TempDir, script: &str) -> String {
    let client = folder.path().join("client");
    fs::write(&client, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&client, fs::Permissions::from_mode(0o755)).unwrap();
    client.to_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_words_of_each_client_are_known_alone_and_for_a_batch() {
    let nerdctl = |words: &str| {
        format!("read -r line; echo 'time=\"2026-08-08T19:39:11Z\" level=fatal msg=\"{words}\"' >&2; exit 1")
    };
    let cases = [
        ("read -r line; exit 255".to_owned(), FailureClass::Infrastructure),
        ("kill -9 $$".to_owned(), FailureClass::Infrastructure),
        (nerdctl("no such container web-01-ssh"), FailureClass::Infrastructure),
        (nerdctl("cannot access containerd socket \\\"/run/containerd/containerd.sock\\\""), FailureClass::Infrastructure),
        ("echo 'WARNING: Error loading config file: unexpected EOF' >&2; echo 'Error response from daemon: No such container: web-01-ssh' >&2; exit 1".to_owned(), FailureClass::Infrastructure),
        ("echo 'Got permission denied while trying to connect to the Docker daemon socket at unix:///var/run/docker.sock' >&2; exit 1".to_owned(), FailureClass::Infrastructure),
    ];
    for (script, expected) in cases {
        let folder = tempfile::tempdir().unwrap();
        let client = stand_in(&folder, &script);
        let action = |n: usize| with(file("web-01", &format!("/srv/f{n}")), json!({"content": "x"}));
        let alone = driver(&client).perform(&decoded(&action(0)), attempt()).await.unwrap();
        assert_eq!(class(&alone), Some(expected), "{script}: {alone:?}");
        let waiting = (0..5).map(|n| (n, Arc::new(decoded(&action(n))))).collect();
        let mut done = Vec::new();
        driver(&client).perform_batch(All { waiting, done: &mut done }).await.unwrap();
        assert_eq!(done.iter().map(|(index, _)| *index).collect::<Vec<_>>(), [0, 1, 2, 3, 4], "{script}");
        assert!(done.iter().all(|(_, outcome)| class(outcome) == Some(expected)), "{script}: {done:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conflict_is_one_through_a_client_that_tells_the_status_in_words() {
    let folder = tempfile::tempdir().unwrap();
    let script = "read -r line; echo 'file changed' >&2; echo 'time=\"2026-08-08T19:39:11Z\" level=fatal msg=\"exec failed with exit code 73\"' >&2; exit 1";
    let client = stand_in(&folder, script);
    let edit = with(
        file("web-01", "/srv/todo"),
        json!({"kind": "edit", "persona": "alice", "content_class": "todo", "previous_body": "- [ ] a\n",
            "synthetic_file_uuid": "f-1", "expect_previous": true}),
    );
    let outcome = driver(&client).perform(&decoded(&edit), attempt()).await.unwrap();
    assert_eq!(class(&outcome), Some(FailureClass::Conflict), "{outcome:?}");
}
