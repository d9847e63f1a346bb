//! The real parts that the tests run against, as `scripts/parts up` names them.

#![allow(dead_code, reason = "each test file uses a part of this module")]

pub mod batch;
pub mod engine;
pub mod faults;
pub mod hosts;
pub mod means;
pub mod own_broker;
pub mod proxy;
pub mod raw;
pub mod tool;

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use futures_lite::StreamExt as _;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions, QueueBindOptions,
    QueueDeclareOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, Consumer, message::Delivery};
use serde_json::{Value, json};
use uuid::Uuid;

/// Beyond this nothing that a test waits for can still come.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// One of the parts, by the name of its environment variable.
pub fn part(name: &str) -> String {
    std::env::var(name)
        .unwrap_or_else(|_| panic!("{name} is not set: `make test` starts the parts and names them"))
}

pub fn alpha() -> String {
    part("DECKSWAIN_TEST_ALPHA")
}

pub fn beta() -> String {
    part("DECKSWAIN_TEST_BETA")
}

pub fn docker(arguments: &[&str]) -> Output {
    Command::new("docker").args(arguments).stdin(Stdio::null()).output().expect("the docker client starts")
}

/// What a command inside a decky prints.
pub fn inside(decky: &str, command: &[&str]) -> Vec<u8> {
    let container = format!("{decky}-ssh");
    let output = docker(&[&["exec", &container], command].concat());
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// Looks until it is so; the pause only spares the processor.
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = std::time::Instant::now();
    while !is_so() {
        assert!(began.elapsed() < PATIENCE, "never: {what}");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

/// The label by which the next run finds a container that a killed test left; see `scripts/containers.sh`.
pub fn label() -> String {
    format!("run.owner={}.{}", part("DECKSWAIN_TEST_HOST"), std::process::id())
}

/// A directory in the decky that no other test uses.
pub fn fresh_directory(decky: &str) -> String {
    let directory = format!("/srv/{}", Uuid::new_v4().simple());
    inside(decky, &["mkdir", "-p", &directory]);
    directory
}

/// A decky of a test's own, which it may damage.
pub struct OwnDecky {
    pub name: String,
    /// What follows the name in its container's.
    pub suffix: String,
}

impl OwnDecky {
    pub fn start() -> Self {
        Self::start_as(&format!("own-{}", &Uuid::new_v4().simple().to_string()[..8]), "-ssh")
    }

    /// A decky called as documents call theirs; the suffix keeps it apart from others.
    pub fn start_named(name: &str) -> Self {
        Self::start_as(name, &format!("-ssh-{}", &Uuid::new_v4().simple().to_string()[..8]))
    }

    pub fn start_as(name: &str, suffix: &str) -> Self {
        Self::start_with(name, suffix, &[])
    }

    /// A decky whose container is started with further options.
    pub fn start_with(name: &str, suffix: &str, options: &[&str]) -> Self {
        let decky = Self { name: name.to_owned(), suffix: suffix.to_owned() };
        let container = decky.container();
        let (label, image) = (label(), part("DECKSWAIN_TEST_IMAGE"));
        let usual = ["run", "-d", "--name", &container, "--hostname", "app-07", "--label", &label];
        let output = docker(&[&usual, options, &[image.as_str()]].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        wait_until("the decky's sshd is up", || {
            docker(&["exec", &container, "test", "-s", "/run/sshd.pid"]).status.success()
                && decky.processes().is_empty()
        });
        decky
    }

    pub fn container(&self) -> String {
        format!("{}{}", self.name, self.suffix)
    }

    /// The command lines that run in the decky, but for its sshd.
    pub fn processes(&self) -> Vec<String> {
        let output = docker(&["top", &self.container(), "-eo", "pid,args"]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.lines().skip(1).filter(|line| !line.contains("sshd")).map(ToOwned::to_owned).collect()
    }
}

impl Drop for OwnDecky {
    fn drop(&mut self) {
        docker(&["rm", "-f", "-v", &self.container()]);
    }
}

/// Performs actions with `deckswain run`; gives the exit status and the results.
pub fn run(arguments: &[&str], actions: &[Value]) -> (i32, Vec<Value>) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_deckswain"))
        .arg("run")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("deckswain starts");
    let input: String = actions.iter().map(|action| format!("{action}\n")).collect();
    let mut stdin = child.stdin.take().expect("a pipe");
    let feeding = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().expect("deckswain ends");
    feeding.join().expect("no panic").expect("deckswain reads its input");
    let results = output.stdout.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let results = results.map(|line| serde_json::from_slice(line).expect("a result is JSON")).collect();
    (output.status.code().expect("an exit status"), results)
}

/// A file action.
pub fn file(decky: &str, path: &str) -> Value {
    json!({"kind": "file", "dst_uuid": "d-1", "dst_name": decky, "path": path})
}

/// `value` with further fields.
pub fn with(mut value: Value, fields: Value) -> Value {
    for (name, field) in fields.as_object().expect("an object") {
        value[name] = field.clone();
    }
    value
}

/// A worker as a process of its own, ended when it goes out of scope.
pub struct WorkerProcess {
    child: Child,
    lines: mpsc::Receiver<String>,
    /// Whether all of its log comes here.
    is_log_read: bool,
}

impl WorkerProcess {
    /// Starts a worker and waits until it consumes.
    pub fn start(prefix: &str, arguments: &[&str]) -> Self {
        let mut worker = Self::spawn(prefix, arguments);
        worker.wait_for_line("consuming");
        worker
    }

    /// `deckswain worker` with its log in a pipe.
    pub fn command(prefix: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_deckswain"));
        command.args(["worker", "--prefix", prefix]).args(arguments);
        command.env("NO_COLOR", "1").stdin(Stdio::null()).stderr(Stdio::piped());
        command
    }

    pub fn spawn(prefix: &str, arguments: &[&str]) -> Self {
        Self::of(Self::command(prefix, arguments).spawn().expect("deckswain starts"))
    }

    /// A worker that was started; its log is read where it goes into a pipe.
    pub fn of(mut child: Child) -> Self {
        let (sender, lines) = mpsc::channel();
        let Some(stderr) = child.stderr.take().map(BufReader::new) else {
            return Self { child, lines, is_log_read: false };
        };
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                eprintln!("worker: {line}");
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Self { child, lines, is_log_read: true }
    }

    pub fn wait_for_line(&mut self, holds: &str) -> String {
        loop {
            let line = self.lines.recv_timeout(PATIENCE);
            let line = line.unwrap_or_else(|_| panic!("the worker never said {holds:?}"));
            if line.contains(holds) {
                return line;
            }
        }
    }

    /// Ends the reading of its log: the pipe is closed once another line has come.
    pub fn close_log(&mut self) {
        self.lines = mpsc::channel().1;
        self.is_log_read = false;
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The most resident memory it ever had, in KiB.
    pub fn memory_peak_kib(&self) -> u64 {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("the worker runs");
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("the kernel tells the peak");
        line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number")
    }

    pub fn signal(&self, signal: &str) {
        let status = Command::new("kill").args([signal, &self.pid().to_string()]).status();
        assert!(status.expect("kill starts").success());
    }

    /// Asks it to stop and gives its exit status.
    pub fn stop(mut self) -> i32 {
        self.signal("-TERM");
        self.wait()
    }

    pub fn wait(&mut self) -> i32 {
        let status = self.child.wait().expect("the worker ends").code().expect("an exit status");
        if status == 0 {
            self.assert_acks_are_accounted_for();
        }
        status
    }

    /// Every delivery that a worker acked left something behind: it says so when it stops.
    fn assert_acks_are_accounted_for(&mut self) {
        if !self.is_log_read {
            return;
        }
        let lines: Vec<String> = self.lines.iter().collect();
        let last = lines.iter().find(|line| line.contains("stopped settled=")).expect("the worker's counts");
        let counts = last.split_once("stopped ").expect("fields").1.split_whitespace();
        let mut counts: HashMap<&str, u64> = counts
            .filter_map(|field| field.split_once('='))
            .map(|(name, count)| (name, count.parse().expect("a count")))
            .collect();
        let settlements = ["settled", "unsettled"].map(|name| counts.remove(name).expect("a count"));
        assert!(counts.contains_key("results"), "{last}");
        assert_eq!(settlements.iter().sum::<u64>(), counts.values().sum::<u64>(), "{last}");
    }

    /// Waits for it to end by itself, no longer than `time`; says whether it did.
    fn has_ended_within(&mut self, time: Duration) -> bool {
        let began = std::time::Instant::now();
        while self.child.try_wait().expect("a child").is_none() {
            if began.elapsed() > time {
                return false;
            }
            std::thread::park_timeout(Duration::from_millis(5));
        }
        true
    }
}

impl Drop for WorkerProcess {
    fn drop(&mut self) {
        // A worker that can still be asked to stop gives account of its acks.
        if !std::thread::panicking() && !self.has_ended_within(Duration::ZERO) {
            for time in [Duration::from_secs(2), Duration::from_secs(1)] {
                self.signal("-TERM");
                if self.has_ended_within(time) {
                    // One that never came to consume has nothing to account for.
                    if self.child.wait().is_ok_and(|status| status.success()) {
                        self.assert_acks_are_accounted_for();
                    }
                    return;
                }
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The planner's and the canary worker's side of the broker, under a prefix of its own.
pub struct Peer {
    pub prefix: String,
    pub channel: Channel,
    _connection: Connection,
}

impl Peer {
    pub async fn connect() -> Self {
        let properties = ConnectionProperties::default()
            .with_executor(tokio_executor_trait::Tokio::current())
            .with_reactor(tokio_reactor_trait::Tokio::current());
        let connection =
            Connection::connect(&part("DECKSWAIN_BROKER"), properties).await.expect("the broker answers");
        let channel = connection.create_channel().await.expect("a channel");
        channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirms");
        let prefix = format!("t{}", &Uuid::new_v4().simple().to_string()[..10]);
        Self { prefix, channel, _connection: connection }
    }

    /// Publishes an action under a fresh id and gives that id.
    pub async fn submit(&self, action: Value) -> String {
        let id = Uuid::new_v4().to_string();
        let action = with(action, json!({"action_id": id}));
        self.publish(action.to_string().as_bytes(), BasicProperties::default()).await;
        id
    }

    pub async fn publish(&self, body: &[u8], properties: BasicProperties) {
        let exchange = format!("{}.actions", self.prefix);
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let confirm = self.channel.basic_publish(&exchange, "decky.x", options, body, properties).await;
        let confirmation = confirm.expect("published").await.expect("confirmed");
        assert!(confirmation.is_ack() && confirmation.take_message().is_none(), "the actions queue takes it");
    }

    /// Consumes one of the prefix's own queues.
    pub async fn consume(&self, queue: &str) -> Inbox {
        let queue = format!("{}.{queue}", self.prefix);
        let options = BasicConsumeOptions::default();
        let consumer = self.channel.basic_consume(&queue, "", options, FieldTable::default()).await;
        Inbox(consumer.expect("the queue is there"))
    }

    /// Binds a queue of the test's own to the results.
    pub async fn bind_results(&self, key: &str) -> Inbox {
        let name = format!("mine.{}", Uuid::new_v4().simple());
        let options = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
        self.channel.queue_declare(&name, options, FieldTable::default()).await.expect("declared");
        let exchange = format!("{}.results", self.prefix);
        let bind = QueueBindOptions::default();
        self.channel.queue_bind(&name, &exchange, key, bind, FieldTable::default()).await.expect("bound");
        let consume = BasicConsumeOptions::default();
        Inbox(self.channel.basic_consume(&name, "", consume, FieldTable::default()).await.expect("consumed"))
    }

    /// How many messages wait in one of the prefix's queues.
    /// Whether there is a queue of that name.
    pub async fn exists(&self, queue: &str) -> bool {
        // A queue that is missing costs the channel.
        let channel = self._connection.create_channel().await.expect("a channel");
        let options = QueueDeclareOptions { passive: true, durable: true, ..QueueDeclareOptions::default() };
        let queue = format!("{}.{queue}", self.prefix);
        channel.queue_declare(&queue, options, FieldTable::default()).await.is_ok()
    }

    pub async fn count(&self, queue: &str) -> u32 {
        let queue = format!("{}.{queue}", self.prefix);
        let options = QueueDeclareOptions { passive: true, durable: true, ..QueueDeclareOptions::default() };
        let declared = self.channel.queue_declare(&queue, options, FieldTable::default()).await;
        declared.expect("the queue is there").message_count()
    }
}

/// Messages as they come.
pub struct Inbox(Consumer);

impl Inbox {
    pub fn queue(&self) -> String {
        self.0.queue().to_string()
    }

    pub async fn next(&mut self) -> Delivery {
        let next = tokio::time::timeout(PATIENCE, self.0.next()).await;
        let delivery = next.expect("a message comes").expect("the consumer lives").expect("no error");
        delivery.ack(BasicAckOptions::default()).await.expect("acked");
        delivery
    }

    pub async fn next_json(&mut self) -> Value {
        serde_json::from_slice(&self.next().await.data).expect("a result is JSON")
    }
}

/// The text of a header.
pub fn header(delivery: &Delivery, name: &str) -> Option<String> {
    let headers = delivery.properties.headers().as_ref()?;
    match headers.inner().get(name)? {
        lapin::types::AMQPValue::LongString(text) => Some(text.to_string()),
        other => Some(format!("{other:?}")),
    }
}
