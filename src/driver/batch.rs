//! Several changes to one decky by one exec, each with the outcome that it would have had alone.

use chrono::{DateTime, Utc};

use super::{Aborted, Change, Driver, Mark, Run, end, script};
use crate::action::{Action, Task};
use crate::result::{FailureClass, Outcome};
use crate::subprocess::{Captured, CommandLine, Ended, RunCommand};

/// The largest content that travels in a batch, in bytes: the shell reads its lines byte by byte,
/// and beyond this that costs more than an exec.
const CONTENT_BYTES_MAX: usize = 32 * 1024;
/// How much of what one line says is kept, in bytes.
const SAID_BYTES_MAX: usize = super::CAPTURE_BYTES_MAX;

/// An action of a batch that has come to its end.
#[derive(Debug)]
pub struct Done {
    /// Its place in the batch.
    pub index: usize,
    /// What came of it.
    pub outcome: Outcome,
    /// When its turn began and ended.
    pub span: (DateTime<Utc>, DateTime<Utc>),
}

/// Whether an action can share an exec with others.
#[must_use]
pub fn can_share(action: &Action) -> bool {
    let bytes = match &action.task {
        Task::File(file) => file.content.len(),
        Task::Edit(edit) => edit.previous_body.len(),
        Task::Remove(_) => 0,
        Task::Traffic(_) | Task::Read(_) => return false,
    };
    // A line of the batch cannot hold a line end; the content's are escaped, a path's are not.
    bytes <= CONTENT_BYTES_MAX && action.path().is_some_and(|path| !path.as_str().contains('\n'))
}

/// How one exec of a batch ended.
enum Ending {
    /// This line took longer than it may; it has been ended on both sides.
    TimedOut(Run),
    /// The exec ended, or its answers made no sense, before this line was answered.
    Broken(Run),
}

/// A line of the batch, ready to be sent.
struct Line<'a> {
    index: usize,
    action: &'a Action,
    change: Change<'a>,
    text: String,
    temporary: Option<String>,
}

impl<R: RunCommand> Driver<R> {
    /// Performs actions of one decky that [`can_share`] an exec, in their order, and tells of each as it ends.
    ///
    /// What hangs is ended and costs the others a fresh exec; what breaks off is tried alone.
    /// What `may_begin` says no to is not begun, and not told of. `Err` means that the program stops
    /// at once: what was not told of goes back to where it came from.
    pub async fn perform_batch(
        &self,
        actions: &[&Action],
        now: DateTime<Utc>,
        may_begin: impl Fn(&Action) -> bool + Send + Sync,
        mut done: impl FnMut(Done) + Send,
    ) -> Result<(), Aborted> {
        let mut lines = Vec::with_capacity(actions.len());
        for (index, action) in actions.iter().enumerate() {
            match Change::of(action, now) {
                Ok(change) => lines.push(Line::new(index, action, change)),
                Err(outcome) => done(Done { index, outcome, span: (now, now) }),
            }
        }
        loop {
            lines.retain(|line| may_begin(line.action));
            if lines.is_empty() {
                return Ok(());
            }
            let mut began = Utc::now();
            let (answered, ending) = self.exec_batch(&lines, &mut began, &may_begin, &mut done).await?;
            lines.drain(..answered);
            let Some(due) = lines.first() else { return Ok(()) };
            let mut tell = |line: &Line<'_>, run: Run, began| {
                let outcome = line.change.outcome(line.action, run);
                done(Done { index: line.index, outcome, span: (began, Utc::now()) });
            };
            match ending {
                Ending::TimedOut(run) => tell(due, run, began),
                // Without the engine or the container all of them would end the same way.
                Ending::Broken(run) if answered == 0 && is_infrastructure(&run) => {
                    lines.iter().for_each(|line| tell(line, run.clone(), began));
                    return Ok(());
                }
                Ending::Broken(_) if may_begin(due.action) => {
                    let began = Utc::now();
                    let run = self.change(due.action, &due.change).await?;
                    tell(due, run, began);
                }
                Ending::Broken(_) => continue,
            }
            lines.remove(0);
        }
    }

    /// Sends the lines to one exec; gives how many were answered.
    async fn exec_batch(
        &self,
        lines: &[Line<'_>],
        began: &mut DateTime<Utc>,
        may_begin: &(impl Fn(&Action) -> bool + Sync),
        done: &mut (impl FnMut(Done) + Send),
    ) -> Result<(usize, Ending), Aborted> {
        let mark = Mark::draw();
        let code = Mark::draw();
        let container = format!("{}{}", lines[0].action.executing_decky(), self.options.container_suffix);
        let mut argv = vec![self.options.container_cli.clone(), "exec".to_owned(), "-i".to_owned()];
        argv.extend(mark.environment());
        argv.extend([container.clone(), "sh".to_owned(), "-c".to_owned(), script::batch()]);
        let turns = lines.iter().map(|line| format!("{}\n", line.text).into_bytes()).collect();
        let mut answers = Answers::new(code.as_str());
        let mut answered = 0;
        let command = CommandLine {
            argv,
            stdin: Some(format!("{}\n", code.as_str()).into_bytes()),
            stdout_bytes_max: 0,
            stderr_bytes_max: super::CAPTURE_BYTES_MAX,
            time_max: self.options.time_max,
        };
        let running = self.commands.run_in_turns(command, turns, |output| {
            let before = answered;
            answers.read(output, |status, said| {
                // A decky that has learnt the code can answer what was never asked.
                if let Some(line) = lines.get(answered) {
                    let run = Run::exited(status, Captured::default(), said);
                    let ended = Utc::now();
                    let outcome = line.change.outcome(line.action, run);
                    done(Done { index: line.index, outcome, span: (*began, ended) });
                    *began = ended;
                    answered += 1;
                }
            });
            match lines.get(answered) {
                Some(next) if !may_begin(next.action) => None,
                _ => Some(answered - before),
            }
        });
        let ended = tokio::select! {
            ended = running => Some(ended),
            () = self.aborted() => None,
        };
        let temporary = lines.get(answered).and_then(|line| line.temporary.as_deref());
        let end_inside =
            || end::end_inside(&self.commands, &self.options, &container, "sh", &mark, temporary);
        let ending = match ended {
            None => {
                end_inside().await;
                return Err(Aborted);
            }
            Some(Ended::TimedOut) => {
                Ending::TimedOut(Run::timed_out(end_inside().await, self.options.time_max))
            }
            Some(Ended::NotStarted(error)) => {
                Ending::Broken(Run::not_started(&self.options.container_cli, &error))
            }
            Some(Ended::Exited { status, stdout, stderr }) => {
                Ending::Broken(Run::exited(status, stdout, &stderr.bytes))
            }
        };
        Ok((answered, ending))
    }
}

fn is_infrastructure(run: &Run) -> bool {
    run.failure.as_ref().is_some_and(|failure| failure.class == FailureClass::Infrastructure)
}

impl<'a> Line<'a> {
    fn new(index: usize, action: &'a Action, change: Change<'a>) -> Self {
        let mark = Mark::draw();
        let plant = change.plant(mark.as_str());
        let text = plant.as_ref().map_or_else(|| script::removal(change.path), script::Plant::line);
        let temporary = plant.map(|plant| plant.temporary());
        Self { index, action, change, text, temporary }
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

    fn read(&mut self, output: &[u8], mut answer: impl FnMut(i32, &[u8])) {
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
                    answer(status, said);
                    self.next += 1;
                    self.said.clear();
                }
                None if self.said.len() < SAID_BYTES_MAX => self.said.push(b'\n'),
                None => self.said.truncate(self.line),
            }
            self.line = self.said.len();
        }
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
            answers
                .read(chunk, |status, said| found.push((status, String::from_utf8_lossy(said).into_owned())));
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
