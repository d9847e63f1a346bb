//! Which deckies the engine has, and whether they have what the actions need.

use super::engine::{Cause, End};
use super::{Driver, Inside, Run, script};
use crate::action::DeckyName;
use crate::result::{Failure, FailureClass};
use crate::subprocess::{CommandLine, Ended, RunCommand};

/// How much of the engine's list is read: some 80 bytes a container.
const LIST_BYTES_MAX: usize = 4 * 1024 * 1024;

/// A decky as the engine lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its name, without the container's suffix.
    pub name: DeckyName,
    /// The engine's words, such as `Up 3 minutes` or `Exited (0) 2 hours ago`.
    pub status: String,
}

impl Listed {
    /// Whether commands can run in it.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.status.starts_with("Up") && !self.status.contains("Paused")
    }
}

/// What was found inside a decky.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tools {
    /// The programs that did not do what actions need them for.
    pub missing: Vec<Tool>,
    /// The user that commands run as; root is 0.
    pub uid: Option<u32>,
}

/// A program that actions run inside a decky.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tool {
    /// Its name.
    pub name: &'static str,
    /// What does not work without it.
    pub needed_for: &'static str,
    /// A command that tries it and changes nothing.
    trial: &'static str,
}

const fn tool(name: &'static str, needed_for: &'static str, trial: &'static str) -> Tool {
    Tool { name, needed_for, trial }
}

/// Beside `sh`, which runs the trials. Nothing can come to be under `/proc`, so `touch` leaves nothing.
const TOOLS: [Tool; 14] = [
    tool("base64", "file, edit", "[ \"$(printf aGk= | base64 -d)\" = hi ]"),
    tool("mkdir", "file, edit", "command -v mkdir"),
    tool("rmdir", "file, edit", "command -v rmdir"),
    tool("mv", "file, edit", "command -v mv"),
    tool("chmod", "file, edit", "command -v chmod"),
    tool("wc", "file, edit", "[ $(printf hi | wc -c) -eq 2 ]"),
    tool("stat", "file, edit, remove", "stat -c '%a,%x,%y' / && stat -L -c %d:%i ."),
    tool("touch", "file, edit, remove", "TZ=UTC0 touch -c -m -d '2020-01-01 00:00:00' /proc/self/none"),
    tool("chown", "file, edit with owner", "command -v chown"),
    tool("sha256sum", "edit with expect_previous", "printf hi | sha256sum"),
    tool("readlink", "paths with links", "command -v readlink"),
    tool("head", "read", "[ \"$(printf hi | head -c 1)\" = h ]"),
    tool("rm", "remove, file, edit", "command -v rm"),
    // Without these flags python could leave compiled modules behind, or take modules of the decky's.
    tool("python3", "traffic", "python3 -IBSc 'import socket'"),
];

fn trials() -> String {
    let mut script = String::new();
    for tool in &TOOLS {
        script.push_str(&format!("{{ {}; }} >/dev/null 2>&1 && echo {}\n", tool.trial, tool.name));
    }
    script.push_str("echo uid $(id -u)\n");
    script
}

impl<R: RunCommand> Driver<R> {
    /// The client program's name and version, in its own words.
    pub async fn client_version(&self) -> Result<String, Failure> {
        let said = self.ask_engine(&["--version"]).await?;
        Ok(said.lines().next().unwrap_or_default().trim().to_owned())
    }

    /// Every container whose name ends in the suffix, running or not, by name.
    pub async fn list(&self) -> Result<Vec<Listed>, Failure> {
        let said = self.ask_engine(&["ps", "--all", "--format", "{{.Names}}\t{{.Status}}"]).await?;
        let decky = |line: &str| {
            let (name, status) = line.split_once('\t')?;
            let name = DeckyName::parse(name.strip_suffix(&self.options.container_suffix)?).ok()?;
            Some(Listed { name, status: status.to_owned() })
        };
        let mut deckies: Vec<Listed> = said.lines().filter_map(decky).collect();
        deckies.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(deckies)
    }

    /// Tries inside a decky what the kinds of action use there, and leaves no trace.
    pub async fn tools(&self, decky: &DeckyName) -> Result<Tools, Failure> {
        let mark = self.mark(decky);
        let script = trials();
        let inside = Inside::fed(decky, &script::SCRIPT, script.into_bytes(), &mark);
        let ran = self.exec_inside(inside).await;
        let run = ran.map_err(|_| Failure::new(FailureClass::Infrastructure, "interrupted"))?;
        if let Some(failure) = run.failure {
            return Err(failure);
        }
        // Only words that were asked for count: a decky can say what it likes.
        let said = String::from_utf8_lossy(&run.stdout);
        let missing = TOOLS.into_iter().filter(|tool| !said.lines().any(|line| line == tool.name)).collect();
        let uid = said.lines().find_map(|line| line.strip_prefix("uid ")?.parse().ok());
        Ok(Tools { missing, uid })
    }

    async fn ask_engine(&self, arguments: &[&str]) -> Result<String, Failure> {
        let program = self.options.container_cli.clone();
        let argv = std::iter::once(program.clone()).chain(arguments.iter().map(|word| (*word).to_owned()));
        let command = CommandLine {
            argv: argv.collect(),
            stdin: None,
            stdout_bytes_max: LIST_BYTES_MAX,
            stderr_bytes_max: super::CAPTURE_BYTES_MAX,
            time_max: self.options.time_max,
        };
        let run = match self.commands.run(command).await {
            Ended::Exited { status, stdout, stderr } => {
                let said = String::from_utf8_lossy(&stderr.bytes);
                let end = End::of(status, &said);
                Run::exited(&end, stdout, (status != 0).then(|| (Cause::NotBegun, end.said(""))))
            }
            Ended::NotStarted(error) => Run::not_started(&program, &error),
            Ended::TimedOut => {
                let message = format!("no answer from the engine within {:?}", self.options.time_max);
                return Err(Failure::new(FailureClass::Timeout, message));
            }
        };
        match run.failure {
            Some(failure) => Err(failure),
            None => Ok(String::from_utf8_lossy(&run.stdout).into_owned()),
        }
    }
}
