//! A RabbitMQ of a test's own, which it may kill, freeze and starve.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use uuid::Uuid;

use super::part;

/// The broker, ended when it goes out of scope.
pub struct OwnBroker {
    folder: PathBuf,
    plugins: String,
    tls: PathBuf,
    pub url: String,
}

impl OwnBroker {
    pub fn start() -> Self {
        Self::start_with("rabbitmq_consistent_hash_exchange", Path::new(""))
    }

    pub fn start_without_plugins() -> Self {
        Self::start_with("", Path::new(""))
    }

    /// One that listens with TLS too, by the certificates in this folder, and takes EXTERNAL.
    pub fn start_with_tls(folder: &Path) -> Self {
        Self::start_with("rabbitmq_consistent_hash_exchange,rabbitmq_auth_mechanism_ssl", folder)
    }

    fn start_with(plugins: &str, tls: &Path) -> Self {
        // `scripts/parts down` ends what a killed test leaves here.
        let folder = Path::new(&part("PARTS_DIR")).join(format!("own-broker.{}", Uuid::new_v4().simple()));
        let mut broker =
            Self { folder, url: String::new(), plugins: plugins.to_owned(), tls: tls.to_owned() };
        broker.up();
        broker.url = broker.told("DECKSWAIN_BROKER");
        broker
    }

    /// Starts it, or starts it again on its ports.
    pub fn up(&self) {
        script(&["up", self.folder.to_str().unwrap()], &self.plugins, &self.tls);
    }

    /// The port that it speaks TLS on.
    pub fn tls_port(&self) -> String {
        self.told("TLS_PORT")
    }

    fn told(&self, name: &str) -> String {
        let told = std::fs::read_to_string(self.folder.join("broker.env")).expect("the broker is up");
        let line = told.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        line.expect("scripts/broker names it").to_owned()
    }

    fn signal(&self, signal: &str) {
        let status = Command::new("kill").args([signal, &self.told("BROKER_PID")]).status();
        assert!(status.unwrap().success());
    }

    /// Ends it without warning.
    pub fn kill(&self) {
        self.signal("-KILL");
        let gone = Path::new("/proc").join(self.told("BROKER_PID"));
        super::wait_until("the broker is gone", || !gone.exists());
    }

    pub fn freeze(&self) {
        self.signal("-STOP");
    }

    pub fn thaw(&self) {
        self.signal("-CONT");
    }

    /// Runs `rabbitmqctl` on it.
    pub fn ctl(&self, arguments: &[&str]) {
        rabbitmqctl(&self.folder.join("rabbitmqctl"), arguments);
    }

    /// Every publisher is held up while it lasts.
    pub fn memory_alarm(&self, on: bool) {
        self.ctl(&["set_vm_memory_high_watermark", if on { "0" } else { "0.4" }]);
    }
}

impl Drop for OwnBroker {
    fn drop(&mut self) {
        script(&["down", self.folder.to_str().unwrap()], "", Path::new(""));
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn script(arguments: &[&str], plugins: &str, tls: &Path) {
    let mut command = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/broker"));
    let status = command
        .args(arguments)
        .env("BROKER_PLUGINS", plugins)
        .env("BROKER_TLS", tls)
        .stdin(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success(), "scripts/broker {arguments:?}");
}

pub fn rabbitmqctl(program: &Path, arguments: &[&str]) {
    let output = Command::new(program).arg("--quiet").args(arguments).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A user of the shared broker's, gone with the test.
pub struct User(String);

impl User {
    /// One who may do nothing yet.
    pub fn named(name: &str) -> Self {
        let user = Self(name.to_owned());
        user.ctl(&["add_user", name, "pw"]);
        user
    }

    /// The broker's URL for this user.
    pub fn url(&self, broker: &str) -> String {
        broker.replace("guest:guest", &format!("{}:pw", self.0))
    }

    pub fn may(&self, configure: &str, write: &str, read: &str) {
        self.ctl(&["set_permissions", "-p", "/", &self.0, configure, write, read]);
    }

    /// Where a topic exchange may be written to and read from, by routing key.
    pub fn may_on(&self, exchange: &str, write: &str, read: &str) {
        self.ctl(&["set_topic_permissions", "-p", "/", &self.0, exchange, write, read]);
    }

    fn ctl(&self, arguments: &[&str]) {
        rabbitmqctl(Path::new(&part("DECKSWAIN_TEST_RABBITMQCTL")), arguments);
    }
}

impl Drop for User {
    fn drop(&mut self) {
        self.ctl(&["delete_user", &self.0]);
    }
}
