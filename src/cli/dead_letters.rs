//! `deckswain dead-letters`: looking into the dead letters, and doing something about them.

mod act;
mod body;
mod letter;
mod select;

use std::num::NonZeroU32;

use clap::{Args, Subcommand};

use self::act::{Deed, act};
use self::letter::Letter;
use self::select::Selection;
use super::escape::cell;
use super::output::{Printer, say, table};
use super::{BrokerSettings, EXIT_ACTION_FAILED, EXIT_OK, Failed, runtime};
use crate::broker::{AmqpSettle, Delivery, Queue, QueueWalk, Topology};

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
                act(&options.act, options.rate, Deed::replay(&options.act.broker)).await
            }
            Command::Discard(options) => act(options, None, Deed::Discard).await,
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
    let mut walk = QueueWalk::begin(&broker.url(), &dead_queue(broker)).await?;
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
        letters.iter().for_each(|letter| printer.json(&letter.to_json().to_string()));
    } else if letters.is_empty() {
        say("no dead letters");
    } else {
        let cells = |letter: &Letter| letter.row().iter().map(|text| cell(text)).collect();
        let rows = letters.iter().map(cells);
        printer.line(table(&Letter::HEAD, rows).trim_end());
    }
    printer.end()
}

async fn show(options: &ShowOptions) -> Result<u8, Failed> {
    let mut found = Vec::new();
    look(&options.broker, |letter, delivery| {
        if letter.is_of(&options.id) {
            found.push(if options.json { letter.to_json_whole(&delivery) } else { letter.text(&delivery) });
        }
    })
    .await?;
    if found.is_empty() {
        return Err(Failed::new(
            EXIT_ACTION_FAILED,
            format!("there is no dead letter of action {}", options.id),
        )
        .why("it was replayed or discarded, or has not died")
        .hint("`deckswain dead-letters list`"));
    }
    let mut printer = Printer::default();
    found.iter().for_each(|text| if options.json { printer.json(text) } else { printer.line(text) });
    printer.end().map(|()| EXIT_OK)
}

async fn export(options: &ExportOptions) -> Result<u8, Failed> {
    let (mut printer, mut exported, mut left) = (Printer::default(), 0, 0);
    look(&options.broker, |letter, delivery| {
        if options.selection.wants(&letter) && exported < options.selection.limit() {
            match letter.to_submit(&delivery) {
                Some(body) => {
                    printer.json(&body);
                    exported += 1;
                }
                None => left += 1,
            }
        }
    })
    .await?;
    printer.end()?;
    say(format_args!("exported {exported}"));
    if left > 0 {
        return Err(Failed::new(EXIT_ACTION_FAILED, format!("{left} dead letters were left out"))
            .why("they are no JSON objects, so `submit` could not read them")
            .hint("`deckswain dead-letters show --json` has their bytes"));
    }
    Ok(EXIT_OK)
}
