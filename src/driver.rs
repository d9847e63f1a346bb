//! From an action to commands in a decky, and from their ends to an outcome.

mod batch;
mod change;
mod container;
mod end;
mod engine;
mod fleet;
mod residents;
mod script;
mod secret;

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::action::{Action, DeckyName, Read, Task, Traffic};
use crate::result::{
    ContainerProcess, Failure, FailureClass, Outcome, RESULT_CONTENT_BYTES_MAX, base64_text,
};
use crate::subprocess::{Captured, CommandLine, Ended, RunCommand};
pub use batch::{Batch, Next, can_share};
use change::Change;
use end::Mark;
pub use engine::engine_hint;
use engine::{Cause, End};
pub use fleet::{Listed, Tool, Tools};
use script::Leftover;
pub use secret::Names;

/// How much of a stream is kept, in bytes.
const CAPTURE_BYTES_MAX: usize = 64 * 1024;
/// How much standard error a payload holds, in characters.
const STDERR_CHARS_MAX: usize = 256;
/// The most that is read of a file, in bytes: as base64 it fits into a result.
const READ_BYTES_MAX: u64 = RESULT_CONTENT_BYTES_MAX as u64 / 4 * 3;
/// How much of a banner a payload holds, in characters.
const BANNER_CHARS_MAX: usize = 128;
/// The largest content that stands in its call rather than after it, in bytes: a shell reads a line
/// byte by byte, at about a microsecond each.
const LINE_BYTES_MAX: usize = 2048;
/// The usual age of leftovers that are removed: a worker's time limit is 25 minutes at most.
pub const LEFTOVER_AGE: Duration = Duration::from_secs(3600);
/// The status that stands for a timeout, as in coreutils' `timeout`.
const STATUS_TIMEOUT: i32 = 124;
/// The status that stands for a missing client program, as in a shell.
const STATUS_NO_PROGRAM: i32 = 127;

/// How the driver reaches the deckies.
#[derive(Debug, Clone)]
pub struct DriverOptions {
    /// The engine's client program.
    pub container_cli: String,
    /// What follows a decky's name in its container's name.
    pub container_suffix: String,
    /// The time limit of one action.
    pub time_max: Duration,
    /// A secret that the workers of a fleet share: by it one finds what another left in a decky.
    pub fleet: String,
    /// Whether links in a path are followed: for a read all of them, for a change those that only root can have made.
    pub follow_links: bool,
    /// How old a leftover of a killed change is before the next change there removes it: longer than any change runs.
    pub leftover_age: Duration,
}

/// Performs actions through the engine's client program.
#[derive(Debug, Clone)]
pub struct Driver<R> {
    options: DriverOptions,
    commands: R,
    abort: Option<watch::Receiver<bool>>,
}

/// The occasion on which an action is performed.
#[derive(Debug, Clone, Copy)]
pub struct Attempt {
    /// The time.
    pub now: DateTime<Utc>,
    /// Whether the action may have been performed before without its result being known.
    pub is_repeat: bool,
}

/// The action was cut short because the program stops; both of its sides have been ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Aborted;

/// One command inside a decky.
struct Inside<'a> {
    decky: &'a DeckyName,
    argv: &'a [&'a str],
    stdin: Vec<u8>,
    stdout_bytes_max: usize,
    mark: &'a Mark,
    /// What is to be removed where the command had to be ended.
    leftover: Option<Leftover>,
}

impl<'a> Inside<'a> {
    fn fed(decky: &'a DeckyName, argv: &'a [&'a str], stdin: Vec<u8>, mark: &'a Mark) -> Self {
        Self { decky, argv, stdin, stdout_bytes_max: CAPTURE_BYTES_MAX, mark, leftover: None }
    }
}

/// What one command came to, in the payload's terms.
#[derive(Clone)]
struct Run {
    rc: i32,
    stdout: Vec<u8>,
    stdout_truncated: bool,
    stderr: String,
    failure: Option<Failure>,
    /// Whether the engine or its client did not begin the command.
    is_refused: bool,
    container_process: Option<ContainerProcess>,
}

impl<R: RunCommand> Driver<R> {
    /// A driver that runs its commands through `commands`.
    pub fn new(options: DriverOptions, commands: R) -> Self {
        Self { options, commands, abort: None }
    }

    /// Cuts short what runs once `abort` turns true.
    #[must_use]
    pub fn abort_when(mut self, abort: watch::Receiver<bool>) -> Self {
        self.abort = Some(abort);
        self
    }

    async fn aborted(&self) {
        if let Some(abort) = &self.abort
            && abort.clone().wait_for(|abort| *abort).await.is_ok()
        {
            return;
        }
        std::future::pending().await
    }

    /// Performs one action; every failure is part of the outcome.
    ///
    /// `Err` means that the program stops at once and the action is to go back to where it came from.
    pub async fn perform(&self, action: &Action, attempt: Attempt) -> Result<Outcome, Aborted> {
        if action.expires_at.is_some_and(|expires_at| expires_at <= attempt.now) {
            let failure = Failure::new(FailureClass::Expired, "the action came after its expires_at");
            return Ok(Outcome::not_run(action, failure));
        }
        match &action.task {
            Task::Traffic(traffic) => self.traffic(action, traffic).await,
            Task::Read(read) => self.read(action, read).await,
            Task::File(_) | Task::Edit(_) | Task::Remove(_) => match Change::of(action, attempt) {
                Ok(change) => Ok(change.outcome(action, self.change(action, &change).await?)),
                Err(outcome) => Ok(outcome),
            },
        }
    }

    /// Ends whatever a worker of the same fleet left running in the decky.
    pub async fn clear(&self, decky: &DeckyName) {
        let container = format!("{decky}{}", self.options.container_suffix);
        let mark = Mark::common(&self.options.fleet, decky);
        end::end_inside(&self.commands, &self.options, &container, false, &mark, None).await;
    }

    fn mark(&self, decky: &DeckyName) -> Mark {
        Mark::of(&self.options.fleet, decky)
    }

    /// Makes a change by an exec of its own.
    async fn change(&self, action: &Action, change: &Change) -> Result<Run, Aborted> {
        let run = self.change_by(action, change, true).await?;
        let is_done = run.failure.as_ref().is_none_or(|failure| failure.class != FailureClass::Command);
        // Each program first says that its call has arrived; a python that does not is not relied on.
        if is_done || !run.stdout.is_empty() { Ok(run) } else { self.change_by(action, change, false).await }
    }

    async fn change_by(&self, action: &Action, change: &Change, with_python: bool) -> Result<Run, Aborted> {
        let decky = action.executing_decky();
        let (mark, names) = (self.mark(decky), Names::draw(&self.options.fleet, decky));
        let call = change.call(action, &names, &self.options);
        let (argv, program) = script::changes(with_python);
        // The empty line says that one call follows, and its content.
        let mut stdin = format!("{program}\n");
        match &call.file {
            Some(file) if file.content.len() > LINE_BYTES_MAX => {
                stdin += &call.line_before_content();
                stdin += &base64_text(file.content);
            }
            _ => stdin += &call.line(),
        }
        let leftover = Some(call.leftover());
        let inside = Inside { leftover, ..Inside::fed(decky, &argv, stdin.into_bytes(), &mark) };
        self.exec_inside(inside).await
    }

    async fn traffic(&self, action: &Action, traffic: &Traffic) -> Result<Outcome, Aborted> {
        let mark = self.mark(action.executing_decky());
        let stdin = script::probe(&traffic.dst_ip.to_string()).into_bytes();
        let inside = Inside::fed(action.executing_decky(), &script::PYTHON, stdin, &mark);
        let mut run = self.exec_inside(inside).await?;
        if run.failure.is_none() && !run.stdout.starts_with(b"SSH-") {
            run.failure = Some(Failure::new(FailureClass::Command, "what answered on port 22 is not ssh"));
        }
        let banner = String::from_utf8_lossy(&run.stdout);
        let banner: String = banner.trim().chars().take(BANNER_CHARS_MAX).collect();
        let payload = json!({
            "src_decky": traffic.src_name.as_str(), "dst_decky": action.dst_name.as_str(),
            "dst_ip": traffic.dst_ip.to_string(), "dst_port": 22, "rc": run.rc,
            "banner": run.failure.is_none().then_some(banner), "stderr": run.stderr_or_null(),
        });
        Ok(run.outcome(payload, None))
    }

    async fn read(&self, action: &Action, read: &Read) -> Result<Outcome, Aborted> {
        let bytes_max = read.bytes_max.min(READ_BYTES_MAX);
        let mark = self.mark(action.executing_decky());
        let script = script::read(read.path.as_str(), bytes_max + 1, self.options.follow_links);
        let inside = Inside {
            stdout_bytes_max: usize::try_from(bytes_max).unwrap_or(usize::MAX),
            ..Inside::fed(action.executing_decky(), &script::SCRIPT, script.into_bytes(), &mark)
        };
        let mut run = self.exec_inside(inside).await?;
        if let Some(failure) = &mut run.failure
            && failure.class == FailureClass::Command
            && run.stderr.ends_with("No such file or directory")
        {
            failure.class = FailureClass::NotFound;
        }
        let success = run.failure.is_none();
        let payload = json!({
            "dst_decky": action.dst_name.as_str(), "path": read.path.as_str(),
            "bytes": if success { run.stdout.len() } else { 0 },
            "rc": run.rc, "stderr": run.stderr_or_null(),
            "content_bytes": success.then(|| base64_text(&run.stdout)),
            "truncated": success && run.stdout_truncated,
        });
        Ok(run.outcome(payload, None))
    }

    async fn exec_inside(&self, inside: Inside<'_>) -> Result<Run, Aborted> {
        let container = format!("{}{}", inside.decky, self.options.container_suffix);
        let mut argv = end::exec(&self.options, &container, inside.mark, true);
        argv.extend(inside.argv.iter().map(|word| (*word).to_owned()));
        let began = Utc::now();
        let running = self.commands.run(CommandLine {
            argv,
            stdin: Some(inside.stdin),
            stdout_bytes_max: inside.stdout_bytes_max,
            stderr_bytes_max: CAPTURE_BYTES_MAX,
            time_max: self.options.time_max,
        });
        // Dropping the run ends the host's side.
        let ended = tokio::select! {
            ended = running => Some(ended),
            () = self.aborted() => None,
        };
        let end_inside = || {
            end::end_inside(
                &self.commands,
                &self.options,
                &container,
                inside.argv[0] == script::PYTHON[0],
                inside.mark,
                inside.leftover.as_ref(),
            )
        };
        match ended {
            Some(Ended::Exited { status, stdout, stderr }) => {
                Ok(self.exited(&container, began, status, stdout, &stderr.bytes).await)
            }
            Some(Ended::NotStarted(error)) => Ok(Run::not_started(&self.options.container_cli, &error)),
            Some(Ended::TimedOut) => Ok(Run::timed_out(end_inside().await, self.options.time_max)),
            None => {
                end_inside().await;
                Err(Aborted)
            }
        }
    }
}

impl Run {
    fn not_started(program: &str, error: &std::io::Error) -> Self {
        let stderr = format!("argv[0] not found: {program}: {error}");
        let failure = Failure::new(FailureClass::Infrastructure, stderr.clone());
        Self { rc: STATUS_NO_PROGRAM, failure: Some(failure), is_refused: true, ..Self::ok(stderr) }
    }

    fn timed_out(process: ContainerProcess, time_max: Duration) -> Self {
        let message = format!("no end within {time_max:?}");
        Self {
            rc: STATUS_TIMEOUT,
            failure: Some(Failure::new(FailureClass::Timeout, message)),
            container_process: Some(process),
            ..Self::ok("timeout".to_owned())
        }
    }

    /// The run that ended so; `trouble` is the engine's part in it and why.
    fn exited(end: &End<'_>, stdout: Captured, trouble: Option<(Cause, String)>) -> Self {
        // A command that has printed was begun, whatever the client says.
        let is_refused = matches!(trouble, Some((Cause::NotBegun, _))) && stdout.bytes.is_empty();
        let failure = match trouble {
            Some((_, why)) => Some((FailureClass::Infrastructure, why)),
            None if end.status != 0 => Some((FailureClass::Command, end.said(""))),
            None => None,
        };
        let status = end.status;
        let failure = failure.map(|(class, why)| Failure::new(class, format!("exit status {status}: {why}")));
        Self {
            rc: status,
            stdout: stdout.bytes,
            stdout_truncated: stdout.truncated,
            failure,
            is_refused,
            ..Self::ok(end.stderr.to_string())
        }
    }

    /// The run of a line of a batch, which the decky alone tells of.
    fn answered(status: i32, said: &[u8]) -> Self {
        let said = String::from_utf8_lossy(said);
        let end = End { status, stderr: said.trim() };
        Self::exited(&end, Captured::default(), None)
    }

    /// The same run, of a command that may have been begun.
    fn begun(self) -> Self {
        Self { is_refused: false, ..self }
    }

    fn ok(stderr: String) -> Self {
        Self {
            rc: 0,
            stdout: Vec::new(),
            stdout_truncated: false,
            stderr,
            failure: None,
            is_refused: false,
            container_process: None,
        }
    }

    /// The payload's `stderr`: null on success.
    fn stderr_or_null(&self) -> Value {
        match self.failure {
            None => Value::Null,
            Some(_) => self.stderr.chars().take(STDERR_CHARS_MAX).collect::<String>().into(),
        }
    }

    fn outcome(self, payload: Value, content_sha256: Option<String>) -> Outcome {
        Outcome {
            payload,
            failure: self.failure,
            container_process: self.container_process,
            content_sha256,
            was_begun: !self.is_refused,
        }
    }
}
