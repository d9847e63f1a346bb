//! TLS to the broker: which authorities are trusted, the client's certificate, and what went wrong.

use std::fmt;
use std::io::{Error, ErrorKind};
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Once};
use std::time::Duration;

use lapin::TcpStream;
use lapin::tcp::{HandshakeError, HandshakeResult, RustlsConnector};
use lapin::uri::AMQPUri;
use rustls::client::ResolvesClientCert;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::sign::CertifiedKey;
use rustls::{AlertDescription, CertificateError, ClientConfig, RootCertStore, SignatureScheme};
use tracing::warn;

use super::address::BrokerAddress;
use crate::broker::{BrokerError, Trouble};
use crate::secret_file::warn_if_readable_by_all;

/// The files and the name that TLS to the broker goes by, as its URL gives them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// The authorities that are trusted, in PEM; the system's where there is none.
    pub ca: Option<PathBuf>,
    /// The client's certificate, and those that lead to its authority, in PEM.
    pub cert: Option<PathBuf>,
    /// The key of the client's certificate, in PEM.
    pub key: Option<PathBuf>,
    /// The name that is asked for and looked for in the broker's certificate; the host where there is none.
    pub server_name: Option<String>,
}

impl TlsFiles {
    /// Refuses files that are not used or not enough.
    pub fn check(&self, tls: bool) -> Result<(), String> {
        if !tls && *self != Self::default() {
            return Err("settings for TLS need a URL that begins with amqps://".to_owned());
        }
        match (&self.cert, &self.key) {
            (Some(_), None) => Err("a client certificate needs its key: --tls-key, or keyfile".to_owned()),
            (None, Some(_)) => Err("a key needs its client certificate: --tls-cert, or certfile".to_owned()),
            _ => Ok(()),
        }
    }
}

/// What a TLS connection to one broker needs.
#[derive(Clone)]
pub struct Tls {
    config: Arc<ClientConfig>,
    server_name: String,
    client: Arc<ClientIdentity>,
    has_own_roots: bool,
}

/// The client's certificate, and whether the broker has asked for one.
struct ClientIdentity {
    certified: Option<Arc<CertifiedKey>>,
    was_asked: AtomicBool,
}

impl fmt::Debug for ClientIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientIdentity").field("has_certs", &self.has_certs()).finish_non_exhaustive()
    }
}

impl ResolvesClientCert for ClientIdentity {
    fn resolve(&self, _issuers: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.was_asked.store(true, Ordering::Relaxed);
        self.certified.clone()
    }

    fn has_certs(&self) -> bool {
        self.certified.is_some()
    }
}

impl Tls {
    /// Reads the files that an address names; `None` where it does not ask for TLS.
    ///
    /// They are read at each connection, so renewed certificates need no restart.
    pub fn of(address: &BrokerAddress) -> Result<Option<Self>, BrokerError> {
        match address.tls {
            true => Self::load(address.tls_files(), &address.host).map(Some).map_err(BrokerError::Address),
            false => Ok(None),
        }
    }

    fn load(files: &TlsFiles, host: &str) -> Result<Self, Trouble> {
        let server_name = files.server_name.clone().unwrap_or_else(|| host.to_owned());
        if ServerName::try_from(server_name.as_str()).is_err() {
            return Err(trouble(
                "TLS cannot be used",
                "the name of the broker is not a valid host name",
                "mend the host in --broker, or its parameter server_name_indication",
            ));
        }
        let roots = match &files.ca {
            Some(path) => own_roots(path)?,
            None => roots_of_the_system()?,
        };
        let certified = match (&files.cert, &files.key) {
            (Some(cert), Some(key)) => Some(Arc::new(client_certificate(cert, key)?)),
            _ => None,
        };
        let client = Arc::new(ClientIdentity { certified, was_asked: AtomicBool::new(false) });
        let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| trouble("TLS cannot be used", error.to_string(), "please report this"))?
            .with_root_certificates(roots)
            .with_client_cert_resolver(client.clone());
        Ok(Self { config: Arc::new(config), server_name, client, has_own_roots: files.ca.is_some() })
    }

    /// What a failed connection means, where TLS is the reason.
    pub fn explain(&self, what: &str, error: &Error) -> Option<BrokerError> {
        let told = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        let was_asked = self.client.was_asked.load(Ordering::Relaxed);
        let (why, hint) = match told {
            Some(rustls::Error::InvalidCertificate(error)) => self.explain_certificate(error),
            Some(rustls::Error::InvalidMessage(_)) => (
                format!("the peer does not speak TLS: {error}"),
                "amqps:// wants a port that speaks TLS, RabbitMQ's is 5671; amqp:// goes to 5672",
            ),
            Some(rustls::Error::AlertReceived(
                AlertDescription::HandshakeFailure
                | AlertDescription::ProtocolVersion
                | AlertDescription::InsufficientSecurity,
            )) if !was_asked => (
                format!("the broker and this client have no TLS version or cipher in common: {error}"),
                "let the broker offer TLS 1.2 or 1.3 (ssl_options.versions)",
            ),
            // Over TLS 1.3 the broker looks at the client's certificate after the handshake, and may have
            // closed the connection before its reason is read.
            _ if was_asked && !self.client.has_certs() => (
                format!("the broker asked for a client certificate and got none: {error}"),
                "--tls-cert and --tls-key, or certfile and keyfile in --broker",
            ),
            Some(_) if was_asked => (
                format!("the broker did not accept the client certificate: {error}"),
                "is --tls-cert valid now, and signed by an authority in the broker's ssl_options.cacertfile?",
            ),
            Some(_) => (error.to_string(), "the log of the broker tells more"),
            // The same race; but the broker may have gone away for another reason.
            None if was_asked => (
                format!("the broker did not accept the client certificate, or went away: {error}"),
                "is --tls-cert valid now, and signed by an authority in the broker's ssl_options.cacertfile?",
            ),
            None => return None,
        };
        let trouble = trouble(what, why, hint);
        // Without the broker's own reason it may be better later.
        Some(if told.is_some() { BrokerError::Refused(trouble) } else { BrokerError::Away(trouble) })
    }

    fn explain_certificate(&self, error: &CertificateError) -> (String, &'static str) {
        match error {
            CertificateError::UnknownIssuer if self.has_own_roots => (
                "no authority in --tls-ca has signed the broker's certificate".to_owned(),
                "put the authority that signed it into --tls-ca, and let the broker send the certificates between",
            ),
            CertificateError::UnknownIssuer => (
                "no authority that this system trusts has signed the broker's certificate".to_owned(),
                "--tls-ca FILE names an authority of your own",
            ),
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => (
                format!("the broker's certificate is for another host: {error}"),
                "name the host in --broker as the certificate does, or add ?server_name_indication=NAME",
            ),
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => (
                format!("the broker's certificate has expired: {error}"),
                "renew it, or set this host's clock",
            ),
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                (format!("the broker's certificate is not valid yet: {error}"), "look at both hosts' clocks")
            }
            other => (
                format!("the broker's certificate cannot be trusted: {other}"),
                "it has to be a certificate for a server, signed by an authority that is trusted",
            ),
        }
    }
}

/// Connects to the address of a URL within `time_max`, over TLS where there is any.
#[expect(clippy::result_large_err, reason = "the client library gives the error its size")]
pub fn dial(
    tls: Option<Tls>,
    time_max: Duration,
) -> impl Fn(&AMQPUri) -> HandshakeResult + Send + Sync + 'static {
    move |uri| {
        let addresses = (uri.authority.host.as_str(), uri.authority.port).to_socket_addrs()?;
        let addresses: Vec<SocketAddr> = addresses.collect();
        // One address that does not answer must leave time for the others.
        let share = time_max / u32::try_from(addresses.len().max(1)).unwrap_or(u32::MAX);
        let stream = TcpStream::connect_timeout(addresses.as_slice(), share)?;
        let stream = match &tls {
            None => stream,
            Some(tls) => {
                // A mute peer must not hold this thread for ever.
                stream.set_read_timeout(Some(time_max))?;
                stream.set_write_timeout(Some(time_max))?;
                let connector = RustlsConnector::from(tls.config.clone());
                match stream.into_rustls(&connector, &tls.server_name) {
                    Err(HandshakeError::WouldBlock(_)) => {
                        return Err(Error::new(ErrorKind::TimedOut, "no answer to the TLS handshake").into());
                    }
                    connected => connected?,
                }
            }
        };
        stream.set_read_timeout(None)?;
        stream.set_write_timeout(None)?;
        stream.set_nonblocking(true)?;
        Ok(stream)
    }
}

fn own_roots(path: &Path) -> Result<RootCertStore, Trouble> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates("--tls-ca", path)? {
        roots.add(certificate).map_err(|error| {
            let what = format!("--tls-ca {} cannot be used", path.display());
            trouble(what, error.to_string(), "it has to hold certificates of authorities in PEM")
        })?;
    }
    Ok(roots)
}

fn roots_of_the_system() -> Result<RootCertStore, Trouble> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    // Collections of authorities often hold some that are not valid any more.
    let (added, _) = roots.add_parsable_certificates(found.certs);
    if added > 0 {
        static WARNED: Once = Once::new();
        if let Some(error) = found.errors.first() {
            WARNED.call_once(|| {
                warn!("some certificates of this system's authorities cannot be read: {error}")
            });
        }
        return Ok(roots);
    }
    let why = found.errors.first().map_or("there are none".to_owned(), ToString::to_string);
    Err(trouble(
        "the certificates of this system's authorities cannot be used",
        why,
        "install ca-certificates, set SSL_CERT_FILE, or name the broker's authority with --tls-ca",
    ))
}

fn client_certificate(cert: &Path, key: &Path) -> Result<CertifiedKey, Trouble> {
    let chain = certificates("--tls-cert", cert)?;
    let what = || format!("--tls-key {} cannot be used", key.display());
    let pem = std::fs::read(key).map_err(|error| {
        trouble(what(), error.to_string(), "it has to be a key in PEM that this user can read")
    })?;
    static WARNED: Once = Once::new();
    WARNED.call_once(|| warn_if_readable_by_all(key, "the TLS key"));
    let parsed = PrivateKeyDer::from_pem_slice(&pem).map_err(|error| {
        if String::from_utf8_lossy(&pem).contains("ENCRYPTED") {
            let hint = "`openssl pkey -in KEY -out PLAIN` writes it without; keep that file private";
            return trouble(what(), "it is encrypted with a passphrase", hint);
        }
        trouble(what(), error.to_string(), "it has to be a private key in PEM (PKCS #8, PKCS #1 or SEC 1)")
    })?;
    CertifiedKey::from_der(chain, parsed, &default_provider()).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => trouble(
            what(),
            format!("it is not the key of the certificate in {}", cert.display()),
            "give a certificate and a key that were made together",
        ),
        error => trouble(what(), error.to_string(), "it has to be an RSA, ECDSA or Ed25519 key"),
    })
}

fn certificates(option: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, Trouble> {
    let what = || format!("{option} {} cannot be used", path.display());
    let pem = std::fs::read(path).map_err(|error| {
        trouble(
            what(),
            error.to_string(),
            "it has to be a file of certificates in PEM that this user can read",
        )
    })?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        found => {
            let why = found.err().map_or("it holds no certificate".to_owned(), |error| error.to_string());
            Err(trouble(what(), why, "it has to hold certificates in PEM: -----BEGIN CERTIFICATE-----"))
        }
    }
}

fn trouble(what: impl Into<String>, why: impl Into<String>, hint: &str) -> Trouble {
    Trouble { what: what.into(), why: why.into(), hint: hint.to_owned() }
}
