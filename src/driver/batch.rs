//! Several changes to one decky by one exec, each with the outcome that it would have had alone.

use std::collections::VecDeque;
use std::sync::Arc;

use chrono::{DateTime, Utc};

use super::script::{self, Leftover};
use super::secret::Names;
use super::{Aborted, Attempt, Change, Driver, DriverOptions, Mark, Run, end};
use crate::action::{Action, DeckyName, Task};
use crate::result::Outcome;
use crate::subprocess::{CommandLine, Dialogue, Ended, RunCommand};

/// The largest content that travels in a batch, in bytes: the shell reads its lines byte by byte,
/// and beyond this that costs more than an exec.
const CONTENT_BYTES_MAX: usize = 32 * 1024;
/// How much of what one line says is kept, in bytes.
const SAID_BYTES_MAX: usize = super::CAPTURE_BYTES_MAX;
/// How many changes share an exec at most: a decky with an endless backlog gives way to others.
const LINES_MAX: usize = 1024;
/// How many bytes of lines.
const LINES_BYTES_MAX: usize = 8 * 1024 * 1024;
/// From so many on, python's start costs less than the programs that a shell would start.
const LINES_FOR_PYTHON: usize = 4;

/// Whether an action can share an exec with others.
#[must_use]
pub fn can_share(action: &Action) -> bool {
    let bytes = match &action.task {
        Task::File(file) => file.content.len(),
        Task::Edit(edit) => edit.previous_body.len(),
        Task::Remove(_) => 0,
        Task::Traffic(_) | Task::Read(_) => return false,
    };
    bytes <= CONTENT_BYTES_MAX
}

/// The next action of a batch.
pub struct Next<T> {
    /// The action.
    pub action: Arc<Action>,
    /// By which it is known when it has ended.
    pub ticket: T,
    /// Whether it may have been performed before without its result being known.
    pub is_repeat: bool,
}

/// Changes to one decky that come one by one, and what becomes of each.
pub trait Batch: Send {
    /// By which an action is known when it has ended.
    type Ticket: Send;

    /// The next action that waits and [`can_share`] an exec; `None` where none does now.
    fn next(&mut self) -> Option<Next<Self::Ticket>>;
    /// How many may be on their way at once, sent and not answered.
    fn ahead_max(&self) -> usize;
    /// How many can be expected at least.
    fn expected(&self) -> usize;
    /// Waits a little for another action, where one is likely to come; says whether it has.
    fn wait(&mut self) -> impl Future<Output = bool> + Send;
    /// Whether an action that was given but has not been begun still may be.
    fn may_begin(&self, ticket: &Self::Ticket) -> bool;
    /// Is told what came of an action, and when its turn began and ended.
    fn done(&mut self, ticket: Self::Ticket, outcome: Outcome, span: (DateTime<Utc>, DateTime<Utc>));
    /// Is given back an action that was not begun.
    fn not_begun(&mut self, ticket: Self::Ticket);
}

/// The end of an exec that left lines without an answer.
enum Ending {
    /// The line that was due took longer than it may; it has been ended on both sides.
    TimedOut(Run),
    /// The engine or its client did not begin the exec.
    Refused(Run),
    /// The container, the engine or its client went away in the middle.
    CutOff(Run),
    /// The container is there, but the exec ended or its answers made no sense.
    Broken,
}

/// A line of the batch.
struct Line<T> {
    action: Arc<Action>,
    ticket: T,
    change: Change,
    leftover: Option<Leftover>,
}

impl<T> Line<T> {
    /// The line's text; the names beside the target are drawn anew each time it is sent.
    fn text(&mut self, options: &DriverOptions) -> Vec<u8> {
        let names = Names::draw(&options.fleet, self.action.executing_decky());
        let call = self.change.call(&self.action, &names, options);
        self.leftover = Some(call.leftover());
        call.line().into_bytes()
    }
}

/// The lines of a batch: those that are still to be sent again, and those that have been sent.
struct Lines<'a, B: Batch> {
    options: &'a DriverOptions,
    batch: B,
    again: VecDeque<Line<B::Ticket>>,
    sent: VecDeque<Line<B::Ticket>>,
    answers: Answers,
    /// When the line that is due began.
    began: DateTime<Utc>,
    count: usize,
    bytes: usize,
    answered: usize,
}

impl<'a, B: Batch> Lines<'a, B> {
    fn new(batch: B, options: &'a DriverOptions) -> Self {
        let (again, sent) = (VecDeque::new(), VecDeque::new());
        let answers = Answers::new("");
        Self { options, batch, again, sent, answers, began: Utc::now(), count: 0, bytes: 0, answered: 0 }
    }

    /// The next line to send.
    fn next(&mut self) -> Option<Line<B::Ticket>> {
        while let Some(line) = self.again.pop_front() {
            if self.batch.may_begin(&line.ticket) {
                return Some(line);
            }
            self.batch.not_begun(line.ticket);
        }
        while self.count < LINES_MAX && self.bytes < LINES_BYTES_MAX {
            let Next { action, ticket, is_repeat } = self.batch.next()?;
            self.count += 1;
            let now = Utc::now();
            match Change::of(&action, Attempt { now, is_repeat }) {
                Ok(change) => return Some(Line { action, ticket, change, leftover: None }),
                Err(outcome) => self.batch.done(ticket, outcome, (now, now)),
            }
        }
        None
    }

    /// Has the lines that were sent and not answered sent again; their answers may have been lost.
    fn send_again(&mut self) {
        while let Some(mut line) = self.sent.pop_back() {
            line.change.may_be_made();
            self.again.push_front(line);
        }
    }

    /// Ends all lines the same way.
    fn tell_all(&mut self, run: &Run) {
        while let Some(line) = self.sent.pop_front().or_else(|| self.again.pop_front()) {
            self.tell(line, run.clone());
        }
    }

    fn tell(&mut self, line: Line<B::Ticket>, run: Run) {
        let ended = Utc::now();
        let outcome = line.change.outcome(&line.action, run);
        self.batch.done(line.ticket, outcome, (self.began, ended));
        self.began = ended;
    }
}

impl<B: Batch> Dialogue for &mut Lines<'_, B> {
    fn next_turn(&mut self) -> Option<Vec<u8>> {
        if self.sent.len() >= self.batch.ahead_max() {
            return None;
        }
        let mut line = self.next()?;
        let text = line.text(self.options);
        self.bytes += text.len();
        self.sent.push_back(line);
        Some(text)
    }

    async fn wait_for_turn(&mut self) -> bool {
        self.count < LINES_MAX && self.bytes < LINES_BYTES_MAX && self.batch.wait().await
    }

    fn hear(&mut self, output: &[u8]) -> usize {
        let before = self.answered;
        for (status, said) in self.answers.read(output) {
            // A decky that has learnt the code can answer what was never asked.
            let Some(line) = self.sent.pop_front() else { break };
            self.tell(line, Run::answered(status, &said));
            self.answered += 1;
        }
        self.answered - before
    }
}

impl<R: RunCommand> Driver<R> {
    /// Performs actions of one decky by one exec, in their order, for as long as the batch has any, up to a limit.
    ///
    /// A line that hangs is ended and costs the others a fresh exec, and so does one that was due when the
    /// container went away; one that was due when the exec broke off is tried alone. `Err` means that the
    /// program stops at once: lines without an outcome go back to where they came from.
    pub async fn perform_batch(&self, batch: impl Batch) -> Result<(), Aborted> {
        let mut lines = Lines::new(batch, &self.options);
        let mut with_python = true;
        loop {
            let Some(first) = lines.next() else { return Ok(()) };
            let decky = first.action.executing_decky().clone();
            with_python &= lines.again.len() + lines.batch.expected() + 1 >= LINES_FOR_PYTHON;
            lines.again.push_front(first);
            lines.began = Utc::now();
            let Some(ending) = self.exec_batch(&mut lines, &decky, with_python).await? else {
                return Ok(());
            };
            if let Ending::Refused(run) = &ending {
                // Without the engine or the container all of them would end the same way.
                lines.tell_all(run);
                return Ok(());
            }
            let Some(mut due) = lines.sent.pop_front() else { continue };
            match ending {
                Ending::TimedOut(run) | Ending::Refused(run) | Ending::CutOff(run) => {
                    lines.tell(due, run.begun());
                }
                Ending::Broken if lines.batch.may_begin(&due.ticket) => {
                    // Python may be what cannot be relied on there.
                    with_python = false;
                    lines.began = Utc::now();
                    due.change.may_be_made();
                    let run = self.change_by(&due.action, &due.change, with_python).await?;
                    // The broken exec may have begun it.
                    lines.tell(due, run.begun());
                }
                Ending::Broken => lines.batch.not_begun(due.ticket),
            }
            lines.send_again();
        }
    }

    /// Sends lines to one exec; `None` where all of them were answered.
    async fn exec_batch<B: Batch>(
        &self,
        lines: &mut Lines<'_, B>,
        decky: &DeckyName,
        with_python: bool,
    ) -> Result<Option<Ending>, Aborted> {
        let mark = self.mark(decky);
        let code = Mark::draw();
        let container = format!("{decky}{}", self.options.container_suffix);
        let (inner, program) = script::changes(with_python);
        let mut argv = end::exec(&self.options, &container, &mark, true);
        argv.extend(inner.map(ToOwned::to_owned));
        lines.answers = Answers::new(code.as_str());
        lines.answered = 0;
        let began = Utc::now();
        let command = CommandLine {
            argv,
            stdin: Some(format!("{program}{}\n", code.as_str()).into_bytes()),
            stdout_bytes_max: 0,
            stderr_bytes_max: super::CAPTURE_BYTES_MAX,
            time_max: self.options.time_max,
        };
        let ended = tokio::select! {
            ended = self.commands.converse(command, &mut *lines) => Some(ended),
            () = self.aborted() => None,
        };
        let leftover = lines.sent.front().and_then(|line| line.leftover.as_ref());
        let end_inside =
            || end::end_inside(&self.commands, &self.options, &container, false, &mark, leftover);
        let ending = match ended {
            None => {
                end_inside().await;
                return Err(Aborted);
            }
            Some(Ended::TimedOut) => {
                Ending::TimedOut(Run::timed_out(end_inside().await, self.options.time_max))
            }
            Some(_) if lines.sent.is_empty() && lines.again.is_empty() => return Ok(None),
            Some(Ended::NotStarted(error)) => {
                Ending::Refused(Run::not_started(&self.options.container_cli, &error))
            }
            Some(Ended::Exited { status, stderr, .. }) => {
                match self.broken(&container, began, status, &stderr.bytes).await {
                    // An exec that has answered was begun, whatever the client says.
                    Some(run) if run.is_refused && lines.answered == 0 => Ending::Refused(run),
                    Some(run) => Ending::CutOff(run),
                    None => {
                        // The line that was due may have left something behind.
                        end_inside().await;
                        Ending::Broken
                    }
                }
            }
        };
        Ok(Some(ending))
    }
}

/// Reads what a batch prints: for each line what it said, then `<code> <number> <status>`.
struct Answers {
    code: Vec<u8>,
    next: usize,
    said: Vec<u8>,
    /// Where in `said` the line begins that is being read.
    line: usize,
}

impl Answers {
    fn new(code: &str) -> Self {
        Self { code: code.as_bytes().to_vec(), next: 0, said: Vec::new(), line: 0 }
    }

    /// The answers that end in `output`: each one's status, and what was said.
    fn read(&mut self, output: &[u8]) -> Vec<(i32, Vec<u8>)> {
        let mut answers = Vec::new();
        for byte in output {
            if *byte != b'\n' {
                // What is beyond the cap is dropped, but a line that begins after it is read all the same.
                if self.said.len() < SAID_BYTES_MAX || self.said.len() - self.line < self.code.len() + 32 {
                    self.said.push(*byte);
                }
                continue;
            }
            match self.status() {
                Some(status) => {
                    let said = self.said[..self.line].strip_suffix(b"\n").unwrap_or_default();
                    answers.push((status, said.to_vec()));
                    self.next += 1;
                    self.said.clear();
                }
                None if self.said.len() < SAID_BYTES_MAX => self.said.push(b'\n'),
                None => self.said.truncate(self.line),
            }
            self.line = self.said.len();
        }
        answers
    }

    /// The status, if the line is the trailer that is due.
    fn status(&self) -> Option<i32> {
        let rest = self.said[self.line..].strip_prefix(self.code.as_slice())?;
        let (number, status) = std::str::from_utf8(rest).ok()?.strip_prefix(' ')?.split_once(' ')?;
        (number.parse() == Ok(self.next)).then_some(())?;
        status.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers(output: &[u8], chunk: usize) -> Vec<(i32, String)> {
        let mut found = Vec::new();
        let mut answers = Answers::new("c0de");
        for chunk in output.chunks(chunk) {
            let read = answers.read(chunk).into_iter();
            found.extend(read.map(|(status, said)| (status, String::from_utf8_lossy(&said).into_owned())));
        }
        found
    }

    #[test]
    fn each_answer_has_its_status_and_what_was_said_however_the_output_is_cut() {
        let output = b"\nc0de 0 0\nno room\non disk\nc0de 1 1\n\nc0de 2 73\n";
        for chunk in 1..output.len() {
            let expected = [(0, String::new()), (1, "no room\non disk".to_owned()), (73, String::new())];
            assert_eq!(answers(output, chunk), expected);
        }
    }

    #[test]
    fn what_is_no_trailer_or_not_the_one_that_is_due_answers_nothing() {
        assert_eq!(answers(b"c0de 1 0\nc0de x 0\nc0de 0\nC0DE 0 0\n c0de 0 0\nc0de 0 0", 7), []);
        assert_eq!(answers(b"c0de 1 0\nc0de 0 0\n", 7), [(0, "c0de 1 0".to_owned())]);
    }

    #[test]
    fn a_flood_is_cut_and_what_comes_after_it_is_read() {
        let mut output = vec![b'x'; 300_000];
        output.extend(b"\nc0de 0 1\n\nc0de 1 0\n");
        let found = answers(&output, 4096);
        assert_eq!(found.iter().map(|(status, _)| *status).collect::<Vec<_>>(), [1, 0]);
        assert!(found[0].1.len() <= SAID_BYTES_MAX + 64);
    }
}
