//! Standard error: the log, and the words of the commands. Nothing that happens to it stops the work.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd as _;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tracing::warn;
use tracing_subscriber::fmt::MakeWriter;

/// How many bytes may wait to be written: some thousand lines, for a reader that pauses.
const WAITING_BYTES_MAX: usize = 256 * 1024;
/// How long lines gather between two writes: a thread that wakes for each line costs more than the line.
const GATHERING_TIME: Duration = Duration::from_millis(2);
/// How long an ending process waits for its last lines to be written.
const FLUSH_TIME_MAX: Duration = Duration::from_secs(1);
/// How long a pipe that takes nothing now, and does not block, is left alone.
const FULL_PIPE_PAUSE: Duration = Duration::from_millis(20);

/// Set by a worker, whose log must never hold it up.
static SPOOL: OnceLock<Arc<Spool>> = OnceLock::new();

/// Writes to standard error, or leaves it to the thread that does; an error costs the text and nothing else.
pub fn write(bytes: &[u8]) {
    match SPOOL.get() {
        Some(spool) => spool.push(bytes),
        None => {
            let _ = io::stderr().write_all(bytes);
        }
    }
}

/// Leaves all further writing to a thread of its own, so that nobody waits for the reader of standard error.
pub fn write_in_background() {
    let Ok(file) = io::stderr().as_fd().try_clone_to_owned().map(File::from) else { return };
    let spool = Arc::new(Spool::default());
    let writing = spool.clone();
    if thread::Builder::new().name("log".to_owned()).spawn(move || writing.drain_into(file)).is_ok() {
        let _ = SPOOL.set(spool);
    }
}

/// Waits until the lines so far are written, but not for a reader that has stopped.
pub fn flush() {
    if let Some(spool) = SPOOL.get() {
        spool.flush(FLUSH_TIME_MAX);
    }
}

/// Where `tracing` writes its lines, each with one call.
pub struct LogWriter;

impl Write for LogWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        write(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for LogWriter {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        Self
    }
}

/// Lines on their way to standard error.
#[derive(Default)]
struct Spool {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    waiting: Vec<u8>,
    is_writing: bool,
    /// Lines that found no room or could not be written, since the process began.
    lost: usize,
}

impl Spool {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, line: &[u8]) {
        let mut state = self.lock();
        if state.waiting.len() + line.len() > WAITING_BYTES_MAX {
            state.lost += lines_in(line);
        } else {
            state.waiting.extend_from_slice(line);
            self.changed.notify_all();
        }
    }

    /// Writes lines as they come, for as long as the process lives.
    fn drain_into(&self, mut out: impl Write) {
        let (mut told, mut at_line_start) = (0, true);
        loop {
            let lines = self.next_lines();
            let written = write_some(&mut out, &lines, at_line_start);
            if let Some(last) = lines[..written].last() {
                at_line_start = *last == b'\n';
            }
            let mut state = self.lock();
            state.is_writing = false;
            state.lost += lines_in(&lines[written..]);
            let lost = state.lost;
            self.changed.notify_all();
            drop(state);
            if written == lines.len() && lost > told {
                warn!("{} log lines were lost: standard error did not take them", lost - told);
                told = lost;
            }
            thread::sleep(GATHERING_TIME);
        }
    }

    fn next_lines(&self) -> Vec<u8> {
        let mut state = self.lock();
        while state.waiting.is_empty() {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.is_writing = true;
        std::mem::take(&mut state.waiting)
    }

    fn flush(&self, time_max: Duration) {
        let deadline = Instant::now() + time_max;
        let mut state = self.lock();
        while state.is_writing || !state.waiting.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

fn lines_in(bytes: &[u8]) -> usize {
    bytes.iter().filter(|byte| **byte == b'\n').count()
}

/// Writes as much as is taken and returns the number of bytes; half a line from before is ended first.
fn write_some(out: &mut impl Write, bytes: &[u8], at_line_start: bool) -> usize {
    if !at_line_start && out.write(b"\n").is_err() {
        return 0;
    }
    let mut written = 0;
    while written < bytes.len() {
        match out.write(&bytes[written..]) {
            Ok(0) => break,
            Ok(count) => written += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::sleep(FULL_PIPE_PAUSE),
            Err(_) => break,
        }
    }
    written
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// A disk that is full, or has room, as the test says before each write.
    struct Disk {
        room: mpsc::Receiver<usize>,
        written: mpsc::Sender<Vec<u8>>,
    }

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let room = self.room.recv().unwrap_or(usize::MAX).min(bytes.len());
            if room == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            let _ = self.written.send(bytes[..room].to_vec());
            Ok(room)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_full_disk_costs_the_lines_that_do_not_fit_and_the_next_begins_anew() {
        let spool = Arc::new(Spool::default());
        let (give_room, room) = mpsc::channel();
        let (written, lines) = mpsc::channel();
        let draining = spool.clone();
        thread::spawn(move || draining.drain_into(Disk { room, written }));
        let text = || String::from_utf8(lines.recv().unwrap()).unwrap();
        spool.push(b"one\ntwo\n");
        give_room.send(6).unwrap();
        assert_eq!(text(), "one\ntw");
        give_room.send(0).unwrap();
        spool.flush(Duration::from_secs(60));
        assert_eq!(spool.lock().lost, 1);
        spool.push(b"three\n");
        give_room.send(0).unwrap();
        spool.flush(Duration::from_secs(60));
        assert_eq!(spool.lock().lost, 2);
        spool.push(b"four\n");
        drop(give_room);
        assert_eq!((text(), text()), ("\n".to_owned(), "four\n".to_owned()));
    }

    #[test]
    fn lines_that_find_no_room_are_counted() {
        let spool = Spool::default();
        let line = [b'x'; 1023].iter().chain(b"\n").copied().collect::<Vec<u8>>();
        for _ in 0..WAITING_BYTES_MAX / line.len() + 3 {
            spool.push(&line);
        }
        let state = spool.lock();
        assert_eq!((state.waiting.len(), state.lost), (WAITING_BYTES_MAX, 3));
    }
}
