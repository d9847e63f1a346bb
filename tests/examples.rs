//! Every command's help has an example, and each example works as it is written.

mod support;

use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use clap::CommandFactory as _;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde_json::json;
use support::faults::Cell;
use support::tool::{bury, tool, tool_fed};
use support::{OwnDecky, WorkerProcess};

/// The id that the examples of `dead-letters` name.
const DEAD: &str = "00000000-0000-4000-8000-000000000002";

/// Each example of each command that has no subcommands, then those of the groups.
fn examples(command: &clap::Command, path: &str, found: &mut Vec<(String, String)>) {
    let subcommands = command.get_subcommands().filter(|command| command.get_name() != "help");
    let mut is_group = false;
    for subcommand in subcommands {
        is_group = true;
        examples(subcommand, &format!("{path} {}", subcommand.get_name()), found);
    }
    let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    let after = help.split_once("Example:\n").or_else(|| help.split_once("Examples:\n"));
    let Some((_, lines)) = after else {
        assert!(is_group, "{path} has no example");
        return;
    };
    for line in lines.lines() {
        match line.strip_prefix("  ") {
            // What is indented further goes on with the line above.
            Some(more) if more.starts_with(' ') => {
                let (_, example) = found.last_mut().unwrap();
                example.push('\n');
                example.push_str(more);
            }
            Some(example) => found.push((path.to_owned(), example.to_owned())),
            None => panic!("{path}: {line:?} follows the examples"),
        }
    }
}

struct Shell<'a> {
    cell: &'a Cell,
    decky: &'a OwnDecky,
    folder: &'a Path,
}

impl Shell<'_> {
    fn command(&self, line: &str) -> Command {
        let program = Path::new(env!("CARGO_BIN_EXE_deckswain"));
        let path = format!("{}:{}", program.parent().unwrap().display(), std::env::var("PATH").unwrap());
        let mut bash = Command::new("bash");
        bash.args(["-c", &format!("set -o pipefail\n{line}")]).current_dir(self.folder).stdin(Stdio::null());
        bash.env("PATH", path)
            .env("DECKSWAIN_BROKER", &self.cell.broker)
            .env("DECKSWAIN_PREFIX", &self.cell.prefix);
        bash.env("DECKSWAIN_CONTAINER_SUFFIX", &self.decky.suffix);
        bash.stdout(Stdio::piped()).stderr(Stdio::piped());
        bash
    }

    fn ends_well(&self, line: &str) {
        let output = self.command(line).output().unwrap();
        let said =
            String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{line}\n{said}");
    }

    /// What goes on until it is told to stop has to say that it has begun.
    fn begins(&self, line: &str, says: &str) {
        let mut child = self.command(line).process_group(0).spawn().unwrap();
        let mut said = BufReader::new(child.stderr.take().unwrap());
        let begun = said.by_ref().lines().map_while(Result::ok).any(|line| line.contains(says));
        let group = Pid::from_raw(i32::try_from(child.id()).unwrap());
        killpg(group, Signal::SIGTERM).unwrap();
        child.wait().unwrap();
        assert!(begun, "{line} never said {says:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_example_works_as_written() {
    let decky = OwnDecky::start_named("web-01");
    let cell = Cell::new("examples");
    let arguments = ["--broker", &cell.broker, "--container-suffix", &decky.suffix, "--max-attempts", "1"];
    let worker = WorkerProcess::start(&cell.prefix, &arguments);
    let folder = tempfile::tempdir().unwrap();
    let shell = Shell { cell: &cell, decky: &decky, folder: folder.path() };
    let gone =
        json!({"kind": "remove", "dst_uuid": "d-1", "dst_name": "gone", "path": "/m/1", "action_id": DEAD});
    let mut found = Vec::new();
    examples(&deckswain::cli::Cli::command(), "deckswain", &mut found);
    for (command, example) in &found {
        println!("{example}");
        match command.as_str() {
            "deckswain worker" => shell.begins(example, "consuming from"),
            "deckswain results" => shell.begins(example, "watching "),
            _ => {
                if command.starts_with("deckswain dead-letters") {
                    assert!(tool(&cell, &["dead-letters", "discard", "--yes"]).status.success());
                    bury(&cell, 4).await;
                    assert_eq!(
                        tool_fed(&cell, &["submit", "--wait"], &gone.to_string()).status.code(),
                        Some(1)
                    );
                    cell.wait_for_count("dead", |dead| dead >= 5).await;
                }
                shell.ends_well(example);
            }
        }
    }
    assert!(found.len() >= 20, "{}", found.len());
    assert_eq!(worker.stop(), 0);
}
