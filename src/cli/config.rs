//! `deckswain config`, and the file that settings can come from.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Args, Command};
use serde_json::json;

use super::output::{Printer, table};
use super::{EXIT_OK, Failed, settings_file, worker};
use crate::broker::without_password;
use crate::secret_file::warn_if_readable_by_all;

/// Read from the working directory where no other file is named.
const FILE_DEFAULT: &str = "deckswain.toml";
const FILE_VARIABLE: &str = "DECKSWAIN_CONFIG";
/// Names a file that holds the broker's URL, so that a password stands in no environment.
const BROKER_FILE_VARIABLE: &str = "DECKSWAIN_BROKER_FILE";

const AFTER_HELP: &str = "\
A setting is taken from its flag, else from its environment variable, else from the
file, else it has its default. The file is deckswain.toml in the working directory,
or what --config or DECKSWAIN_CONFIG names; it may belong to the user or to root, and
nobody else may write to it. Its keys are the flags' names:

  broker = \"amqp://worker@broker.internal/%2f\"
  concurrency = 8
  allow-decky = [\"web-*\", \"db-*\"]

DECKSWAIN_BROKER_FILE names a file whose one line is the broker's URL.

Examples:
  deckswain config
  deckswain config --json --timeout 20s";

#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
#[group(skip)]
pub struct Options {
    /// One JSON object instead of a table
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: worker::Options,
}

/// What came from files, by the name of the flag: the value and the file.
#[derive(Debug, Default)]
pub struct FromFiles(BTreeMap<String, (Vec<String>, PathBuf)>);

impl FromFiles {
    /// Reads the files that the arguments and the environment name.
    pub fn read(command: &Command, arguments: &[OsString]) -> Result<Self, Failed> {
        let mut found = Self::default();
        if let Some(path) = config_path(arguments) {
            found.read_settings(command, &path)?;
        }
        if let Some(path) = std::env::var_os(BROKER_FILE_VARIABLE).map(PathBuf::from) {
            let url = settings_file::read(&path)?.trim().to_owned();
            warn_if_readable_by_all(&path, "the broker's URL");
            found.0.insert("broker".to_owned(), (vec![url], path));
        }
        Ok(found)
    }

    fn read_settings(&mut self, command: &Command, path: &Path) -> Result<(), Failed> {
        let at = path.display();
        let settings: toml::Table =
            settings_file::read(path)?.parse().map_err(|error: toml::de::Error| {
                Failed::usage(format!("{at} is no TOML"))
                    .why(error.message())
                    .hint("a setting a line: name = \"value\"")
            })?;
        let known = names(command);
        for (key, value) in settings {
            let name = key.replace('_', "-");
            if !known.contains(&name) {
                let nearest =
                    known.iter().max_by(|a, b| strsim::jaro(a, &name).total_cmp(&strsim::jaro(b, &name)));
                let hint = nearest.map(|nearest| format!("{nearest:?}, the nearest")).unwrap_or_default();
                return Err(Failed::usage(format!("{at} cannot be used"))
                    .why(format!("it holds an unknown key {key:?}"))
                    .hint(hint));
            }
            let values = match value {
                toml::Value::Array(values) => values.iter().map(text).collect::<Option<Vec<_>>>(),
                value => text(&value).map(|value| vec![value]),
            };
            let values = values.ok_or_else(|| {
                Failed::usage(format!("{at} cannot be used"))
                    .why(format!("{key} is neither a string, a number, a truth value nor a list of them"))
                    .hint("`deckswain config` shows each setting as it is written")
            })?;
            self.0.insert(name, (values, path.to_owned()));
        }
        Ok(())
    }

    /// Makes what came from files the default of every option of that name.
    pub fn apply(&self, command: Command) -> Command {
        let command = command.mut_args(|arg| match arg.get_long().and_then(|long| self.0.get(long)) {
            // A help text shows defaults, and the URL holds a password.
            Some((values, _)) => {
                let hide = arg.get_long() == Some("broker");
                arg.default_values(values.clone()).hide_default_value(hide)
            }
            None => arg,
        });
        command.mut_subcommands(|subcommand| self.apply(subcommand))
    }
}

fn text(value: &toml::Value) -> Option<String> {
    match value {
        toml::Value::String(text) => Some(text.clone()),
        toml::Value::Integer(integer) => Some(integer.to_string()),
        toml::Value::Boolean(truth) => Some(truth.to_string()),
        _ => None,
    }
}

/// The file has to be known before the options are parsed, whose defaults it gives.
fn config_path(arguments: &[OsString]) -> Option<PathBuf> {
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        match argument.to_str().and_then(|argument| argument.strip_prefix("--config")) {
            Some("") => return arguments.next().map(PathBuf::from),
            Some(rest) if rest.starts_with('=') => return Some(PathBuf::from(&rest[1..])),
            _ => {}
        }
    }
    let named = std::env::var_os(FILE_VARIABLE).map(PathBuf::from);
    named.or_else(|| Some(PathBuf::from(FILE_DEFAULT)).filter(|path| path.exists()))
}

/// The flags that a file may set: those that the environment may set too.
fn settings(command: &Command) -> impl Iterator<Item = &Arg> {
    command.get_arguments().filter(|arg| arg.get_env().is_some())
}

fn names(command: &Command) -> Vec<String> {
    let own = settings(command).filter_map(|arg| arg.get_long().map(ToOwned::to_owned));
    let mut names: Vec<String> = own.chain(command.get_subcommands().flat_map(names)).collect();
    names.sort();
    names.dedup();
    names
}

/// Prints the settings as `worker` would have them.
pub fn run(
    options: &Options,
    command: &Command,
    matches: &ArgMatches,
    files: &FromFiles,
) -> Result<u8, Failed> {
    let mut rows = Vec::new();
    let Some(own) = command.find_subcommand("config") else {
        return Err(Failed::internal("the command line knows no config"));
    };
    for arg in settings(own) {
        let (Some(name), id) = (arg.get_long(), arg.get_id().as_str()) else { continue };
        let values =
            matches.get_raw(id).into_iter().flatten().map(|value| value.to_string_lossy().into_owned());
        let value = values.map(|value| if name == "broker" { without_password(&value) } else { value });
        let source = match (matches.value_source(id), files.0.get(name)) {
            (Some(ValueSource::CommandLine), _) => "flag".to_owned(),
            (Some(ValueSource::EnvVariable), _) => {
                format!("environment {}", arg.get_env().unwrap_or_default().to_string_lossy())
            }
            (_, Some((_, path))) => format!("file {}", path.display()),
            _ => "default".to_owned(),
        };
        rows.push((name.to_owned(), value.collect::<Vec<_>>().join(","), source));
    }
    let mut printer = Printer::default();
    if options.json {
        let settings =
            rows.into_iter().map(|(name, value, source)| (name, json!({"value": value, "source": source})));
        printer.json(&serde_json::Value::Object(settings.collect()).to_string());
    } else {
        let rows = rows.into_iter().map(|(name, value, source)| vec![name, value, source]);
        printer.line(table(&["SETTING", "VALUE", "FROM"], rows).trim_end());
    }
    printer.end().map(|()| EXIT_OK)
}
