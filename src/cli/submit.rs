//! `deckswain submit`: actions from a file or a pipe onto the broker.

use std::collections::HashSet;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};
use uuid::Uuid;

use super::input::{read_input, split, with_action_id_and_issued_at, with_content_bytes};
use super::output::{Printer, progress_bar, say};
use super::reported::Reported;
use super::settings::duration;
use super::{BrokerSettings, EXIT_ACTION_FAILED, EXIT_BROKER, EXIT_OK, Failed, runtime};
use crate::action::{Action, CONTENT_BYTES_LIMIT, DecodeOptions};
use crate::broker::{
    AmqpPublisher, Properties, Publication, PublishError, ResultsTap, Topology, together_count,
};

const AFTER_HELP: &str = r#"FILE holds one JSON object, a JSON array, or one object a line. All of it is
checked before anything is published, in the order of the input. For every action that
the broker took, a line {"action_id", "issued_at"} comes out; with --wait its result
comes out instead.

Exit status: 0 all were taken (with --wait: all succeeded), 1 with --wait: some
failed or gave no result in time, 2 the input or the options are wrong and nothing
was published, 3 the broker did not take all of them.

Example:
  echo '{"kind":"file","dst_uuid":"d1","dst_name":"web-01",
         "path":"/home/alice/notes.txt","content":"call back\n"}' | deckswain submit --wait"#;

#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub struct Options {
    /// Where the actions are; `-` is standard input
    #[arg(default_value = "-")]
    file: PathBuf,
    /// Carry this local file's bytes as the one action's `content_bytes`
    #[arg(long, value_name = "PATH")]
    file_bytes: Option<PathBuf>,
    /// Wait for the results and print them
    #[arg(long)]
    wait: bool,
    /// How long to wait for the results, from the last publish
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = duration, requires = "wait")]
    wait_timeout: Duration,
    #[command(flatten)]
    broker: BrokerSettings,
}

/// An action that has been checked.
struct Ready {
    id: Uuid,
    issued_at: Value,
    routing_key: String,
    body: String,
}

pub fn run(options: &Options) -> Result<u8, Failed> {
    let actions = read_actions(options)?;
    let topology = Topology::of(&options.broker.prefix);
    let url = &*options.broker.url();
    runtime()?.block_on(async {
        // Opened before anything is published, so that no result is missed.
        let tap = match options.wait {
            true => Some(ResultsTap::open(url, &topology, "#").await?),
            false => None,
        };
        let publisher = AmqpPublisher::to_what_is_there(url);
        publisher.ready(&topology.actions).await?;
        let mut printer = Printer::default();
        let mut open: HashSet<Uuid> = actions.iter().map(|action| action.id).collect();
        let total = actions.len();
        let refused = publish_all(&publisher, &topology, &actions, |action| {
            if !options.wait {
                printer.json(&json!({"action_id": action.id, "issued_at": action.issued_at}).to_string());
            }
        })
        .await;
        publisher.close().await;
        for (id, why) in &refused {
            say(format_args!("error: not taken: {id}: {why}"));
            open.remove(id);
        }
        say(format_args!("submitted {} of {total}", total - refused.len()));
        let waited = match tap {
            Some(tap) if !open.is_empty() => wait(tap, open, options.wait_timeout, &mut printer).await?,
            _ => EXIT_OK,
        };
        printer.end()?;
        match refused.into_iter().next() {
            None => Ok(waited),
            Some((_, why)) => Err(Failed::new(EXIT_BROKER, "the broker did not take every action")
                .why(why)
                .hint("mend that, and submit again those that are named above")),
        }
    })
}

fn read_actions(options: &Options) -> Result<Vec<Ready>, Failed> {
    let input = read_input(&options.file)?;
    let raw = split(&input)?;
    if options.file_bytes.is_some() && raw.len() != 1 {
        return Err(Failed::usage("--file-bytes cannot be used")
            .why(format!("it goes with one action, and there are {}", raw.len()))
            .hint("submit the action that is to carry the file by itself"));
    }
    let (mut ready, mut flaws) = (Vec::with_capacity(raw.len()), 0);
    for (index, raw) in raw.into_iter().enumerate() {
        let mut body = with_action_id_and_issued_at(raw);
        if let Some(path) = &options.file_bytes {
            body = with_content_bytes(&body, path)?;
        }
        // The worker's own limit may be lower; this is what any worker can be set to.
        let decode = DecodeOptions { message_id: None, content_bytes_max: CONTENT_BYTES_LIMIT };
        match Action::decode(body.as_bytes(), decode) {
            Ok(action) => {
                let routing_key = format!("decky.{}", action.executing_decky());
                let issued_at = action.issued_at.map_or(Value::Null, |at| at.to_rfc3339().into());
                ready.push(Ready { id: action.id, issued_at, routing_key, body });
            }
            Err(invalid) => {
                say(format_args!("error: action {}: {invalid}", index + 1));
                flaws += 1;
            }
        }
    }
    if flaws > 0 {
        return Err(Failed::usage("nothing was published")
            .why(format!("{flaws} of {} actions are invalid, as said above", flaws + ready.len()))
            .hint("`deckswain schema action` describes an action"));
    }
    Ok(ready)
}

/// Publishes in the order of the input, a group at a time; returns the actions that the broker did not
/// take, and why.
///
/// An action that is returned or refused does not stop the others. Without a confirm nothing further is
/// published: later actions must not arrive before earlier ones that are submitted again.
async fn publish_all(
    publisher: &AmqpPublisher,
    topology: &Topology,
    actions: &[Ready],
    mut taken: impl FnMut(&Ready),
) -> Vec<(Uuid, String)> {
    let progress = progress_bar(actions.len() as u64, "submitting");
    let mut refused = Vec::new();
    let mut rest = actions;
    while !rest.is_empty() {
        let (group, later) = rest.split_at(together_count(rest.iter().map(|action| action.body.len())));
        let published = publish_group(publisher, &topology.actions, group).await;
        let mut is_lost = false;
        for (action, outcome) in group.iter().zip(published) {
            progress.inc(1);
            match outcome {
                Ok(()) => progress.suspend(|| taken(action)),
                Err(why) => {
                    is_lost |= !why.is_of_the_message();
                    refused.push((action.id, why.to_string()));
                }
            }
        }
        if is_lost {
            let why = "not sent, as an action before it was not confirmed";
            refused.extend(later.iter().map(|action| (action.id, why.to_owned())));
            break;
        }
        rest = later;
    }
    progress.finish_and_clear();
    refused
}

async fn publish_group(
    publisher: &AmqpPublisher,
    exchange: &str,
    group: &[Ready],
) -> Vec<Result<(), PublishError>> {
    let properties: Vec<Properties> = group.iter().map(properties_of).collect();
    let publications: Vec<Publication<'_>> = group
        .iter()
        .zip(&properties)
        .map(|(action, properties)| Publication {
            exchange,
            routing_key: &action.routing_key,
            properties,
            body: action.body.as_bytes(),
        })
        .collect();
    publisher.publish_in_order(&publications).await
}

fn properties_of(action: &Ready) -> Properties {
    Properties {
        message_id: Some(action.id.to_string()),
        content_type: Some("application/json".to_owned()),
        message_type: Some("action".to_owned()),
        app_id: Some("deckswain".to_owned()),
        timestamp: Some(chrono::Utc::now()),
        ..Properties::default()
    }
}

async fn wait(
    mut tap: ResultsTap,
    mut open: HashSet<Uuid>,
    time_max: Duration,
    printer: &mut Printer,
) -> Result<u8, Failed> {
    let deadline = Instant::now() + time_max;
    let (mut succeeded, mut failed, total) = (0, 0, open.len());
    let progress = progress_bar(total as u64, "waiting");
    while !open.is_empty() {
        let Ok(next) = timeout_at(deadline, tap.next()).await else { break };
        let body = next?;
        let Some(result) = Reported::read(&body) else { continue };
        let id = result.action_id.and_then(|id| id.parse::<Uuid>().ok());
        if !id.is_some_and(|id| open.remove(&id)) {
            continue;
        }
        if result.success {
            succeeded += 1
        } else {
            failed += 1
        }
        progress.inc(1);
        progress.suspend(|| printer.json(&String::from_utf8_lossy(&body)));
    }
    progress.finish_and_clear();
    tap.close().await;
    for id in &open {
        say(format_args!("error: no result of {id} within {}", humantime::format_duration(time_max)));
    }
    say(format_args!("{succeeded} succeeded, {failed} failed, {} without a result", open.len()));
    Ok(if failed == 0 && open.is_empty() { EXIT_OK } else { EXIT_ACTION_FAILED })
}
