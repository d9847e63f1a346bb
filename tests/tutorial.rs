//! docs/tutorial.md, done as it says: each command, and what it has to print.

mod support;

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use support::{OwnDecky, PATIENCE, part};
use uuid::Uuid;

const TUTORIAL: &str = include_str!("../docs/tutorial.md");

/// A block of the tutorial: the terminal, empty for the first one, and its lines.
fn blocks(text: &str) -> Vec<(String, Vec<String>)> {
    let mut blocks = Vec::new();
    let mut open = false;
    for line in text.lines() {
        if let Some(terminal) = line.strip_prefix("```console") {
            blocks.push((terminal.trim().to_owned(), Vec::new()));
            open = true;
        } else if line.starts_with("```") {
            open = false;
        } else if open {
            blocks.last_mut().unwrap().1.push(line.to_owned());
        }
    }
    blocks
}

/// Whether a line is as shown; `[..]` stands for anything.
fn is_as_shown(line: &str, shown: &str) -> bool {
    match shown.split_once("[..]") {
        None => line == shown,
        Some((before, after)) => line.strip_prefix(before).is_some_and(|rest| {
            let mut ends = (0..=rest.len()).filter(|end| rest.is_char_boundary(*end));
            ends.any(|end| is_as_shown(&rest[end..], after))
        }),
    }
}

/// Whether the lines are as shown; `...` stands for any number of lines.
fn are_as_shown(lines: &[&str], shown: &[&str]) -> bool {
    match shown.split_first() {
        None => lines.is_empty(),
        Some((&"...", rest)) => (0..=lines.len()).any(|skipped| are_as_shown(&lines[skipped..], rest)),
        Some((first, rest)) => lines
            .split_first()
            .is_some_and(|(line, lines)| is_as_shown(line, first) && are_as_shown(lines, rest)),
    }
}

struct Setting {
    decky: OwnDecky,
    prefix: String,
    folder: tempfile::TempDir,
}

impl Setting {
    fn shell(&self, line: &str) -> Command {
        let program = Path::new(env!("CARGO_BIN_EXE_deckswain"));
        let path = format!("{}:{}", program.parent().unwrap().display(), std::env::var("PATH").unwrap());
        let mut bash = Command::new("bash");
        bash.args(["-c", &format!("exec 2>&1\n{line}")]).current_dir(self.folder.path());
        bash.env("PATH", path).env("DECKSWAIN_PREFIX", &self.prefix);
        bash.env("DECKSWAIN_CONTAINER_SUFFIX", &self.decky.suffix);
        bash.stdin(Stdio::null()).stdout(Stdio::piped());
        bash
    }

    fn run(&self, line: &str, shown: &[&str]) {
        let output = self.shell(line).output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "$ {line}\n{said}");
        let lines: Vec<&str> = said.lines().collect();
        assert!(
            are_as_shown(&lines, shown),
            "$ {line}\n{said}\nis not as the tutorial shows it:\n{}",
            shown.join("\n")
        );
    }
}

/// Another terminal, in which a command goes on.
struct Terminal {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Terminal {
    fn start(mut command: Command) -> Self {
        let mut child = command.process_group(0).spawn().unwrap();
        let said = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in said.lines().map_while(Result::ok) {
                println!("{line}");
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Self { child, lines }
    }

    fn wait_for(&self, shown: &str) {
        while !is_as_shown(
            &self.lines.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("never shown: {shown}")),
            shown,
        ) {}
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let group = Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        let _ = killpg(group, Signal::SIGINT);
        let _ = self.child.wait();
    }
}

#[test]
fn the_tutorial_does_what_it_says() {
    let decky = OwnDecky::start_named("web-01");
    let text = TUTORIAL.replace("web-01-ssh", &decky.container());
    let prefix = format!("t{}", &Uuid::new_v4().simple().to_string()[..10]);
    let setting = Setting { decky, prefix, folder: tempfile::tempdir().unwrap() };
    assert!(part("DECKSWAIN_BROKER").starts_with("amqp://guest:"));
    let mut terminals: HashMap<String, Terminal> = HashMap::new();
    let mut commands = 0;
    for (terminal, lines) in blocks(&text) {
        let mut lines = lines.iter().map(String::as_str).peekable();
        while let Some(line) = lines.next() {
            let command = line.strip_prefix("$ ");
            commands += usize::from(command.is_some());
            match (terminal.as_str(), command) {
                ("", Some(command)) => {
                    let mut shown = Vec::new();
                    while let Some(line) = lines.next_if(|line| !line.starts_with("$ ")) {
                        shown.push(line);
                    }
                    setting.run(command, &shown);
                }
                ("", None) => panic!("{line:?} is shown before any command"),
                (name, Some(command)) => {
                    let started = Terminal::start(setting.shell(&format!("exec {command}")));
                    terminals.insert(name.to_owned(), started);
                }
                (name, None) => terminals[name].wait_for(line),
            }
        }
    }
    assert!(commands >= 15, "{commands}");
}

#[test]
fn a_line_is_as_shown_only_when_all_of_it_is() {
    assert!(is_as_shown("a b c", "a [..] c") && is_as_shown("a b", "a [..]") && is_as_shown("a", "a"));
    assert!(is_as_shown("x c y c", "[..]c"));
    assert!(!is_as_shown("a b", "a") && !is_as_shown("a b c d", "a [..] c") && !is_as_shown("b", "a"));
    assert!(are_as_shown(&["a", "b", "c"], &["a", "...", "c"]) && !are_as_shown(&["a", "b"], &["a"]));
}
