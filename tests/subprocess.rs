//! What running a command promises, on real processes.

use std::path::Path;
use std::time::Duration;

use deckswain::subprocess::{Captured, CommandLine, Ended, HostCommands, RunCommand as _};

/// An upper bound on what ought to be prompt: it only keeps a broken run from hanging.
const AMPLE: Duration = Duration::from_secs(30);

fn shell(script: &str) -> CommandLine {
    CommandLine {
        argv: ["sh", "-c", script].map(ToOwned::to_owned).to_vec(),
        stdin: None,
        stdout_bytes_max: 64 * 1024,
        stderr_bytes_max: 64 * 1024,
        time_max: AMPLE,
    }
}

async fn run(command: CommandLine) -> Ended {
    tokio::time::timeout(AMPLE * 2, HostCommands.run(command)).await.expect("the run ends")
}

async fn exited(command: CommandLine) -> (i32, Captured, Captured) {
    match run(command).await {
        Ended::Exited { status, stdout, stderr } => (status, stdout, stderr),
        other => panic!("expected an exit, found {other:?}"),
    }
}

/// Asks again and again until there is an answer.
async fn until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let asking = async {
        loop {
            if let Some(answer) = ask() {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(AMPLE, asking).await.unwrap_or_else(|_| panic!("waited in vain until {what}"))
}

/// Whether the process runs; one that only waits to be reaped does not.
fn runs(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .ok()
        .and_then(|stat| stat.rsplit_once(") ").map(|(_, rest)| !rest.starts_with(['Z', 'X'])))
        .unwrap_or(false)
}

async fn pids_told_in(file: &Path, count: usize) -> Vec<u32> {
    until("the pids are told", || {
        let told = std::fs::read_to_string(file).ok().filter(|told| told.ends_with('\n'))?;
        let pids: Vec<u32> = told.lines().map(|line| line.parse().expect("a pid")).collect();
        (pids.len() == count).then_some(pids)
    })
    .await
}

async fn all_gone(pids: &[u32]) {
    for &pid in pids {
        until("the process is gone", || (!runs(pid)).then_some(())).await;
    }
}

/// A shell that has started a `sleep`, told both pids, and waits.
fn family(file: &Path) -> CommandLine {
    shell(&format!("sleep 600 & printf '%s\\n' $$ $! >'{}'; wait", file.display()))
}

#[tokio::test]
async fn output_beyond_the_cap_is_drained_so_that_the_child_ends() {
    let ten_mebibytes = 10 * 1024 * 1024;
    let script = format!("head -c {ten_mebibytes} /dev/zero; head -c {ten_mebibytes} /dev/zero >&2; exit 3");
    let command = CommandLine { stdout_bytes_max: 1000, stderr_bytes_max: 10, ..shell(&script) };
    let (status, stdout, stderr) = exited(command).await;
    assert_eq!(status, 3);
    assert_eq!(stdout, Captured { bytes: vec![0; 1000], truncated: true });
    assert_eq!(stderr, Captured { bytes: vec![0; 10], truncated: true });
}

#[tokio::test]
async fn output_of_exactly_the_cap_is_not_called_truncated() {
    let (_, stdout, _) = exited(CommandLine { stdout_bytes_max: 5, ..shell("printf 12345") }).await;
    assert_eq!(stdout, Captured { bytes: b"12345".to_vec(), truncated: false });
    let (_, stdout, _) = exited(CommandLine { stdout_bytes_max: 4, ..shell("printf 12345") }).await;
    assert_eq!(stdout, Captured { bytes: b"1234".to_vec(), truncated: true });
}

#[tokio::test]
async fn eight_mebibytes_of_input_reach_a_child_that_answers_while_it_reads() {
    let input: Vec<u8> = (0..8 * 1024 * 1024_u32).map(|at| at.to_le_bytes()[1]).collect();
    let command = CommandLine { stdin: Some(input.clone()), stdout_bytes_max: 100_000, ..shell("cat") };
    let (status, stdout, _) = exited(command).await;
    assert_eq!(status, 0);
    assert!(stdout.truncated);
    assert!(stdout.bytes == input[..100_000]);
    let (_, counted, _) = exited(CommandLine { stdin: Some(input), ..shell("wc -c") }).await;
    assert_eq!(String::from_utf8_lossy(&counted.bytes).trim(), "8388608");
}

#[tokio::test]
async fn an_engines_client_which_is_written_in_go_is_to_run_on_one_thread() {
    let folder = tempfile::tempdir().unwrap();
    let given = std::env::var("GOMAXPROCS").unwrap_or_default();
    let wanted = if given.is_empty() { "1" } else { &given };
    for (name, wanted) in [("docker", wanted), ("podman", wanted), ("other", &given)] {
        let program = folder.path().join(name);
        std::fs::copy("/bin/sh", &program).unwrap();
        let mut command = shell("printf %s \"$GOMAXPROCS\"");
        command.argv[0] = program.to_str().unwrap().to_owned();
        let (_, stdout, _) = exited(command).await;
        assert_eq!(String::from_utf8_lossy(&stdout.bytes), wanted, "{name}");
    }
}

#[tokio::test]
async fn a_child_that_does_not_read_its_input_is_no_failure() {
    let input = Some(vec![b'x'; 8 * 1024 * 1024]);
    let (status, stdout, _) = exited(CommandLine { stdin: input, ..shell("exec <&-; printf done") }).await;
    assert_eq!((status, stdout.bytes.as_slice()), (0, &b"done"[..]));
}

#[tokio::test]
async fn without_input_a_child_reads_an_end_at_once() {
    let (status, stdout, _) = exited(shell("cat; printf end")).await;
    assert_eq!((status, stdout.bytes.as_slice()), (0, &b"end"[..]));
}

#[tokio::test]
async fn a_program_that_is_not_there_is_not_started() {
    for argv in [vec!["/nonexistent/program".to_owned()], vec![]] {
        let ended = run(CommandLine { argv, ..shell("") }).await;
        assert!(matches!(ended, Ended::NotStarted(_)), "{ended:?}");
    }
}

#[tokio::test]
async fn arguments_are_passed_as_they_are() {
    let argv = ["printf", "%s|", "a b", "$(id)", "'", "", "*"].map(ToOwned::to_owned).to_vec();
    let (_, stdout, _) = exited(CommandLine { argv, ..shell("") }).await;
    assert_eq!(String::from_utf8_lossy(&stdout.bytes), "a b|$(id)|'||*|");
}

#[tokio::test]
async fn an_exit_status_is_told_as_it_is_and_a_signal_as_its_negative() {
    for (script, expected) in [("exit 0", 0), ("exit 42", 42), ("kill -9 $$", -9), ("kill -15 $$", -15)] {
        assert_eq!(exited(shell(script)).await.0, expected, "{script}");
    }
}

#[tokio::test]
async fn a_timeout_kills_the_child_and_its_children() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("pids");
    let ended = run(CommandLine { time_max: Duration::from_secs(2), ..family(&file) }).await;
    assert!(matches!(ended, Ended::TimedOut), "{ended:?}");
    let pids = pids_told_in(&file, 2).await;
    assert!(!Path::new(&format!("/proc/{}", pids[0])).exists(), "the child has been reaped");
    all_gone(&pids).await;
}

#[tokio::test]
async fn a_timeout_holds_for_a_child_that_ignores_every_polite_signal_and_reads_nothing() {
    let command = CommandLine {
        stdin: Some(vec![0; 1024 * 1024]),
        time_max: Duration::from_millis(300),
        ..shell("trap '' TERM INT HUP; while :; do sleep 600; done")
    };
    assert!(matches!(run(command).await, Ended::TimedOut));
}

#[tokio::test]
async fn a_grandchild_that_holds_the_output_neither_hangs_the_run_nor_costs_what_was_written() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("pids");
    let script = format!(
        "printf said; printf warned >&2; sleep 600 & printf '%s\\n' $! >'{}'; exit 5",
        file.display()
    );
    let (status, stdout, stderr) = exited(shell(&script)).await;
    assert_eq!(status, 5);
    assert_eq!(stdout, Captured { bytes: b"said".to_vec(), truncated: false });
    assert_eq!(stderr, Captured { bytes: b"warned".to_vec(), truncated: false });
    all_gone(&pids_told_in(&file, 1).await).await;
}

#[tokio::test]
async fn dropping_the_run_kills_the_child_and_its_children() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("pids");
    let pids = tokio::select! {
        ended = run(family(&file)) => panic!("ended by itself: {ended:?}"),
        pids = pids_told_in(&file, 2) => pids,
    };
    all_gone(&pids).await;
}

#[tokio::test]
async fn aborting_the_task_kills_the_child_and_its_children() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("pids");
    let task = tokio::spawn(HostCommands.run(family(&file)));
    let pids = pids_told_in(&file, 2).await;
    assert!(pids.iter().all(|&pid| runs(pid)));
    task.abort();
    all_gone(&pids).await;
}
