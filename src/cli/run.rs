//! `deckswain run`: the worker's decoding, policy and driver, without a broker.

use std::io::{Read as _, Write as _};
use std::path::PathBuf;

use chrono::Utc;
use clap::Args;
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use tokio::sync::watch;
use uuid::Uuid;

use super::{DriverSettings, EXIT_ACTION_FAILED, EXIT_INTERRUPTED, EXIT_OK, EXIT_USAGE, Failed, runtime};
use crate::action::{Action, DecodeOptions};
use crate::result::{Disposition, FailureClass, Occasion, WorkerIdentity};
use crate::worker::judge;

const AFTER_HELP: &str = r#"FILE holds one JSON object, a JSON array, or one object a line. One activity
result a line comes out, in the order of the input. Each action is tried once.

Exit status: 0 all succeeded, 1 some failed, 2 the input or the options are wrong.

Example:
  echo '{"kind":"file","dst_uuid":"d1","dst_name":"web-01",
         "path":"/home/alice/notes.txt","content":"call back\n"}' | deckswain run"#;

#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub struct Options {
    /// Where the actions are; `-` is standard input
    #[arg(default_value = "-")]
    file: PathBuf,
    #[command(flatten)]
    driver: DriverSettings,
}

pub fn run(options: &Options) -> Result<u8, Failed> {
    let policy = options.driver.policy()?;
    let input = read_input(&options.file)?;
    let actions = split(&input)?;
    let worker = WorkerIdentity::new(format!("run-{}", std::process::id()));
    runtime()?.block_on(async {
        let (interrupted, abort) = watch::channel(false);
        let driver = options.driver.driver().abort_when(abort);
        tokio::spawn(async move {
            if tokio::signal::ctrl_c().await.is_ok() {
                interrupted.send_replace(true);
            }
        });
        let mut status = EXIT_OK;
        for raw in actions {
            let body = with_action_id(raw);
            let decode = DecodeOptions { message_id: None, content_bytes_max: options.driver.content_max };
            let started_at = Utc::now();
            let judged = judge(&driver, &policy, Action::decode(body.as_bytes(), decode), started_at).await;
            let Ok(judged) = judged else { return Ok(EXIT_INTERRUPTED) };
            let occasion = Occasion { attempt: 1, redelivered: false, started_at, finished_at: Utc::now() };
            let message = judged.failure_message();
            let result = judged.result(Disposition::Completed, occasion, &worker);
            let line = match &result {
                Some(result) => serde_json::to_string(result).map_err(|error| {
                    Failed::internal(format!("failed to write a result as JSON: {error}"))
                })?,
                None => {
                    eprintln!("error: {message}");
                    status = EXIT_USAGE;
                    continue;
                }
            };
            match result.and_then(|result| result.failure).map(|failure| failure.class) {
                None => {}
                Some(FailureClass::Invalid) => status = EXIT_USAGE,
                Some(_) => status = status.max(EXIT_ACTION_FAILED),
            }
            let mut stdout = std::io::stdout().lock();
            if writeln!(stdout, "{line}").and_then(|()| stdout.flush()).is_err() {
                // The reader has gone, as `head` does; there is nobody left to tell.
                return Ok(status);
            }
        }
        Ok(status)
    })
}

fn read_input(file: &PathBuf) -> Result<String, Failed> {
    let mut bytes = Vec::new();
    let read = if file.as_os_str() == "-" {
        std::io::stdin().lock().read_to_end(&mut bytes)
    } else {
        std::fs::File::open(file).and_then(|mut opened| opened.read_to_end(&mut bytes))
    };
    read.map_err(|error| Failed::usage(format!("failed to read {}: {error}", file.display())))?;
    String::from_utf8(bytes).map_err(|error| {
        Failed::usage(format!("the input is not UTF-8 at byte {}", error.utf8_error().valid_up_to()))
    })
}

/// Takes one object, an array of them, or one after the other.
fn split(input: &str) -> Result<Vec<&RawValue>, Failed> {
    let not_json = |error: serde_json::Error| {
        Failed::usage(format!("the input is no JSON: {error}"))
            .hint("one JSON object, a JSON array, or one object a line; see `deckswain schema action`")
    };
    let mut actions = Vec::new();
    for value in serde_json::Deserializer::from_str(input).into_iter::<&RawValue>() {
        let value = value.map_err(not_json)?;
        if value.get().starts_with('[') {
            actions.extend(serde_json::from_str::<Vec<&RawValue>>(value.get()).map_err(not_json)?);
        } else {
            actions.push(value);
        }
    }
    if actions.is_empty() {
        return Err(Failed::usage("the input holds no action").hint("deckswain run --help"));
    }
    Ok(actions)
}

/// Gives an object an `action_id` where it has none; anything else is left for decoding to refuse.
fn with_action_id(raw: &RawValue) -> String {
    match serde_json::from_str::<Map<String, Value>>(raw.get()) {
        Ok(object) if !object.contains_key("action_id") => {
            let id = Uuid::new_v4();
            let rest = raw.get().trim_start().trim_start_matches('{').trim_start();
            let comma = if rest.starts_with('}') { "" } else { "," };
            format!("{{\"action_id\":\"{id}\"{comma}{rest}")
        }
        _ => raw.get().to_owned(),
    }
}
