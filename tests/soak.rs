//! Random faults, one after the other, while actions keep coming.
//!
//! Some seconds of it belong to the everyday suite; `make soak` runs it for ten minutes.

mod support;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use support::WorkerProcess;
use support::faults::Cell;
use support::own_broker::OwnBroker;
use support::proxy::Proxy;
use tokio::time::sleep;
use uuid::Uuid;

/// Seconds that it goes on for.
const SECONDS: &str = "DECKSWAIN_SOAK_SECONDS";
/// A number that chooses the faults, so that a run can be had again.
const SEED: &str = "DECKSWAIN_SOAK_SEED";

const BATCH: usize = 40;

const FAULTS: [&str; 10] = [
    "a worker is killed",
    "a worker is told to stop",
    "a worker is told to stop twice",
    "the broker closes all connections",
    "the broker is killed",
    "the broker is frozen",
    "the broker has a memory alarm",
    "the network is cut",
    "the network falls silent",
    "the engine is stopped",
];

const OPTIONS: [&str; 4] = ["--retry-delays", "1s,2s,4s,8s,16s", "--max-attempts", "12"];

/// Draws that the seed repeats (xorshift).
struct Draws(u64);

impl Draws {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as usize
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}")))
}

struct Soak {
    cell: Cell,
    broker: OwnBroker,
    proxy: Proxy,
    workers: Vec<WorkerProcess>,
}

impl Soak {
    async fn inflict(&mut self, fault: &str, length: Duration) {
        match fault {
            "a worker is killed" => {
                self.workers.remove(0).kill();
                self.workers.push(self.cell.worker_starting(&OPTIONS));
            }
            "a worker is told to stop" => {
                assert_eq!(self.workers.remove(0).stop(), 0);
                self.workers.push(self.cell.worker_starting(&OPTIONS));
            }
            "a worker is told to stop twice" => {
                let mut worker = self.workers.remove(0);
                worker.signal("-TERM");
                worker.wait_for_line("stopping: finishing what runs");
                worker.signal_if_alive("-TERM");
                assert_eq!(worker.wait(), 0);
                self.workers.push(self.cell.worker_starting(&OPTIONS));
            }
            "the broker closes all connections" => self.broker.ctl(&["close_all_connections", "a test"]),
            "the broker is killed" => {
                self.broker.kill();
                self.broker.up();
            }
            "the broker is frozen" => {
                self.broker.freeze();
                sleep(length).await;
                self.broker.thaw();
            }
            "the broker has a memory alarm" => {
                self.broker.memory_alarm(true);
                sleep(length).await;
                self.broker.memory_alarm(false);
            }
            "the network is cut" => self.proxy.cut(),
            "the network falls silent" => {
                self.proxy.fall_silent();
                sleep(length).await;
                self.proxy.serve_new_connections();
            }
            "the engine is stopped" => {
                self.cell.engine.set("engine-stopped", "");
                sleep(length).await;
                self.cell.engine.clear("engine-stopped");
            }
            other => panic!("no such fault: {other}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_under_random_faults() {
    let seconds = number(SECONDS).unwrap_or(20);
    let seed = number(SEED).unwrap_or_else(|| Uuid::new_v4().as_u64_pair().0);
    println!("{SEED}={seed} {SECONDS}={seconds}");
    let mut draws = Draws(seed.max(1));
    let broker = OwnBroker::start();
    let mut cell = Cell::on("soak: random faults", &broker.url);
    let proxy = Proxy::to(&cell.broker).await;
    cell.broker_of_worker = proxy.url.clone();
    cell.engine.set("slow", "0.02");
    let workers = vec![cell.worker(&OPTIONS), cell.worker(&OPTIONS)];
    let mut soak = Soak { cell, broker, proxy, workers };

    let mut inflicted: BTreeMap<&str, (usize, Duration)> = BTreeMap::new();
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(seconds) {
        soak.cell.publish(BATCH).await;
        let fault = FAULTS[draws.below(FAULTS.len())];
        let length = Duration::from_millis(500 + draws.below(12_000) as u64);
        soak.inflict(fault, length).await;
        let again = soak.cell.goes_on(Instant::now()).await;
        let entry = inflicted.entry(fault).or_default();
        *entry = (entry.0 + 1, entry.1.max(again));
        println!(
            "{:>5.0} s  {fault:<36} results again after {:.1} s",
            began.elapsed().as_secs_f64(),
            again.as_secs_f64()
        );
    }

    println!("\n{:<36} | times | slowest to go on", "fault");
    for (fault, (times, slowest)) in &inflicted {
        println!("{fault:<36} | {times:>5} | {:>6.1} s", slowest.as_secs_f64());
    }
    let verdict = soak.cell.end(soak.workers).await;
    assert!(verdict.dead.is_empty());
}
