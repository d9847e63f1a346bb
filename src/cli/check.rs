//! `deckswain check`: whether a worker with these settings could do its work.

use clap::Args;
use serde_json::json;

use super::escape::plain;
use super::output::{Printer, say};
use super::{EXIT_ACTION_FAILED, EXIT_OK, Failed, runtime, worker};
use crate::action::DeckyName;
use crate::broker::{BrokerAddress, Permission, State, Topology, inspect, lacking};
use crate::driver::{Driver, Listed, engine_hint};
use crate::policy::Policy;
use crate::subprocess::HostCommands;

/// How many deckies are named one by one; a fleet may have hundreds.
const NAMED_MAX: usize = 10;

const AFTER_HELP: &str = "\
Looks at the settings, the broker, the permissions there, the container engine and
its deckies; with --decky also at the programs inside one. Nothing is declared,
published or left behind. Takes the settings of `worker`.

Exit status: 0 nothing failed (there may be warnings), 1 something failed,
2 an option is wrong.

Examples:
  deckswain check
  deckswain check --decky web-01 --json";

#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
#[group(skip)]
pub struct Options {
    /// Try the programs that actions need inside this decky (may be given more than once)
    #[arg(long, value_name = "NAME", value_parser = decky)]
    decky: Vec<DeckyName>,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: worker::Options,
}

fn decky(text: &str) -> Result<DeckyName, String> {
    DeckyName::parse(text).map_err(|error| error.to_string())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Ok,
    Warning,
    Failure,
}

impl Verdict {
    fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Failure => "failure",
        }
    }
}

/// The lines so far.
struct Report {
    as_json: bool,
    printer: Printer,
    warnings: usize,
    failures: usize,
}

impl Report {
    fn line(&mut self, verdict: Verdict, what: &str, said: &str, next: Option<&str>) {
        match verdict {
            Verdict::Ok => {}
            Verdict::Warning => self.warnings += 1,
            Verdict::Failure => self.failures += 1,
        }
        if self.as_json {
            let line = json!({"status": verdict.as_str(), "check": what, "message": said, "next": next});
            self.printer.json(&line.to_string());
            return;
        }
        self.printer.line(&format!("{:<7}  {:<11}  {}", verdict.as_str(), what, plain(said)));
        if let Some(next) = next {
            self.printer.line(&format!("{:22}try: {}", "", plain(next)));
        }
    }

    fn ok(&mut self, what: &str, said: &str) {
        self.line(Verdict::Ok, what, said, None);
    }

    fn warning(&mut self, what: &str, said: &str, next: &str) {
        self.line(Verdict::Warning, what, said, Some(next));
    }

    fn failure(&mut self, what: &str, said: &str, next: &str) {
        self.line(Verdict::Failure, what, said, Some(next));
    }

    fn failed(&mut self, what: &str, failed: Failed) {
        let why = failed.why.map_or_else(String::new, |why| format!(": {why}"));
        let said = format!("{}{why}", failed.what);
        self.line(Verdict::Failure, what, &said, failed.hint.as_deref());
    }

    fn end(self) -> Result<u8, Failed> {
        let count = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
        say(format_args!("{}, {}", count(self.failures, "failure"), count(self.warnings, "warning")));
        self.printer.end()?;
        Ok(if self.failures == 0 { EXIT_OK } else { EXIT_ACTION_FAILED })
    }
}

pub fn run(options: &Options) -> Result<u8, Failed> {
    let (as_json, printer) = (options.json, Printer::default());
    let mut report = Report { as_json, printer, warnings: 0, failures: 0 };
    let settings = &options.settings;
    let policy = check_settings(settings, &options.decky, &mut report);
    runtime()?.block_on(async {
        check_broker(settings, &mut report).await;
        let driver = settings.driver.driver(Some(&settings.broker))?;
        check_engine(&driver, settings, policy.as_ref(), &options.decky, &mut report).await;
        Ok::<_, Failed>(())
    })?;
    report.end()
}

fn check_settings(settings: &worker::Options, deckies: &[DeckyName], report: &mut Report) -> Option<Policy> {
    let (failures, warnings) = (report.failures, report.warnings);
    let service = settings.service();
    let policy = settings.driver.policy();
    let refused: Vec<&str> = match &policy {
        Ok(policy) => deckies.iter().map(DeckyName::as_str).filter(|decky| !policy.allows(decky)).collect(),
        Err(_) => Vec::new(),
    };
    for decky in refused {
        report.warning(
            "settings",
            &format!("the policy lets no action touch {decky}"),
            "--allow-decky and --deny-decky say which deckies a worker touches",
        );
    }
    let delays = &settings.retries.retry_delays;
    if !delays.is_sorted() {
        report.warning(
            "settings",
            "a later retry waits for less time than an earlier one",
            "sort --retry-delays",
        );
    }
    match BrokerAddress::of(&settings.broker.url()) {
        Ok(address) if !address.is_local() => {
            if !address.tls {
                report.warning(
                    "settings",
                    &format!("the password and all content go to {} in clear", address.host),
                    "amqps:// in --broker, and TLS on the broker",
                );
            }
            if address.user == "guest" && !address.is_external() {
                report.warning(
                    "settings",
                    "RabbitMQ lets the user guest in from its own host alone, unless told otherwise",
                    "a user of its own: `rabbitmqctl add_user`, `rabbitmqctl set_permissions`",
                );
            }
        }
        _ => {}
    }
    let concurrency = match service {
        Ok(service) => {
            if service.prefetch < service.concurrency {
                report.warning(
                    "settings",
                    &format!("of {} actions at once only {} fit", service.concurrency, service.prefetch),
                    "a larger --memory, a smaller --content-max, or a shorter --timeout",
                );
            }
            service.concurrency
        }
        Err(failed) => {
            report.failed("settings", failed);
            0
        }
    };
    let policy = policy.map_err(|failed| report.failed("settings", failed)).ok();
    if (report.failures, report.warnings) == (failures, warnings) {
        let timeout = humantime::format_duration(settings.driver.timeout);
        let attempts = settings.max_attempts;
        report.ok(
            "settings",
            &format!("{concurrency} deckies at once, {timeout} for an action, {attempts} attempts"),
        );
    }
    policy
}

async fn check_broker(settings: &worker::Options, report: &mut Report) {
    let url = &*settings.broker.url();
    // Where the host has no usable name the settings have been found wanting already.
    let Ok(topology) = settings.topology() else { return };
    let states = match inspect(url, &topology, false).await {
        Ok(states) => states,
        Err(error) => return report.failed("broker", error.into()),
    };
    if let Ok(address) = BrokerAddress::of(url) {
        let user = if address.is_external() { "the client certificate" } else { &address.user };
        let said = format!("{}, virtual host {}, as {user}", address.endpoint(), address.vhost);
        report.ok("broker", &said);
    }
    check_topology(&topology, &states, report);
    match lacking(url, &topology).await {
        Err(error) => report.failed("permissions", error.into()),
        Ok(lacking) if lacking.is_empty() => {
            let said = match states.contains(&State::Missing) {
                true => "the user may declare what is missing, publish and consume",
                false => "the user may publish and consume; a worker has nothing to declare",
            };
            report.ok("permissions", said);
        }
        Ok(lacking) => {
            for permission in [Permission::Configure, Permission::Write, Permission::Read] {
                let on = lacking.iter().filter(|lacking| lacking.permission == permission);
                let on = on.map(|lacking| match lacking.on.as_str() {
                    "" => "amq.default (the default exchange)",
                    name => name,
                });
                let on = on.collect::<Vec<_>>().join(", ");
                if on.is_empty() {
                    continue;
                }
                let said = format!("the user lacks {} on {on}", permission.as_str());
                report.failure(
                    "permissions",
                    &said,
                    "`rabbitmqctl set_permissions -p VHOST USER CONFIGURE WRITE READ`; see docs/operations.md",
                );
            }
        }
    }
}

fn check_topology(topology: &Topology, states: &[State], report: &mut Report) {
    let queues = topology.queues();
    let exchanges = topology.exchanges();
    let exchanges = exchanges.iter().map(|exchange| exchange.name.as_str());
    let names = exchanges.chain(queues.iter().map(|queue| queue.name.as_str()));
    for (name, state) in names.zip(states) {
        if let State::Differs(how) = state {
            report.failure(
                "topology",
                &format!("{name} is not as a worker declares it: {how}"),
                "`deckswain topology` tells how to mend it",
            );
        }
    }
    let missing = states.iter().filter(|state| **state == State::Missing).count();
    if missing > 0 {
        report.warning(
            "topology",
            &format!("{missing} of {} exchanges and queues are missing", states.len()),
            "a worker makes them when it starts; so does `deckswain topology --declare`",
        );
    } else if states.iter().all(|state| *state == State::Same) {
        report.ok("topology", &format!("all {} exchanges and queues are as they should be", states.len()));
    } else if states.contains(&State::NotCompared) {
        report
            .ok("topology", "all exchanges and queues are there; this user may not compare their arguments");
    }
}

async fn check_engine(
    driver: &Driver<HostCommands>,
    settings: &worker::Options,
    policy: Option<&Policy>,
    deckies: &[DeckyName],
    report: &mut Report,
) {
    let version = driver.client_version().await;
    let listed = match &version {
        Ok(_) => driver.list().await,
        Err(failure) => Err(failure.clone()),
    };
    let listed = match listed {
        Ok(listed) => listed,
        Err(failure) => return report.failure("engine", &failure.message, engine_hint(&failure.message)),
    };
    report.ok("engine", &version.unwrap_or_default());
    check_deckies(&listed, settings, policy, report);
    for decky in deckies {
        match listed.iter().find(|listed| listed.name == *decky) {
            Some(listed) if listed.is_running() => check_inside(driver, decky, report).await,
            Some(listed) => report.failure(
                decky.as_str(),
                &format!("not running: {}", listed.status),
                "start its container",
            ),
            None => report.failure(
                decky.as_str(),
                &format!("no container {decky}{}", settings.driver.container_suffix),
                "check the decky's name and --container-suffix",
            ),
        }
    }
}

fn check_deckies(
    listed: &[Listed],
    settings: &worker::Options,
    policy: Option<&Policy>,
    report: &mut Report,
) {
    let may = |decky: &&Listed| policy.is_none_or(|policy| policy.allows(decky.name.as_str()));
    let (allowed, others): (Vec<&Listed>, Vec<&Listed>) = listed.iter().partition(may);
    if allowed.is_empty() {
        let suffix = &settings.driver.container_suffix;
        let next = "start a decky; --container-suffix says how its container's name ends";
        return match others.len() {
            0 => report.warning("deckies", &format!("no container's name ends in {suffix}"), next),
            n => report.warning(
                "deckies",
                &format!("the policy refuses all {n} that are there"),
                "mend --allow-decky or --deny-decky",
            ),
        };
    }
    let (running, stopped): (Vec<&Listed>, Vec<&Listed>) =
        allowed.into_iter().partition(|decky| decky.is_running());
    for decky in stopped.iter().take(NAMED_MAX) {
        let said = format!("{} does not run: {}", decky.name, decky.status);
        report.warning("deckies", &said, "start its container, or its actions end as dead letters");
    }
    if stopped.len() > NAMED_MAX {
        let said = format!("{} more do not run", stopped.len() - NAMED_MAX);
        report.warning("deckies", &said, "the engine's `ps --all` lists them");
    }
    let mut said = format!("{} running", running.len());
    if !others.is_empty() {
        said.push_str(&format!("; {} more are not for this worker's policy", others.len()));
    }
    report.ok("deckies", &said);
}

async fn check_inside(driver: &Driver<HostCommands>, decky: &DeckyName, report: &mut Report) {
    let tools = match driver.tools(decky).await {
        Ok(tools) => tools,
        Err(failure) => {
            let next = "its image needs `sh` for file and edit; a hostile decky may also refuse";
            return report.failure(decky.as_str(), &failure.message, next);
        }
    };
    for tool in &tools.missing {
        report.failure(
            decky.as_str(),
            &format!("no working {}, which {} needs", tool.name, tool.needed_for),
            "put it into the decky's image, or send no such actions there",
        );
    }
    match tools.uid {
        Some(0) => {}
        Some(uid) => report.warning(
            decky.as_str(),
            &format!("commands run as user {uid}: they can write and chown only what that user may"),
            "run the container as root, as sshd needs anyway",
        ),
        None => report.warning(
            decky.as_str(),
            "it does not say which user commands run as",
            "is `id` in its image?",
        ),
    }
    if tools.missing.is_empty() {
        report.ok(decky.as_str(), "has what every kind of action needs");
    }
}
