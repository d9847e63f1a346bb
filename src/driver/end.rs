//! Ending, inside a decky, what a killed client left running there.

use std::time::Duration;

use uuid::Uuid;

use super::script::{self, Leftover};
use super::{DriverOptions, secret::keyed};
use crate::action::DeckyName;
use crate::result::ContainerProcess;
use crate::subprocess::{CommandLine, Ended, RunCommand};

/// How long the decky may take to end the command.
///
/// An exec costs 80 to 90 ms on two idle cores; a busy engine needs a few times that.
const END_TIME_MAX: Duration = Duration::from_millis(3000);

/// Digits by which a command's processes are found again, in an environment variable that children inherit.
pub struct Mark(String);

/// How many of a tag's digits all commands of a fleet's workers in a decky have in common.
const COMMON_DIGITS: usize = 8;

impl Mark {
    /// A fresh tag that a decky cannot guess beforehand.
    pub fn draw() -> Self {
        Self(Uuid::new_v4().simple().to_string()[..16].to_owned())
    }

    /// A fresh tag that begins as all those do that a fleet's workers use in the decky.
    pub fn of(fleet: &str, decky: &DeckyName) -> Self {
        Self(Self::common(fleet, decky).0 + &Self::draw().0[COMMON_DIGITS..])
    }

    /// How all tags begin that a fleet's workers use in the decky; only who has the secret can tell.
    pub fn common(fleet: &str, decky: &DeckyName) -> Self {
        let digits: String = keyed(fleet, "tag", decky).iter().map(|byte| format!("{byte:02x}")).collect();
        Self(digits[..COMMON_DIGITS].to_owned())
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

/// Freezes the processes that bear the tag, then kills them, and removes the leftover; tells whether the decky says that all is gone.
///
/// Killed one after the other, a parent whose child goes first would go on to its next command.
pub async fn end_inside<R: RunCommand>(
    commands: &R,
    options: &DriverOptions,
    container: &str,
    runs_python: bool,
    mark: &Mark,
    leftover: Option<&Leftover>,
) -> ContainerProcess {
    let mut ways = script::endings(mark.as_str(), leftover);
    if runs_python {
        // The interpreter that has just hung is asked last.
        ways.reverse();
    }
    for (inner, stdin) in ways {
        // The tag lets a second way end the first one where that hangs too.
        let mut argv = exec(options, container, mark, true);
        argv.extend(inner.map(ToOwned::to_owned));
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

/// The client's command for an exec, up to the command inside. It works in `/`: the decky may have
/// removed the directory that its image names.
pub fn exec(options: &DriverOptions, container: &str, mark: &Mark, has_input: bool) -> Vec<String> {
    let mut argv = vec![options.container_cli.clone(), "exec".to_owned()];
    if has_input {
        argv.push("-i".to_owned());
    }
    argv.extend(["-w".to_owned(), "/".to_owned()]);
    argv.extend(mark.environment());
    argv.push(container.to_owned());
    argv
}
