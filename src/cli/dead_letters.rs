//! `deckswain dead-letters`: looking into the dead letters, and doing something about them.

mod letter;
mod select;

use std::collections::HashMap;
use std::hash::RandomState;
use std::io::{IsTerminal as _, Write as _};
use std::num::NonZeroU32;
use std::time::Duration;

use clap::{Args, Subcommand};
use indicatif::ProgressBar;
use tokio::time::{MissedTickBehavior, interval};

use self::letter::Letter;
use self::select::Selection;
use super::in_flight::InFlight;
use super::output::{Printer, plain, progress_bar, table};
use super::{BrokerSettings, EXIT_ACTION_FAILED, EXIT_BROKER, EXIT_OK, Failed, runtime};
use crate::broker::{
    AmqpPublisher, AmqpSettle, Delivery, Publication, Publish as _, Queue, QueueWalk, Settle as _, Topology,
};

const AFTER_HELP: &str = "\
Looking never takes a message away, however often it is done. While a command runs,
what it has read is held back from others; killed, it gives all of it back.

Examples:
  deckswain dead-letters list --class infrastructure --since 2h
  deckswain dead-letters replay --decky 'web-*' --dry-run
  deckswain dead-letters replay --decky 'web-*' --rate 50 --yes
  deckswain dead-letters export --class invalid > invalid.jsonl";

#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List them, newest first
    List(ListOptions),
    /// Show one whole: where it came from, why it died, its headers and its body
    Show(ShowOptions),
    /// Publish them again as actions, each removed once the broker has confirmed it
    Replay(ReplayOptions),
    /// Remove them for good
    Discard(ActOptions),
    /// Write their bodies in a form that `submit` reads; they stay where they are
    Export(ExportOptions),
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  deckswain dead-letters list --kind file --limit 20")]
struct ListOptions {
    #[command(flatten)]
    selection: Selection,
    /// One JSON object a line instead of a table
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    broker: BrokerSettings,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  deckswain dead-letters show 00000000-0000-4000-8000-000000000002")]
struct ShowOptions {
    /// The action id
    id: String,
    /// One JSON object instead of text; a body that is no JSON comes as base64
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    broker: BrokerSettings,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  deckswain dead-letters discard --class invalid --until 2026-01-31T00:00:00Z"
)]
struct ActOptions {
    #[command(flatten)]
    selection: Selection,
    /// Say what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
    #[command(flatten)]
    broker: BrokerSettings,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  deckswain dead-letters replay --id 00000000-0000-4000-8000-000000000002")]
struct ReplayOptions {
    #[command(flatten)]
    act: ActOptions,
    /// At most so many a second
    #[arg(long, value_name = "N")]
    rate: Option<NonZeroU32>,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  deckswain dead-letters export --class infrastructure | deckswain submit")]
struct ExportOptions {
    #[command(flatten)]
    selection: Selection,
    #[command(flatten)]
    broker: BrokerSettings,
}

pub fn run(options: &Options) -> Result<u8, Failed> {
    runtime()?.block_on(async {
        match &options.command {
            Command::List(options) => list(options).await,
            Command::Show(options) => show(options).await,
            Command::Replay(options) => {
                let replay = Replay::new(&options.act.broker);
                act(&options.act, options.rate, "replay", move |letter| replay.clone().take(letter)).await
            }
            Command::Discard(options) => act(options, None, "discard", discard).await,
            Command::Export(options) => export(options).await,
        }
    })
}

fn dead_queue(broker: &BrokerSettings) -> Queue {
    Topology::of(&broker.prefix).dead_queue()
}

type DeadLetter = Delivery<AmqpSettle>;

/// Reads all dead letters and gives them back.
async fn look(broker: &BrokerSettings, mut visit: impl FnMut(Letter, DeadLetter)) -> Result<(), Failed> {
    let mut walk = QueueWalk::begin(&broker.broker, &dead_queue(broker)).await?;
    while let Some(delivery) = walk.next().await? {
        visit(Letter::of(&delivery), delivery);
    }
    Ok(walk.end(0).await?)
}

async fn list(options: &ListOptions) -> Result<u8, Failed> {
    let mut letters = Vec::new();
    look(&options.broker, |letter, _| {
        if options.selection.wants(&letter) {
            letters.push(letter);
        }
    })
    .await?;
    // What the broker tells to the second is behind what a worker tells to the millisecond; the
    // later in the queue, the newer.
    letters.reverse();
    letters.sort_by_key(|letter| std::cmp::Reverse(letter.died_at));
    letters.truncate(options.selection.limit());
    print(&letters, options.json).map(|()| EXIT_OK)
}

fn print(letters: &[Letter], as_json: bool) -> Result<(), Failed> {
    let mut printer = Printer::default();
    if as_json {
        letters.iter().for_each(|letter| printer.line(&letter.to_json().to_string()));
    } else if letters.is_empty() {
        eprintln!("no dead letters");
    } else {
        printer.line(table(&Letter::HEAD, letters.iter().map(Letter::row)).trim_end());
    }
    printer.end()
}

async fn show(options: &ShowOptions) -> Result<u8, Failed> {
    let mut found = Vec::new();
    look(&options.broker, |letter, delivery| {
        if letter.action_id == options.id {
            found.push(if options.json {
                letter.to_json_whole(&delivery).to_string()
            } else {
                letter.text(&delivery)
            });
        }
    })
    .await?;
    if found.is_empty() {
        return Err(Failed::new(
            EXIT_ACTION_FAILED,
            format!("there is no dead letter of action {}", plain(&options.id)),
        )
        .why("it was replayed or discarded, or has not died")
        .hint("`deckswain dead-letters list`"));
    }
    let mut printer = Printer::default();
    found.iter().for_each(|text| printer.line(text));
    printer.end().map(|()| EXIT_OK)
}

async fn export(options: &ExportOptions) -> Result<u8, Failed> {
    let (mut printer, mut exported, mut left) = (Printer::default(), 0, 0);
    look(&options.broker, |letter, delivery| {
        if options.selection.wants(&letter) && exported < options.selection.limit() {
            match letter.to_submit(&delivery) {
                Some(body) => {
                    printer.line(&body);
                    exported += 1;
                }
                None => left += 1,
            }
        }
    })
    .await?;
    printer.end()?;
    eprintln!("exported {exported}");
    if left > 0 {
        return Err(Failed::new(EXIT_ACTION_FAILED, format!("{left} dead letters were left out"))
            .why("they are no JSON objects, so `submit` could not read them")
            .hint("`deckswain dead-letters show --json` has their bytes"));
    }
    Ok(EXIT_OK)
}

/// Does something about each selected dead letter, many at once; oldest first.
async fn act<F, D>(options: &ActOptions, rate: Option<NonZeroU32>, verb: &str, deed: F) -> Result<u8, Failed>
where
    F: Fn(DeadLetter) -> D,
    D: Future<Output = Result<(), String>> + Send + 'static,
{
    let hasher = RandomState::new();
    let (mut letters, mut chosen) = (Vec::new(), HashMap::<u64, usize>::new());
    look(&options.broker, |letter, delivery| {
        if options.selection.wants(&letter) && letters.len() < options.selection.limit() {
            *chosen.entry(letter.fingerprint(&delivery, &hasher)).or_default() += 1;
            letters.push(letter);
        }
    })
    .await?;
    let total = letters.len();
    if options.dry_run {
        print(&letters, false)?;
        eprintln!("would {verb} {total}");
        return Ok(EXIT_OK);
    }
    if total > 1 && !options.yes {
        confirm(verb, total)?;
    }
    drop(letters);

    let mut walk = QueueWalk::begin(&options.broker.broker, &dead_queue(&options.broker)).await?;
    let mut pace = rate.map(|rate| interval(Duration::from_secs(1) / rate.get()));
    if let Some(pace) = &mut pace {
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    }
    let mut deeds = Deeds {
        running: InFlight::new(),
        done: 0,
        trouble: None,
        progress: progress_bar(total as u64, verb),
    };
    let mut left = total;
    // Only what was counted, and confirmed, is touched: the queue may hold others by now.
    while left > 0 && deeds.trouble.is_none() {
        let Some(delivery) = walk.next().await? else { break };
        match chosen.get_mut(&Letter::of(&delivery).fingerprint(&delivery, &hasher)) {
            Some(count @ 1..) => *count -= 1,
            _ => continue,
        }
        if let Some(pace) = &mut pace {
            pace.tick().await;
        }
        deeds.begin(deed(delivery)).await;
        left -= 1;
    }
    let (done, trouble) = deeds.end().await;
    // What was not acked goes back; a broker that is gone gives it back by itself.
    let closed = walk.end(u32::try_from(done).unwrap_or(u32::MAX)).await;
    eprintln!("{verb}: {done} of {total} done");
    if let Some(why) = trouble {
        return Err(Failed::new(EXIT_BROKER, format!("the {verb} stopped"))
            .why(why)
            .hint(format!("what was not done is still there: {verb} again")));
    }
    if left > 0 {
        eprintln!("{left} were gone before their turn: another command took them");
    }
    closed?;
    Ok(EXIT_OK)
}

/// What is being done about dead letters, and how it has gone so far.
struct Deeds {
    running: InFlight<Result<(), String>>,
    done: usize,
    trouble: Option<String>,
    progress: ProgressBar,
}

impl Deeds {
    async fn begin(&mut self, deed: impl Future<Output = Result<(), String>> + Send + 'static) {
        for ended in self.running.push(deed).await {
            self.count(ended);
        }
    }

    fn count(&mut self, ended: Result<(), String>) {
        match ended {
            Ok(()) => {
                self.done += 1;
                self.progress.inc(1);
            }
            Err(why) => self.trouble = Some(why),
        }
    }

    async fn end(mut self) -> (usize, Option<String>) {
        while let Some(ended) = self.running.next().await {
            self.count(ended);
        }
        self.progress.finish_and_clear();
        (self.done, self.trouble)
    }
}

fn confirm(verb: &str, count: usize) -> Result<(), Failed> {
    if !std::io::stdin().is_terminal() {
        return Err(Failed::usage("nothing was done")
            .why(format!("this would {verb} {count} dead letters, and there is nobody to ask"))
            .hint("--yes, or first --dry-run"));
    }
    eprint!("{verb} {count} dead letters? [y/N] ");
    let mut answer = String::new();
    let asked = std::io::stderr().flush().and_then(|()| std::io::stdin().read_line(&mut answer));
    match asked {
        Ok(_) if matches!(answer.trim(), "y" | "Y" | "yes") => Ok(()),
        _ => Err(Failed::usage("nothing was done").why("the answer was not yes")),
    }
}

async fn discard(letter: DeadLetter) -> Result<(), String> {
    letter.settle.ack().await.map_err(|error| error.to_string())
}

/// Publishes a dead letter as an action again; only then is it gone from the dead letters.
#[derive(Clone)]
struct Replay {
    publisher: AmqpPublisher,
    exchange: String,
}

impl Replay {
    fn new(broker: &BrokerSettings) -> Self {
        let publisher = AmqpPublisher::to_what_is_there(&broker.broker);
        Self { publisher, exchange: Topology::of(&broker.prefix).actions }
    }

    async fn take(self, letter: DeadLetter) -> Result<(), String> {
        let (routing_key, properties) = letter::to_replay(&letter);
        let publication = Publication {
            exchange: &self.exchange,
            routing_key: &routing_key,
            properties: &properties,
            body: &letter.body,
        };
        self.publisher.publish(publication).await.map_err(|error| error.to_string())?;
        letter.settle.ack().await.map_err(|error| error.to_string())
    }
}
