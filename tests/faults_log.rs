//! The fault matrix, fifth row: the log cannot be written.

mod support;

use std::fs::File;
use std::io::{BufRead as _, BufReader, PipeReader};
use std::process::Stdio;
use std::sync::mpsc;
use std::time::Instant;

use serde_json::json;
use support::faults::{ACTIONS, Cell};
use support::tool::{command, tool, tool_fed};
use support::{OwnDecky, PATIENCE, Peer, WorkerProcess, inside, wait_until};

/// What takes no byte more: a write to it fails as on a full disk.
fn full_disk() -> File {
    File::options().write(true).open("/dev/full").unwrap()
}

/// A worker whose log goes into a pipe that the test reads, or does not.
fn worker_with_pipe(cell: &Cell, log_filter: &str) -> (WorkerProcess, BufReader<PipeReader>) {
    let (reader, writer) = std::io::pipe().unwrap();
    let mut command = cell.worker_command(&[]);
    command.env("DECKSWAIN_LOG", log_filter).stderr(writer);
    let worker = WorkerProcess::of(command.spawn().unwrap());
    (worker, BufReader::new(reader))
}

fn read_until(reader: &mut BufReader<PipeReader>, holds: &str) -> String {
    let found = reader.lines().map(Result::unwrap).find(|line| line.contains(holds));
    found.unwrap_or_else(|| panic!("the log never said {holds:?}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_when_the_disk_under_the_log_is_full() {
    let mut cell = Cell::new("log: full disk");
    assert!(tool(&cell, &["topology", "--declare"]).status.success());
    let mut command = cell.worker_command(&[]);
    let worker = WorkerProcess::of(command.stderr(full_disk()).spawn().unwrap());
    cell.publish(ACTIONS).await;
    cell.goes_on(Instant::now()).await;
    let verdict = cell.end(vec![worker]).await;
    assert!(verdict.run_twice == 0 && verdict.results_twice == 0 && verdict.dead.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_when_the_reader_of_the_log_goes_away() {
    let mut cell = Cell::new("log: closed pipe");
    cell.engine.set("slow", "0.02");
    let (worker, mut log) = worker_with_pipe(&cell, "info,lapin=off");
    read_until(&mut log, "consuming");
    cell.publish(ACTIONS).await;
    cell.engine.wait_for("end", 50).await;
    drop(log);
    cell.goes_on(Instant::now()).await;
    let verdict = cell.end(vec![worker]).await;
    assert!(verdict.run_twice == 0 && verdict.results_twice == 0 && verdict.dead.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_reader_of_the_log_costs_lines_which_are_counted_and_nothing_else() {
    let mut cell = Cell::new("log: stopped reader");
    let (worker, mut log) = worker_with_pipe(&cell, "trace");
    read_until(&mut log, "consuming");
    // Nobody reads from here on: this is more than the pipe and the worker hold.
    cell.publish(8 * ACTIONS).await;
    cell.goes_on(Instant::now()).await;
    let (sender, lost) = mpsc::channel();
    std::thread::spawn(move || {
        let _ = sender.send(read_until(&mut log, "log lines were lost"));
        log.lines().for_each(drop);
    });
    let line = lost.recv_timeout(PATIENCE).expect("the loss is told once the log is read again");
    assert!(line.contains("WARN"), "{line}");
    let verdict = cell.end(vec![worker]).await;
    assert!(verdict.run_twice == 0 && verdict.results_twice == 0 && verdict.dead.is_empty());
}

/// `deckswain worker 2>&1 | tee log`, and Ctrl-C, which ends `tee` first.
#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_worker_without_a_log_leaves_nothing_running_in_the_decky() {
    let (peer, decky) = (Peer::connect().await, OwnDecky::start());
    inside(&decky.name, &["mkfifo", "/srv/fifo"]);
    let mut worker = WorkerProcess::start(&peer.prefix, &["--timeout", "2s", "--max-attempts", "1"]);
    let mut results = peer.bind_results("#").await;
    peer.submit(json!({"kind": "read", "dst_uuid": "d-1", "dst_name": decky.name, "path": "/srv/fifo"}))
        .await;
    wait_until("the read hangs", || !decky.processes().is_empty());
    worker.close_log();
    worker.signal("-INT");
    assert_eq!(worker.wait(), 0);
    assert_eq!(results.next_json().await["failure"]["class"], "timeout");
    assert_eq!(decky.processes(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_end_with_their_own_status_when_nobody_can_be_told() {
    let cell = Cell::new("log: commands");
    let (reader, closed) = std::io::pipe().unwrap();
    drop(reader);
    let cases: [(&[&str], i32); 5] = [
        (&["submit", "none.json"], 2),
        (&["topology"], 1),
        (&["dead-letters", "list"], 3),
        (&["worker", "--grace", "1s"], 2),
        (&["wroker"], 2),
    ];
    for (arguments, status) in cases {
        for stderr in [Stdio::from(full_disk()), Stdio::from(closed.try_clone().unwrap())] {
            let ended = command(&cell, arguments).stderr(stderr).status().unwrap();
            assert_eq!(ended.code(), Some(status), "{arguments:?}");
        }
    }
    let mut help = command(&cell, &["worker", "--help"]);
    assert_eq!(help.stdout(full_disk()).status().unwrap().code(), Some(4));
    assert_eq!(tool_fed(&cell, &["submit"], "[]").status.code(), Some(2));
}
