//! `deckswain worker`.

use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use uuid::Uuid;

use super::settings::{RetrySettings, duration};
use super::{BrokerSettings, DriverSettings, EXIT_OK, Failed, runtime};
use crate::broker::{AmqpPublisher, Topology};
use crate::result::WorkerIdentity;
use crate::worker::{Pipeline, PipelineOptions, Service, ServiceOptions, Stop};

const AFTER_HELP: &str = "\
Consumes <prefix>.actions and declares what is missing on the broker. A result is
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
    pub(super) driver: DriverSettings,
    /// How many deckies are worked on at once [default: four for each core]
    #[arg(long, value_name = "N", env = "DECKSWAIN_CONCURRENCY", value_parser = clap::value_parser!(u16).range(1..=1024))]
    concurrency: Option<u16>,
    /// How often an action is tried in all when the decky or the engine is in trouble
    #[arg(long, value_name = "N", env = "DECKSWAIN_MAX_ATTEMPTS", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) max_attempts: u32,
    #[command(flatten)]
    pub(super) retries: RetrySettings,
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

/// RabbitMQ closes the channel of a delivery that is not acked for 30 minutes; a sixth of that is kept in hand.
const UNACKED_TIME_MAX: Duration = Duration::from_secs(25 * 60);

impl Options {
    pub(super) fn topology(&self) -> Topology {
        Topology::new(&self.broker.prefix, !self.no_results_queue, &self.retries.retry_delays)
    }

    /// What the settings come to; `Err` where they contradict each other.
    pub(super) fn service(&self) -> Result<ServiceOptions, Failed> {
        if self.grace < self.driver.timeout {
            return Err(Failed::usage("--grace is shorter than --timeout")
                .why("a stop would cut off actions that are still within their time")
                .hint("a --grace of at least --timeout"));
        }
        let concurrency = self.concurrency.unwrap_or_else(default_concurrency);
        // One delivery waits behind each that runs, so that a lane never idles.
        let prefetch = concurrency.saturating_mul(2);
        let held_max = self.driver.timeout.saturating_mul(prefetch.div_ceil(concurrency).into());
        if held_max > UNACKED_TIME_MAX {
            return Err(Failed::usage(format!(
                "--timeout {} is too long",
                humantime::format_duration(self.driver.timeout)
            ))
            .why(format!(
                "with {prefetch} deliveries held for {concurrency} at a time, one could stay unacked for longer than \
                 the broker's 30 minutes"
            ))
            .hint("a --timeout of at most 12m"));
        }
        Ok(ServiceOptions {
            broker_url: self.broker.broker.clone(),
            topology: self.topology(),
            concurrency,
            prefetch,
            content_bytes_max: self.driver.content_max,
            grace: self.grace,
        })
    }
}

pub fn run(options: &Options) -> Result<u8, Failed> {
    let topology = options.topology();
    let service = options.service()?;
    let publisher = AmqpPublisher::new(&options.broker.broker, &topology);
    let worker_id = options.worker_id.clone();
    let worker = WorkerIdentity::new(worker_id.unwrap_or_else(|| Uuid::new_v4().simple().to_string()));
    let pipeline_options = PipelineOptions { topology, attempts_max: options.max_attempts, worker };
    let (driver, policy) = (options.driver.driver(), options.driver.policy()?);
    let (abort, aborted) = watch::channel(false);
    let pipeline = Arc::new(Pipeline::new(driver, policy, publisher.clone(), pipeline_options, aborted));
    runtime()?.block_on(async {
        let (stop_sender, stop) = watch::channel(Stop::No);
        let signals = listen(stop_sender)
            .map_err(|error| Failed::internal("failed to listen for signals").why(error))?;
        let served = Service::new(service, pipeline, abort, stop).serve().await;
        signals.abort();
        publisher.close().await;
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
