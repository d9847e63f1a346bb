//! Running a command: spawn, feed, cap, time out, kill, reap.
//!
//! This is the one module that names `tokio::process`.

use std::future::Future;
use std::io;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep_until, timeout};

/// How long the pipes of a command that has ended may stay open before what was read is taken as all.
///
/// A grandchild can hold them for ever.
const PIPE_LINGER: Duration = Duration::from_millis(500);

/// How many turns are fed before their answers: one that runs, and one that need not be waited for.
const TURNS_AHEAD: usize = 2;

/// How much is read at once.
const CHUNK_BYTES: usize = 16 * 1024;

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

/// The seam to the host's processes.
pub trait RunCommand: Send + Sync + 'static {
    /// Runs one command to its end; never longer than its limit and the bounded waits of the clean-up.
    fn run(&self, command: CommandLine) -> impl Future<Output = Ended> + Send {
        self.run_in_turns(command, Vec::new(), |_| Some(0))
    }

    /// The same with a command that answers: `turns` follow its standard input one by one, never
    /// more than two ahead of the answers.
    ///
    /// Standard output is shown to `answers` as it comes, which says how many answers ended in it.
    /// Each starts the time limit anew. On `None` the input ends with the turns that have been fed.
    fn run_in_turns(
        &self,
        command: CommandLine,
        turns: Vec<Vec<u8>>,
        answers: impl FnMut(&[u8]) -> Option<usize> + Send,
    ) -> impl Future<Output = Ended> + Send;
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
    async fn run_in_turns(
        &self,
        command: CommandLine,
        turns: Vec<Vec<u8>>,
        mut answers: impl FnMut(&[u8]) -> Option<usize> + Send,
    ) -> Ended {
        let mut child = match spawn(&command) {
            Ok(child) => child,
            Err(error) => return Ended::NotStarted(error),
        };
        let group = Group(child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw));
        // Feeding and reading run beside each other: a child that writes before it has read all would
        // otherwise block for ever.
        let due = Arc::new(Semaphore::new(TURNS_AHEAD));
        let feeding = tokio::spawn(feed(child.stdin.take(), command.stdin, turns, due.clone()));
        let stderr = Shared::default();
        let reading_stderr =
            tokio::spawn(capture(child.stderr.take(), command.stderr_bytes_max, Arc::clone(&stderr)));
        let aborts = [feeding.abort_handle(), reading_stderr.abort_handle()];

        let mut stdout = Output::new(child.stdout.take(), command.stdout_bytes_max);
        let mut deadline = Instant::now() + command.time_max;
        let exited = loop {
            tokio::select! {
                piece = stdout.read(), if stdout.is_open() => match answers(piece) {
                    None => feeding.abort(),
                    Some(0) => {}
                    Some(answered) => {
                        due.add_permits(answered);
                        deadline = Instant::now() + command.time_max;
                    }
                },
                exited = child.wait() => break Some(exited),
                () = sleep_until(deadline) => break None,
            }
        };
        let ended = match exited {
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
                    while stdout.is_open() {
                        answers(stdout.read().await);
                    }
                };
                let _ = timeout(PIPE_LINGER, async { tokio::join!(rest, reading_stderr) }).await;
                Ended::Exited { status, stdout: stdout.captured, stderr: taken(&stderr) }
            }
        };
        for abort in aborts {
            abort.abort();
        }
        ended
    }
}

async fn feed(pipe: Option<ChildStdin>, input: Option<Vec<u8>>, turns: Vec<Vec<u8>>, due: Arc<Semaphore>) {
    let (Some(mut pipe), Some(input)) = (pipe, input) else { return };
    // A child that does not read its input gives EPIPE, which is no error of the command.
    let mut fed = pipe.write_all(&input).await;
    for turn in turns {
        // The semaphore is never closed.
        let (Ok(()), Ok(permit)) = (fed, due.acquire().await) else { return };
        permit.forget();
        fed = pipe.write_all(&turn).await;
    }
}

/// Standard output as it comes.
struct Output {
    pipe: Option<ChildStdout>,
    chunk: Vec<u8>,
    captured: Captured,
    bytes_max: usize,
}

impl Output {
    fn new(pipe: Option<ChildStdout>, bytes_max: usize) -> Self {
        Self { pipe, chunk: vec![0; CHUNK_BYTES], captured: Captured::default(), bytes_max }
    }

    fn is_open(&self) -> bool {
        self.pipe.is_some()
    }

    /// The next piece; an empty one when there is no more. Nothing is lost where this is cancelled.
    async fn read(&mut self) -> &[u8] {
        let read = match &mut self.pipe {
            Some(pipe) => pipe.read(&mut self.chunk).await.unwrap_or(0),
            None => 0,
        };
        if read == 0 {
            self.pipe = None;
        }
        self.captured.take(&self.chunk[..read], self.bytes_max);
        &self.chunk[..read]
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
    Command::new(program)
        .args(arguments)
        .stdin(if command.stdin.is_some() { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
}

/// What a stream has given so far, where a reader that is given up leaves it behind.
type Shared = Arc<Mutex<Captured>>;

fn taken(shared: &Shared) -> Captured {
    std::mem::take(&mut *shared.lock().unwrap_or_else(PoisonError::into_inner))
}

async fn capture(pipe: Option<impl AsyncRead + Unpin>, bytes_max: usize, shared: Shared) {
    let Some(mut pipe) = pipe else { return };
    let mut chunk = vec![0; CHUNK_BYTES];
    while let Ok(read @ 1..) = pipe.read(&mut chunk).await {
        shared.lock().unwrap_or_else(PoisonError::into_inner).take(&chunk[..read], bytes_max);
    }
}
