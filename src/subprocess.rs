//! Running a command: spawn, feed, cap, time out, kill, reap.
//!
//! This is the one module that names `tokio::process`.

use std::fs::File;
use std::future::Future;
use std::io;
use std::path::Path;
use std::pin::pin;
use std::process::Stdio;
use std::sync::OnceLock;
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdin, Command};
use tokio::time::{Instant, sleep_until, timeout};

/// How long the pipes of a command that has ended may stay open before what was read is taken as all.
///
/// A grandchild can hold them for ever.
const PIPE_LINGER: Duration = Duration::from_millis(500);

/// How many turns may be fed before their answers: the way to a decky and back is longer than most turns take.
pub const TURNS_AHEAD: usize = 32;

/// No further turn is taken while more than this waits to be written.
const PENDING_BYTES_MAX: usize = 64 * 1024;

/// How much is read at once at first: most outputs are short, and many are empty.
const CHUNK_BYTES_MIN: usize = 512;
/// How much is read at once of an output that fills what it is given.
const CHUNK_BYTES_MAX: usize = 16 * 1024;

/// Where Go's runtime is told how many threads run at once.
const GO_THREADS: &str = "GOMAXPROCS";
/// The engines' clients: Go programs that live for a moment, and lose time by more threads.
const GO_PROGRAMS: [&str; 3] = ["docker", "podman", "nerdctl"];

/// A command to run: an argv list, never a shell line.
#[derive(Debug, Clone)]
pub struct CommandLine {
    /// The program and its arguments.
    pub argv: Vec<String>,
    /// What it reads on standard input; `None` is an empty input.
    pub stdin: Option<Vec<u8>>,
    /// How many bytes of standard output are kept; the rest is read and thrown away.
    pub stdout_bytes_max: usize,
    /// Likewise of standard error.
    pub stderr_bytes_max: usize,
    /// The time limit from spawn to exit.
    pub time_max: Duration,
}

/// What a command wrote, up to its cap.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Captured {
    /// The first bytes.
    pub bytes: Vec<u8>,
    /// Whether there was more than the cap.
    pub truncated: bool,
}

/// How a command ended.
#[derive(Debug)]
pub enum Ended {
    /// It exited; a signal counts as a negative status.
    Exited {
        /// The exit status.
        status: i32,
        /// Standard output.
        stdout: Captured,
        /// Standard error.
        stderr: Captured,
    },
    /// The time limit passed; its process group has been killed and reaped.
    TimedOut,
    /// The program could not be started.
    NotStarted(io::Error),
}

/// What a command is fed with while it runs, and shown of what it prints.
pub trait Dialogue: Send {
    /// The next turn to feed; `None` where there is none now. It is asked for again after each answer.
    fn next_turn(&mut self) -> Option<Vec<u8>>;
    /// When all answers have come: waits until another turn is there, and says `false` when the input is to end.
    /// It may be cancelled and asked again.
    fn wait_for_turn(&mut self) -> impl Future<Output = bool> + Send {
        std::future::ready(false)
    }
    /// Is shown standard output as it comes; says how many answers ended in it.
    fn hear(&mut self, output: &[u8]) -> usize;
}

/// Nothing to say and nothing to hear.
struct Silence;

impl Dialogue for Silence {
    fn next_turn(&mut self) -> Option<Vec<u8>> {
        None
    }

    fn hear(&mut self, _output: &[u8]) -> usize {
        0
    }
}

/// The seam to the host's processes.
pub trait RunCommand: Send + Sync + 'static {
    /// Runs one command to its end; never longer than its limit and the bounded waits of the clean-up.
    fn run(&self, command: CommandLine) -> impl Future<Output = Ended> + Send {
        self.converse(command, Silence)
    }

    /// The same with a command that answers: its standard input goes on with the dialogue's turns,
    /// never more than [`TURNS_AHEAD`] ahead of the answers. Each answer starts the time limit anew.
    fn converse(&self, command: CommandLine, dialogue: impl Dialogue) -> impl Future<Output = Ended> + Send;
}

/// Runs commands on this host.
#[derive(Debug, Clone, Copy, Default)]
pub struct HostCommands;

/// Kills the child's process group when it goes out of scope, so that a cancelled run leaves nothing behind.
struct Group(Option<Pid>);

impl Group {
    fn kill(&self) {
        if let Some(pid) = self.0 {
            // The group may have ended by itself: ESRCH is no failure.
            let _ = killpg(pid, Signal::SIGKILL);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

impl RunCommand for HostCommands {
    async fn converse(&self, command: CommandLine, mut dialogue: impl Dialogue) -> Ended {
        let mut child = match spawn(&command) {
            Ok(child) => child,
            Err(error) => return Ended::NotStarted(error),
        };
        let group = Group(child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw));
        let mut input = Input::new(child.stdin.take(), command.stdin);
        let mut stdout = Output::new(child.stdout.take(), command.stdout_bytes_max);
        let mut stderr = Output::new(child.stderr.take(), command.stderr_bytes_max);
        let mut deadline = pin!(sleep_until(Instant::now() + command.time_max));
        // Feeding and reading take turns: a child that writes before it has read all would otherwise
        // block for ever.
        let exited = loop {
            input.fill(&mut dialogue);
            tokio::select! {
                piece = stdout.read(), if stdout.is_open() => {
                    let answered = dialogue.hear(piece);
                    if answered > 0 {
                        input.ahead = input.ahead.saturating_sub(answered);
                        deadline.as_mut().reset(Instant::now() + command.time_max);
                    }
                }
                _ = stderr.read(), if stderr.is_open() => {}
                () = input.write(), if input.has_more() => {}
                goes_on = dialogue.wait_for_turn(), if input.is_idle() => {
                    if goes_on {
                        // What comes now has not been waiting for this child.
                        deadline.as_mut().reset(Instant::now() + command.time_max);
                    } else {
                        input.pipe = None;
                    }
                }
                exited = child.wait() => break Some(exited),
                () = &mut deadline => break None,
            }
        };
        match exited {
            None => {
                group.kill();
                let _ = timeout(PIPE_LINGER, child.wait()).await;
                Ended::TimedOut
            }
            Some(Err(error)) => Ended::NotStarted(error),
            Some(Ok(status)) => {
                use std::os::unix::process::ExitStatusExt as _;
                let status = status.code().unwrap_or_else(|| -status.signal().unwrap_or(1));
                // A pipe that stays open is no failure: what has been read of it is taken.
                let rest = async {
                    while stdout.is_open() || stderr.is_open() {
                        tokio::select! {
                            piece = stdout.read(), if stdout.is_open() => {
                                dialogue.hear(piece);
                            }
                            _ = stderr.read(), if stderr.is_open() => {}
                        }
                    }
                };
                let _ = timeout(PIPE_LINGER, rest).await;
                Ended::Exited { status, stdout: stdout.captured, stderr: stderr.captured }
            }
        }
    }
}

/// Standard input, from what is to come first to the last turn.
struct Input {
    pipe: Option<ChildStdin>,
    pending: Vec<u8>,
    written: usize,
    /// How many turns have been taken that are not answered.
    ahead: usize,
}

impl Input {
    fn new(pipe: Option<ChildStdin>, first: Option<Vec<u8>>) -> Self {
        Self { pipe, pending: first.unwrap_or_default(), written: 0, ahead: 0 }
    }

    /// Takes turns as far as they may run ahead.
    fn fill(&mut self, dialogue: &mut impl Dialogue) {
        while self.pipe.is_some() && self.ahead < TURNS_AHEAD && self.pending.len() < PENDING_BYTES_MAX {
            match dialogue.next_turn() {
                Some(turn) => {
                    self.pending.extend_from_slice(&turn);
                    self.ahead += 1;
                }
                None => return,
            }
        }
    }

    /// Whether all that was taken has been written and answered.
    fn is_idle(&self) -> bool {
        self.pipe.is_some() && self.ahead == 0 && !self.has_more()
    }

    fn has_more(&self) -> bool {
        self.pipe.is_some() && self.written < self.pending.len()
    }

    /// Writes some of what is pending; nothing is lost where this is cancelled.
    async fn write(&mut self) {
        let Some(pipe) = &mut self.pipe else { return };
        match pipe.write(&self.pending[self.written..]).await {
            Ok(written @ 1..) => self.written += written,
            // A child that does not read its input gives EPIPE, which is no error of the command.
            _ => self.pipe = None,
        }
        if self.written == self.pending.len() {
            // A large input is not held once it has been written.
            (self.pending, self.written) = (Vec::new(), 0);
        }
    }
}

/// An output as it comes.
struct Output<P> {
    pipe: Option<P>,
    chunk: Vec<u8>,
    captured: Captured,
    bytes_max: usize,
}

impl<P: AsyncRead + Unpin> Output<P> {
    fn new(pipe: Option<P>, bytes_max: usize) -> Self {
        Self { pipe, chunk: Vec::new(), captured: Captured::default(), bytes_max }
    }

    fn is_open(&self) -> bool {
        self.pipe.is_some()
    }

    /// The next piece; an empty one when there is no more. Nothing is lost where this is cancelled.
    async fn read(&mut self) -> &[u8] {
        let is_filled = !self.chunk.is_empty() && self.chunk.len() == self.chunk.capacity();
        self.chunk.clear();
        self.chunk.reserve(if is_filled { CHUNK_BYTES_MAX } else { CHUNK_BYTES_MIN });
        let read = match &mut self.pipe {
            Some(pipe) => pipe.read_buf(&mut self.chunk).await.unwrap_or(0),
            None => 0,
        };
        if read == 0 {
            self.pipe = None;
        }
        self.captured.take(&self.chunk, self.bytes_max);
        &self.chunk
    }
}

impl Captured {
    fn take(&mut self, piece: &[u8], bytes_max: usize) {
        let room = bytes_max.saturating_sub(self.bytes.len()).min(piece.len());
        self.bytes.extend_from_slice(&piece[..room]);
        self.truncated |= room < piece.len();
    }
}

fn spawn(command: &CommandLine) -> io::Result<Child> {
    let Some((program, arguments)) = command.argv.split_first() else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "empty argv"));
    };
    let mut spawned = Command::new(program);
    // None of it reaches a container, and whoever has set it wants it so.
    let is_go = Path::new(program).file_name().is_some_and(|name| GO_PROGRAMS.iter().any(|go| name == *go));
    if is_go && std::env::var_os(GO_THREADS).is_none() {
        spawned.env(GO_THREADS, "1");
    }
    spawned
        .args(arguments)
        .stdin(if command.stdin.is_some() { Stdio::piped() } else { empty_input()? })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
}

/// Whether there is a program of this name, by its path or in one of the folders of `PATH`.
#[must_use]
pub fn is_program(name: &str) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    let is_executable = |path: &Path| {
        path.metadata().is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
    };
    if name.contains('/') {
        return is_executable(Path::new(name));
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| is_executable(&folder.join(name)))
}

/// `/dev/null`, opened once: most commands read nothing.
fn empty_input() -> io::Result<Stdio> {
    static NULL: OnceLock<File> = OnceLock::new();
    if let Some(null) = NULL.get() {
        return null.try_clone().map(Stdio::from);
    }
    let null = File::open("/dev/null")?;
    NULL.get_or_init(|| null).try_clone().map(Stdio::from)
}
