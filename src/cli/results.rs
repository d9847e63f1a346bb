//! `deckswain results`: results as they come.

use chrono::{DateTime, Local};
use clap::Args;
use clap::builder::PossibleValuesParser;
use globset::GlobMatcher;

use super::escape::cell;
use super::output::{Printer, say};
use super::reported::Reported;
use super::settings::glob;
use super::{BrokerSettings, EXIT_OK, Failed, runtime};
use crate::backoff::Backoff;
use crate::broker::{BrokerError, ResultsTap, Topology};

const AFTER_HELP: &str = "\
Watches through a private queue that ends with the command: no result is taken from
anyone. What came while the connection was lost is not shown.

Examples:
  deckswain results --failed
  deckswain results --kind file --decky 'web-*' --limit 10
  deckswain results --canary --json | grep attribution";

#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub struct Options {
    /// Go on until interrupted, which is what it does without `--limit`
    #[arg(long, short, conflicts_with = "limit")]
    follow: bool,
    /// End after so many results
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Only actions of this kind
    #[arg(long, value_parser = PossibleValuesParser::new(["traffic", "file", "edit", "read", "remove"]))]
    kind: Option<String>,
    /// Only actions that concern a decky which matches this glob
    #[arg(long, value_name = "GLOB", value_parser = glob)]
    decky: Option<GlobMatcher>,
    /// Only what failed
    #[arg(long)]
    failed: bool,
    /// Only canaries
    #[arg(long)]
    canary: bool,
    /// The results as they are, one JSON object a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    broker: BrokerSettings,
}

impl Options {
    /// The broker sorts out what the routing key tells.
    fn routing_key(&self) -> String {
        let kind = self.kind.as_deref().unwrap_or("*");
        let canary = if self.canary { "canary" } else { "*" };
        let failed = if self.failed { "failed" } else { "*" };
        format!("activity.{kind}.{canary}.{failed}.#")
    }

    fn wants(&self, result: &Reported) -> bool {
        let deckies = [&result.payload.dst_decky, &result.payload.src_decky];
        let matches = |glob: &GlobMatcher| deckies.into_iter().flatten().any(|name| glob.is_match(name));
        self.decky.as_ref().is_none_or(matches)
    }
}

pub fn run(options: &Options) -> Result<u8, Failed> {
    let topology = Topology::of(&options.broker.prefix);
    runtime()?.block_on(async {
        let mut printer = Printer::default();
        let mut left = options.limit.unwrap_or(usize::MAX);
        let mut backoff = Backoff::default();
        let (mut seen_once, mut said) = (false, false);
        loop {
            match ResultsTap::open(&options.broker.url(), &topology, &options.routing_key()).await {
                Ok(tap) => {
                    say(format_args!(
                        "{} {}",
                        if seen_once { "watching again" } else { "watching" },
                        topology.results
                    ));
                    if !seen_once && !options.json {
                        printer.line(&line(["TIME", "KIND", "DECKY", "OUTCOME", "MS", "WHAT"]));
                    }
                    (seen_once, said, backoff) = (true, false, Backoff::default());
                    match watch(tap, options, &mut printer, &mut left).await {
                        Ok(()) => return printer.end().map(|()| EXIT_OK),
                        Err(error) => say(format_args!("{error}; connecting again")),
                    }
                }
                Err(error) if !seen_once => return Err(error.into()),
                Err(error) if !said => {
                    say(format_args!("{error}; trying again until the broker answers"));
                    said = true;
                }
                Err(_) => {}
            }
            tokio::time::sleep(backoff.next_wait()).await;
        }
    })
}

async fn watch(
    mut tap: ResultsTap,
    options: &Options,
    printer: &mut Printer,
    left: &mut usize,
) -> Result<(), BrokerError> {
    while *left > 0 && !printer.is_done() {
        let body = tap.next().await?;
        let Some(result) = Reported::read(&body) else { continue };
        if options.wants(&result) {
            match options.json {
                true => printer.json(&String::from_utf8_lossy(&body)),
                false => printer.line(&row(&result)),
            }
            *left -= 1;
        }
    }
    tap.close().await;
    Ok(())
}

fn row(result: &Reported) -> String {
    let text = |value: &Option<String>| value.as_deref().unwrap_or("-").to_owned();
    let payload = &result.payload;
    let finished = result.finished_at.as_deref().and_then(|at| DateTime::parse_from_rfc3339(at).ok());
    let time = finished.map_or("-".to_owned(), |at| at.with_timezone(&Local).format("%H:%M:%S").to_string());
    let is_traffic = result.kind.as_deref() == Some("traffic");
    let decky = if is_traffic { &payload.src_decky } else { &payload.dst_decky };
    let outcome = match &result.failure {
        Some(failure) => failure.class.clone(),
        None if result.success => "ok".to_owned(),
        None => "failed".to_owned(),
    };
    let what = match (is_traffic, &payload.path) {
        (true, _) => format!("{} {}", text(&result.action), text(&payload.dst_decky)),
        (false, Some(path)) => format!("{} {path}", text(&result.action)),
        (false, None) => text(&result.action),
    };
    let ms = result.duration_ms.to_string();
    line([&time, &text(&result.kind), &text(decky), &outcome, &ms, &what])
}

/// Columns of a width that most values fit, since what is still to come cannot be measured.
fn line(cells: [&str; 6]) -> String {
    let [time, kind, decky, outcome, ms, what] = cells.map(cell);
    format!("{time:<8}  {kind:<7}  {decky:<16}  {outcome:<14}  {ms:>6}  {what}")
}
