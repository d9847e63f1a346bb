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
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// How long the pipes of a command that has ended may stay open before what was read is taken as all.
///
/// A grandchild can hold them for ever.
const PIPE_LINGER: Duration = Duration::from_millis(500);

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
    fn run(&self, command: CommandLine) -> impl Future<Output = Ended> + Send;
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
    async fn run(&self, command: CommandLine) -> Ended {
        let mut child = match spawn(&command) {
            Ok(child) => child,
            Err(error) => return Ended::NotStarted(error),
        };
        let group = Group(child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw));
        let stdin = child.stdin.take();
        let input = command.stdin;
        // Feeding runs beside reading: a child that writes before it has read all would otherwise block for ever.
        let feeding = tokio::spawn(async move {
            if let (Some(mut pipe), Some(input)) = (stdin, input) {
                // A child that does not read its input gives EPIPE, which is no error of the command.
                let _ = pipe.write_all(&input).await;
            }
        });
        let (stdout, stderr) = (Shared::default(), Shared::default());
        let reading_stdout =
            tokio::spawn(capture(child.stdout.take(), command.stdout_bytes_max, Arc::clone(&stdout)));
        let reading_stderr =
            tokio::spawn(capture(child.stderr.take(), command.stderr_bytes_max, Arc::clone(&stderr)));
        let aborts = [feeding.abort_handle(), reading_stdout.abort_handle(), reading_stderr.abort_handle()];

        let ended = match timeout(command.time_max, child.wait()).await {
            Err(_) => {
                group.kill();
                let _ = timeout(PIPE_LINGER, child.wait()).await;
                Ended::TimedOut
            }
            Ok(Err(error)) => Ended::NotStarted(error),
            Ok(Ok(status)) => {
                use std::os::unix::process::ExitStatusExt as _;
                let status = status.code().unwrap_or_else(|| -status.signal().unwrap_or(1));
                // A pipe that stays open is no failure: what has been read of it is taken.
                let _ = timeout(PIPE_LINGER, async { tokio::join!(reading_stdout, reading_stderr) }).await;
                Ended::Exited { status, stdout: taken(&stdout), stderr: taken(&stderr) }
            }
        };
        for abort in aborts {
            abort.abort();
        }
        ended
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
    let mut chunk = vec![0; 16 * 1024];
    while let Ok(read @ 1..) = pipe.read(&mut chunk).await {
        let mut captured = shared.lock().unwrap_or_else(PoisonError::into_inner);
        let room = bytes_max.saturating_sub(captured.bytes.len()).min(read);
        captured.bytes.extend_from_slice(&chunk[..room]);
        captured.truncated |= room < read;
    }
}
