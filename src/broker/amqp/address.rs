//! A broker's URL: every part of it is honoured or refused, and no message shows any of it but the host.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use lapin::uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo, SASLMechanism};
use percent_encoding::percent_decode_str;
use url::{Host, Url};

use super::tls::TlsFiles;
use crate::broker::{BrokerError, Trouble};

/// Seconds between heartbeats unless the URL says otherwise; a mute peer is given up after two.
///
/// The broker delivers anew what a connection held only when it has given that connection up.
const HEARTBEAT_SECONDS: u16 = 5;

/// The largest frame unless the URL says otherwise, in bytes: the client library keeps buffers of 32 of
/// them each way, which at RabbitMQ's own 128 KiB come to 8 MiB a connection.
const FRAME_BYTES_MAX: u32 = 16 * 1024;
/// The smallest limit on frames that AMQP 0-9-1 allows, in bytes.
const FRAME_BYTES_LEAST: u32 = 4096;
/// The largest limit on frames that is accepted, in bytes: its buffers take 64 MiB a connection.
const FRAME_BYTES_MOST: u32 = 1024 * 1024;

const PARAMETERS: &str = "cacertfile, certfile, keyfile, server_name_indication, verify, \
    fail_if_no_peer_cert, auth_mechanism, heartbeat, connection_timeout, channel_max and frame_max";

/// Where a broker is and how to connect to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokerAddress {
    /// The host: a name, or an address without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
    /// The virtual host.
    pub vhost: String,
    /// The user.
    pub user: String,
    /// Whether it is `amqps`.
    pub tls: bool,
    password: Password,
    mechanism: SASLMechanism,
    heartbeat: Option<u16>,
    frame_max: Option<u32>,
    channel_max: Option<u16>,
    connection_timeout: Option<Duration>,
    tls_files: TlsFiles,
}

/// A password, which no message and no log shows.
#[derive(Clone, PartialEq, Eq)]
struct Password(String);

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl BrokerAddress {
    /// Parses a URL.
    ///
    /// # Errors
    ///
    /// Returns [`BrokerError::Address`] when any part is not valid or not supported. The message repeats
    /// nothing of the URL, since a damaged URL may hold its password anywhere.
    pub fn of(url: &str) -> Result<Self, BrokerError> {
        Self::parse(url).map_err(|why| {
            BrokerError::Address(Trouble {
                what: "--broker is not a valid AMQP URL".to_owned(),
                why,
                hint: "write it like amqp://user:password@host:5672/%2f".to_owned(),
            })
        })
    }

    fn parse(url: &str) -> Result<Self, String> {
        let tls = scheme_of(url)?;
        check_characters(url)?;
        let url = Url::parse(url).map_err(|error| error.to_string())?;
        let path = url.path();
        let mut address = Self {
            host: host_of(&url)?,
            port: url.port().unwrap_or(if tls { 5671 } else { 5672 }),
            vhost: if path.is_empty() { "/".to_owned() } else { decoded(&path[1..])? },
            user: if url.username().is_empty() { "guest".to_owned() } else { decoded(url.username())? },
            tls,
            password: Password(url.password().map_or(Ok("guest".to_owned()), decoded)?),
            mechanism: SASLMechanism::Plain,
            heartbeat: None,
            frame_max: None,
            channel_max: None,
            connection_timeout: None,
            tls_files: TlsFiles::default(),
        };
        let mut seen = Vec::new();
        for (position, (name, value)) in url.query_pairs().enumerate() {
            if seen.contains(&name) {
                return Err(format!("its parameter {name} is given twice, perhaps once by an option"));
            }
            // From here on the name is known, so it can be told.
            address.set(position + 1, &name, &value)?;
            seen.push(name);
        }
        address.tls_files.check(tls)?;
        Ok(address)
    }

    /// Takes one parameter of the query, with RabbitMQ's names and meanings.
    fn set(&mut self, position: usize, name: &str, value: &str) -> Result<(), String> {
        let file = || match value {
            "" => Err(format!("its parameter {name} names no file")),
            path => Ok(Some(PathBuf::from(path))),
        };
        match name {
            "cacertfile" => self.tls_files.ca = file()?,
            "certfile" => self.tls_files.cert = file()?,
            "keyfile" => self.tls_files.key = file()?,
            "server_name_indication" if value == "disable" => {
                return Err("server_name_indication=disable is not supported: the certificate is always compared with the host".to_owned());
            }
            "server_name_indication" => self.tls_files.server_name = Some(value.to_owned()),
            "verify" if value == "verify_peer" => {}
            "verify" => {
                return Err(
                    "verify can only be verify_peer: the broker's certificate is always checked".to_owned()
                );
            }
            "fail_if_no_peer_cert" if value == "true" => {}
            "fail_if_no_peer_cert" => {
                return Err(
                    "fail_if_no_peer_cert can only be true: a broker without a certificate is always refused"
                        .to_owned(),
                );
            }
            "auth_mechanism" => self.mechanism = mechanism_of(value)?,
            "heartbeat" => self.heartbeat = Some(number(name, value, "seconds", 0..=u16::MAX)?),
            "channel_max" => self.channel_max = Some(number(name, value, "channels", 0..=u16::MAX)?),
            "frame_max" => {
                self.frame_max = Some(number(name, value, "bytes", FRAME_BYTES_LEAST..=FRAME_BYTES_MOST)?);
            }
            "connection_timeout" => {
                let milliseconds = number(name, value, "milliseconds", 1..=3_600_000_u32)?;
                self.connection_timeout = Some(Duration::from_millis(milliseconds.into()));
            }
            "password" | "depth" => return Err(format!("its parameter {name} is not supported")),
            // The name is not repeated: it may be a piece of a password with a `?` in it.
            _ => return Err(format!("parameter {position} of its query is unknown; known are {PARAMETERS}")),
        }
        Ok(())
    }

    /// Whether messages sent there stay on this host.
    #[must_use]
    pub fn is_local(&self) -> bool {
        self.host == "localhost" || self.host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    }

    /// Whether the broker takes the user from the client certificate.
    #[must_use]
    pub fn is_external(&self) -> bool {
        self.mechanism == SASLMechanism::External
    }

    /// The host and the port as a URL writes them.
    #[must_use]
    pub fn endpoint(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }

    pub(super) fn tls_files(&self) -> &TlsFiles {
        &self.tls_files
    }

    /// The largest frame to ask the broker for, in bytes.
    pub(super) fn frame_bytes_max(&self) -> u32 {
        self.frame_max.unwrap_or(FRAME_BYTES_MAX)
    }

    pub(super) fn connection_timeout(&self) -> Option<Duration> {
        self.connection_timeout
    }

    /// The same in the client library's form.
    pub(super) fn to_uri(&self) -> AMQPUri {
        let (username, password) = (self.user.clone(), self.password.0.clone());
        AMQPUri {
            scheme: if self.tls { AMQPScheme::AMQPS } else { AMQPScheme::AMQP },
            authority: AMQPAuthority {
                userinfo: AMQPUserInfo { username, password },
                host: self.host.clone(),
                port: self.port,
            },
            vhost: self.vhost.clone(),
            query: AMQPQueryString {
                frame_max: Some(self.frame_bytes_max()),
                channel_max: self.channel_max,
                heartbeat: Some(self.heartbeat.unwrap_or(HEARTBEAT_SECONDS)),
                connection_timeout: None,
                auth_mechanism: Some(self.mechanism),
            },
        }
    }
}

/// The URL with stars for its password; nothing of it where it is not valid.
#[must_use]
pub fn without_password(url: &str) -> String {
    if BrokerAddress::of(url).is_err() {
        return "(not a valid URL, so it is not shown)".to_owned();
    }
    let masked = || {
        let (scheme, rest) = url.split_once("://")?;
        let (credentials, host) = rest.rsplit_once('@')?;
        let (user, _) = credentials.split_once(':')?;
        Some(format!("{scheme}://{user}:***@{host}"))
    };
    masked().unwrap_or_else(|| url.to_owned())
}

/// Whether the scheme asks for TLS.
fn scheme_of(url: &str) -> Result<bool, String> {
    match url.split_once("://").map(|(scheme, _)| scheme.to_ascii_lowercase()).as_deref() {
        Some("amqp") => Ok(false),
        Some("amqps") => Ok(true),
        _ => Err("it has to begin with amqp:// or amqps://".to_owned()),
    }
}

/// Refuses characters by which a part of the password could pass for another part of the URL.
fn check_characters(url: &str) -> Result<(), String> {
    if url.contains(|character: char| character.is_control() || character.is_whitespace()) {
        return Err("it holds a blank or a control character, written %20 and so on".to_owned());
    }
    let rest = url.split_once("://").map_or("", |(_, rest)| rest);
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    if rest[end..].contains(['@', '#']) {
        return Err("a @ or # follows its host; in a user or a password @ : / ? # % are written %40 %3a %2f %3f %23 %25".to_owned());
    }
    let is_escape = |rest: &str| rest.len() >= 2 && rest.bytes().take(2).all(|byte| byte.is_ascii_hexdigit());
    match url.split('%').skip(1).all(is_escape) {
        true => Ok(()),
        false => Err("a % is not followed by two hexadecimal digits; a % itself is written %25".to_owned()),
    }
}

fn host_of(url: &Url) -> Result<String, String> {
    let host = match url.host() {
        Some(Host::Ipv6(address)) => return Ok(address.to_string()),
        Some(Host::Ipv4(address)) => return Ok(address.to_string()),
        Some(Host::Domain(host)) => decoded(host)?,
        None => String::new(),
    };
    // As RabbitMQ reads `amqp://` and `amqp:///vhost`.
    if host.is_empty() && url.username().is_empty() && url.password().is_none() {
        return Ok("localhost".to_owned());
    }
    let is_plain = |character: char| character.is_alphanumeric() || matches!(character, '.' | '-' | '_');
    match !host.is_empty() && host.chars().all(is_plain) {
        true => Ok(host),
        false => Err("its host is neither a name nor an address".to_owned()),
    }
}

fn decoded(text: &str) -> Result<String, String> {
    let decoded = percent_decode_str(text).decode_utf8();
    decoded.map(|text| text.into_owned()).map_err(|_| "its percent-encoding is not UTF-8".to_owned())
}

fn mechanism_of(value: &str) -> Result<SASLMechanism, String> {
    match value.to_ascii_lowercase().as_str() {
        "plain" => Ok(SASLMechanism::Plain),
        "amqplain" => Ok(SASLMechanism::AMQPlain),
        "external" => Ok(SASLMechanism::External),
        _ => Err("auth_mechanism can be plain, amqplain or external".to_owned()),
    }
}

fn number<T: std::str::FromStr + PartialOrd + fmt::Display>(
    name: &str,
    value: &str,
    unit: &str,
    range: std::ops::RangeInclusive<T>,
) -> Result<T, String> {
    let number = value.parse().ok().filter(|number| range.contains(number));
    number.ok_or_else(|| {
        format!("{name} has to be a number of {unit} from {} to {}", range.start(), range.end())
    })
}

#[cfg(test)]
mod tests;
