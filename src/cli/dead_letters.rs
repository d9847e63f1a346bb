//! `deckswain dead-letters`: looking into the dead letters, and doing something about them.

mod letter;
mod select;

use std::io::{IsTerminal as _, Write as _};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Subcommand};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use self::letter::Letter;
use self::select::Selection;
use super::output::{Printer, plain, progress_bar, table};
use super::{BrokerSettings, EXIT_ACTION_FAILED, EXIT_BROKER, EXIT_OK, Failed, PUBLISHES_AT_ONCE, runtime};
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
    print(&letters, options.json);
    Ok(EXIT_OK)
}

fn print(letters: &[Letter], as_json: bool) {
    let mut printer = Printer::default();
    if as_json {
        letters.iter().for_each(|letter| printer.line(&letter.to_json().to_string()));
    } else if letters.is_empty() {
        eprintln!("no dead letters");
    } else {
        printer.line(table(&Letter::HEAD, letters.iter().map(Letter::row)).trim_end());
    }
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
        return Err(Failed {
            status: EXIT_ACTION_FAILED,
            what: format!("there is no dead letter of action {}", plain(&options.id)),
            hint: Some("deckswain dead-letters list".to_owned()),
        });
    }
    let mut printer = Printer::default();
    found.iter().for_each(|text| printer.line(text));
    Ok(EXIT_OK)
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
    eprintln!("exported {exported}");
    if left > 0 {
        eprintln!(
            "error: {left} are no JSON objects and were left out; `dead-letters show --json` has their bytes"
        );
        return Ok(EXIT_ACTION_FAILED);
    }
    Ok(EXIT_OK)
}

/// Does something about each selected dead letter, many at once; oldest first.
async fn act<F, D>(options: &ActOptions, rate: Option<NonZeroU32>, verb: &str, deed: F) -> Result<u8, Failed>
where
    F: Fn(DeadLetter) -> D,
    D: Future<Output = Result<(), String>> + Send + 'static,
{
    let mut chosen = Vec::new();
    look(&options.broker, |letter, _| {
        if options.selection.wants(&letter) && chosen.len() < options.selection.limit() {
            chosen.push(letter);
        }
    })
    .await?;
    if options.dry_run {
        print(&chosen, false);
        eprintln!("would {verb} {}", chosen.len());
        return Ok(EXIT_OK);
    }
    if chosen.len() > 1 && !options.yes {
        confirm(verb, chosen.len())?;
    }
    let total = chosen.len();
    drop(chosen);

    let mut walk = QueueWalk::begin(&options.broker.broker, &dead_queue(&options.broker)).await?;
    let progress = progress_bar(total as u64, verb);
    let mut pace = rate.map(|rate| interval(Duration::from_secs(1) / rate.get()));
    if let Some(pace) = &mut pace {
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    }
    let slots = Arc::new(Semaphore::new(PUBLISHES_AT_ONCE));
    let mut running: JoinSet<Result<(), String>> = JoinSet::new();
    let (mut begun, mut done, mut trouble) = (0, 0_usize, None);
    let mut ended = |ended: Result<Result<(), String>, tokio::task::JoinError>| match ended {
        Ok(Ok(())) => {
            done += 1;
            progress.inc(1);
        }
        Ok(Err(why)) => trouble = Some(why),
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    };
    let mut failed = false;
    while begun < total && !failed {
        let Some(delivery) = walk.next().await? else { break };
        if !options.selection.wants(&Letter::of(&delivery)) {
            continue;
        }
        if let Some(pace) = &mut pace {
            pace.tick().await;
        }
        let Ok(slot) = slots.clone().acquire_owned().await else { break };
        while let Some(next) = running.try_join_next() {
            failed |= matches!(next, Ok(Err(_)));
            ended(next);
        }
        let deed = deed(delivery);
        running.spawn(async move {
            let _slot = slot;
            deed.await
        });
        begun += 1;
    }
    while let Some(next) = running.join_next().await {
        ended(next);
    }
    progress.finish_and_clear();
    // What was not acked goes back; a broker that is gone gives it back by itself.
    let closed = walk.end(u32::try_from(done).unwrap_or(u32::MAX)).await;
    eprintln!("{verb}: {done} of {total} done");
    if let Some(why) = trouble {
        let what = format!("stopped: {why}");
        return Err(Failed {
            status: EXIT_BROKER,
            what,
            hint: Some(format!("what was not done is still there: {verb} again")),
        });
    }
    closed?;
    Ok(EXIT_OK)
}

fn confirm(verb: &str, count: usize) -> Result<(), Failed> {
    if !std::io::stdin().is_terminal() {
        return Err(Failed::usage(format!(
            "this would {verb} {count} dead letters, and there is nobody to ask"
        ))
        .hint("--yes, or first --dry-run"));
    }
    eprint!("{verb} {count} dead letters? [y/N] ");
    let mut answer = String::new();
    let asked = std::io::stderr().flush().and_then(|()| std::io::stdin().read_line(&mut answer));
    match asked {
        Ok(_) if matches!(answer.trim(), "y" | "Y" | "yes") => Ok(()),
        _ => Err(Failed::usage("nothing was done")),
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
