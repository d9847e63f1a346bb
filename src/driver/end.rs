//! Ending, inside a decky, what a killed client left running there.

use std::time::Duration;

use uuid::Uuid;

use super::{DriverOptions, script};
use crate::action::DeckyName;
use crate::result::{ContainerProcess, sha256_hex};
use crate::subprocess::{CommandLine, Ended, RunCommand};

/// How long the decky may take to end the command.
///
/// An exec costs 80 to 90 ms on two idle cores; a busy engine needs a few times that.
const END_TIME_MAX: Duration = Duration::from_millis(3000);

/// Letters and digits by which a command's processes are found again.
pub struct Mark(String);

/// How many of a mark's digits all commands of a fleet's workers in a decky have in common.
const COMMON_DIGITS: usize = 8;

impl Mark {
    /// A fresh mark that a decky cannot guess beforehand.
    pub fn draw() -> Self {
        Self(Uuid::new_v4().simple().to_string()[..16].to_owned())
    }

    /// A fresh mark that begins as all those do that a fleet's workers use in the decky.
    pub fn of(fleet: &str, decky: &DeckyName) -> Self {
        Self(Self::common(fleet, decky).0 + &Self::draw().0[COMMON_DIGITS..])
    }

    /// How all marks begin that a fleet's workers use in the decky.
    pub fn common(fleet: &str, decky: &DeckyName) -> Self {
        let digest = sha256_hex(format!("{fleet} {decky}").as_bytes());
        Self(digest[..COMMON_DIGITS].to_owned())
    }

    /// The letters.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Client flags that put the mark where children inherit it, under a name that a login session has anyway.
    pub fn environment(&self) -> Vec<String> {
        vec!["-e".to_owned(), format!("XDG_SESSION_ID={}", self.0)]
    }
}

/// Freezes what bears the mark, then kills it, and removes the temporary file; tells whether the decky says that all is gone.
///
/// Killed one after the other, a parent whose child goes first would go on to its next command.
pub async fn end_inside<R: RunCommand>(
    commands: &R,
    options: &DriverOptions,
    container: &str,
    interpreter: &str,
    mark: &Mark,
    temporary: Option<&str>,
) -> ContainerProcess {
    let mut ways = [["python3", "-c", script::END_PYTHON], ["sh", "-c", script::END_SHELL]];
    if interpreter == ways[0][0] {
        // What has just hung is asked last.
        ways.reverse();
    }
    for inner in ways {
        // The mark lets a second way end the first one where that hangs too.
        let mut argv = vec![options.container_cli.clone(), "exec".to_owned(), "-i".to_owned()];
        argv.extend(mark.environment());
        argv.push(container.to_owned());
        argv.extend(inner.map(ToOwned::to_owned));
        let stdin = format!("{}\n{}", mark.as_str(), temporary.unwrap_or_default());
        let ended = commands
            .run(CommandLine {
                argv,
                stdin: Some(stdin.into_bytes()),
                stdout_bytes_max: 64,
                stderr_bytes_max: 0,
                time_max: END_TIME_MAX,
            })
            .await;
        if let Ended::Exited { status: 0, stdout, .. } = ended {
            return if stdout.bytes == b"gone" { ContainerProcess::Gone } else { ContainerProcess::Unknown };
        }
    }
    ContainerProcess::Unknown
}
