//! Whether a decky's container was there from the begin of a command to its end.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Deserialize;
use tokio::time::sleep;

use super::engine::{Cause, End};
use super::{CAPTURE_BYTES_MAX, Driver, Run};
use crate::subprocess::{Captured, CommandLine, Ended, RunCommand};

/// How much of the engine's answer is read: a container takes some 10 KiB.
const ANSWER_BYTES_MAX: usize = 1024 * 1024;
/// When the engine is asked: the end of an exec can be known before the end of its container is.
const LOOKS_AFTER: [Duration; 3] = [Duration::ZERO, Duration::from_millis(300), Duration::from_millis(700)];

/// What the engine tells of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Container {
    /// It runs, since then if the engine tells.
    Running(Option<DateTime<Utc>>),
    /// It is there and does not run.
    Stopped,
    /// The engine has no such container.
    Gone,
    /// The engine does not tell, for this reason.
    Unknown(String),
}

/// The part of `container inspect` that docker, podman and nerdctl have in common.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Inspected {
    state: State,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct State {
    running: bool,
    #[serde(default)]
    started_at: Option<String>,
}

impl Container {
    fn parse(answer: &[u8]) -> Self {
        match serde_json::from_slice::<Vec<Inspected>>(answer) {
            Ok(containers) => match containers.into_iter().next() {
                Some(Inspected { state: State { running: true, started_at } }) => {
                    let since = started_at.and_then(|text| DateTime::parse_from_rfc3339(&text).ok());
                    Self::Running(since.map(|since| since.to_utc()))
                }
                Some(_) => Self::Stopped,
                None => Self::Gone,
            },
            Err(error) => Self::Unknown(format!("the engine's answer is not understood: {error}")),
        }
    }

    /// Why a command that began at `began` was cut off; `None` where the container ran all the time.
    ///
    /// The two times are of two clocks where the engine is on another host. One that is ahead makes an
    /// infrastructure failure of a command's for as long as the container is younger than the difference.
    pub fn reason(&self, name: &str, began: DateTime<Utc>) -> Option<String> {
        match self {
            Self::Running(Some(since)) if *since > began => {
                Some(format!("the container {name} was started anew at {}", since.format("%H:%M:%S%.3fZ")))
            }
            Self::Running(_) => None,
            Self::Stopped => Some(format!("the container {name} is not running")),
            Self::Gone => Some(format!("no such container: {name}")),
            Self::Unknown(why) => Some(why.clone()),
        }
    }
}

impl<R: RunCommand> Driver<R> {
    /// The run of an exec in a container, from the end of its client.
    pub(super) async fn exited(
        &self,
        container: &str,
        began: DateTime<Utc>,
        status: i32,
        mut stdout: Captured,
        stderr: &[u8],
    ) -> Run {
        // Older docker engines print on standard output why a command could not be started.
        let is_printed = matches!(status, 126 | 127)
            && stderr.trim_ascii().is_empty()
            && stdout.bytes.starts_with(b"OCI runtime");
        let printed = if is_printed { std::mem::take(&mut stdout.bytes) } else { Vec::new() };
        let said = String::from_utf8_lossy(if is_printed { &printed } else { stderr });
        let end = End::of(status, &said);
        let trouble =
            if status == 0 { None } else { self.trouble(container, began, &end, end.cause()).await };
        Run::exited(&end, stdout, trouble)
    }

    /// The run of an exec that ended before it had answered; `None` where its container ran all the time.
    pub(super) async fn broken(
        &self,
        container: &str,
        began: DateTime<Utc>,
        status: i32,
        stderr: &[u8],
    ) -> Option<Run> {
        let said = String::from_utf8_lossy(stderr);
        let end = End::of(status, &said);
        let cause = match end.cause() {
            // The end of a container can show as any status of the shell there.
            Cause::Command | Cause::Unclear => Cause::Unclear,
            cause @ (Cause::NotBegun | Cause::CutOff) => cause,
        };
        let trouble = self.trouble(container, began, &end, cause).await?;
        Some(Run::exited(&end, Captured::default(), Some(trouble)))
    }

    /// The part of the engine in the end of an exec, and why; an empty reason is in the client's own words.
    async fn trouble(
        &self,
        container: &str,
        began: DateTime<Utc>,
        end: &End<'_>,
        cause: Cause,
    ) -> Option<(Cause, String)> {
        match cause {
            Cause::Command => None,
            Cause::NotBegun => Some((cause, end.said("the engine did not begin the command"))),
            Cause::CutOff => Some((cause, end.said("the engine or its client went away"))),
            Cause::Unclear => self.cut_off(container, began).await.map(|why| (Cause::CutOff, why)),
        }
    }

    /// Asks the engine why a command that began at `began` was cut off; `None` where its container ran all the time.
    async fn cut_off(&self, container: &str, began: DateTime<Utc>) -> Option<String> {
        for after in LOOKS_AFTER {
            sleep(after).await;
            if let Some(why) = self.inspect(container).await.reason(container, began) {
                return Some(why);
            }
        }
        None
    }

    async fn inspect(&self, container: &str) -> Container {
        let words = [self.options.container_cli.as_str(), "container", "inspect", container];
        let command = CommandLine {
            argv: words.map(ToOwned::to_owned).to_vec(),
            stdin: None,
            stdout_bytes_max: ANSWER_BYTES_MAX,
            stderr_bytes_max: CAPTURE_BYTES_MAX,
            time_max: self.options.time_max,
        };
        match self.commands.run(command).await {
            Ended::Exited { status: 0, stdout, .. } => Container::parse(&stdout.bytes),
            Ended::Exited { status, stderr, .. } => {
                let said = String::from_utf8_lossy(&stderr.bytes);
                let end = End::of(status, &said);
                match said.to_ascii_lowercase().contains("no such container") {
                    true => Container::Gone,
                    false => Container::Unknown(end.said("the engine does not tell")),
                }
            }
            Ended::NotStarted(error) => {
                Container::Unknown(format!("{} cannot be started: {error}", self.options.container_cli))
            }
            Ended::TimedOut => {
                Container::Unknown(format!("no answer from the engine within {:?}", self.options.time_max))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::driver::DriverOptions;
    use crate::result::FailureClass;
    use crate::subprocess::Dialogue;

    const GONE: &str = r#"time="2026-08-08T19:39:11Z" level=fatal msg="no such container web-01-ssh""#;
    const CONFLICT: &str =
        "file changed\ntime=\"2026-08-08T19:39:11Z\" level=fatal msg=\"exec failed with exit code 73\"";
    const DENIED: &str = "Got permission denied while trying to connect to the Docker daemon socket at \
        unix:///var/run/docker.sock: Get \"http://%2Fvar%2Frun%2Fdocker.sock/v1.24/containers/json\": dial unix \
        /var/run/docker.sock: connect: permission denied";
    const WARNED: &str = "WARNING: Error parsing config file (/tmp/cfg/config.json): unexpected EOF\n\
        Error response from daemon: No such container: web-01-ssh";
    const WORKDIR: &str = "OCI runtime exec failed: exec failed: unable to start container process: chdir to cwd \
        (\"/srv/app\") set in config.json failed: no such file or directory: unknown";
    const NO_PROGRAM: &str = "OCI runtime exec failed: exec failed: unable to start container process: exec: \
        \"nosuch\": executable file not found in $PATH: unknown";
    const NO_PROGRAM_PODMAN: &str = "Error: runc: exec failed: unable to start container process: exec: \"nosuch\": \
        executable file not found in $PATH: OCI runtime attempted to invoke a command that was not found";

    const STARTED: &str = "the client program cannot be started, or a signal ended it on this host";
    const NOT_THERE: &str =
        "status 126 or 127, and the engine says that the program is not in the decky or cannot be executed";
    const RUNTIME: &str = "status 126 or 127, and the engine says anything else";
    const SHELL: &str = "status 126 or 127, and a shell in the decky says why";
    const OWN: &str = "a line in which the client itself says that it failed, with any status";
    const CLIENT: &str = "status 125 (docker's and podman's own) or 255 (the engine was lost)";
    const WENT: &str = "status 126, 127 or above 128, and the container was started later than the action, or does not run, or is gone, or the engine does not tell";
    const RAN_ON: &str = "status 126, 127 or above 128, and the container ran all the time";
    const OTHER: &str = "any other status";

    /// The state of the container when the engine is asked after the exec.
    #[derive(Clone, Copy, Debug)]
    enum After {
        Same,
        StartedAnew,
        Stopped,
        Gone,
        NoAnswer,
    }

    /// A row of docs/protocol.md, the status and standard error of an exec, and the container after it.
    const CASES: [(&str, i32, &str, After); 31] = [
        (STARTED, -9, "", After::Same),
        (STARTED, -15, "text", After::Same),
        (NOT_THERE, 126, NO_PROGRAM, After::Same),
        (NOT_THERE, 127, NO_PROGRAM_PODMAN, After::Same),
        (RUNTIME, 126, WORKDIR, After::Same),
        (RUNTIME, 126, "OCI runtime exec failed: cannot exec in a stopped container: unknown", After::Same),
        (SHELL, 127, "sh: 1: base64: not found", After::Same),
        (SHELL, 126, "sh: 1: chown: Permission denied", After::Same),
        (OWN, 1, WARNED, After::Same),
        (OWN, 1, DENIED, After::Same),
        (OWN, 1, GONE, After::Same),
        (OWN, 1, "FATA[0000] no such container web-01-ssh", After::Same),
        (OWN, 1, "Error response from daemon: Container 55 is not running", After::Same),
        (
            OWN,
            1,
            "Cannot connect to the Docker daemon at unix:///run/docker.sock. Is it running?",
            After::Same,
        ),
        (OWN, 1, "Failed to initialize: unable to resolve docker endpoint: context \"x\"", After::Same),
        (OWN, 1, "error during connect: Get \"http://x/v1.24/containers/json\": EOF", After::Same),
        (
            OWN,
            255,
            "Error: can only create exec sessions on running containers: container state improper",
            After::Same,
        ),
        (OWN, 137, "Error response from daemon: No such container: web-01-ssh", After::Same),
        (CLIENT, 125, "unknown flag: --bogus", After::Same),
        (CLIENT, 125, "", After::Same),
        (CLIENT, 255, "", After::Same),
        (WENT, 137, "", After::StartedAnew),
        (WENT, 137, "", After::Stopped),
        (WENT, 126, "", After::Gone),
        (WENT, 143, "Terminated", After::NoAnswer),
        (RAN_ON, 137, "", After::Same),
        (RAN_ON, 126, "", After::Same),
        (RAN_ON, 139, "", After::Same),
        (OTHER, 1, "head: cannot open '/etc/x' for reading: Permission denied", After::StartedAnew),
        (OTHER, 73, "file changed", After::Same),
        (OTHER, 1, CONFLICT, After::Same),
    ];

    /// An engine that answers `container inspect` with what stands here.
    struct Asked(After, Mutex<usize>);

    impl RunCommand for Asked {
        async fn converse(&self, command: CommandLine, _dialogue: impl Dialogue) -> Ended {
            assert_eq!(command.argv[1..], ["container", "inspect", "web-01-ssh"]);
            if let Ok(mut count) = self.1.lock() {
                *count += 1;
            }
            let state = |running: bool, since: &str| {
                let answer = format!(
                    r#"[{{"Id":"5","State":{{"Status":"x","Running":{running},"StartedAt":"{since}"}}}}]"#
                );
                (0, answer, "")
            };
            let (status, stdout, stderr) = match self.0 {
                After::Same => state(true, "2026-01-01T00:00:00.123456789Z"),
                After::StartedAnew => state(true, "2026-01-01T00:00:05Z"),
                After::Stopped => state(false, "2026-01-01T00:00:00Z"),
                After::Gone => {
                    (1, "[]".to_owned(), "Error response from daemon: No such container: web-01-ssh")
                }
                After::NoAnswer => (1, String::new(), "Cannot connect to the Docker daemon"),
            };
            let captured = |bytes: &[u8]| Captured { bytes: bytes.to_vec(), truncated: false };
            Ended::Exited { status, stdout: captured(stdout.as_bytes()), stderr: captured(stderr.as_bytes()) }
        }
    }

    fn driver(after: After) -> Driver<Asked> {
        let options = DriverOptions {
            container_cli: "docker".to_owned(),
            container_suffix: "-ssh".to_owned(),
            time_max: Duration::from_secs(8),
            fleet: "a-test".to_owned(),
            follow_links: true,
            leftover_age: crate::driver::LEFTOVER_AGE,
        };
        Driver::new(options, Asked(after, Mutex::default()))
    }

    fn at(second: u32) -> DateTime<Utc> {
        DateTime::UNIX_EPOCH + Duration::from_secs(1_767_225_600 + u64::from(second))
    }

    /// The rows of the table in docs/protocol.md, each with its class.
    fn rows() -> Vec<(String, String)> {
        let text = include_str!("../../docs/protocol.md");
        let table = text.split("| seen at the end of the exec | class |\n| --- | --- |\n").nth(1);
        let table = table.and_then(|rest| rest.split("\n\n").next()).unwrap_or_default();
        let row = |line: &str| {
            let (seen, class) = line.trim_matches(['|', ' ']).rsplit_once(" | ")?;
            Some((seen.to_owned(), class.trim_matches('`').to_owned()))
        };
        table.lines().filter_map(row).collect()
    }

    #[tokio::test]
    async fn each_end_of_an_exec_has_the_class_that_the_protocol_promises() {
        let rows = rows();
        // At once: a container that ran all the time is asked about for a second.
        let mut runs = tokio::task::JoinSet::new();
        for case in CASES {
            runs.spawn(async move {
                let (driver, stdout) = (driver(case.3), Captured::default());
                (case, driver.exited("web-01-ssh", at(2), case.1, stdout, case.2.as_bytes()).await)
            });
        }
        while let Some(ended) = runs.join_next().await {
            let ((row, status, stderr, after), run) = ended.expect("no panic");
            let failure = run.failure.expect("a failure");
            let promised = rows.iter().find(|(seen, _)| seen == row).map(|(_, class)| class.as_str());
            assert_eq!(Some(failure.class.as_str()), promised, "{row}: {status} {stderr:?} {after:?}");
            assert!(
                failure.message.len() > "exit status 137: ".len() || stderr.is_empty(),
                "{}",
                failure.message
            );
        }
        let unproved = |(seen, _): &&(String, String)| !CASES.iter().any(|(row, ..)| seen == row);
        assert_eq!(rows.iter().find(unproved), None);
    }

    #[tokio::test]
    async fn the_engine_is_asked_only_where_the_end_does_not_tell() {
        let asked = async |status, stderr: &str, after| {
            let driver = driver(after);
            driver.exited("web-01-ssh", at(2), status, Captured::default(), stderr.as_bytes()).await;
            driver.commands.1.lock().map(|count| *count).unwrap_or_default()
        };
        assert_eq!(asked(0, "", After::Gone).await, 0);
        assert_eq!(asked(1, "no room", After::Gone).await, 0);
        assert_eq!(asked(1, WARNED, After::Gone).await, 0);
        assert_eq!(asked(137, "", After::Gone).await, 1);
        assert_eq!(asked(137, "", After::Same).await, LOOKS_AFTER.len());
    }

    #[tokio::test]
    async fn an_exec_that_broke_off_is_cut_off_only_where_its_container_went_away() {
        let broken = async |status, stderr: &'static str, after| {
            let run = driver(after).broken("web-01-ssh", at(2), status, stderr.as_bytes()).await?;
            Some((run.is_refused, run.failure?.class))
        };
        let infrastructure = |is_refused| Some((is_refused, FailureClass::Infrastructure));
        assert_eq!(broken(1, "", After::Same).await, None);
        assert_eq!(broken(0, "", After::StartedAnew).await, infrastructure(false));
        assert_eq!(broken(137, "", After::Stopped).await, infrastructure(false));
        assert_eq!(broken(1, WARNED, After::Same).await, infrastructure(true));
    }

    #[test]
    fn the_status_that_nerdctl_tells_in_words_is_the_commands() {
        assert_eq!(End::of(1, CONFLICT), End { status: 73, stderr: "file changed" });
        assert_eq!(End::of(2, CONFLICT).status, 2);
        assert_eq!(End::of(1, "level=fatal msg=\"exec failed with exit code 0\"").status, 1);
    }

    #[test]
    fn a_message_is_as_the_decky_said_it_but_for_control_characters() {
        let said = |text| End { status: 1, stderr: text }.said("");
        assert_eq!(
            said("head: cannot open '/etc/ö' for \"reading\""),
            "head: cannot open '/etc/ö' for \"reading\""
        );
        assert_eq!(said("a\u{1b}[31mb\tc"), "a\\u{1b}[31mb\\tc");
        assert_eq!(said(WARNED), "Error response from daemon: No such container: web-01-ssh");
    }
}
