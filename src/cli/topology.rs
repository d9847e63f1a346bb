//! `deckswain topology`: what is declared on the broker, and whether it is there.

use clap::Args;
use serde_json::json;

use super::output::{Printer, say, table};
use super::settings::{LayoutSettings, RetrySettings};
use super::{BrokerSettings, EXIT_ACTION_FAILED, EXIT_OK, Failed, runtime};
use crate::broker::{Argument, State, Topology, inspect};

const AFTER_HELP: &str = "\
Compares each exchange and queue with the broker's. AMQP does not show bindings:
`--declare` makes those that are missing, and leaves what is there as it is.

Exit status: 0 all is there as it should be, 1 something is missing or differs,
3 the broker cannot be reached.

Examples:
  deckswain topology
  deckswain topology --declare";

#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub struct Options {
    /// Declare what is missing
    #[arg(long)]
    declare: bool,
    /// One JSON object a line instead of a table
    #[arg(long)]
    json: bool,
    /// Leave out the <prefix>.results queue
    #[arg(long, env = "DECKSWAIN_NO_RESULTS_QUEUE")]
    no_results_queue: bool,
    #[command(flatten)]
    layout: LayoutSettings,
    #[command(flatten)]
    retries: RetrySettings,
    #[command(flatten)]
    broker: BrokerSettings,
}

pub fn run(options: &Options) -> Result<u8, Failed> {
    let topology = Topology::new(
        &options.broker.prefix,
        options.layout.layout(),
        !options.no_results_queue,
        &options.retries.retry_delays,
    )
    .on_host(&options.layout.host()?);
    let states = runtime()?.block_on(inspect(&options.broker.url(), &topology, options.declare))?;
    let mut rows = Vec::new();
    for exchange in topology.exchanges() {
        let bound = exchange.bound_to.map_or(String::new(), |from| format!("{from} #"));
        let kind = format!("{} exchange", exchange.kind.as_str());
        rows.push((exchange.name, kind, shown(&exchange.arguments), bound));
    }
    for queue in topology.queues() {
        let bound = queue.binding.map_or(String::new(), |binding| {
            format!("{} {} {}", binding.exchange, binding.key, shown(&binding.arguments))
                .trim_end()
                .to_owned()
        });
        rows.push((queue.name, "queue".to_owned(), shown(&queue.arguments), bound));
    }
    let mut printer = Printer::default();
    let said = states.iter().map(|state| match state {
        State::Same => "ok".to_owned(),
        State::Missing => "missing".to_owned(),
        State::Differs(how) => format!("differs: {how}"),
        State::NotCompared => "there, not compared".to_owned(),
    });
    let rows = rows.into_iter().zip(said);
    if options.json {
        for ((name, what, arguments, bound), state) in rows {
            let line = json!({"name": name, "type": what, "arguments": arguments, "bound_to": bound, "state": state});
            printer.json(&line.to_string());
        }
    } else {
        let rows =
            rows.map(|((name, what, arguments, bound), state)| vec![name, what, state, bound, arguments]);
        printer.line(table(&["NAME", "TYPE", "STATE", "BOUND TO", "ARGUMENTS"], rows).trim_end());
    }
    if states.iter().any(|state| matches!(state, State::Differs(_))) {
        say(format_args!(
            "what differs cannot be changed in place: empty it, delete it (`rabbitmqctl delete_queue NAME`), then `deckswain topology --declare`; or choose another --prefix"
        ));
    } else if states.contains(&State::Missing) {
        say("what is missing comes with `deckswain topology --declare`, or when a worker starts");
    }
    if states.contains(&State::NotCompared) {
        say("the broker compares arguments only for a user with the configure permission");
    }
    printer.end()?;
    let is_well = |state: &State| matches!(state, State::Same | State::NotCompared);
    Ok(if states.iter().all(is_well) { EXIT_OK } else { EXIT_ACTION_FAILED })
}

fn shown(arguments: &[(&str, Argument)]) -> String {
    let argument = |(name, value): &(&str, Argument)| match value {
        Argument::Text(text) => format!("{name}={text}"),
        Argument::Integer(integer) => format!("{name}={integer}"),
        Argument::Boolean(truth) => format!("{name}={truth}"),
    };
    arguments.iter().map(argument).collect::<Vec<_>>().join(" ")
}
