//! The command line: what it takes, and with which status it ends.

mod check;
mod config;
mod dead_letters;
mod escape;
mod failed;
mod generate;
mod input;
mod log;
mod output;
mod panic;
mod reported;
mod results;
mod run;
mod schema;
mod settings;
mod settings_file;
mod submit;
mod topology;
mod worker;

use std::ffi::OsString;
use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use tracing_subscriber::EnvFilter;

pub use failed::Failed;
use output::say;
pub use settings::{BrokerSettings, DriverSettings};

/// All went well.
pub const EXIT_OK: u8 = 0;
/// Some action failed.
pub const EXIT_ACTION_FAILED: u8 = 1;
/// The input or the options are wrong.
pub const EXIT_USAGE: u8 = 2;
/// The broker refuses what the program needs, or a command cannot reach it.
pub const EXIT_BROKER: u8 = 3;
/// Trouble on this machine: output that cannot be written, threads used up.
pub const EXIT_INTERNAL: u8 = 4;

/// Ended by Ctrl-C; what ran in a decky has been ended too.
pub const EXIT_INTERRUPTED: u8 = 130;

const AFTER_HELP: &str = "\
Exit status:
  0  all went well
  1  some action failed
  2  the input or the options are wrong
  3  the broker refuses what is needed (credentials, virtual host, differing arguments),
     or a command that ends by itself cannot reach it
  4  trouble on this machine, such as a full disk under the output
130  interrupted by Ctrl-C

Start with `deckswain check`. Actions are described by `deckswain schema action`, results by `deckswain schema result`.";

/// Performs synthetic activity on decoy hosts, as a message queue tells it to.
#[derive(Debug, Parser)]
#[command(version, after_help = AFTER_HELP)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    /// A file of settings [default: deckswain.toml, if it is there]
    #[arg(long, value_name = "FILE", global = true, display_order = 1000)]
    config: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Perform actions from a file or a pipe, without a broker
    Run(run::Options),
    /// Take actions from the broker, perform them and publish their results, until told to stop
    Worker(worker::Options),
    /// Check actions and publish them; with --wait print their results
    Submit(submit::Options),
    /// Watch results as they come, taking none from anyone
    Results(results::Options),
    /// List, show, replay, discard or export the actions that were given up
    DeadLetters(dead_letters::Options),
    /// Print the JSON Schema of an action or of a result
    Schema(schema::Options),
    /// Print what is declared on the broker, and compare it with what is there
    Topology(topology::Options),
    /// Look whether a worker could do its work: settings, broker, engine, deckies
    Check(check::Options),
    /// Print the settings in force and where each came from
    Config(config::Options),
    /// Print a script that completes this program's commands in a shell
    Completions(generate::CompletionsOptions),
    /// Print the manual page
    Man(generate::ManOptions),
}

/// Parses the arguments, runs the command and turns its end into an exit status.
#[must_use]
pub fn main() -> ExitCode {
    panic::end_the_process();
    log_to_stderr();
    let status = run_command().unwrap_or_else(|failed| {
        failed.say();
        failed.status
    });
    log::flush();
    ExitCode::from(status)
}

fn run_command() -> Result<u8, Failed> {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let plain = Cli::command();
    let files = config::FromFiles::read(&plain, &arguments)?;
    let command = files.apply(plain);
    let matches = match command.clone().try_get_matches_from(&arguments) {
        Ok(matches) => matches,
        Err(error) => return told_by_parser(&error, &arguments),
    };
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    match cli.command {
        Command::Run(options) => run::run(&options),
        Command::Worker(options) => worker::run(&options),
        Command::Submit(options) => submit::run(&options),
        Command::Results(options) => results::run(&options),
        Command::DeadLetters(options) => dead_letters::run(&options),
        Command::Schema(options) => schema::run(&options),
        Command::Topology(options) => topology::run(&options),
        Command::Check(options) => check::run(&options),
        Command::Config(options) => match matches.subcommand() {
            Some((_, matches)) => config::run(&options, &command, matches, &files),
            None => unreachable!("a command was parsed"),
        },
        Command::Completions(options) => generate::completions(&options, Cli::command()),
        Command::Man(options) => generate::man(&options, Cli::command()),
    }
}

/// Prints a help text, or the option parser's own error without any URL that it may repeat.
fn told_by_parser(error: &clap::Error, arguments: &[OsString]) -> Result<u8, Failed> {
    match error.use_stderr() {
        true => log::write(without_urls(error, arguments).as_bytes()),
        false => match error.print() {
            Err(failed) if failed.kind() != std::io::ErrorKind::BrokenPipe => {
                return Err(Failed::to_write("standard output", &failed));
            }
            _ => {}
        },
    }
    Ok(u8::try_from(error.exit_code()).unwrap_or(EXIT_USAGE))
}

/// The option parser's error with stars for each argument that may be the broker's URL.
fn without_urls(error: &clap::Error, arguments: &[OsString]) -> String {
    let mut text = match std::io::stderr().is_terminal() {
        true => error.render().ansi().to_string(),
        false => error.render().to_string(),
    };
    for argument in arguments.iter().map(|argument| argument.to_string_lossy()) {
        let value = match argument.split_once('=') {
            Some((_, value)) if argument.starts_with("--") => value,
            _ => &*argument,
        };
        if value.contains('@') || value.contains("://") || value.starts_with("amqp") {
            text = text.replace(value, "***");
        }
    }
    text
}

/// The AMQP client tells of a lost connection once a channel; the worker says it once.
const LOG_FILTER: &str = "warn,lapin=off,deckswain=info";

const LOG_VARIABLE: &str = "DECKSWAIN_LOG";

fn log_to_stderr() {
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    let filter = match std::env::var(LOG_VARIABLE) {
        Ok(filter) => EnvFilter::try_new(filter).unwrap_or_else(|error| {
            say(format_args!("warning: {LOG_VARIABLE} is not a valid log filter and is ignored: {error}"));
            EnvFilter::new(LOG_FILTER)
        }),
        Err(_) => EnvFilter::new(LOG_FILTER),
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(colour)
        .with_writer(log::LogWriter)
        .log_internal_errors(false)
        .init();
}

/// Two threads suffice: all waiting is asynchronous, and the engine is the ceiling.
fn runtime() -> Result<tokio::runtime::Runtime, Failed> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().map_err(|error| {
        Failed::internal("failed to start the runtime").why(error).hint("are threads or open files used up?")
    })
}
