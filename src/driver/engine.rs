//! Who failed, the engine or the command in the decky, as the end of the client program tells it.

use super::STDERR_CHARS_MAX;

/// The status of docker and podman for their own failures; no command of ours ends with it.
const STATUS_CLIENT: i32 = 125;
/// The status of docker when it has lost the engine; no command of ours ends with it.
const STATUS_LOST: i32 = 255;
/// The statuses for a program that cannot be started, and for one that is not there.
const STATUSES_NO_START: [i32; 2] = [126, 127];
/// A status above this says that a signal ended the command, as the end of its container does.
const STATUS_SIGNAL: i32 = 128;

/// Where a line of the client's own begins, in lower case: docker 20 to 29, podman 4.
const LINE_STARTS: [&str; 14] = [
    "error response from daemon:",
    "docker: error response from daemon:",
    "error: no such container",
    "error: no container with name or id",
    "error: can only create exec sessions on running containers",
    "error during connect",
    "cannot connect to the docker daemon",
    "error: cannot connect to the docker daemon",
    "failed to connect to the docker api",
    "got permission denied while trying to connect to the docker",
    "permission denied while trying to connect to the docker",
    "failed to initialize: ",
    "cannot connect to podman",
    "error: unable to connect to podman",
];

/// Words of podman's own in a line that begins with `error`.
const ERROR_WORDS: [&str; 3] =
    ["no such container", "container state improper", "no container with name or id"];

/// What the end of an exec that did not succeed says about who failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The command in the decky failed.
    Command,
    /// The client or the engine did not begin the command.
    NotBegun,
    /// The client or the engine ended before the command did.
    CutOff,
    /// Either the command or its container ended; only the engine knows which.
    Unclear,
}

/// The end of an exec: its status and standard error, freed of the client's own additions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End<'a> {
    /// The exit status of the command; a signal that ended the client counts as a negative status.
    pub status: i32,
    /// The trimmed standard error.
    pub stderr: &'a str,
}

impl<'a> End<'a> {
    /// The end that a client's status and standard error tell.
    ///
    /// nerdctl ends with 1 whatever the command ended with, and tells the command's status in its last line.
    pub fn of(status: i32, stderr: &'a str) -> Self {
        let stderr = stderr.trim();
        let (rest, last) = stderr.rsplit_once('\n').unwrap_or(("", stderr));
        let inner =
            fatal_message(last).and_then(|message| message.strip_prefix("exec failed with exit code "));
        match inner.and_then(|code| code.trim().parse().ok()) {
            Some(inner) if status == 1 && inner != 0 => Self { status: inner, stderr: rest.trim() },
            _ => Self { status, stderr },
        }
    }

    /// Who failed.
    ///
    /// A decky writes to the same standard error and can feign the client's words; all that it gains is
    /// that the action is tried again, within its attempts. It cannot take away words or a status.
    pub fn cause(&self) -> Cause {
        match self.status {
            status if STATUSES_NO_START.contains(&status) => self.cause_of_no_start(),
            _ if self.own_line().is_some() => Cause::NotBegun,
            STATUS_CLIENT => Cause::NotBegun,
            STATUS_LOST => Cause::CutOff,
            status if status < 0 => Cause::CutOff,
            status if status > STATUS_SIGNAL => Cause::Unclear,
            _ => Cause::Command,
        }
    }

    /// A program that is not in the decky is the decky's failure; whatever else keeps the runtime from
    /// starting it is not.
    fn cause_of_no_start(&self) -> Cause {
        let runtime = self.stderr.lines().map(str::to_ascii_lowercase).find(|line| {
            ["oci runtime", "error: oci runtime", "error: runc:", "error: crun:"]
                .iter()
                .any(|start| line.starts_with(start))
        });
        match runtime {
            Some(line) if line.contains("exec: \"") || line.contains("executable file") => Cause::Command,
            Some(_) => Cause::NotBegun,
            None if self.own_line().is_some() => Cause::NotBegun,
            None if self.stderr.is_empty() => Cause::Unclear,
            // A shell in the decky said it.
            None => Cause::Command,
        }
    }

    /// The line in which the client says that it failed.
    fn own_line(&self) -> Option<&str> {
        self.stderr.lines().map(str::trim).find(|line| is_own(line))
    }

    /// The line that tells a person the most, cut and without control characters: the client's own, or the
    /// last one, as in a Python traceback; `otherwise` where nothing was said.
    pub fn said(&self, otherwise: &str) -> String {
        let line = self.own_line().or_else(|| self.stderr.lines().next_back()).unwrap_or(otherwise);
        let cut: String = line.chars().take(STDERR_CHARS_MAX).collect();
        without_controls(&cut)
    }
}

fn is_own(line: &str) -> bool {
    if let Some(message) = fatal_message(line) {
        return !message.starts_with("exec failed with exit code");
    }
    let line = line.to_ascii_lowercase();
    LINE_STARTS.iter().any(|start| line.starts_with(start))
        || (line.starts_with("error") && ERROR_WORDS.iter().any(|words| line.contains(words)))
}

/// The message of a line by which nerdctl ends, in either of its forms.
fn fatal_message(line: &str) -> Option<&str> {
    if let Some(rest) = line.strip_prefix("time=") {
        let (_, message) = rest.split_once(" level=fatal msg=")?;
        return Some(message.trim_matches('"'));
    }
    let (_, message) = line.strip_prefix("FATA[")?.split_once(']')?;
    Some(message.trim())
}

/// Escapes control characters, and nothing else.
fn without_controls(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for char in text.chars() {
        if char.is_control() {
            plain.extend(char.escape_debug());
        } else {
            plain.push(char);
        }
    }
    plain
}

/// What a person can do about what the client program said.
#[must_use]
pub fn engine_hint(said: &str) -> &'static str {
    let said = said.to_ascii_lowercase();
    let has = |words: &str| said.contains(words);
    if has("argv[0] not found") {
        "install the engine's client, or name another with --container-cli (docker, podman, nerdctl)"
    } else if has("permission denied") {
        "let this user use the engine's socket: `usermod -aG docker USER` and a new login, or a rootless engine"
    } else if has("cannot connect") || has("failed to connect") || has("error during connect") {
        "start the engine (`systemctl start docker`), or name its socket in DOCKER_HOST"
    } else if has("no such container") || has("no container with name") {
        "check the decky's name and --container-suffix; `deckswain check` lists the deckies that are there"
    } else if has("is not running") || has("state improper") || has("paused") {
        "start its container; actions that were dead-lettered meanwhile come back with `deckswain dead-letters replay`"
    } else {
        "`deckswain check` looks at the engine and the deckies"
    }
}
