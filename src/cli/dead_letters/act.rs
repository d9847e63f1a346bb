//! Replaying and discarding: each letter is removed only when its deed is done.

use std::collections::HashMap;
use std::hash::RandomState;
use std::io::IsTerminal as _;
use std::num::NonZeroU32;
use std::time::Duration;

use indicatif::ProgressBar;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use super::letter::{Letter, to_replay};
use super::{ActOptions, DeadLetter, dead_queue, look, print};
use crate::broker::{
    AmqpPublisher, BrokerError, Properties, Publication, PublishError, QueueWalk, Settle as _, Topology,
    together_count,
};
use crate::cli::output::{ask, progress_bar, say};
use crate::cli::{BrokerSettings, EXIT_ACTION_FAILED, EXIT_BROKER, EXIT_OK, Failed};

/// How many letters wait for the deed at most, beyond those that it is being done for.
const WAITING_MAX: usize = 256;

/// A deed done for dead letters.
pub enum Deed {
    /// Publishes each as an action again.
    Replay(AmqpPublisher, String),
    /// Does nothing before the letter is removed.
    Discard,
}

impl Deed {
    /// Replays to the prefix of these settings.
    pub fn replay(broker: &BrokerSettings) -> Self {
        let publisher = AmqpPublisher::to_what_is_there(&broker.url());
        Self::Replay(publisher, Topology::of(&broker.prefix).actions)
    }

    fn verb(&self) -> &'static str {
        match self {
            Self::Replay(..) => "replay",
            Self::Discard => "discard",
        }
    }

    /// Whether it can be done for the letter.
    fn suits(&self, letter: &Letter) -> bool {
        match self {
            Self::Replay(..) => !letter.is_unreadable,
            Self::Discard => true,
        }
    }

    /// Does it for some letters, in their order; returns the outcome of each.
    async fn take(&self, letters: &[DeadLetter]) -> Vec<Result<(), PublishError>> {
        let Self::Replay(publisher, exchange) = self else { return vec![Ok(()); letters.len()] };
        let anew: Vec<(String, Properties)> = letters.iter().map(to_replay).collect();
        let publications: Vec<Publication<'_>> = letters
            .iter()
            .zip(&anew)
            .map(|(letter, (routing_key, properties))| Publication {
                exchange,
                routing_key,
                properties,
                body: &letter.body,
            })
            .collect();
        publisher.publish_in_order(&publications).await
    }
}

/// Does a deed for each selected dead letter, oldest first.
pub async fn act(options: &ActOptions, rate: Option<NonZeroU32>, deed: Deed) -> Result<u8, Failed> {
    let (verb, hasher) = (deed.verb(), RandomState::new());
    let (mut letters, mut chosen) = (Vec::new(), HashMap::<u64, usize>::new());
    let mut unreadable = 0;
    look(&options.broker, |letter, delivery| {
        let is_wanted = options.selection.wants(&letter);
        if is_wanted && !deed.suits(&letter) {
            unreadable += 1;
        } else if is_wanted && letters.len() < options.selection.limit() {
            *chosen.entry(letter.fingerprint(&delivery, &hasher)).or_default() += 1;
            letters.push(letter);
        }
    })
    .await?;
    let total = letters.len();
    if options.dry_run {
        print(&letters, false)?;
        say(format_args!("would {verb} {total}"));
        return left_unreadable(unreadable);
    }
    if total > 1 && !options.yes {
        confirm(verb, total)?;
    }
    drop(letters);

    let mut walk = QueueWalk::begin(&options.broker.url(), &dead_queue(&options.broker)).await?;
    let (sender, waiting) = mpsc::channel(WAITING_MAX);
    let doing = tokio::spawn(do_all(deed, waiting, progress_bar(total as u64, verb)));
    // Only what was counted, and confirmed, is touched: the queue may hold others by now.
    let is_chosen = |letter: &DeadLetter| {
        let count = chosen.get_mut(&Letter::of(letter).fingerprint(letter, &hasher));
        count.filter(|count| **count > 0).map(|count| *count -= 1).is_some()
    };
    let read = hand_over(&mut walk, total, rate, is_chosen, sender).await;
    let Done { done, left_out, trouble } =
        doing.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
    // What was not acked goes back; a broker that is gone gives it back by itself.
    let closed = walk.end(u32::try_from(done).unwrap_or(u32::MAX)).await;
    say(format_args!("{verb}: {done} of {total} done"));
    if let Some(why) = trouble {
        return Err(Failed::new(EXIT_BROKER, format!("the {verb} stopped"))
            .why(why)
            .hint(format!("what was not done is still there: {verb} again")));
    }
    let left = read?;
    if left > 0 {
        say(format_args!("{left} were gone before their turn: another command took them"));
    }
    closed?;
    match left_out {
        None => left_unreadable(unreadable),
        Some(why) => Err(Failed::new(EXIT_BROKER, "the broker did not take every dead letter")
            .why(why)
            .hint(format!("those named above are still there: mend that, and {verb} again"))),
    }
}

/// Ends a command that left so many letters where they are because they cannot be published unchanged.
fn left_unreadable(count: usize) -> Result<u8, Failed> {
    if count == 0 {
        return Ok(EXIT_OK);
    }
    let left = format!("{count} dead letters cannot be replayed and stay where they are");
    Err(Failed::new(EXIT_ACTION_FAILED, left)
        .why("some of their properties cannot be read, so they cannot be published unchanged")
        .hint("`deckswain dead-letters show` names the properties; `export | submit` publishes the bodies with new properties, and `discard` removes the letters"))
}

/// Reads the queue and hands over the chosen letters, at most `rate` a second; returns how many of `total`
/// were not found.
async fn hand_over(
    walk: &mut QueueWalk,
    total: usize,
    rate: Option<NonZeroU32>,
    mut is_chosen: impl FnMut(&DeadLetter) -> bool,
    to: mpsc::Sender<DeadLetter>,
) -> Result<usize, BrokerError> {
    let mut pace = rate.map(|rate| interval(Duration::from_secs(1) / rate.get()));
    if let Some(pace) = &mut pace {
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    }
    let mut left = total;
    while left > 0 {
        let Some(letter) = walk.next().await? else { break };
        if !is_chosen(&letter) {
            continue;
        }
        if let Some(pace) = &mut pace {
            pace.tick().await;
        }
        if to.send(letter).await.is_err() {
            break;
        }
        left -= 1;
    }
    Ok(left)
}

/// How far a deed has come.
#[derive(Default)]
struct Done {
    done: usize,
    /// Why the first letter that the broker would not take was left where it is.
    left_out: Option<String>,
    /// Why the deed was not done for the rest.
    trouble: Option<String>,
}

/// Does the deed for letters as they come, a group at a time, and removes each from the dead letters.
async fn do_all(deed: Deed, mut waiting: mpsc::Receiver<DeadLetter>, progress: ProgressBar) -> Done {
    let mut so_far = Done::default();
    let mut letters = Vec::new();
    while so_far.trouble.is_none() && waiting.recv_many(&mut letters, WAITING_MAX).await > 0 {
        while so_far.trouble.is_none() && !letters.is_empty() {
            let count = together_count(letters.iter().map(|letter| letter.body.len()));
            do_some(&deed, letters.drain(..count).collect(), &mut so_far, &progress).await;
        }
    }
    progress.finish_and_clear();
    so_far
}

async fn do_some(deed: &Deed, letters: Vec<DeadLetter>, so_far: &mut Done, progress: &ProgressBar) {
    let outcomes = deed.take(&letters).await;
    let mut acks = JoinSet::new();
    for (letter, outcome) in letters.into_iter().zip(outcomes) {
        match outcome {
            Ok(()) => drop(acks.spawn(letter.settle.ack())),
            Err(why) if why.is_of_the_message() => {
                let id = Letter::of(&letter).action_id;
                progress.suspend(|| say(format_args!("error: left where it is: {id}: {why}")));
                so_far.left_out.get_or_insert(why.to_string());
            }
            Err(why) => drop(so_far.trouble.get_or_insert(why.to_string())),
        }
    }
    for acked in acks.join_all().await {
        match acked {
            Ok(()) => {
                so_far.done += 1;
                progress.inc(1);
            }
            Err(error) => drop(so_far.trouble.get_or_insert(error.to_string())),
        }
    }
}

fn confirm(verb: &str, count: usize) -> Result<(), Failed> {
    if !std::io::stdin().is_terminal() {
        return Err(Failed::usage("nothing was done")
            .why(format!("this would {verb} {count} dead letters, and there is nobody to ask"))
            .hint("--yes, or first --dry-run"));
    }
    ask(&format!("{verb} {count} dead letters? [y/N] "));
    let mut answer = String::new();
    match std::io::stdin().read_line(&mut answer) {
        Ok(_) if matches!(answer.trim(), "y" | "Y" | "yes") => Ok(()),
        _ => Err(Failed::usage("nothing was done").why("the answer was not yes")),
    }
}
