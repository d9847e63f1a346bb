//! `deckswain worker`.

use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing::{info, warn};
use uuid::Uuid;

use super::settings::{LayoutSettings, RetrySettings, duration, size};
use super::{BrokerSettings, DriverSettings, EXIT_OK, Failed, log, runtime};
use crate::broker::{AmqpPublisher, Topology};
use crate::result::WorkerIdentity;
use crate::worker::{Budget, Pipeline, PipelineOptions, Residence, Service, ServiceOptions, Stop};

const AFTER_HELP: &str = "\
Consumes <prefix>.actions and declares what is missing on the broker; with --partitions
or --local queues of its own instead, for which docs/operations.md says more. A result is
published and confirmed before its action is acked. SIGTERM or SIGINT: finish what
runs, then exit 0; a second one ends at once. DECKSWAIN_LOG sets the log filter.

Example:
  deckswain worker --allow-decky 'web-*' --deny-path '/etc/**' --concurrency 4";

#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub struct Options {
    #[command(flatten)]
    pub(super) broker: BrokerSettings,
    #[command(flatten)]
    layout: LayoutSettings,
    #[command(flatten)]
    pub(super) driver: DriverSettings,
    /// How many deckies are worked on at once [default: four for each core]
    #[arg(long, value_name = "N", env = "DECKSWAIN_CONCURRENCY", value_parser = clap::value_parser!(u16).range(1..=1024))]
    concurrency: Option<u16>,
    /// How often an action is tried in all when the decky or the engine is in trouble
    #[arg(long, value_name = "N", env = "DECKSWAIN_MAX_ATTEMPTS", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) max_attempts: u32,
    #[command(flatten)]
    pub(super) retries: RetrySettings,
    /// How much memory the bodies of deliveries may take, such as 256MiB or 1GiB
    #[arg(long, value_name = "SIZE", env = "DECKSWAIN_MEMORY", default_value = "256MiB", value_parser = size)]
    memory: usize,
    /// How long what runs may go on after SIGTERM
    #[arg(long, value_name = "DURATION", env = "DECKSWAIN_GRACE", default_value = "30s", value_parser = duration)]
    grace: Duration,
    /// Name of this worker in its results [default: a random one]
    #[arg(long, value_name = "NAME", env = "DECKSWAIN_WORKER_ID")]
    worker_id: Option<String>,
    /// Declare no <prefix>.results queue: results without a consumer's own queue are then held back
    #[arg(long, env = "DECKSWAIN_NO_RESULTS_QUEUE")]
    no_results_queue: bool,
}

const MEBIBYTE: usize = 1024 * 1024;
/// What an action holds beside its content: paths, attribution, and the like.
const MESSAGE_REST_BYTES: usize = 64 * 1024;
/// How many deliveries are wanted for each decky that is worked on: a batch's worth.
const WAITING_PER_LANE: u16 = 64;

/// RabbitMQ closes the channel of a delivery that is not acked for 30 minutes; a sixth of that is kept in hand.
const UNACKED_TIME_MAX: Duration = Duration::from_secs(25 * 60);

impl Options {
    pub(super) fn topology(&self) -> Result<Topology, Failed> {
        let (layout, delays) = (self.layout.layout(), &self.retries.retry_delays);
        let topology = Topology::new(&self.broker.prefix, layout, !self.no_results_queue, delays);
        Ok(topology.on_host(&self.layout.host()?))
    }

    /// What the settings come to; `Err` where they contradict each other.
    pub(super) fn service(&self) -> Result<ServiceOptions, Failed> {
        if self.grace < self.driver.timeout {
            return Err(Failed::usage("--grace is shorter than --timeout")
                .why("a stop would cut off actions that are still within their time")
                .hint("a --grace of at least --timeout"));
        }
        let concurrency = self.concurrency.unwrap_or_else(default_concurrency);
        let prefetch = self.prefetch(concurrency)?;
        let waiting_max = UNACKED_TIME_MAX.as_millis() / self.driver.timeout.as_millis().max(1);
        Ok(ServiceOptions {
            broker_url: self.broker.url(),
            topology: self.topology()?,
            concurrency,
            prefetch,
            budget: self.bodies_held(concurrency).budget(self.memory),
            waiting_max: usize::try_from(waiting_max).unwrap_or(usize::MAX),
            grace: self.grace,
        })
    }
}

impl Options {
    /// How many deliveries are held at once: enough for each lane to have a batch waiting, as far as
    /// memory allows.
    fn prefetch(&self, concurrency: u16) -> Result<u16, Failed> {
        if self.driver.timeout > UNACKED_TIME_MAX {
            let timeout = humantime::format_duration(self.driver.timeout);
            return Err(Failed::usage(format!("--timeout {timeout} is too long"))
                .why("the broker takes back a delivery that is not acked within 30 minutes")
                .hint("a --timeout of at most 25m"));
        }
        let bodies = self.bodies_held(concurrency);
        let in_memory = bodies.count(self.memory);
        if in_memory == 0 {
            let least = bodies.worst(1).div_ceil(MEBIBYTE);
            return Err(Failed::usage(format!("--memory {}MiB is too little", self.memory / MEBIBYTE))
                .why(format!("one action with the largest content takes {least} MiB"))
                .hint(format!("--memory {least}MiB, or a smaller --content-max")));
        }
        let wanted = u128::from(concurrency) * u128::from(WAITING_PER_LANE);
        let prefetch = wanted.min(in_memory as u128);
        Ok(u16::try_from(prefetch).unwrap_or(u16::MAX))
    }

    fn bodies_held(&self, concurrency: u16) -> Bodies {
        Bodies { content_max: self.driver.content_max, running: concurrency.into() }
    }
}

/// The memory that bodies take at worst, in bytes: every one that is held is as large as it may be.
struct Bodies {
    content_max: usize,
    running: usize,
}

impl Bodies {
    /// A message with its base64 and its other fields.
    fn message(&self) -> usize {
        self.content_max / 3 * 4 + 4 + MESSAGE_REST_BYTES
    }

    /// The decoded content and the newly encoded message of one that runs.
    fn copies(&self) -> usize {
        self.content_max + self.message()
    }

    /// So many held; those that run are decoded and encoded anew on top.
    fn worst(&self, held: usize) -> usize {
        held * self.message() + self.running.min(held) * self.copies()
    }

    /// The bound for bodies as they come.
    fn budget(&self, memory_bytes: usize) -> Budget {
        Budget {
            memory_bytes,
            running: self.running,
            body_bytes_max: self.message(),
            copies_bytes_max: self.copies(),
        }
    }

    /// How many fit.
    fn count(&self, memory: usize) -> usize {
        match memory.checked_sub(self.worst(self.running)) {
            Some(left) => self.running + left / self.message(),
            None => memory / self.worst(1),
        }
    }
}

pub fn run(options: &Options) -> Result<u8, Failed> {
    let topology = options.topology()?;
    let service = options.service()?;
    options.driver.require_client()?;
    log::write_in_background();
    let publisher = AmqpPublisher::new(&options.broker.url(), &topology);
    let worker_id = options.worker_id.clone();
    let worker = WorkerIdentity::new(worker_id.unwrap_or_else(|| Uuid::new_v4().simple().to_string()));
    let content_bytes_max = options.driver.content_max;
    let residence = options.layout.local.then(|| Arc::new(Residence::new(&options.broker.url(), &topology)));
    let pipeline_options = PipelineOptions {
        topology,
        attempts_max: options.max_attempts,
        worker,
        content_bytes_max,
        // One decky that hangs is not to hold more than its share.
        ahead_max: usize::from(service.prefetch / service.concurrency).max(2),
        residence: residence.clone(),
    };
    let driver = options.driver.driver(Some(&options.broker))?;
    let policy = options.driver.policy()?;
    let follower = options.layout.local.then(|| (driver.clone(), policy.clone()));
    let (abort, aborted) = watch::channel(false);
    let pipeline = Arc::new(Pipeline::new(driver, policy, publisher.clone(), pipeline_options, aborted));
    let worst = options.bodies_held(service.concurrency).worst(service.prefetch.into());
    info!(
        concurrency = service.concurrency,
        prefetch = service.prefetch,
        "bodies take at most {} MiB of memory",
        worst.div_ceil(MEBIBYTE)
    );
    if service.prefetch < service.concurrency {
        warn!("only {} actions at once fit into --memory, and no more are taken", service.prefetch);
    }
    runtime()?.block_on(async {
        let (stop_sender, stop) = watch::channel(Stop::No);
        let signals = listen(stop_sender)
            .map_err(|error| Failed::internal("failed to listen for signals").why(error))?;
        let residents = follower.map(|(driver, policy)| {
            let (sender, residents) = watch::channel(None);
            tokio::spawn(async move {
                driver.follow_residents(sender, |decky| policy.allows(decky.as_str())).await;
            });
            residents
        });
        // As a task of its own it runs on the threads that its deliveries are worked on by: a change of
        // threads costs more than most of what is done for a delivery.
        let service = Service::new(service, pipeline, abort, stop, residents, residence.clone());
        let serving = tokio::spawn(service.serve());
        let served = serving.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
        signals.abort();
        publisher.close().await;
        if let Some(residence) = residence {
            residence.close().await;
        }
        match served {
            Ok(()) => Ok(EXIT_OK),
            Err(error) => Err(error.into()),
        }
    })
}

fn default_concurrency() -> u16 {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    u16::try_from(cores.saturating_mul(4)).unwrap_or(u16::MAX)
}

/// The first signal asks to finish, the second to end at once.
fn listen(stop: watch::Sender<Stop>) -> std::io::Result<tokio::task::JoinHandle<()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(tokio::spawn(async move {
        for next in [Stop::Finish, Stop::AtOnce] {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            stop.send_replace(next);
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_are_held_as_fit_into_memory_at_worst() {
        for content_max in [1024, 65_536, 4 * MEBIBYTE, 12 * MEBIBYTE] {
            for running in [1, 8, 64] {
                let bodies = Bodies { content_max, running };
                for memory in [MEBIBYTE, 256 * MEBIBYTE, 1024 * MEBIBYTE] {
                    let count = bodies.count(memory);
                    assert!(bodies.worst(count) <= memory && bodies.worst(count + 1) > memory);
                }
            }
        }
    }
}
