//! Settings that more than one command takes.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueHint};
use globset::{Glob, GlobMatcher};
use url::form_urlencoded::byte_serialize;

use super::{Failed, settings_file};
use crate::action::{CONTENT_BYTES_DEFAULT, CONTENT_BYTES_LIMIT};
use crate::broker::Layout;
use crate::driver::{Driver, DriverOptions, LEFTOVER_AGE};
use crate::policy::{Policy, PolicyRules};
use crate::subprocess::{HostCommands, is_program};

/// The shortest secret of a fleet, in bytes: 16 hexadecimal digits cannot be guessed.
const FLEET_SECRET_BYTES_MIN: usize = 16;

/// How the deckies are reached, and which of them.
#[derive(Debug, Clone, Args)]
pub struct DriverSettings {
    /// The container engine's client program (docker, podman or nerdctl)
    #[arg(long, value_name = "PROGRAM", env = "DECKSWAIN_CONTAINER_CLI", default_value = "docker")]
    pub container_cli: String,
    /// What follows a decky's name in the name of its container
    #[arg(
        long,
        value_name = "SUFFIX",
        env = "DECKSWAIN_CONTAINER_SUFFIX",
        default_value = "-ssh",
        allow_hyphen_values = true
    )]
    pub container_suffix: String,
    /// Time limit of one action, such as 8s or 500ms
    #[arg(long, value_name = "DURATION", env = "DECKSWAIN_TIMEOUT", default_value = "8s", value_parser = duration)]
    pub timeout: Duration,
    /// Largest decoded content of one action, in bytes (at most 12582912)
    #[arg(long, value_name = "BYTES", env = "DECKSWAIN_CONTENT_MAX", default_value_t = CONTENT_BYTES_DEFAULT)]
    pub content_max: usize,
    /// Touch only deckies that match this glob (may be given more than once)
    #[arg(long, value_name = "GLOB", env = "DECKSWAIN_ALLOW_DECKY", value_delimiter = ',')]
    pub allow_decky: Vec<String>,
    /// Never touch deckies that match this glob
    #[arg(long, value_name = "GLOB", env = "DECKSWAIN_DENY_DECKY", value_delimiter = ',')]
    pub deny_decky: Vec<String>,
    /// Touch only paths that match this glob (`*` stays within a segment, `**` does not)
    #[arg(long, value_name = "GLOB", env = "DECKSWAIN_ALLOW_PATH", value_delimiter = ',')]
    pub allow_path: Vec<String>,
    /// Never touch paths that match this glob
    #[arg(long, value_name = "GLOB", env = "DECKSWAIN_DENY_PATH", value_delimiter = ',')]
    pub deny_path: Vec<String>,
    /// File with a secret that the workers of a fleet share: names in deckies depend on it
    #[arg(long, value_name = "FILE", env = "DECKSWAIN_FLEET_SECRET_FILE")]
    pub fleet_secret_file: Option<PathBuf>,
}

impl DriverSettings {
    /// A driver that works beside the workers on `broker`, or beside none.
    pub(super) fn driver(&self, broker: Option<&BrokerSettings>) -> Result<Driver<HostCommands>, Failed> {
        let options = DriverOptions {
            container_cli: self.container_cli.clone(),
            container_suffix: self.container_suffix.clone(),
            time_max: self.timeout,
            fleet: self.fleet_secret(broker)?,
            // A rule is about the path as it is written, so no link may lead past it.
            follow_links: self.allow_path.is_empty() && self.deny_path.is_empty(),
            leftover_age: LEFTOVER_AGE,
        };
        Ok(Driver::new(options, HostCommands))
    }

    /// The secret file's content, or the parts of the broker's URL and names that the workers of a fleet share.
    fn fleet_secret(&self, broker: Option<&BrokerSettings>) -> Result<String, Failed> {
        if let Some(path) = &self.fleet_secret_file {
            let secret = settings_file::read(path)?;
            let secret = secret.trim();
            if secret.len() < FLEET_SECRET_BYTES_MIN {
                return Err(Failed::usage("--fleet-secret-file cannot be used")
                    .why(format!("{} holds fewer than {FLEET_SECRET_BYTES_MIN} bytes", path.display()))
                    .hint("write one with `openssl rand -hex 32`"));
            }
            return Ok(secret.to_owned());
        }
        // Without a broker there is no fleet.
        let Some(BrokerSettings { broker, prefix, .. }) = broker else {
            return Ok(uuid::Uuid::new_v4().to_string());
        };
        let rest = broker.split_once("://").map_or(broker.as_str(), |(_, rest)| rest);
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let user = authority.rsplit_once('@').map_or("", |(user, _)| user);
        let vhost = path.split('?').next().unwrap_or_default();
        Ok(format!("{user}\0{vhost}\0{prefix}"))
    }

    /// A worker without the engine's client program could do nothing but fail.
    pub(super) fn require_client(&self) -> Result<(), Failed> {
        if is_program(&self.container_cli) {
            return Ok(());
        }
        Err(Failed::usage(format!("there is no program {}", self.container_cli))
            .why("every action runs through the container engine's client")
            .hint("install it, or name another with --container-cli (docker, podman, nerdctl)"))
    }

    pub(super) fn policy(&self) -> Result<Policy, Failed> {
        if self.content_max > CONTENT_BYTES_LIMIT {
            return Err(Failed::usage(format!("--content-max {} is too large", self.content_max))
                .why("the broker takes no message over 16 MiB, and base64 adds a third")
                .hint(format!("at most {CONTENT_BYTES_LIMIT}")));
        }
        let rules = PolicyRules {
            allow_decky: self.allow_decky.clone(),
            deny_decky: self.deny_decky.clone(),
            allow_path: self.allow_path.clone(),
            deny_path: self.deny_path.clone(),
            container_suffix: self.container_suffix.clone(),
        };
        Policy::new(&rules).map_err(|error| {
            Failed::usage("--allow-* and --deny-* cannot be used")
                .why(error)
                .hint("globs such as 'web-*' or '/home/**'")
        })
    }
}

/// Where the broker is, and what things are called there.
#[derive(Debug, Clone, Args)]
pub struct BrokerSettings {
    /// The broker's AMQP URL
    #[arg(
        long,
        value_name = "URL",
        env = "DECKSWAIN_BROKER",
        hide_env_values = true,
        default_value = "amqp://guest:guest@127.0.0.1:5672/%2f"
    )]
    pub broker: String,
    /// Trust only the authorities in this PEM file to sign the broker's certificate
    #[arg(long, value_name = "FILE", env = "DECKSWAIN_TLS_CA", value_hint = ValueHint::FilePath)]
    pub tls_ca: Option<String>,
    /// Show the broker this client certificate (PEM, with those that lead to its authority)
    #[arg(long, value_name = "FILE", env = "DECKSWAIN_TLS_CERT", value_hint = ValueHint::FilePath)]
    pub tls_cert: Option<String>,
    /// The key of the client certificate (PEM, without a passphrase)
    #[arg(long, value_name = "FILE", env = "DECKSWAIN_TLS_KEY", value_hint = ValueHint::FilePath)]
    pub tls_key: Option<String>,
    /// How to log in: with the URL's user and password, or as the client certificate's name
    #[arg(long, value_name = "NAME", env = "DECKSWAIN_AUTH_MECHANISM", value_parser = ["plain", "external"])]
    pub auth_mechanism: Option<String>,
    /// What the names of the exchanges and queues begin with
    #[arg(long, value_name = "NAME", env = "DECKSWAIN_PREFIX", default_value = "deckswain")]
    pub prefix: String,
}

impl BrokerSettings {
    /// The URL with the settings beside it as its parameters; RabbitMQ has the same names for them.
    pub(super) fn url(&self) -> String {
        let beside = [
            ("cacertfile", self.tls_ca.as_deref()),
            ("certfile", self.tls_cert.as_deref()),
            ("keyfile", self.tls_key.as_deref()),
            ("auth_mechanism", self.auth_mechanism.as_deref()),
        ];
        let mut url = self.broker.clone();
        for (name, value) in beside {
            let Some(value) = value else { continue };
            url.push(if url.contains('?') { '&' } else { '?' });
            url.push_str(name);
            url.push('=');
            url.extend(byte_serialize(value.as_bytes()));
        }
        url
    }
}

pub(super) fn duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(Duration::ZERO) => Err("a duration of nothing is no time limit".to_owned()),
        Ok(duration) => Ok(duration),
        Err(error) => Err(format!("{error} (write it like 8s, 500ms or 2m)")),
    }
}

/// A number of bytes, as people write it.
pub(super) fn size(text: &str) -> Result<usize, String> {
    let units = [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("", 1)];
    let parsed = units.iter().find_map(|(unit, bytes)| {
        let number = text.strip_suffix(unit)?.trim_end();
        number.parse::<usize>().ok()?.checked_mul(*bytes)
    });
    parsed.filter(|bytes| *bytes > 0).ok_or_else(|| "write it like 256MiB or 1GiB".to_owned())
}

pub(super) fn glob(text: &str) -> Result<GlobMatcher, String> {
    Glob::new(text).map(|glob| glob.compile_matcher()).map_err(|error| error.to_string())
}

/// How the actions are shared out between workers.
#[derive(Debug, Clone, Args)]
pub struct LayoutSettings {
    /// Share out the deckies over N queues, so that order on a decky holds across all workers; the same N for each of them
    #[arg(long, value_name = "N", env = "DECKSWAIN_PARTITIONS", value_parser = clap::value_parser!(u16).range(1..=256), conflicts_with = "local")]
    pub partitions: Option<u16>,
    /// Take actions for just the deckies whose containers run on this worker's engine
    #[arg(long, env = "DECKSWAIN_LOCAL")]
    pub local: bool,
    /// Name of this host with --local, which its queue is named for [default: the system's host name]
    #[arg(long, value_name = "NAME", env = "DECKSWAIN_HOST", value_parser = host_name)]
    pub host: Option<String>,
}

/// A host's name is part of a queue's name, which AMQP limits to 255 bytes.
fn host_name(text: &str) -> Result<String, String> {
    let is_one = (1..=100).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte));
    if is_one { Ok(text.to_owned()) } else { Err("expected 1 to 100 letters, digits or _.-".to_owned()) }
}

impl LayoutSettings {
    /// The host's name; one that the system gives and that does not fit has to be given.
    pub(super) fn host(&self) -> Result<String, Failed> {
        if let Some(host) = &self.host {
            return Ok(host.clone());
        }
        let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        match host_name(name.trim()) {
            Ok(name) => Ok(name),
            Err(_) if !self.local => Ok(String::new()),
            Err(why) => Err(Failed::usage("the system's host name cannot name a queue")
                .why(why)
                .hint("--host NAME, different on each host")),
        }
    }

    pub(super) fn layout(&self) -> Layout {
        match (self.partitions, self.local) {
            (Some(count), _) => Layout::Partitioned(count),
            (None, true) => Layout::Local,
            (None, false) => Layout::Shared,
        }
    }
}

/// The delay queues.
#[derive(Debug, Clone, Args)]
pub struct RetrySettings {
    /// How long a failed action waits before its next attempt, one delay for each; the last serves all further ones
    #[arg(long, value_name = "DURATIONS", env = "DECKSWAIN_RETRY_DELAYS", default_value = "1s,5s,30s,2m,10m", value_delimiter = ',', value_parser = duration)]
    pub retry_delays: Vec<Duration>,
}
