//! TLS to the broker: authorities, client certificates, EXTERNAL, and errors that name the cause.

mod support;

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection};
use support::own_broker::OwnBroker;
use support::tool::text;

type Authority = CertifiedIssuer<'static, KeyPair>;

/// Certificates of a test's own, as files.
struct Certificates {
    folder: tempfile::TempDir,
    authority: Authority,
}

fn authority(name: &str) -> Authority {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, name);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

impl Certificates {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let certificates = Self { folder, authority: authority("test authority") };
        certificates.write("ca.pem", &certificates.authority.pem());
        certificates.issue("server", params("localhost"), &certificates.authority);
        certificates
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn file(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    fn write(&self, name: &str, text: &str) -> String {
        std::fs::write(self.path(name), text).unwrap();
        self.file(name)
    }

    /// Writes a certificate and its key, signed by `by`.
    fn issue(&self, name: &str, params: CertificateParams, by: &Authority) {
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, by).unwrap();
        self.write(&format!("{name}.pem"), &certificate.pem());
        self.write(&format!("{name}-key.pem"), &key.serialize_pem());
    }

    /// The options that name the authority and, where there is one, the client certificate `name`.
    fn options(&self, name: Option<&str>) -> Vec<String> {
        let mut options = vec!["--tls-ca".to_owned(), self.file("ca.pem")];
        if let Some(name) = name {
            options.extend(["--tls-cert".to_owned(), self.file(&format!("{name}.pem"))]);
            options.extend(["--tls-key".to_owned(), self.file(&format!("{name}-key.pem"))]);
        }
        options
    }
}

fn topology(url: &str, options: &[String]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_deckswain"));
    command.args(["topology", "--declare"]).args(options).env("DECKSWAIN_BROKER", url);
    command.stdin(Stdio::null()).output().unwrap()
}

fn assert_refused(output: &Output, status: i32, why: &str, hint: &str) {
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{said}");
    assert!(said.contains(why) && said.contains(hint), "{why:?} and {hint:?} are not both in:\n{said}");
}

/// A TLS server with the certificate `name`, which goes away after one handshake.
fn server(certificates: &Certificates, name: &str) -> u16 {
    let chain = CertificateDer::pem_file_iter(certificates.path(&format!("{name}.pem"))).unwrap();
    let key = PrivateKeyDer::from_pem_file(certificates.path(&format!("{name}-key.pem"))).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let chain = chain.map(Result::unwrap).collect();
    let config = config.with_no_client_auth().with_single_cert(chain, key).unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut session = ServerConnection::new(Arc::new(config)).unwrap();
        // The client refuses the certificate, so this fails.
        let _ = session.complete_io(&mut stream);
    });
    port
}

#[test]
fn a_broker_that_wants_a_client_certificate_takes_the_right_one_and_each_error_names_its_cause() {
    let certificates = Certificates::new();
    certificates.issue("client", params("guest"), &certificates.authority);
    certificates.issue("nobody", params("nobody"), &certificates.authority);
    certificates.issue("strange", params("guest"), &authority("another authority"));
    let broker = OwnBroker::start_with_tls(certificates.folder.path());
    let port = broker.tls_port();
    let url = format!("amqps://guest:guest@localhost:{port}/%2f");
    let assert_taken = |url: &str, options: &[String]| {
        let declared = topology(url, options);
        assert!(declared.status.success(), "{}", text(&declared.stderr));
    };

    let client = certificates.options(Some("client"));
    assert_taken(&url, &client);
    // The same by RabbitMQ's parameters, with EXTERNAL: the certificate's name is the user.
    let parameters = format!(
        "amqps://localhost:{port}/%2f?cacertfile={}&certfile={}&keyfile={}&verify=verify_peer\
         &fail_if_no_peer_cert=true&auth_mechanism=external&heartbeat=10&connection_timeout=9000",
        certificates.file("ca.pem"),
        certificates.file("client.pem"),
        certificates.file("client-key.pem")
    );
    assert_taken(&parameters, &[]);
    let external =
        |name| [certificates.options(Some(name)), vec!["--auth-mechanism=external".to_owned()]].concat();
    assert_taken(&url, &external("client"));
    assert_refused(
        &topology(&url, &external("nobody")),
        3,
        "ACCESS_REFUSED",
        "a user of the certificate's name",
    );

    // Over TLS 1.3 the broker's reason and the loss of the connection race.
    for _ in 0..5 {
        let none = topology(&url, &certificates.options(None));
        assert_refused(&none, 3, "asked for a client certificate and got none", "--tls-cert");
    }
    let strange = topology(&url, &certificates.options(Some("strange")));
    assert_refused(&strange, 3, "did not accept the client certificate", "ssl_options.cacertfile");
    assert_refused(
        &topology(&url, &[]),
        3,
        "no authority that this system trusts has signed",
        "--tls-ca FILE",
    );
    let by_address = url.replace("localhost", "127.0.0.1");
    assert_refused(&topology(&by_address, &client), 3, "is for another host", "server_name_indication");
    assert_taken(&format!("{by_address}?server_name_indication=localhost"), &client);
    let plain_port = broker.url.replace("amqp://", "amqps://");
    assert_refused(&topology(&plain_port, &client), 3, "does not speak TLS", "RabbitMQ's is 5671");
    let plain = format!("amqp://guest:guest@localhost:{port}/%2f");
    assert_refused(&topology(&plain, &[]), 3, "", "needs amqps://");
}

#[test]
fn a_certificate_that_has_expired_or_is_signed_by_a_stranger_is_told_as_that() {
    let certificates = Certificates::new();
    let mut expired = params("localhost");
    expired.not_before = date_time_ymd(2020, 1, 1);
    expired.not_after = date_time_ymd(2021, 1, 1);
    certificates.issue("expired", expired, &certificates.authority);
    certificates.issue("strange", params("localhost"), &authority("another authority"));
    for (name, why, hint) in [
        ("expired", "the broker's certificate has expired", "renew it"),
        ("strange", "no authority in --tls-ca has signed", "put the authority that signed it"),
    ] {
        let url = format!("amqps://localhost:{}", server(&certificates, name));
        assert_refused(&topology(&url, &certificates.options(None)), 3, why, hint);
    }
}

#[test]
fn a_file_that_cannot_be_used_is_named_before_anything_is_sent() {
    let certificates = Certificates::new();
    certificates.issue("client", params("guest"), &certificates.authority);
    certificates.issue("other", params("guest"), &certificates.authority);
    let empty = certificates.write("empty.pem", "");
    let pem = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
    let locked = certificates.write("locked.pem", pem);
    let (cert, key) = (certificates.file("client.pem"), certificates.file("client-key.pem"));
    let other = certificates.file("other-key.pem");
    for (options, why) in [
        (vec!["--tls-ca", "/no/such.pem"], "No such file"),
        (vec!["--tls-ca", &empty], "it holds no certificate"),
        (vec!["--tls-ca", &key], "it holds no certificate"),
        (vec!["--tls-cert", &cert], "needs its key"),
        (vec!["--tls-key", &key], "needs its client certificate"),
        (vec!["--tls-cert", &cert, "--tls-key", &locked], "encrypted with a passphrase"),
        (vec!["--tls-cert", &cert, "--tls-key", &empty], "cannot be used"),
        (vec!["--tls-cert", &cert, "--tls-key", &other], "not the key of the certificate"),
    ] {
        let options: Vec<String> = options.into_iter().map(ToOwned::to_owned).collect();
        // Nobody listens on this port, and nobody is asked.
        assert_refused(&topology("amqps://localhost:1/", &options), 2, why, "try: ");
    }
    let readable = topology("amqps://localhost:1/", &certificates.options(Some("client")));
    let (warning, hint) = ("every user of this host can read the TLS key", "start RabbitMQ");
    assert_refused(&readable, 3, warning, hint);
    let plain = topology("amqp://localhost:1/", &certificates.options(None));
    assert_refused(&plain, 2, "settings for TLS need a URL that begins with amqps://", "try: ");
    let system = Command::new(env!("CARGO_BIN_EXE_deckswain"))
        .args(["topology", "--broker", "amqps://localhost:1/"])
        .env("SSL_CERT_FILE", "/no/such.pem")
        .env_remove("SSL_CERT_DIR")
        .output();
    assert_refused(&system.unwrap(), 2, "this system's authorities cannot be used", "SSL_CERT_FILE");
}
