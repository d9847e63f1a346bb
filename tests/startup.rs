//! What a worker does before it consumes, and what it refuses to start with.

mod support;

use std::process::Command;

use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use support::{OwnDecky, Peer, WorkerProcess, file, inside, part, with};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};

#[tokio::test]
async fn a_worker_that_is_there_before_its_broker_waits_for_it() {
    let peer = Peer::connect().await;
    let real = part("DECKSWAIN_BROKER");
    let address = real.split('@').nth(1).unwrap().split('/').next().unwrap().to_owned();
    let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let url = real.replace(&address, &format!("127.0.0.1:{port}"));
    let mut worker = WorkerProcess::spawn(&peer.prefix, &["--broker", &url]);
    worker.wait_for_line("connecting again");
    let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    tokio::spawn(async move {
        while let Ok((mut from, _)) = listener.accept().await {
            let mut to = TcpStream::connect(&address).await.unwrap();
            tokio::spawn(async move { copy_bidirectional(&mut from, &mut to).await });
        }
    });
    tokio::task::spawn_blocking(move || worker.wait_for_line("consuming")).await.unwrap();
}

#[tokio::test]
async fn a_queue_with_other_arguments_ends_the_worker_with_a_hint() {
    let peer = Peer::connect().await;
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    let name = format!("{}.actions", peer.prefix);
    peer.channel.queue_declare(&name, options, FieldTable::default()).await.unwrap();
    let mut worker = WorkerProcess::spawn(&peer.prefix, &[]);
    let line = worker.wait_for_line("try:");
    assert!(line.contains("other arguments"), "{line}");
    assert_eq!(worker.wait(), 3);
}

#[test]
fn settings_that_contradict_each_other_are_refused() {
    for (arguments, words) in [
        (["--grace", "2s", "--timeout", "8s"], "--grace is shorter than --timeout"),
        (["--timeout", "26m", "--grace", "30m"], "--timeout 26m is too long"),
        (["--memory", "10MiB", "--grace", "20m"], "--memory 10MiB is too little"),
        (["--timeout", "0s", "--grace", "20m"], "no time limit"),
        (["--content-max", "12582913", "--grace", "20m"], "--content-max"),
        (["--allow-decky", "web-[", "--grace", "20m"], "no glob"),
        (["--broker", "http://localhost", "--grace", "20m"], "AMQP URL"),
    ] {
        let output =
            Command::new(env!("CARGO_BIN_EXE_deckswain")).arg("worker").args(arguments).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains(words), "{said}");
        assert_eq!(output.status.code(), Some(2), "{said}");
    }
}

#[test]
fn ctrl_c_ends_a_run_on_both_sides() {
    let decky = OwnDecky::start();
    inside(&decky.name, &["mkfifo", "/srv/fifo"]);
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("action");
    let action = with(file(&decky.name, "/srv/fifo"), serde_json::json!({"kind": "read"}));
    std::fs::write(&input, action.to_string()).unwrap();
    let mut running = Command::new(env!("CARGO_BIN_EXE_deckswain"))
        .args(["run", "--timeout", "50s"])
        .arg(&input)
        .spawn()
        .unwrap();
    support::wait_until("the read hangs in the decky", || !decky.processes().is_empty());
    assert!(Command::new("kill").args(["-INT", &running.id().to_string()]).status().unwrap().success());
    assert_eq!(running.wait().unwrap().code(), Some(130));
    assert_eq!(decky.processes(), Vec::<String>::new());
}
