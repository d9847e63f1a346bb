//! A cell of the fault matrix: it counts what came of a few hundred actions under a fault.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Write as _;
use std::io::Write as _;
use std::process::Command;
use std::time::{Duration, Instant};

use futures_lite::StreamExt as _;
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
    QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, Consumer};
use serde_json::{Value, json};
use uuid::Uuid;

use super::engine::Engine;
use super::{PATIENCE, WorkerProcess, part};

/// How many actions every cell publishes, the one after the fault not counted.
pub const ACTIONS: usize = 300;

/// The issue asks for 10 s, which is printed; what is asserted leaves room for a busy machine.
const AGAIN_TIME_MAX: Duration = Duration::from_secs(60);

/// After this long without a message none that a cell waits for can still come: a broker that lost its peer in
/// silence needs two missed heartbeats to give its deliveries back.
const COLLECT_PATIENCE: Duration = Duration::from_secs(90);

/// What has come out at the other end.
#[derive(Default)]
struct Found {
    /// The actions of which nothing has come yet.
    open: HashSet<String>,
    results: HashMap<String, Vec<Value>>,
    dead: HashMap<String, Delivery>,
    dead_twice: usize,
    messages: usize,
}

/// One cell of the matrix, under a prefix of its own.
pub struct Cell {
    name: String,
    pub engine: Engine,
    pub prefix: String,
    pub broker: String,
    /// Where the worker finds the broker: a proxy may stand between.
    pub broker_of_worker: String,
    pub deckies: usize,
    /// The queues that are empty when nothing is left to do.
    pub queues: Vec<String>,
    paths: BTreeMap<String, String>,
    /// The length of each action's content, in bytes.
    lengths: HashMap<String, usize>,
    /// Into how many partitions actions are published directly, one after the other.
    pub partitions: Option<usize>,
    found: Found,
    again: Option<Duration>,
}

/// The counts of a cell that has ended.
pub struct Verdict {
    pub run_twice: usize,
    pub results_twice: usize,
    pub dead_twice: usize,
    pub dead: HashMap<String, Delivery>,
    /// The paths of all runs in the order in which they began.
    pub begun: Vec<String>,
}

impl Cell {
    /// A cell on the broker of the whole suite.
    pub fn new(name: &str) -> Self {
        Self::on(name, &part("DECKSWAIN_BROKER"))
    }

    pub fn on(name: &str, broker: &str) -> Self {
        Self {
            name: name.to_owned(),
            engine: Engine::new(),
            prefix: format!("f{}", &Uuid::new_v4().simple().to_string()[..10]),
            broker: broker.to_owned(),
            broker_of_worker: broker.to_owned(),
            deckies: 10,
            queues: vec!["actions".to_owned()],
            paths: BTreeMap::new(),
            lengths: HashMap::new(),
            partitions: None,
            found: Found::default(),
            again: None,
        }
    }

    /// A worker of this cell that consumes.
    pub fn worker(&self, arguments: &[&str]) -> WorkerProcess {
        let mut worker = self.worker_starting(arguments);
        worker.wait_for_line("consuming");
        worker
    }

    /// The worker of one of several hosts.
    pub fn worker_of(&self, host: &str, deckies: &[&str], arguments: &[&str]) -> WorkerProcess {
        let client = self.engine.client_of(host, deckies);
        let own = ["--container-cli", client.to_str().unwrap(), "--local", "--host", host, "--broker"];
        let own =
            [&own, [self.broker_of_worker.as_str(), "--concurrency", "8"].as_slice(), arguments].concat();
        WorkerProcess::spawn(&self.prefix, &own)
    }

    pub fn worker_starting(&self, arguments: &[&str]) -> WorkerProcess {
        WorkerProcess::of(self.worker_command(arguments).spawn().expect("deckswain starts"))
    }

    /// A worker of this cell that is still to be started.
    pub fn worker_command(&self, arguments: &[&str]) -> Command {
        let client = self.engine.client();
        let own = ["--broker", &self.broker_of_worker, "--container-cli", client.to_str().unwrap()];
        let usual = [["--concurrency", "8"], ["--timeout", "25s"]];
        let usual: Vec<&str> =
            usual.into_iter().filter(|[name, _]| !arguments.contains(name)).flatten().collect();
        WorkerProcess::command(&self.prefix, &[&own, usual.as_slice(), arguments].concat())
    }

    /// The supervisor of a worker that an action brings down: starts it again whenever it ends, until the
    /// action has been given up.
    pub async fn restart_until_dead(&self, mut worker: WorkerProcess, arguments: &[&str]) -> WorkerProcess {
        let mut starts = 1;
        while self.count("dead").await == 0 {
            assert!(starts < 60, "the poison is still about after {starts} starts");
            if worker.has_ended() {
                worker = self.worker_starting(arguments);
                starts += 1;
            }
        }
        println!("the worker was started {starts} times");
        worker
    }

    pub async fn connect(&self) -> (Connection, Channel) {
        let properties = ConnectionProperties::default()
            .with_executor(tokio_executor_trait::Tokio::current())
            .with_reactor(tokio_reactor_trait::Tokio::current());
        let connection = Connection::connect(&self.broker, properties);
        let connection = tokio::time::timeout(PATIENCE, connection).await.expect("an answer");
        let connection = connection.expect("the broker answers");
        let channel = connection.create_channel().await.expect("a channel");
        (connection, channel)
    }

    /// Publishes so many further actions; gives their ids.
    pub async fn publish(&mut self, actions: usize) -> Vec<String> {
        self.publish_long(actions, 0).await
    }

    /// The same with contents of so many bytes.
    pub async fn publish_long(&mut self, actions: usize, length: usize) -> Vec<String> {
        let (connection, channel) = self.connect().await;
        channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
        let exchange = self.partitions.map_or_else(|| format!("{}.actions", self.prefix), |_| String::new());
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let mut ids = Vec::new();
        for _ in 0..actions {
            let (id, n) = (Uuid::new_v4().to_string(), self.paths.len());
            let decky = format!("web-{:02}", n % self.deckies);
            let filling = "-".repeat(length.saturating_sub(id.len()));
            let files = self.engine.files(&decky);
            // Deckies share no directory that two of their first plants could make at once.
            std::fs::create_dir_all(&files).unwrap();
            let path = files.join(format!("{n:05}")).to_str().unwrap().to_owned();
            let action = json!({"kind": "file", "dst_uuid": "d-1", "dst_name": decky, "path": path,
                "content": format!("{id}{filling}"), "action_id": id});
            let properties = BasicProperties::default().with_delivery_mode(2);
            let body = action.to_string();
            let partition = |count| format!("{}.partition.{}", self.prefix, n % count);
            let key = self.partitions.map_or_else(|| format!("decky.{decky}"), partition);
            channel.basic_publish(&exchange, &key, options, body.as_bytes(), properties).await.unwrap();
            self.paths.insert(id.clone(), path);
            self.lengths.insert(id.clone(), length.max(id.len()));
            self.found.open.insert(id.clone());
            ids.push(id);
        }
        assert!(channel.wait_for_confirms().await.unwrap().is_empty(), "the actions queue takes them");
        connection.close(200, "done").await.unwrap();
        ids
    }

    pub fn path(&self, id: &str) -> &str {
        &self.paths[id]
    }

    /// Declares the results queue as a worker would, and binds it.
    pub async fn bind_results(&self) {
        let (connection, channel) = self.connect().await;
        let name = format!("{}.results", self.prefix);
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        channel.queue_declare(&name, options, arguments).await.unwrap();
        let bind = QueueBindOptions::default();
        channel.queue_bind(&name, &name, "#", bind, FieldTable::default()).await.unwrap();
        connection.close(200, "done").await.unwrap();
    }

    /// How many messages of one of the cell's queues wait for a consumer.
    pub async fn count(&self, queue: &str) -> usize {
        let (connection, channel) = self.connect().await;
        let options = QueueDeclareOptions { passive: true, durable: true, ..QueueDeclareOptions::default() };
        let name = format!("{}.{queue}", self.prefix);
        let declared = channel.queue_declare(&name, options, FieldTable::default()).await.unwrap();
        let count = usize::try_from(declared.message_count()).unwrap();
        connection.close(200, "done").await.unwrap();
        count
    }

    /// Waits until so many messages wait in the queue.
    pub async fn wait_for_count(&self, queue: &str, is_so: impl Fn(usize) -> bool) {
        let began = Instant::now();
        while !is_so(self.count(queue).await) {
            assert!(began.elapsed() < PATIENCE, "{}: never so many in {queue}", self.name);
        }
    }

    /// Publishes one action more and takes the time until its result, from the end of the fault's cause.
    pub async fn goes_on(&mut self, cause_ended: Instant) -> Duration {
        let id = self.publish(1).await.remove(0);
        self.collect_until(|found| found.results.contains_key(&id)).await;
        let again = cause_ended.elapsed();
        assert!(again < AGAIN_TIME_MAX, "{}: a result after {again:?}", self.name);
        self.again = Some(self.again.unwrap_or_default().max(again));
        again
    }

    async fn collect_until(&mut self, enough: impl Fn(&Found) -> bool) {
        let (connection, channel) = self.connect().await;
        channel.basic_qos(100, BasicQosOptions::default()).await.unwrap();
        let mut results = consume(&channel, &format!("{}.results", self.prefix)).await;
        let mut dead = consume(&channel, &format!("{}.dead", self.prefix)).await;
        while !enough(&self.found) {
            let deadline = tokio::time::Instant::now() + COLLECT_PATIENCE;
            tokio::select! {
                next = results.next() => self.take_result(next.unwrap().unwrap()).await,
                next = dead.next() => self.take_dead(next.unwrap().unwrap()).await,
                () = tokio::time::sleep_until(deadline) => panic!("{}: missing: {}", self.name, self.missing()),
            }
        }
        // The acks go first: a connection's close can overtake what its channels still have to say.
        channel.close(200, "done").await.unwrap();
        connection.close(200, "done").await.unwrap();
    }

    async fn take_result(&mut self, delivery: Delivery) {
        self.found.messages += 1;
        delivery.ack(BasicAckOptions::default()).await.unwrap();
        let result: Value = serde_json::from_slice(&delivery.data).unwrap();
        let id = result["action_id"].as_str().unwrap().to_owned();
        let message_id = delivery.properties.message_id().as_ref().expect("a message id");
        assert_eq!(message_id.as_str(), id, "{}", self.name);
        self.found.open.remove(&id);
        let seen = self.found.results.entry(id).or_default();
        // A busy quorum queue loses acks that come right before a close: what it then delivers again
        // was not published again.
        if seen.is_empty() || !delivery.redelivered {
            seen.push(result);
        }
    }

    async fn take_dead(&mut self, delivery: Delivery) {
        self.found.messages += 1;
        delivery.ack(BasicAckOptions::default()).await.unwrap();
        let action: Value = serde_json::from_slice(&delivery.data).unwrap();
        let id = action["action_id"].as_str().unwrap().to_owned();
        self.found.open.remove(&id);
        let is_again = !delivery.redelivered;
        if self.found.dead.insert(id, delivery).is_some() && is_again {
            self.found.dead_twice += 1;
        }
    }

    fn missing(&self) -> String {
        let begun = self.engine.calls("begin");
        let mut missing = String::new();
        for id in &self.found.open {
            let path = &self.paths[id];
            let runs = begun.get(path).copied().unwrap_or_default();
            let _ = write!(missing, "{path} (begun {runs} times) ");
        }
        missing
    }

    /// Waits until nothing is missing, stops the workers, and says how often what came twice.
    pub async fn end(mut self, workers: Vec<WorkerProcess>) -> Verdict {
        self.collect_until(|found| found.open.is_empty()).await;
        for worker in workers {
            assert_eq!(worker.stop(), 0, "{}", self.name);
        }
        self.collect_rest().await;
        let results_twice = self.found.results.values().filter(|results| results.len() > 1).count();
        for results in self.found.results.values() {
            assert!(results.iter().all(|result| result["payload"] == results[0]["payload"]), "{results:?}");
        }
        self.compare_files();
        let run_twice = self.engine.calls("begin").values().filter(|runs| **runs > 1).count();
        self.print(run_twice, results_twice);
        let (dead, dead_twice) = (self.found.dead, self.found.dead_twice);
        Verdict { run_twice, results_twice, dead_twice, dead, begun: self.engine.begun() }
    }

    /// Every file that was planted holds the bytes of its own action; one that was not planted is not there.
    fn compare_files(&self) {
        for (id, path) in &self.paths {
            let planted = self.found.results.get(id).is_some_and(|results| results[0]["success"] == true);
            match std::fs::read_to_string(path) {
                Ok(content) => {
                    assert_eq!(content.trim_end_matches('-'), id, "{}: {path}", self.name);
                    assert_eq!(content.len(), self.lengths[id], "{}: {path}", self.name);
                }
                Err(error) => assert!(!planted, "{}: {path}: {error}", self.name),
            }
        }
    }

    /// Takes what the workers published beyond one message an action.
    async fn collect_rest(&mut self) {
        let so_far = self.found.messages;
        let waiting = self.count("results").await + self.count("dead").await;
        self.collect_until(|found| found.messages >= so_far + waiting).await;
        for queue in &self.queues {
            assert_eq!(self.count(queue).await, 0, "{}: nothing is left to do in {queue}", self.name);
        }
    }

    fn print(&self, run_twice: usize, results_twice: usize) {
        let again = self.again.map_or("-".to_owned(), |again| format!("{:.1} s", again.as_secs_f64()));
        let counts =
            [self.paths.len(), self.found.results.len(), self.found.dead.len(), run_twice, results_twice];
        add_row(&self.name, counts, &again);
    }
}

/// Adds a row to the table of the whole matrix, which `scripts/test` shows at its end: actions, results, dead
/// letters, actions run twice and results that came twice, and the time until the first result afterwards.
pub fn add_row(name: &str, counts: [usize; 5], again: &str) {
    let [actions, results, dead, run_twice, results_twice] = counts;
    let line = format!(
        "{name:<44} | {actions:>7} | {results:>7} | {dead:>4} | {run_twice:>9} | {results_twice:>13} | {again:>7}"
    );
    println!("{line}");
    let table = concat!(env!("CARGO_TARGET_TMPDIR"), "/faults.txt");
    let mut table = std::fs::OpenOptions::new().create(true).append(true).open(table).unwrap();
    table.write_all(format!("{line}\n").as_bytes()).unwrap();
}

async fn consume(channel: &Channel, queue: &str) -> Consumer {
    let consumer = channel.basic_consume(queue, "", BasicConsumeOptions::default(), FieldTable::default());
    consumer.await.expect("the queue is there")
}

impl WorkerProcess {
    /// Ends it as the kernel does when memory runs out.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// A process that has just ended by itself hears no signal.
    pub fn signal_if_alive(&mut self, signal: &str) {
        if !self.has_ended() {
            self.signal(signal);
        }
    }

    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }
}
