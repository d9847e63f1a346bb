//! `deckswain run`: the worker's decoding, policy and driver, without a broker.

use std::path::PathBuf;
use std::sync::Arc;

use chrono::Utc;
use clap::Args;
use tokio::sync::watch;

use super::input::{read_input, split, with_action_id};
use super::output::Printer;
use super::{DriverSettings, EXIT_ACTION_FAILED, EXIT_INTERRUPTED, EXIT_OK, EXIT_USAGE, Failed, runtime};
use crate::action::{Action, DecodeOptions};
use crate::driver::{Attempt, engine_hint};
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
        let driver = options.driver.driver(None)?.abort_when(abort);
        tokio::spawn(async move {
            if tokio::signal::ctrl_c().await.is_ok() {
                interrupted.send_replace(true);
            }
        });
        let (mut printer, mut trouble) = (Printer::default(), None);
        let mut status = EXIT_OK;
        for raw in actions {
            let body = with_action_id(raw);
            let decode = DecodeOptions { message_id: None, content_bytes_max: options.driver.content_max };
            let started_at = Utc::now();
            let decoded = Action::decode(body.as_bytes(), decode).map(Arc::new);
            let judged =
                judge(&driver, &policy, decoded, Attempt { now: started_at, is_repeat: false }).await;
            let Ok(judged) = judged else { return Ok(EXIT_INTERRUPTED) };
            let occasion = Occasion { attempt: 1, redelivered: false, started_at, finished_at: Utc::now() };
            let result = judged.result(Disposition::Completed, occasion, &worker);
            let line = serde_json::to_string(&result)
                .map_err(|error| Failed::internal("failed to write a result as JSON").why(error))?;
            printer.json(&line);
            match result.failure {
                None => {}
                Some(failure) if failure.class == FailureClass::Invalid => status = EXIT_USAGE,
                Some(failure) => {
                    status = status.max(EXIT_ACTION_FAILED);
                    if failure.class == FailureClass::Infrastructure {
                        let hint = engine_hint(&failure.message);
                        let said = Failed::new(EXIT_ACTION_FAILED, "an action did not reach its decky");
                        trouble = trouble.or_else(|| Some(said.why(failure.message).hint(hint)));
                    }
                }
            }
            if printer.is_done() {
                break;
            }
        }
        if let Some(trouble) = trouble {
            trouble.say();
        }
        printer.end().map(|()| status)
    })
}
