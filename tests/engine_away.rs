//! A worker whose engine is away, or never had a decky: nothing is tried in vain, and other workers go on.

mod support;

use std::process::Command;

use serde_json::{Value, json};
use support::{OwnDecky, Peer, WorkerProcess, file, header, inside, with};

/// A client of an engine that has only the containers whose names hold `mine`, and is away while a file is there.
struct Host {
    folder: tempfile::TempDir,
}

impl Host {
    fn with(mine: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let host = Self { folder };
        let script = format!(
            r#"#!/bin/sh
if [ -e {away} ]; then
    echo 'Cannot connect to the Docker daemon at unix:///run/docker.sock. Is the docker daemon running?' >&2
    exit 1
fi
case $1 in
ps) docker "$@" | grep -e '{mine}' || true; exit ;;
events) exec docker "$@" ;;
esac
for word; do
    case $word in
    *{mine}*) exec docker "$@" ;;
    own-*) echo "Error response from daemon: No such container: $word" >&2; exit 1 ;;
    esac
done
exec docker "$@"
"#,
            away = host.file("away"),
        );
        std::fs::write(host.client(), script).unwrap();
        assert!(Command::new("chmod").args(["+x", &host.client()]).status().unwrap().success());
        host
    }

    fn file(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    fn client(&self) -> String {
        self.file("client")
    }

    fn goes_away(&self) {
        std::fs::write(self.file("away"), "").unwrap();
    }

    fn is_back(&self) {
        std::fs::remove_file(self.file("away")).unwrap();
    }
}

/// Long delays: an attempt that is counted shows.
const RETRIES: [&str; 4] = ["--retry-delays", "1s,2s", "--max-attempts", "3"];

fn worker(peer: &Peer, client: &str) -> WorkerProcess {
    WorkerProcess::spawn(&peer.prefix, &[&RETRIES[..], &["--container-cli", client]].concat())
}

fn plant(decky: &str, n: usize) -> Value {
    with(file(decky, &format!("/srv/f{n}")), json!({"content": format!("content {n}")}))
}

/// Takes so many results, all of which are successes at the first attempt.
async fn all_at_the_first_attempt(peer: &Peer, count: usize) {
    let mut results = peer.consume("results").await;
    for _ in 0..count {
        let result = results.next_json().await;
        assert_eq!((&result["success"], &result["attempt"]), (&json!(true), &json!(1)), "{result}");
    }
    assert_eq!(peer.count("dead").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hosts_share_a_queue_and_each_action_is_done_where_its_decky_is_at_its_first_attempt() {
    let deckies = [OwnDecky::start(), OwnDecky::start()];
    let peer = Peer::connect().await;
    let hosts = deckies.each_ref().map(|decky| Host::with(&decky.name));
    let mut workers = hosts.each_ref().map(|host| worker(&peer, &host.client()));
    for worker in &mut workers {
        worker.wait_for_line("2 consumers share");
    }
    for n in 0..80 {
        peer.submit(plant(&deckies[n % 2].name, n)).await;
    }
    all_at_the_first_attempt(&peer, 80).await;
    for (at, decky) in deckies.iter().enumerate() {
        let list = "cd /srv; for f in f*; do echo \"$f: $(cat $f)\"; done";
        let held = String::from_utf8(inside(&decky.name, &["sh", "-c", list])).unwrap();
        let mut held: Vec<&str> = held.lines().collect();
        held.sort_unstable();
        let mut expected: Vec<String> = (at..80).step_by(2).map(|n| format!("f{n}: content {n}")).collect();
        expected.sort_unstable();
        assert_eq!(held, expected, "every file holds its own action's bytes");
    }
    assert!(workers.into_iter().all(|worker| worker.stop() == 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decky_that_no_host_has_ends_in_the_dead_letters_after_bounded_hand_backs() {
    let peer = Peer::connect().await;
    let hosts = [Host::with("one-of-them"), Host::with("another")];
    let delays = ["--retry-delays", "100ms,200ms", "--max-attempts", "2"];
    let mut workers = hosts.each_ref().map(|host| {
        WorkerProcess::spawn(&peer.prefix, &[&delays[..], &["--container-cli", &host.client()]].concat())
    });
    for worker in &mut workers {
        worker.wait_for_line("2 consumers share");
    }
    let id = peer.submit(plant("own-nowhere", 0)).await;
    let dead = peer.consume("dead").await.next().await;
    assert_eq!(header(&dead, "x-deckswain-reason").as_deref(), Some("attempts-exhausted"));
    assert_eq!(header(&dead, "x-deckswain-handed-back").as_deref(), Some("LongLongInt(20)"));
    let result = peer.consume("results").await.next_json().await;
    assert_eq!((&result["action_id"], &result["attempt"]), (&json!(id), &json!(2)), "{result}");
    assert!(workers.into_iter().all(|worker| worker.stop() == 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_without_a_usable_engine_takes_nothing_until_the_engine_answers() {
    let decky = OwnDecky::start();
    let peer = Peer::connect().await;
    let (well, ill) = (Host::with(&decky.name), Host::with(&decky.name));
    ill.goes_away();
    let mut idle = worker(&peer, &ill.client());
    idle.wait_for_line("circuit open");
    let mut busy = worker(&peer, &well.client());
    busy.wait_for_line("consuming");
    for n in 0..60 {
        peer.submit(plant(&decky.name, n)).await;
    }
    all_at_the_first_attempt(&peer, 60).await;
    ill.is_back();
    idle.wait_for_line("circuit closed");
    idle.wait_for_line("consuming");
    assert_eq!((idle.stop(), busy.stop()), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_goes_away_costs_no_action_an_attempt_and_other_workers_take_over() {
    let decky = OwnDecky::start();
    let peer = Peer::connect().await;
    let (well, ill) = (Host::with(&decky.name), Host::with(&decky.name));
    let mut workers = [worker(&peer, &ill.client()), worker(&peer, &well.client())];
    for worker in &mut workers {
        worker.wait_for_line("2 consumers share");
    }
    let mut results = peer.consume("results").await;
    ill.goes_away();
    for n in 0..60 {
        peer.submit(plant(&decky.name, n)).await;
    }
    workers[0].wait_for_line("circuit open");
    for _ in 0..60 {
        let result = results.next_json().await;
        assert_eq!((&result["success"], &result["attempt"]), (&json!(true), &json!(1)), "{result}");
    }
    assert_eq!(peer.count("dead").await, 0);
    ill.is_back();
    workers[0].wait_for_line("circuit closed");
    workers[0].wait_for_line("consuming");
    assert!(workers.into_iter().all(|worker| worker.stop() == 0));
}

#[test]
fn a_worker_ends_at_once_where_there_is_no_client_program() {
    let mut worker = WorkerProcess::spawn("none", &["--container-cli", "no-such-program"]);
    worker.wait_for_line("there is no program no-such-program");
    assert_eq!(worker.wait(), 2);
}
